"""One file a training method."""

from allspark.config.schema import Config
from allspark.methods.allspark import AllSpark
from allspark.methods.base import Method
from allspark.methods.pseudo_label import PseudoLabel
from allspark.methods.supervised import Supervised

METHODS: dict[str, type[Method]] = {
    "supervised": Supervised,
    "pseudo-label": PseudoLabel,
    "allspark": AllSpark,
}


def build_method(config: Config, num_classes: int) -> Method:
    """Build the method that ``config.method.name`` names, with its network."""
    return METHODS[config.method.name](config, num_classes)
