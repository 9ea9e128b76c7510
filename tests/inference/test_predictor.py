import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from allspark.config.schema import EvalConfig
from allspark.data.image import normalize, read_image
from allspark.errors import ConfigError, DataError
from allspark.inference.predictor import Predictor, out_of_memory
from allspark.inference.window import windowed
from allspark.models.segmenter import build_segmenter
from tests.fakes import tiny
from tests.helpers import LogitsOf

MODES = [EvalConfig(), EvalConfig(mode="window", window=(7, 6), batch=3)]
modes = pytest.mark.parametrize("config", MODES, ids=["whole", "window"])


class Net(LogitsOf):
    """A small network with everything that differs between training and evaluation, and a view of the whole image."""

    num_classes = 4

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.dropout = nn.Dropout(0.5)
        self.last = nn.Conv2d(8, 4, 1)
        self.norm.running_mean.normal_()
        self.batches = []
        self.dtypes = []

    def forward(self, image):
        self.batches.append(len(image))
        hidden = self.dropout(self.norm(self.first(image)).relu())
        logits = self.last(2 * hidden - hidden.mean((2, 3), keepdim=True))
        self.dtypes.append((image.dtype, logits.dtype))
        return logits


def images(count=2, height=11, width=13, dtype=torch.float32):
    return torch.randn(count, 3, height, width, dtype=dtype, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def expected(net, image, config):
    net.eval()
    if config.mode == "whole":
        return net(image).softmax(1)
    return windowed(lambda crops: net.logits(crops), image, config.window, config.stride, 1)


@modes
def test_probabilities_and_labels_equal_the_network_in_eval_mode(config):
    net = Net().double()
    image = images(dtype=torch.float64)
    predictor = Predictor(net.train(), config)
    probabilities, labels = predictor.probabilities(image), predictor.labels(image)
    reference = expected(net, image, config)
    torch.testing.assert_close(probabilities, reference, rtol=1e-12, atol=0)
    assert labels.dtype == torch.int64
    assert torch.equal(labels, reference.argmax(1))
    assert len(labels.unique()) > 1


@modes
def test_an_image_does_not_depend_on_its_batch(config):
    predictor = Predictor(Net().double(), config)
    image = images(3, dtype=torch.float64)
    other = image.clone()
    other[1:] = other[1:] * 50 - 7
    alone = predictor.probabilities(image[:1])
    torch.testing.assert_close(predictor.probabilities(other)[:1], alone, rtol=1e-12, atol=0)
    torch.testing.assert_close(predictor.probabilities(image)[:1], alone, rtol=1e-12, atol=0)


@modes
@pytest.mark.parametrize("size", [(1, 1), (1, 20), (33, 2)])
def test_any_size_comes_back_at_its_own_size(config, size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    prediction = Predictor(Net(), config).predict(pixels)
    assert prediction.mask.shape == prediction.confidence.shape == size
    assert (prediction.mask.dtype, prediction.confidence.dtype) == (np.uint8, np.float32)


@modes
def test_predict_gives_the_class_and_its_probability(config):
    predictor = Predictor(Net(), config)
    pixels = np.random.default_rng(0).integers(0, 256, (14, 9, 3), dtype=np.uint8)
    tensor = torch.from_numpy(normalize(pixels))[None]
    probabilities = predictor.probabilities(tensor)[0].numpy()
    for image in (pixels, Image.fromarray(pixels)):
        prediction = predictor.predict(image)
        assert np.array_equal(prediction.mask, probabilities.argmax(0))
        np.testing.assert_allclose(prediction.confidence, probabilities.max(0), rtol=1e-5)
        assert np.array_equal(prediction.mask, predictor.labels(tensor)[0].numpy())
        assert prediction.confidence.max() <= 1


@modes
def test_modes_of_all_modules_are_restored_and_nothing_is_updated(config):
    net = Net().train()
    net.norm.eval()  # a frozen norm in a network that trains
    before = {name: value.clone() for name, value in net.state_dict().items()}
    predictor = Predictor(net, config)
    predictor.probabilities(images())
    predictor.predict(np.zeros((5, 5, 3), np.uint8))
    assert (net.training, net.dropout.training, net.norm.training) == (True, True, False)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_modes_are_restored_after_an_error():
    net = Net().train()
    with pytest.raises(RuntimeError, match="channels"):
        Predictor(net, EvalConfig()).labels(torch.zeros(1, 5, 8, 8))
    assert all(module.training for module in net.modules())
    assert not torch.is_inference_mode_enabled()


@modes
def test_training_goes_on_after_a_prediction(config):
    net = Net().train()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    predictor = Predictor(net, config)
    before = predictor.probabilities(images())
    net(images()).square().mean().backward()
    optimizer.step()
    assert not torch.equal(predictor.probabilities(images()), before)  # the predictor follows the weights


@modes
@pytest.mark.parametrize(("precision", "kind"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_mixed_precision_computes_in_half_and_returns_single(config, precision, kind):
    net = Net()
    config = config.model_copy(update={"precision": precision})
    probabilities = Predictor(net, config).probabilities(images())
    assert {logits for _, logits in net.dtypes} == {kind}
    assert probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities, expected(net, images(), config), rtol=0, atol=0.03)
    assert net.first.weight.dtype == torch.float32


@modes
def test_fp64_computes_in_double_and_leaves_the_weights(config):
    net = Net()
    config = config.model_copy(update={"precision": "fp64"})
    probabilities = Predictor(net, config).probabilities(images())
    assert probabilities.dtype == torch.float64 and net.dtypes == []  # a copy of it was used
    assert net.first.weight.dtype == torch.float32
    torch.testing.assert_close(probabilities, expected(net.double(), images().double(), config), rtol=1e-12, atol=0)


def test_fp32_means_single_inside_an_outer_autocast_too():
    net = Net()
    with torch.autocast("cpu", torch.bfloat16):
        Predictor(net, EvalConfig()).labels(images())
    assert net.dtypes == [(torch.float32, torch.float32)]


def test_labels_skip_the_softmax_in_whole_mode(monkeypatch):
    def fail(*_, **__):
        raise AssertionError("softmax")

    monkeypatch.setattr(torch.Tensor, "softmax", fail)
    assert Predictor(Net(), EvalConfig()).labels(images()).shape == (2, 11, 13)


def test_images_at_once_keep_to_the_batch():
    whole = Predictor(Net(), EvalConfig(batch=5))
    assert whole.images_at_once(100, 100) == 5
    window = Predictor(Net(), EvalConfig(mode="window", window=(10, 10), stride=1, batch=5))
    assert [window.images_at_once(10, width) for width in (9, 10, 20, 30, 100)] == [5, 5, 2, 1, 1]


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (Image.new("L", (4, 4)), "mode L, expected RGB"),
        (np.zeros((4, 4), np.uint8), r"shape \(4, 4\)"),
        (np.zeros((4, 4, 3), np.float32), "type float32"),
        (np.zeros((4, 4, 4), np.uint8), r"shape \(4, 4, 4\)"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\)"),
    ],
)
def test_wrong_images_are_named(image, words):
    with pytest.raises(DataError, match=words):
        Predictor(Net(), EvalConfig()).predict(image)


class TooLarge(LogitsOf):
    def forward(self, image):
        return image.new_empty(1 << 60)


@pytest.mark.parametrize("words", ["CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED when calling `x`"])
def test_out_of_memory_has_many_names(words):
    assert out_of_memory(RuntimeError(words))
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.parametrize(("mode", "fix"), [("whole", "eval.mode=window"), ("window", "smaller eval.window")])
def test_out_of_memory_is_a_clear_error(mode, fix):
    with pytest.raises(ConfigError, match=f"1 x 6 x 5 pixels do not fit into the memory of cpu: set .*{fix}"):
        Predictor(TooLarge(), EvalConfig(mode=mode)).labels(torch.zeros(1, 3, 6, 5))


@pytest.mark.parametrize("mode", ["whole", "window"])
def test_prediction_from_the_memory(mode):
    """Of whole images, whose grid is another than the crop's, and of windows; whatever else is in the batch."""
    model = tiny("segformer", decoder_channels=16).model_copy(update={"bottleneck": "allspark"})
    network = build_segmenter(model, 4, (64, 64)).double()
    image = images(3, 64, 96, dtype=torch.float64)
    config = EvalConfig(mode=mode, window=(64, 64), stride=0.5, batch=4, memory=True)
    together = Predictor(network, config).probabilities(image)

    def recalled(crops):
        return network.eval().logits(crops, from_memory=True)

    for i in range(3):
        one = recalled(image[i : i + 1]).probabilities()
        if mode == "window":
            one = F.pad(recalled(image[i : i + 1, :, :, :64]).probabilities(), (0, 32)) + F.pad(
                recalled(image[i : i + 1, :, :, 32:]).probabilities(), (32, 0)
            )
            one[..., 32:64] /= 2
        torch.testing.assert_close(together[i : i + 1], one, rtol=1e-9, atol=1e-12)
    own = Predictor(network, config.model_copy(update={"memory": False})).probabilities(image)
    assert not torch.allclose(together, own)


def test_a_picture_on_its_side_is_set_upright_as_a_file_is(tmp_path):
    """Whether it is given as a file or as Pillow opened it."""
    predictor = Predictor(build_segmenter(tiny("segformer"), 3, (33, 33)).eval(), EvalConfig())
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 255, (40, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "side.png", exif=exif)
    with Image.open(tmp_path / "side.png") as opened:
        mask = predictor.predict(opened).mask
    assert mask.shape == (64, 40)
    assert np.array_equal(mask, predictor.predict(read_image(tmp_path / "side.png")).mask)
