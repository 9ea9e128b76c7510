"""LoveDA (Wang et al., NeurIPS 2021): aerial images of three cities, urban and rural, in their own layout."""

from __future__ import annotations

from pathlib import Path

from allspark.batch import IGNORE
from allspark.config.schema import DataConfig
from allspark.data.sets.base import DataSet
from allspark.data.sets.lists import Layout, divide_images, find_files
from allspark.data.source import RGB, Source
from allspark.errors import DataError

# Mask value 0 is "no data"; the classes begin at 1.
_CLASSES: tuple[tuple[str, RGB], ...] = (
    ("background", (255, 255, 255)),
    ("building", (255, 0, 0)),
    ("road", (255, 255, 0)),
    ("water", (0, 0, 255)),
    ("barren", (159, 129, 183)),
    ("forest", (0, 255, 0)),
    ("agricultural", (255, 195, 128)),
)
_CODE = (IGNORE, *range(len(_CLASSES)))


def open_loveda(config: DataConfig, *, require_labels: bool = True) -> Source:
    """Open ROOT/{Train,Val}/{Urban,Rural}/{images_png,masks_png}; a sample's id is PART/AREA/NUMBER.

    Without a list every training image that has a mask is labelled. The test images have no public masks and are not
    used.

    Raises:
        DataError: something is missing; the message says which folder was looked for.
    """
    root = config.root
    assert root is not None
    images: dict[str, Path] = {}
    masks: dict[str, Path] = {}
    for part in ("Train", "Val"):
        for area in ("Rural", "Urban"):
            for files, folder in ((images, "images_png"), (masks, "masks_png")):
                found = find_files(root / part / area / folder)
                files |= {f"{part}/{area}/{key}": path for key, path in found.items()}
    if not any(key.startswith("Train/") for key in images):
        looked = root / "Train" / "Urban" / "images_png"
        raise DataError(f"{looked}: no image there nor in Rural; give the folder that holds Train and Val")
    layout = Layout(root, dict(sorted(images.items())), masks, root / "Train", root / "Train" / "Urban" / "masks_png")
    samples = layout.all()
    source = Source(
        root,
        classes=tuple(name for name, _ in _CLASSES),
        palette=tuple(colour for _, colour in _CLASSES),
        codes={".png": _CODE},
    )
    return divide_images(
        source,
        config,
        layout,
        train=[sample for sample in samples if sample.id.startswith("Train/")],
        val=[sample for sample in samples if sample.id.startswith("Val/")],
        require_labels=require_labels,
    )


LOVEDA = DataSet(open_loveda, marks=("Train/Urban", "Train/Rural"))
