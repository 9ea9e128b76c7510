"""What every method promises. A new one is picked up from METHODS."""

import pytest
import torch

from allspark.batch import IGNORE, LabeledBatch, Progress, TrainBatch, UnlabeledBatch
from allspark.config.schema import Config
from allspark.methods import METHODS, build_method
from tests.models.test_encoders import TINY


def config(name, encoder="segformer", decoder="segformer", **method):
    return Config.model_validate(
        {
            "data": {"crop": (64, 96)},
            "model": {
                "encoder": encoder,
                "encoder_config": TINY[encoder],
                "pretrained": "none",
                "decoder": decoder,
                "decoder_channels": 16,
                "output_stride": 16 if encoder == "resnet" else None,
            },
            "method": {"name": name, "warmup_epochs": 1, **method},
        }
    )


def batch(labeled=2, unlabeled=2, size=(64, 96), valid=None):
    return TrainBatch(
        LabeledBatch(torch.randn(labeled, 3, *size), torch.randint(0, 5, (labeled, *size))),
        UnlabeledBatch(torch.randn(unlabeled, 3, *size), valid),
    )


@pytest.fixture(params=METHODS)
def method(request):
    torch.manual_seed(0)
    return build_method(config(request.param), 5).train()


def test_the_configuration_names_every_method():
    for name in METHODS:
        assert Config.model_validate({"method": {"name": name}}).method.name == name


def test_one_step_gives_gradients_everywhere(method):
    data = batch()
    for step in range(2):  # the second reads the memory
        method.zero_grad()
        output = method(data, Progress(step, 1, 10))
        output.loss.backward()
    assert output.loss.shape == () and torch.isfinite(output.loss)
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)
    missing = [name for name, p in method.named_parameters() if p.grad is None]
    assert missing == []
    assert all(not value.requires_grad for value in output.metrics.values())
    assert "loss_labeled" in output.metrics


def test_training_learns_the_labels_of_one_batch(method):
    torch.manual_seed(1)
    data = batch(1, 1)
    mask = torch.zeros(1, 64, 96, dtype=torch.int64)
    mask[:, :, 48:] = 3
    data.labeled.image[:, :, :, 48:] += 3
    data = TrainBatch(LabeledBatch(data.labeled.image, mask), data.unlabeled)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for step in range(15):
        output = method(data, Progress(step, 1, 15))
        losses.append(float(output.metrics["loss_labeled"]))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


def test_unlabeled_images_get_no_gradient_from_masks_or_metrics(method):
    """The mode of the network and the data are left as they were."""
    data = batch()
    image, mask = data.labeled.image.clone(), data.labeled.mask.clone()
    method(data, Progress(0, 1, 10))
    assert method.training and method.segmenter.training
    assert torch.equal(data.labeled.image, image) and torch.equal(data.labeled.mask, mask)


def test_all_ignored_masks_keep_the_loss_finite(method):
    data = batch()
    blank = TrainBatch(LabeledBatch(data.labeled.image, torch.full_like(data.labeled.mask, IGNORE)), data.unlabeled)
    output = method(blank, Progress(0, 1, 10))
    output.loss.backward()
    assert torch.isfinite(output.loss) and float(output.metrics["loss_labeled"]) == 0


def test_padding_of_unlabeled_images_is_not_supervised(method):
    if not method.wants_unlabeled:
        assert method(TrainBatch(batch().labeled, None), Progress(0, 1, 10)).loss > 0
        return
    data = batch(valid=torch.zeros(2, 64, 96, dtype=torch.bool))
    assert float(method(data, Progress(0, 1, 10)).metrics["loss_unlabeled"]) == 0


def test_saved_state_is_all_there_is(method):
    """Another object with the same state takes the same step (dropout off)."""
    other = build_method(config({cls: name for name, cls in METHODS.items()}[type(method)]), 5).train()
    for module in (method, other):
        for part in module.modules():
            if hasattr(part, "dropout") and isinstance(part.dropout, float):
                part.dropout = 0.0
            if isinstance(part, torch.nn.Dropout2d) or hasattr(part, "drop_prob"):
                part.p = part.drop_prob = 0.0
    method(batch(), Progress(0, 1, 10))
    other.load_state_dict(method.state_dict())
    data = batch()
    torch.testing.assert_close(
        method(data, Progress(1, 1, 10)).loss, other(data, Progress(1, 1, 10)).loss, rtol=0, atol=0
    )


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("encoder", TINY)
@pytest.mark.parametrize("decoder", ["segformer", "deeplabv3plus"])
def test_every_method_learns_on_every_network(name, encoder, decoder):
    torch.manual_seed(0)
    method = build_method(config(name, encoder, decoder), 5).train()
    data = batch()
    for step in range(2):  # the second reads the memory
        output = method(data, Progress(step, 1, 10))
        output.loss.backward()
    assert torch.isfinite(output.loss)
    learned = [p for key, p in method.named_parameters() if key.startswith("segmenter.") and p.grad is not None]
    assert all(torch.isfinite(p.grad).all() for p in learned)
    parts = ("encoder", "decoder", *(["bottleneck"] if name == "allspark" else []))
    named = dict(method.segmenter.named_parameters())
    for part in parts:
        assert any(p.grad is not None and p.grad.any() for key, p in named.items() if key.startswith(part)), part


@pytest.mark.parametrize("options", [{"memory": False}, {"grouping": "off"}, {"grouping": "paper"}])
def test_ablations_of_the_paper_run(options):
    method = build_method(config("allspark", **options), 5).train()
    for step in range(3):
        output = method(batch(1, 3), Progress(step, 1, 3))
        output.loss.backward()
    assert torch.isfinite(output.loss)
    assert ("memory_fill" in output.metrics) == options.get("memory", True)


def test_warm_up_is_counted_in_epochs(monkeypatch):
    method = build_method(config("allspark", warmup_epochs=1.5), 5).train()
    seen = []
    forward = type(method.segmenter.bottleneck).forward

    def spy(self, feature, guide=None):
        if guide is not None:
            seen.append(guide.read_memory)
        return forward(self, feature, guide)

    monkeypatch.setattr(type(method.segmenter.bottleneck), "forward", spy)
    for step in range(5):
        method(batch(1, 1), Progress(step, 2, 10))
    assert seen == [False, False, False, True, True]
