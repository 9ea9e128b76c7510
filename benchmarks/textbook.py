"""AllSpark written straight from its equations: nothing is saved, nothing is shared.

This is what the product is measured against, and an independent statement of the same mathematics that the tests
compare with the published arrays. The attention map is stored, the memory is written channel by channel, the head
works on the concatenation of four upsampled maps, and inference doubles the batch, runs both paths and throws one
away. Parameters carry the names of the published checkpoint layout, so its tensors load with ``load_state_dict``.

Dimension legend: b batch, l labelled, u unlabelled, k classes, c channels, n tokens (grid h x w), H W pixels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import SegformerConfig, SegformerModel

from allspark.batch import IGNORE, TrainBatch
from allspark.models.allspark import Guide

MIT_DEPTHS = {
    "mit-b0": (2, 2, 2, 2),
    "mit-b1": (2, 2, 2, 2),
    "mit-b2": (3, 4, 6, 3),
    "mit-b3": (3, 4, 18, 3),
    "mit-b4": (3, 8, 27, 3),
    "mit-b5": (3, 6, 40, 3),
}


def instance_normed_attention(query: Tensor, key: Tensor, value: Tensor, dropout: nn.Dropout) -> Tensor:
    """softmax(InstanceNorm(qᵀ k)) vᵀ with the map held in memory.

    Args:
        query: (b, r, n), r query channels.
        key: (b, s, n) or, for all images the same, (s, n).
        value: like ``key``.
        dropout: of the attention weights.

    Returns:
        (b, r, n).
    """
    scores = query @ key.mT  # (b, r, s)
    scores = F.instance_norm(scores.unsqueeze(1), eps=1e-5).squeeze(1)  # over the whole map of an image
    return dropout(scores.softmax(-1)) @ value


class TextbookAttention(nn.Module):
    """Both channel attentions and the semantic memory (sections 3.2 and 3.3 of the paper)."""

    kv_queue: Tensor
    queue_ptr: Tensor

    def __init__(self, channels: int, num_classes: int, tokens: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        for name in ("q_u", "k_u", "v_u", "q_l2u", "k_l2u", "v_l2u"):
            setattr(self, name, nn.Linear(channels, num_heads * channels, bias=False))
        self.out_u = nn.Linear(num_heads * channels, channels, bias=False)
        self.out_l2u = nn.Linear(num_heads * channels, channels, bias=False)
        self.attn_dropout = nn.Dropout(dropout)
        self.proj_dropout = nn.Dropout(dropout)
        self.register_buffer("kv_queue", torch.randn(num_classes, channels, tokens))
        self.register_buffer("queue_ptr", torch.zeros(num_classes, dtype=torch.int64))

    def forward(self, labeled: Tensor, unlabeled: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        """Return the attended labelled (l, n, c) and unlabelled tokens (u, n, c); source is (s, n, c)."""
        heads = [
            instance_normed_attention(q.mT, k.mT, v.mT, self.attn_dropout).mT  # (u, n, c)
            for q, k, v in zip(
                self.q_u(unlabeled).chunk(self.num_heads, 2),
                self.k_u(unlabeled).chunk(self.num_heads, 2),
                self.v_u(unlabeled).chunk(self.num_heads, 2),
                strict=True,
            )
        ]
        out_u = self.proj_dropout(self.out_u(torch.stack(heads, 3).flatten(2)))  # channel-major, as published

        keys = self.k_l2u(source).transpose(1, 2).flatten(0, 1)  # (s * heads * c, n)
        values = self.v_l2u(source).transpose(1, 2).flatten(0, 1)
        attended = instance_normed_attention(self.q_l2u(labeled).mT, keys, values, self.attn_dropout)  # (l, heads*c, n)
        return self.proj_dropout(self.out_l2u(attended.mT)), out_u

    @torch.no_grad()
    def group(self, unlabeled: Tensor, class_scores: Tensor, grid: Sequence[int]) -> Tensor:
        """The class of every channel, (u, c), by cosine similarity with the class score maps."""
        maps = F.interpolate(class_scores, size=tuple(grid), mode="bilinear", align_corners=False).flatten(2)
        similarity = F.normalize(maps, dim=2) @ F.normalize(unlabeled, dim=1)  # (u, k, c)
        return similarity.argmax(1)

    @torch.no_grad()
    def enqueue(self, unlabeled: Tensor, classes: Tensor) -> None:
        """First in, first out per class: image by image, channel by channel."""
        slots = self.kv_queue.shape[1]
        for tokens, row in zip(unlabeled, classes.tolist(), strict=True):
            for channel, category in enumerate(row):
                slot = int(self.queue_ptr[category])
                self.kv_queue[category, slot] = tokens[:, channel]
                self.queue_ptr[category] = (slot + 1) % slots


class TextbookBottleneck(nn.Module):
    """The bottleneck in the published tensor layout.

    Args:
        channels: c.
        num_classes: k.
        grid: (h, w) of the memory.
        num_heads: heads of the channel attention.
        dropout: of the attention weights and of the projections.
    """

    def __init__(
        self, channels: int, num_classes: int, grid: tuple[int, int], num_heads: int = 2, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.map_in = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.GELU())
        self.attn_norm = nn.LayerNorm(channels, eps=1e-6)
        self.attn = TextbookAttention(channels, num_classes, grid[0] * grid[1], num_heads, dropout)
        self.encoder_norm = nn.LayerNorm(channels, eps=1e-6)
        self.map_out = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.GELU())

    def forward(self, feature: Tensor, guide: Guide | None = None) -> Tensor:
        """(b, c, h, w) -> the same. Without a guide the batch is doubled and keys mix all its images."""
        images, _, height, width = feature.shape
        if guide is None:
            feature = torch.cat([feature, feature])
        tokens = self.map_in(feature).flatten(2).transpose(1, 2)  # (b, n, c)
        normed = self.attn_norm(tokens)
        split = images if guide is None else guide.num_labeled
        labeled, unlabeled = normed[:split], normed[split:]
        source = unlabeled
        if guide is not None:
            self.attn.enqueue(unlabeled, self.attn.group(unlabeled, guide.class_scores, (height, width)))
            if guide.read_memory:
                source = self.attn.kv_queue.transpose(1, 2).clone()  # (k, n, slots), kept for the backward pass
        tokens = self.encoder_norm(tokens + torch.cat(self.attn(labeled, unlabeled, source)))
        out = self.map_out(tokens.transpose(1, 2).unflatten(2, (height, width)))
        return out[:images] if guide is None else out


class _Projection(nn.Module):
    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, channels)

    def forward(self, feature: Tensor) -> Tensor:
        height, width = feature.shape[2:]
        return self.proj(feature.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (height, width))


class TextbookHead(nn.Module):
    """SegFormer's head: project each stage, upsample all to the first, concatenate, fuse, classify.

    Args:
        widths: channels of the four stages.
        channels: width of the head.
        num_classes: k.
        dropout: channel dropout before the classifier.
    """

    def __init__(self, widths: Sequence[int], channels: int, num_classes: int, dropout: float = 0.1) -> None:
        super().__init__()
        for stage, width in enumerate(widths, start=1):
            setattr(self, f"linear_c{stage}", _Projection(width, channels))
        self.linear_fuse = nn.ModuleDict(
            {"conv": nn.Conv2d(len(widths) * channels, channels, 1, bias=False), "bn": nn.BatchNorm2d(channels)}
        )
        self.dropout = nn.Dropout2d(dropout)
        self.linear_pred = nn.Conv2d(channels, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Four maps (b, c_i, h_i, w_i) -> class scores (b, k, h_1, w_1)."""
        size = features[0].shape[2:]
        maps = [
            F.interpolate(getattr(self, f"linear_c{stage}")(feature), size=size, mode="bilinear", align_corners=False)
            for stage, feature in enumerate(features, start=1)
        ]
        fused = self.linear_fuse["bn"](self.linear_fuse["conv"](torch.cat(maps[::-1], 1)))
        return self.linear_pred(self.dropout(F.relu(fused)))


class TextbookSegmenter(nn.Module):
    """MiT encoder, bottleneck on its last stage, SegFormer head; scores are upsampled to the image.

    Args:
        encoder: a transformers ``SegformerModel``.
        bottleneck: None for plain SegFormer.
        head: the decoder.
    """

    def __init__(self, encoder: nn.Module, bottleneck: TextbookBottleneck | None, head: TextbookHead) -> None:
        super().__init__()
        self.backbone = encoder
        self.decoder = nn.ModuleDict({"allspark": bottleneck} if bottleneck is not None else {})
        self.decoder["decoder"] = head

    def forward(self, image: Tensor, guide: Guide | None = None) -> Tensor:
        """(b, 3, H, W) -> class scores (b, k, H, W)."""
        features = list(self.backbone(pixel_values=image, output_hidden_states=True).hidden_states)
        if "allspark" in self.decoder:
            features[-1] = self.decoder["allspark"](features[-1], guide)
        scores = self.decoder["decoder"](features)
        return F.interpolate(scores, size=image.shape[2:], mode="bilinear", align_corners=False)


def pseudo_scores(model: nn.Module, image: Tensor) -> Tensor:
    """Class scores (u, k, H, W) of unlabelled images by the network in eval mode."""
    training = model.training
    model.eval()
    with torch.no_grad():
        scores = model(image)
    model.train(training)
    return scores


def textbook_losses(
    model: nn.Module, batch: TrainBatch, read_memory: bool, scores: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of one training step of AllSpark.

    Args:
        model: the segmenter, in training mode.
        batch: labelled and unlabelled crops.
        read_memory: False while the memory warms up.
        scores: class scores of the unlabelled images; None: computed here.

    Returns:
        the labelled, the unlabelled and the total loss.
    """
    if batch.unlabeled is None:
        raise ValueError("the textbook step learns from unlabelled images too; the batch has none")
    if scores is None:
        scores = pseudo_scores(model, batch.unlabeled.weak)
    target = scores.argmax(1)
    if batch.unlabeled.valid is not None:
        target = target.masked_fill(~batch.unlabeled.valid, IGNORE)
    guide = Guide(len(batch.labeled.image), scores, read_memory)
    logits = model(torch.cat([batch.labeled.image, batch.unlabeled.weak]), guide)
    labeled, unlabeled = logits.split([guide.num_labeled, len(batch.unlabeled.weak)])
    loss_l = F.cross_entropy(labeled, batch.labeled.mask, ignore_index=IGNORE)
    loss_u = F.cross_entropy(unlabeled, target, ignore_index=IGNORE)
    return loss_l, loss_u, (loss_l + loss_u) / 2


def mit_config(name: str, attention: str = "eager", drop_path: float = 0.1) -> SegformerConfig:
    """The transformers configuration of ``mit-b0`` .. ``mit-b5``; published MiTs compute attention eagerly."""
    small = name == "mit-b0"
    config = SegformerConfig(
        depths=list(MIT_DEPTHS[name]),
        hidden_sizes=[32, 64, 160, 256] if small else [64, 128, 320, 512],
        drop_path_rate=drop_path,
    )
    config._attn_implementation = attention
    return config


def build_encoder(config: SegformerConfig) -> SegformerModel:
    """A randomly initialised MiT with the published layer-norm eps (1e-6; 1e-5 in embeddings and key reduction)."""
    encoder = SegformerModel(config)
    set_eps(encoder)
    return encoder


def set_eps(encoder: nn.Module) -> None:
    """Give the layer norms of a MiT the published eps."""
    for name, module in encoder.named_modules():
        if isinstance(module, nn.LayerNorm) and "patch_embeddings" not in name and "sequence_reduction" not in name:
            module.eps = 1e-6


def published_encoder(state: Mapping[str, Tensor], prefix: str = "backbone.") -> dict[str, Tensor]:
    """Encoder tensors of a published checkpoint under the names of transformers' modules in memory."""
    renamed: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if not key.startswith(prefix):
            continue
        name = key.removeprefix(prefix)
        for pattern, target in _ENCODER_NAMES:
            if match := re.fullmatch(pattern, name):
                stage = int(match["stage"]) - 1
                name = match.expand(target).replace("STAGE", str(stage))
                break
        if ".kv." in name:
            renamed[name.replace(".kv.", ".k_proj.")], renamed[name.replace(".kv.", ".v_proj.")] = tensor.chunk(2)
        else:
            renamed[name] = tensor
    return renamed


_BLOCK = r"block(?P<stage>\d)\.(?P<block>\d+)\."
_ENCODER_NAMES: tuple[tuple[str, Any], ...] = (
    (r"patch_embed(?P<stage>\d)\.proj\.(?P<leaf>.+)", r"stages.STAGE.patch_embeddings.proj.\g<leaf>"),
    (r"patch_embed(?P<stage>\d)\.norm\.(?P<leaf>.+)", r"stages.STAGE.patch_embeddings.layer_norm.\g<leaf>"),
    (r"norm(?P<stage>\d)\.(?P<leaf>.+)", r"stages.STAGE.layer_norm.\g<leaf>"),
    (_BLOCK + r"norm1\.(?P<leaf>.+)", r"stages.STAGE.blocks.\g<block>.layernorm_before.\g<leaf>"),
    (_BLOCK + r"norm2\.(?P<leaf>.+)", r"stages.STAGE.blocks.\g<block>.layernorm_after.\g<leaf>"),
    (_BLOCK + r"attn\.q\.(?P<leaf>.+)", r"stages.STAGE.blocks.\g<block>.attention.q_proj.\g<leaf>"),
    (_BLOCK + r"attn\.kv\.(?P<leaf>.+)", r"stages.STAGE.blocks.\g<block>.attention.kv.\g<leaf>"),
    (_BLOCK + r"attn\.proj\.(?P<leaf>.+)", r"stages.STAGE.blocks.\g<block>.attention.o_proj.\g<leaf>"),
    (
        _BLOCK + r"attn\.sr\.(?P<leaf>.+)",
        r"stages.STAGE.blocks.\g<block>.attention.sequence_reduction.sequence_reduction.\g<leaf>",
    ),
    (
        _BLOCK + r"attn\.norm\.(?P<leaf>.+)",
        r"stages.STAGE.blocks.\g<block>.attention.sequence_reduction.layer_norm.\g<leaf>",
    ),
    (_BLOCK + r"mlp\.dwconv\.dwconv\.(?P<leaf>.+)", r"stages.STAGE.blocks.\g<block>.mlp.dwconv.dwconv.\g<leaf>"),
    (_BLOCK + r"mlp\.(?P<leaf>fc.+)", r"stages.STAGE.blocks.\g<block>.mlp.\g<leaf>"),
)
