"""The textbook version equals the published arrays; the product needs fewer operations and bytes than it.

Operations and live bytes are counted, not timed: they are the same on every machine.
"""

import argparse
import json
import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from benchmarks import networks, run, shares, textbook
from benchmarks.cases import PARTS, Case
from benchmarks.measure import Command, measure, operations, peak_bytes

from allspark.batch import LabeledBatch, Progress, TrainBatch, UnlabeledBatch
from allspark.config.schema import Config
from allspark.methods import build_method
from allspark.models.allspark import AllSparkBottleneck, Guide
from allspark.models.decoders import SegformerHead
from tests.golden.arrays import Arrays

# Some gradients are zero in exact arithmetic (a bias before batch norm, a key bias before softmax).
CLOSE = {"rtol": 1e-9, "atol": 1e-12}


def test_textbook_bottleneck_equals_the_published_one():
    arrays = Arrays("bottleneck")
    module = textbook.TextbookBottleneck(24, 5, (6, 6), dropout=0.0).double()
    module.load_state_dict(arrays.part("state."))
    for step in range(4):
        get = arrays.part(f"step{step}.").__getitem__
        features = get("features").requires_grad_()
        out = module(features, Guide(2, get("logits_u"), bool(get("use_memory"))))
        module.zero_grad()
        out.backward(get("cotangent"))
        torch.testing.assert_close(out, get("out"), **CLOSE)
        torch.testing.assert_close(features.grad, get("grad.features"), **CLOSE)
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(parameter.grad, get(f"grad.{name}"), **CLOSE)
        torch.testing.assert_close(module.attn.kv_queue, get("memory"), **CLOSE)
        assert torch.equal(module.attn.queue_ptr, get("pointer"))
    torch.testing.assert_close(module.eval()(arrays["eval.features"]), arrays["eval.out"], **CLOSE)


def test_textbook_head_equals_the_published_one():
    arrays = Arrays("segformer_head")
    head = textbook.TextbookHead((8, 16, 20, 32), 20, 6, dropout=0.0).double()
    head.load_state_dict(arrays.part("state."))
    features = [arrays[f"c{stage}"].requires_grad_() for stage in range(1, 5)]
    torch.testing.assert_close(head.eval()(features), arrays["eval.out"], **CLOSE)
    out = head.train()(features)
    out.backward(arrays["train.cotangent"])
    torch.testing.assert_close(out, arrays["train.out"], **CLOSE)
    for name, parameter in head.named_parameters():
        torch.testing.assert_close(parameter.grad, arrays[f"train.grad.{name}"], **CLOSE)
    torch.testing.assert_close(head.linear_fuse["bn"].running_var, arrays["after.running_var"], **CLOSE)


def test_textbook_steps_equal_the_published_ones():
    arrays = Arrays("train_steps")
    sizes = {
        "depths": [1, 2, 1, 1],
        "hidden_sizes": [8, 16, 20, 32],
        "num_attention_heads": [1, 2, 5, 8],
        "sr_ratios": [8, 4, 2, 1],
    }
    config = textbook.SegformerConfig(**sizes, drop_path_rate=0.0)
    config._attn_implementation = "sdpa"  # eager computes its softmax in float32
    model = textbook.TextbookSegmenter(
        textbook.build_encoder(config),
        textbook.TextbookBottleneck(32, 5, (4, 4), dropout=0.0),
        textbook.TextbookHead(sizes["hidden_sizes"], 24, 5, dropout=0.0),
    ).double()
    model.backbone.load_state_dict(textbook.published_encoder(arrays.part("state.")))
    model.decoder.load_state_dict(arrays.part("state.decoder."))
    groups = [{"params": model.backbone.parameters()}, {"params": model.decoder.parameters()}]
    optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=1e-4)
    model.train()
    for step in range(4):
        for group, lr in zip(optimizer.param_groups, arrays["lr_per_step"][step].tolist(), strict=True):
            group["lr"] = lr
        image_l, image_u, mask = (arrays[f"step{step}.{name}"] for name in ("image_l", "image_u", "mask_l"))
        batch = TrainBatch(LabeledBatch(image_l.double(), mask.long()), UnlabeledBatch(image_u.double()))
        # The arrays were made one image at a time: in a batch, the published inference mixes the images.
        scores = torch.cat([textbook.pseudo_scores(model, image[None]) for image in batch.unlabeled.weak])
        losses = textbook.textbook_losses(model, batch, step >= int(arrays["warmup_steps"]), scores)
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
        torch.testing.assert_close(torch.stack(losses), arrays["losses"][step], **CLOSE)
    for name, tensor in arrays.part("final.decoder.").items():
        torch.testing.assert_close(model.decoder.state_dict()[name], tensor, **CLOSE)
    torch.testing.assert_close(textbook.pseudo_scores(model, arrays["eval.image"]), arrays["eval.logits"], **CLOSE)


def forward_backward(module, *inputs):
    def run():
        out = module(*inputs)
        out.backward(torch.ones_like(out))
        module.zero_grad()

    return run


def test_folded_head_needs_a_third_of_the_operations():
    widths, sizes = (64, 128, 320, 512), (33, 17, 9, 5)
    features = [torch.randn(1, c, n, n, requires_grad=True) for c, n in zip(widths, sizes, strict=True)]
    plain = forward_backward(textbook.TextbookHead(widths, 768, 21).train(), features)
    folded = forward_backward(SegformerHead(widths, 768, 21).train(), features)
    assert operations(plain) > 3 * operations(folded)
    assert peak_bytes(plain) > 1.5 * peak_bytes(folded)


def bottleneck_peak(make, classes):
    feature = torch.randn(2, 256, 3, 3, requires_grad=True)
    guide = Guide(1, torch.randn(1, classes, 12, 12), read_memory=True)
    return peak_bytes(forward_backward(make(256, classes, (3, 3)).train(), feature, guide))


def test_bottleneck_never_holds_the_map():
    """The more classes, the larger the map: the textbook version grows by several maps, the product hardly."""
    plain, product = (
        [bottleneck_peak(make, classes) for classes in (8, 24)]
        for make in (textbook.TextbookBottleneck, AllSparkBottleneck)
    )
    assert product[1] < 0.15 * plain[1]
    assert product[1] - product[0] < 0.1 * (plain[1] - plain[0])


def test_memory_write_has_no_loop_over_channels():
    """As many operations for many channels as for few."""

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.calls += 1
            return function(*args, **(kwargs or {}))

    calls = []
    for channels in (16, 64):
        memory = AllSparkBottleneck(channels, 3, (2, 2)).memory
        with Count() as count:
            memory.write(torch.randn(2, channels, 4), torch.randint(3, (2, channels)), (2, 2))
        calls.append(count.calls)
    assert calls[0] == calls[1]


def test_whole_step_needs_less():
    crop, classes = 65, 5
    config = Config.model_validate(
        {"data": {"crop": crop}, "model": {"encoder": "mit-b0", "pretrained": "none"}, "method": {"name": "allspark"}}
    )
    method = build_method(config, classes).train()
    mit = textbook.mit_config("mit-b0")
    model = textbook.TextbookSegmenter(
        textbook.build_encoder(mit),
        textbook.TextbookBottleneck(256, classes, (3, 3)),
        textbook.TextbookHead(mit.hidden_sizes, 256, classes),
    ).train()
    image = torch.randn(2, 1, 3, crop, crop)
    batch = TrainBatch(LabeledBatch(image[0], torch.randint(classes, (1, crop, crop))), UnlabeledBatch(image[1]))

    def step():
        method(batch, Progress(100, 1, 200)).loss.backward()
        method.zero_grad()

    def plain():
        textbook.textbook_losses(model, batch, read_memory=True)[-1].backward()
        model.zero_grad()

    assert operations(plain) > 1.2 * operations(step)
    assert peak_bytes(plain) > 1.2 * peak_bytes(step)


class Hold:
    """Holds ``size`` bytes for a moment."""

    def __init__(self, size):
        self.size = size

    def inputs(self):
        return self.size

    def run(self, size):
        torch.ones(size, dtype=torch.uint8).add_(1)


def test_peak_memory_sees_what_was_held():
    size = 64 * 2**20
    turn = measure(Hold(size), warmups=1, repeats=2, count=True)
    assert size * 0.9 < turn.peak_bytes < size * 1.5
    assert len(turn.seconds) == 2 and turn.operations == 0


def test_a_command_has_the_memory_of_its_process():
    small, large = (measure(Command([sys.executable, "-c", code]), 0, 1, count=False) for code in ("", "b'x' * 10**8"))
    assert 0.9 * 10**8 < large.peak_bytes - small.peak_bytes < 1.1 * 10**8
    with pytest.raises(RuntimeError, match="raise SystemExit"):
        measure(Command([sys.executable, "-c", "raise SystemExit(3)"]), 0, 1, count=False)


def test_peak_bytes_counts_what_lives_together():
    x = torch.randn(1000)

    def chain():
        y = x * 2
        y = y + 1  # the first product and this sum live together, then the product goes
        del y
        return F.relu(x)

    assert peak_bytes(chain) == 2 * 4 * 1000


def test_variants_are_measured_in_turns(monkeypatch):
    order = []

    def turn(case, variant, args, *, count):
        order.append((variant, count))
        return {"seconds": [len(order), 10.0], "peak_bytes": 5, "operations": 7 if count else None}

    monkeypatch.setattr(run, "_turn", turn)
    case = Case("head", "some", {"a": Hold, "product": Hold}, turns=2)
    found = run._measure(case, argparse.Namespace(turns=None))["variants"]
    assert order == [("a", True), ("product", True), ("a", False), ("product", False)]
    assert found["a"]["median_s"] == 6.5 and found["product"]["operations"] == 7


_LONG = {"inference", "step", "start", "evaluation"}  # minutes each: `make test-bench`


@pytest.mark.parametrize(
    "part", [pytest.param(part, marks=pytest.mark.bench if part in _LONG else pytest.mark.slow) for part in PARTS]
)
def test_every_part_runs(part, tmp_path):
    """As `make bench` does, with small sizes."""
    command = [sys.executable, run.__file__, "--quick", "--turns", "1", "--part", part, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["machine"]["torch"] == torch.__version__ and figures["results"]
    for result in figures["results"]:
        assert result["part"] == part and "product" in result["variants"]
        assert all(variant["median_s"] > 0 for variant in result["variants"].values())
        assert result["case"] in (tmp_path / "README.md").read_text()
    assert (tmp_path / "scaling.svg").is_file() == (part == "scaling")


def test_transformers_own_network_computes_the_same():
    torch.manual_seed(0)
    theirs = networks.transformers_segformer("mit-b0", classes=5).eval()
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    ours = networks.same_weights(theirs, "mit-b0").eval()
    image = torch.randn(2, 3, 70, 90)
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(image).coarse, theirs(image).logits, rtol=1e-4, atol=1e-4)


def test_inference_needs_half_the_operations():
    variants = networks.inference_case("mit-b0", 128, 1).variants
    works = [variants[name]("cpu") for name in ("textbook", "product")]
    counts = [operations(partial(work.run, work.inputs())) for work in works]
    assert counts[0] > 2 * counts[1]


def test_memory_of_a_step_hardly_grows_with_the_classes():
    """Crops of 129 pixels, 5 and 45 classes: losses and attention hold no map of their own for each class."""
    growth = []
    for variant in ("textbook", "product"):
        peaks = []
        for classes in (5, 45):
            work = networks.step_variants("mit-b0", 129, 2, classes)[variant]("cpu")
            inputs = work.inputs()
            peaks.append(peak_bytes(partial(work.run, inputs)))
        growth.append(peaks[1] - peaks[0])
    assert growth[1] < 0.25 * growth[0]


@pytest.mark.parametrize("variant", ["textbook", "product"])
def test_the_parts_of_a_step_are_told_apart(variant):
    step = networks.step_variants("mit-b0", 65, 2, 5)[variant]("cpu")
    seconds, total = shares.shares(step)
    assert {part for part, _ in seconds} == set(shares.PARTS) and {kind for _, kind in seconds} == set(shares.KINDS)
    assert all(second > 0 for second in seconds.values()) and 0.8 * total < sum(seconds.values()) <= total
    count, size = shares.floors(step)
    assert count > 0 and size > 5 * sum(4 * p.numel() for p in step.model.parameters())


def test_operations_count_what_torch_leaves_out():
    a, b, out = torch.randn(3, 5), torch.randn(5, 7), torch.zeros(3, 7)
    assert operations(lambda: a @ b) == operations(lambda: out.addmm_(a, b)) == 2 * 3 * 5 * 7
    query = torch.randn(2, 1, 6, 8, requires_grad=True)
    product = 2 * 2 * 6 * 6 * 8
    assert operations(lambda: F.scaled_dot_product_attention(query, query, query)) == 2 * product
    assert operations(lambda: F.scaled_dot_product_attention(query, query, query).sum().backward()) == 7 * product


def test_a_grouped_convolution_counts_its_own_channels_only():
    x = torch.randn(1, 6, 5, 5, requires_grad=True)
    layer = torch.nn.Conv2d(6, 6, 3, padding=1, groups=6)
    once = 2 * 6 * 25 * 9
    assert operations(lambda: layer(x)) == once
    assert operations(lambda: layer(x).sum().backward()) == 3 * once


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_operations_of_onednn_are_counted():
    x, weight = torch.randn(2, 3, 5), torch.randn(7, 5)
    linear = torch.ops.mkldnn._linear_pointwise
    assert operations(lambda: linear(x, weight, None, "none", [], "")) == 2 * 6 * 5 * 7
