"""Earlier students: frozen copies of a network as it was."""

from __future__ import annotations

import copy
import random
from collections.abc import Mapping
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from allspark.kernels.logits import Logits
from allspark.models.segmenter import Segmenter
from allspark.runtime.host_memory import require_host_memory


class History(nn.Module):
    """The last few of a network's earlier states that were kept; no gradient, eval mode, saved in checkpoints.

    There are as many copies as there may be, from the beginning, so that checkpoints have one layout; ``kept`` counts
    those that ever were. How many there are is known on the host: a step reads nothing back.

    Args:
        network: as it is now; the copies are made of it.
        length: how many states are kept.

    Raises:
        ConfigError: they do not fit into the machine's memory.
    """

    kept: Tensor

    def __init__(self, network: Segmenter, length: int) -> None:
        super().__init__()
        needed = (1 + length) * sum(x.nbytes for x in (*network.parameters(), *network.buffers()))
        what = f"method.history: {length} earlier students and the network need"
        require_host_memory(needed, what, "set a smaller method.history or model.encoder")
        copies = (copy.deepcopy(network).requires_grad_(False).eval() for _ in range(length))
        self.networks = nn.ModuleList(copies)
        self.register_buffer("kept", torch.zeros((), dtype=torch.int64))
        self._kept = 0  # the buffer's value, on the host
        self.register_load_state_dict_post_hook(lambda *_: self._count())

    def __len__(self) -> int:
        """How many states there are."""
        return min(self._kept, len(self.networks))

    def train(self, mode: bool = True) -> History:
        """Stay in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def keep(self, network: Segmenter) -> None:
        """Keep a network as it is now, in the place of the oldest one where all places are taken."""
        place = self.networks[self._kept % len(self.networks)]
        for copied, current in ((place.parameters(), network.parameters()), (place.buffers(), network.buffers())):
            for mine, new in zip(copied, current, strict=True):
                mine.copy_(new)
        self._kept += 1
        self.kept += 1

    def draw(self, most: int, seed: int) -> dict[int, float]:
        """Choose one to ``most`` states, no more than there are, and weights that sum to 1 (Dirichlet, all ones).

        Args:
            most: how many at most.
            seed: the same choice for the same seed, in every process.

        Returns:
            The weight of each that is chosen, by its place.
        """
        rng = random.Random(seed)
        chosen = rng.sample(range(len(self)), min(rng.randint(1, most), len(self)))
        shares = [rng.expovariate(1.0) for _ in chosen]
        return {place: share / sum(shares) for place, share in zip(chosen, shares, strict=True)}

    @torch.no_grad()
    def logits(self, image: Float[Tensor, "b 3 H W"], weights: Mapping[int, float]) -> Logits:
        """The weighted sum of some states' logits.

        Args:
            image: normalised.
            weights: of each state, by its place; one at least.
        """
        each = [self.state(place).logits(image) for place in weights]
        torch.clear_autocast_cache()  # see methods.base.eval_logits
        coarse = [weight * logits.coarse for weight, logits in zip(weights.values(), each, strict=True)]
        return replace(each[0], coarse=torch.stack(coarse).sum(0))

    def state(self, place: int) -> Segmenter:
        """The network at a place, as it was."""
        network = self.networks[place]
        assert isinstance(network, Segmenter)
        return network

    def _count(self) -> None:
        self._kept = int(self.kept)
