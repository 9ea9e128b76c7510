"""`check`: each fault is found, named and rated; a sound set is safe; processes change nothing."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from allspark.cli.app import main
from allspark.cli.check_report import print_report
from allspark.config.schema import DataConfig
from allspark.data.check import Finding, Report, check
from allspark.data.check import files as check_files
from allspark.data.check import workers as check_workers
from allspark.data.image import write_mask
from allspark.data.sets import open_source
from allspark.data.source import Sample, Source

CLASSES = ("Boden", "Straße", "Haus & Hof")
PALETTE = ((0, 0, 0), (200, 0, 0), (0, 200, 0))
SIZE = (40, 30)  # width, height
TOO_MANY = 10_000  # pixels


def paint(path: Path, seed: int, size: tuple[int, int] = SIZE) -> None:
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(path)


def save_mask(path: Path, values: tuple[int, ...], size: tuple[int, int] = SIZE) -> None:
    """Stripes of the given values."""
    columns = np.arange(size[0]) * len(values) // size[0]
    Image.fromarray(np.tile(np.array(values, np.uint8)[columns], (size[1], 1))).save(path)


def save_rgb(path: Path, colours: list[tuple[int, int, int]]) -> None:
    columns = np.arange(SIZE[0]) * len(colours) // SIZE[0]
    Image.fromarray(np.tile(np.array(colours, np.uint8)[columns], (SIZE[1], 1, 1))).save(path)


@pytest.fixture
def sound(tmp_path: Path) -> Source:
    """A small set without a fault; blanks and umlauts in its names."""
    root = tmp_path / "Gärten und Wege"
    (root / "images" / "süd").mkdir(parents=True)
    (root / "masks" / "süd").mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    samples = []
    names = [*(f"süd/übung {i}" for i in range(4)), *(f"val {i}" for i in range(3)), *(f"frei {i}" for i in range(3))]
    for seed, name in enumerate(names):
        image, mask = root / "images" / f"{name}.png", root / "masks" / f"{name}.png"
        paint(image, seed)
        if not name.startswith("frei"):
            save_mask(mask, (0, 1, 2, 255))
        samples.append(Sample(name, image, mask if mask.exists() else None))
    return Source(root, CLASSES, PALETTE, tuple(samples[:4]), tuple(samples[7:]), tuple(samples[4:7]))


def report_of(
    source: Source, *, workers: int = 0, fast: bool = False, crop: tuple[int, int] | None = (30, 40)
) -> Report:
    return check(source, crop=crop, max_pixels=TOO_MANY, workers=workers, fast=fast)


def only(report: Report, kind: str) -> Finding:
    (finding,) = [finding for finding in report.findings if finding.kind == kind]
    return finding


def test_sound_set_is_safe_and_counted(sound):
    report = report_of(sound)
    assert report.findings == ()
    assert report.safe
    assert report.counts == {"labeled": 4, "val": 3, "unlabeled": 3}
    naive = np.zeros(3, int)
    for sample in sound.labeled:
        for value in np.asarray(Image.open(sample.mask)).ravel():
            if value != 255:
                naive[value] += 1
    assert report.class_pixels["labeled"].tolist() == naive.tolist()
    assert report.class_images["val"].tolist() == [3, 3, 3]
    assert report.size_statistics() == {"min": SIZE, "median": SIZE, "max": SIZE}
    assert report.small == 0


# Each fault takes a sound set and spoils it: on disk, in its lists, or both.
def cut_image(source: Source) -> Source:
    path = source.labeled[1].image
    path.write_bytes(path.read_bytes()[:-500])
    return source


def cut_unlabeled(source: Source) -> Source:
    path = source.unlabeled[1].image
    path.write_bytes(path.read_bytes()[:-500])
    return source


def cut_mask(source: Source) -> Source:
    path = source.val[1].mask
    path.write_bytes(path.read_bytes()[:50])
    return source


def empty_image(source: Source) -> Source:
    source.unlabeled[0].image.write_bytes(b"")
    return source


def no_image(source: Source) -> Source:
    source.labeled[0].image.write_text("this is no picture", encoding="utf-8")
    return source


def huge_image(source: Source) -> Source:
    paint(source.unlabeled[2].image, 77, (101, 100))
    return source


def missing_image(source: Source) -> Source:
    source.val[2].image.unlink()
    return source


def looping_link(source: Source) -> Source:
    path = source.labeled[3].image
    path.unlink()
    path.symlink_to(path.name)
    return source


def folder_link_loop(source: Source) -> Source:
    (source.root / "masks" / "loop").symlink_to(source.root / "masks")
    return source


def missing_mask(source: Source) -> Source:
    source.labeled[2].mask.unlink()
    return source


def no_mask_in_val(source: Source) -> Source:
    return replace(source, val=(*source.val[:2], replace(source.val[2], mask=None)))


def small_mask(source: Source) -> Source:
    save_mask(source.labeled[0].mask, (0, 1), (20, 30))
    return source


def turned_image(source: Source) -> Source:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = source.labeled[0].image
    Image.open(path).save(path, exif=exif)
    return source


def strange_values(source: Source) -> Source:
    save_mask(source.val[0].mask, (0, 1, 7, 9))
    return source


def counted_from_one(source: Source) -> Source:
    for sample in (*source.labeled, *source.val):
        save_mask(sample.mask, (1, 2, 3))
    return source


def unlabelled_as_class(source: Source) -> Source:
    save_mask(source.labeled[0].mask, (0, 1, 2, 3))
    return source


def grey_levels(source: Source) -> Source:
    for sample in (*source.labeled, *source.val):
        save_mask(sample.mask, (0, 127, 254))
    return source


def jpeg_masks(source: Source) -> Source:
    sample = source.labeled[0]
    path = sample.mask.with_suffix(".jpg")
    save_mask(path, (0, 200))
    sample.mask.unlink()
    return replace(source, labeled=(replace(sample, mask=path), *source.labeled[1:]))


def coded_0_255(source: Source) -> Source:
    for sample in (*source.labeled, *source.val):
        save_mask(sample.mask, (0, 255))
    return replace(source, classes=CLASSES[:2], palette=PALETTE[:2])


def coded_0_255_and_other_ignore(source: Source) -> Source:
    return replace(coded_0_255(source), ignore=254)


def wide_values(source: Source) -> Source:
    Image.fromarray(np.full((SIZE[1], SIZE[0]), 1000, np.uint16)).save(source.labeled[0].mask)
    return source


def rgb_without_colours(source: Source) -> Source:
    save_rgb(source.labeled[0].mask, [(9, 8, 7), (9, 8, 7), (1, 2, 3), (9, 8, 7)])
    return source


def coloured(source: Source) -> Source:
    for sample in (*source.labeled, *source.val):
        save_rgb(sample.mask, list(PALETTE))
    return replace(source, rgb_masks=True)


def some_strange_colours(source: Source) -> Source:
    source = coloured(source)
    save_rgb(source.labeled[0].mask, [*PALETTE, (5, 6, 7)])
    return source


def wrong_palette(source: Source) -> Source:
    return replace(coloured(source), palette=((0, 0, 0), (1, 1, 1), (2, 2, 2)))


def leak_by_name(source: Source) -> Source:
    return replace(source, val=(*source.val, source.labeled[0]))


def unlabeled_leak(source: Source) -> Source:
    return replace(source, unlabeled=(*source.unlabeled, source.val[0]))


def overlap(source: Source) -> Source:
    return replace(source, unlabeled=(*source.unlabeled, source.labeled[0]))


def one_name_twice(source: Source) -> Source:
    other = replace(source.labeled[0], image=source.labeled[1].image)
    return replace(source, labeled=(*source.labeled, other))


def leak_by_content(source: Source) -> Source:
    shutil.copy(source.labeled[0].image, source.val[0].image)
    return source


def copy_in_training(source: Source) -> Source:
    shutil.copy(source.labeled[0].image, source.unlabeled[0].image)
    return source


def lonely_mask(source: Source) -> Source:
    save_mask(source.root / "masks" / "süd" / "verwaist.png", (0, 1))
    return source


def all_masks_misnamed(source: Source) -> Source:
    for sample in source.labeled:
        sample.mask.rename(sample.mask.with_name(f"{sample.mask.stem}_mask.png"))
    return replace(source, labeled=(), val=(), unlabeled=tuple(replace(s, mask=None) for s in source.labeled))


def blank_mask(source: Source) -> Source:
    save_mask(source.labeled[1].mask, (255,))
    return source


def absent_class(source: Source) -> Source:
    for sample in source.labeled:
        save_mask(sample.mask, (0, 1))
    return source


def absent_in_val(source: Source) -> Source:
    for sample in source.val:
        save_mask(sample.mask, (0, 255))
    return source


def one_pixel(source: Source) -> Source:
    paint(source.unlabeled[0].image, 5, (1, 1))
    return source


def no_labels(source: Source) -> Source:
    return replace(source, labeled=())


def no_val(source: Source) -> Source:
    return replace(source, val=())


def no_unlabeled(source: Source) -> Source:
    return replace(source, unlabeled=())


Fault = Callable[[Source], Source]
FAULTS: list[tuple[Fault, str, str, tuple[str, ...]]] = [
    (cut_image, "unreadable", "error", ("1 file that", "süd/übung 1.png", "damaged", "replace or remove")),
    (cut_unlabeled, "unreadable", "error", ("images/frei 1.png", "damaged")),
    (cut_mask, "unreadable", "error", ("masks/val 1.png", "damaged")),
    (empty_image, "unreadable", "error", ("frei 0.png", "empty")),
    (no_image, "unreadable", "error", ("süd/übung 0.png", "not an image")),
    (huge_image, "unreadable", "error", ("frei 2.png", "101 x 100", "max_pixels = 10000")),
    (missing_image, "unreadable", "error", ("images/val 2.png", "no such file")),
    (looping_link, "unreadable", "error", ("images/süd/übung 3.png", "symbolic links")),
    (missing_mask, "no-mask", "error", ("1 image", "images/süd/übung 2.png", "looked for", "masks/süd/übung 2.png")),
    (no_mask_in_val, "no-mask", "error", ("images/val 2.png: no mask", "add the masks")),
    (small_mask, "size", "error", ("masks/süd/übung 0.png is 20x30", "images/süd/übung 0.png is 40x30", "export")),
    (turned_image, "size", "error", ("is 40x30, its image", "is 30x40 (one of them lies on its side", "EXIF")),
    (strange_values, "values", "error", ("1 mask", "0 to 2, 255", "val 0.png holds 7 (25.00 %), 9 (25.00 %)")),
    (counted_from_one, "values", "error", ("7 masks", "holds 3 (", "subtract 1")),
    (unlabelled_as_class, "values", "error", ("holds 3 (", "if 3 means unlabelled, write 255")),
    (grey_levels, "values", "error", ("grey levels", "0 -> 0, 127 -> 1, 254 -> 2")),
    (jpeg_masks, "values", "error", ("übung 0.jpg holds", "again as PNG")),
    (coded_0_255, "coding", "error", ("looks like 0/255 coding", "7 masks", "write 1 in its place", "python -c")),
    (
        coded_0_255_and_other_ignore,
        "values",
        "error",
        ("0 to 1, 254", "holds 255 (50.00 %)", "write 1 in its place"),
    ),
    (wide_values, "mask-form", "error", ("übung 0.png", "values up to 1000", "8-bit class id")),
    (rgb_without_colours, "rgb", "error", ("1 mask in RGB", "100.00 % in 9 8 7, 1 2 3", "classes.txt")),
    (some_strange_colours, "colours", "warning", ("3.57 % of the pixels", "25.00 % in 5 6 7", "add their lines")),
    (wrong_palette, "colours", "error", ("65.00 % of the pixels", "0 200 0, 200 0 0")),
    (leak_by_name, "leak", "error", ("1 image in both the labelled and the validation list", "süd/übung 0")),
    (unlabeled_leak, "leak", "error", ("1 image in both the unlabelled and the validation list", "val 0")),
    (overlap, "overlap", "warning", ("1 image in both the labelled and the unlabelled list", "süd/übung 0")),
    (one_name_twice, "same-id", "error", ("1 id more than once among the labelled", "süd/übung 0")),
    (leak_by_content, "duplicate-leak", "error", ("1 image in training and", "übung 0.png (labelled) = ", "val 0.png")),
    (copy_in_training, "duplicate", "warning", ("1 image more than once", "(labelled) = ", "frei 0.png (unlabelled)")),
    (lonely_mask, "orphan", "warning", ("1 mask without an image", "masks/süd/verwaist.png")),
    (all_masks_misnamed, "orphan", "warning", ("übung 0_mask.png", "name each mask like its image")),
    (blank_mask, "blank", "warning", ("1 mask without a pixel of any class", "übung 1.png")),
    (absent_class, "absent", "warning", ("1 of 3 classes in no labelled mask: Haus & Hof", "nothing can be learned")),
    (absent_in_val, "absent", "warning", ("2 of 3 classes in no validation mask: Straße, Haus & Hof", "no score")),
    (one_pixel, "small", "warning", ("1 of 10 images smaller than the crop of 40x30", "padded")),
    (no_labels, "no-labeled", "error", ("no labelled image", "data.labeled")),
    (no_val, "no-val", "warning", ("no validation image", "val.txt")),
    (no_unlabeled, "no-unlabeled", "error", ("no unlabelled image", "method.name=supervised")),
]


@pytest.mark.parametrize(("fault", "kind", "level", "words"), FAULTS, ids=[row[0].__name__ for row in FAULTS])
def test_each_fault_is_named_with_its_fix(fault, kind, level, words, sound):
    report = report_of(fault(sound))
    finding = only(report, kind)
    assert finding.level == level
    position = 0
    for word in words:  # in this order, on one line
        assert word in finding.message[position:], finding.message
        position = finding.message.index(word, position)
    assert "\n" not in finding.message
    assert report.safe == (level == "warning") or fault is all_masks_misnamed
    errors = {other.kind for other in report.findings if other.level == "error"}
    assert errors <= {kind, "no-labeled"}, "one fault must not be reported as others"


@pytest.mark.parametrize("fault", [folder_link_loop, coloured], ids=lambda fault: fault.__name__)
def test_what_is_no_fault(fault, sound):
    assert report_of(fault(sound)).findings == ()


def test_all_faults_at_once_are_all_found(sound):
    source = sound
    for fault in (cut_unlabeled, missing_mask, strange_values, lonely_mask, copy_in_training, small_mask):
        source = fault(source)
    kinds = {finding.kind for finding in report_of(source).findings}
    assert kinds == {"unreadable", "no-mask", "values", "orphan", "duplicate", "size"}


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "1", "I;16", "F"])
def test_images_of_any_mode_are_fine(mode, sound):
    path = sound.labeled[0].image.with_suffix(".png" if mode == "RGBA" else ".tif")  # of four bands a TIFF is refused
    grey = Image.open(sound.labeled[0].image).convert("L")
    (grey.convert("I;16") if mode == "I;16" else grey.convert("RGB").convert(mode)).save(path)
    source = replace(sound, labeled=(replace(sound.labeled[0], image=path), *sound.labeled[1:]))
    if path != sound.labeled[0].image:
        sound.labeled[0].image.unlink()
    assert report_of(source).findings == ()


def test_fix_of_0_255_masks_mends_them_as_it_stands(sound):
    source = coded_0_255(sound)
    command = only(report_of(source), "coding").fix.split("`")[1]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["bash", "-c", command], check=True, env=os.environ | {"PATH": path})
    report = report_of(source)
    assert report.findings == ()
    assert report.class_images["labeled"].tolist() == [4, 4]


def test_offered_colours_make_a_classes_file_as_they_stand(sound):
    source = sound
    for sample in (*source.labeled, *source.val):
        save_rgb(sample.mask, [(9, 8, 7), (9, 8, 7), (1, 2, 3), (4, 4, 4)])
    offer = only(report_of(source), "rgb").paste
    assert offer[0] == "0\tname0\t9 8 7"
    (source.root / "classes.txt").write_text("\n".join(offer) + "\n")
    mended = open_source(DataConfig(source="folder", root=source.root))
    assert mended.rgb_masks
    report = report_of(mended)
    assert report.safe
    assert report.class_pixels["val"].sum() == len(mended.val) * SIZE[0] * SIZE[1]


@pytest.mark.parametrize("fast", [False, True])
def test_side_by_side_is_equal_to_one_by_one(fast, sound):
    source = sound
    for fault in (empty_image, strange_values, leak_by_name, leak_by_content, some_strange_colours):
        source = fault(source)
    calls: list[tuple[int, int]] = []
    alone = report_of(source, fast=fast)
    together = check(
        source,
        crop=(30, 40),
        max_pixels=TOO_MANY,
        workers=3,
        fast=fast,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert together.to_json() == alone.to_json()
    np.testing.assert_array_equal(together.sizes, alone.sizes)
    assert calls[-1] == (11, 11)
    assert calls == sorted(calls)


def inspect_or_die(jobs, rules):
    """As `inspect_files`, but one image takes the whole process with it."""
    if any(job.sample.id == "frei 1" for job in jobs):
        os._exit(3)
    return check_files.inspect_files(jobs, rules)


def test_a_process_that_dies_is_survived_and_its_file_named(sound, monkeypatch):
    monkeypatch.setattr(check_workers, "inspect_files", inspect_or_die)
    report = report_of(strange_values(sound), workers=2)
    finding = only(report, "unreadable")
    assert finding.files == (str(sound.unlabeled[1].image),)
    assert "the process that read it died" in finding.message
    assert only(report, "values").files == (str(sound.val[0].mask),)
    assert len(report.sizes) == 9


def test_a_script_without_main_guard_is_served_all_the_same(sound, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from pathlib import Path\n"
        "from allspark.config.schema import DataConfig\n"
        "from allspark.data.sets import open_source\n"
        "from allspark.data.check import check\n"
        f"source = open_source(DataConfig(source='folder', root=Path({str(sound.root)!r})))\n"
        "print(check(source, crop=None, max_pixels=10_000, workers=2).safe)\n",
        encoding="utf-8",
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1:] == ["True"], done.stderr


def test_fast_check_reads_heads_of_all_and_pixels_of_some(sound, monkeypatch):
    monkeypatch.setattr(check_files, "_FAST_MASKS", {"labeled": 2, "val": 1, "unlabeled": 0})
    source = cut_image(strange_values(sound))  # the pixels of images are left to training
    report = report_of(source, fast=True)
    assert report.masks == {"labeled": 2, "val": 1}
    assert len(report.sizes) == 10
    assert {finding.kind for finding in report.findings} == {"values"}, "values of the first validation mask"


@pytest.mark.parametrize("fault", [small_mask, turned_image])
def test_fast_check_tells_sizes_from_heads(fault, sound):
    assert only(report_of(fault(sound), fast=True), "size") == only(report_of(sound), "size")


def test_fast_check_believes_an_orientation_at_the_end_of_a_png(sound):
    sample = turned_image(sound).labeled[0]
    data = sample.image.read_bytes()
    at = data.index(b"eXIf") - 4
    end = at + 12 + int.from_bytes(data[at : at + 4], "big")
    sample.image.write_bytes(data[:at] + data[end:-12] + data[at:end] + data[-12:])
    save_mask(sample.mask, (0, 1, 2, 255), SIZE[::-1])
    assert report_of(sound, crop=None).findings == ()
    assert report_of(sound, fast=True, crop=None).findings == ()


@pytest.mark.parametrize("fault", [empty_image, missing_image, missing_mask, huge_image, looping_link, no_labels])
def test_fast_check_finds_what_heads_show(fault, sound):
    assert not report_of(fault(sound), fast=True).safe


def test_fast_check_looks_at_a_spread_of_a_large_set(sound, monkeypatch):
    monkeypatch.setattr(check_files, "_FAST_HEADS", 5)
    many = tuple(Sample(str(index), sound.unlabeled[0].image) for index in range(1001))
    picked = [job.sample.id for job in check_files.files_to_read(replace(sound, unlabeled=many), fast=True)][-5:]
    assert picked == ["0", "250", "500", "750", "1000"]


def printed(report: Report, source: Source) -> str:
    console = Console(file=io.StringIO(), width=100)
    print_report(report, source, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_print_of_a_sound_set(sound):
    text = printed(report_of(sound), replace(sound, notes=("3 images are [held] out",)))
    assert text.rstrip().endswith("safe to train")
    assert "not safe" not in text
    for words in (str(sound.root), "3 images are [held] out", "Haus & Hof", "33.33 %", "labelled", "median", "crop"):
        assert words in text


def test_print_shows_five_files_of_a_kind_and_json_all(sound):
    source = sound
    bad = tuple(Sample(f"fehlt {i}", source.root / "images" / f"fehlt {i}.png") for i in range(100))
    source = rgb_without_colours(replace(source, unlabeled=bad))
    report = report_of(source)
    text = printed(report, source)
    assert text.count("fehlt") == 5
    assert "and 95 more" in text
    assert "\n0\tname0\t9 8 7\n" in text
    assert text.rstrip().endswith("not safe: 2 errors")
    plain = json.loads(json.dumps(report.to_json()))
    assert plain["safe"] is False
    (unreadable,) = [finding for finding in plain["findings"] if finding["kind"] == "unreadable"]
    assert unreadable["files"] == [str(sample.image) for sample in bad]
    assert plain["classes"][1]["images"] == {"labeled": 3, "val": 3}
    assert plain["sizes"]["smaller_than_crop"] == 0


def test_many_classes_are_printed_in_part(sound):
    names = tuple(f"Klasse {index:03d}" for index in range(200))
    source = replace(sound, classes=names, palette=((0, 0, 0),) * 200)
    text = printed(report_of(source), source)
    assert "Klasse 000" in text
    assert text.count("Klasse") < 60
    assert "and 160 more" in text


def test_a_set_in_which_nothing_can_be_read_still_gives_a_report(sound):
    for sample in (*sound.labeled, *sound.val, *sound.unlabeled):
        sample.image.write_bytes(b"")
    for sample in (*sound.labeled, *sound.val):
        write_mask(sample.mask, np.full((SIZE[1], SIZE[0]), 255, np.uint8), PALETTE)
    report = report_of(sound)
    assert len(only(report, "unreadable").files) == 10
    assert len(only(report, "blank").files) == 7
    assert report.size_statistics() == {}
    assert "not safe" in printed(report, sound)


def test_camvid_is_safe_and_has_the_known_frequencies(shared):
    root = shared / "data" / "camvid"
    if not root.is_dir():
        pytest.skip(f"left out: no folder {root}, so nothing is said of real street scenes")
    source = open_source(DataConfig(source="folder", root=root))
    report = check(source, crop=(321, 321), max_pixels=10**8, workers=2)
    assert [finding.kind for finding in report.findings if finding.level == "error"] == ["no-unlabeled"]
    assert report.counts == {"labeled": 367, "val": 101, "unlabeled": 0}
    assert report.size_statistics()["max"] == (480, 360)
    share = {role: pixels / (480 * 360 * report.counts[role]) for role, pixels in report.class_pixels.items()}
    bicyclist = source.classes.index("Bicyclist")
    assert share["labeled"][bicyclist] == pytest.approx(0.0029, abs=5e-5)  # as its README says
    assert share["val"][bicyclist] == pytest.approx(0.022, abs=1e-3)
    fast = check(source, crop=(321, 321), max_pixels=10**8, workers=2, fast=True)
    assert [finding.kind for finding in fast.findings if finding.level == "error"] == ["no-unlabeled"]
    assert fast.masks == {"labeled": 200, "val": 50}


def test_voc_mini_is_safe_and_lacks_the_vehicles(shared):
    root = shared / "data" / "voc-mini"
    if not root.is_dir():
        pytest.skip(f"left out: no folder {root}, so nothing is said of VOC's palette masks")
    source = open_source(DataConfig(source="voc", root=root))
    report = check(source, crop=(321, 321), max_pixels=10**8, workers=2)
    assert report.safe
    assert report.counts["val"] == 70
    absent = [finding.summary for finding in report.findings if finding.kind == "absent"]
    assert any("aeroplane" in words for words in absent)


def test_faults_of_the_layout_are_listed_with_all_others(sound, capsys):
    """Not one at a time: no classes.txt, RGB masks, a damaged image, all in one report."""
    root = sound.root
    (root / "classes.txt").unlink()
    save_rgb(sound.labeled[0].mask, [(9, 8, 7), (9, 8, 7), (1, 2, 3), (4, 4, 4)])
    sound.labeled[1].image.write_bytes(b"x")
    assert main(["check", str(root), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert {finding["kind"] for finding in report["findings"] if finding["level"] == "error"} == {
        "layout",
        "rgb",
        "unreadable",
    }
    assert main(["check", str(root)]) == 1
    out = capsys.readouterr().out
    assert "classes.txt: no such file" in out and "not safe: 3 errors" in out


def test_files_of_a_kind_that_nothing_reads_are_named(sound):
    (sound.labeled[0].image.parent / "clip.GIF").write_bytes(b"GIF89a")
    (sound.labeled[0].mask.parent / "mask.npy").write_bytes(b"x")
    (sound.labeled[0].image.parent / "notes.txt").write_text("x")
    finding = only(report_of(sound), "unread")
    assert finding.level == "warning" and "2 files" in finding.summary and "(.GIF, .npy)" in finding.summary


@pytest.mark.parametrize("role", ["labeled", "val"])
def test_a_list_of_masks_without_any_class_is_an_error(sound, role):
    for sample in getattr(sound, role):
        save_mask(sample.mask, (255,))
    assert only(report_of(sound), "all-blank").level == "error"


def test_without_unlabelled_images_only_supervised_training_is_safe(sound, capsys):
    for sample in sound.unlabeled:
        sample.image.unlink()
    assert main(["check", str(sound.root)]) == 1
    said = capsys.readouterr().out
    assert "only supervised training is possible" in said and "not safe: 1 error" in said
    assert main(["check", str(sound.root), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["safe"] is False


def test_every_listed_image_that_is_missing_and_every_double_is_listed(sound, capsys):
    names = [sample.id for sample in sound.unlabeled]
    (sound.root / "train.txt").write_text("".join(f"{name}\n" for name in [*names, "gone 1", "gone 2", "../x"]))
    image = sound.labeled[0].image
    Image.open(image).save(image.with_suffix(".bmp"))
    assert main(["check", str(sound.root)]) == 1
    said = capsys.readouterr().out
    for words in (
        f"train.txt, line {len(names) + 1}: no image",
        "gone 2.*",
        "'../x' leaves the data set's folder",
        "have the same id",
    ):
        assert words in said


def test_the_fix_of_0_255_masks_may_run_twice(sound):
    source = coded_0_255(sound)
    command = only(report_of(source), "coding").fix.split("`")[1]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for _ in range(2):
        subprocess.run(["bash", "-c", command], check=True, env=os.environ | {"PATH": path})
    assert report_of(source).class_images["labeled"].tolist() == [4, 4]
