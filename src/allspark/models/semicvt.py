"""SemiCVT's network (Huang et al., CVPR 2023): beside an encoder a thin transformer, exchanging at three stages."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from allspark.errors import ConfigError
from allspark.kernels.logits import Logits
from allspark.kernels.matmul import use_faster_products
from allspark.models.segmenter import Decoder, Features, Segmenter

_EXCHANGES = 3  # at the last stages
_HEADS, _REDUCTION, _WIDENING = 8, 4, 4  # of attention, of its keys' and values' grid, of the MLPs: as published


class TwoBranchSegmenter(Segmenter):
    """Encoder and decoder of a plain network, and a transformer branch with a head like that decoder.

    The encoder's last three stages each exchange with one of the branch; what comes out is what the next stages read.
    Features hold the encoder's maps, then the branch's three. ``decode`` averages the logits of both heads; ``hidden``
    and ``classify`` are those of the encoder's.

    Args:
        plain: a network whose encoder runs stage by stage, taken over as it is.
        width: channels of the branch, a multiple of 32.
        drop_path: how often an exchange leaves out what the other branch gives, image by image.

    Raises:
        ConfigError: the encoder has too few stages, or does not run stage by stage; or there is an auxiliary head.
    """

    def __init__(self, plain: Segmenter, width: int, drop_path: float) -> None:
        super().__init__(plain.encoder, plain.decoder)
        stages = len(self.encoder.stages())
        if stages <= _EXCHANGES:
            raise ConfigError(
                f"method.name: semicvt needs an encoder that runs stage by stage, {_EXCHANGES + 1} stages at least, "
                f"and this one has {stages or 'none'}: set model.encoder to resnet-50, resnet-101, "
                "efficientnet-lite0 or a mit"
            )
        if plain.auxiliary is not None:
            raise ConfigError("model.auxiliary_weight: semicvt has no head beside those of its branches; set it to 0")
        self.branch = TransformerBranch(self.encoder.channels, self.encoder.strides, width, drop_path)
        self.second = _drawn_anew(self.decoder)
        self.train(plain.training)

    def encode(self, image: Float[Tensor, "b 3 H W"]) -> Features:
        """The encoder's feature maps of normalised images, then the branch's."""
        size = (image.shape[2], image.shape[3])
        before = len(self.encoder.channels) - _EXCHANGES
        stream: list[Tensor] = []

        def exchange(number: int, local: Tensor) -> Tensor:
            if number >= before:
                local, wide = self.branch(number - before, local, stream[-1])
                stream.append(wide)
            elif number == before - 1:
                stream.append(local)
            return local

        maps = self.encoder(image, exchange)
        return Features((*maps, *stream[1:]), self.encoder.padded_size(size), size)

    def decode(self, features: Features) -> Logits:
        """The mean of both heads' logits."""
        one, other = (head(maps) for head, maps in self._heads(features))
        return self._logits((one + other) / 2, features)

    def hidden(self, features: Features) -> Float[Tensor, "b c h w"]:
        """What the encoder's classifier reads."""
        return self.decoder.hidden(self._heads(features)[0][1])

    def branches(self, features: Features) -> list[tuple[Float[Tensor, "b c h w"], Logits]]:
        """What the classifier of each head reads, and its logits: the encoder's, then the branch's."""
        hidden = [(head, head.hidden(maps)) for head, maps in self._heads(features)]
        return [(x, self._logits(head.classify(x), features)) for head, x in hidden]

    def _heads(self, features: Features) -> list[tuple[Decoder, Sequence[Tensor]]]:
        local, wide = features.maps[:-_EXCHANGES], features.maps[-_EXCHANGES:]
        return [(self.decoder, local), (self.second, (*local[:-_EXCHANGES], *wide))]


class TransformerBranch(nn.Module):
    """Three stages of one attention block each, every one followed by an exchange with the encoder's.

    Args:
        channels: of the encoder's feature maps.
        strides: of these maps [pixels].
        width: channels of the blocks.
        drop_path: of the exchange.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], width: int, drop_path: float) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.ModuleDict(
                {
                    "enter": nn.Sequential(
                        _block(channels[i - 1], channels[i], strides[i] // strides[i - 1]), _block(channels[i], width)
                    ),
                    "attend": AttentionBlock(width),
                    "exchange": LocalGlobalInteraction(channels[i], width, drop_path),
                    "leave": _block(width, channels[i]),
                }
            )
            for i in range(len(channels) - _EXCHANGES, len(channels))
        )
        use_faster_products(self)

    def forward(
        self, number: int, local: Float[Tensor, "b c h w"], before: Float[Tensor, "b _ _ _"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b c h w"]]:
        """One stage.

        Args:
            number: of the stage, from 0.
            local: the encoder's map there.
            before: the branch's map of the stage before, the encoder's ahead of the first.

        Returns:
            Both maps after the exchange, the encoder's first.
        """
        stage = self.stages[number]
        assert isinstance(stage, nn.ModuleDict)
        local, wide = stage["exchange"](local, stage["attend"](stage["enter"](before)))
        return local, stage["leave"](wide) + local


class AttentionBlock(nn.Module):
    """Attention whose keys and values have a coarser grid, then an MLP (PVT, Wang et al., ICCV 2021).

    Args:
        width: channels.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.query = nn.Linear(width, width, bias=False)
        self.reduce = nn.Conv2d(width, width, _REDUCTION, _REDUCTION)
        self.reduced_norm = nn.LayerNorm(width)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.project = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.LayerNorm(width, eps=1e-6), _mlp(width))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """The map after attention and MLP; sides that the coarser grid does not divide are padded for it."""
        tokens = x.movedim(1, 3)  # (b, h, w, c)
        normed = self.norm(tokens)
        missing = [-side % _REDUCTION for side in x.shape[2:]]
        coarse = self.reduce(F.pad(normed.movedim(3, 1), (0, missing[1], 0, missing[0])))
        key, value = self.key_value(self.reduced_norm(coarse.flatten(2).mT)).chunk(2, -1)
        split = (
            part.unflatten(2, (_HEADS, -1)).transpose(1, 2) for part in (self.query(normed.flatten(1, 2)), key, value)
        )
        attended = F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)
        tokens = tokens + self.project(attended).view_as(tokens)
        out: Tensor = (tokens + self.mlp(tokens)).movedim(3, 1)
        return out


class LocalGlobalInteraction(nn.Module):
    """Each of two maps of one grid, changed where the other's spectrum says so (section 3.2 there).

    Args:
        channels: of the encoder's map.
        width: of the branch's map; the exchange takes place in a quarter of it.
        drop_path: how often an image goes without what is new.
    """

    def __init__(self, channels: int, width: int, drop_path: float = 0.25) -> None:
        super().__init__()
        self.local = _Side(channels, width // 4, drop_path)
        self.wide = _Side(width, width // 4, drop_path)

    def forward(
        self, local: Float[Tensor, "b c h w"], wide: Float[Tensor, "b d h w"]
    ) -> tuple[Float[Tensor, "b c h w"], Float[Tensor, "b d h w"]]:
        """Both maps after the exchange."""
        narrow, narrow_wide = self.local.down(local), self.wide.down(wide)
        spectrum, spectrum_wide = self.local.spectrum(narrow), self.wide.spectrum(narrow_wide)
        gate, gate_wide = self.local.gate(spectrum.real).sigmoid(), self.wide.gate(spectrum_wide.real).sigmoid()
        local = local + self.local.back(narrow, spectrum * (1 + gate_wide))
        return local, wide + self.wide.back(narrow_wide, spectrum_wide * (1 + gate))


class _Side(nn.Module):
    """What :class:`LocalGlobalInteraction` has for each of its maps."""

    def __init__(self, channels: int, width: int, drop_path: float) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, width, 1)
        self.norm = nn.LayerNorm(width)
        few = max(1, width // 8)
        self.gate = nn.Sequential(nn.Conv2d(width, few, 1), nn.BatchNorm2d(few), nn.GELU(), nn.Conv2d(few, 1, 1))
        self.mlp = nn.Sequential(nn.LayerNorm(width), _mlp(width))
        self.up = nn.Conv2d(width, channels, 1)
        self.drop_prob = drop_path

    def spectrum(self, narrow: Tensor) -> Tensor:
        """(b, d, h, w) -> (b, d, h, w // 2 + 1), complex; in float32 or better, as the transform asks for."""
        normed = self.norm(narrow.movedim(1, 3)).movedim(3, 1)
        spectrum: Tensor = torch.fft.rfft2(normed.to(torch.promote_types(normed.dtype, torch.float32)), norm="ortho")
        return spectrum

    def back(self, narrow: Tensor, spectrum: Tensor) -> Tensor:
        """What is added to the map."""
        filtered = torch.fft.irfft2(spectrum, s=narrow.shape[2:], norm="ortho").movedim(1, 3)
        new = self.mlp(filtered).movedim(3, 1)
        if self.training and self.drop_prob:
            keep = new.new_empty(len(new), 1, 1, 1).bernoulli_(1 - self.drop_prob)
            new = new * keep / (1 - self.drop_prob)
        out: Tensor = self.up(narrow + new)
        return out


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def _mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, _WIDENING * width), nn.GELU(), nn.Linear(_WIDENING * width, width))


def _drawn_anew(decoder: Decoder) -> Decoder:
    """Another of the same sizes."""
    other = copy.deepcopy(decoder)
    for part in other.modules():
        reset = getattr(part, "reset_parameters", None)
        if callable(reset):
            reset()
    return other
