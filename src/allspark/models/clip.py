"""Labels of every pixel that CLIP gives without training (MaskCLIP, Zhou, Loy and Dai, ECCV 2022)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from allspark.batch import Normalisation
from allspark.errors import ConfigError
from allspark.kernels.logits import Logits
from allspark.models.pretrained import cached

_SHARPNESS = 100.0  # of the softmax over cosines, as CLIP was trained
_PROMPT = "a photo of a {}"


class ClipLabeler(nn.Module):
    """CLIP's image tower, frozen, and the embeddings of texts that stand for the classes.

    In its last layer each position passes on its own value in place of a mean over all, so that what comes out is of
    that position.

    Args:
        name: of a CLIP model: a folder, or a hub name that is in the local cache.
        normalisation: of the images that it will see.
        concepts: the texts of classes that have others than their name.
        num_classes: k.

    Raises:
        ConfigError: there is no such model on this machine.
    """

    texts: Tensor
    owners: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(
        self, name: str, normalisation: Normalisation, concepts: Mapping[str, Sequence[str]], num_classes: int
    ) -> None:
        super().__init__()
        self.name, self.concepts, self.num_classes = name, dict(concepts), num_classes
        model = _model(name)
        tower = model.vision_model
        self.embeddings, self.first_norm, self.last_norm = tower.embeddings, tower.pre_layrnorm, tower.post_layernorm
        self.encoder, self.projection = tower.encoder, model.visual_projection
        *layers, self.last = tower.encoder.layers
        self.encoder.layers = nn.ModuleList(layers)
        self.patch: int = model.config.vision_config.patch_size
        texts = num_classes + sum(len(words) - 1 for words in concepts.values())
        self.register_buffer("texts", torch.zeros(max(texts, 0), model.config.projection_dim))
        self.register_buffer("owners", torch.zeros(max(texts, 0), dtype=torch.int64))  # the class of each text
        factors = [own / theirs for own, theirs in zip(normalisation.std, OPENAI_CLIP_STD, strict=True)]
        means = zip(normalisation.mean, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD, strict=True)
        self.register_buffer("scale", torch.tensor(factors)[:, None, None])  # to CLIP's normalisation
        self.register_buffer("shift", torch.tensor([(own - mean) / std for own, mean, std in means])[:, None, None])
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> ClipLabeler:
        """Stay in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def read(self, classes: Sequence[str]) -> None:
        """Embed the texts of the classes, which are in the checkpoint from then on.

        Args:
            classes: their names.

        Raises:
            ConfigError: texts are given for a class that there is not.
        """
        unknown = [name for name in self.concepts if name not in classes]
        if unknown:
            raise ConfigError(f"method.concepts: no class {unknown[0]!r}; there are {', '.join(classes)}")
        words = [self.concepts.get(name, (name,)) for name in classes]
        prompts = [_PROMPT.format(word) for some in words for word in some]
        from transformers import AutoTokenizer  # takes a second

        model = _model(self.name)
        tokens = _loaded(AutoTokenizer.from_pretrained, self.name)(prompts, padding=True, return_tensors="pt")
        texts = model.text_projection(model.text_model(**tokens).pooler_output)
        self.texts.copy_(F.normalize(texts, dim=1))
        self.owners.copy_(torch.tensor([number for number, some in enumerate(words) for _ in some]))

    @torch.no_grad()
    def forward(self, image: Float[Tensor, "b 3 H W"]) -> Logits:
        """Logits of every pixel, of normalised images, whose softmax are CLIP's probabilities of the classes."""
        size = (image.shape[2], image.shape[3])
        whole = [-(-n // self.patch) * self.patch for n in size]
        image = F.interpolate(image * self.scale + self.shift, whole, mode="bilinear", align_corners=False)
        tokens = self.first_norm(self.embeddings(image, interpolate_pos_encoding=True))
        tokens = self.encoder(inputs_embeds=tokens).last_hidden_state
        attention = self.last.self_attn
        tokens = tokens + attention.out_proj(attention.v_proj(self.last.layer_norm1(tokens)))
        tokens = tokens + self.last.mlp(self.last.layer_norm2(tokens))
        embedded = F.normalize(self.projection(self.last_norm(tokens[:, 1:])), dim=2)  # (b, n, d)
        cosines = (embedded @ self.texts.to(embedded.dtype).mT).mT.unflatten(2, [n // self.patch for n in whole])
        return Logits(_SHARPNESS * best_concepts(cosines, self.owners, self.num_classes), size, size)


def best_concepts(scores: Float[Tensor, "b t h w"], owners: Tensor, num_classes: int) -> Float[Tensor, "b k h w"]:
    """The highest score of each class's texts.

    Args:
        scores: of t texts.
        owners: (t,), the class of each; every class has one at least.
        num_classes: k.
    """
    lowest = scores.new_full((len(scores), num_classes, *scores.shape[2:]), -torch.inf)
    return lowest.scatter_reduce_(1, owners[:, None, None].expand_as(scores), scores, "amax")


def _model(name: str) -> Any:
    from transformers import CLIPModel  # takes a second

    return _loaded(CLIPModel.from_pretrained, name, dtype=torch.float32)


def _loaded(load: Callable[..., Any], name: str, **options: Any) -> Any:
    try:
        return cached(load, name, **options)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:100]
        raise ConfigError(
            f"method.clip: {name} is no folder of a CLIP model, and none in the local cache ({reason}); fetch it "
            "first, or set method.clip=none"
        ) from error
