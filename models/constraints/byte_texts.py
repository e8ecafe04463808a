"""Texts over bytes, which potentials of models with different tokenizers have in common, and tokens read as bytes."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from functools import cache
from typing import Any, NoReturn

import numpy as np

from ...ppl.errors import Unsupported
from ..language.host import Host
from ..language.model import LanguageModel
from ..language.texts.bytewise import letters
from ..language.texts.tree import Node, Tree
from .laws import Context, Floats
from .potential import Batched, Potential
from .vocabulary import Vocabulary

END_BYTE = 256
"""The token that ends a text over bytes; the others are the bytes themselves."""


@cache
def _tokenizer() -> Any:
    """Return a tokenizer whose tokens are the bytes 0 … 255 and the end."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE(vocab={**letters(), "<end of bytes>": END_BYTE}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<end of bytes>", eos_token="<end of bytes>", clean_up_tokenization_spaces=False
    )


class Bytes(LanguageModel):
    """What texts over bytes belong to: a tokenizer of 256 bytes and an end, without a law of its own.

    Its steps say where a text begins and ends; `targeting` gives them the law of a potential over bytes, such as that
    of one or several language models (see `ByteLM`). A step without a potential is refused.

    Args:
        context: most bytes of a text, its prompt included; None is any number.

    >>> page = Bytes()
    >>> page.encode("né"), str(page.prompt("Once").append(" né"))
    ((110, 195, 169), ' né')
    """

    def __init__(self, *, context: int | None = None) -> None:
        super().__init__(
            _tokenizer(),
            Tree(Node),
            name="bytes",
            vocab_size=END_BYTE + 1,
            eos=frozenset({END_BYTE}),
            context=context,
        )

    def draw(self, *_: Any, **__: Any) -> NoReturn:
        """Raise Unsupported: bytes have no law of their own."""
        raise Unsupported(
            "texts over bytes have no law of their own: use fk.constraints.targeting(step, potential), with a "
            "potential such as fk.constraints.ByteLM(lm, start)"
        )

    def forced(self, *_: Any, **__: Any) -> NoReturn:
        """Raise Unsupported: bytes have no law of their own."""
        self.draw()


def byte_vocabulary() -> Vocabulary:
    """Return the vocabulary of potentials over bytes."""
    return Vocabulary.of(Bytes())


def coerced(potential: Potential, lm: Host) -> Potential:
    """Return a potential over bytes as one over the tokens of a language model, each read as its bytes.

    So a model weighs the steps of another that has another tokenizer: ``constrained(lm.line(text),
    coerced(ByteLM(other, start), lm), sampler="awrs")``. To know a whole mask it asks about every token: use "awrs",
    which asks only about the tokens that it draws, where the vocabulary is not tiny. Special tokens, which read as
    nothing, have weight zero.

    Args:
        potential: over bytes; products and the like of some, too.
        lm: the language model whose tokens are meant.

    Raises ValueError for a potential over other tokens than bytes, and Unsupported for a tokenizer whose strings are
    not those of its tokens, one after another.

    >>> from feynkac.models.constraints import ByteLM
    >>> from feynkac.models.testing import tiny_lm
    >>> lm, other = tiny_lm(0), tiny_lm(1)
    >>> law = ByteLM(other, other.prompt("Once"))
    >>> coerced(law, lm).prefix(lm.encode(" up")) == law.prefix(tuple(b" up"))
    True
    """
    return Coerced(potential, lm)


class Coerced(Batched):
    """A potential over bytes as one over tokens. Made by `coerced`."""

    def __init__(self, base: Potential, lm: Host) -> None:
        base.vocabulary.require(byte_vocabulary())
        self.base, self.lm, self.vocabulary = base, lm, Vocabulary.of(lm)
        self.origin = 0 if base.origin == 0 else None
        self._spelled = lm.token_bytes[: self.vocabulary.size]
        ids = [token for token, spelled in enumerate(self._spelled) if spelled and token not in lm.eos]
        self._ids = np.array(ids)
        self._strings = sorted({self._spelled[token] for token in ids})
        place = {string: i for i, string in enumerate(self._strings)}
        self._places = np.array([place[self._spelled[token]] for token in ids])

    def __repr__(self) -> str:
        return f"{self.base!r} over the tokens of {self.lm.identity}"

    @property
    def fingerprint(self) -> Hashable:
        """That of the base, and the tokens."""
        return ("coerced", self.base.fingerprint, self.vocabulary, self.lm.eos)

    def within(self, other: Potential) -> bool:
        """Whether ``other`` is over the same tokens, and has weight wherever the base has."""
        return isinstance(other, Coerced) and other.lm is self.lm and other.base.covers(self.base)

    def _read(self, contexts: Sequence[Context]) -> tuple[list[Context], list[int]]:
        """Return contexts as bytes, those alone that have any weight, and where they are."""
        ends, spelled = self.lm.eos, self._spelled
        alive = [i for i, c in enumerate(contexts) if ends.isdisjoint(c) and all(spelled[token] for token in c)]
        return [tuple(b"".join([spelled[token] for token in contexts[i]])) for i in alive], alive

    def prefix_batch(self, contexts: Sequence[Context]) -> Floats:
        """Return `prefix` of each context, (n,)."""
        read, alive = self._read(contexts)
        result = np.full(len(contexts), -math.inf)
        result[alive] = self.base.prefix_batch(read)
        return result

    def complete_batch(self, contexts: Sequence[Context]) -> Floats:
        """Return `complete` of each context, (n,)."""
        read, alive = self._read(contexts)
        result = np.full(len(contexts), -math.inf)
        result[alive] = self.base.complete_batch(read)
        return result

    def opening_batch(self, contexts: Sequence[Context]) -> Floats:
        """Return what a step from each context multiplies in before its first token, (n,)."""
        read, alive = self._read(contexts)
        opening = np.zeros(len(contexts))
        opening[alive] = self.base.opening_batch(read)
        return opening

    def logw_next_batch(self, contexts: Sequence[Context]) -> Floats:
        """Return `logw_next` of each context, (n, V+1): the prefix of every string that a token reads as."""
        read, alive = self._read(contexts)
        rows = np.full((len(contexts), self.vocabulary.size + 1), -math.inf)
        before = self.base.prefix_batch(read)
        ends = self.base.complete_batch(read)
        for i, context, log_w, end in zip(alive, read, before.tolist(), ends.tolist()):
            if log_w > -math.inf:
                after = self.base.prefix_batch([(*context, *string) for string in self._strings])
                rows[i, self._ids] = after[self._places] - log_w
                rows[i, -1] = end - log_w
        return rows
