"""What every method promises. A new one is picked up from METHODS."""

import itertools
import subprocess
import sys
from dataclasses import fields, replace

import pytest
import torch

from allspark.batch import IGNORE, Progress
from allspark.config.files import apply_overrides
from allspark.config.methods import METHOD_CONFIGS
from allspark.config.resolve import network_config
from allspark.config.schema import Config
from allspark.errors import ConfigError
from allspark.methods import METHODS, build_method
from allspark.methods.base import deployed_name
from allspark.methods.teacher import Teacher
from allspark.models.segmenter import Segmenter
from tests.fakes import ENCODERS
from tests.helpers import CORE, batch_of, choose, each_method, follow_step, step_of

PADDING_COUNTS = {"cps", "fpl", "mkd", "ccvc"}  # as published
OF_BOTH_KINDS = {"contrast"}  # terms that learn from labelled pixels too
WEIGHED = {"unlabeled", "labeled_consistency"}
OWN_COUNTS = dict.fromkeys(("ael", "fpl-ael", "ps-mt", "gta-seg"), WEIGHED)  # weights, which the teacher gives
LATE = Progress(8, 1, 10)  # no warm-up is longer
BY_STAGE = {"segformer", "resnet"}  # encoders that semicvt's branch can exchange with


def config(name, encoder="segformer", *changes):
    model = {"encoder": encoder, "encoder_config": ENCODERS[encoder], "pretrained": "none", "decoder_channels": 16}
    model["bottleneck_warmup_epochs"] = 1
    tree = {"data": {"crop": (64, 96)}, "model": model}
    return apply_overrides(Config.model_validate(tree), [*choose(name), *changes])


def build(name, encoder="segformer", *changes):
    torch.manual_seed(0)
    return build_method(config(name, encoder, *changes), 5)


AVERAGED = pytest.param("supervised method.ema_decay=0.9", id="averaged")


@pytest.fixture(params=[*each_method(), AVERAGED])
def which(request):
    name, *changes = request.param.split()
    return name, "segformer", *changes


@pytest.fixture
def method(which):
    return build(*which)


def labeled_terms(output):
    return {name: term for name, term in output.terms.items() if name.startswith("labeled")}


def other_terms(output):
    labeled = {*labeled_terms(output), *OF_BOTH_KINDS}
    return {name: term for name, term in output.terms.items() if name not in labeled}


def test_every_method_has_settings_and_all_settings_a_method():
    assert METHODS.keys() == METHOD_CONFIGS.keys()
    for name, method in METHODS.items():
        assert method.settings is METHOD_CONFIGS[name] and method.settings().name == name
        assert Config.model_validate({"method": {"name": name}}).method == method.settings()


def test_settings_need_no_torch():
    code = "import sys, allspark.config.files; print('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_step_gives_gradients_to_all_that_trains_and_to_nothing_else(method, precision):
    """Also in mixed precision, where passes without gradient leave half copies of the weights behind."""
    for step in range(2):  # the second reads a memory, where there is one
        method.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            output = step_of(method, batch_of(method.views), Progress(step, 1, 10))
        output.loss.backward()
        method.after_validation(Progress(step + 1, 1, 10), best=True)
    assert output.loss.shape == () and torch.isfinite(output.loss)
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        else:
            assert parameter.grad is None, name
    first = method.networks()[0]
    assert all(parameter.grad.any() for parameter in first.decoder.parameters())
    assert not any(term.count.requires_grad for term in output.terms.values())
    assert not any(value.requires_grad for value in output.metrics.values())


def test_training_learns_the_labels_of_one_batch(method):
    torch.manual_seed(1)
    data = batch_of(method.views, 1, 1)
    mask = torch.zeros(1, 64, 96, dtype=torch.int64)
    mask[:, :, 48:] = 3
    data.labeled.image[:, :, :, 48:] += 3
    data = replace(data, labeled=replace(data.labeled, mask=mask))
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    losses = []
    for step in range(15):
        output = step_of(method, data, Progress(step, 1, 15))
        losses.append(float(output.terms["labeled"].mean().detach()))
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        follow_step(method, Progress(step, 1, 15))
    assert losses[-1] < 0.5 * losses[0]


def test_a_step_leaves_modes_and_data_as_they_were(method):
    first = method.networks()[0]
    first.encoder.requires_grad_(False).eval()  # a frozen encoder in a network that trains
    modes = [module.training for module in method.modules()]
    data = batch_of(method.views)
    parts = [part for part in (data.labeled, data.unlabeled, data.partner) if part is not None]
    tensors = [x for part in parts for f in fields(part) if isinstance(x := getattr(part, f.name), torch.Tensor)]
    copies = [x.clone() for x in tensors]
    step_of(method, data, Progress(0, 1, 10)).loss.backward()
    follow_step(method, Progress(0, 1, 10))
    assert [module.training for module in method.modules()] == modes and not first.encoder.training
    assert all(torch.equal(x, copy) for x, copy in zip(tensors, copies, strict=True))


def test_all_ignored_masks_keep_the_loss_finite(method):
    data = batch_of(method.views)
    blank = replace(data, labeled=replace(data.labeled, mask=torch.full_like(data.labeled.mask, IGNORE)))
    output = step_of(method, blank, Progress(0, 1, 10))
    output.loss.backward()
    assert torch.isfinite(output.loss)
    assert all(float(term.mean().detach()) == 0 for term in labeled_terms(output).values())


def test_padding_of_unlabeled_images_is_not_supervised(method):
    data = batch_of(method.views, valid=torch.zeros(2, 64, 96, dtype=torch.bool))
    output = step_of(method, data, LATE)
    assert output.loss > 0
    if method.settings().name not in PADDING_COUNTS:
        assert all(float(term.mean().detach()) == 0 for term in other_terms(output).values())


def test_what_the_batch_tells_of_counts_is_what_the_terms_count(method):
    """So micro-batches add up to one batch; see engine/test_learner.py."""
    data = batch_of(method.views, valid=torch.rand(2, 64, 96) < 0.7)
    data.labeled.mask[:, :20] = IGNORE
    known = method.counts(data)
    told: set[str] = set()
    for progress in (Progress(0, 1, 10), LATE):
        terms = step_of(method, data, progress).terms
        for name in known.keys() & terms.keys():
            assert int(known[name]) == int(terms[name].count), name
        assert terms.keys() <= known.keys() | OWN_COUNTS.get(method.settings().name, set())
        told |= terms.keys()
    assert known.keys() - ({"unlabeled"} if data.unlabeled is None else set()) <= told


def silence(method):
    for part in method.modules():
        if hasattr(part, "dropout") and isinstance(part.dropout, float):
            part.dropout = 0.0
        for name in ("feature_dropout", "noise"):
            if hasattr(part, name):
                setattr(part, name, 0.0)
        if isinstance(part, torch.nn.Dropout2d) or hasattr(part, "drop_prob"):
            part.p = part.drop_prob = 0.0


def test_saved_state_is_all_there_is(which, method):
    """Another object with the same state takes the same step (dropout off)."""
    other = build_method(config(*which), 5)
    silence(method)
    silence(other)
    for step in range(2):
        step_of(method, batch_of(method.views), Progress(step, 1, 10))
        follow_step(method, Progress(step, 1, 10))
        method.after_validation(Progress(step + 1, 1, 10), best=True)
    other.load_state_dict(method.state_dict())
    data = batch_of(method.views)
    losses = [step_of(one, data, LATE).loss for one in (method, other)]
    torch.testing.assert_close(*losses, rtol=0, atol=0)


def test_networks_train_and_one_of_the_methods_is_deployed(method):
    trained = {id(p) for network in method.networks() for p in network.parameters()}
    assert trained <= {id(p) for p in method.parameters() if p.requires_grad}
    assert isinstance(method.deployed, Segmenter) and method.deployed in set(method.modules())
    candidates = method.candidates()
    assert candidates[deployed_name(method)] is method.deployed
    if len(method.networks()) == 1:  # a teacher of the package's kind is one of them, the student another
        teachers = [part.network for part in method.modules() if isinstance(part, Teacher)]
        assert {id(x) for x in candidates.values()} == {id(x) for x in (method.networks()[0], *teachers)}


def test_what_is_derived_from_weights_follows_those_that_come_later(method):
    """Weights to begin with are loaded after the method is built: ``begin`` is when they are in place."""
    for network in method.networks():
        for parameter in network.parameters():
            parameter.data.add_(1)
    method.begin()
    source = method.deployed if method.deployed in method.networks() else method.networks()[0]  # or trains by itself
    for name, tensor in method.deployed.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name]), name


NETWORKS = [*itertools.product(ENCODERS, ["segformer", "deeplabv3plus"]), ("dinov2", "dpt")]
PAIRS = [*((name, "resnet", "deeplabv3plus") for name in METHODS), *((name, *one) for name in CORE for one in NETWORKS)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "encoder", "decoder"), [*dict.fromkeys([*PAIRS, ("semicvt", "swin", "segformer")])])
def test_every_method_learns_on_every_network(name, encoder, decoder):
    stride = ["model.output_stride=16"] if encoder == "resnet" else []
    if name == "semicvt" and encoder not in BY_STAGE:
        with pytest.raises(ConfigError, match=r"^method.name: semicvt needs an encoder that runs stage by stage.*$"):
            build(name, encoder, f"model.decoder={decoder}")
        return
    method = build(name, encoder, f"model.decoder={decoder}", *stride)
    for step in range(2):  # the second reads the memory
        output = step_of(method, batch_of(method.views), Progress(step, 1, 10))
        output.loss.backward()
    assert torch.isfinite(output.loss)
    for network in method.networks():
        named = {key: p for key, p in network.named_parameters() if p.grad is not None}
        assert all(torch.isfinite(p.grad).all() for p in named.values())
        for part in ("encoder", "decoder", *(["bottleneck"] if network.bottleneck is not None else [])):
            assert any(p.grad.any() for key, p in named.items() if key.startswith(part)), part


@pytest.mark.parametrize("name", each_method())
def test_the_bottleneck_fits_every_method_with_both_kinds_of_images_in_one_pass(name):
    if not METHOD_CONFIGS[name].joint:
        with pytest.raises(ConfigError, match="allspark needs labelled and unlabelled images"):
            network_config(config(name, "segformer", "model.bottleneck=allspark"))
        return
    method = build(name, "segformer", "model.bottleneck=allspark", "model.bottleneck_warmup_epochs=1")
    for step in range(3):
        output = method(batch_of(method.views, 1, 3), Progress(step, 1, 3))
        output.loss.backward()
        method.after_step(Progress(step, 1, 3))
    assert torch.isfinite(output.loss) and "memory_fill" in output.metrics
    assert int(method.memory.writes) == 3 and method.health().keys() == {"memory_fill", "memory_age"}
    assert all(p.grad is not None for p in method.segmenter.bottleneck.parameters())


def test_a_method_that_is_its_bottleneck_is_told_so():
    with pytest.raises(ConfigError, match=r"method allspark is its bottleneck.*pseudo-label"):
        network_config(config("allspark", "segformer", "model.bottleneck=none"))


def test_pseudo_labels_with_the_bottleneck_are_allspark():
    one, other = build("allspark"), build("pseudo-label", "segformer", "model.bottleneck=allspark")
    data = batch_of(one.views)
    losses = []
    for method in (one, other):
        torch.manual_seed(3)
        losses.append([method(data, Progress(step, 1, 3)).loss for step in range(2)])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("change", ["memory=false", "grouping=off", "grouping=paper", "gate=true", "own=0.5"])
def test_ablations_of_the_paper_run(change):
    method = build("allspark", "segformer", f"model.bottleneck_{change}")
    for step in range(3):
        output = method(batch_of(method.views, 1, 3), Progress(step, 1, 3))
        output.loss.backward()
    assert torch.isfinite(output.loss)
    assert ("memory_fill" in output.metrics) == (change != "memory=false")


def test_warm_up_is_counted_in_epochs(monkeypatch):
    method = build("allspark", "segformer", "model.bottleneck_warmup_epochs=1.5")
    seen = []
    forward = type(method.segmenter.bottleneck).forward

    def spy(self, feature, guide=None, **options):
        if guide is not None:
            seen.append(guide.read_memory)
        return forward(self, feature, guide, **options)

    monkeypatch.setattr(type(method.segmenter.bottleneck), "forward", spy)
    for step in range(5):
        method(batch_of(method.views, 1, 1), Progress(step, 2, 10))
    assert seen == [False, False, False, True, True]
