"""Training steps of all methods suit a GPU."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from allspark.batch import Progress
from allspark.config.files import apply_overrides
from allspark.config.schema import Config
from allspark.kernels import attention
from allspark.methods import METHODS, build_method
from tests.conftest import TINY
from tests.helpers import CORE, batch_of, choose, follow_step, step_of


def build(*changes):
    return build_method(apply_overrides(Config(), [*TINY, *changes]), 5)


class AllOnMeta(TorchDispatchMode):
    """Every operation takes tensors of the device alone; meta's own would let some others pass."""

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        used = [x.device.type for x in tree_leaves((arguments, options)) if isinstance(x, torch.Tensor) and x.dim()]
        assert set(used) <= {"meta"}, operation
        return operation(*arguments, **(options or {}))


CHANGES = [
    *(
        pytest.param(" ".join(choose(name)), id=name, marks=() if name in CORE else pytest.mark.slow)
        for name in METHODS
    ),
    *(f"method.name={name} method.labeled_loss=ohem" for name in ("supervised", "cps", "fixmatch")),
    "method.name=fixmatch method.filter=percentile",
    "method.name=allspark model.bottleneck_own=0.5 model.bottleneck_gate=true",
    "method.name=unimatch method.filter=class-wise",
    "method.name=ps-mt method.supervised_epochs=1",
    "method.name=gta-seg method.tie_classifier=true",
    "method.name=ccvc method.conflict=code",
]


@pytest.mark.parametrize("changes", CHANGES)
def test_no_step_waits_for_its_device_or_leaves_it(changes, monkeypatch):
    """Meta tensors have a device of their own and no values: to ask for one, as waiting for a GPU is, is an error."""
    monkeypatch.setattr(attention, "_tiled", attention._fused)  # as on a GPU
    autocast = torch.autocast  # that of the CPU in its place, for it does not know this device
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)
    monkeypatch.setattr(torch, "autocast", lambda _, *arguments, **options: autocast("cpu", *arguments, **options))
    method = build(*changes.split()).to("meta")
    batch = batch_of(method.views).to("meta")
    for number in (0, 5):  # while the memory warms up, and after
        with AllOnMeta():
            output = step_of(method, batch, Progress(number, 2, 6))
            output.loss.backward()
        results = [output.loss, *output.metrics.values(), *output.class_pixels.values()]
        results += [term.count for term in output.terms.values()]
        with AllOnMeta():
            follow_step(method, Progress(number, 2, 6))
            method.after_validation(Progress(number + 1, 2, 6), best=True)
        gradients = [parameter.grad for parameter in method.parameters() if parameter.grad is not None]
        assert gradients and {x.device.type for x in [*results, *gradients]} == {"meta"}
