"""The leaner Mix-FFN equals transformers' own."""

import copy

import pytest
import torch
from torch import nn
from transformers import SegformerConfig
from transformers.models.segformer.modeling_segformer import SegformerMixMLP

from allspark.config.schema import ModelConfig
from allspark.kernels.mix_ffn import MixFFN, save_memory
from allspark.models.encoders import build_encoder
from tests.fakes import ENCODERS


@pytest.fixture
def blocks():
    """transformers' own block and the lean one, with the same weights."""
    torch.manual_seed(0)
    plain = SegformerMixMLP(SegformerConfig(hidden_dropout_prob=0.0), in_features=6, hidden_features=16)
    lean = copy.deepcopy(plain)
    save_memory(nn.ModuleList([lean]), SegformerConfig(hidden_dropout_prob=0.0))
    assert type(lean) is MixFFN and type(plain) is SegformerMixMLP
    return plain, lean


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_equals_the_plain_block_in_value_and_gradient(blocks, dtype, tolerance):
    x = torch.randn(2, 15, 6, dtype=dtype, requires_grad=True)
    cotangent = torch.randn(2, 15, 6, dtype=dtype)
    results = []
    for block in blocks:
        out = block.to(dtype)(x, 3, 5)
        results.append([out, *torch.autograd.grad(out, [x, *block.parameters()], cotangent)])
    assert len(results[0]) == 8
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_gradients_pass_under_mixed_precision(blocks):
    plain, lean = blocks
    x = torch.randn(2, 15, 6, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = lean(x, 3, 5)
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert {p.grad.dtype for p in (x, *lean.parameters())} == {torch.float32}
    expected = torch.autograd.grad(plain(x, 3, 5).sum(), x)[0]
    torch.testing.assert_close(x.grad, expected, rtol=0.05, atol=0.02)


def test_every_block_of_the_encoder_is_lean_and_keeps_its_names():
    config = ModelConfig(encoder="segformer", encoder_config=ENCODERS["segformer"], pretrained="none")
    encoder = build_encoder(config)
    assert sum(isinstance(module, MixFFN) for module in encoder.modules()) == 4
    relu = config.model_copy(update={"encoder_config": {**ENCODERS["segformer"], "hidden_act": "relu"}})
    plain = build_encoder(relu)
    assert not any(isinstance(module, MixFFN) for module in plain.modules())
    assert plain.state_dict().keys() == encoder.state_dict().keys()


def test_one_of_three_hidden_maps_is_kept_for_backward(blocks):
    """Tensors of the hidden width that autograd holds between forward and backward."""
    kept = set()

    def pack(tensor):
        if tensor.numel() == 2 * 15 * 16:
            kept.add(tensor.untyped_storage().data_ptr())
        return tensor

    x = torch.randn(2, 15, 6, requires_grad=True)
    counts = []
    for block in blocks:
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = block(x, 3, 5)
        counts.append(len(kept))
        del out
    assert counts == [3, 1]
