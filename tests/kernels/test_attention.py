"""The fast channel attention against an explicit textbook version, in value and gradient."""

import pytest
import torch
import torch.nn.functional as F

from allspark.kernels import attention
from allspark.kernels.attention import channel_attention


def textbook(query, key, value):
    """Store the map: scores, instance norm over the whole map of each group, softmax, product."""
    key, value = (x.expand(len(query), -1, -1) for x in (key, value))
    scores = query @ key.mT
    scores = F.instance_norm(scores.unsqueeze(1), eps=1e-5).squeeze(1)
    return scores.softmax(2) @ value


def draw(groups, tokens, rows, cols, shared, offset=0.0):
    query = torch.randn(groups, rows, tokens, dtype=torch.float64) + offset
    key, value = torch.randn(2, 1 if shared else groups, cols, tokens, dtype=torch.float64) + offset
    return [x.requires_grad_() for x in (query, key, value)]


@pytest.mark.parametrize(
    ("groups", "tokens", "rows", "cols", "shared"),
    [(1, 7, 5, 5, False), (4, 36, 24, 24, False), (2, 36, 48, 240, True), (3, 5, 300, 17, True), (2, 1, 3, 4, False)],
)
def test_equals_textbook_in_value_and_gradient(groups, tokens, rows, cols, shared, monkeypatch):
    monkeypatch.setattr(attention, "_ROWS", 70)
    monkeypatch.setattr(attention, "_COLUMNS", 50)
    torch.manual_seed(0)
    inputs = draw(groups, tokens, rows, cols, shared)
    cotangent = torch.randn(groups, rows, tokens, dtype=torch.float64)
    results = []
    for function in (channel_attention, textbook):
        out = function(*inputs)
        results.append([out, *torch.autograd.grad(out, inputs, cotangent)])
    for fast, slow in zip(*results, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-11)


def test_variance_does_not_cancel_in_float32():
    """A mean score a thousand times its spread must not eat the spread."""
    torch.manual_seed(0)
    inputs = draw(2, 16, 12, 40, True, offset=30.0)
    exact = textbook(*inputs)
    single = channel_attention(*(x.float() for x in inputs))
    torch.testing.assert_close(single.double(), exact, rtol=1e-2, atol=1e-2)


def test_a_group_does_not_see_the_others():
    torch.manual_seed(0)
    query, key, value = draw(3, 9, 8, 8, False)
    together = channel_attention(query, key, value)
    for i in range(3):
        alone = channel_attention(*(x[i : i + 1] for x in (query, key, value)))
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-12, atol=1e-12)


def test_no_groups_is_no_work():
    query, key, value = draw(0, 4, 6, 6, True)
    assert channel_attention(query, key, value).shape == (0, 6, 4)


def with_dropout(inputs, dropout, seed):
    torch.manual_seed(seed)
    out = channel_attention(*inputs, dropout=dropout)
    return out, torch.autograd.grad(out.sum(), inputs)


def test_dropout_repeats_with_the_seed_and_differs_without():
    torch.manual_seed(0)
    inputs = draw(2, 9, 150, 60, True)
    first, again, other = (with_dropout(inputs, 0.3, seed) for seed in (1, 1, 2))
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert (first[0] - other[0]).abs().max() > 1e-3


def test_dropout_gradient_is_that_of_its_own_mask(monkeypatch):
    """Backward draws each tile's mask again: compare with autograd through the stored map under the same mask."""
    monkeypatch.setattr(attention, "_ROWS", 4)
    monkeypatch.setattr(attention, "_COLUMNS", 6)
    torch.manual_seed(0)
    query, key, value = inputs = draw(1, 6, 10, 14, False)
    torch.manual_seed(5)
    keep = attention._KeepMask(0.4, int(torch.randint(2**62, ())))
    mask = torch.empty(10, 14).double()
    for rows in (slice(0, 4), slice(4, 8), slice(8, 10)):
        for columns in (slice(0, 6), slice(6, 12), slice(12, 14)):
            tile = mask[rows, columns]
            tile.copy_(keep.draw(torch.empty(tile.shape).double()))
    scores = F.instance_norm((query @ key.mT).unsqueeze(1)).squeeze(1)
    expected = (scores.softmax(2) * mask / keep.share) @ value
    out, grads = with_dropout(inputs, 0.4, 5)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-11)
    for fast, slow in zip(grads, torch.autograd.grad(expected.sum(), inputs), strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_masks_drop_the_share_they_promise(dropout):
    keep = attention._KeepMask(dropout, 3)
    masks = torch.stack([keep.draw(torch.empty(333, 31)) for _ in range(20)])
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    assert keep.share == pytest.approx(1 - dropout, abs=1e-5)
    assert float(masks.mean()) == pytest.approx(1 - dropout, abs=0.005)
    assert not torch.equal(masks[0], masks[1])


def test_dropout_keeps_the_mean():
    torch.manual_seed(0)
    inputs = draw(1, 4, 8, 600, False)
    torch.manual_seed(0)
    outs = torch.stack([channel_attention(*inputs, dropout=0.5) for _ in range(200)])
    torch.testing.assert_close(outs.mean(0), channel_attention(*inputs), rtol=0, atol=0.05)


def test_the_map_is_never_stored():
    """Forward and backward of 512 x 4096 scores allocate no tensor as large as the map."""
    query, key, value = (x.detach().float().requires_grad_() for x in draw(1, 8, 512, 4096, False))
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            sizes.extend(x.numel() for x in (result if isinstance(result, tuple) else [result]) if torch.is_tensor(x))
            return result

    with Watch():
        channel_attention(query, key, value, dropout=0.1).sum().backward()
    assert max(sizes) <= attention._ROWS * attention._COLUMNS < 512 * 4096


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_gpu_equals_textbook():
    torch.manual_seed(0)
    inputs = [x.detach().float().cuda().requires_grad_() for x in draw(2, 289, 128, 512, True)]
    for fast, slow in zip(
        torch.autograd.grad(channel_attention(*inputs).square().sum(), inputs),
        torch.autograd.grad(textbook(*inputs).square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(fast, slow, rtol=2e-3, atol=2e-3)
