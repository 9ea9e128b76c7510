from pathlib import Path

import numpy as np
import pytest
import torch

from allspark.methods.losses import ohem_cross_entropy
from tests.helpers import pixels

GOLDEN = np.load(Path(__file__).parent / "ohem.npz")


@pytest.mark.parametrize("case", range(4))
def test_ohem_equals_the_published_implementation(case):
    values = {name: GOLDEN[f"case{case}.{name}"] for name in ("logits", "target", "thresh", "min_kept", "loss")}
    logits = torch.from_numpy(values["logits"])
    assert logits.dtype == torch.float64
    loss = ohem_cross_entropy(
        pixels(logits),
        torch.from_numpy(values["target"]),
        threshold=float(values["thresh"]),
        min_kept=int(values["min_kept"]),
    ).mean()
    np.testing.assert_allclose(loss.item(), values["loss"], rtol=1e-9)
