"""Whatever is read: only the documented errors come out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from allspark.config.files import apply_overrides, load_config
from allspark.config.schema import Config
from allspark.data.image import read_image, read_mask
from allspark.data.sets.classes import read_classes
from allspark.data.sets.coco import prepare_coco
from allspark.data.sets.lists import Layout, read_list
from allspark.engine.checkpoint import load_checkpoint, save_checkpoint
from allspark.errors import CheckpointError, ConfigError, DataError, UserError
from allspark.models.published import read_foreign
from allspark.study.plan import load_study

FAST = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
WORDS = st.sampled_from(
    [
        *(
            "data",
            "optim",
            "lr",
            "crop",
            "=",
            "seed",
            "methods",
            "seeds",
            "é",
            "\x00",
            "\ud7ff",
            "1_000",
            "1e-3",
            "0x1F",
        ),
        *(":", "- ", "\n", "  ", "[", "]", "{", "}", "~", "null", "off", "'", '"', "#", "&a", "*a", "!!int", "|", ">"),
        *("? ", "---\n", "\t"),
    ]
)
TEXT = st.one_of(st.text(max_size=200), st.lists(WORDS, max_size=40).map("".join))


@FAST
@given(TEXT)
@example("data: &a [*a]")
@example("{" * 5000)
def test_configurations(tmp_path, text):
    path = tmp_path / "my.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        assert isinstance(load_config(path), Config)
    except ConfigError as error:
        assert "\n" not in str(error) and str(path) in str(error)


@FAST
@given(st.text(max_size=60))
def test_overrides(text):
    try:
        assert isinstance(apply_overrides(Config(), [text]), Config)
    except ConfigError as error:
        assert "\n" not in str(error)


@FAST
@given(
    st.sampled_from([*sorted(Config.model_fields), "data.crop", "views.scale", "optim.lr", "model.encoder_config"]),
    TEXT,
)
def test_values(key, text):
    try:
        assert isinstance(apply_overrides(Config(), [f"{key}={text}"]), Config)
    except ConfigError as error:
        assert "\n" not in str(error)


@FAST
@given(TEXT)
def test_studies(tmp_path, text):
    path = tmp_path / "study.yaml"
    path.write_bytes(("base: folder\n" + text).encode("utf-8", "surrogatepass"))
    try:
        load_study(path)
    except UserError as error:
        assert "\n" not in str(error)


@FAST
@given(st.one_of(st.binary(max_size=200), TEXT.map(lambda text: text.encode("utf-8", "surrogatepass"))))
def test_lists_and_classes(tmp_path, content):
    path = tmp_path / "list.txt"
    path.write_bytes(content)
    images = {"a": tmp_path / "images" / "a.png", "b c": tmp_path / "images" / "b c.png"}
    layout = Layout(tmp_path, images, {}, tmp_path / "images", tmp_path / "masks")
    for read in (lambda: read_list(path, layout), lambda: read_classes(path)):
        try:
            read()
        except DataError as error:
            assert "\n" not in str(error) and str(path) in str(error)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "last.safetensors"
    save_checkpoint(path, {"model.w": torch.randn(20), "rng.cpu": torch.get_rng_state()[:50]}, {"format": 1, "x": "ü"})
    return path.read_bytes()


@FAST
@given(st.data())
def test_checkpoints(tmp_path, checkpoint, data):
    """Cut anywhere, or with any bytes altered: found, or not in what is read."""
    path = tmp_path / "last.safetensors"
    content = bytearray(checkpoint)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))])
    try:
        loaded = load_checkpoint(path)
    except CheckpointError as error:
        assert "\n" not in str(error) and str(path) in str(error)
    else:
        path.write_bytes(checkpoint)
        whole = load_checkpoint(path)
        assert loaded.meta == whole.meta
        assert all(torch.equal(tensor, whole.tensors[name]) for name, tensor in loaded.tensors.items())


@FAST
@given(st.binary(max_size=300))
@example(b"PK\x03\x04" + b"\x00" * 40)
@example(b"\x80\x02}q\x00.")
def test_foreign_weights(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    try:
        read_foreign(path)
    except CheckpointError as error:
        assert "\n" not in str(error) and str(path) in str(error)


@FAST
@given(st.data())
def test_pictures(tmp_path, tiny_folder, data):
    """Real files with altered bytes."""
    path = tmp_path / "a.png"
    whole = (tiny_folder / "masks" / "labeled_0000.png").read_bytes()
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    for read in (lambda: read_image(path, 10**6), lambda: read_mask(path, num_classes=6, max_pixels=10**6)):
        try:
            found = np.asarray(read())
            assert found.dtype == np.uint8
        except DataError as error:
            assert "\n" not in str(error) and str(path) in str(error)


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 90), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["images", "annotations", "categories", "id", "name", "segmentation", "area", "counts"]),
            inner,
        ),
    ),
    max_leaves=15,
)


@FAST
@given(JSON)
def test_annotations(tmp_path, content):
    folder: Path = tmp_path / "annotations"
    folder.mkdir(exist_ok=True)
    (folder / "instances_train2017.json").write_text(json.dumps(content))
    with pytest.raises(DataError) as caught:
        prepare_coco(tmp_path, workers=1)
    assert "\n" not in str(caught.value)
