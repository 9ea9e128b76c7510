"""The bank of classes against plain lists."""

import pytest
import torch

from allspark.errors import ConfigError
from allspark.methods.bank import ClassBank, nth_members
from allspark.runtime import host_memory as module


def test_rows_come_and_go_as_in_lists():
    generator = torch.Generator().manual_seed(0)
    sizes = [7, 3, 12]
    bank, lists = ClassBank(sizes, 2, "size"), [[], [], []]
    for _ in range(20):
        rows = torch.rand(5, 2, generator=generator)
        members = torch.rand(3, 5, generator=generator) < 0.4
        bank.push(rows, members)
        for index, size in enumerate(sizes):
            lists[index] = [*lists[index], *rows[members[index]]][-size:]
        assert bank.count.tolist() == [len(x) for x in lists]
        for index, own in enumerate(lists):
            place = torch.arange(len(own))[None]
            if own:
                assert torch.equal(bank.at(place, torch.tensor([index]))[0], torch.stack(own))
    assert bank.written.min() > 12  # all went round


def test_more_rows_than_there_is_room_for():
    bank = ClassBank([3, 2], 1, "size")
    bank.push(torch.arange(10.0)[:, None], torch.ones(2, 10, dtype=torch.bool))
    both = torch.tensor([0, 1])
    assert bank.at(torch.tensor([[0, 1], [0, 1]]), both).squeeze(-1).tolist() == [[7, 8], [8, 9]]


def test_state_resumes_exactly():
    one, other = ClassBank([4, 4], 3, "size"), ClassBank([4, 4], 3, "size")
    one.push(torch.rand(6, 3), torch.rand(2, 6) < 0.5)
    other.load_state_dict(one.state_dict())
    for bank in (one, other):
        bank.push(torch.ones(1, 3), torch.ones(2, 1, dtype=torch.bool))
    assert torch.equal(one.rows, other.rows) and torch.equal(one.written, other.written)


def test_a_bank_larger_than_the_memory_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(module, "host_memory", lambda: 10**9)
    ClassBank([100, 100], 256, "method.bank_size")
    with pytest.raises(ConfigError, match=r"^method.bank_size: .* 2000000 rows .* needs 2.0 GB, .* has 1.0;") as said:
        ClassBank([1_000_000] * 2, 256, "method.bank_size")
    assert "\n" not in str(said.value)


def test_nth_members():
    members = torch.tensor([[False, True, True, False, True], [True, False, False, False, False]])
    assert nth_members(members, torch.tensor([[0, 1, 2], [0, 0, 0]])).tolist() == [[1, 2, 4], [0, 0, 0]]
    assert 0 <= nth_members(members, torch.tensor([[9], [-3]])).min() <= 4
