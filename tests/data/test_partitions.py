"""The published partitions are recognised, and no family is taken for another."""

from pathlib import Path

import pytest

from allspark.data.partitions import partition_of
from allspark.data.source import Sample, Source

FAMILIES = {
    "pascal": {
        **{name: f"voc original {name}" for name in ("92", "183", "366", "732", "1464")},
        **{f"1_{n}": f"voc augmented 1/{n}" for n in (16, 8, 4, 2)},
        **{f"u2pl_1_{n}": f"voc u2pl 1/{n}" for n in (16, 8, 4)},
    },
    "cityscapes": {f"1_{n}": f"cityscapes 1/{n}" for n in (30, 16, 8, 4, 2)},
    "coco": {f"1_{n}": f"coco 1/{n}" for n in (512, 256, 128, 64, 32)},
}
KINDS = {"pascal": "voc", "cityscapes": "cityscapes", "coco": "coco"}


def source_of(ids):
    return Source(Path("x"), ("a", "b"), ((0, 0, 0), (1, 1, 1)), tuple(Sample(key, Path(key)) for key in ids))


@pytest.mark.parametrize(
    ("folder", "name", "expected"), [(f, n, e) for f, names in FAMILIES.items() for n, e in names.items()]
)
def test_a_published_list_is_recognised(shared, folder, name, expected):
    lines = (shared / "splits" / folder / f"{name}.txt").read_text().splitlines()
    ids = [Path(line.split()[0]).stem.removesuffix("_leftImg8bit") for line in lines if line.strip()]
    assert str(partition_of(KINDS[folder], source_of(ids))) == expected
    assert str(partition_of(KINDS[folder], source_of(reversed(ids)))) == expected  # the order means nothing
    assert partition_of("folder", source_of(ids)) is None
    assert partition_of(KINDS[folder], source_of([*ids[1:], "another"])) is None


def test_own_lists_have_no_name():
    assert partition_of("voc", source_of([])) is None
    assert partition_of("voc", source_of([f"{i}" for i in range(92)])) is None
