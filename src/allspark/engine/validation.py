"""What happens at the end of an epoch: score the network, and see whether training is well."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from allspark.config.schema import DataConfig, EvalConfig
from allspark.data.source import Source
from allspark.engine import health
from allspark.engine.recorder import RunState
from allspark.errors import DataError
from allspark.inference.evaluate import evaluate
from allspark.inference.metrics import Scores
from allspark.inference.predictor import Predictor
from allspark.methods.base import Method

_ENOUGH = 100  # weight updates before which a warning means nothing
_WATCHED = "health.watched"


class Validator:
    """Scores the deployed network, and watches what it says of some training images from one validation to the next.

    Args:
        source: the data set.
        data: how images are read.
        how: how they are predicted.
        watch: training images of each kind to watch; 0: none.
        note: called with a line for each image that cannot be used.
    """

    def __init__(
        self, source: Source, data: DataConfig, how: EvalConfig, watch: int, note: Callable[[str], None]
    ) -> None:
        self._source = source
        self._data = data
        self._how = how
        self._watch = watch
        self._note = note
        self._watched: NDArray[np.uint8] | None = None  # pseudo-labels of the watched images

    def predictor(self, method: Method, device: torch.device) -> Predictor:
        """What predicts with the deployed network. Make it before ``unsharded``: to move a network divides it."""
        return Predictor(method.deployed, self._how_now(method), device)

    def others(self, method: Method, device: torch.device) -> dict[str, Predictor]:
        """What predicts with each of the networks that could be deployed as well, if they are compared."""
        if not self._how.compare:
            return {}
        others = ((name, x) for name, x in method.candidates().items() if x is not method.deployed)
        return {name: Predictor(network, self._how_now(method), device) for name, network in others}

    def _how_now(self, method: Method) -> EvalConfig:
        """As configured; without the memory while nothing was written to it, as in a supervised warm-up."""
        empty = method.memory is None or not method.memory.written.any()
        return self._how.model_copy(update={"memory": False}) if empty else self._how

    def compare(self, others: Mapping[str, Predictor], name: str, scores: Mapping[str, Any]) -> dict[str, float]:
        """Score other networks than the one that is deployed: ``miou_NAME`` of each, and of that one, for the log.

        Args:
            others: what predicts with them.
            name: of the deployed network.
            scores: its own, as ``score`` returned them.
        """
        if not others or "miou" not in scores:
            return {}
        found = {f"miou_{name}": scores["miou"]}
        return found | {f"miou_{other}": self._evaluate(predictor).miou for other, predictor in others.items()}

    def score(self, predictor: Predictor, state: RunState) -> dict[str, Any]:
        """Score the validation images, all processes together.

        Returns:
            The scores for the log, with ``best``: is the network the best so far? Nothing without such images.

        Raises:
            DataError: a validation image cannot be used.
        """
        if not self._source.val:
            return {}
        scores = self._evaluate(predictor)
        state.last = scores.miou
        best = state.best is None or scores.miou > state.best
        if best:
            state.best, state.best_step = scores.miou, state.step
        return {**scores.to_json(self._source.classes), "best": best}

    def _evaluate(self, predictor: Predictor) -> Scores:
        return evaluate(
            predictor,
            self._source.val,
            self._source,
            workers=self._data.workers,
            max_pixels=self._data.max_pixels,
            on_bad=self._skipped if self._data.on_bad_image == "skip" else None,
        )

    def _skipped(self, error: DataError) -> None:
        self._note(f"skipped: {error}")

    def health(self, predictor: Predictor, method: Method, state: RunState, progress: float) -> dict[str, Any]:
        """See whether training is well; one process does.

        Args:
            predictor: of the deployed network.
            method: as it is now.
            state: what it says of targets since the last validation is taken from it.
            progress: share of the training that is done, 0 to 1.

        Returns:
            ``health`` for the log, and a ``warning`` where there is one.
        """
        classes, found = self._source.classes, dict[str, Any]()
        if self._watch:
            seen = health.probe(
                predictor,
                self._source,
                self._watch,
                self._watched,
                max_pixels=self._data.max_pixels,
                threshold=method.threshold,
            )
            state.pseudo = {"kept": seen.kept, "precision": seen.kept_precision}
            self._watched = seen.labels
            found |= seen.to_json()
        for name, pixels in state.class_pixels.items():
            found[f"{name}_share"] = health.class_table(health.shares(pixels).tolist(), classes)
        for name, values in method.health().items():
            found[name] = health.class_table(values.tolist(), classes)
        scores = None if state.last is None or state.best is None else (state.last, state.best)
        line = None
        if self._watch and state.step >= _ENOUGH:
            seen_by = (state.class_pixels, classes, progress, scores, state.warned, method.advice)
            line, state.warned = health.warning(*seen_by)
        state.class_pixels = {}
        return {"health": found} | ({} if line is None else {"warning": line})

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds of it."""
        return {} if self._watched is None else {_WATCHED: torch.from_numpy(self._watched)}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take it back from a checkpoint's tensors."""
        self._watched = tensors[_WATCHED].numpy() if _WATCHED in tensors else None
