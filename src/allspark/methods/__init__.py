"""One file a training method."""

from functools import partial

from allspark.config.methods import METHOD_CONFIGS, MethodConfig
from allspark.config.resolve import network_config
from allspark.config.schema import Config
from allspark.errors import ConfigError
from allspark.methods.ael import AEL
from allspark.methods.allspark import AllSpark
from allspark.methods.augseg import AugSeg
from allspark.methods.base import Method
from allspark.methods.ccvc import CCVC
from allspark.methods.corrmatch import CorrMatch
from allspark.methods.cps import CPS
from allspark.methods.cutmix_seg import CutMixSeg
from allspark.methods.dgcl import DGCL
from allspark.methods.fixmatch import FixMatch
from allspark.methods.fpl import FPL, FPLOnAEL
from allspark.methods.gta_seg import GTASeg
from allspark.methods.logicdiag import LogicDiag
from allspark.methods.mkd import MKD
from allspark.methods.pc2seg import PC2Seg
from allspark.methods.prevmatch import PrevMatch
from allspark.methods.ps_mt import PSMT
from allspark.methods.pseudo_label import PseudoLabel
from allspark.methods.pseudoseg import PseudoSeg
from allspark.methods.semicvt import SemiCVT
from allspark.methods.semivl import SemiVL
from allspark.methods.st_plus_plus import STPlusPlus
from allspark.methods.supervised import Supervised
from allspark.methods.u2pl import U2PL
from allspark.methods.unimatch import UniMatch
from allspark.methods.unimatch_v2 import UniMatchV2
from allspark.models.segmenter import Segmenter, build_segmenter

_ALL: tuple[type[Method], ...] = (
    Supervised,
    PseudoLabel,
    AllSpark,
    FixMatch,
    UniMatch,
    UniMatchV2,
    PrevMatch,
    CorrMatch,
    SemiVL,
    PseudoSeg,
    CPS,
    CutMixSeg,
    AugSeg,
    STPlusPlus,
    AEL,
    FPL,
    FPLOnAEL,
    LogicDiag,
    U2PL,
    DGCL,
    MKD,
    CCVC,
    PSMT,
    GTASeg,
    SemiCVT,
    PC2Seg,
)

METHODS: dict[str, type[Method]] = {method.settings.model_fields["name"].default: method for method in _ALL}


def add_method(method: type[Method]) -> type[Method]:
    """Make a method of your own known under the name that its settings have; usable as a decorator.

    Raises:
        ConfigError: it has no settings class with a name, or the name is taken.
    """
    settings = getattr(method, "settings", None)
    if not (isinstance(settings, type) and issubclass(settings, MethodConfig)):
        raise ConfigError(f"{method.__name__}: `settings` must name its MethodConfig class, got {settings!r}")
    name = settings.model_fields["name"].default
    if not isinstance(name, str):
        raise ConfigError(f'{settings.__name__}: give it a name, as in name: Literal["mine"] = "mine"')
    if name in METHODS:
        raise ConfigError(f"there is a method {name!r} already; give yours another name")
    METHOD_CONFIGS[name] = settings
    METHODS[name] = method
    return method


def build_method(config: Config, num_classes: int) -> Method:
    """Build the method that a configuration names, with its networks.

    Args:
        config: ``method``, ``model`` and ``data.crop`` are read.
        num_classes: k.

    Raises:
        ConfigError: the configuration does not fit.
        CheckpointError: the encoder's weights cannot be had.
    """
    return METHODS[config.method.name](config.method, partial(build_network, config, num_classes))


def build_network(config: Config, num_classes: int, *, load_weights: bool = True) -> Segmenter:
    """Build a network as the method of a configuration has it, in training mode.

    Args:
        config: ``method``, ``model`` and ``data.crop`` are read.
        num_classes: k.
        load_weights: False leaves out the encoder's pretrained weights, for a checkpoint that follows.

    Raises:
        ConfigError: the configuration does not fit.
        CheckpointError: the encoder's weights cannot be had.
    """
    plain = build_segmenter(network_config(config), num_classes, config.data.crop, load_weights=load_weights)
    return METHODS[config.method.name].make_network(config.method, plain)
