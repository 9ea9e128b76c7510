"""The network: encoder -> bottleneck on the last stage -> decoder."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from allspark.batch import Guide
from allspark.config.schema import Config, ModelConfig
from allspark.errors import CheckpointError
from allspark.kernels.logits import Logits
from allspark.models.allspark import AllSparkBottleneck
from allspark.models.decoders import DeepLabV3Plus, SegformerHead
from allspark.models.encoders import Encoder, build_encoder, published_encoder

_LARGE = 20_000_000  # parameters; between MiT-B1 (13.2 M) and MiT-B2 (24.2 M), where SegFormer's head grows


class Segmenter(nn.Module):
    """Labels every pixel.

    Args:
        encoder: feature maps of the image.
        decoder: logits from feature maps.
        bottleneck: AllSpark, between the last feature map and the decoder; None: a plain network.
    """

    def __init__(
        self, encoder: Encoder, decoder: SegformerHead | DeepLabV3Plus, bottleneck: AllSparkBottleneck | None = None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.bottleneck = bottleneck
        self.decoder = decoder

    @property
    def num_classes(self) -> int:
        """Number of classes k."""
        return self.decoder.classifier.out_channels

    def forward(
        self, image: Float[Tensor, "b 3 H W"], guide: Guide | None = None, *, coarse: bool = False
    ) -> Float[Tensor, "b k _ _"]:
        """Return logits (b, k, H, W) of normalised images (b, 3, H, W) of any size.

        Args:
            image: in training with a ``guide``, the labelled images come first.
            guide: what the bottleneck needs in training; None is inference.
            coarse: return what the decoder gives, (b, k, h, w), instead of enlarging it to the image.
        """
        *features, last = self.encoder(image)
        if self.bottleneck is not None:
            last = self.bottleneck(last, guide)
        logits: Tensor = self.decoder([*features, last])
        return logits if coarse else self.sized(logits, image).full()

    def logits(self, image: Float[Tensor, "b 3 H W"], guide: Guide | None = None) -> Logits:
        """The same as calling the network, for losses and labels that need not hold the logits of every pixel."""
        return self.sized(self(image, guide, coarse=True), image)

    def sized(self, coarse: Float[Tensor, "b k _ _"], image: Float[Tensor, "b 3 H W"]) -> Logits:
        """What the decoder gave for these images, with the size that it is meant for."""
        size = (image.shape[2], image.shape[3])
        return Logits(coarse, self.encoder.padded_size(size), size)

    def compile_parts(self) -> None:
        """Let torch.compile take encoder and decoder; the bottleneck has kernels of its own."""
        training = self.encoder.training
        first = next(self.encoder.parameters())
        with torch.no_grad():  # transformers hangs hooks into itself in the first pass, which cannot be compiled
            self.encoder.eval()(first.new_zeros(1, 3, 64, 64))
        self.encoder.train(training)
        self.encoder.compile()
        self.decoder.compile()

    @classmethod
    def from_reference(cls, state: Mapping[str, Tensor], dropout: float = 0.1, drop_path: float = 0.1) -> Segmenter:
        """Build the network from a published AllSpark checkpoint's tensors; all sizes are inferred.

        Args:
            state: ``backbone.*``, ``decoder.allspark.*``, ``decoder.decoder.*`` (see ``weights.read_foreign``).
            dropout: of bottleneck and head.
            drop_path: stochastic depth of the encoder.

        Raises:
            CheckpointError: a part is missing, or is not MiT + AllSpark + SegFormer head.
        """
        encoder = published_encoder(_part(state, "backbone."), drop_path)
        bottleneck = AllSparkBottleneck.from_reference(_part(state, "decoder.allspark."), dropout)
        decoder = SegformerHead.from_reference(_part(state, "decoder.decoder."), dropout)
        return cls(encoder, decoder, bottleneck)


def build_segmenter(config: Config, num_classes: int, load_weights: bool = True) -> Segmenter:
    """Build the network that a configuration names.

    Args:
        config: ``model``, ``method`` and ``data.crop`` are read.
        num_classes: k.
        load_weights: False leaves out the encoder's pretrained weights, for a checkpoint that follows.

    Raises:
        ConfigError: the configuration does not fit the encoder.
        CheckpointError: the encoder's weights cannot be had.
    """
    model = config.model
    encoder = build_encoder(model, load_weights)
    decoder = _build_decoder(model, encoder, num_classes)
    bottleneck = None  # drawn last, so that one seed gives all methods the same encoder and decoder
    if config.method.name == "allspark":
        bottleneck = AllSparkBottleneck(
            encoder.channels[-1],
            num_classes,
            encoder.grid(config.data.crop),
            model.bottleneck_heads,
            model.bottleneck_dropout,
            memory=config.method.memory,
            grouping=config.method.grouping,
        )
    return Segmenter(encoder, decoder, bottleneck)


def _build_decoder(model: ModelConfig, encoder: Encoder, num_classes: int) -> SegformerHead | DeepLabV3Plus:
    if model.decoder == "deeplabv3plus":
        rates = (12, 24, 36) if encoder.strides[-1] <= 8 else (6, 12, 18)
        return DeepLabV3Plus(
            encoder.channels[0],
            encoder.channels[-1],
            model.decoder_channels or 256,
            num_classes,
            rates,
            model.decoder_dropout,
        )
    width = model.decoder_channels or (768 if sum(p.numel() for p in encoder.parameters()) > _LARGE else 256)
    return SegformerHead(encoder.channels, width, num_classes, model.decoder_dropout)


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    part = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if not part:
        found = sorted({name.split(".")[0] for name in state})
        raise CheckpointError(f"not a published AllSpark checkpoint: no tensor {prefix}*, only {', '.join(found[:5])}")
    return part
