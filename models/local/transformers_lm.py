"""A language model from transformers, as a source of kernels and scores."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...ppl.calls import Pending
from ...ppl.effects import batched
from ...ppl.score import Score
from ...ppl.sites import Running
from ..language.sampling import Sampling
from ..language.scoring import Likelihood, Mass, as_mask, next_laws
from ..language.steps import Ending, Step
from ..language.text import Text
from ..language.tree import Node, Tree
from ..language.writing import Message, Writer
from .families import choose, contexts, text_config
from .forward import CacheInfo
from .loading import load
from .packed import pack
from .wrappers import core

_made = count()


class TransformersLM:
    """A language model with its tokenizer. Its steps are kernels for ``fk.sample``.

    Args:
        model: a model of transformers that says a next token: causal with attention, with a recurrent state
            (Mamba, RWKV, xLSTM, hybrids), or an encoder–decoder (T5, BART), whose encoder reads the prompt.
        tokenizer: its tokenizer.
        sampling: the default law of the next token; every step may override it.
        cache_bytes: most bytes of keys, values, states and logits to hold between passes. What does not fit
            is computed again when needed; `cache_info` says how much that was.
        max_batch: most histories in one forward pass.
        packed: whether float32 linear layers on a CPU use a second, faster copy of their weights; None: up to
            2 GiB of them (see `pack`).
        name: tells texts of this model from those of others; its path by default.

    The model may change between passes: weights that are trained or loaded, adapters that are switched or merged,
    hooks, a new type or device are noticed before each pass, and what was computed before is dropped (see `Live` for
    what cannot be seen, and say `refresh` after it). Texts keep their tokens, and the log-probabilities they were drawn
    with. Passes are always in eval mode: a model in training mode is in it again after each pass. Threads may share a
    model; they take turns pass by pass, and what each draws does not depend on the others but for the rounding of
    float arithmetic, which depends on what is still known.

    The model may stand behind a wrapper (an adapter of peft, `torch.compile`, a module that passes all on). It is tried
    on a few tokens first: alone, beside texts of other lengths, forked and moved, what it gives must be what one pass
    over each text alone gives. Raises `Unsupported`, with what disagreed, for a model where that cannot be had;
    ``docs/model_families.md`` lists the families.

    What histories have in common is forwarded once, prompts that begin alike included, and forks copy a row
    only when they part. A text that fills the model's context is finished, with ``finish_reason``
    "context".

    >>> from feynkac.models.testing import tiny_lm
    >>> lm = tiny_lm()
    >>> text = lm.prompt([{"role": "user", "content": "Hello"}])
    >>> from feynkac.ppl import keys
    >>> step = lm.tokens(text, 3, temperature=0.5)
    >>> draws = step.sample_batch([step, step], keys.fold(keys.root(0), [0, 1]))
    >>> len(draws.values[0].tokens), draws.log_prob.shape, lm.forwarded - text.node.length <= 4
    (3, (2,), True)
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        sampling: Sampling | None = None,
        cache_bytes: int = 2 << 30,
        max_batch: int = 128,
        packed: bool | None = None,
        name: str | None = None,
    ) -> None:
        if not isinstance(model, torch.nn.Module) or not hasattr(tokenizer, "decode"):
            raise TypeError(
                f"a language model is made of a model and its tokenizer, not {type(model).__name__} and "
                f"{type(tokenizer).__name__}; from_pretrained loads both"
            )
        config = text_config(model)
        self.model = model.eval()
        pack(model, packed)
        self.tokenizer = tokenizer
        self.sampling = sampling or Sampling()
        self.vocab_size: int = config.vocab_size
        self.prompt_context, self.context = contexts(model)
        self.eos: frozenset[int] = _end_tokens(model, tokenizer, self.vocab_size)
        self.identity: str = name or getattr(config, "_name_or_path", "") or f"{type(model).__name__}-{next(_made)}"
        self.tree = Tree()
        self.forwarder, self._start = choose(model, self.tree, cache_bytes, max_batch)
        self._writer = Writer(self, self._start)
        self._likelihood = Likelihood(self)
        self._mass = Mass(self)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        *,
        sampling: Sampling | None = None,
        device: str | None = None,
        dtype: Any = None,
        cache_bytes: int = 2 << 30,
        max_batch: int = 128,
        packed: bool | None = None,
        **kwargs: Any,
    ) -> TransformersLM:
        """Load a model and its tokenizer: a local folder, a name on the hub, or ``"smollm2"`` (see `fetch`).

        ``device`` is a GPU where there is one; ``dtype`` is float32 on a CPU, else the model's own (any other,
        such as ``torch.bfloat16``, changes the law that is sampled, and its log-probabilities with it: these are
        always computed in float32). Other keywords, such as ``device_map``, ``subfolder`` and ``gguf_file``, go to
        ``from_pretrained`` of ``AutoModelForCausalLM`` or, for an encoder–decoder, of ``AutoModelForSeq2SeqLM``. The
        folder of an adapter that peft has saved brings its base model.

        Raises ValueError for a device that is not there, FeynkacError where nothing can be loaded, or weights are
        damaged or missing, and ImportError for an adapter without peft.
        """
        model, tokenizer = load(None, name_or_path, device=device, dtype=dtype, **kwargs)
        return cls(
            model,
            tokenizer,
            sampling=sampling,
            cache_bytes=cache_bytes,
            max_batch=max_batch,
            packed=packed,
            name=name_or_path,
        )

    def __repr__(self) -> str:
        return f"<TransformersLM {self.identity}>"

    @property
    def forwarded(self) -> int:
        """Token positions forwarded so far, padding not counted."""
        return self.forwarder.forwarded

    @property
    def chats(self) -> bool:
        """Whether the model has a chat template."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def cache_info(self) -> CacheInfo:
        """Return what is held in memory."""
        with self.forwarder.hold():
            return self.forwarder.info()

    def version(self) -> int:
        """Return a number that is another one whenever the model has been seen to change."""
        return self.forwarder.live.version()

    def refresh(self) -> None:
        """Forget all that was computed, scores included, after a change of the model that cannot be seen (see `Live`).

        >>> from feynkac.models.testing import tiny_lm
        >>> lm = tiny_lm()
        >>> lm.model.lm_head.weight.data.mul_(2.0)  # doctest: +ELLIPSIS
        tensor(...)
        >>> lm.refresh()
        """
        self.forwarder.live.refresh()

    # Texts

    def prompt(self, prompt: str | Sequence[Message] | Sequence[int]) -> Text:
        """Return a text with an empty response.

        A string is encoded as the tokenizer does by default; messages go through the model's chat template (a
        last message from the assistant is continued); token ids are taken as they are. An empty string gives the begin
        token alone.

        Raises ContextOverflow, Unsupported (no chat template), TypeError for what is none of these, ValueError for an
        empty prompt without a begin token, for an empty list, a lone surrogate and tokens that the model does not have.
        Warns (`PromptWarning`) of two begin tokens, and where the tokenizer ends the prompt with an end token.
        """
        return self._writer.prompt(prompt)

    def attach(self, text: Text) -> Text:
        """Return an equal text that belongs to this model, for one that was detached or loaded.

        Raises ValueError for the text of another model.
        """
        return self._writer.attach(text)

    def append(self, text: Text, string: str) -> Text:
        """Return ``text.append(string)``."""
        return self._writer.append(text, string)[0]

    def encode(self, string: str, after: Text | None = None) -> tuple[int, ...]:
        """Return the tokens of a string that stands alone, or those that ``after.append(string)`` adds.

        They may differ: the tokenizer of Llama-2, for one, puts a space before a string that stands alone. No special
        tokens are added; those that the string spells are read as such.
        """
        return self._writer.encode(string, after)

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the string of tokens that stand alone, special ones left out."""
        return self._writer.codec.decode(tokens)

    def decode_response(self, tokens: Sequence[int]) -> str:
        """Return the string of a response's tokens: as they read after the prompt, special ones left out."""
        return self._writer.decode_response(tokens)

    def spelled(self, tokens: Iterable[int]) -> list[str]:
        """Return how tokens are spelled, special ones included."""
        found: list[str] = self.tokenizer.convert_ids_to_tokens(sorted(tokens))
        return found

    def finish_reason(self, node: Node, last: int) -> Any:
        """Return why a history whose last sampled token is ``last`` (−1: none) is finished, or None."""
        if last in self.eos:
            return "eos"
        return "context" if node.length == self.context else None

    # Steps

    def next_token(self, text: Text, *, mask: Any = None, **sampling: Any) -> Step:
        """Return the kernel of one token.

        ``mask`` (V,), boolean, conditions the law on a set of tokens; where the law gives them nothing, the
        draw is the text itself with log-probability −inf. Other keywords are those of `Sampling`.
        """
        allowed = None if mask is None else as_mask(mask, self.vocab_size)
        return Step(self, text, Ending(1), self._law(sampling), allowed)

    def tokens(self, text: Text, k: int, **sampling: Any) -> Step:
        """Return the kernel of k tokens, or fewer where the text finishes."""
        return Step(self, text, Ending(k), self._law(sampling))

    def until(
        self,
        text: Text,
        stop: str | Sequence[str],
        *,
        max_tokens: int = 128,
        include_stop: bool = False,
        **sampling: Any,
    ) -> Step:
        """Return the kernel of the tokens up to the first stop, ``max_tokens``, or the text's end.

        A stop is a string, or a special token as it is spelled, such as ``"<|im_end|>"``. The token in which a stop
        string is completed is kept whole, in the text and its log-probability; the display ends before the stop string,
        or after it with ``include_stop``. Special tokens are never displayed.

        Raises TypeError for a stop that is no string, ValueError for one in which a special token is only a part.
        """
        stops, special = self._writer.stops(stop)
        return Step(self, text, Ending(max_tokens, stops, include_stop, stop_tokens=special), self._law(sampling))

    def line(self, text: Text, *, max_tokens: int = 64, **sampling: Any) -> Step:
        """Return the kernel of the rest of the line."""
        return self.until(text, "\n", max_tokens=max_tokens, **sampling)

    def sentence(self, text: Text, *, max_tokens: int = 128, **sampling: Any) -> Step:
        """Return the kernel of the rest of the sentence: to a ``.``, ``!``, ``?``, ``؟`` or ``…`` that ends it.

        It does so before white space, a closing quote or bracket (kept), or the text's end. A ``。``, ``！`` or ``？``
        does before any other character. What the last token holds beyond is displayed with the next step.
        """
        return Step(self, text, Ending(max_tokens, sentence=True), self._law(sampling))

    def complete(self, text: Text, *, max_tokens: int = 256, **sampling: Any) -> Step:
        """Return the kernel of the rest of the response: to an end token or ``max_tokens``."""
        return Step(self, text, Ending(max_tokens, whole=True), self._law(sampling))

    # Scores

    def score(self, text: Text, continuation: str | None = None) -> Score:
        """Return log p of the text's response, or of a continuation after the text, as a log-weight.

        p is the model's own law, with no temperature and nothing cut off. A continuation has the tokens that
        ``text.append(continuation)`` gives it. The scores of a wave are computed in one batch when awaited.
        """
        if continuation is None:
            text = self.attach(text)
            return Score(((self._likelihood, (text, text.offset)),), "log_weight")
        return Score(((self._likelihood, self._writer.append(text, continuation)),), "log_weight")

    def log_mass(self, text: Text, mask: Any, **sampling: Any) -> Score:
        """Return the log of the mass that the law of the next token gives to those of ``mask`` (V,), a
        log-weight.

        This is the weight that makes a masked draw exact: ``lm.next_token(text, mask=mask)`` draws from the
        law conditioned on the mask. Give both the same keywords of `Sampling`, or neither. For a finished text it
        is 0, as no token is drawn.
        """
        return Score(
            ((self._mass, (self.attach(text), as_mask(mask, self.vocab_size), self._law(sampling))),), "log_weight"
        )

    def next_log_probs(self, text: Text, **sampling: Any) -> Any:
        """Return the log-probabilities of the next token, an array (V,).

        Inside a program they are still to be computed: ``await fk.call("law", lm.next_log_probs(text))`` gives the
        array, with one pass of the model for all particles.
        """
        text, law = self.attach(text), self._law(sampling)
        if Running.fiber is None:
            return self._next_laws([(text, law)])[0]
        return Pending(f"the next token's law of {self!r}", self._next_laws, (text, law), (text.digest, law))

    @batched
    def _next_laws(self, items: list[tuple[Text, Sampling]]) -> list[NDArray[np.float64]]:
        return next_laws(self, items)

    def _law(self, overrides: dict[str, Any]) -> Sampling:
        return replace(self.sampling, **overrides) if overrides else self.sampling


def _end_tokens(model: Any, tokenizer: Any, size: int) -> frozenset[int]:
    """Return the tokens that end a text, of those that the model can say."""
    ids: set[int] = set()
    inner = core(model)
    for source in (inner.config, getattr(inner, "generation_config", None), tokenizer):
        given = getattr(source, "eos_token_id", None)
        ids.update(given if isinstance(given, list | tuple) else () if given is None else (given,))
    return frozenset(token for token in ids if 0 <= token < size)
