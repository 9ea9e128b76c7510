import pytest

from tests.conftest import TINY


@pytest.fixture
def study_file(tmp_path, tiny_folder):
    """A study of two methods and two seeds, two steps each."""
    values = dict(item.split("=", 1) for item in TINY if not item.startswith("method."))
    values |= {"data.root": f"'{tiny_folder}'", "train.epochs": "1"}
    lines = [f"  {name}: {value}" for name, value in values.items()]
    path = tmp_path / "tiny.yaml"
    path.write_text(
        "base: folder\nset:\n" + "\n".join(lines) + "\nmethods:\n  supervised:\n"
        "  whole: {method.name: allspark}\nseeds: [0, 1]\n"
    )
    return path
