"""DeepLabV3+ against a version written straight from the paper; the all-MLP head is in tests/golden."""

import pytest
import torch
import torch.nn.functional as F

from allspark.config.schema import Config, ModelConfig
from allspark.models.decoders import DeepLabV3Plus, SegformerHead
from allspark.models.dpt import DPTHead
from allspark.models.segmenter import build_segmenter
from tests.fakes import ENCODERS, tiny


def naive(state, low, high, rates, training):
    """Figure 2 and section 3 of the paper, with nothing but functions."""

    def block(x, name, rate=1):
        weight = state[f"{name}.0.weight"]
        size = weight.shape[-1]
        x = F.conv2d(x, weight, padding=rate * (size - 1) // 2, dilation=rate)
        mean = x.mean((0, 2, 3)) if training else state[f"{name}.1.running_mean"]
        var = x.var((0, 2, 3), unbiased=False) if training else state[f"{name}.1.running_var"]
        x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5) ** 0.5
        x = x * state[f"{name}.1.weight"][:, None, None] + state[f"{name}.1.bias"][:, None, None]
        return x.clamp_min(0)

    maps = [block(high, "pyramid.0")]
    maps += [block(high, f"pyramid.{i}", rate) for i, rate in enumerate(rates, 1)]
    pooled = block(F.adaptive_avg_pool2d(high, 1), "pooled")
    maps.append(F.interpolate(pooled, high.shape[2:], mode="bilinear"))
    context = block(torch.cat(maps, 1), "project")
    context = F.interpolate(context, low.shape[2:], mode="bilinear")
    fused = block(block(torch.cat([context, block(low, "low")], 1), "fuse.0"), "fuse.1")
    return F.conv2d(fused, state["classifier.weight"], state["classifier.bias"])


@pytest.mark.parametrize("training", [False, True])
def test_deeplab_equals_the_paper(training):
    torch.manual_seed(0)
    rates = (2, 3, 5)
    decoder = DeepLabV3Plus(6, 10, 8, 4, rates, dropout=0.0).double().train(training)
    for parameter in decoder.state_dict().values():
        if parameter.is_floating_point():
            parameter += 0.3 * torch.rand_like(parameter)
    state = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
    low, high = torch.randn(3, 6, 20, 14).double(), torch.randn(3, 10, 5, 4).double()
    torch.testing.assert_close(decoder([low, high]), naive(state, low, high, rates, training), rtol=1e-9, atol=1e-10)


def test_one_image_can_be_learned_from():
    """Its pooled features are one value a channel, which has no variance."""
    torch.manual_seed(0)
    decoder = DeepLabV3Plus(6, 10, 8, 4).train()
    logits = decoder([torch.randn(1, 6, 8, 8), torch.randn(1, 10, 2, 2)])
    logits.sum().backward()
    assert torch.isfinite(logits).all() and all(p.grad is not None for p in decoder.parameters())
    # Beside a second image, the batch's own statistics count.
    before = decoder.pooled[1].running_mean.clone()
    decoder([torch.randn(2, 6, 8, 8), torch.randn(2, 10, 2, 2)])
    assert not torch.equal(decoder.pooled[1].running_mean, before)


def test_the_baseline_has_the_published_shape():
    """ResNet-101 with DeepLabV3+ at output stride 16: 59.3 million parameters in the usual configuration."""
    model = ModelConfig(
        bottleneck="none", encoder="resnet-101", decoder="deeplabv3plus", output_stride=16, pretrained="none"
    )
    with torch.device("meta"):
        network = build_segmenter(model, 21, (64, 64), load_weights=False)
        logits = network(torch.zeros(2, 3, 513, 513))
    assert logits.shape == (2, 21, 513, 513) and network.num_classes == 21
    assert network.decoder.pyramid[2][0].dilation == (12, 12) and network.decoder.pyramid[0][0].out_channels == 256
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(59.3, abs=0.1)


def test_rates_double_at_stride_8():
    model = tiny("resnet", decoder="deeplabv3plus", output_stride=8, decoder_channels=8)
    network = build_segmenter(model, 3, (64, 64))
    assert [branch[0].dilation[0] for branch in network.decoder.pyramid] == [1, 12, 24, 36]


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("size", [(1, 1), (50, 77)])
def test_logits_of_deeplab_have_the_image_size_on_every_encoder(encoder, size):
    torch.manual_seed(0)
    config = Config(model=tiny(encoder, decoder="deeplabv3plus", decoder_channels=8))
    network = build_segmenter(config.model, 4, config.data.crop).double().eval()
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    together = network(images)
    assert together.shape == (2, 4, *size)
    torch.testing.assert_close(together[:1], network(images[:1]), rtol=1e-9, atol=1e-10)


HEADS = {
    "segformer": lambda: SegformerHead((4, 6, 8), 10, 5, dropout=0.0),
    "deeplabv3plus": lambda: DeepLabV3Plus(4, 8, 10, 5, (1, 2, 3), dropout=0.0),
    "dpt": lambda: DPTHead((4,) * 4, (4,) * 4, 10, 5),
}


@pytest.mark.parametrize("kind", HEADS)
def test_both_parts_of_a_decoder_are_the_decoder(kind):
    torch.manual_seed(0)
    decoder = HEADS[kind]().double()
    sizes = [(4, 6, 5)] * 4 if kind == "dpt" else [(4, 12, 10), (6, 6, 5), (8, 3, 3)]
    gradients = []
    for apart in (False, True):
        maps = [torch.sin(torch.arange(2.0 * c * h * w, dtype=torch.float64)).view(2, c, h, w) for c, h, w in sizes]
        maps = [x.requires_grad_() for x in maps]
        if apart:
            hidden = decoder.hidden(maps)
            assert hidden.shape[1] == decoder.classifier.in_channels
            logits = decoder.classify(hidden)
        else:
            logits = decoder(maps)
        logits.square().sum().backward()
        gradients.append([logits.detach(), *(x.grad for x in maps if x.grad is not None)])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)
