"""Foreign weight files: renamed right, refused when they could execute something."""

import pickle

import numpy as np
import pytest
import torch

from allspark.config.schema import ModelConfig
from allspark.errors import CheckpointError
from allspark.models.encoders import build_encoder
from allspark.models.published import nvlabs_to_transformers, read_foreign
from tests.golden.arrays import Arrays


@pytest.fixture
def published():
    """A small MiT in NVlabs' layout, with the head that their files carry."""
    state = {name: x.float() for name, x in Arrays("mit_backbone").part("state.").items()}
    return {**state, "head.weight": torch.zeros(10, 32), "head.bias": torch.zeros(10)}


CONFIG = {
    "hidden_sizes": [8, 16, 20, 32],
    "depths": [1, 2, 1, 1],
    "num_attention_heads": [1, 2, 5, 8],
}


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model": {f"module.{k}": v for k, v in s.items()}}]
)
def test_nvlabs_file_gives_the_published_maps(tmp_path, published, wrap):
    torch.save(wrap(published), tmp_path / "mit.pth")
    config = ModelConfig(encoder="segformer", encoder_config=CONFIG, pretrained=str(tmp_path / "mit.pth"))
    encoder = build_encoder(config).double().eval()
    arrays = Arrays("mit_backbone")
    for i, feature in enumerate(encoder(arrays["image"])):
        np.testing.assert_allclose(feature.detach(), arrays[f"c{i + 1}"], rtol=1e-4, atol=1e-5)


def test_every_published_tensor_is_used(published):
    renamed = nvlabs_to_transformers(published)
    assert sum(x.numel() for x in renamed.values()) == sum(
        x.numel() for name, x in published.items() if not name.startswith("head.")
    )


def test_a_file_for_another_size_is_refused(tmp_path, published):
    torch.save({k: v for k, v in published.items() if not k.startswith("block3")}, tmp_path / "mit.pth")
    with pytest.raises(CheckpointError, match="does not fit the encoder"):
        build_encoder(ModelConfig(encoder="segformer", encoder_config=CONFIG, pretrained=str(tmp_path / "mit.pth")))


def test_a_width_that_differs_is_refused(tmp_path, published):
    torch.save(published, tmp_path / "mit.pth")
    with pytest.raises(CheckpointError, match="does not fit the encoder"):
        build_encoder(ModelConfig(encoder="mit-b0", pretrained=str(tmp_path / "mit.pth")))


class Payload:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (pickle.dumps({"model": Payload()}), "refused"),
        (b"", "damaged, or not a torch"),
        (b"PK\x03\x04 not a zip", "damaged, or not a torch"),
        (b"\x00" * 100, "refused|damaged, or not"),
    ],
)
def test_bad_files_are_named_and_execute_nothing(tmp_path, content, words, capsys):
    path = tmp_path / "bad.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=words) as caught:
        read_foreign(path)
    assert str(path) in str(caught.value) and "executed" not in capsys.readouterr().out


def test_a_torch_file_with_an_object_is_refused(tmp_path):
    torch.save({"model": Payload()}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="refused"):
        read_foreign(tmp_path / "x.pth")


def test_a_file_without_tensors_is_refused(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="no tensors"):
        read_foreign(tmp_path / "x.pth")
