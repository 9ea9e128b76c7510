"""The one place where an image becomes a mask: validation, ``eval``, ``predict`` and ``demo`` all come here."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from allspark.config.schema import EvalConfig
from allspark.data.image import normalize
from allspark.errors import ConfigError, DataError
from allspark.inference.tta import augmented
from allspark.inference.window import plan, windowed
from allspark.kernels.logits import Logits
from allspark.models.ensemble import Network
from allspark.runtime.modes import evaluating

_OUT_OF_MEMORY = ("DefaultCPUAllocator", "CUDA error: out of memory", "_ALLOC_FAILED")
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Prediction:
    """What the model says about one image.

    Attributes:
        mask: (H, W) uint8, the class of each pixel, at the image's own size.
        confidence: (H, W) float32, probability of that class.
    """

    mask: NDArray[np.uint8]
    confidence: NDArray[np.float32]


class Predictor:
    """Turns images into masks.

    The segmenter is not copied: a predictor made before training follows the weights. Each call puts it into eval mode
    and restores the mode of every submodule afterwards. The result for an image does not depend on its batch.

    Attributes:
        normalisation: what the network takes of RGB.

    Args:
        segmenter: the network, or several as one.
        config: whole image or sliding window, sizes, precision, memory (which the segmenter must have then). Mixed
            precision (bf16, fp16) leaves the weights as they are; fp64 computes with float64 copies of them.
        device: where to compute, the segmenter is moved there; None: where it is.
    """

    def __init__(self, segmenter: Network, config: EvalConfig, device: torch.device | str | None = None) -> None:
        self.segmenter = segmenter
        self.config = config
        self.normalisation = segmenter.normalisation
        self._copy: Network | None = None  # in double precision, while it is used
        first = next(segmenter.parameters(), None)
        if device is None:
            device = "cpu" if first is None else first.device
        self.device = torch.device(device)
        segmenter.to(self.device)

    def images_at_once(self, height: int, width: int) -> int:
        """Return how many images of this size to give to ``labels`` at once, so that ``config.batch`` holds."""
        if self.config.mode == "whole":
            return self.config.batch
        return max(1, self.config.batch // len(plan(height, width, self.config.window, self.config.stride)))

    def probabilities(self, image: Tensor) -> Tensor:
        """Return class probabilities.

        Args:
            image: (b, 3, H, W) float, normalised, on any device.

        Returns:
            (b, k, H, W) float32 (float64 with precision fp64) on the predictor's device; an inference tensor.

        Raises:
            ConfigError: the image does not fit into memory.
        """
        with self._running(image):
            return self._probabilities(image)

    def labels(self, image: Tensor) -> Tensor:
        """Return the most probable class of each pixel; in whole mode without computing probabilities.

        Args:
            image: (b, 3, H, W) float, normalised, on any device.

        Returns:
            (b, H, W) int64 on the predictor's device.

        Raises:
            ConfigError: the image does not fit into memory.
        """
        with self._running(image):
            if self.config.mode == "window":
                return self._windowed(image).max(1).indices
            return self._forward(image).labels()

    def predict(self, image: Image.Image | NDArray[np.uint8], *, tta: bool = False) -> Prediction:
        """Predict one image.

        Args:
            image: RGB, as ``allspark.data.image.read_image`` returns it, or (H, W, 3) uint8. A picture whose EXIF data
                say that it lies on its side is set upright, and so is the mask.
            tta: the mean over several sizes and mirrored images (allspark.inference.tta), about 16 times the work.

        Raises:
            DataError: the image is not 8-bit RGB.
            ConfigError: the image does not fit into memory.
        """
        tensor = torch.from_numpy(normalize(_pixels(image), self.normalisation))[None]
        with self._running(tensor):
            if tta:
                best, mask = augmented(self._probabilities, tensor).max(1)
            elif self.config.mode == "window":
                best, mask = self._windowed(tensor).max(1)
            else:
                best, mask = self._forward(tensor).best()
            # rounding may lift a probability above 1 by some 1e-7
            confidence = best[0].float().clamp_(max=1)
            return Prediction(mask[0].to(torch.uint8).cpu().numpy(), confidence.cpu().numpy())

    def _probabilities(self, image: Tensor) -> Tensor:
        return self._windowed(image) if self.config.mode == "window" else self._forward(image).probabilities()

    def _windowed(self, image: Tensor) -> Tensor:
        """Averaged probabilities (b, k, H, W) of overlapping windows."""
        window, stride, batch = self.config.window, self.config.stride, self.config.batch
        return windowed(self._forward, image.to(self.device, non_blocking=True), window, stride, batch)

    def _forward(self, image: Tensor) -> Logits:
        network = self._copy or self.segmenter
        own = next((x.dtype for x in network.parameters() if x.is_floating_point()), image.dtype)
        image = image.to(self.device, own, non_blocking=True)
        return network.logits(image, from_memory=True) if self.config.memory else network.logits(image)

    @contextmanager
    def _running(self, image: Tensor) -> Iterator[None]:
        dtype = _AUTOCAST.get(self.config.precision)
        autocast = torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)
        try:
            with evaluating(self.segmenter), torch.inference_mode(), autocast:
                if self.config.precision == "fp64" and any(_is_narrow(x) for x in self.segmenter.parameters()):
                    # the network itself, perhaps in training, stays as it is
                    self._copy = copy.deepcopy(self.segmenter).double()
                yield
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            fix = "a smaller eval.window or eval.batch" if self.config.mode == "window" else "eval.mode=window"
            height, width = image.shape[-2:]
            raise ConfigError(
                f"{len(image)} x {height} x {width} pixels do not fit into the memory of {self.device}: set {fix}"
            ) from error
        finally:
            self._copy = None


def _is_narrow(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.dtype != torch.float64


def out_of_memory(error: RuntimeError) -> bool:
    """Tell whether memory ran out; torch has a class for its own allocator on GPUs alone."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _OUT_OF_MEMORY)


def _pixels(image: Image.Image | NDArray[np.uint8]) -> NDArray[np.uint8]:
    if isinstance(image, Image.Image) and image.mode != "RGB":
        raise DataError(f"an image of mode {image.mode}, expected RGB: open files with allspark.data.image.read_image")
    pixels: NDArray[np.uint8] = np.asarray(ImageOps.exif_transpose(image) if isinstance(image, Image.Image) else image)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise DataError(
            f"an array of shape {pixels.shape} and type {pixels.dtype}, expected an image (H, W, 3) of uint8: "
            "convert it, for example with Image.fromarray(array).convert('RGB')"
        )
    return pixels
