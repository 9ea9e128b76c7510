"""Groups of parameters, and how the learning rate goes."""

import pytest

from allspark.config.files import apply_overrides
from allspark.config.schema import OptimConfig
from allspark.engine.optim import build_optimizer, schedule, set_lr
from allspark.methods import build_method
from tests.helpers import choose, each_method


def rates(total, **options):
    return [schedule(i, total, OptimConfig(**options)) for i in range(total)]


def test_poly_begins_at_one_and_ends_near_zero():
    assert rates(10) == pytest.approx([(1 - i / 10) ** 0.9 for i in range(10)])


def test_cosine_is_symmetric():
    values = rates(9, schedule="cosine")
    assert values[0] == 1 and values == sorted(values, reverse=True)
    assert [a + b for a, b in zip(values[1:], values[:0:-1], strict=True)] == pytest.approx([1] * 8)


@pytest.mark.parametrize("kind", ["poly", "cosine"])
def test_warm_up_rises_in_a_line_and_the_rest_is_as_without(kind):
    values = rates(14, schedule=kind, warmup_steps=4)
    assert values[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert values[4:] == pytest.approx(rates(10, schedule=kind))


@pytest.mark.parametrize("name", each_method())
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("decay", ["true", "false"])
def test_every_trained_parameter_is_in_one_group(tiny_config, name, optimizer, decay):
    changes = [*choose(name), f"optim.name={optimizer}", f"optim.decay_norms={decay}"]
    config = apply_overrides(tiny_config, changes)
    method = build_method(config, 3)
    built = build_optimizer(method, config.optim)
    grouped = [id(p) for group in built.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in method.parameters() if p.requires_grad)
    set_lr(built, config.optim, 0.5)
    rate = {id(p): group["lr"] for group in built.param_groups for p in group["params"]}
    encoders = {id(p) for network in method.networks() for p in network.encoder.parameters()}
    for identity in grouped:
        assert rate[identity] == (0.005 if identity in encoders else 0.005 * config.optim.head_multiplier)
    for group in built.param_groups:
        axes = {p.dim() > 1 for p in group["params"]}
        assert (group["weight_decay"] == 0) == (decay == "false" and axes == {False})
