"""Open the golden arrays."""

from pathlib import Path

import numpy as np
import torch


class Arrays:
    def __init__(self, name):
        self.arrays = np.load(Path(__file__).parent / f"{name}.npz")

    def __getitem__(self, key):
        return torch.from_numpy(np.array(self.arrays[key]))

    def part(self, prefix):
        return {key.removeprefix(prefix): self[key] for key in self.arrays.files if key.startswith(prefix)}
