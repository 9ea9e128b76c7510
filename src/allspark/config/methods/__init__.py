"""The settings of each method, one file a method, told apart by ``name``.

Torch-free: the methods themselves are in allspark.methods, under the same file names. A configuration holds the
settings of one method, and no other's.
"""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches

from allspark.config.methods.ael import AEL, Equalization
from allspark.config.methods.allspark import AllSpark
from allspark.config.methods.augseg import AugSeg
from allspark.config.methods.base import Consistency, ContrastTeacher, JointTeacher, MeanTeacher, MethodConfig
from allspark.config.methods.ccvc import CCVC
from allspark.config.methods.corrmatch import CorrMatch
from allspark.config.methods.cps import CPS, CrossSupervision
from allspark.config.methods.cutmix_seg import CutMixSeg
from allspark.config.methods.dgcl import DGCL
from allspark.config.methods.fixmatch import FixMatch
from allspark.config.methods.fpl import FPL, FPLOnAEL
from allspark.config.methods.gta_seg import GTASeg
from allspark.config.methods.logicdiag import LogicDiag
from allspark.config.methods.mkd import MKD
from allspark.config.methods.pc2seg import PC2Seg
from allspark.config.methods.prevmatch import PrevMatch
from allspark.config.methods.ps_mt import PSMT
from allspark.config.methods.pseudo_label import PseudoLabel
from allspark.config.methods.pseudoseg import PseudoSeg
from allspark.config.methods.semicvt import SemiCVT
from allspark.config.methods.semivl import SemiVL
from allspark.config.methods.st_plus_plus import STPlusPlus
from allspark.config.methods.supervised import Supervised
from allspark.config.methods.u2pl import U2PL
from allspark.config.methods.unimatch import UniMatch
from allspark.config.methods.unimatch_v2 import UniMatchV2
from allspark.config.plugins import load_entry_points
from allspark.errors import ConfigError

__all__ = [
    "AEL",
    "CCVC",
    "CPS",
    "DGCL",
    "FPL",
    "METHOD_CONFIGS",
    "MKD",
    "PSMT",
    "U2PL",
    "AllSpark",
    "AugSeg",
    "Consistency",
    "ContrastTeacher",
    "CorrMatch",
    "CrossSupervision",
    "CutMixSeg",
    "Equalization",
    "FPLOnAEL",
    "FixMatch",
    "GTASeg",
    "JointTeacher",
    "LogicDiag",
    "MeanTeacher",
    "MethodConfig",
    "PC2Seg",
    "PrevMatch",
    "PseudoLabel",
    "PseudoSeg",
    "STPlusPlus",
    "SemiCVT",
    "SemiVL",
    "Supervised",
    "UniMatch",
    "UniMatchV2",
    "joint_methods",
    "method_config",
]

_ALL: tuple[type[MethodConfig], ...] = (
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

METHOD_CONFIGS: dict[str, type[MethodConfig]] = {settings.model_fields["name"].default: settings for settings in _ALL}
"""Settings by the name of their method."""


def method_config(name: str) -> type[MethodConfig]:
    """The settings of a method, built in, of a plug-in that was loaded, or of an installed one.

    Raises:
        ConfigError: there is no such method; the nearest one is named.
    """
    if name not in METHOD_CONFIGS:
        load_entry_points()
    if name not in METHOD_CONFIGS:
        near = get_close_matches(name.lower(), METHOD_CONFIGS, 1, 0.5)
        raise ConfigError(
            f"method.name: no method {name!r}; "
            + (f"did you mean {near[0]}? " if near else "")
            + f"there are {', '.join(METHOD_CONFIGS)}; one of your own comes with --plugin FILE"
        )
    return METHOD_CONFIGS[name]


def joint_methods() -> Iterator[str]:
    """Names of the methods that can use ``model.bottleneck=allspark``."""
    return (name for name, settings in METHOD_CONFIGS.items() if settings.joint)
