"""The bottleneck's promises beyond the published numbers."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from allspark.errors import CheckpointError
from allspark.models.allspark import AllSparkBottleneck, Guide, SemanticMemory, group_channels
from allspark.models.segmenter import build_segmenter
from tests.fakes import tiny


def bottleneck(**kwargs):
    torch.manual_seed(0)
    return AllSparkBottleneck(12, 3, (4, 4), dropout=0.0, **kwargs).double()


def guide(labeled, unlabeled, size=(8, 8), read=True):
    return Guide(labeled, torch.randn(unlabeled, 3, *size, dtype=torch.float64), read)


class NaiveMemory:
    """Queues as Python lists, one channel at a time."""

    def __init__(self, channels):
        self.rows = [list(rows) for rows in channels.clone()]
        self.cursor = [0] * len(self.rows)

    def write(self, channels, classes):
        for image, image_classes in zip(channels, classes, strict=True):
            for channel, k in zip(image, image_classes.tolist(), strict=True):
                self.rows[k][self.cursor[k]] = channel
                self.cursor[k] = (self.cursor[k] + 1) % len(self.rows[k])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**31))
def test_memory_is_first_in_first_out_per_class(num_classes, slots, images, seed):
    torch.manual_seed(seed)
    memory = SemanticMemory(num_classes, slots, (2, 3))
    naive = NaiveMemory(memory.channels)
    for _ in range(3):
        channels, classes = torch.randn(images, slots, 6), torch.randint(num_classes, (images, slots))
        memory.write(channels, classes, (2, 3))
        naive.write(channels, classes)
        assert torch.equal(memory.channels, torch.stack([torch.stack(rows) for rows in naive.rows]))
        assert memory.cursor.tolist() == naive.cursor


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**31))
def test_memory_without_classes_is_one_queue(num_classes, slots, images, seed):
    torch.manual_seed(seed)
    memory = SemanticMemory(num_classes, slots, (2, 3))
    naive = NaiveMemory(memory.channels.reshape(1, num_classes * slots, 6))
    for step in range(1, 4):
        channels = torch.randn(images, slots, 6)
        memory.write(channels, None, (2, 3))
        naive.write(channels, torch.zeros(images, slots, dtype=torch.int64))
        assert torch.equal(memory.channels.reshape(-1, 6), torch.stack(naive.rows[0]))
        assert int(memory.written.sum()) == step * images * slots


@pytest.mark.parametrize("classwise", [True, False])
def test_a_write_waits_for_no_value_and_loops_over_no_channel(classwise):
    """The same few operations for 4 and for 400 channels, none of which reads a value back to the host."""

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            names.append(str(function))
            return function(*args, **(kwargs or {}))

    counts = []
    for slots in (4, 400):
        names = []
        memory = SemanticMemory(3, slots, (2, 2))
        channels, classes = torch.randn(2, slots, 4), torch.randint(3, (2, slots))
        with Watch():
            memory.write(channels, classes if classwise else None, (2, 2))
        assert not [name for name in names if "local_scalar" in name or "nonzero" in name or "bincount" in name]
        counts.append(len(names))
    assert counts[0] == counts[1] < 40


def test_memory_fill_counts_filled_slots():
    memory = SemanticMemory(3, 4, (2, 2))
    memory.write(torch.randn(2, 4, 4), torch.tensor([[0, 0, 0, 0], [0, 1, 1, 0]]), (2, 2))
    assert memory.fill.tolist() == [1.0, 0.5, 0.0]


def test_grouping_finds_the_most_similar_map():
    scores = torch.randn(2, 3, 4, 4)
    channels = torch.stack([scores[:, 2], scores[:, 0] * 7, -scores[:, 1]], 1)
    classes = group_channels(channels.flatten(2), scores, (4, 4))
    similarity = F.cosine_similarity(channels.flatten(2)[:, :, None], scores.flatten(2)[:, None], dim=3)
    assert classes[:, 0].eq(2).all() and classes[:, 1].eq(0).all()
    assert torch.equal(classes, similarity.argmax(2))


def test_paper_grouping_uses_probabilities():
    torch.manual_seed(0)
    channels, scores = torch.randn(2, 12, 16), 5 * torch.randn(2, 3, 4, 4)
    expected = torch.einsum("ukn,ucn->uck", scores.softmax(1).flatten(2), channels).argmax(2)
    assert torch.equal(group_channels(channels, scores, (4, 4), "paper"), expected)
    assert not torch.equal(expected, group_channels(channels, scores, (4, 4)))


@pytest.mark.parametrize("size", [(4, 4), (5, 3), (1, 1)])
def test_inference_ignores_the_batch_and_the_memory(size):
    module = bottleneck().eval()
    features = torch.randn(3, 12, *size, dtype=torch.float64)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    together = module(features)
    for i in range(3):
        torch.testing.assert_close(together[i : i + 1], module(features[i : i + 1]), rtol=1e-12, atol=1e-12)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("options", [{}, {"memory": False}, {"grouping": "off"}, {"grouping": "paper"}])
@pytest.mark.parametrize(("labeled", "unlabeled"), [(1, 1), (1, 3), (3, 1), (0, 2)])
def test_any_number_of_images_any_aspect(options, labeled, unlabeled):
    module = bottleneck(**options).train()
    features = torch.randn(labeled + unlabeled, 12, 3, 5, dtype=torch.float64, requires_grad=True)
    for read in (False, True):
        out = module(features, guide(labeled, unlabeled, (7, 9), read))
        assert out.shape == features.shape
        out.sum().backward()
    assert torch.isfinite(features.grad).all()


def test_labeled_output_depends_on_labeled_neighbours_through_nothing():
    """Another labelled image in the batch changes nothing for the first: all share keys, none shares queries."""
    module = bottleneck().train()
    features = torch.randn(4, 12, 4, 4, dtype=torch.float64)
    scores = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    both = module(features, Guide(2, scores, True))
    module.load_state_dict(state)
    alone = module(features[[0, 2, 3]], Guide(1, scores, True))
    torch.testing.assert_close(both[[0, 2, 3]], alone, rtol=1e-12, atol=1e-12)


def test_without_memory_the_batch_is_the_source():
    """memory: off equals a bottleneck whose memory is never read."""
    without, warm = bottleneck(memory=False).train(), bottleneck().train()
    warm.load_state_dict(without.state_dict(), strict=False)
    features, hint = torch.randn(3, 12, 4, 4, dtype=torch.float64), guide(1, 2, read=False)
    torch.testing.assert_close(without(features, hint), warm(features, hint), rtol=0, atol=0)


def test_the_memory_is_written_before_it_is_read_and_has_no_gradient():
    module = bottleneck().train()
    features = torch.randn(2, 12, 4, 4, dtype=torch.float64, requires_grad=True)
    out = module(features, guide(1, 1))
    assert int(module.memory.written.sum()) == 12
    (gradient,) = torch.autograd.grad(out[:1].sum(), features)
    assert gradient[0].abs().max() > 0 and gradient[1].abs().max() == 0


def gated_network():
    """A gated network, and one without bottleneck that is the same otherwise."""
    networks = []
    for name in ("allspark", "none"):
        torch.manual_seed(0)
        config = tiny("segformer", decoder_channels=16, decoder_dropout=0, drop_path=0, bottleneck_gate=True)
        networks.append(build_segmenter(config.model_copy(update={"bottleneck": name}), 3, (64, 64)))
    return networks


def test_a_gate_leaves_the_network_unchanged_at_first_and_opens_then():
    gated, plain = gated_network()
    images = torch.randn(3, 3, 64, 96)
    logits = gated.logits(images, Guide(1, torch.randn(2, 3, 8, 8), read_memory=True)).full()
    assert torch.equal(logits, plain.logits(images).full())  # in training, batch norm and all
    assert torch.equal(gated.eval()(images), plain.eval()(images))
    gradient = torch.autograd.grad(logits.square().sum(), gated.bottleneck.gate)[0]
    assert gradient.shape == (32,) and gradient.all()


def test_a_gate_adds_what_is_reborn():
    gated, plain = bottleneck(gate=True), bottleneck()
    feature = torch.randn(2, 12, 4, 4, dtype=torch.float64)
    gated.gate.data = torch.arange(12, dtype=torch.float64) - 3
    expected = torch.stack([feature[:, c] + (c - 3) * plain.eval()(feature)[:, c] for c in range(12)], 1)
    torch.testing.assert_close(gated.eval()(feature), expected, rtol=1e-12, atol=1e-12)


def labeled_output(own, images=3, train=True):
    """What a bottleneck makes of labelled images beside two unlabelled ones, and what inference makes of them."""
    module = bottleneck(own=own).train(train)
    torch.manual_seed(1)
    features = torch.randn(images + 2, 12, 4, 4, dtype=torch.float64)
    scores = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    return module(features, Guide(images, scores, read_memory=True))[:images], module(features[:images])


def test_the_own_path_is_that_of_inference():
    assert torch.equal(*labeled_output(own=1.0))
    assert not torch.isclose(*labeled_output(own=0.0)).all(3).all(2).all(1).any()  # for no image
    assert torch.equal(labeled_output(own=0.5, train=False)[0], labeled_output(own=0.0)[0])  # training alone


def test_the_own_path_is_drawn_for_each_image():
    drawn, alone = labeled_output(own=0.3, images=400)
    own = (drawn == alone).flatten(1).all(1)
    assert torch.equal(drawn[~own], labeled_output(own=0.0, images=400)[0][~own])
    assert abs(float(own.double().mean()) - 0.3) < 4 * (0.3 * 0.7 / 400) ** 0.5
    both = (own[1:] & own[:-1]).double().mean()  # neighbours are drawn one by one
    assert abs(float(both) - 0.09) < 4 * (0.09 * 0.91 / 200) ** 0.5


def test_without_the_own_path_nothing_is_drawn():
    module, features, hint = bottleneck().train(), torch.randn(3, 12, 4, 4, dtype=torch.float64), guide(1, 2)
    before = torch.get_rng_state()
    module(features, hint)
    assert torch.equal(torch.get_rng_state(), before)


def test_inference_from_the_memory_is_the_labelled_path_of_training():
    module = bottleneck().train()
    torch.manual_seed(1)
    features = torch.randn(5, 12, 4, 4, dtype=torch.float64)
    trained = module(features, guide(3, 2))[:3]
    memory = {name: value.clone() for name, value in module.memory.state_dict().items()}
    module.eval()
    for i in range(3):  # each image for itself
        recalled = module(features[i : i + 1], from_memory=True)
        torch.testing.assert_close(recalled, trained[i : i + 1], rtol=1e-12, atol=1e-12)
        assert not torch.allclose(recalled, module(features[i : i + 1]))
    assert all(torch.equal(value, memory[name]) for name, value in module.memory.state_dict().items())


def test_inference_from_the_memory_on_another_grid():
    """A naive version: every channel of the memory is resized as an image, one row of scores a query channel."""
    module = bottleneck(num_heads=1).eval()
    feature = torch.randn(1, 12, 6, 3, dtype=torch.float64)
    resized = F.interpolate(module.memory.channels.view(3, 12, 4, 4), (6, 3), mode="bilinear").reshape(36, 18)
    tokens = F.gelu(module.project_in(feature))[0].flatten(1).T  # (n, c)
    queries = module.labeled.query.weight @ module.norm_in(tokens).T  # (c, n)
    blocks = resized.split(12)  # the projections mix the channels of one class
    keys = torch.cat([module.labeled.key.weight @ block for block in blocks])
    values = torch.cat([module.labeled.value.weight @ block for block in blocks])
    scores = queries @ keys.T
    weights = ((scores - scores.mean()) / (scores.var(correction=0) + 1e-5).sqrt()).softmax(1)
    attended = module.labeled.out.weight @ (weights @ values)
    out = F.gelu(module.project_out(module.norm_out(tokens + attended.T).T.view(1, 12, 6, 3)))
    torch.testing.assert_close(module(feature, from_memory=True), out, rtol=1e-10, atol=1e-10)


def test_shapes_are_checked_in_tests():
    if not hasattr(AllSparkBottleneck.forward, "__wrapped__"):
        raise AssertionError("run pytest with the options of pyproject.toml: the shape checks are off")
    with pytest.raises(Exception, match="b c h w"):
        bottleneck()(torch.zeros(12, 4, 4, dtype=torch.float64))


def test_another_layout_is_named():
    with pytest.raises(CheckpointError, match=r"map_in\.0\.weight"):
        AllSparkBottleneck.from_reference({"foo": torch.zeros(1)})


def test_the_age_of_the_memory_equals_a_naive_queue():
    torch.manual_seed(0)
    slots, classes = 6, 3
    memory = SemanticMemory(classes, slots, (2, 2))
    queues = [[] for _ in range(classes)]  # of (number of the write), newest last
    for write in range(1, 8):
        members = torch.randint(0, classes - (write < 4), (2, slots))
        memory.write(torch.randn(2, slots, 4), members, (2, 2))
        for k in members.flatten().tolist():
            queues[k] = [*queues[k], write][-slots:]
        ages = [write - sum(queue) / len(queue) if queue else float("nan") for queue in queues]
        torch.testing.assert_close(memory.age, torch.tensor(ages, dtype=torch.float64), equal_nan=True)
