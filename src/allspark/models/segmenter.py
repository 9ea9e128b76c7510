"""The network: encoder -> bottleneck on the last stage -> decoder. Each part can be called by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from allspark.batch import Normalisation
from allspark.config.schema import ModelConfig
from allspark.errors import CheckpointError, ConfigError
from allspark.kernels.logits import Auxiliary, Logits, Size
from allspark.models.allspark import AllSparkBottleneck, Guide
from allspark.models.decoders import AuxiliaryHead, DeepLabV3Plus, SegformerHead
from allspark.models.dpt import DPTHead
from allspark.models.encoder import Encoder
from allspark.models.encoders import build_encoder, published_encoder
from allspark.runtime.modes import evaluating

_LARGE = 20_000_000  # parameters; between MiT-B1 (13.2 M) and MiT-B2 (24.2 M), where SegFormer's head grows
_AUXILIARY_WIDTH = 256  # channels, a quarter of what a ResNet's third stage has

Decoder = SegformerHead | DeepLabV3Plus | DPTHead
"""Logits from feature maps; ``corners_aligned`` says how they are enlarged, ``predictor`` what labels features."""


@dataclass(frozen=True)
class Features:
    """An encoder's feature maps of b images: to be perturbed, projected, contrasted, decoded.

    Attributes:
        maps: (b, c_i, h_i, w_i) each, finest first.
        padded: (H', W'), the size that the images were computed at.
        size: (H, W) of the images, the upper left part of that.
    """

    maps: tuple[Tensor, ...]
    padded: Size
    size: Size

    def __len__(self) -> int:
        """Number of images."""
        return len(self.maps[0])

    def map(self, function: Callable[[Tensor], Tensor]) -> Features:
        """Change every map, for example by dropout of channels."""
        return replace(self, maps=tuple(function(x) for x in self.maps))

    def split(self, images: Sequence[int]) -> list[Features]:
        """Those of the first ``images[0]`` images, of the next ``images[1]``, and so on."""
        parts = zip(*(x.split(list(images)) for x in self.maps), strict=True)
        return [replace(self, maps=tuple(maps)) for maps in parts]

    @classmethod
    def cat(cls, parts: Sequence[Features]) -> Features:
        """The features of several batches of images of one size, one after the other."""
        maps = tuple(torch.cat(some) for some in zip(*(part.maps for part in parts), strict=True))
        return replace(parts[0], maps=maps)


class Segmenter(nn.Module):
    """Labels every pixel.

    Training calls ``logits`` or the parts, inference the network itself: hooks belong on encoder and decoder.

    Args:
        encoder: feature maps of the image.
        decoder: logits from feature maps.
        bottleneck: AllSpark, between the last feature map and the decoder; None: a plain network.
        auxiliary: a head on the last feature map but one, for the loss of labelled images alone; None: there is none.
    """

    def __init__(
        self,
        encoder: Encoder,
        decoder: Decoder,
        bottleneck: AllSparkBottleneck | None = None,
        auxiliary: AuxiliaryHead | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.bottleneck = bottleneck
        self.decoder = decoder
        self.auxiliary = auxiliary

    @property
    def num_classes(self) -> int:
        """Number of classes k."""
        return self.decoder.classifier.out_channels

    @property
    def normalisation(self) -> Normalisation:
        """How RGB becomes what the network takes."""
        return self.encoder.normalisation

    def forward(self, image: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b k H W"]:
        """Inference: logits (b, k, H, W) of normalised images (b, 3, H, W) of any size."""
        return self.logits(image).full()

    def logits(
        self, image: Float[Tensor, "b 3 H W"], guide: Guide | None = None, *, from_memory: bool = False
    ) -> Logits:
        """Encode, pass the bottleneck, decode: for losses and labels that need not hold the logits of every pixel.

        Args:
            image: in training with a ``guide``, the labelled images come first.
            guide: what the bottleneck needs in training; None is inference.
            from_memory: inference from the bottleneck's memory, which it must have.
        """
        return self.decode(self.apply_bottleneck(self.encode(image), guide, from_memory=from_memory))

    def encode(self, image: Float[Tensor, "b 3 H W"]) -> Features:
        """The encoder's feature maps of normalised images."""
        size = (image.shape[2], image.shape[3])
        return Features(tuple(self.encoder(image)), self.encoder.padded_size(size), size)

    def apply_bottleneck(
        self, features: Features, guide: Guide | None = None, *, from_memory: bool = False
    ) -> Features:
        """Pass the last map through the bottleneck; the same features where there is none. Arguments as above."""
        if self.bottleneck is None:
            return features
        *maps, last = features.maps
        return replace(features, maps=(*maps, self.bottleneck(last, guide, from_memory=from_memory)))

    def decode(self, features: Features) -> Logits:
        """Logits of features."""
        return self._logits(self.decoder(features.maps), features)

    def hidden(self, features: Features) -> Float[Tensor, "b c h w"]:
        """What the decoder's classifier reads of features: for projections, contrast, and changes of features there."""
        return self.decoder.hidden(features.maps)

    def classify(self, hidden: Float[Tensor, "b c h w"], features: Features) -> Logits:
        """Logits of what ``hidden`` gave; ``features`` tell the size. Both together are ``decode``."""
        return self._logits(self.decoder.classify(hidden), features)

    def hidden_and_logits(self, image: Float[Tensor, "b 3 H W"]) -> tuple[Float[Tensor, "b c h w"], Logits]:
        """What the classifier reads of images, without a bottleneck's guide, and what it makes of that."""
        features = self.apply_bottleneck(self.encode(image))
        hidden = self.hidden(features)
        return hidden, self.classify(hidden, features)

    def _logits(self, coarse: Tensor, features: Features) -> Logits:
        """With what the auxiliary head would read, in training: it computes nothing before a loss asks it."""
        beside = None
        if self.auxiliary is not None and self.training:
            beside = Auxiliary(features.maps[-2], self.auxiliary, self.auxiliary.weight)
        return Logits(coarse, features.padded, features.size, self.decoder.corners_aligned, beside)

    @property
    def hidden_channels(self) -> int:
        """Channels of what the classifier reads."""
        return self.decoder.classifier.in_channels

    def compile_parts(self) -> None:
        """Let torch.compile take encoder and decoder; the bottleneck has kernels of its own."""
        first = next(self.encoder.parameters())
        with torch.no_grad(), evaluating(self.encoder):
            # transformers hangs hooks into itself in the first pass, which cannot be compiled
            self.encoder(first.new_zeros(1, 3, 64, 64))
        self.encoder.compile()
        self.decoder.compile()

    @classmethod
    def from_reference(cls, state: Mapping[str, Tensor], dropout: float = 0.1, drop_path: float = 0.1) -> Segmenter:
        """Build the network from a published AllSpark checkpoint's tensors; all sizes are inferred.

        Args:
            state: ``backbone.*``, ``decoder.allspark.*``, ``decoder.decoder.*`` (see ``published.read_foreign``).
            dropout: of bottleneck and head.
            drop_path: stochastic depth of the encoder.

        Raises:
            CheckpointError: a part is missing, or is not MiT + AllSpark + SegFormer head.
        """
        encoder = published_encoder(_part(state, "backbone."), drop_path)
        bottleneck = AllSparkBottleneck.from_reference(_part(state, "decoder.allspark."), dropout)
        decoder = SegformerHead.from_reference(_part(state, "decoder.decoder."), dropout)
        return cls(encoder, decoder, bottleneck)


def build_segmenter(
    config: ModelConfig, num_classes: int, crop: tuple[int, int], *, load_weights: bool = True
) -> Segmenter:
    """Build the network that a configuration names, in training mode.

    Args:
        config: the network, with its bottleneck written out (:func:`allspark.config.resolve.network_config`).
        num_classes: k.
        crop: height and width of training crops, whose token grid the bottleneck's memory has [pixels].
        load_weights: False leaves out the encoder's pretrained weights, for a checkpoint that follows.

    Raises:
        ConfigError: the configuration does not fit the encoder.
        CheckpointError: the encoder's weights cannot be had.
    """
    if config.bottleneck is None:
        raise ConfigError("model.bottleneck is open: network_config(config) says what the method makes of it")
    encoder = build_encoder(config, load_weights)
    decoder = _build_decoder(config, encoder, num_classes)
    auxiliary = _build_auxiliary(config, encoder, num_classes) if config.auxiliary_weight else None
    # drawn last, so that one seed gives all methods the same encoder and decoder
    bottleneck = build_bottleneck(config, encoder, num_classes, crop) if config.bottleneck == "allspark" else None
    # transformers gives loaded weights in eval mode, in which nothing would be dropped in training
    return Segmenter(encoder, decoder, bottleneck, auxiliary).train()


def build_bottleneck(
    config: ModelConfig, encoder: Encoder, num_classes: int, crop: tuple[int, int]
) -> AllSparkBottleneck:
    """Build the bottleneck that a configuration names for an encoder; arguments as above."""
    return AllSparkBottleneck(
        encoder.channels[-1],
        num_classes,
        encoder.grid(crop),
        config.bottleneck_heads,
        config.bottleneck_dropout,
        memory=config.bottleneck_memory,
        grouping=config.bottleneck_grouping,
        warmup_epochs=config.bottleneck_warmup_epochs,
        gate=config.bottleneck_gate,
        own=config.bottleneck_own,
    )


def _build_decoder(model: ModelConfig, encoder: Encoder, num_classes: int) -> Decoder:
    if model.decoder == "dpt":
        if len(encoder.strides) != DPTHead.levels or len(set(encoder.strides)) > 1:
            raise ConfigError(
                "model.decoder: dpt takes four feature maps of one stride, as a plain transformer such as dinov2 has; "
                f"{model.encoder!r} has strides {', '.join(map(str, encoder.strides))}: use segformer or deeplabv3plus"
            )
        return DPTHead.for_encoder(encoder.channels, num_classes, model.decoder_channels, model.decoder_dropout)
    if model.decoder == "deeplabv3plus":
        rates = (12, 24, 36) if encoder.strides[-1] <= 8 else (6, 12, 18)
        return DeepLabV3Plus(
            encoder.channels[0],
            encoder.channels[-1],
            model.decoder_channels or 256,
            num_classes,
            rates,
            model.decoder_dropout,
            low_width=model.low_level_channels,
        )
    width = model.decoder_channels or (768 if sum(p.numel() for p in encoder.parameters()) > _LARGE else 256)
    return SegformerHead(encoder.channels, width, num_classes, model.decoder_dropout)


def _build_auxiliary(model: ModelConfig, encoder: Encoder, num_classes: int) -> AuxiliaryHead:
    if len(encoder.channels) < 2:
        raise ConfigError(
            f"model.auxiliary_weight: {model.encoder!r} has one feature map, none before the last one; set it to 0"
        )
    width = model.decoder_channels or _AUXILIARY_WIDTH
    return AuxiliaryHead(encoder.channels[-2], width, num_classes, model.decoder_dropout, model.auxiliary_weight)


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    part = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if not part:
        found = sorted({name.split(".")[0] for name in state})
        raise CheckpointError(f"not a published AllSpark checkpoint: no tensor {prefix}*, only {', '.join(found[:5])}")
    return part
