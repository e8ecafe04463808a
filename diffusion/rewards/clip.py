"""Rewards that stand on CLIP: how well an image fits a text, and how much people would like it.

CLIP is Radford et al. (2021), arXiv:2103.00020; the similarity of image and text as a score is CLIPScore, Hessel et al.
(2021), arXiv:2104.08718.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import linear, normalize

from ...models.local.weights.loading import load
from ...ppl.errors import ContextOverflow, FeynkacError
from .images import check_range, colours, fitted

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
"""Of the colours that CLIP was trained on."""

Activation = Callable[[Any], Any]


class ImageEncoder:
    """The image side of a CLIP model: from images to unit vectors. Colours and size are brought to what it knows.

    Args:
        model: a ``CLIPModel`` of transformers.
        value_range: what black and white are in the images: (−1, 1), as most models generate, or (0, 1), as
            `feynkac.diffusion.from_pipeline` decodes.
        mean: of the three colours, to be taken off.
        std: of the three colours, to be divided by.
        batch: most images in a pass.
        name: in messages.

    Raises ValueError for a range that is none.
    """

    differentiable = True

    def __init__(
        self,
        model: Any,
        *,
        value_range: tuple[float, float] = (-1.0, 1.0),
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
        batch: int = 64,
        name: str = "clip",
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.value_range = check_range(value_range)
        self.name = name
        self._size = int(model.config.vision_config.image_size)
        self._mean, self._std = (torch.tensor(list(three)).reshape(1, 3, 1, 1) for three in (mean, std))
        self._batch = batch

    def embed(self, images: Any) -> Any:
        """Return unit vectors (n, d) of images (n, h, w), (n, 1, h, w) or (n, 3, h, w), of any size.

        Differentiable. Raises ValueError for another shape.
        """
        seen = colours(images, self.value_range, self.name)
        return torch.cat([self._embed(part) for part in seen.split(self._batch)])

    def _embed(self, images: Any) -> Any:
        weight = next(self.model.parameters())
        small = fitted(images.to(weight.device), self._size)
        pixels = (small - self._mean.to(small)) / self._std.to(small)
        return _unit(self.model.get_image_features(pixel_values=pixels.to(weight.dtype)))


class ClipScore(ImageEncoder):
    """How well an image fits a text: the cosine of their CLIP embeddings, in [−1, 1], a differentiable reward.

    With real models it goes from about 0.1 to 0.4, so that it takes a large ``scale`` to steer by.

    Args:
        model: a ``CLIPModel`` of transformers.
        tokenizer: its tokenizer.
        text: what the image should show.
        settings: those of `ImageEncoder`.

    Raises ContextOverflow for a text that is longer than the model's context.

    >>> from transformers import CLIPConfig, CLIPModel
    >>> from feynkac.models.testing import tiny_tokenizer
    >>> small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> config = CLIPConfig(
    ...     text_config=small | {"vocab_size": 300, "eos_token_id": 2},
    ...     vision_config=small | {"image_size": 16, "patch_size": 8}, projection_dim=8)
    >>> score = ClipScore(CLIPModel(config), tiny_tokenizer(), "the sea")
    >>> images = torch.zeros(5, 1, 28, 28, requires_grad=True)
    >>> score(images).shape, torch.autograd.grad(score(images).sum(), images)[0].shape
    (torch.Size([5]), torch.Size([5, 1, 28, 28]))
    """

    def __init__(self, model: Any, tokenizer: Any, text: str, *, name: str = "clip_score", **settings: Any) -> None:
        super().__init__(model, name=name, **settings)
        self.text = text
        tokens = tokenizer([text], return_tensors="pt")
        room, length = model.config.text_config.max_position_embeddings, tokens["input_ids"].shape[1]
        if length > room:
            raise ContextOverflow(f"reward {name!r}: the text has {length} tokens, and the model reads {room}")
        device = next(model.parameters()).device
        tokens = {key: tokens[key].to(device) for key in ("input_ids", "attention_mask") if key in tokens}
        with torch.no_grad():
            self._target = _unit(model.get_text_features(**tokens))[0]

    @classmethod
    def from_pretrained(
        cls, name_or_path: str, text: str, *, device: str | None = None, dtype: Any = None, **settings: Any
    ) -> ClipScore:
        """Load a CLIP model, its tokenizer and its colours from a local folder or the hub.

        ``device`` is a GPU where there is one; ``dtype`` is float32 on a CPU, else the model's own. Raises
        FeynkacError where there is no such model, or it is no CLIP.
        """
        model, tokenizer, seen = _load(name_or_path, device, dtype)
        return cls(model, tokenizer, text, **seen | settings)

    def __call__(self, images: Any) -> Any:
        """Return the similarity (n,) of images to the text."""
        return self.embed(images) @ self._target


class Aesthetic(ImageEncoder):
    """A score that a small head reads from the CLIP embedding of an image, such as how much people like it.

    The head is a linear layer, or several, on the unit vector: with the LAION aesthetic predictors (Schuhmann et al.
    2022, arXiv:2210.08402) it is a grade from 1 to 10. Differentiable.

    Args:
        model: a ``CLIPModel`` of transformers, the one that the head was trained on.
        head: a safetensors file with the layers' weights (out, in) and biases (out,), named as in a state dict
            ("weight" and "bias", or "layers.0.weight", …), in the order of their numbers; the last has one output.
        activation: what comes between layers, such as ``torch.relu``; None is nothing, as in LAION's.
        settings: those of `ImageEncoder`.

    Raises FileNotFoundError where there is no such file, and ValueError where it is no head of this model.
    """

    def __init__(
        self,
        model: Any,
        head: str | Path,
        *,
        activation: Activation | None = None,
        name: str = "aesthetic",
        **settings: Any,
    ) -> None:
        super().__init__(model, name=name, **settings)
        self._layers = _layers(Path(head), model)
        self._activation = activation

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        head: str | Path,
        *,
        device: str | None = None,
        dtype: Any = None,
        **settings: Any,
    ) -> Aesthetic:
        """Load a CLIP model and its colours from a local folder or the hub, and the head from its file.

        The arguments are those of `ClipScore.from_pretrained`. Raises FeynkacError where there is no such model.
        """
        model, _, seen = _load(name_or_path, device, dtype)
        return cls(model, head, **seen | settings)

    def __call__(self, images: Any) -> Any:
        """Return the head's score (n,) of images."""
        out = self.embed(images).float()
        for i, (weight, bias) in enumerate(self._layers):
            out = out if i == 0 or self._activation is None else self._activation(out)
            out = linear(out, weight, bias)
        return out[:, 0]


def _unit(features: Any) -> Any:
    """Return unit vectors (n, d), of what transformers gives: a tensor, or an output that holds it."""
    vectors = getattr(features, "pooler_output", features)
    return normalize(vectors if vectors.dtype == torch.float64 else vectors.float(), dim=-1)


def _load(name_or_path: str, device: str | None, dtype: Any) -> tuple[Any, Any, dict[str, Any]]:
    """Return a CLIP model, its tokenizer, and the colours that it was trained on."""
    from transformers import CLIPModel
    from transformers.image_processing_base import ImageProcessingMixin

    model, tokenizer = load(CLIPModel, name_or_path, device=device, dtype=dtype)
    try:
        told, _ = ImageProcessingMixin.get_image_processor_dict(name_or_path)
    except OSError as error:
        raise FeynkacError(f"{name_or_path!r} has no preprocessor_config.json, which says its colours") from error
    return model, tokenizer, {"mean": told.get("image_mean", MEAN), "std": told.get("image_std", STD)}


def _layers(path: Path, model: Any) -> list[tuple[Any, Any]]:
    """Return weights (out, in) and biases (out,) or None of a head, in order."""
    from safetensors.torch import load_file

    if not path.is_file():
        raise FileNotFoundError(f"there is no head at {str(path)!r}: name a safetensors file with its weights")
    device = next(model.parameters()).device
    found = {name: tensor.float().to(device) for name, tensor in load_file(path).items()}
    names = sorted((name for name in found if name.endswith("weight")), key=_numbers)
    layers = [(found[name], found.get(name.removesuffix("weight") + "bias")) for name in names]
    width = int(model.config.projection_dim)
    for name, (weight, _) in zip(names, layers):
        if weight.dim() != 2 or weight.shape[1] != width:
            raise ValueError(f"{path.name}: {name} is {tuple(weight.shape)}, but a layer of {width} inputs comes here")
        width = len(weight)
    if not layers or width != 1:
        raise ValueError(f"{path.name} is no head: its last layer must have one output, and it has {width}")
    return layers


def _numbers(name: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", name)]
