"""What CLIP reads and says, with a tiny model of random weights; and what becomes of its labels."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from allspark.batch import IMAGENET, Progress
from allspark.config.files import apply_overrides
from allspark.engine.checkpoint import checkpoint_path, load_checkpoint
from allspark.engine.train import train
from allspark.errors import ConfigError
from allspark.methods import build_method
from allspark.methods.losses import trusted_cross_entropy
from allspark.models.clip import ClipLabeler, best_concepts
from tests.helpers import StopAfter, assert_same_run, batch_of, pixels

NAMES = ("sky", "grass", "car", "dog", "road")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A folder of a CLIP model that spells words letter by letter."""
    folder = tmp_path_factory.mktemp("clip")
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = small | {"vocab_size": len(tokens), "bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=small | {"image_size": 32, "patch_size": 16}, projection_dim=8)
    model = CLIPModel(config)
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3)
    model.save_pretrained(folder)
    return folder


def test_clip_says_of_a_position_what_its_own_value_says(clip):
    """With one layer, no position can know of another one; and classes are told apart by their texts."""
    labeler = ClipLabeler(str(clip), IMAGENET, {"car": ("van", "bus")}, 5)
    labeler.read(NAMES)
    assert labeler.owners.tolist() == [0, 1, 2, 2, 3, 4]
    torch.testing.assert_close(labeler.texts.norm(dim=1), torch.ones(6))
    labeler.encoder.layers = torch.nn.ModuleList()
    torch.manual_seed(1)
    image = torch.randn(2, 3, 32, 48)
    other = image.clone()
    other[:, :, :, 16:] += 1
    one, two = labeler(image), labeler(other)
    assert one.coarse.shape == (2, 5, 2, 3) and one.size == (32, 48)
    torch.testing.assert_close(one.coarse[..., :1], two.coarse[..., :1])
    assert not torch.allclose(one.coarse[..., 1:], two.coarse[..., 1:])
    assert one.coarse.abs().max() <= 100
    alone = ClipLabeler(str(clip), IMAGENET, {"car": ("bus",)}, 5)
    alone.read(NAMES)
    alone.encoder.layers = torch.nn.ModuleList()
    torch.testing.assert_close(alone(image).coarse[:, [0, 1, 3, 4]], one.coarse[:, [0, 1, 3, 4]])
    assert (alone(image).coarse[:, 2] <= one.coarse[:, 2]).all()


def test_its_embeddings_are_those_of_clip_but_for_the_last_attention(clip):
    """With the last layer's values set to nothing, its attention adds the same to all positions in either way."""
    labeler = ClipLabeler(str(clip), IMAGENET, {}, 5)
    labeler.read(NAMES)
    model = CLIPModel.from_pretrained(clip)
    for last in (labeler.last, model.vision_model.encoder.layers[-1]):
        last.self_attn.v_proj.weight.data.zero_()
    rgb = torch.rand(1, 3, 32, 32)
    mean, std = (torch.tensor(x)[:, None, None] for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    theirs, spread = (
        torch.tensor(x)[:, None, None]
        for x in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )
    tokens = model.vision_model((rgb - theirs) / spread).last_hidden_state[:, 1:]
    embedded = F.normalize(model.visual_projection(model.vision_model.post_layernorm(tokens)), dim=2)
    cosines = 100 * embedded @ labeler.texts.mT
    ours = labeler((rgb - mean) / std).coarse.flatten(2).mT
    torch.testing.assert_close(ours, cosines.detach(), rtol=1e-4, atol=1e-4)


def test_images_of_other_sizes_are_brought_to_whole_patches(clip):
    labeler = ClipLabeler(str(clip), IMAGENET, {}, 5)
    labeler.read(NAMES)
    logits = labeler(torch.randn(1, 3, 33, 40))
    assert logits.coarse.shape == (1, 5, 3, 3) and logits.full().shape == (1, 5, 33, 40)


def test_what_is_no_clip_model_is_refused(tmp_path, clip):
    with pytest.raises(ConfigError, match=r"^method.clip: .*nowhere is no folder of a CLIP model"):
        ClipLabeler(str(tmp_path / "nowhere"), IMAGENET, {}, 5)
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ConfigError, match=r"^method.clip: .*set method.clip=none$"):
        ClipLabeler(str(tmp_path), IMAGENET, {}, 5)
    with pytest.raises(ConfigError, match=r"^method.concepts: no class 'lake'; there are sky, "):
        ClipLabeler(str(clip), IMAGENET, {"lake": ("pond",)}, 5).read(NAMES)


def built(config, clip, *changes):
    torch.manual_seed(0)
    method = build_method(apply_overrides(config, ["method.name=semivl", f"method.clip={clip}", *changes]), 5)
    method.name_classes(NAMES)
    return method


@pytest.mark.parametrize("over", ["labels", "valid", "all"])
def test_its_labels_are_terms_whose_weight_falls(tiny_config, clip, over):
    method = built(tiny_config, clip, "method.clip_confidence=0.9999", f"method.clip_mean={over}")
    valid = torch.rand(2, 64, 64) < 0.8
    batch = batch_of(method.views, size=(64, 64), valid=valid)
    for step, weight in ((0, 0.1), (3, 0.025)):
        output = method(batch, Progress(step, 1, 4))
        parts = {name: term.weight for name, term in output.terms.items() if name.startswith("clip_")}
        expected = {"clip_feature": weight / 2, "clip_strong1": weight / 4, "clip_strong2": weight / 4}
        assert parts == pytest.approx(expected)
    output.loss.backward()
    assert all(p.grad is None for p in method.clip.parameters())
    known = method.counts(batch)
    assert output.terms.keys() - known.keys() == (set(expected) if over == "labels" else set())
    assert all(int(count) == int(output.terms[name].count) for name, count in known.items())
    counted, most = int(output.terms["clip_feature"].count), {"all": 2 * 64 * 64}.get(over, int(valid.sum()))
    assert counted == most if over != "labels" else 0 < counted < most


def test_without_clip_it_is_unimatch(tiny_config):
    found = []
    for name in ("semivl", "unimatch"):
        torch.manual_seed(0)
        method = build_method(apply_overrides(tiny_config, [f"method.name={name}", "method.confidence=0.2"]), 5)
        torch.manual_seed(1)
        found.append(method(batch_of(method.views, size=(64, 64)), Progress(0, 1, 4)).loss)
    assert torch.equal(*found)


@pytest.mark.parametrize("trust", ["share", "confidence"])
def test_images_can_be_trusted_as_a_whole(tiny_config, trust):
    changes = ["method.name=semivl", f"method.trust={trust}", "method.confidence=0.25"]
    method = build_method(apply_overrides(tiny_config, changes), 5)
    output = method(batch_of(method.views, size=(64, 64), valid=torch.rand(2, 64, 64) < 0.7), Progress(0, 1, 4))
    assert output.terms["strong1"].mean() > 0 and 0 < output.metrics["kept"] <= 1
    nothing = batch_of(method.views, size=(64, 64), valid=torch.zeros(2, 64, 64, dtype=torch.bool))
    assert method(nothing, Progress(0, 1, 4)).terms["strong1"].mean() == 0


def test_the_mean_trust_of_an_image_weighs_its_pixels():
    torch.manual_seed(0)
    logits, target = torch.randn(3, 4, 5, 6, dtype=torch.float64), torch.randint(0, 4, (3, 5, 6))
    trust, valid = torch.rand(3, 5, 6, dtype=torch.float64), torch.rand(3, 5, 6) < 0.7
    term = trusted_cross_entropy(pixels(logits), target, trust, valid, "confidence")
    losses = F.cross_entropy(logits, target, reduction="none")
    expected = sum(losses[i][valid[i]].sum() * trust[i][valid[i]].mean() for i in range(3)) / valid.sum()
    torch.testing.assert_close(term.mean(), expected, rtol=1e-12, atol=0)


def test_a_run_with_clip_resumes_exactly(tiny_config, tiny_folder, clip, tmp_path):
    changes = ["method.name=semivl", f"method.clip={clip}", "method.clip_confidence=0", f"data.root={tiny_folder}"]
    config = apply_overrides(tiny_config, changes)
    train(config, tmp_path / "whole", sinks=[])
    texts = load_checkpoint(checkpoint_path(tmp_path / "whole", "last")).tensors["method.clip.texts"]
    assert texts.norm(dim=1).allclose(torch.ones(len(texts)))
    with pytest.raises(BaseException, match="stopped after step 3"):
        train(config, tmp_path / "parts", sinks=[StopAfter(3)])
    train(config, tmp_path / "parts", resume=True, sinks=[])
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_the_likeliest_of_a_classs_texts_counts():
    scores = torch.tensor([1.0, 5.0, 2.0, 7.0, 3.0])[None, :, None, None]
    assert best_concepts(scores, torch.tensor([0, 1, 1, 2, 2]), 3).flatten().tolist() == [1, 5, 7]
