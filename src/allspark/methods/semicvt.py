"""SemiCVT (Huang et al., *Semi-Supervised Convolutional Vision Transformer*, CVPR 2023), as far as it is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from allspark.batch import Progress, StepOutput, Term, TrainBatch, Views
from allspark.config import methods as config
from allspark.data.boxes import HalfBoxes
from allspark.kernels.logits import Logits
from allspark.methods.base import class_pixels
from allspark.methods.class_graphs import ClassGraph, ClassGraphs
from allspark.methods.consistency import MeanTeacher
from allspark.methods.losses import masked_cross_entropy, reliable_cross_entropy
from allspark.methods.mixing import on_grid, pasted_next, valid_pixels, view_boxes
from allspark.models.segmenter import Segmenter
from allspark.models.semicvt import TwoBranchSegmenter

_BRANCHES = ("encoder", "transformer")


class SemiCVT(MeanTeacher):
    """An encoder and a thin transformer branch exchange and have a head each; both learn from one label.

    The label of a pixel is the best class of the mean of the teacher's two branches. Which pixels count is each
    branch's own, by the entropy of its teacher on the mixed image. The classes of a branch, as a graph, have to be as
    those of the teacher's other branch are. What is deployed is the mean of the teacher's branches.
    """

    settings = config.SemiCVT

    def __init__(self, settings: config.SemiCVT, build: Callable[[], Segmenter]) -> None:
        super().__init__(settings, build)
        self.teacher.buffers_are = "own"
        strong = int(settings.unlabeled_views == "strong")
        boxes = HalfBoxes(settings.cutmix)
        self.views = Views(labeled=settings.labeled_views, strong=strong, colours=settings.colours, boxes=boxes)
        self.graphs = ClassGraphs(self.segmenter.hidden_channels)
        self.graph_weight = settings.graph_weight
        self._unlabeled = reliable_cross_entropy if settings.filter == "percentile" else masked_cross_entropy

    @classmethod
    def make_network(cls, settings: config.SemiCVT, plain: Segmenter) -> Segmenter:
        """With the transformer branch and its head."""
        return TwoBranchSegmenter(plain, settings.branch_channels, settings.drop_path)

    def forward(self, batch: TrainBatch, progress: Progress) -> StepOutput:
        """One step: of labelled images alone while the others have no weight, else of both."""
        if self.unlabeled_weight(progress) > 0:
            return self.learn(batch, progress)
        labeled = batch.labeled
        assert labeled is not None
        with self.teacher.training_pass() as teacher:
            _both(teacher, labeled.image)  # its statistics follow
        logits = [own for _, own in _both(self.segmenter, labeled.image)]
        pixels = class_pixels(self.segmenter.num_classes, labeled=labeled.mask)
        return StepOutput({"labeled": self._labeled(logits, labeled.mask)}, class_pixels=pixels)

    def learn(self, batch: TrainBatch, progress: Progress) -> StepOutput:
        """One step: label weak views, mix them, and have both kinds of images pass student and teacher together."""
        labeled, unlabeled = batch.labeled, batch.unlabeled
        assert labeled is not None
        assert unlabeled is not None
        (where,) = view_boxes(unlabeled)
        with torch.no_grad():
            scores = [logits for _, logits in _both(self.teacher.network, unlabeled.weak)]
        labels = pasted_next(mean_labels(*scores), where)
        valid = pasted_next(valid_pixels(unlabeled), where)
        view = unlabeled.weak if unlabeled.strong is None else unlabeled.strong[0]
        image, sizes = torch.cat([labeled.image, pasted_next(view, where)]), [len(labeled.image), len(view)]
        with self.teacher.training_pass() as teacher:
            taught = [_split(*branch, sizes)[1] for branch in _both(teacher, image)]
        said = [_split(*branch, sizes) for branch in _both(self.segmenter, image)]

        weight, sure = self.unlabeled_weight(progress), []
        terms = {"labeled": self._labeled([logits for (_, logits), _ in said], labeled.mask)}
        for name, (_, (_, logits)), (_, targets) in zip(_BRANCHES, said, taught, strict=True):
            _, keep = self.filter(targets, valid, progress)
            terms[name] = weight / 2 * self._unlabeled(logits, labels, keep, valid)
            sure.append(keep)
        own, wanted = ([self._graph(*one, valid) for one in two] for two in ((u for _, u in said), taught))
        apart = own[0].distance(wanted[1]) + own[1].distance(wanted[0])  # (u,)
        seen = valid.flatten(1).any(1)
        terms["graph"] = weight * self.graph_weight / 2 * Term(apart.where(seen, 0).sum(), seen.sum())
        return self.output(terms, labeled, labels, sure[0], valid)

    def _labeled(self, logits: Sequence[Logits], mask: Int[Tensor, "l H W"]) -> Term:
        """The mean of both branches."""
        one, other = (self.labeled_loss(own, mask) for own in logits)
        return self.labeled_weight * (one + other)

    def _graph(self, hidden: Tensor, logits: Logits, valid: Bool[Tensor, "u H W"]) -> ClassGraph:
        graph: ClassGraph = self.graphs(
            hidden, logits.coarse.softmax(1), on_grid(valid, logits.coarse.shape[2:], logits.padded)
        )
        return graph

    def counts(self, batch: TrainBatch) -> dict[str, Tensor]:
        """Labelled pixels count for both branches; padding is mixed as the images are."""
        known = {name: 2 * count for name, count in super().counts(batch).items() if name == "labeled"}
        if batch.unlabeled is not None:
            (where,) = view_boxes(batch.unlabeled)
            valid = pasted_next(valid_pixels(batch.unlabeled), where)
            known |= dict.fromkeys(_BRANCHES, valid.sum()) | {"graph": valid.flatten(1).any(1).sum()}
        return known


def mean_labels(one: Logits, other: Logits) -> Int[Tensor, "b H W"]:
    """The best class of every pixel by the mean of two networks' probabilities."""
    labels = torch.empty((len(one.coarse), *one.size), dtype=torch.int64, device=one.coarse.device)
    for (images, rows, band), (_, _, second) in zip(one.bands(), other.bands(), strict=True):
        labels[images, rows] = (band.softmax(1) + second.softmax(1)).max(1).indices
    return labels


def _both(network: Segmenter, image: Float[Tensor, "b 3 H W"]) -> list[tuple[Tensor, Logits]]:
    """What both branches say, and what their classifiers read."""
    assert isinstance(network, TwoBranchSegmenter)
    return network.branches(network.encode(image))


def _split(hidden: Tensor, logits: Logits, sizes: Sequence[int]) -> list[tuple[Tensor, Logits]]:
    """What a branch says of labelled images, and of unlabelled ones."""
    return list(zip(hidden.split(list(sizes)), logits.split(sizes), strict=True))
