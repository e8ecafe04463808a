"""Boolean constraints: potentials of 0 and 1, as masks of the vocabulary."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..language.host import Host
from .laws import Context, Floats
from .potential import Potential, Power
from .vocabulary import Vocabulary

Bools = NDArray[np.bool_]


class Constraint(Potential):
    """A potential of 0 and 1: sequences that are allowed, and those that are not.

    Subclasses define `viable` and `accepts`, and override `allowed` (or its batch) where they can do better
    than one `viable` for each token.

    >>> from feynkac.models.constraints import Vocabulary
    >>> class NoTwins(Constraint):
    ...     vocabulary = Vocabulary(2)
    ...     def viable(self, context):
    ...         return all(a != b for a, b in zip(context, context[1:]))
    ...     accepts = viable
    >>> (NoTwins() * NoTwins()).allowed((0,))
    array([False,  True,  True])
    """

    @abstractmethod
    def viable(self, context: Context) -> bool:
        """Whether a sequence may go on, or end."""

    @abstractmethod
    def accepts(self, context: Context) -> bool:
        """Whether a sequence may end here."""

    def allowed(self, context: Context) -> Bools:
        """Return what may follow, (V+1,): each token, and last the end."""
        if not self.viable(context):
            return np.zeros(self.vocabulary.size + 1, bool)
        after = [self.viable((*context, token)) for token in range(self.vocabulary.size)]
        return np.array([*after, self.accepts(context)], bool)

    def allowed_batch(self, contexts: Sequence[Context]) -> Bools:
        """Return `allowed` of each context, (n, V+1)."""
        return np.array([self.allowed(context) for context in contexts], bool)

    def prefix(self, context: Context) -> float:
        """Return 0 or −inf."""
        return 0.0 if self.viable(context) else -math.inf

    def complete(self, context: Context) -> float:
        """Return 0 or −inf."""
        return 0.0 if self.accepts(context) else -math.inf

    def logw_next(self, context: Context) -> Floats:
        """Return 0 or −inf for each token and the end, (V+1,)."""
        row: Floats = self.logw_next_batch([context])[0]
        return row

    def logw_next_batch(self, contexts: Sequence[Context]) -> Floats:
        """Return `logw_next` of each context, (n, V+1)."""
        return np.where(self.allowed_batch(contexts), 0.0, -math.inf)

    def __mul__(self, other: Potential) -> Potential:
        if isinstance(other, Constraint):
            return Intersection((self, other))
        return super().__mul__(other)

    def __pow__(self, exponent: float) -> Potential:
        Power(self, exponent)  # its rules hold; 0 and 1 stay what they are
        return self


class Intersection(Constraint):
    """What several constraints allow. Made by ``a * b``; raises ValueError for different vocabularies."""

    def __init__(self, parts: Sequence[Constraint]) -> None:
        for part in parts[1:]:
            parts[0].vocabulary.require(part.vocabulary)
        self.parts: tuple[Constraint, ...] = tuple(
            inner for part in parts for inner in (part.parts if isinstance(part, Intersection) else (part,))
        )
        self.vocabulary = parts[0].vocabulary

    def __repr__(self) -> str:
        return " * ".join(map(repr, self.parts))

    @property
    def fingerprint(self) -> Hashable:
        """Those of the parts."""
        return ("product", *(part.fingerprint for part in self.parts))

    def covers(self, other: Potential) -> bool:
        """Whether all allow what has weight under ``other``."""
        return all(part.covers(other) for part in self.parts)

    def within(self, other: Potential) -> bool:
        """Whether ``other`` has weight wherever some part allows it."""
        return any(other.covers(part) for part in self.parts)

    def viable(self, context: Context) -> bool:
        """Whether all say so."""
        return all(part.viable(context) for part in self.parts)

    def accepts(self, context: Context) -> bool:
        """Whether all say so."""
        return all(part.accepts(context) for part in self.parts)

    def allowed(self, context: Context) -> Bools:
        """Return what all allow, (V+1,)."""
        row: Bools = self.allowed_batch([context])[0]
        return row

    def allowed_batch(self, contexts: Sequence[Context]) -> Bools:
        """Return what all allow, (n, V+1)."""
        rows: Bools = np.logical_and.reduce([part.allowed_batch(contexts) for part in self.parts])
        return rows

    def logw_token_batch(self, contexts: Sequence[Context], tokens: Sequence[int]) -> Floats:
        """Return whether all allow one token of each context, as 0 or −inf, (n,)."""
        total: Floats = np.add.reduce([part.logw_token_batch(contexts, tokens) for part in self.parts])
        return total


class Where(Constraint):
    """The constraint that a function of the response's string holds, at every token.

    Args:
        lm: the language model whose tokens are meant.
        holds: whether a response may begin so; once it is False it should stay so, however the text goes on.
        ends: whether a response may end so; by default the same.

    To know a whole mask it asks ``holds`` once for each token of the vocabulary: use ``sampler="awrs"``, which
    asks only about the tokens it draws. A token that ends inside a character reads "\ufffd" there.

    >>> from feynkac.models.testing import tiny_lm
    >>> lm = tiny_lm()
    >>> quiet = Where(lm, lambda string: "!" not in string)
    >>> quiet.viable(lm.encode("Yes.")), quiet.viable(lm.encode("Yes!"))
    (True, False)
    """

    def __init__(self, lm: Host, holds: Callable[[str], bool], ends: Callable[[str], bool] | None = None) -> None:
        self.lm, self.holds, self.ends = lm, holds, ends or holds
        self.vocabulary = Vocabulary.of(lm)

    def __repr__(self) -> str:
        return f"<where {getattr(self.holds, '__name__', 'a predicate')} holds>"

    @property
    def fingerprint(self) -> Hashable:
        """The functions."""
        return ("where", self.holds, self.ends)

    def viable(self, context: Context) -> bool:
        """Whether a sequence may go on, or end."""
        return not self.lm.eos.intersection(context) and bool(self.holds(self.lm.decode_response(context)))

    def accepts(self, context: Context) -> bool:
        """Whether a sequence may end here."""
        return not self.lm.eos.intersection(context) and bool(self.ends(self.lm.decode_response(context)))
