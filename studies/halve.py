"""Write a data set at half its resolution: what the studies train on that a CPU has to carry.

    python studies/halve.py DATA HALF

Images become the mean of four pixels, masks (in masks/ and SegmentationClass/) the nearest one; all else is copied.
"""

import shutil
import sys
from pathlib import Path

from PIL import Image

MASKS = {"masks", "SegmentationClass"}
IMAGES = {"images", "JPEGImages"}


def halve(source: Path, target: Path) -> None:
    """Write ``source`` into ``target``, a folder that does not exist yet."""
    shutil.copytree(source, target, ignore=lambda folder, names: (MASKS | IMAGES) & set(names))
    for kind in (MASKS | IMAGES) & {path.name for path in source.iterdir()}:
        (target / kind).mkdir()
        how = Image.Resampling.NEAREST if kind in MASKS else Image.Resampling.BOX
        for path in sorted((source / kind).iterdir()):
            with Image.open(path) as image:
                small = image.resize((image.width // 2, image.height // 2), how)
                small.save(target / kind / path.name, quality=95)  # of JPEG; PNG loses nothing


if __name__ == "__main__":
    halve(Path(sys.argv[1]), Path(sys.argv[2]))
