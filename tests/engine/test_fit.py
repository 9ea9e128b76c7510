"""A network that cannot train is refused at once."""

from contextlib import nullcontext

import pytest
import torch
from benchmarks.measure import peak_bytes

from allspark.config.files import apply_overrides
from allspark.config.resolve import network_config
from allspark.engine import fit
from allspark.errors import ConfigError
from allspark.models.allspark import AllSparkBottleneck, Guide

CPU = torch.device("cpu")


def require(config, *changes):
    config = apply_overrides(config, ["method.name=allspark", *changes])
    fit.require_fit(config.model_copy(update={"model": network_config(config)}), 3, CPU)


@pytest.mark.parametrize("heads", [1, 2, 5])
def test_any_number_of_bottleneck_heads_fits(tiny_config, heads):
    require(tiny_config, f"model.bottleneck_heads={heads}")


def test_an_encoder_whose_heads_do_not_divide_its_channels_is_named(tiny_config):
    swin = "model.encoder_config={embed_dim: 9, depths: [1, 1, 1, 1], num_heads: [2, 2, 2, 2]}"
    with pytest.raises(ConfigError, match=r"model\.encoder_config: .* swin .* heads must divide its channels"):
        require(tiny_config, "model.encoder=swin", swin)


@pytest.mark.parametrize(("crop", "fits"), [("32", False), ("[20, 32]", False), ("33", True), ("[32, 64]", True)])
def test_a_crop_of_one_token_is_refused(tiny_config, crop, fits):
    with nullcontext() if fits else pytest.raises(ConfigError, match=r"one position .* set data\.crop above 32"):
        require(tiny_config, f"data.crop={crop}")
    require(tiny_config, f"data.crop={crop}", "method.name=pseudo-label")


def test_too_little_memory_is_said_with_what_helps(tiny_config, monkeypatch):
    monkeypatch.setattr(fit, "host_memory", lambda: 10**5)
    with pytest.raises(ConfigError) as refused:
        require(tiny_config, "model.bottleneck_heads=2")
    for part in ("24 channels", "grid of 2 x 2", "3 classes", "GB", "cpu", "data.crop", "bottleneck_heads=1"):
        assert part in str(refused.value)
    assert "output_stride" not in str(refused.value)
    monkeypatch.setattr(fit, "host_memory", lambda: None)
    require(tiny_config)


@pytest.mark.parametrize(("channels", "classes", "side"), [(128, 60, 12), (96, 2, 2)])
@pytest.mark.parametrize("memory", [True, False])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_least_bytes_are_needed(tiny_config, channels, classes, side, memory, optimizer):
    """A step of the bottleneck alone, counted: never less; not half as much where keys and values are most of it."""
    config = apply_overrides(tiny_config, [f"optim.name={optimizer}"])
    feature = torch.randn(4, channels, side, side)
    hint = Guide(2, torch.randn(2, classes, side, side), read_memory=True)

    def step():
        module = AllSparkBottleneck(channels, classes, (side, side), memory=memory)
        kinds = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}
        options = {"momentum": 0.9} if optimizer == "sgd" else {}
        trainer = kinds[optimizer](module.parameters(), lr=0.1, foreach=False, **options)
        for _ in range(2):  # the state is there in the second
            module(feature, hint).sum().backward()
            trainer.step()

    counted = peak_bytes(step)
    least = fit.least_bytes(AllSparkBottleneck(channels, classes, (side, side), memory=memory), side**2, config)
    assert least <= counted
    if memory and classes == 60:
        assert least > 0.5 * counted
