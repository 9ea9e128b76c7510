"""Training steps of all methods: what they learn, and that they suit a GPU."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from allspark.batch import LabeledBatch, Progress, TrainBatch, UnlabeledBatch
from allspark.config.files import apply_overrides
from allspark.config.schema import Config
from allspark.kernels import attention
from allspark.methods import METHODS, build_method
from tests.conftest import TINY


def build(*changes):
    return build_method(apply_overrides(Config(), [*TINY, *changes]), 5)


def draw_batch():
    image, mask = torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.int64)
    return TrainBatch(LabeledBatch(image, mask), UnlabeledBatch(image.flip(0), torch.ones(2, 64, 64, dtype=torch.bool)))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", METHODS)
def test_all_weights_learn(name, precision):
    """Also in mixed precision, where the pass for pseudo-labels leaves half copies of the weights behind."""
    method = build(f"method.name={name}")
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        output = method(draw_batch(), Progress(5, 2, 6))
    output.loss.backward()
    assert not [name for name, x in method.named_parameters() if x.grad is None or not x.grad.any()]


class AllOnMeta(TorchDispatchMode):
    """Every operation takes tensors of the device alone; meta's own would let some others pass."""

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        used = [x.device.type for x in tree_leaves((arguments, options)) if isinstance(x, torch.Tensor) and x.dim()]
        assert set(used) <= {"meta"}, operation
        return operation(*arguments, **(options or {}))


@pytest.mark.parametrize("loss", ["cross-entropy", "ohem"])
@pytest.mark.parametrize("name", METHODS)
def test_no_step_waits_for_its_device_or_leaves_it(name, loss, monkeypatch):
    """Meta tensors have a device of their own and no values: to ask for one, as waiting for a GPU is, is an error."""
    monkeypatch.setattr(attention, "_tiled", attention._fused)  # as on a GPU
    autocast = torch.autocast  # that of the CPU in its place, for it does not know this device
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)
    monkeypatch.setattr(torch, "autocast", lambda _, *arguments, **options: autocast("cpu", *arguments, **options))
    method, batch = build(f"method.name={name}", f"method.labeled_loss={loss}").to("meta"), draw_batch().to("meta")
    for number in (0, 5):  # while the memory warms up, and after
        with AllOnMeta():
            output = method(batch, Progress(number, 2, 6))
            output.loss.backward()
        results = [output.loss, *output.metrics.values(), *output.class_pixels.values()]
        gradients = [parameter.grad for parameter in method.parameters()]
        assert {x.device.type for x in [*results, *gradients]} == {"meta"}
