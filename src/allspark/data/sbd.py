"""Masks of the Semantic Boundaries Dataset (Hariharan et al., ICCV 2011), which augment PASCAL VOC: .mat files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from allspark.errors import DataError, UserError

_FOLDERS = ("benchmark_RELEASE/dataset", "SBD", "sbd", "SBD/benchmark_RELEASE/dataset", "sbd/benchmark_RELEASE/dataset")


def find_sbd(*roots: Path) -> dict[str, Path]:
    """Map ids to .mat masks, of the first folder that holds any: benchmark_RELEASE/dataset/cls or SBD/cls in a root."""
    for root in roots:
        for folder in _FOLDERS:
            if found := {path.stem: path for path in sorted((root / folder / "cls").glob("*.mat"))}:
                return found
    return {}


def read_sbd(path: Path) -> NDArray[np.uint8]:
    """Class ids (H, W) of a mask: 0 background, 1 .. 20 as in VOC.

    Raises:
        UserError: scipy is not installed.
        DataError: the file is missing, damaged, or no mask of SBD.
    """
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError
    except ImportError as error:
        raise UserError(f"{path}: masks of SBD need scipy: pip install 'allspark[sbd]'") from error
    try:
        with path.open("rb") as file:
            mask = loadmat(file)["GTcls"]["Segmentation"][0, 0]
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (MatReadError, ValueError, KeyError, IndexError, TypeError, NotImplementedError, OSError) as error:
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataError(f"{path}: not a mask of SBD, or damaged ({reason})") from error
    return np.ascontiguousarray(mask, np.uint8)
