"""AllSpark (Wang, Zhang, Li, Li, CVPR 2024): labelled features are reborn from unlabelled ones."""

from __future__ import annotations

from allspark.config import methods as config
from allspark.methods.pseudo_label import PseudoLabel


class AllSpark(PseudoLabel):
    """Pseudo-labels as usual, on a network whose bottleneck rebuilds the labelled features from unlabelled ones.

    All that is new lies in the bottleneck, :class:`allspark.models.allspark.AllSparkBottleneck`, which any method with
    labelled and unlabelled images in one pass can have (``model.bottleneck=allspark``): this one always does.
    """

    settings = config.AllSpark
