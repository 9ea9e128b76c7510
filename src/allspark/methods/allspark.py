"""AllSpark (Wang, Zhang, Li, Li, CVPR 2024): labelled features are reborn from unlabelled ones."""

from __future__ import annotations

import torch
from torch import Tensor

from allspark.batch import Guide, Progress, StepOutput, TrainBatch
from allspark.config.schema import Config
from allspark.methods.base import Method, class_pixels, eval_logits, hard_labels
from allspark.methods.losses import cross_entropy
from allspark.models.allspark import SemanticMemory


class AllSpark(Method):
    """Pseudo-labels as usual; the labelled features pass a bottleneck that rebuilds them from unlabelled ones."""

    def __init__(self, config: Config, num_classes: int) -> None:
        super().__init__(config, num_classes)
        self.warmup_epochs = config.method.warmup_epochs
        self.grouping = config.method.grouping

    def forward(self, batch: TrainBatch, progress: Progress) -> StepOutput:
        """One step: scores of the unlabelled crops guide the bottleneck and supervise them; see section 3.1."""
        labeled, unlabeled = batch.labeled, batch.unlabeled
        assert unlabeled is not None
        scores = eval_logits(self.segmenter, unlabeled.image)
        pseudo_labels = hard_labels(scores, unlabeled)  # (u, H, W)

        grid = self.segmenter.encoder.grid((unlabeled.image.shape[2], unlabeled.image.shape[3]))
        guide = Guide(
            num_labeled=len(labeled.image),
            class_scores=scores.full() if self.grouping == "paper" else scores.at(grid),
            read_memory=progress.step >= self.warmup_epochs * progress.steps_per_epoch,
        )
        logits = self.segmenter.logits(torch.cat([labeled.image, unlabeled.image]), guide)  # of l + u images
        logits_l, logits_u = logits.split(guide.num_labeled)

        loss_l = self.labeled_loss(logits_l, labeled.mask)
        loss_u = cross_entropy(logits_u, pseudo_labels)
        loss = (loss_l + loss_u) / 2
        metrics = {"loss_labeled": loss_l.detach(), "loss_unlabeled": loss_u.detach()}
        if self.memory is not None:
            metrics["memory_fill"] = self.memory.fill.mean()
        targets = {"labeled": labeled.mask, "pseudo": pseudo_labels}
        return StepOutput(
            loss, metrics, {name: class_pixels(t, self.segmenter.num_classes) for name, t in targets.items()}
        )

    def health(self) -> dict[str, Tensor]:
        """How full the memory is and how old what it holds [micro-batches], of each class."""
        return {} if self.memory is None else {"memory_fill": self.memory.fill, "memory_age": self.memory.age}

    @property
    def memory(self) -> SemanticMemory | None:
        """The semantic memory of the network's bottleneck."""
        assert self.segmenter.bottleneck is not None
        return self.segmenter.bottleneck.memory
