"""Both libraries give the same products."""

import pytest
import torch
from torch import nn

from allspark.kernels import matmul as products
from allspark.kernels.attention import channel_attention


@pytest.fixture(params=[False, True], ids=["MKL", "oneDNN"])
def library(request, monkeypatch):
    """Each of the two libraries, whatever the processor."""
    if request.param and not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(products, "onednn_is_faster", lambda: request.param)


def close(found, expected):
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(7,), (2, 5, 7), (1, 1, 7), (0, 7)])
@pytest.mark.parametrize("width", [3, 11])
def test_linear_equals_double_precision(library, shape, width, bias):
    torch.manual_seed(0)
    plain = nn.Linear(7, width, bias=bias)
    layer = nn.Sequential(plain)
    products.use_faster_products(layer)
    assert type(layer[0]) is products.Linear
    exact = nn.Linear(7, width, bias=bias).double()
    exact.load_state_dict(plain.state_dict())
    x = torch.randn(shape, requires_grad=True)
    cotangent = torch.randn(*shape[:-1], width)
    out, wanted = layer(x), exact(x.double())
    close(out, wanted)
    for a, b in zip(
        torch.autograd.grad(out, [x, *layer.parameters()], cotangent),
        torch.autograd.grad(wanted, [x, *exact.parameters()], cotangent.double()),
        strict=True,
    ):
        close(a, b.double())


def test_a_gradient_of_a_gradient_is_refused_not_wrong(library):
    layer, x = products.Linear(4, 3), torch.randn(2, 4, requires_grad=True)
    grad = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)[0]
    if products.onednn_is_faster():
        with pytest.raises(RuntimeError, match="once_differentiable"):
            grad.sum().backward()
    else:
        grad.sum().backward()
        assert layer.weight.grad.abs().sum() > 0


def test_only_what_is_asked_for_gets_a_gradient(library):
    layer = products.Linear(4, 3)
    layer.bias.requires_grad_(False)
    layer(torch.randn(2, 4)).sum().backward()
    assert layer.weight.grad is not None and layer.bias.grad is None


@pytest.mark.parametrize("transposed", [(False, False), (True, False), (False, True), (True, True)])
def test_products_of_views(library, transposed):
    torch.manual_seed(0)
    a, b = (torch.randn(5, n).mT if t else torch.randn(n, 5) for n, t in zip((3, 4), transposed, strict=True))
    close(products.product(a, b), a.double() @ b.double().mT)
    out = torch.ones(3, 4)
    assert products.add_product(out, a, b) is out
    close(out, 1 + a.double() @ b.double().mT)


def test_oneDNN_gets_no_gaps(library, monkeypatch):
    """Views with gaps, as one head of several is: one such product took 300 ms instead of 0.3."""
    torch.manual_seed(0)
    a, b = torch.randn(3, 10)[:, :5], torch.randn(5, 8).mT[:4]
    given = []
    multiply = torch.ops.mkldnn._linear_pointwise

    def recorded(*arguments):
        given.extend(arguments[:2])
        return multiply(*arguments)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", recorded)
    close(products.product(a, b), a.double() @ b.double().mT)
    assert len(given) == 2 * products.onednn_is_faster()
    assert all(x.is_contiguous() or x.mT.is_contiguous() for x in given)


@pytest.mark.parametrize(("rows", "columns"), [(3, 8), (8, 3)])
def test_weight_gradient(library, rows, columns):
    torch.manual_seed(0)
    grad, x = torch.randn(20, rows), torch.randn(20, columns)
    close(products.weight_gradient(grad, x), grad.double().mT @ x.double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mixing_channels(dtype):
    torch.manual_seed(0)
    weight, x = torch.randn(4, 3, dtype=dtype, requires_grad=True), torch.randn(2, 3, 5, dtype=dtype)
    x.requires_grad_()
    found, wanted = products.mix_channels(weight, x), weight.double() @ x.double()
    close(found, wanted)
    cotangent = torch.randn_like(found)
    for a, b in zip(
        torch.autograd.grad(found, [weight, x], cotangent),
        torch.autograd.grad(wanted, [weight, x], cotangent.double()),
        strict=True,
    ):
        close(a, b.double())


def test_channel_attention_by_either_library(library):
    torch.manual_seed(0)
    inputs = [torch.randn(1, n, 9, requires_grad=True) for n in (1100, 600, 600)]
    found = channel_attention(*inputs)
    wanted = channel_attention(*(x.double() for x in inputs))
    close(found, wanted)
    for a, b in zip(torch.autograd.grad(found.sum(), inputs), torch.autograd.grad(wanted.sum(), inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_mixed_precision_is_left_to_torch(library):
    layer = products.Linear(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(2, 4)).dtype == torch.bfloat16
