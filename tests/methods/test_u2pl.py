"""U2PL's rules against plain loops."""

import pytest
import torch

from allspark.batch import IGNORE, Progress
from allspark.config.files import apply_overrides
from allspark.config.schema import Config
from allspark.errors import UserError
from allspark.kernels.logits import Logits
from allspark.methods import build_method
from allspark.methods.pixel_roles import matched_classes, pixel_roles
from allspark.methods.u2pl import U2PL
from tests.conftest import TINY
from tests.helpers import batch_of, pixels

SMALL = ["method.name=u2pl", "method.bank_sizes=[40,30]", "method.ranks=[2,4]", "method.supervised_epochs=0"]


def build(*changes):
    torch.manual_seed(0)
    return build_method(apply_overrides(Config(), [*TINY, *SMALL, *changes]), 5)


def test_roles_of_the_paper():
    torch.manual_seed(0)
    scores = Logits(3 * torch.randn(3, 5, 4, 4), (16, 16), (16, 16))
    target = torch.randint(0, 5, (3, 4, 4))
    target[torch.rand(3, 4, 4) < 0.2] = IGNORE
    low = (torch.rand(3, 4, 4) < 0.5) & (target != IGNORE)
    high = (torch.rand(3, 4, 4) < 0.5) & (target != IGNORE)
    roles = pixel_roles(target, low, high, scores, 1, U2PL.settings(ranks=(2, 4), anchor_confidence=0.25))
    seen = 0
    for b, y, x in torch.cartesian_prod(torch.arange(3), torch.arange(4), torch.arange(4)).tolist():
        p = scores.coarse[b, :, y, x].softmax(0).tolist()
        ranked = sorted(range(5), key=lambda k, p=p: -p[k])
        for k in range(5):
            own, rank = int(target[b, y, x]) == k, ranked.index(k)
            member = own and bool(low[b, y, x])
            key = bool(high[b, y, x]) and ((rank < 2 and not own) if b == 0 else 2 <= rank < 4)
            found = roles.members[b, y, x, k], roles.anchors[b, y, x, k], roles.keys[b, y, x, k]
            assert tuple(map(bool, found)) == (member, member and p[k] > 0.25, key)
            seen += key
    assert seen > 20


def test_classes_and_banks():
    present = torch.tensor([True, False, True, False, True])
    compared, bank = matched_classes(present, "paper")
    assert torch.equal(compared, present) and bank.tolist() == [0, 1, 2, 3, 4]
    compared, bank = matched_classes(present, "code")
    assert compared.tolist() == [True, True, True, False, False] and bank.tolist()[:3] == [0, 2, 4]
    for rule in ("paper", "code"):  # one class has nothing to be told from
        assert not matched_classes(torch.tensor([True, False]), rule)[0].any()


def test_padding_is_neither_label_nor_anchor_nor_negative():
    """Whatever is in the padding: the losses and the bank are the same."""
    found = []
    padding = torch.zeros(2, 64, 64, dtype=torch.bool)
    padding[:, 20:] = True
    for label in (0, 3):
        method = build("method.cutmix=0")
        one_hot = torch.eye(5)[torch.full((2, 64, 64), label).where(padding, 1)].permute(0, 3, 1, 2)
        method.teacher.logits = lambda image, one_hot=one_hot: pixels(one_hot)
        torch.manual_seed(1)
        output = method(batch_of(method.views, size=(64, 64), valid=~padding), Progress(0, 1, 10))
        found.append((output.loss.detach(), method.bank.rows.clone()))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1]) and found[0][1].any()


def test_the_contrast_moves_the_projection_and_the_network():
    method = build("method.cutmix=0")
    output = method(batch_of(method.views, size=(64, 64)), Progress(0, 1, 10))
    assert output.terms["contrast"].total > 0 and 0 < output.metrics["bank_fill"] <= 1
    output.terms["contrast"].mean().backward()
    for part in (method.projection, method.segmenter.encoder):
        assert all(p.grad is not None and p.grad.any() for p in part.parameters() if p.dim() > 1)
    assert method.segmenter.decoder.classifier.weight.grad is None


def test_in_the_warm_up_the_teachers_batch_norm_sees_labelled_images():
    method = build("method.supervised_epochs=1")
    before = {name: x.clone() for name, x in method.named_buffers() if "running_mean" in name}
    output = method(batch_of(method.views, size=(64, 64)), Progress(0, 10, 100))
    assert output.terms["contrast"].mean() == 0 and not method.bank.written.any()
    moved = {name for name, x in method.named_buffers() if name in before and not torch.equal(x, before[name])}
    assert {"teacher.network.decoder.norm.running_mean", "segmenter.decoder.norm.running_mean"} <= moved


@pytest.mark.parametrize("change", ["ranks=[3,3]", "bank_sizes=[0,5]", "projection_dropout=1", "contrast_rule=both"])
def test_settings_that_mean_nothing_are_refused(change):
    with pytest.raises(UserError, match=change.split("=")[0]):
        build(f"method.{change}")
