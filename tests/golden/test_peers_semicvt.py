"""SemiCVT's exchange between branches equals the official module, in float64 (arrays: see README.md here)."""

import torch

from allspark.models.semicvt import LocalGlobalInteraction
from tests.golden.arrays import Arrays
from tests.golden.test_peers import close

SIDE = {
    "{}_down": "down",
    "{}_up": "up",
    "norm_{}_1": "norm",
    "norm_{}_2": "mlp.0",
    "mlp_{}.fc1": "mlp.1.0",
    "mlp_{}.fc2": "mlp.1.2",
    "filter.spatial_interaction_{}": "gate",
}
"""Names of the published module and ours, one side's."""


def test_local_global_interaction():
    arrays = Arrays("peers/semicvt_lgi")
    published, state = arrays.part("sd/"), {}
    for side, branch in (("local", "cnn"), ("wide", "trans")):
        for theirs, ours in SIDE.items():
            part = arrays.part(f"sd/{theirs.format(branch)}.")
            state |= {f"{side}.{ours}.{name}": tensor for name, tensor in part.items()}
    assert len(state) == len(published)
    module = LocalGlobalInteraction(16, 32).double()
    module.load_state_dict(state)
    local, wide = module.eval()(arrays["x_cnn"], arrays["x_trans"])
    close(local, arrays["y_cnn"])
    close(wide, arrays["y_trans"])
    assert not torch.equal(local, arrays["x_cnn"])
