"""Potentials over token sequences: a small contract, with products, powers and quotients."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ...ppl.errors import InvalidWeight
from ...ppl.memory import Memory
from ...ppl.score import Kind, Score
from ...ppl.values.reals import reals
from .laws import END, Context, Floats, check_laws
from .vocabulary import Vocabulary

if TYPE_CHECKING:
    from ..language.texts.text import Text


class Potential(ABC):
    """A non-negative weight of every token sequence, known along the way.

    A context is a tuple of token ids, those of the response so far. Subclasses set ``vocabulary`` and define
    `prefix` and `complete`; what else they know how to compute quickly they override: `logw_next`, and the
    batch versions, which get all contexts of a wave at once. All of these must agree, and `check` says so:

        logw_next(c)[x] = prefix(c·x) − prefix(c)      logw_next(c)[V] = complete(c) − prefix(c)

    so that ``prefix(())`` and the weights along a path multiply to that of the whole sequence, whatever `prefix` is.
    A sequence that cannot be completed any more should have the prefix −inf; then so have all that go on from it.

    Potentials over the same vocabulary multiply (``a * b``), and have powers (``a ** 0.5``) and quotients
    (``a / b``). Zero to any power stays zero: 0/0 is 0.

    Source: the contract is that of genlm-control (Loula et al. 2025, arXiv:2504.13139).

    >>> from feynkac.models.constraints import Vocabulary
    >>> class Longest(Potential):
    ...     vocabulary = Vocabulary(2)
    ...     def prefix(self, context):
    ...         return 0.0 if len(context) <= 3 else -math.inf
    ...     complete = prefix
    >>> both = Longest() * Longest() ** 2
    >>> both.check([(), (0, 1), (1, 1, 1)])
    >>> both.logw_next((0, 0, 0))
    array([-inf, -inf,   0.])
    """

    vocabulary: Vocabulary
    origin: int | None = 0
    """How many tokens of the response come before its contexts begin (see `after`); None where parts differ."""

    @abstractmethod
    def prefix(self, context: Context) -> float:
        """Return the log-weight of a sequence that may go on; −inf where no completion has weight."""

    @abstractmethod
    def complete(self, context: Context) -> float:
        """Return the log-weight of a sequence that ends here."""

    def logw_next(self, context: Context) -> Floats:
        """Return the log-weights of what may follow, (V+1,): each token, and last the end.

        By itself it asks for the prefix of every token: override it, or use ``sampler="awrs"``, which asks for
        few, where the vocabulary is large.
        """
        size = self.vocabulary.size
        after = self.prefix_batch([(*context, token) for token in range(size)])
        return ratio(np.append(after, self.complete(context)), np.array(self.prefix(context)))

    def prefix_batch(self, contexts: Sequence[Context]) -> Floats:
        """Return `prefix` of each context, (n,)."""
        return weights(self, [self.prefix(context) for context in contexts])

    def complete_batch(self, contexts: Sequence[Context]) -> Floats:
        """Return `complete` of each context, (n,)."""
        return weights(self, [self.complete(context) for context in contexts])

    def logw_next_batch(self, contexts: Sequence[Context]) -> Floats:
        """Return `logw_next` of each context, (n, V+1)."""
        return np.array([weights(self, self.logw_next(context)) for context in contexts])

    def logw_token_batch(self, contexts: Sequence[Context], tokens: Sequence[int]) -> Floats:
        """Return the entry of `logw_next` for one token of each context, (n,); `END` (−1) asks for the end."""
        pairs = list(zip(contexts, tokens))
        ends = np.array([token == END for token in tokens], bool)
        after = np.empty(len(pairs))
        after[ends] = self.complete_batch([context for context, token in pairs if token == END])
        after[~ends] = self.prefix_batch([(*context, token) for context, token in pairs if token != END])
        return ratio(after, self.prefix_batch(contexts))

    def opening_batch(self, contexts: Sequence[Context]) -> Floats:
        """Return what a step from each context multiplies in before its first token, (n,).

        It is ``prefix(())`` where the context is empty. Later it is 0: the steps before have multiplied it in.
        """
        first = np.array([len(context) == self.origin for context in contexts], bool)
        opening = np.zeros(len(contexts))
        if first.any():
            opening[first] = self.prefix_batch([context for context, at in zip(contexts, first) if at])
        return opening

    @property
    def fingerprint(self) -> Hashable:
        """What tells this potential from others; the object itself, unless a subclass says better.

        Make such a potential outside the program, so that every particle has the same.
        """
        return (type(self).__name__, id(self))

    def covers(self, other: Potential) -> bool:
        """Whether it has weight wherever ``other`` has, as far as that can be told without asking about sequences."""
        return self.fingerprint == other.fingerprint or other.within(self)

    def within(self, other: Potential) -> bool:
        """Whether its parts say that it has weight only where ``other`` has: a product, only where each factor has."""
        return False

    def __mul__(self, other: Potential) -> Potential:
        if not isinstance(other, Potential):
            return NotImplemented
        return Product((self, other))

    def __pow__(self, exponent: float) -> Potential:
        return Power(self, exponent)

    def __truediv__(self, other: Potential) -> Potential:
        if not isinstance(other, Potential):
            return NotImplemented
        return self * other**-1

    def after(self, text: Text | int) -> Potential:
        """Return the potential of what follows a text (or so many tokens of the response)."""
        skip = text if isinstance(text, int) else len(text.tokens)
        return After(self, skip) if skip else self

    def score(self, text: Text) -> Score:
        """Return the log-weight of a text for ``fk.factor``: `complete` where it ended, else `prefix`."""
        return Score(((_Scorer(self), (text,)),), "log_weight")

    def check(self, contexts: Iterable[Context], *, tokens: Sequence[int] | None = None, atol: float = 1e-6) -> None:
        """Assert the laws of the contract at some contexts: see `check_laws`. For tests of one's own potentials."""
        check_laws(self, [tuple(context) for context in contexts], tokens, atol)


def weights(potential: Potential, numbers: Any) -> Floats:
    """Return what a potential gave as an array of log-weights; raises InvalidWeight for bools and other non-numbers."""
    try:
        return reals(numbers)
    except TypeError as error:
        raise InvalidWeight(f"{potential!r}: among its log-weights there is {error}") from error


def ratio(after: Floats, before: Floats) -> Floats:
    """Return after − before, −inf where either is −inf; shapes broadcast."""
    out = np.subtract(after, np.where(np.isneginf(before), 0.0, before))
    return np.where(np.isneginf(before), -math.inf, out)


class Batched(Potential):
    """A potential that is computed by batches, of which a single context is one."""

    def prefix(self, context: Context) -> float:
        """Return the log-weight of a sequence that may go on."""
        return float(self.prefix_batch([context])[0])

    def complete(self, context: Context) -> float:
        """Return the log-weight of a sequence that ends here."""
        return float(self.complete_batch([context])[0])

    def logw_next(self, context: Context) -> Floats:
        """Return the log-weights of what may follow, (V+1,)."""
        row: Floats = self.logw_next_batch([context])[0]
        return row

    @abstractmethod
    def prefix_batch(self, contexts: Sequence[Context]) -> Floats:
        """Return `prefix` of each context, (n,)."""

    @abstractmethod
    def complete_batch(self, contexts: Sequence[Context]) -> Floats:
        """Return `complete` of each context, (n,)."""

    @abstractmethod
    def logw_next_batch(self, contexts: Sequence[Context]) -> Floats:
        """Return `logw_next` of each context, (n, V+1)."""


class Composite(Batched):
    """A potential whose weights are a function of those of its parts, row by row."""

    parts: tuple[Potential, ...]

    @abstractmethod
    def combine(self, log_weights: Sequence[Floats]) -> Floats:
        """Return the log-weights of the whole from those of each part; all have one shape."""

    def prefix_batch(self, contexts: Sequence[Context]) -> Floats:
        """Return `prefix` of each context, (n,)."""
        return self.combine([part.prefix_batch(contexts) for part in self.parts])

    def complete_batch(self, contexts: Sequence[Context]) -> Floats:
        """Return `complete` of each context, (n,)."""
        return self.combine([part.complete_batch(contexts) for part in self.parts])

    def logw_next_batch(self, contexts: Sequence[Context]) -> Floats:
        """Return `logw_next` of each context, (n, V+1)."""
        return self.combine([part.logw_next_batch(contexts) for part in self.parts])

    def logw_token_batch(self, contexts: Sequence[Context], tokens: Sequence[int]) -> Floats:
        """Return one entry of `logw_next` of each context, (n,)."""
        return self.combine([part.logw_token_batch(contexts, tokens) for part in self.parts])

    def opening_batch(self, contexts: Sequence[Context]) -> Floats:
        """Return what a step from each context multiplies in before its first token, (n,)."""
        return self.combine([part.opening_batch(contexts) for part in self.parts])


class Product(Composite):
    """The product of potentials. Made by ``a * b``; raises ValueError for different vocabularies.

    With language models as factors (see `Language`) it is a product of experts.
    """

    def __init__(self, parts: Sequence[Potential]) -> None:
        for part in parts[1:]:
            parts[0].vocabulary.require(part.vocabulary)
        self.parts = tuple(inner for part in parts for inner in (part.parts if type(part) is Product else (part,)))
        self.vocabulary = parts[0].vocabulary
        self.origin = parts[0].origin if len({part.origin for part in parts}) == 1 else None

    def __repr__(self) -> str:
        return " * ".join(map(repr, self.parts))

    @property
    def fingerprint(self) -> Hashable:
        """Those of the parts."""
        return ("product", *(part.fingerprint for part in self.parts))

    def covers(self, other: Potential) -> bool:
        """Whether all factors have weight wherever ``other`` has."""
        return all(part.covers(other) for part in self.parts)

    def within(self, other: Potential) -> bool:
        """Whether ``other`` has weight wherever some factor has."""
        return any(other.covers(part) for part in self.parts)

    def combine(self, log_weights: Sequence[Floats]) -> Floats:
        """Return their sum."""
        total = log_weights[0]
        for more in log_weights[1:]:
            total = total + more
        return total


class Power(Composite):
    """A power of a potential; zero stays zero. Made by ``a ** exponent``.

    Raises ValueError for an exponent that is 0 or not finite.
    """

    def __init__(self, base: Potential, exponent: float) -> None:
        if not math.isfinite(exponent) or exponent == 0:
            raise ValueError(f"the power of a potential must be a finite number other than 0, not {exponent}")
        self.parts, self.exponent = (base,), exponent
        self.vocabulary, self.origin = base.vocabulary, base.origin

    def __repr__(self) -> str:
        return f"({self.parts[0]!r}) ** {self.exponent:g}"

    @property
    def fingerprint(self) -> Hashable:
        """That of the base, and the exponent."""
        return ("power", self.parts[0].fingerprint, self.exponent)

    def covers(self, other: Potential) -> bool:
        """Whether its base has weight wherever ``other`` has: zero stays zero."""
        return self.parts[0].covers(other)

    def within(self, other: Potential) -> bool:
        """Whether ``other`` has weight wherever its base has."""
        return other.covers(self.parts[0])

    def combine(self, log_weights: Sequence[Floats]) -> Floats:
        """Return the exponent times those of the base."""
        return np.where(np.isneginf(log_weights[0]), -math.inf, self.exponent * log_weights[0])


class After(Composite):
    """A potential of what comes after the first tokens of a context. Made by ``potential.after(text)``."""

    def __init__(self, base: Potential, skip: int) -> None:
        self.parts, self.skip = (base,), skip
        self.vocabulary, self.origin = base.vocabulary, None if base.origin is None else base.origin + skip

    def __repr__(self) -> str:
        return f"{self.parts[0]!r} after {self.skip} tokens"

    @property
    def fingerprint(self) -> Hashable:
        """That of the base, and how much is skipped."""
        return ("after", self.parts[0].fingerprint, self.skip)

    def within(self, other: Potential) -> bool:
        """Whether ``other`` skips as much, and has weight wherever the base has."""
        return isinstance(other, After) and other.skip == self.skip and other.parts[0].covers(self.parts[0])

    def combine(self, log_weights: Sequence[Floats]) -> Floats:
        """Return those of the base."""
        return log_weights[0]

    def _cut(self, contexts: Sequence[Context]) -> list[Context]:
        short = [context for context in contexts if len(context) < self.skip]
        if short:
            raise ValueError(f"{self!r} was asked about {short[0]}, which has only {len(short[0])} tokens")
        return [context[self.skip :] for context in contexts]

    def prefix_batch(self, contexts: Sequence[Context]) -> Floats:
        """Return `prefix` of what comes after, (n,)."""
        return super().prefix_batch(self._cut(contexts))

    def complete_batch(self, contexts: Sequence[Context]) -> Floats:
        """Return `complete` of what comes after, (n,)."""
        return super().complete_batch(self._cut(contexts))

    def logw_next_batch(self, contexts: Sequence[Context]) -> Floats:
        """Return `logw_next` of what comes after, (n, V+1)."""
        return super().logw_next_batch(self._cut(contexts))

    def logw_token_batch(self, contexts: Sequence[Context], tokens: Sequence[int]) -> Floats:
        """Return one entry of `logw_next` of what comes after, (n,)."""
        return super().logw_token_batch(self._cut(contexts), tokens)

    def opening_batch(self, contexts: Sequence[Context]) -> Floats:
        """Return what a step from each context multiplies in before its first token, (n,)."""
        return super().opening_batch(self._cut(contexts))


class _Scorer:
    """Scores texts by a potential, as a lazy log-weight."""

    kind: Kind = "log_weight"

    def __init__(self, potential: Potential) -> None:
        self.potential = potential
        self.memory = Memory[float](0)

    @property
    def name(self) -> str:
        """Name in messages."""
        return repr(self.potential)

    def version(self) -> Hashable:
        """Return None: nothing is remembered here."""
        return None

    def score_batch(self, inputs: Sequence[tuple[Any, ...]]) -> list[float]:
        """Return the log-weight of each text."""
        result = np.empty(len(inputs))
        whole = [i for i, (text,) in enumerate(inputs) if text.finish_reason == "eos"]
        part = [i for i, (text,) in enumerate(inputs) if text.finish_reason != "eos"]
        result[whole] = self.potential.complete_batch([inputs[i][0].tokens[:-1] for i in whole])
        result[part] = self.potential.prefix_batch([inputs[i][0].tokens for i in part])
        numbers: list[float] = result.tolist()
        return numbers
