"""Two groups, one schedule."""

import pytest

from allspark.engine.optim import build_optimizer, poly, set_lr
from allspark.methods import build_method


def test_poly_begins_at_one_and_ends_near_zero():
    assert poly(0, 10, 0.9) == 1
    assert poly(5, 10, 0.9) == pytest.approx(0.5**0.9)
    assert [poly(i, 10, 0.9) > poly(i + 1, 10, 0.9) for i in range(9)] == [True] * 9


def test_every_parameter_is_in_one_group(tiny_config):
    method = build_method(tiny_config, 3)
    optimizer = build_optimizer(method, tiny_config.optim)
    encoder, rest = ({id(p) for p in group["params"]} for group in optimizer.param_groups)
    assert encoder == {id(p) for p in method.segmenter.encoder.parameters()}
    assert encoder | rest == {id(p) for p in method.parameters()} and not encoder & rest
    set_lr(optimizer, tiny_config.optim, 0.5)
    assert [g["lr"] for g in optimizer.param_groups] == [0.005, 0.005 * tiny_config.optim.head_multiplier]
