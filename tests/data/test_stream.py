"""The training stream is a function of the step; evaluation reads in order; bad files end in one line."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from PIL import Image

from allspark.batch import TrainBatch, Views
from allspark.config.files import apply_overrides
from allspark.config.schema import Config, DataConfig
from allspark.data.boxes import BetaBoxes
from allspark.data.decode import read_sample
from allspark.data.image import normalize, read_image, read_mask
from allspark.data.sets.folder import open_folder
from allspark.data.source import Sample, Source
from allspark.data.stream import steps_per_epoch
from allspark.errors import DataError
from tests.helpers import SUPERVISED, batches_of, stream_of


@pytest.fixture
def source(tiny_folder):
    return open_folder(DataConfig(root=tiny_folder))


@pytest.fixture
def config():
    return apply_overrides(
        Config(), ["data.crop=[32, 48]", "data.batch_labeled=2", "data.batch_unlabeled=3", "data.workers=0"]
    )


@pytest.fixture
def damaged(tiny_folder, tmp_path):
    """A copy of the tiny set; its first labelled and first unlabelled image are cut short."""
    root = tmp_path / "damaged"
    shutil.copytree(tiny_folder, root)
    for name in ("labeled_0000.png", "unlabeled_0000.png"):
        path = root / "images" / name
        path.write_bytes(path.read_bytes()[:200])
    return open_folder(DataConfig(root=root))


def batches(source, config, start=0, stop=4, **options):
    return list(batches_of(source, config, start, stop, **options))


def assert_equal(one, other):
    """Same type, same tensors bit by bit, same ids."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other)
    elif hasattr(one, "__dataclass_fields__"):
        for field in fields(one):
            assert_equal(getattr(one, field.name), getattr(other, field.name))
    elif isinstance(one, list):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_equal(left, right)
    else:
        assert one == other


def ids(found):
    return [batch.labeled.ids for batch in found], [batch.unlabeled.ids for batch in found]


def test_a_batch_is_what_a_step_takes(source, config):
    (batch,) = batches(source, config, 0, 1)
    assert batch.labeled.image.shape == (2, 3, 32, 48) and batch.labeled.image.dtype == torch.float32
    assert batch.labeled.mask.shape == (2, 32, 48) and batch.labeled.mask.dtype == torch.int64
    assert set(batch.labeled.mask.unique().tolist()) <= {*range(6), 255}
    assert batch.unlabeled.weak.shape == (3, 3, 32, 48) and batch.unlabeled.valid.dtype == torch.bool
    assert len(batch.labeled.ids) == 2 and len(batch.unlabeled.ids) == 3 and batch.skipped == ()


def test_without_augmentation_a_batch_is_the_normalised_file(source):
    plain = ["views.scale=[1, 1]", "views.flip=0", "views.jitter_p=0", "views.grey_p=0", "views.blur_p=0"]
    config = apply_overrides(Config(), [*plain, "data.crop=[70, 90]", "data.workers=0"])
    for batch in batches(source, config, 0, 2):
        for row, name in enumerate(batch.labeled.ids):
            sample = next(sample for sample in source.labeled if sample.id == name)
            want = normalize(np.asarray(read_image(sample.image)))
            np.testing.assert_array_equal(batch.labeled.image[row, :, :64, :80].numpy(), want)
            np.testing.assert_array_equal(batch.labeled.mask[row, :64, :80].numpy(), read_mask(sample.mask))
            assert (batch.labeled.mask[row, 64:] == 255).all() and (batch.labeled.mask[row, :, 80:] == 255).all()
        valid = batch.unlabeled.valid
        assert valid[:, :64, :80].all() and not valid[:, 64:].any() and not valid[:, :, 80:].any()


def test_supervise_padding_carries_no_map(source, config):
    config = apply_overrides(config, ["views.supervise_padding=true"])
    assert batches(source, config, 0, 1)[0].unlabeled.valid is None


def test_each_epoch_shows_each_image_once_in_a_new_order(source, config):
    labeled, unlabeled = ids(batches(source, config, 0, 4))
    flat = [name for batch in unlabeled for name in batch]
    assert sorted(flat[:6]) == sorted(flat[6:12]) == sorted(sample.id for sample in source.unlabeled)
    assert flat[:6] != flat[6:12]
    flat = [name for batch in labeled for name in batch]
    assert sorted(flat[:4]) == sorted(flat[4:]) == sorted(sample.id for sample in source.labeled)


def test_an_image_looks_different_in_each_epoch(source, config):
    seen = {}
    for batch in batches(source, config, 0, 4):
        for name, image in zip(batch.labeled.ids, batch.labeled.image, strict=True):
            seen.setdefault(name, []).append(image)
    assert all(len(views) == 2 and not torch.equal(*views) for views in seen.values())


def test_the_seed_decides(source, config):
    first = batches(source, config, 0, 2)
    assert_equal(first, batches(source, config, 0, 2))
    other = batches(source, apply_overrides(config, ["seed=1"]), 0, 2)
    assert not torch.equal(first[0].labeled.image, other[0].labeled.image)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resume_equals_the_tail(source, config, accumulate):
    config = apply_overrides(config, [f"optim.accumulate={accumulate}"])
    whole = batches(source, config, 0, 5)
    assert len(whole) == 5 * accumulate
    for start in (1, 3, 5):
        assert_equal(batches(source, config, start, 5), whole[start * accumulate :])


def test_number_of_workers_does_not_matter(source, config):
    alone = batches(source, config, 1, 6)
    assert_equal(batches(source, apply_overrides(config, ["data.workers=2"]), 1, 6), alone)
    assert_equal(batches(source, apply_overrides(config, ["data.workers=1"]), 1, 6), alone)


@pytest.mark.parametrize("world", [2, 3])
def test_slices_of_all_processes_make_up_the_global_batch(source, config, world):
    whole = apply_overrides(config, [f"data.batch_labeled={2 * world}", f"data.batch_unlabeled={3 * world}"])
    parts = [batches(source, config, 0, 3, rank=rank, world=world) for rank in range(world)]
    for step, batch in enumerate(batches(source, whole, 0, 3)):
        for role, names in (("labeled", ("image", "mask")), ("unlabeled", ("weak", "valid"))):
            mine = [getattr(part[step], role) for part in parts]
            for name in names:
                assert torch.equal(
                    torch.cat([getattr(item, name) for item in mine]), getattr(getattr(batch, role), name)
                )
            assert sum((item.ids for item in mine), ()) == getattr(batch, role).ids


def test_strong_views_boxes_and_chance_are_the_same_with_any_number_of_processes_and_workers(source, config):
    views = Views(strong=2, boxes=BetaBoxes(), partner=True, colours="random-list", chance=True)
    config = apply_overrides(config, ["data.batch_unlabeled=2"])
    whole = apply_overrides(config, ["data.batch_unlabeled=4", "data.batch_labeled=4", "data.workers=2"])
    parts = [batches(source, config, 0, 3, views=views, rank=rank, world=2) for rank in range(2)]
    for step, batch in enumerate(batches(source, whole, 0, 3, views=views)):
        for role in ("unlabeled", "partner"):
            mine, all_of_them = [getattr(part[step], role) for part in parts], getattr(batch, role)
            for name, axis in (("weak", 0), ("strong", 1), ("boxes", 1), ("chance", 0)):
                assert torch.equal(torch.cat([getattr(one, name) for one in mine], axis), getattr(all_of_them, name))
            assert all_of_them.chance.shape == (4,) and len(all_of_them.chance.unique()) == 4
    plain = batches(source, config, 0, 3, views=replace(views, chance=False), rank=1, world=2)
    for one, other in zip(plain, parts[1], strict=True):
        assert one.unlabeled.chance is None and torch.equal(one.unlabeled.strong, other.unlabeled.strong)


def test_labelled_views_do_not_depend_on_the_method(source, config):
    both, alone = batches(source, config, 0, 3), batches(source, config, 0, 3, views=SUPERVISED)
    assert all(batch.unlabeled is None for batch in alone)
    assert_equal([batch.labeled for batch in both], [batch.labeled for batch in alone])


@pytest.mark.parametrize("workers", [0, 1])
def test_global_random_states_are_left_alone(source, config, workers):
    config = apply_overrides(config, [f"data.workers={workers}"])
    torch.manual_seed(0)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    batches(source, config, 0, 2)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)


@pytest.mark.parametrize(
    ("overrides", "world", "want"),
    [
        ([], 1, 2),  # 6 unlabelled images, 3 a step
        (["data.batch_unlabeled=4"], 1, 2),
        (["optim.accumulate=2"], 1, 1),
        (["data.batch_unlabeled=1"], 2, 3),
        (["data.batch_unlabeled=100"], 1, 1),
    ],
)
def test_steps_per_epoch(source, config, overrides, world, want):
    config = apply_overrides(config, overrides)
    assert steps_per_epoch(source, config.data, config.optim.accumulate, world) == want


def test_steps_per_epoch_counts_labelled_images_where_there_are_no_others(source, config):
    assert steps_per_epoch(replace(source, unlabeled=()), config.data, 1) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_file_stops_with_its_name(damaged, config, workers):
    config = apply_overrides(config, [f"data.workers={workers}"])
    with pytest.raises(DataError, match=r"(un)?labeled_0000\.png: .*") as caught:
        batches(damaged, config, 0, 4)
    assert "\n" not in str(caught.value)


def test_a_bad_file_is_a_value_of_the_stream(damaged, config):
    stream = stream_of(damaged, config)
    items = [stream[step] for step in range(2)]
    assert any(isinstance(item, DataError) for item in items)


@pytest.mark.parametrize("workers", [0, 2])
def test_skip_takes_the_next_image_and_says_so(damaged, config, workers):
    config = apply_overrides(config, ["data.on_bad_image=skip", f"data.workers={workers}"])
    found = batches(damaged, config, 0, 2)  # one epoch of both
    labeled, unlabeled = ids(found)
    assert sorted(sum(labeled, ())) == ["labeled_0001", "labeled_0001", "labeled_0002", "labeled_0003"]
    assert sum(unlabeled, ()).count("unlabeled_0001") == 2 and "unlabeled_0000" not in sum(unlabeled, ())
    lines = sum((batch.skipped for batch in found), ())
    assert len(lines) == 2
    assert any("unlabeled_0000.png" in line for line in lines)
    twins = [
        image
        for batch in found
        for name, image in zip(batch.labeled.ids, batch.labeled.image, strict=True)
        if name == "labeled_0001"
    ]
    assert not torch.equal(*twins)  # the substitute is cut anew, not shown twice
    assert_equal(batches(damaged, config, 1, 2), found[1:])


def test_skip_gives_up_when_nothing_can_be_read(source, config, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    source = replace(source, unlabeled=tuple(Sample(f"x{i}", broken) for i in range(3)))
    config = apply_overrides(config, ["data.on_bad_image=skip"])
    with pytest.raises(DataError, match=r"none of the 3 unlabelled images can be read; the first: .*broken\.png"):
        batches(source, config, 0, 1)


def test_missing_parts_are_named_before_anything_is_read(source, config):
    with pytest.raises(DataError, match="no labelled training image"):
        batches_of(replace(source, labeled=()), config, 0, 1, views=SUPERVISED)
    with pytest.raises(DataError, match="no unlabelled image, which the method learns from"):
        batches_of(replace(source, unlabeled=()), config, 0, 1)
    assert len(batches(replace(source, unlabeled=()), config, 0, 1, views=SUPERVISED)) == 1


def save(path, array):
    Image.fromarray(np.asarray(array, np.uint8)).save(path)
    return path


def one_sample(tmp_path, mask, **options):
    image = save(tmp_path / "a.png", np.zeros((4, 6, 3)))
    sample = Sample("a", image, save(tmp_path / "a_mask.png", mask))
    return Source(tmp_path, ("x", "y"), ((0, 0, 0), (9, 9, 9)), labeled=(sample,), **options), sample


def test_mask_of_another_size_names_both_files(tmp_path):
    source, sample = one_sample(tmp_path, np.zeros((6, 4)))
    with pytest.raises(DataError, match=r"a_mask\.png: the mask is 4x6 but its image .*a\.png is 6x4"):
        read_sample(sample, source, want_mask=True, max_pixels=100)


def test_mask_value_outside_the_classes_names_both_files(tmp_path):
    source, sample = one_sample(tmp_path, np.full((4, 6), 7))
    with pytest.raises(DataError, match=r"a_mask\.png.* 7.*a\.png"):
        read_sample(sample, source, want_mask=True, max_pixels=100)


def test_another_ignore_value_becomes_255(tmp_path):
    source, sample = one_sample(tmp_path, [[0, 1, 9, 9, 0, 1]] * 4, ignore=9)
    _, mask = read_sample(sample, source, want_mask=True, max_pixels=100)
    np.testing.assert_array_equal(mask, [[0, 1, 255, 255, 0, 1]] * 4)


def test_too_large_and_missing_mask(tmp_path):
    source, sample = one_sample(tmp_path, np.zeros((4, 6)))
    with pytest.raises(DataError, match="max_pixels"):
        read_sample(sample, source, want_mask=False, max_pixels=20)
    with pytest.raises(DataError, match=r"a\.png: this image has no mask"):
        read_sample(replace(sample, mask=None), source, want_mask=True, max_pixels=100)


def test_closing_ends_the_workers(source, config):
    config = apply_overrides(config, ["data.workers=2"])
    before = set(children())
    stream = batches_of(source, config, 0, 1000)
    next(stream)
    started = set(children()) - before
    assert len(started) == 2
    stream.close()
    assert not started & set(children())


def test_an_error_of_the_consumer_ends_the_workers(source, config):
    config = apply_overrides(config, ["data.workers=1"])
    before = set(children())
    with (
        pytest.raises(KeyError),
        closing(batches_of(source, config, 0, 1000)) as stream,
    ):
        next(stream)
        raise KeyError
    assert set(children()) <= before


ORPHANS = """
import os, signal, sys
from allspark.config.schema import Config
from allspark.data.sets.folder import open_folder
from allspark.batch import Views
from allspark.data.stream import TrainStream, train_batches
from allspark.config.files import apply_overrides

config = apply_overrides(Config(), [f"data.root={sys.argv[1]}", "data.crop=32", "data.workers=2"])
source = open_folder(config.data)
fork = os.fork

def fork_and_die():
    child = fork()
    if child:
        os.kill(os.getpid(), signal.SIGKILL)
    return child

os.fork = fork_and_die
stream = TrainStream(source, config.data, config.views, Views(), seed=0, rank=0, world=1)
next(train_batches(stream, range(2), workers=2))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")
def test_a_worker_ends_when_its_parent_is_killed_as_it_starts(tiny_folder):
    # The pipe of standard output ends only when no process holds it any more.
    done = subprocess.run([sys.executable, "-c", ORPHANS, str(tiny_folder)], capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_a_killed_worker_ends_in_one_line(source, config):
    """Workers are killed while the consumer computes: nothing is raised there, the next batches bring it up."""
    config = apply_overrides(config, ["data.workers=1"])
    handler = signal.getsignal(signal.SIGCHLD)
    before = set(children())
    stream = batches_of(source, config, 0, 10_000)
    next(stream)
    assert signal.getsignal(signal.SIGCHLD) is handler
    (worker,) = set(children()) - before
    os.kill(worker, signal.SIGKILL)
    time.sleep(0.2)
    with pytest.raises(DataError, match=r"a process that reads images died.*data\.workers") as caught:
        for _ in stream:
            pass
    assert "\n" not in str(caught.value)


def children():
    """Living child processes of this one."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/stat") as file:
                    state, parent = file.read().rsplit(")", 1)[1].split()[:2]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(parent) == os.getpid() and state != "Z":
                found.append(int(entry))
    return found


def test_labelled_images_are_decoded_once_and_give_the_same(source, config, monkeypatch):
    import allspark.data.stream as module

    read = []

    def counted(sample, *arguments, **options):
        read.append(sample.id)
        return read_sample(sample, *arguments, **options)

    monkeypatch.setattr(module, "read_sample", counted)
    steps = 3 * len(source.labeled)
    keeping, reading = (stream_of(source, apply_overrides(config, [f"data.keep_decoded={size}"])) for size in (1, 0))
    kept = [keeping[step] for step in range(steps)]
    labeled = [name for name in read if name in {sample.id for sample in source.labeled}]
    assert sorted(labeled) == sorted(sample.id for sample in source.labeled)
    assert len(read) - len(labeled) == steps * config.data.batch_unlabeled
    read.clear()
    for step, batch in enumerate(kept):
        assert_equal(batch, reading[step])
    assert len(read) == steps * (config.data.batch_labeled + config.data.batch_unlabeled)


def test_the_stream_is_pure_in_the_micro_step(source, config):
    stream = stream_of(source, config)
    late, early = stream[40], stream[1]
    fresh = stream_of(source, config)
    assert isinstance(late, TrainBatch)
    assert_equal(early, fresh[1])
    assert_equal(late, fresh[40])
