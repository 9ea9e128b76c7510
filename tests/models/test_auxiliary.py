"""The auxiliary head: part of the loss of labelled images, of every method, and of nothing else."""

import pytest
import torch
import torch.nn.functional as F

from allspark.batch import IGNORE, Progress
from allspark.config.files import apply_overrides
from allspark.config.methods import MethodConfig
from allspark.config.schema import Config
from allspark.methods import build_method
from allspark.methods.losses import cross_entropy, labeled_loss, ohem_cross_entropy
from allspark.models.segmenter import build_segmenter
from tests.fakes import ENCODERS, tiny
from tests.helpers import batch_of, choose, each_method

WEIGHT = 0.4


def network(weight=WEIGHT, **changes):
    torch.manual_seed(0)
    model = tiny("resnet", decoder="deeplabv3plus", decoder_channels=8, decoder_dropout=0, output_stride=16)
    return build_segmenter(model.model_copy(update={"auxiliary_weight": weight, **changes}), 5, (64, 96)).double()


def labeled(count=3):
    torch.manual_seed(1)
    mask = torch.randint(0, 5, (count, 50, 70))
    mask[:, :9] = IGNORE
    return torch.randn(count, 3, 50, 70, dtype=torch.float64), mask


def test_the_loss_is_that_of_both_heads():
    """Straight from its definition: logits of the third map, enlarged, cross-entropy."""
    segmenter, (image, mask) = network(), labeled()
    features = segmenter.encode(image)
    coarse = segmenter.auxiliary(features.maps[2])
    own = F.interpolate(coarse, features.padded, mode="bilinear")[:, :, :50, :70]
    main = segmenter.decode(features)
    expected = F.cross_entropy(main.full(), mask, ignore_index=IGNORE)
    expected = expected + WEIGHT * F.cross_entropy(own, mask, ignore_index=IGNORE)
    found = labeled_loss(MethodConfig(name="any"))(segmenter.decode(features), mask)
    torch.testing.assert_close(found.mean(), expected, rtol=1e-10, atol=1e-12)
    assert int(found.count) == int((mask != IGNORE).sum())


def test_each_head_has_hard_pixels_of_its_own():
    segmenter, (image, mask) = network(), labeled()
    settings = MethodConfig(name="any", labeled_loss="ohem", ohem_threshold=0.2, ohem_min_kept=200)
    logits = segmenter.logits(image)
    hard = {"threshold": 0.2, "min_kept": 200}
    one, other = (ohem_cross_entropy(x, mask, **hard) for x in (logits, logits.of_auxiliary()))
    assert int(one.count) != int(other.count)
    found = labeled_loss(settings)(logits, mask)
    torch.testing.assert_close(found.mean(), one.mean() + WEIGHT * other.mean(), rtol=1e-10, atol=1e-12)


def test_labelled_images_keep_theirs_when_a_batch_is_divided():
    segmenter, (image, mask) = network(), labeled()
    segmenter.encoder.eval()
    segmenter.auxiliary.fuse.eval()
    segmenter.decoder.eval()
    loss = labeled_loss(MethodConfig(name="any"))
    whole, alone = segmenter.logits(image), segmenter.logits(image[:2])
    part, rest = whole.split([2, 1])
    torch.testing.assert_close(loss(part, mask[:2]).total, loss(alone, mask[:2]).total, rtol=1e-10, atol=1e-12)
    assert len(part.of_auxiliary().coarse) == 2 and len(rest.of_auxiliary().coarse) == 1


def test_predictions_know_nothing_of_it():
    with_head, without = network(), network(0.0)
    assert without.auxiliary is None and with_head.eval().logits(torch.zeros(1, 3, 40, 40).double()).auxiliary is None
    named = {name for name in with_head.state_dict() if name.startswith("auxiliary.")}
    assert with_head.state_dict().keys() - named == without.state_dict().keys() and named
    for name, tensor in without.state_dict().items():  # one seed: the same encoder and decoder
        assert torch.equal(tensor, with_head.state_dict()[name]), name
    image, mask = labeled()
    assert not torch.equal(
        labeled_loss(MethodConfig(name="any"))(with_head.train().logits(image), mask).total,
        cross_entropy(without.train().logits(image), mask).total,
    )


@pytest.mark.parametrize("name", each_method("semicvt"))
def test_every_method_trains_it_on_labelled_images(name):
    """And a method needs no code of its own for that: what `decode` gives, `labeled_loss` takes."""
    fields = {"encoder": "segformer", "encoder_config": ENCODERS["segformer"], "pretrained": "none"}
    model = fields | {"decoder_channels": 16, "auxiliary_weight": WEIGHT}
    config = apply_overrides(Config.model_validate({"data": {"crop": (64, 96)}, "model": model}), choose(name))
    torch.manual_seed(0)
    method = build_method(config, 5)
    batch = batch_of(method.views)
    method(batch, Progress(0, 1, 10)).loss.backward()
    learned = [all(p.grad is not None for p in network.auxiliary.parameters()) for network in method.networks()]
    assert learned[0] or learned[-1]  # a network that sees no labels has no use for it
    for network, did in zip(method.networks(), learned, strict=True):
        assert all(torch.isfinite(p.grad).all() and p.grad.any() for p in network.auxiliary.parameters() if did)
    method.after_step(Progress(0, 1, 10))
    assert method.deployed.auxiliary is not None  # of a teacher too: a checkpoint holds whole networks
