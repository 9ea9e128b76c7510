"""The leaner Mix-FFN equals the plain one."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from allspark.config import ModelConfig
from allspark.models.encoders import build_encoder
from allspark.models.mix_ffn import GeluLinear
from tests.models.test_encoders import TINY


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_equals_gelu_and_linear_in_value_and_gradient(dtype, tolerance):
    torch.manual_seed(0)
    plain = nn.Linear(6, 4, dtype=dtype)
    lean = GeluLinear(6, 4, dtype=dtype)
    lean.load_state_dict(plain.state_dict())
    x = torch.randn(2, 5, 6, dtype=dtype, requires_grad=True)
    cotangent = torch.randn(2, 5, 4, dtype=dtype)
    results = []
    for layer, out in ((plain, plain(F.gelu(x))), (lean, lean(x))):
        results.append([out, *torch.autograd.grad(out, [x, layer.weight, layer.bias], cotangent)])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_gradients_pass_under_mixed_precision():
    torch.manual_seed(0)
    layer, x = GeluLinear(6, 4), torch.randn(3, 6, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16 and layer.weight.grad.dtype == x.grad.dtype == torch.float32
    expected = torch.autograd.grad(F.linear(F.gelu(x), layer.weight).sum(), x)[0]
    torch.testing.assert_close(x.grad, expected, rtol=0.05, atol=0.02)


def test_every_block_of_the_encoder_is_lean_and_keeps_its_names():
    config = ModelConfig(encoder="segformer", encoder_config=TINY["segformer"], pretrained="none")
    encoder = build_encoder(config)
    assert sum(isinstance(module, GeluLinear) for module in encoder.modules()) == 4
    relu = config.model_copy(update={"encoder_config": {**TINY["segformer"], "hidden_act": "relu"}})
    plain = build_encoder(relu)
    assert not any(isinstance(module, GeluLinear) for module in plain.modules())
    assert plain.state_dict().keys() == encoder.state_dict().keys()


def test_less_is_kept_for_backward():
    """Bytes that autograd holds between forward and backward, per MLP: without the output of GELU."""
    kept = []

    def pack(tensor):
        kept.append(tensor.untyped_storage().data_ptr())
        return tensor

    x = torch.randn(50, 64, requires_grad=True)
    counts = []
    for layer, before in ((nn.Linear(64, 8), F.gelu), (GeluLinear(64, 8), nn.Identity())):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            layer(before(x))
        counts.append(len(set(kept) - {layer.weight.untyped_storage().data_ptr()}))
    assert counts == [2, 1]
