"""ISPRS Potsdam: aerial images of 6,000 x 6,000 pixels and RGB label pictures, used as tiles."""

from __future__ import annotations

from allspark.config.schema import DataConfig
from allspark.data.sets.lists import Layout, divide, find_files
from allspark.data.source import RGB, Source
from allspark.errors import DataError

CLASSES: tuple[tuple[str, RGB], ...] = (
    ("impervious surface", (255, 255, 255)),
    ("building", (0, 0, 255)),
    ("low vegetation", (0, 255, 255)),
    ("tree", (0, 255, 0)),
    ("car", (255, 255, 0)),
    ("clutter", (255, 0, 0)),
)
_TEST_COLUMNS = {2: (13, 14), 3: (13, 14), 4: (13, 14, 15), 5: (13, 14, 15), 6: (13, 14, 15), 7: (13,)}
TEST_AREAS = frozenset(f"{row}_{column}" for row, columns in _TEST_COLUMNS.items() for column in columns)
"""The 14 areas whose labels the benchmark kept back at first: validation here. The other 24 are for training."""


def open_potsdam(config: DataConfig, *, require_labels: bool = True) -> Source:
    """Open ROOT/tiles/{images,masks}, as `allspark prepare potsdam` cuts them; a sample's id is AREA_TOP_LEFT.

    Masks hold class ids, or the benchmark's colours. Other colours (black boundaries, some mixed ones) are ignored.
    Without a list every training tile that has a mask is labelled.

    Raises:
        DataError: something is missing; the message says which folder was looked for.
    """
    root = config.root
    assert root is not None
    images = find_files(root / "tiles" / "images")
    if not images:
        raise DataError(f"{root / 'tiles' / 'images'}: no tile there; cut them with `allspark prepare potsdam {root}`")
    layout = Layout(
        root,
        images,
        find_files(root / "tiles" / "masks"),
        root / "tiles" / "images",
        root / "tiles" / "masks",
        advice=f"cut them with `allspark prepare potsdam {root}`",
    )
    tiles = layout.all()
    train = [tile for tile in tiles if _area(tile.id) not in TEST_AREAS]
    divided = divide(
        config,
        layout,
        train=train,
        labeled=[tile for tile in train if tile.mask is not None],
        val=[tile for tile in tiles if _area(tile.id) in TEST_AREAS and tile.mask is not None],
        require_labels=require_labels,
    )
    return Source(
        root=root,
        classes=tuple(name for name, _ in CLASSES),
        palette=tuple(colour for _, colour in CLASSES),
        labeled=divided.labeled,
        unlabeled=divided.unlabeled,
        val=divided.val,
        rgb_masks=True,
        notes=divided.notes,
    )


def _area(tile: str) -> str:
    return "_".join(tile.split("_")[:2])
