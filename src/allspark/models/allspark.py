"""AllSpark: labelled features reborn from unlabelled ones (Wang, Zhang, Li, Li, CVPR 2024).

Read top to bottom: channel attention (section 3.2 of the paper), the semantic memory (3.3), channel grouping
(3.4), and the bottleneck that joins them between encoder and decoder. Where the paper and the published
implementation differ, this follows the implementation, from which the published results come;
docs/paper-and-code.md lists every difference.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from allspark.errors import CheckpointError
from allspark.kernels.attention import channel_attention
from allspark.kernels.matmul import mix_channels
from allspark.models.published import BOTTLENECK_NAMES, from_published
from allspark.runtime.collectives import all_gather

Grouping = Literal["class-scores", "paper", "off"]
Grid = tuple[int, int]


@dataclass(frozen=True)
class Guide:
    """All that the bottleneck needs beside the features, in training.

    Attributes:
        num_labeled: the first so many images of the batch are labelled.
        class_scores: (u, k, h', w'), logits of the unlabelled images, at any resolution.
        read_memory: False while the memory warms up.
    """

    num_labeled: int
    class_scores: Tensor
    read_memory: bool


class ChannelAttention(nn.Module):
    """Attention between channels: an image's channels are the sequence, its tokens the dimensions.

    Equation (3): softmax(psi(q kᵀ)) v with one row a channel, where psi is an instance norm over the whole score map,
    and q, k, v are linear maps c -> heads x c without bias.

    Args:
        channels: c.
        num_heads: the projections are ``num_heads`` times as wide as the input.
        dropout: of the attention weights and of the output.
    """

    def __init__(self, channels: int, num_heads: int = 2, dropout: float = 0.1) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(channels, num_heads * channels, bias=False)
        self.key = nn.Linear(channels, num_heads * channels, bias=False)
        self.value = nn.Linear(channels, num_heads * channels, bias=False)
        self.out = nn.Linear(num_heads * channels, channels, bias=False)

    def within_heads(self, channels: Float[Tensor, "u c n"]) -> Float[Tensor, "u c n"]:
        """Self-attention of unlabelled images, (u, c, n) -> (u, c, n): c x c scores in each head."""
        u, c, n = channels.shape
        heads = (u * self.num_heads, c, n)
        q, k, v = (mix_channels(layer.weight, channels).view(heads) for layer in (self.query, self.key, self.value))
        attended = self._attend(q, k, v).view(u, self.num_heads, c, n)
        # Published weights split heads in blocks but join them channel by channel: (c, heads), not (heads, c).
        return self._project(attended.transpose(1, 2).reshape(u, -1, n))

    def across_heads(
        self, channels: Float[Tensor, "b c n"], source: Float[Tensor, "s c n"] | None = None
    ) -> Float[Tensor, "b c n"]:
        """Attention whose heads see each other's keys, (b, c, n) -> (b, c, n).

        Args:
            channels: the images that ask, (b, c, n): heads x c query channels each.
            source: what they are reborn from, (s, c, n): all its s x heads x c channels are keys for every image.
                None: each image attends to its own channels (inference).
        """
        q = mix_channels(self.query.weight, channels)  # (b, heads * c, n)
        k, v = (mix_channels(layer.weight, channels if source is None else source) for layer in (self.key, self.value))
        if source is not None:
            k, v = (x.flatten(0, 1).unsqueeze(0) for x in (k, v))  # (1, s * heads * c, n)
        return self._project(self._attend(q, k, v))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return channel_attention(q, k, v, self.dropout if self.training else 0.0)

    def _project(self, channels: Tensor) -> Tensor:
        return F.dropout(mix_channels(self.out.weight, channels), self.dropout, self.training)


class SemanticMemory(nn.Module):
    """First-in-first-out queues of unlabelled channels, one a class (section 3.3).

    Every process writes the same channels in the same order, so that all hold the same memory.

    Attributes:
        channels: (k, slots, n), the remembered channels; slots = c.
        written: (k,), how many channels each class ever received. The cursor is ``written % slots``.
        born: (k, slots), after how many writes each channel came; 0 for slots that are still empty.
        writes: how many writes there were.
    """

    channels: Tensor
    written: Tensor
    born: Tensor
    writes: Tensor

    def __init__(self, num_classes: int, slots: int, grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        self.register_buffer("channels", torch.randn(num_classes, slots, grid[0] * grid[1]))
        self.register_buffer("written", torch.zeros(num_classes, dtype=torch.int64))
        self.register_buffer("born", torch.zeros(num_classes, slots, dtype=torch.int64))
        self.register_buffer("writes", torch.zeros((), dtype=torch.int64))

    @property
    def cursor(self) -> Tensor:
        """(k,), the slot that the next channel of each class goes to."""
        return self.written % self.channels.shape[1]

    @property
    def fill(self) -> Tensor:
        """(k,), the filled share of each class's slots, 0 to 1."""
        return self.written.clamp(max=self.channels.shape[1]) / self.channels.shape[1]

    @property
    def age(self) -> Tensor:
        """(k,), how many writes ago the remembered channels of each class came, on average; nan for empty queues."""
        ages = (self.writes - self.born).double()
        return ages.where(self.born > 0, torch.nan).nanmean(1)

    @torch.no_grad()
    def write(self, channels: Float[Tensor, "u c n"], classes: Int[Tensor, "u c"] | None, grid: Grid) -> None:
        """Enqueue the channels of unlabelled images, image by image and channel by channel.

        No loop over channels and no transfer to the host: a channel's slot is its class's cursor plus its rank
        among the new channels of that class; where a class receives more than it has slots, the last one stays.

        Args:
            channels: (u, c, n) on ``grid``.
            classes: (u, c), the class of each channel; None: all classes form one queue.
            grid: height and width of the token grid of ``channels``.
        """
        new = _resample(channels, grid, self.grid).flatten(0, 1)  # (u * c, n)
        num_classes, slots, _ = self.channels.shape
        order = torch.arange(len(new), device=new.device)
        if classes is None:
            slot = (self.written.sum() + order) % (num_classes * slots)
            member = _one_hot(slot // slots, num_classes)
        else:
            member = _one_hot(classes.flatten(), num_classes)  # (u * c, k)
            rank = (member.cumsum(0) * member).sum(1) - 1
            slot = (self.cursor[classes.flatten()] + rank) % slots + classes.flatten() * slots
        last = order.new_zeros(num_classes * slots).scatter_reduce(0, slot, order, "amax")
        self.channels.view(-1, new.shape[1])[slot] = new[last[slot]].to(self.channels.dtype)
        self.written += member.sum(0)
        self.writes += 1
        self.born.view(-1)[slot] = self.writes

    def read(self, grid: Grid) -> Float[Tensor, "k c n"]:
        """The remembered channels, (k, slots, n), resampled to the asked grid."""
        return _resample(self.channels, self.grid, grid)


def group_channels(
    channels: Float[Tensor, "u c n"], class_scores: Float[Tensor, "u k ..."], grid: Grid, how: Grouping = "class-scores"
) -> Int[Tensor, "u c"]:
    """Assign each channel of an unlabelled image to the class whose score map it resembles most (section 3.4).

    Args:
        channels: (u, c, n).
        class_scores: (u, k, h', w'), logits at any resolution.
        grid: height and width of the token grid.
        how: ``class-scores`` as in the published code: raw logits, each class map and each channel L2-normalised
            over tokens. ``paper``: probabilities, no L2 norm; the paper's instance norm of the similarity map
            shifts and scales all classes alike, so the argmax does not need it.

    Returns:
        (u, c), class ids.
    """
    with torch.autocast(channels.device.type, enabled=False):  # similarities are close: half precision would misplace
        channels = channels if channels.dtype == torch.float64 else channels.float()
        scores = class_scores.to(channels.dtype)
        if how == "paper":
            scores = scores.softmax(1)
        maps = F.interpolate(scores, grid, mode="bilinear", align_corners=False).flatten(2)
        if how == "class-scores":
            maps, channels = F.normalize(maps, dim=2), F.normalize(channels, dim=2)
        return (maps @ channels.mT).argmax(1)  # (u, k, c) -> (u, c)


class AllSparkBottleneck(nn.Module):
    """The paper's module: cross-attention in training, self-attention in inference (figure 3).

    Args:
        channels: c of the feature map.
        num_classes: k, queues of the memory.
        grid: (h, w) of the memory's token grid; other grids are resampled to and from it.
        num_heads: width of the projections, in multiples of ``channels``.
        dropout: of attention weights and projections.
        memory: False: labelled images attend to the unlabelled ones of their batch only.
        grouping: see :func:`group_channels`; ``off``: channels enter the memory without classes.
        warmup_epochs: how long whoever trains the module should not let it read its memory (``Guide.read_memory``).
        gate: return ``feature + gate * reborn`` in place of ``reborn``, with one learnt number a channel that begins
            at 0: a pretrained network is unchanged at first. Not in the paper; see docs/concepts.md.
        own: probability that a labelled image attends in training to its own channels, as all do in inference.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        grid: Grid,
        num_heads: int = 2,
        dropout: float = 0.1,
        *,
        memory: bool = True,
        grouping: Grouping = "class-scores",
        warmup_epochs: float = 0.0,
        gate: bool = False,
        own: float = 0.0,
    ) -> None:
        super().__init__()
        self.own = own
        self.warmup_epochs = warmup_epochs
        self.grouping: Grouping = grouping
        self.project_in = nn.Conv2d(channels, channels, 1)
        self.norm_in = nn.LayerNorm(channels, eps=1e-6)
        self.labeled = ChannelAttention(channels, num_heads, dropout)
        self.unlabeled = ChannelAttention(channels, num_heads, dropout)
        self.memory = SemanticMemory(num_classes, channels, grid) if memory else None
        self.norm_out = nn.LayerNorm(channels, eps=1e-6)
        self.project_out = nn.Conv2d(channels, channels, 1)
        # One axis, as norms and biases have: optim.decay_norms=false leaves it alone.
        self.gate = nn.Parameter(torch.zeros(channels)) if gate else None

    def forward(
        self, feature: Float[Tensor, "b c h w"], guide: Guide | None = None, *, from_memory: bool = False
    ) -> Float[Tensor, "b c h w"]:
        """Let labelled features be reborn.

        Args:
            feature: (b, c, h, w); in training the labelled images come first.
            guide: what training needs beside the features; None is inference, where each image attends to its
                own channels and the memory is not written.
            from_memory: inference from the memory instead, as labelled images in training.

        Returns:
            (b, c, h, w).
        """
        grid = (feature.shape[2], feature.shape[3])
        tokens = F.gelu(self.project_in(feature)).flatten(2).transpose(1, 2)  # (b, n, c)
        channels = self.norm_in(tokens).transpose(1, 2)  # (b, c, n)
        if guide is None:
            assert self.memory is not None or not from_memory
            remembered = self.memory.read(grid) if self.memory is not None and from_memory else None
            attended = self.labeled.across_heads(channels, remembered)
        else:
            labeled, unlabeled = channels.tensor_split([guide.num_labeled])
            source = self._source(unlabeled, guide, grid)
            attended = torch.cat([self._reborn(labeled, source), self.unlabeled.within_heads(unlabeled)])
        tokens = self.norm_out(tokens + attended.transpose(1, 2))
        reborn = F.gelu(self.project_out(tokens.transpose(1, 2).reshape(feature.shape)))
        return reborn if self.gate is None else feature + (self.gate[:, None, None] * reborn).to(feature.dtype)

    def _reborn(self, labeled: Tensor, source: Tensor) -> Tensor:
        """Attention of labelled images to their source or, drawn for each of them, to their own channels."""
        reborn = self.labeled.across_heads(labeled, source)
        if not (self.own and self.training):
            return reborn
        alone = torch.rand(len(labeled), 1, 1, device=labeled.device) < self.own
        return torch.where(alone, self.labeled.across_heads(labeled), reborn)  # both, so as not to wait for the draw

    def _source(self, unlabeled: Tensor, guide: Guide, grid: Grid) -> Tensor:
        """What labelled channels are reborn from, (s, c, n); the memory is written before it is read.

        Unlabelled images of the batch are those of all processes, so that every memory holds the same.
        """
        source = all_gather(unlabeled)
        if self.memory is None:
            return source
        with torch.no_grad():
            off = self.grouping == "off"
            classes = None if off else group_channels(unlabeled, guide.class_scores, grid, self.grouping)
        self.memory.write(source, None if classes is None else all_gather(classes), grid)
        return self.memory.read(grid) if guide.read_memory else source

    @classmethod
    def from_reference(cls, state: Mapping[str, Tensor], dropout: float = 0.1) -> AllSparkBottleneck:
        """Build the module from tensors in the published layout; all sizes are inferred.

        Args:
            state: ``map_in.0.weight``, ``attn.q_u.weight``, ``attn.kv_queue`` and so on.
            dropout: of attention weights and projections.

        Raises:
            CheckpointError: a tensor is missing or the memory's grid is not square.
        """
        renamed = from_published(state, BOTTLENECK_NAMES, "AllSpark bottleneck")
        num_classes, channels, tokens = renamed["memory.channels"].shape
        side = round(tokens**0.5)
        if side * side != tokens:
            raise CheckpointError(f"the memory holds {tokens} tokens; the published layout has a square grid")
        heads = renamed["labeled.query.weight"].shape[0] // channels
        module = cls(channels, num_classes, (side, side), heads, dropout).to(renamed["memory.channels"].dtype)
        unknown = {f"memory.{name}": getattr(module.memory, name) for name in ("born", "writes")}
        module.load_state_dict(renamed | unknown)
        return module


def _one_hot(classes: Tensor, count: int) -> Tensor:
    """(m,) -> (m, count) int64; torch's own reads the values to check them, which waits for the device."""
    return (classes[:, None] == torch.arange(count, device=classes.device)).long()


def _resample(channels: Tensor, grid: Grid, target: Grid) -> Tensor:
    """Bring channels (b, c, n) from one token grid to another, bilinear."""
    if grid == target:
        return channels
    return F.interpolate(
        channels.reshape(*channels.shape[:2], *grid), target, mode="bilinear", align_corners=False
    ).flatten(2)
