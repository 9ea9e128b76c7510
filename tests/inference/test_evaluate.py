import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from allspark.config.schema import EvalConfig
from allspark.data.image import normalize
from allspark.data.source import Sample, Source, default_palette
from allspark.errors import CheckpointError, DataError
from allspark.inference.evaluate import evaluate
from allspark.inference.predictor import Predictor
from tests.helpers import LogitsOf

SIZES = [(8, 12), (8, 12), (8, 12), (12, 8), (8, 12), (1, 1)]


class Net(LogitsOf):
    """Looks at the whole image, so that a wrong crop or a neighbour in the batch would show."""

    def __init__(self, num_classes=3):
        super().__init__()
        self.num_classes = num_classes
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, num_classes, 3, padding=1, dtype=torch.float64)
        self.batches = []

    def forward(self, image):
        self.batches.append(len(image))
        return self.conv(image) - self.conv(image).mean((2, 3), keepdim=True)


def data(root, ignore=255, sizes=SIZES):
    rng = np.random.default_rng(0)
    samples = []
    for index, size in enumerate(sizes):
        image, mask = root / f"{index}.png", root / f"{index}_mask.png"
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(image)
        labels = rng.integers(0, 3, size, dtype=np.uint8)
        labels[rng.random(size) < 0.1] = ignore
        Image.fromarray(labels).save(mask)
        samples.append(Sample(str(index), image, mask))
    classes = ("sky", "tree", "road")
    return Source(root, classes, default_palette(3), val=tuple(samples), ignore=ignore)


def run(net, source, config, samples=None, **options):
    options = {"workers": 0, "max_pixels": 10**6} | options
    return evaluate(Predictor(net, config), source.val if samples is None else samples, source, **options)


@pytest.mark.parametrize(
    "config", [EvalConfig(batch=2), EvalConfig(mode="window", window=(8, 8), batch=4)], ids=["whole", "window"]
)
@pytest.mark.parametrize("ignore", [255, 200])
def test_scores_equal_numpy_over_all_pixels(tmp_path, config, ignore):
    source = data(tmp_path, ignore)
    net = Net()
    predictor = Predictor(net, config)
    guesses, truths = [], []
    for sample in source.val:
        with Image.open(sample.image) as image, Image.open(sample.mask) as mask:
            tensor = torch.from_numpy(normalize(np.asarray(image)))[None]
            guesses.append(predictor.probabilities(tensor)[0].numpy().argmax(0).ravel())
            truths.append(np.asarray(mask).ravel())
    guess, truth = np.concatenate(guesses), np.concatenate(truths)
    guess, truth = guess[truth != ignore], truth[truth != ignore]
    iou = [((guess == k) & (truth == k)).sum() / ((guess == k) | (truth == k)).sum() for k in range(3)]

    scores = run(net, source, config)
    np.testing.assert_allclose(scores.iou, iou, rtol=1e-12)
    assert 0 < scores.miou < 1
    np.testing.assert_allclose([scores.miou, scores.pixel_accuracy], [np.mean(iou), (guess == truth).mean()])


def test_consecutive_images_of_equal_size_are_batched_and_progress_is_told(tmp_path):
    net, seen = Net(), []
    run(net, data(tmp_path), EvalConfig(batch=2), progress=lambda *count: seen.append(count))
    assert net.batches == [2, 1, 1, 1, 1]
    assert seen == [(2, 6), (3, 6), (4, 6), (5, 6), (6, 6)]


def test_the_result_does_not_depend_on_batch_or_workers(tmp_path):
    source = data(tmp_path)
    one = run(Net(), source, EvalConfig(batch=1))
    for config, workers in ((EvalConfig(batch=6), 0), (EvalConfig(batch=2), 2)):
        other = run(Net(), source, config, workers=workers)
        assert np.array_equal(one.iou, other.iou)
        assert (one.miou, one.pixel_accuracy) == (other.miou, other.pixel_accuracy)


def test_a_perfect_model_scores_one(tmp_path):
    source = data(tmp_path, sizes=[(6, 6)])
    with Image.open(source.val[0].mask) as mask:
        truth = torch.from_numpy(np.asarray(mask).astype(np.int64))
    oracle = Net()
    logits = torch.stack([(truth == k).double() for k in range(3)])[None]
    oracle.forward = lambda image: logits
    scores = run(oracle, source, EvalConfig())
    assert (scores.miou, scores.pixel_accuracy, scores.iou.tolist()) == (1, 1, [1, 1, 1])


def test_training_mode_is_restored(tmp_path):
    net = Net().train()
    run(net, data(tmp_path), EvalConfig())
    assert all(module.training for module in net.modules())


def test_no_samples(tmp_path):
    with pytest.raises(DataError, match="no image to evaluate"):
        run(Net(), data(tmp_path), EvalConfig(), samples=())


def test_a_sample_without_mask_is_named(tmp_path):
    source = data(tmp_path)
    samples = (source.val[0], Sample("x", source.val[1].image))
    with pytest.raises(DataError, match=r"1\.png: no mask, as for 1 of 2"):
        run(Net(), source, EvalConfig(), samples=samples)


def test_another_number_of_classes(tmp_path):
    with pytest.raises(CheckpointError, match=r"predicts 4 classes, the data set .* has 3"):
        run(Net(4), data(tmp_path), EvalConfig())


def test_a_mask_of_another_size_is_named(tmp_path):
    source = data(tmp_path)
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(source.val[3].mask)
    with pytest.raises(DataError, match=r"3_mask\.png"):
        run(Net(), source, EvalConfig())


def test_masks_without_any_class(tmp_path):
    source = data(tmp_path, sizes=[(4, 4)])
    Image.fromarray(np.full((4, 4), 255, np.uint8)).save(source.val[0].mask)
    with pytest.raises(DataError, match="all pixels of the 1 masks have the ignore value 255"):
        run(Net(), source, EvalConfig())


def test_a_bad_mask_value_is_an_error(tmp_path):
    source = data(tmp_path, sizes=[(4, 4)])
    Image.fromarray(np.full((4, 4), 7, np.uint8)).save(source.val[0].mask)
    with pytest.raises(DataError, match="7"):
        run(Net(), source, EvalConfig())
