"""Which pseudo-labels count, against naive loops."""

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from allspark.batch import Progress
from allspark.config.files import apply_overrides
from allspark.config.methods import METHOD_CONFIGS
from allspark.config.schema import Config
from allspark.errors import ConfigError
from allspark.methods import METHODS, build_method
from allspark.methods.filters import PixelFilter, class_thresholds, follow_confidence, lowest_share
from tests.conftest import TINY
from tests.helpers import batch_of, choose, pixels
from tests.methods.test_ramps import CONSISTENCY

seeds = st.integers(0, 1000)


@given(seed=seeds, share=st.floats(0, 1), known=st.integers(0, 24))
def test_percentile_equals_numpys(seed, share, known):
    torch.manual_seed(seed)
    entropy = torch.rand(2, 3, 4, dtype=torch.float64)
    valid = (torch.randperm(24) < known).view(2, 3, 4)
    kept = lowest_share(entropy, valid, share)
    if known:
        bound = np.percentile(entropy[valid].numpy(), 100 * share)
        for value, inside, found in zip(entropy.flatten(), valid.flatten(), kept.flatten(), strict=True):
            if abs(float(value) - bound) > 1e-12:
                assert bool(found) == (bool(inside) and float(value) < bound)
    assert not kept[~valid].any()


def test_a_percentile_of_equal_values_keeps_none_and_of_all_leaves_the_highest_out():
    valid = torch.ones(1, 2, 2, dtype=torch.bool)
    assert not lowest_share(torch.ones(1, 2, 2), valid, 0.5).any()
    assert lowest_share(torch.tensor([[[1.0, 2], [3, 4]]]), valid, 1.0).tolist() == [[[True, True], [True, False]]]


@given(seed=seeds)
def test_running_confidence_equals_a_loop(seed):
    torch.manual_seed(seed)
    running, confidence = torch.rand(4).double() + 0.1, torch.rand(2, 3, 5).double()
    labels, valid = torch.randint(3, (2, 3, 5)), torch.rand(2, 3, 5) < 0.6  # the fourth class is never found
    expected = running.clone()
    for k in range(4):
        mine = [
            float(c)
            for c, x, v in zip(confidence.flatten(), labels.flatten(), valid.flatten(), strict=True)
            if v and x == k
        ]
        if mine:
            expected[k] = 0.9 * running[k] + 0.1 * sum(mine) / len(mine)
    found = follow_confidence(running, confidence, labels, valid, 0.9)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    thresholds = class_thresholds(0.8, found)
    assert float(thresholds.max()) == pytest.approx(0.8)
    for k in range(4):
        assert float(thresholds[k]) == pytest.approx(0.8 * float(expected[k]) / max(map(float, expected)))


def filter_of(kind, **changes):
    return PixelFilter(METHODS["fixmatch"].settings(filter=kind, **changes), 5)


def test_the_threshold_is_what_it_was():
    torch.manual_seed(0)
    scores = pixels(2 * torch.randn(2, 5, 6, 7))
    labels, keep = filter_of("threshold", confidence=0.6)(
        scores, torch.ones(2, 6, 7, dtype=torch.bool), Progress(0, 1, 1)
    )
    confidence = scores.coarse.softmax(1).amax(1)
    assert torch.equal(labels, scores.coarse.argmax(1)) and torch.equal(keep, confidence >= 0.6)
    assert 0 < keep.sum() < keep.numel() and not filter_of("threshold").state_dict()


def test_the_share_that_is_dropped_moves_over_the_training():
    torch.manual_seed(0)
    scores, valid = pixels(torch.randn(1, 5, 20, 20)), torch.ones(1, 20, 20, dtype=torch.bool)
    one = filter_of("percentile", drop_share=(0.8, 0.4))
    kept = [float(one(scores, valid, Progress(step, 10, 40))[1].double().mean()) for step in (0, 20, 40)]
    assert kept == pytest.approx([0.2, 0.4, 0.6], abs=0.005)


def test_a_class_that_the_network_is_unsure_of_has_a_lower_threshold():
    logits = torch.zeros(1, 5, 4, 4, dtype=torch.float64)
    logits[:, 0, :2], logits[:, 1, 2:] = 6.0, 1.5
    scores, valid = pixels(logits), torch.ones(1, 4, 4, dtype=torch.bool)
    one = filter_of("class-wise", confidence=0.9)
    first = one(scores, valid, Progress(0, 1, 900))[1]
    for step in range(900):
        last = one(scores, valid, Progress(step, 1, 900))[1]
    assert not first[:, 2:].any() and last.all()
    thresholds = one.thresholds
    sure = logits.softmax(1).amax(1)
    assert float(thresholds[1]) == pytest.approx(
        float(0.9 * thresholds[0] / 0.9 * sure[0, 3, 0] / sure[0, 0, 0]), rel=1e-3
    )
    assert one.state_dict().keys() == {"running"}


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name in CONSISTENCY for kind in get_args(METHOD_CONFIGS[name].model_fields["filter"].annotation)],
)
def test_each_method_learns_with_each_filter(name, kind):
    changes = [f"method.filter={kind}", "method.confidence=0.2", "method.drop_share=[0.5, 0]"]
    changes = [*choose(name), *changes, "method.supervised_epochs=0"]
    torch.manual_seed(0)
    method = build_method(apply_overrides(Config(), [*TINY, *changes]), 5)
    output = method(batch_of(method.views), Progress(0, 2, 4))
    output.loss.backward()
    assert torch.isfinite(output.loss) and 0 < float(output.metrics["kept"]) <= 1
    assert any(float(term.mean().detach()) > 0 for key, term in output.terms.items() if not key.startswith("labeled"))
    assert ("threshold" in method.health()) == (kind == "class-wise")


@pytest.mark.parametrize("change", ["filter=best", "confidence=1.5", "drop_share=[0.2]", "drop_share=[0.2, 2]"])
def test_filters_out_of_range_are_one_line(change):
    with pytest.raises(ConfigError, match=rf"method\.{change.split('=')[0]}.*: .+, got .+$"):
        apply_overrides(Config(), ["method.name=fixmatch", f"method.{change}"])
