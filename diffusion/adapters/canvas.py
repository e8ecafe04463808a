"""DiffusionGemma of transformers as a network of diffusion with uniform noise: canvas after canvas, after a prompt."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import numpy as np
import torch

from ...models.local.weights.devices import find
from ...models.local.weights.live import Live
from ...ppl.cost import charge
from ...ppl.memory import Recall
from ..denoiser import Prediction
from ..tokens import are_tokens


class CanvasNetwork:
    """A block-diffusion model that writes a text canvas by canvas: `DiffusionGemmaForBlockDiffusion` of transformers.

    An encoder reads the prompt and all canvases that are finished, once, into a cache that particles with the same text
    share; the decoder looks at a canvas whole, hears what it said of it one step before, and writes no cache. Both are
    told by `UniformDiffusion`, for which the canvas is the block. Caches of as many texts are kept as the last call
    at each canvas needed, until the model is seen to change or a new run begins (see `feynkac.afresh`).

    Args:
        model: in its evaluation mode.
        prompt: (P,) its tokens, at least one; or a batch of one such.
        inputs: what else the encoder takes with the prompt, a batch of one each, such as ``pixel_values``; an
            ``attention_mask`` of ones says nothing new.

    Raises ValueError for a prompt that is no list of the model's tokens, is a batch of several, or is padded.

    >>> import feynkac as fk
    >>> from transformers import DiffusionGemmaForBlockDiffusion  # doctest: +SKIP
    >>> network = CanvasNetwork.from_pretrained("google/diffusiongemma-26B-A4B-it", prompt)  # doctest: +SKIP
    >>> model = fk.diffusion.UniformDiffusion(
    ...     network, 2 * network.canvas, fk.diffusion.EntropyBound(48), vocabulary=network.vocabulary, end=[1, 106]
    ... )  # doctest: +SKIP
    """

    evaluations = 1
    prediction: Prediction = "logits"

    def __init__(self, model: Any, prompt: Any, **inputs: Any) -> None:
        text = model.config.get_text_config(decoder=True)
        self.model = model
        self.canvas: int = model.config.canvas_length
        self.vocabulary: int = text.vocab_size
        self.pad: int = text.pad_token_id or 0
        self.prompt = _tokens(prompt, self.vocabulary).to(model.device)
        if not bool(torch.as_tensor(inputs.pop("attention_mask", True)).all()):
            raise ValueError("the attention_mask hides tokens of the prompt: give the prompt without padding")
        self._inputs = inputs
        self._live = Live(model)
        self._recall = Recall(self._live.version())
        self._kept: dict[int, tuple[dict[tuple[int, ...], int], Any]] = {}

    def __reduce__(self) -> Any:
        return partial(type(self), **self._inputs), (self.model, self.prompt)

    @property
    def journal_key(self) -> Any:
        """What tells it from other denoisers in a journal."""
        return (self.model, self.prompt, self._inputs)

    @classmethod
    def from_pretrained(
        cls, name_or_path: str, prompt: Any, *, device: str | None = None, dtype: Any = None, **options: Any
    ) -> CanvasNetwork:
        """Load a model. ``device`` is a GPU where there is one; other keywords go to transformers."""
        from transformers import DiffusionGemmaForBlockDiffusion

        model = DiffusionGemmaForBlockDiffusion.from_pretrained(name_or_path, dtype=dtype, **options)
        return cls(model.to(find(device)).eval(), prompt)

    def __call__(self, x: Any, time: Any, condition: Any) -> Any:
        """Return the logits (n, canvas, K) of canvases (n, canvas).

        The condition has the whole ``text`` (n, L), where in it each canvas has its ``start`` (n,), the log-laws
        ``heard`` (n, canvas, K) of the step before, and whether a row ``hears`` any (n,).
        """
        if self._recall.lapsed(self._live.version()):
            self._kept = {}
        starts = condition["start"].unique().tolist()
        found = [(condition["start"] == start).nonzero()[:, 0] for start in starts]
        parts = [self._decoded(x, start, rows, condition) for start, rows in zip(starts, found)]
        return torch.cat(parts)[torch.cat(found).argsort()]

    def _decoded(self, x: Any, start: int, rows: Any, condition: Any) -> Any:
        """Return the logits of the rows whose canvas begins at one place of their texts."""
        hears, begin = condition["hears"][rows], len(self.prompt) + start
        return self.model(
            decoder_input_ids=x[rows],
            past_key_values=self._cache(condition["text"][rows, :start]),
            self_conditioning_logits=condition["heard"][rows] if bool(hears.any()) else None,
            self_conditioning_mask=hears if bool(hears.any()) else None,
            decoder_position_ids=torch.arange(begin, begin + self.canvas, device=x.device)[None],
        ).logits

    def _cache(self, before: Any) -> Any:
        """Return the encoder's cache of the prompt and what comes after it in each row (n, start)."""
        start, texts = before.shape[1], [tuple(row) for row in before.tolist()]
        known, cache = self._kept.get(start, ({}, None))
        if not known.keys() >= set(texts):
            known = {text: i for i, text in enumerate(dict.fromkeys(texts))}
            new = self.prompt[None] if start == 0 else before.new_tensor(list(known))[:, -self.canvas :]
            past = self._empty() if start == 0 else self._cache(before.new_tensor(list(known))[:, : -self.canvas])
            cache = self._encoded(new, past)
            self._kept[start] = known, cache
        return _rows(cache, torch.tensor([known[text] for text in texts], device=before.device))

    def _empty(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache(config=self.model.config.get_text_config(decoder=True))

    def _encoded(self, new: Any, past: Any) -> Any:
        """Return a cache with some more tokens (n, …) read; it is changed in place."""
        encoder, begin = self.model.model.encoder, past.get_seq_length()
        inputs = self._inputs if begin == 0 else {}
        place = torch.arange(begin, begin + new.shape[1], device=new.device)[None]
        masks = encoder.create_masks_for_generate(
            config=self.model.config,
            inputs_embeds=torch.empty(*new.shape, 0, dtype=self.model.dtype, device=new.device),
            attention_mask=torch.ones(len(new), begin + new.shape[1], dtype=torch.bool, device=new.device),
            past_key_values=past,
            position_ids=place,
            mm_token_type_ids=inputs.get("mm_token_type_ids"),
        )
        with torch.no_grad():
            encoder(input_ids=new, attention_mask=masks, past_key_values=past, position_ids=place, **inputs)
        charge(model_calls=1, tokens_in=new.numel())
        return past


def _tokens(prompt: Any, vocabulary: int) -> Any:
    """Return a prompt as a tensor (P,)."""
    found = np.asarray(prompt.cpu() if isinstance(prompt, torch.Tensor) else prompt)
    row = found[0] if found.ndim == 2 and len(found) == 1 else found
    if row.ndim != 1 or not len(row) or row.dtype.kind not in "iu" or not are_tokens(row, vocabulary):
        raise ValueError(f"a prompt is a list of tokens, at least one of the {vocabulary}, not {prompt!r}")
    return torch.as_tensor(row.astype(np.int64))


def _rows(cache: Any, index: Any) -> Any:
    """Return a cache of some rows (n,) of another, which stays as it is."""
    found = copy.copy(cache)
    found.layers = [copy.copy(layer) for layer in cache.layers]
    found.batch_select_indices(index)
    return found
