"""How validation predicts."""

import torch

from allspark.batch import Progress
from allspark.config.files import apply_overrides
from allspark.config.schema import DataConfig, EvalConfig
from allspark.data.sets import open_source
from allspark.engine.validation import Validator
from allspark.methods import build_method
from tests.helpers import batch_of


def test_an_empty_memory_is_not_predicted_from(tiny_config, tiny_folder):
    """In a supervised warm-up nothing is written to it yet."""
    source = open_source(DataConfig(root=tiny_folder))
    validator = Validator(source, tiny_config.data, EvalConfig(memory=True), 0, print)
    plain = build_method(apply_overrides(tiny_config, ["method.name=supervised"]), 5)
    method = build_method(apply_overrides(tiny_config, ["method.name=fixmatch", "model.bottleneck=allspark"]), 5)

    def remembers(method):
        return validator.predictor(method, torch.device("cpu")).config.memory

    assert not remembers(method) and not remembers(plain)
    method(batch_of(method.views), Progress(0, 1, 2))
    assert remembers(method)
