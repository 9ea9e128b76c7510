"""What a training method is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from allspark.batch import IGNORE, Progress, StepOutput, TrainBatch, UnlabeledBatch, Views
from allspark.config.methods import MethodConfig
from allspark.kernels.logits import Logits
from allspark.methods.losses import labeled_loss
from allspark.methods.mixing import valid_pixels
from allspark.methods.teacher import Teacher
from allspark.models.allspark import Guide, SemanticMemory
from allspark.models.ensemble import Network
from allspark.models.segmenter import Segmenter
from allspark.runtime.modes import evaluating


class Method(nn.Module, ABC):
    """One way to learn from labelled and unlabelled images. Its forward pass is one training step.

    A method owns the views that it learns from, its settings, its networks and its state. The training loop knows none
    by name: it reads the ``views``, calls ``begin`` once, then ``forward`` and ``after_step``, and minimises the loss;
    ``after_validation`` hears of scores. A step is one weight update; with ``phases`` it is several, one after the
    other over the same batch, and ``forward`` takes the number of the phase as a third argument. State that outlives a
    step is a parameter or a named buffer, so that it is in every checkpoint.

    Args:
        settings: of the class that ``settings`` names.
        build: returns a new network as configured; each call draws its weights anew. Weights to begin with or to resume
            from come later: what is derived from them belongs into ``begin``.

    Attributes:
        settings: the class of its settings, whose ``name`` is the method's name.
        phases: weight updates that a step may consist of. With more than one, what has no gradient in a phase stays as
            it is, and the names of terms and metrics differ from phase to phase.
        views: what the loader has to give.
        segmenter: the network that trains.
        labeled_loss: of logits and masks (b, H, W), as configured.
        advice: what helps against collapsing pseudo-labels with this method, beside what helps always.
    """

    settings: ClassVar[type[MethodConfig]]
    phases: ClassVar[int] = 1
    views: Views = Views()

    def __init__(self, settings: Any, build: Callable[[], Segmenter]) -> None:
        super().__init__()
        self.segmenter = build()
        self.labeled_loss = labeled_loss(settings)
        self._mining = settings.labeled_loss == "ohem"  # its count is known after the pass only

    def name_classes(self, names: Sequence[str]) -> None:
        """Hear what the classes are called, by id, before ``begin``. Not called on resume.

        Raises:
            ConfigError: a setting names a class that there is not.
        """

    @classmethod
    def make_network(cls, settings: Any, plain: Segmenter) -> Segmenter:
        """What ``build`` returns and what a checkpoint's weights belong to, of the plain network that is configured."""
        return plain

    def begin(self) -> None:
        """Start from the weights as they are now, at step 0: a teacher takes the student's. Not called on resume."""

    @abstractmethod
    def forward(self, batch: TrainBatch, progress: Progress) -> StepOutput:
        """Return the terms of the loss of one micro-batch."""

    def phases_of(self, progress: Progress) -> Sequence[int]:
        """Which phases a step has, in their order."""
        return range(self.phases)

    def after_phase(self, phase: int, progress: Progress) -> None:
        """Follow the weight update of a phase; that of the last one comes before ``after_step``."""

    def after_step(self, progress: Progress) -> None:
        """Follow a weight update that took place, for example with a teacher's moving average."""

    def after_validation(self, progress: Progress, best: bool) -> None:
        """Follow a validation, before the checkpoint is written; all processes call it.

        Args:
            progress: where training stands: ``step`` updates are done.
            best: the deployed network's score is the best so far. Without validation images always true.
        """

    def networks(self) -> tuple[Segmenter, ...]:
        """The networks that train: learning rates, batch norm over processes, compilation and sharding see them."""
        return (self.segmenter,)

    def unscheduled(self) -> Iterable[nn.Parameter]:
        """Weights whose learning rate stays as it is configured, whatever the schedule: none but a method says so."""
        return ()

    @property
    def deployed(self) -> Segmenter:
        """The network that is evaluated, kept as best, used for predictions and exported.

        A method says once and for all which it is: to choose the better one by its score would be to choose by the
        validation images.
        """
        return self.networks()[0]

    def candidates(self) -> dict[str, Network]:
        """What could be deployed, by name: scored side by side on request (eval.compare, ``allspark eval --network``).

        Here the student and the teacher, where there is one; else the network. ``deployed`` is one of them.
        """
        for part in self.children():
            if isinstance(part, Teacher) and self.deployed in (self.networks()[0], part.network):
                return {"student": self.networks()[0], "teacher": part.network}
        return {"network": self.deployed}

    def counts(self, batch: TrainBatch) -> dict[str, Tensor]:
        """The counts of terms that follow from the batch alone, by the name of the term.

        With them the loss of an update of several micro-batches is that of one batch of all their images. A term that
        is not here (hard pixels, confident pixels only) is a mean over each micro-batch, and these are averaged.
        """
        known = {}
        if batch.labeled is not None and not self._mining:
            known["labeled"] = (batch.labeled.mask != IGNORE).sum()
        if batch.unlabeled is not None:
            known["unlabeled"] = valid_pixels(batch.unlabeled).sum()
        return known

    def guide(self, scores: Logits, num_labeled: int, progress: Progress) -> Guide | None:
        """What the bottleneck needs in a pass over labelled and unlabelled images; None without a bottleneck.

        Args:
            scores: of the unlabelled images of the pass.
            num_labeled: labelled images, which come first in it.
            progress: where training stands.
        """
        bottleneck = self.segmenter.bottleneck
        if bottleneck is None:
            return None
        return Guide(
            num_labeled,
            scores.full() if bottleneck.grouping == "paper" else scores.at(self.segmenter.encoder.grid(scores.size)),
            read_memory=progress.step >= bottleneck.warmup_epochs * progress.steps_per_epoch,
        )

    def metrics(self) -> dict[str, Tensor]:
        """How full the network's memory is, where it has one: scalars for the log of each step."""
        return {} if self.memory is None else {"memory_fill": self.memory.fill.mean()}

    def health(self) -> dict[str, Tensor]:
        """What to log beside each validation, (k,) each; nan where there is nothing to tell of a class.

        Here how full the memory is and how old what it holds [micro-batches], where the network has one.
        """
        return {} if self.memory is None else {"memory_fill": self.memory.fill, "memory_age": self.memory.age}

    @property
    def threshold(self) -> float | None:
        """Confidence from which on a pseudo-label counts, 0 to 1; None: there are none, or they follow another rule."""
        return 0.0 if self.views.unlabeled else None

    @property
    def advice(self) -> str:
        """What helps against collapsing pseudo-labels, for a warning; empty: nothing of the method's own."""
        return "" if self.memory is None else "a longer model.bottleneck_warmup_epochs"

    @property
    def memory(self) -> SemanticMemory | None:
        """The semantic memory of the network's bottleneck, if it has one."""
        return None if self.segmenter.bottleneck is None else self.segmenter.bottleneck.memory


def deployed_name(method: Method) -> str:
    """Which of a method's candidates is deployed."""
    return next(name for name, network in method.candidates().items() if network is method.deployed)


def eval_logits(segmenter: Segmenter, image: Float[Tensor, "u 3 H W"]) -> Logits:
    """Logits of an eval-mode pass without gradient, after which every module is in the mode that it was in.

    (Not ``inference_mode``: its tensors could not be saved for backward as targets.)
    """
    with torch.no_grad(), evaluating(segmenter):
        logits = segmenter.logits(image)
    torch.clear_autocast_cache()  # torch before 2.11 would train on the weights in half precision, without gradient
    return logits


def hard_labels(logits: Logits, batch: UnlabeledBatch) -> Int[Tensor, "u H W"]:
    """Pseudo-labels (u, H, W): the best class of every pixel, no threshold; padding is ignored."""
    labels = logits.labels()
    return labels if batch.valid is None else labels.masked_fill(~batch.valid, IGNORE)


@torch.no_grad()
def class_pixels(num_classes: int, **targets: Int[Tensor, "_ H W"]) -> dict[str, Tensor]:
    """Pixels of each class in some targets, (k,) each, without a transfer to the host; ignored ones are not counted.

    Args:
        num_classes: k.
        targets: for example ``labeled`` and ``pseudo``, class ids and IGNORE.
    """
    ends = (num_classes, -0.5, num_classes - 0.5)
    return {name: torch.histc(target.double(), *ends).long() for name, target in targets.items()}
