"""A method as it learns: its step over micro-batches and processes, its optimiser, its schedule, its state."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import reduce
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from allspark.batch import Progress, StepOutput, TrainBatch, weighted_sum
from allspark.config.schema import OptimConfig, TrainConfig
from allspark.engine.checkpoint import Checkpoint
from allspark.engine.optim import build_optimizer, named_state, parameter_order, schedule, set_lr
from allspark.engine.run import method_names
from allspark.engine.scalars import Scalars, scalars_of
from allspark.errors import CheckpointError, NotFiniteError, UserError
from allspark.inference.predictor import out_of_memory
from allspark.kernels.batch_norm import synchronise_norms
from allspark.methods.base import Method
from allspark.models.encoders import Encoder, freeze_unused
from allspark.models.segmenter import Segmenter
from allspark.runtime.agreement import CONTINUE, agree_on
from allspark.runtime.collectives import all_gather_object, all_reduce, world_size
from allspark.runtime.sharding import distribute_like, full_tensor, reshard, shard

_OPTIMIZER = "optim."
_EARLIER = ("momentum.", "momentum_buffer.")  # version 0.1's name of SGD's only state
_STATE = {"sgd": {"momentum_buffer"}, "adamw": {"step", "exp_avg", "exp_avg_sq"}}
_GRADIENT, _LOSS = 1, 2
_NAMES = {_GRADIENT: "gradient", _LOSS: "loss"}
_MOST_SKIPPED = 25
"""Steps in a row without an update before a run ends: fp16's scale halves in each, from 65536 to 0.002."""


class OutOfMemoryError(UserError):
    """The memory does not suffice for a step."""


class Learner:
    """A method with all that makes it learn.

    Args:
        method: with the weights that it begins with; it is moved to the device.
        optim: with the learning rate as it is used.
        how: precision, sharding, compilation, and what to do about losses that are not finite.
        accelerator: devices and processes.
        total_steps: weight updates of the whole run.
    """

    def __init__(
        self, method: Method, optim: OptimConfig, how: TrainConfig, accelerator: Accelerator, total_steps: int
    ) -> None:
        self.method = method
        self.total_steps = total_steps
        self._accelerator = accelerator
        self._optim = optim
        self._skips = how.on_nan == "skip"
        self._skipped = 0  # steps in a row
        self._double = how.precision == "fp64"
        several = accelerator.num_processes > 1
        if several:
            for network in method.networks():
                freeze_unused(network.encoder)
            if method.phases > 1 and accelerator.ddp_handler is not None:
                accelerator.ddp_handler.find_unused_parameters = True
        synchronise_norms(method, accelerator.device)
        if how.compile:
            for network in [module for module in method.modules() if isinstance(module, Segmenter)]:
                network.compile_parts()  # teachers too
        if how.shard and several:
            method.to(accelerator.device)
            shard(_parts(method), accelerator.device, by_block=Encoder)
            self.optimizer = accelerator.prepare(build_optimizer(method, optim))
            self._wrapped = _in_precision(method, accelerator)
        else:
            self._wrapped, self.optimizer = accelerator.prepare(method, build_optimizer(method, optim))

    @property
    def lr(self) -> float:
        """The learning rate of the encoder, also of one that is frozen."""
        first = self.optimizer.param_groups[0]
        return float(first["lr"] / first["factor"])

    def step(self, parts: Sequence[TrainBatch], progress: Progress, note: Callable[[str], None]) -> list[Scalars]:
        """One weight update, or one of each of the method's phases.

        Args:
            parts: its micro-batches.
            progress: where training stands.
            note: called with a line if the update is skipped; what is left of the step is skipped then too.

        Returns:
            What each micro-batch has to log; nothing if a loss or the gradient was not finite and the update was
            skipped.

        Raises:
            OutOfMemoryError: the memory does not suffice.
            NotFiniteError: too many steps in a row had to be skipped.
        """
        set_lr(self.optimizer, self._optim, schedule(progress.step, self.total_steps, self._optim))
        totals = self._totals(parts)
        phases: list[list[Scalars]] = []
        learned = False
        for phase in self.method.phases_of(progress):
            phases.append(self._update(parts, phase, progress, totals, note))
            too_large = self._accelerator.optimizer_step_was_skipped  # fp16's scale
            learned = bool(phases[-1]) and not too_large
            if not learned:
                break
            reshard(self.method)
            self.method.after_phase(phase, progress)
        self._require_progress(learned, progress)
        if learned:
            self.method.after_step(progress)
        return [reduce(Scalars.and_then, parts) for parts in zip(*phases, strict=True)] if phases[-1] else []

    def _update(
        self,
        parts: Sequence[TrainBatch],
        phase: int,
        progress: Progress,
        totals: Mapping[str, Tensor],
        note: Callable[[str], None],
    ) -> list[Scalars]:
        """The weight update of one phase; returns as ``step``."""
        # What a step changes beside weights and the optimiser's state, to be taken back where its loss is not finite.
        before = {name: x.clone() for name, x in self.method.named_buffers()} if self._skips else {}
        which = (phase,) if self.method.phases > 1 else ()
        scalars: list[Scalars] = []
        updated = False
        for number, batch in enumerate(parts, 1):
            with self._accelerator.accumulate(self._wrapped):
                with _memory_suffices(progress):
                    output: StepOutput = self._wrapped(self._on_device(batch), progress, *which)
                    means = self._means(output, totals)
                    loss = weighted_sum(means, output.terms)
                    self._accelerator.backward(loss)
                scalars.append(scalars_of(batch, loss, means, output))
                del output, means, loss
                if number == len(parts):
                    with _memory_suffices(progress):
                        norm = self._clipped()
                    if self._accelerator.scaler is None:
                        scalars[-1] = scalars[-1].with_norm(norm)
                    if not (self._skips and self._rolled_back(before, scalars, progress, note)):
                        with _memory_suffices(progress):  # the optimiser's state is made in the first step
                            self.optimizer.step()
                        updated = True
                self.optimizer.zero_grad(set_to_none=True)
        return scalars if updated else []

    def _clipped(self) -> Tensor:
        """Scale the gradient down to ``clip_norm`` where that is set; returns its norm before, scalar."""
        most = math.inf if self._optim.clip_norm is None else self._optim.clip_norm
        norm: Tensor = self._accelerator.clip_grad_norm_(self.method.parameters(), most)
        return full_tensor(norm)

    def _require_progress(self, learned: bool, progress: Progress) -> None:
        """End a run that skips one step after the other."""
        self._skipped = 0 if learned else self._skipped + 1
        if self._skipped == _MOST_SKIPPED:
            raise NotFiniteError(
                f"{_MOST_SKIPPED} steps in a row up to step {progress.step + 1} gave a loss or a gradient that is not "
                "finite, and were skipped",
                progress.step + 1,
            )

    def _on_device(self, batch: TrainBatch) -> TrainBatch:
        batch = batch.to(self._accelerator.device, non_blocking=True)
        return batch.with_images(torch.float64) if self._double else batch

    def _totals(self, parts: Sequence[TrainBatch]) -> dict[str, Tensor]:
        """Counts of the whole update, a micro-batch and a process; of those terms that the batches tell of."""
        if len(parts) == 1:
            return {}  # the terms themselves say it
        counts = [self.method.counts(batch) for batch in parts]
        if not counts[0]:
            return {}
        sums = torch.stack([torch.stack([count[name].double() for count in counts]).sum() for name in counts[0]])
        sums = all_reduce(sums.to(self._accelerator.device)) / (world_size() * len(parts))
        return dict(zip(counts[0], sums, strict=True))

    def _means(self, output: StepOutput, totals: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Each term's mean, such that the means over micro-batches and processes are those over the whole update."""
        terms = output.terms
        counts: dict[str, Tensor | None] = {name: totals.get(name) for name in terms}
        rest = [name for name in terms if counts[name] is None]
        if rest and world_size() > 1:
            sums = all_reduce(torch.stack([terms[name].count.double() for name in rest])) / world_size()
            counts |= dict(zip(rest, sums, strict=True))
        return {name: term.mean(counts[name]) for name, term in terms.items()}

    def _rolled_back(
        self,
        before: Mapping[str, Tensor],
        scalars: Sequence[Scalars],
        progress: Progress,
        note: Callable[[str], None],
    ) -> bool:
        """Take back what the step did to buffers if something, in any process, is not finite; returns whether it did.

        A gradient is everyone's: then all images are named.
        """
        lost = [one.ids for one in scalars if not one.values[0].isfinite()]
        broken = any(not value.isfinite() for value in scalars[-1].judged().values())
        verdict = agree_on(_LOSS if lost else _GRADIENT if broken else CONTINUE)
        if verdict == CONTINUE:
            return False
        if verdict == _GRADIENT:
            lost = [one.ids for one in scalars]
        for name, buffer in self.method.named_buffers():
            buffer.copy_(before[name])
        images = ", ".join(chain.from_iterable(chain.from_iterable(all_gather_object(lost))))
        note(f"skipped: step {progress.step + 1}, whose {_NAMES[verdict]} is not finite (images {images})")
        return True

    def tensors(self) -> dict[str, Tensor]:
        """All state: networks, what else the method holds, the optimiser's; all processes call this together."""
        state, names = self.method.state_dict(), method_names(self.method)
        tensors = {names[name]: full_tensor(tensor) for name, tensor in state.items()}
        for name, tensor in named_state(self.optimizer, self.method).items():
            tensors[_OPTIMIZER + name] = full_tensor(tensor)
        return tensors

    def meta(self) -> dict[str, Any]:
        """State that is no tensor: the scale of fp16's loss."""
        scaler = self._accelerator.scaler
        return {"scaler": None if scaler is None else scaler.state_dict()}

    def load_optimizer(self, checkpoint: Checkpoint, path: Path) -> None:
        """Take up the optimiser's state; the method's is loaded before it is wrapped, see ``load_method``.

        Raises:
            CheckpointError: the checkpoint has no such state.
        """
        saved = checkpoint.part(_OPTIMIZER)
        saved |= {_EARLIER[1] + name: value for name, value in checkpoint.part(_EARLIER[0]).items()}
        parameters = dict(self.method.named_parameters())
        order = {name: index for index, name in enumerate(parameter_order(self.optimizer, self.method))}
        content = self.optimizer.state_dict()
        state: dict[int, dict[str, Tensor]] = {}
        content["state"] = state
        for key, value in saved.items():
            kind, _, name = key.partition(".")
            if name not in order:
                raise CheckpointError(f"{path}: {key!r} belongs to no weight of the network; it cannot be resumed")
            like = parameters[name]
            if value.dim() and value.shape != like.shape:
                raise CheckpointError(f"{path}: {key!r} has another size than its weight; it cannot be resumed")
            state.setdefault(order[name], {})[kind] = distribute_like(value, like) if value.dim() else value
        kinds = _STATE[self._optim.name]
        if state and any(one.keys() != kinds for one in state.values()):
            raise CheckpointError(
                f"{path}: what {self._optim.name} remembers ({', '.join(sorted(kinds))}) is not there for all weights; "
                "it cannot be resumed"
            )
        self.optimizer.load_state_dict(content)
        if self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(checkpoint.said("scaler", path))


def _parts(method: Method) -> Iterator[nn.Module]:
    """The parts of a method's networks, which methods may call one by one; and modules of its own."""
    for child in method.children():
        networks = [module for module in child.modules() if isinstance(module, Segmenter)]
        if networks:
            yield from chain.from_iterable(network.children() for network in networks)
        elif any(True for _ in child.parameters()):
            yield child


def _in_precision(method: Method, accelerator: Accelerator) -> Any:
    """The method's step in the mixed precision of the run, as accelerate does for what it wraps itself."""

    def forward(*arguments: Any) -> Any:
        with accelerator.autocast():
            return method(*arguments)

    return forward


@contextmanager
def _memory_suffices(progress: Progress) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if not out_of_memory(error):
            raise
        raise OutOfMemoryError(
            f"out of memory in step {progress.step + 1}: set model.activation_checkpointing=true (the same result more "
            "slowly), or take a smaller data.crop, data.batch_labeled or data.batch_unlabeled (with optim.accumulate "
            "the total stays the same), or a smaller model.encoder"
        ) from error
