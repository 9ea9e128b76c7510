"""SemiCVT: a network of two branches, the label that both learn, and images as graphs of their classes."""

import pytest
import torch
import torch.nn.functional as F

from allspark.batch import Progress
from allspark.config.files import apply_overrides
from allspark.config.methods import SemiCVT
from allspark.config.schema import Config, ModelConfig
from allspark.errors import ConfigError
from allspark.kernels.logits import Logits
from allspark.methods import build_method
from allspark.methods.class_graphs import ClassGraphs
from allspark.methods.losses import reliable_cross_entropy
from allspark.methods.semicvt import mean_labels
from allspark.models.encoders import build_encoder
from allspark.models.semicvt import AttentionBlock, TransformerBranch, TwoBranchSegmenter
from tests.conftest import TINY
from tests.fakes import ENCODERS, tiny
from tests.golden.arrays import Arrays
from tests.golden.test_peers import close
from tests.helpers import batch_of, pixels


def build(*changes):
    torch.manual_seed(0)
    return build_method(apply_overrides(Config(), [*TINY, "method.name=semicvt", *changes]), 5)


def encoder_of(name):
    if name in ENCODERS:
        return build_encoder(tiny(name, output_stride=8 if name == "resnet" else None))
    return build_encoder(ModelConfig(encoder=name, pretrained="none", bottleneck="none"))


@pytest.mark.parametrize("name", ["resnet", "segformer", "efficientnet-lite0"])
def test_encoders_by_stages_give_the_maps_that_they_give_as_a_whole(name):
    torch.manual_seed(0)
    encoder, image, seen = encoder_of(name).eval(), torch.randn(2, 3, 65, 97), []
    maps = encoder(image, lambda number, x: seen.append(number) or x)
    assert seen == [0, 1, 2, 3] and [x.shape[1] for x in maps] == list(encoder.channels)
    for ours, theirs in zip(maps, encoder(image), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_what_a_stage_is_changed_to_is_what_the_next_one_reads():
    encoder, image = encoder_of("resnet").eval(), torch.randn(1, 3, 64, 64)
    plain = encoder(image)
    changed = encoder(image, lambda number, x: x + 1 if number == 1 else x)
    assert torch.equal(changed[0], plain[0]) and torch.equal(changed[1], plain[1] + 1)
    assert not torch.allclose(changed[3], plain[3])


@pytest.mark.parametrize("size", [(64, 96), (33, 70)])
def test_branches_have_maps_of_one_shape_and_the_network_is_their_mean(size):
    network = build("method.branch_channels=32").segmenter.eval()
    assert isinstance(network, TwoBranchSegmenter)
    image = torch.randn(2, 3, *size)
    features = network.encode(image)
    assert len(features.maps) == 7
    assert [x.shape for x in features.maps[1:4]] == [x.shape for x in features.maps[4:]]
    (read, one), (_, other) = network.branches(features)
    torch.testing.assert_close(network.hidden(features), read)
    assert not torch.equal(one.coarse, other.coarse)
    torch.testing.assert_close(network(image), (one.full() + other.full()) / 2)


def test_the_second_head_is_another_draw():
    network = build().segmenter
    weights = zip(network.decoder.named_parameters(), network.second.named_parameters(), strict=True)
    drawn = [(one, other) for (name, one), (_, other) in weights if name.endswith("weight") and one.dim() > 1]
    assert drawn and not any(torch.equal(one, other) for one, other in drawn)


def test_exchange_goes_both_ways():
    """What the encoder's stages give depends on the branch, and the other way round."""
    network = build("method.branch_channels=32").segmenter.eval()
    features = network.encode(torch.randn(1, 3, 64, 64))
    for source, target in (("branch.stages.0.attend", 3), ("encoder.body.stages.1", 6)):
        weights = network.get_submodule(source).parameters()
        found = torch.autograd.grad(features.maps[target].sum(), list(weights), retain_graph=True)
        assert any(x.any() for x in found), source


def test_attention_equals_a_plain_one():
    torch.manual_seed(0)
    block = AttentionBlock(32).double()
    x = torch.randn(1, 32, 8, 12, dtype=torch.float64)
    normed = F.layer_norm(x.flatten(2).mT, (32,), block.norm.weight, block.norm.bias, 1e-6)
    coarse = block.reduce(normed.mT.view_as(x)).flatten(2).mT  # (1, 6, 32)
    key, value = block.key_value(block.reduced_norm(coarse)).chunk(2, -1)
    query, heads = block.query(normed), []
    for head in range(8):
        part = slice(4 * head, 4 * head + 4)
        heads.append((query[..., part] @ key[..., part].mT / 2).softmax(-1) @ value[..., part])
    tokens = x.flatten(2).mT + block.project(torch.cat(heads, -1))
    close(block(x), (tokens + block.mlp(tokens)).mT.view_as(x))


def test_an_exchange_that_is_left_out_leaves_the_map_without_what_is_new():
    torch.manual_seed(0)
    side = TransformerBranch((8, 8, 8, 8), (4, 8, 16, 32), 32, 0.5).stages[0]["exchange"].local
    narrow = torch.randn(400, 8, 4, 4)
    out = side.back(narrow, side.spectrum(narrow))
    bare = side.up(narrow)
    left = (out == bare).flatten(1).all(1)
    assert 0.4 < left.double().mean() < 0.6
    new = side.eval().back(narrow, side.spectrum(narrow)) - bare
    torch.testing.assert_close((out - bare)[~left], 2 * new[~left], rtol=1e-4, atol=1e-5)


def test_labels_are_those_of_the_mean_of_probabilities():
    one, other = (3 * torch.randn(2, 5, 9, 7) for _ in range(2))
    logits = [Logits(x, (36, 28), (33, 28)) for x in (one, other)]
    mean = (logits[0].full().softmax(1) + logits[1].full().softmax(1)) / 2
    assert torch.equal(mean_labels(*logits), mean.argmax(1))


@pytest.mark.parametrize("percent", [80, 95, 100])
def test_reliable_cross_entropy_is_that_of_u2pl(percent):
    """The factor there counts ignored pixels too."""
    arrays = Arrays("peers/u2pl_unsup")
    y = arrays["y"]
    target = arrays[f"out_target_p{percent}"]
    term = reliable_cross_entropy(pixels(arrays["student_logits"]), y, target != 255, torch.ones_like(y, dtype=bool))
    close(term.mean(), arrays[f"out_loss_p{percent}"])


def naive_graph(graphs, features, probabilities):
    """One image, class by class; the published way, a fixed matrix for a learned one."""
    rows = F.adaptive_avg_pool2d(features, 10).flatten(1).mT
    centres, nodes = [], []
    for share in probabilities:
        centre = (features * share.flatten().softmax(0).view_as(share)).sum((1, 2))
        own = torch.cat([rows, centre[None]])
        nodes.append(F.elu((own @ own.mT).softmax(1) @ own @ graphs.first))
        centres.append(nodes[-1][-1])
    centre = torch.stack(centres)
    return torch.stack(nodes), (centre @ centre.mT).softmax(1) @ centre @ graphs.second


def test_graphs_equal_a_loop():
    torch.manual_seed(0)
    graphs = ClassGraphs(6).double()
    features = torch.randn(2, 2, 6, 20, 30, dtype=torch.float64)
    shares = torch.randn(2, 2, 4, 20, 30, dtype=torch.float64).softmax(2)
    found = [graphs(x, p, torch.ones(2, 20, 30, dtype=torch.bool)) for x, p in zip(features, shares, strict=True)]
    expected = []
    for image in range(2):
        one, other = (naive_graph(graphs, features[i, image], shares[i, image]) for i in range(2))
        pairs = zip(one, other, strict=True)
        expected.append(sum(F.mse_loss(F.layer_norm(a, (6,)), F.layer_norm(b, (6,))) for a, b in pairs))
    close(found[0].distance(found[1]), torch.stack(expected))


def test_graphs_do_not_see_padding():
    """Neither what lies there nor how much of it there is, where parts are whole."""
    graphs = ClassGraphs(6)
    features, shares = torch.randn(1, 6, 20, 20), torch.rand(1, 4, 20, 20).softmax(1)
    valid = torch.ones(1, 20, 20, dtype=torch.bool)
    valid[:, 12:] = False
    noise = torch.where(valid[:, None], features, torch.randn(1, 6, 20, 20))
    other = graphs(torch.randn(1, 6, 20, 20), shares, valid)
    one, two = (graphs(x, shares, valid) for x in (features, noise))
    torch.testing.assert_close(one.distance(other), two.distance(other), rtol=1e-6, atol=0)
    assert one.there.sum() == 61 and one.distance(two) < 1e-6 < one.distance(other)


def test_teachers_statistics_follow_its_own_passes_in_the_warm_up_too():
    method = build("method.supervised_epochs=1", "method.drop_path=0", "model.decoder_dropout=0")
    norm = method.teacher.network.decoder.norm
    before = norm.running_mean.clone()
    method(batch_of(method.views), Progress(0, 1, 4))
    after = norm.running_mean.clone()
    assert not torch.equal(before, after) and torch.equal(after, method.segmenter.decoder.norm.running_mean)
    method.segmenter.decoder.norm.running_mean.add_(1)
    method.after_step(Progress(0, 1, 4))
    assert torch.equal(norm.running_mean, after)


def test_settings_that_do_not_fit_are_one_line():
    with pytest.raises(ConfigError, match=r"method\.branch_channels: .+, got 48$"):
        apply_overrides(Config(), ["method.name=semicvt", "method.branch_channels=48"])
    short = ["model.encoder=resnet", "model.encoder_config={}", "model.encoder_config.depths=[1,1]"]
    sizes = ["model.encoder_config.hidden_sizes=[8,16]", "model.decoder=deeplabv3plus"]
    with pytest.raises(ConfigError, match=r"^method\.name: semicvt needs .* 4 stages at least, and this one has 3"):
        build(*short, *sizes)
    with pytest.raises(ConfigError, match=r"^model\.auxiliary_weight: semicvt has no head beside"):
        build("model.auxiliary_weight=0.4")


def test_published_defaults():
    settings = SemiCVT()
    assert (settings.filter, settings.drop_share, settings.graph_weight) == ("percentile", (0.2, 0.0), 0.1)
