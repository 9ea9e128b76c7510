"""The weight of unlabelled images over the epochs."""

import math

import pytest
import torch

from allspark.batch import Progress
from allspark.config.files import apply_overrides
from allspark.config.methods import Consistency, FixMatch
from allspark.config.schema import Config
from allspark.errors import ConfigError
from allspark.methods import METHODS, build_method
from allspark.methods.ramps import ramp, unlabeled_weight
from tests.conftest import TINY
from tests.helpers import batch_of, choose

CONSISTENCY = [name for name, method in METHODS.items() if issubclass(method.settings, Consistency)]


@pytest.mark.parametrize(
    ("shape", "start", "middle"), [("sigmoid", math.exp(-5), math.exp(-1.25)), ("linear", 0, 0.5), ("cosine", 0, 0.5)]
)
def test_ramps_rise_to_one_and_stay(shape, start, middle):
    assert ramp(-1.0, shape) == ramp(0.0, shape) == pytest.approx(start)
    assert ramp(0.5, shape) == pytest.approx(middle) and ramp(1.0, shape) == ramp(7.0, shape) == 1
    rising = [ramp(i / 20, shape) for i in range(21)]
    assert rising == sorted(rising)


def weights(steps, per_epoch, **changes):
    settings = FixMatch(**changes)
    return [unlabeled_weight(settings, Progress(step, per_epoch, steps)) for step in range(steps)]


def test_warm_up_and_ramp_are_counted_in_epochs():
    assert weights(3, 2) == [0.5, 0.5, 0.5]
    assert weights(5, 2, supervised_epochs=1.5) == [0, 0, 0, 0.5, 0.5]
    assert weights(7, 2, supervised_epochs=1, ramp_epochs=2, ramp="linear", unlabeled_weight=4) == [0, 0, 0, 1, 2, 3, 4]
    assert weights(3, 1, ramp_epochs=2)[0] == pytest.approx(0.5 * math.exp(-5))


@pytest.mark.parametrize("name", CONSISTENCY)
def test_in_the_warm_up_labels_alone_count(name):
    changes = [*choose(name), "method.supervised_epochs=1", "method.labeled_weight=0.7"]
    method = build_method(apply_overrides(Config(), [*TINY, *changes]), 5)
    batch = batch_of(method.views)
    early, late = (method(batch, Progress(step, 2, 4)) for step in (1, 2))
    labeled = [term for key, term in early.terms.items() if key.startswith("labeled")]
    torch.testing.assert_close(early.loss, sum(term.weight * term.mean() for term in labeled))
    assert {round(term.weight, 9) for term in labeled} <= {0.7, 0.35} and early.class_pixels.keys() == {"labeled"}
    assert all(term.weight > 0 for term in late.terms.values()) and len(late.terms) > len(labeled)
    assert torch.isfinite(late.loss)


def test_the_memory_waits_for_the_end_of_the_warm_up():
    changes = ["method.name=fixmatch", "model.bottleneck=allspark", "model.bottleneck_warmup_epochs=1"]
    method = build_method(apply_overrides(Config(), [*TINY, *changes, "method.supervised_epochs=1"]), 5)
    read = []
    method.segmenter.bottleneck.register_forward_pre_hook(lambda module, inputs: read.append(inputs[1]))
    for step in range(0, 8, 2):
        method(batch_of(method.views), Progress(step, 2, 8))
        method.after_step(Progress(step, 2, 8))
    assert [guide and guide.read_memory for guide in read if guide is not None] == [False, True, True]
    assert read[0] is None  # labelled images alone, as in inference


@pytest.mark.parametrize("name", CONSISTENCY)
def test_colours_of_labelled_crops_are_a_setting(name):
    settings = METHODS[name].settings
    assert settings().labeled_views == "weak"
    for choice in ("weak", "strong"):
        changes = [*TINY, *choose(name), f"method.labeled_views={choice}"]
        assert build_method(apply_overrides(Config(), changes), 5).views.labeled == choice


@pytest.mark.parametrize(
    "change", ["supervised_epochs=-1", "ramp_epochs=-1", "ramp=step", "labeled_views=none", "unlabeled_weight=-1"]
)
def test_settings_out_of_range_are_one_line(change):
    with pytest.raises(ConfigError, match=rf"method\.{change.split('=')[0]}: .+, got .+$"):
        apply_overrides(Config(), ["method.name=fixmatch", f"method.{change}"])
