"""Earlier students: which are kept, which are asked, and what they cost."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from allspark.batch import Progress
from allspark.config.files import apply_overrides
from allspark.engine import fit
from allspark.errors import ConfigError
from allspark.methods import build_method
from allspark.runtime import host_memory as module
from tests.helpers import batch_of


def build(config, *changes):
    return build_method(apply_overrides(config, ["method.name=prevmatch", "method.history=3", *changes]), 5)


def mark(network, value):
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data.fill_(value)


def marks(history):
    return [int(next(network.parameters()).flatten()[0]) for network in history.networks]


def test_the_best_so_far_are_kept_and_the_oldest_goes(tiny_config):
    method = build(tiny_config, "method.history_after=2")
    for epoch in range(1, 8):
        mark(method.segmenter, epoch)
        method.after_validation(Progress(epoch, 1, 10), best=epoch != 4)
    assert marks(method.history) == [6, 7, 5] and len(method.history) == 3  # 2 and 3 went
    assert all(x.flatten()[0] == 7 for x in method.history.networks[1].state_dict().values())
    assert not any(network.training for network in method.train().history.networks)


def test_they_come_back_with_a_checkpoint(tiny_config):
    method, other = build(tiny_config), build(tiny_config)
    for epoch in (1, 2):
        mark(method.segmenter, epoch)
        method.after_validation(Progress(epoch, 1, 10), best=True)
    other.load_state_dict(method.state_dict())
    assert len(other.history) == 2 and marks(other.history)[:2] == [1, 2]
    mark(other.segmenter, 3)
    other.after_validation(Progress(3, 1, 10), best=True)
    assert marks(other.history) == [1, 2, 3]


def test_one_to_a_few_are_drawn_with_weights_of_a_dirichlet_distribution(tiny_config):
    history = build(tiny_config, "method.history=4").history
    for _ in range(4):
        history.keep(history.networks[0])
    draws = [history.draw(3, seed) for seed in range(6000)]
    assert draws[:50] == [history.draw(3, seed) for seed in range(50)] and draws[0] != draws[1]
    sizes, places = Counter(map(len, draws)), Counter(place for draw in draws for place in draw)
    assert sizes.keys() == {1, 2, 3} and all(abs(n - 2000) < 150 for n in sizes.values())
    assert places.keys() == set(range(4)) and all(abs(n - 3000) < 200 for n in places.values())
    weights = torch.tensor([list(draw.values()) for draw in draws if len(draw) == 2], dtype=torch.float64)
    torch.testing.assert_close(weights.sum(1), torch.ones(len(weights), dtype=torch.float64))
    first = weights[:, 0]  # uniform: mean 1/2, variance 1/12
    assert abs(float(first.mean()) - 1 / 2) < 0.02 and abs(float(first.var()) - 1 / 12) < 0.005


def test_no_more_are_drawn_than_there_are(tiny_config):
    history = build(tiny_config).history
    history.keep(history.networks[0])
    assert all(history.draw(3, seed).keys() == {0} for seed in range(20))


def test_the_past_has_a_say_but_is_not_trained(tiny_config):
    method = build(tiny_config, "method.old_confidence=0", "method.confidence=1")
    progress = Progress(2, 1, 4)
    batch = batch_of(method.views, size=(64, 64))
    alone = method(batch, progress)
    method.after_validation(progress, best=True)
    before = {name: x.clone() for name, x in method.history.state_dict().items()}
    output = method(batch, progress)
    assert output.terms.keys() - alone.terms.keys() == {"old_feature", "old_strong1", "old_strong2"}
    assert output.terms["strong1"].mean() == 0 and output.terms["old_strong1"].mean() > 0
    sum(term.mean() for name, term in output.terms.items() if name.startswith("old_")).backward()
    assert any(p.grad is not None and p.grad.any() for p in method.segmenter.parameters())
    assert all(p.grad is None for p in method.history.parameters())
    assert all(torch.equal(x, before[name]) for name, x in method.history.state_dict().items())


def test_a_past_that_fits_no_memory_is_refused(tiny_config, monkeypatch):
    size = sum(x.nbytes for x in build(tiny_config).segmenter.state_dict().values())
    monkeypatch.setattr(module, "host_memory", lambda: 9 * size)
    build(tiny_config, "method.history=8")
    with pytest.raises(ConfigError, match=r"^method.history: 9 earlier students and the network need 0.0 GB.*smaller"):
        build(tiny_config, "method.history=9")


def test_a_method_that_no_gpu_holds_is_refused(tiny_config, monkeypatch):
    method = build(tiny_config)
    size = sum(x.nbytes for x in method.state_dict().values())
    fit.require_room(method, tiny_config.train, torch.device("cpu"))
    for room in (size, size - 1):
        properties = type("Properties", (), {"total_memory": room})
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, found=properties: found)
        if room == size:
            fit.require_room(method, tiny_config.train, torch.device("cuda:0"))
    with pytest.raises(ConfigError, match=r"^method.name: the networks and the state of prevmatch need .* cuda:0 has"):
        fit.require_room(method, tiny_config.train, torch.device("cuda:0"))
