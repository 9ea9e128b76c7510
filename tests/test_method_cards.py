"""Every method has a row and a card, and the card tells of each of its own settings."""

import re

import pytest

from allspark.config.methods import METHOD_CONFIGS, Consistency, MethodConfig
from tests.conftest import REPOSITORY

TABLE = (REPOSITORY / "docs" / "methods.md").read_text("utf-8")
SHARED = {*MethodConfig.model_fields, *Consistency.model_fields, "strong_pass"}
AS_OF = re.compile(r"(?:settings of|As) (?:of )?\[?`([^`]+)`")


def card(name):
    return (REPOSITORY / "docs" / "methods" / f"{name}.md").read_text("utf-8")


def test_the_table_has_every_method_once():
    rows = re.findall(r"^\| \[`([^`]+)`\]\(methods/([^)]+)\.md\)", TABLE, re.MULTILINE)
    assert sorted(rows) == sorted((name, name) for name in METHOD_CONFIGS)
    cards = [path.stem for path in (REPOSITORY / "docs" / "methods").glob("*.md")]
    assert sorted(cards) == sorted(METHOD_CONFIGS)


def test_the_readme_names_every_method():
    text = (REPOSITORY / "README.md").read_text("utf-8")
    assert [name for name in METHOD_CONFIGS if f"`{name}`" not in text] == []


@pytest.mark.parametrize("name", METHOD_CONFIGS)
def test_a_card_tells_of_every_setting_of_its_own(name):
    text = card(name)
    told = text + "".join(card(other) for other in AS_OF.findall(text) if other in METHOD_CONFIGS)
    for word in re.findall(r"Those of `([^`]+)`(?: and of `([^`]+)`)?", text):
        told += "".join(card(other) for other in word if other)
    own = set(METHOD_CONFIGS[name].model_fields) - SHARED
    assert [field for field in own if f"`{field}`" not in told] == []


@pytest.mark.parametrize("name", METHOD_CONFIGS)
def test_a_card_says_whether_the_bottleneck_is_on_offer(name):
    (row,) = re.findall(rf"^\| \[`{re.escape(name)}`\].*$", TABLE, re.MULTILINE)
    offered = row.split("|")[6].strip()
    assert bool(offered) == METHOD_CONFIGS[name].joint
