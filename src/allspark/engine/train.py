"""The only training loop. It knows no method by name."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console

from allspark.batch import Progress, TrainBatch
from allspark.config.plugins import plugin_options
from allspark.config.resolve import images_per_update
from allspark.config.schema import Config, TrainConfig
from allspark.data.depth import with_white
from allspark.data.stream import TrainStream, steps_per_epoch, train_batches
from allspark.engine.bar import Bar
from allspark.engine.checkpoint import load_checkpoint
from allspark.engine.fit import require_fit, require_room
from allspark.engine.learner import Learner, OutOfMemoryError
from allspark.engine.prepare import build_method_of, open_checked, what_begins
from allspark.engine.random_state import process_seed, random_states, restore_random_state
from allspark.engine.recorder import Recorder
from allspark.engine.resolve import resolve, resolve_again
from allspark.engine.result import peak_memory, read_result, result_of
from allspark.engine.run import description, model_tensors
from allspark.engine.run_folder import RunFolder, fingerprints, require_same_images
from allspark.engine.sinks import FileLog, Sink, Sinks, TensorBoard
from allspark.engine.validation import Validator
from allspark.errors import DataError, NotFiniteError, UserError
from allspark.methods import METHODS
from allspark.methods.base import deployed_name
from allspark.runtime.agreement import (
    CONTINUE,
    FAILED,
    SKIPPED,
    agree_on,
    fail_together,
    quiet_when_peers_are_gone,
    raise_in_all,
)
from allspark.runtime.collectives import all_gather_object
from allspark.runtime.devices import require_compiler, start_processes
from allspark.runtime.sharding import full_tensor, unsharded
from allspark.runtime.signals import Interrupted, StopRequest


@dataclass(frozen=True)
class TrainResult:
    """How a run ended. Scores are mIoU from 0 to 1, None where there was no validation."""

    out: Path
    steps: int
    best: float | None
    last: float | None


def train(config: Config, out: Path, *, resume: bool = False, sinks: Sequence[Sink] | None = None) -> TrainResult:
    """Train a method and keep config, log and checkpoints in ``out``.

    Args:
        config: complete configuration; ``data.root`` must be set.
        out: folder of the run, made if need be.
        resume: go on from ``out``'s last checkpoint, exactly where it stopped.
        sinks: where to report beside the log; None: a :class:`allspark.engine.bar.Bar` on standard error, or in the
            notebook.

    Raises:
        UserError: the input is wrong (one line), or a loss is not finite.
        Interrupted: the run was asked to stop, and has written a checkpoint.
    """
    accelerator = start_processes(config.train, config.optim.accumulate)
    others = [Bar(Console(stderr=True, soft_wrap=True))] if sinks is None else sinks
    sink = Sinks([FileLog(out), TensorBoard(out), *others]) if accelerator.is_main_process else Sink()
    with quiet_when_peers_are_gone():
        return _train(config, RunFolder(out), resume, accelerator, sink)


def _train(config: Config, folder: RunFolder, resume: bool, accelerator: Accelerator, sink: Sink) -> TrainResult:
    world, device = accelerator.num_processes, accelerator.device
    with fail_together():
        if config.train.compile:
            require_compiler(device)
        checkpoint = folder.find_checkpoint(resume)
        if resume and checkpoint is None:
            sink.note(f"note: nothing to go on with in {folder.path}, training begins at step 0")
        if checkpoint is None:
            config, began = resolve(config, world, sink.note), world
            written = config
        else:
            config, written, began = resolve_again(config, checkpoint, folder.last, world, sink.note)
        source = open_checked(config.data, METHODS[config.method.name].views, sink.note)
        if checkpoint is None:  # a run that goes on has it in its configuration, and has shown that it fits
            source = with_white(source, config.data.max_pixels, lambda line: sink.note(f"note: {line}"))
            data = config.data.model_copy(update={"white": source.white})
            config = written = config.model_copy(update={"data": data})
            require_fit(config, source.num_classes, device)
        method, state = build_method_of(config, source, checkpoint, folder.last, sink.note)
        require_room(method, config.train, device)
        stream = TrainStream(
            source,
            config.data,
            config.views,
            method.views,
            seed=config.seed,
            pixels=method.segmenter.normalisation,
            rank=accelerator.process_index,
            world=world,
        )
    epoch = config.train.steps_per_epoch or steps_per_epoch(source, config.data, config.optim.accumulate, world)
    total = max(1, math.ceil(config.train.epochs * epoch))
    learner = Learner(method, config.optim, config.train, accelerator, total)
    images = images_per_update(config.data, 1, 1, method.views)
    recorder = Recorder(state, sink, images, epoch)
    validator = Validator(source, config.data, config.eval, config.train.health_images, sink.note)
    with fail_together():
        if checkpoint is not None:
            require_same_images(checkpoint, source, folder.last)
            learner.load_optimizer(checkpoint, folder.last)
            validator.load(checkpoint.tensors)
            restore_random_state(checkpoint.tensors, device, config.seed + state.step, folder.last)
        elif not accelerator.is_main_process:  # dropout must not be the same in all processes
            torch.manual_seed(process_seed(config.seed, accelerator.process_index))
    result = TrainResult(folder.path, state.step, state.best, state.last)
    if state.step >= total and read_result(folder.path) is not None:  # else it was killed before it wrote that
        sink.note(f"{folder.path}: finished already, {state.step} of {total} steps")
        return result
    about = description(written, source) | {"images": fingerprints(source), "processes": began}
    with ExitStack() as opened:
        with fail_together():
            if accelerator.is_main_process:
                opened.enter_context(folder.claimed(written))
                sink.note(what_begins(config, source, folder.path, accelerator, f"{total} steps of {epoch} an epoch"))
                if not source.val:
                    sink.note("no validation images: the last checkpoint is the result")
                elif len(method.candidates()) > 1:
                    sink.note(f"the network that is scored and kept as best: {deployed_name(method)}")
                opened.callback(sink.end)
                sink.begin(state.step, total)
        training = _Training(learner, recorder, folder, validator, config.train, accelerator, about)
        accumulate = config.optim.accumulate
        parts = range(state.step * accumulate, total * accumulate)
        on_gpu = device.type == "cuda"
        with closing(train_batches(stream, parts, workers=config.data.workers, pin_memory=on_gpu)) as batches:
            training.run(batches, accumulate)
        with fail_together():
            if accelerator.is_main_process:
                folder.write_result(result_of(config, source, state, device, world, method))
    return TrainResult(folder.path, state.step, state.best, state.last)


@dataclass(frozen=True)
class _Training:
    """The loop: when a run learns, logs, validates, saves and stops."""

    learner: Learner
    recorder: Recorder
    folder: RunFolder
    validator: Validator
    every: TrainConfig
    accelerator: Accelerator
    about: dict[str, Any]  # what each checkpoint says of the run

    def run(self, batches: Iterator[TrainBatch], accumulate: int) -> None:
        """From where the run stands to its end, or to a request to stop."""
        said = "stopping: this step is finished and saved first, a second Ctrl-C stops at once (go on with --resume)"
        with StopRequest(said if self.accelerator.is_main_process else "") as stop:
            status = self._loop(batches, accumulate, stop)
        if status == CONTINUE:
            return
        self._save()
        state, processes = self.recorder.state, self.accelerator.num_processes
        again = f"allspark train --out {shlex.quote(str(self.folder.path))} --resume"
        again += f" --processes {processes}" if processes > 1 else ""
        again += "".join(f" {shlex.quote(word)}" for word in plugin_options())
        message = f"stopped after step {state.step} of {self.learner.total_steps}; go on with: {again}"
        raise Interrupted(message, status, quiet=not self.accelerator.is_main_process)

    def _loop(self, batches: Iterator[TrainBatch], accumulate: int, stop: StopRequest) -> int:
        """Train until all steps are done or a stop is asked for; returns CONTINUE, or the exit status of the stop."""
        learner, recorder, every = self.learner, self.recorder, self.every
        state, total, epoch_steps = recorder.state, learner.total_steps, recorder.steps_per_epoch
        while state.step < total:
            with recorder.timed():
                parts, verdict = self._next_parts(batches, accumulate, stop)
                if verdict != CONTINUE:
                    return verdict
                self._step(parts, Progress(state.step, epoch_steps, total))
                at_end = state.step == total
                epoch, rest = divmod(state.step, epoch_steps)
                epoch_done = at_end or rest == 0
                row_due = at_end or state.step % every.log_every == 0
                if row_due or epoch_done:
                    self._flush()
            try:
                if row_due:
                    recorder.write_means(learner.lr)
                if at_end or (epoch_done and epoch % every.eval_every == 0):
                    self._validate()
            except (UserError, OSError):
                self._save()  # what is wrong with the log or a validation image costs no training
                raise
            keep = every.keep_every is not None and state.step % every.keep_every == 0
            if epoch_done or keep or state.step % every.checkpoint_every == 0:
                self._save(keep=keep)
            recorder.sink.advance(state.step)
        return CONTINUE

    def _next_parts(
        self, batches: Iterator[TrainBatch], accumulate: int, stop: StopRequest
    ) -> tuple[list[TrainBatch], int]:
        """The micro-batches of the next step; or the exit status of a stop, which any of the processes may ask for.

        All parts are read, in all processes, before the step touches any state, so that the state between two steps can
        still be saved: nothing is lost by a bad image.
        """
        parts: list[TrainBatch] = []
        error = None
        if stop.exit_code is None:
            try:
                parts = [next(batches) for _ in range(accumulate)]
            except DataError as caught:
                error = caught
        # A termination signal usually reaches all processes of a job, and the readers end at once: that is no error.
        skipped = [line for batch in parts for line in batch.skipped]
        verdict = agree_on(stop.exit_code or (FAILED if error else SKIPPED if skipped else CONTINUE))
        if verdict == SKIPPED:
            for line in chain.from_iterable(all_gather_object(skipped)):
                self.recorder.sink.note(f"skipped: {line}")
            verdict = CONTINUE
        if verdict == FAILED:
            self._save()
            raise_in_all(error)
        return parts, verdict

    def _step(self, parts: Sequence[TrainBatch], progress: Progress) -> None:
        try:
            with self._advised():
                self.recorder.done(self.learner.step(parts, progress, self.recorder.sink.note))
        except OutOfMemoryError as error:
            good = f"; {self.folder.last} is good" if self.folder.last.is_file() else ""
            raise UserError(f"{error}{good}") from error

    def _flush(self) -> None:
        with self._advised():
            self.recorder.flush()

    @contextmanager
    def _advised(self) -> Iterator[None]:
        """Add to what is not finite what helps, for the weights as they were before."""
        try:
            yield
        except NotFiniteError as error:
            step = self.recorder.state.step if error.step is None else error.step
            raise UserError(f"{error}; {self._way_on(step)}") from error

    def _way_on(self, step: int) -> str:
        anew = "begin a new run with a lower optim.lr or with --set optim.clip_norm=1"
        if self.every.on_nan == "skip" or not self.folder.last.is_file():
            return anew
        last = self.folder.last
        saved = load_checkpoint(last).meta["state"]["step"]
        on = "--resume --set train.on_nan=skip, which leaves such steps out"
        if saved + 1 < step:
            return f"the checkpoint {last} of step {saved} is good: go on with {on}; if many have to be, {anew}"
        return f"{last} is of the step before, whose weights may be the cause: {anew}; or try {on}"

    def _validate(self) -> None:
        """Score the network, keep it if it is the best so far, and see whether training is well."""
        method, state = self.learner.method, self.recorder.state
        row = self.recorder.head()
        predictor = self.validator.predictor(method, self.accelerator.device)
        others = self.validator.others(method, self.accelerator.device)
        with unsharded(method if others else method.deployed):
            row |= self.validator.score(predictor, state)
            row |= self.validator.compare(others, deployed_name(method), row)
            with fail_together():
                if self.accelerator.is_main_process:
                    row |= self.validator.health(predictor, method, state, state.step / self.learner.total_steps)
        progress = Progress(state.step, self.recorder.steps_per_epoch, self.learner.total_steps)
        method.after_validation(progress, row.get("best", True))
        content = {}
        if row.get("best"):
            content = {name: full_tensor(tensor) for name, tensor in model_tensors(method.deployed).items()}
        with self._advised(), fail_together():
            if self.accelerator.is_main_process:
                if content:
                    self.folder.save("best", content, self._meta())
                if "warning" in row:
                    self.recorder.sink.note(f"warning: {row['warning']}")
        self.recorder.write(row)

    def _save(self, *, keep: bool = False) -> None:
        """Write the last checkpoint; all processes together."""
        self._flush()
        state, device = self.recorder.state, self.accelerator.device
        state.peak_memory = max(state.peak_memory, peak_memory(device))
        content = self.learner.tensors() | self.validator.tensors() | random_states(device)
        with self._advised(), fail_together():
            if self.accelerator.is_main_process:
                self.folder.save("last", content, self._meta(), keep=state.step if keep else None)

    def _meta(self) -> dict[str, Any]:
        return self.about | self.learner.meta() | self.recorder.meta()
