"""Mixtures of potentials, by sequences or by tokens. Products and powers are `Product` and `Power`."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np

from .laws import END, Context, Floats
from .potential import Composite, Potential, ratio


def mixture(
    parts: Sequence[Potential], weights: Sequence[float], *, of: Literal["sequences", "tokens"] = "sequences"
) -> Potential:
    """Return the mixture Σ wᵢ·aᵢ of potentials.

    Args:
        parts: potentials over one vocabulary; language models, say (see `Language`).
        weights: one positive number for each; those of laws should sum to 1.
        of: "sequences" weighs a whole sequence by Σ wᵢ aᵢ(sequence), so that the next token follows the part which
            the sequence so far speaks for; "tokens" mixes the laws of each next token anew, with the same
            weights, and is for parts that are laws (prefix 0 of the empty context).

    Raises ValueError for another number of weights, weights that are not positive, different vocabularies
    or beginnings (see `Potential.after`).

    >>> from feynkac.models.constraints import Language
    >>> from feynkac.models.testing import tiny_lm
    >>> one, other = (Language(lm, lm.prompt("Once")) for lm in (tiny_lm(0), tiny_lm(1)))
    >>> both = mixture([one, other], [0.7, 0.3])
    >>> bool(np.isclose(np.exp(both.logw_next(())).sum(), 1.0))
    True
    """
    kinds = {"sequences": Mixture, "tokens": TokenMixture}
    if of not in kinds:
        raise ValueError(f'of must be "sequences" or "tokens", not {of!r}')
    return kinds[of](parts, weights)


class Mixture(Composite):
    """The sum Σ wᵢ·aᵢ of potentials of whole sequences. Made by `mixture`."""

    def __init__(self, parts: Sequence[Potential], weights: Sequence[float]) -> None:
        if not parts or len(parts) != len(weights):
            raise ValueError(f"a mixture needs one weight for each part, not {len(weights)} for {len(parts)}")
        if not all(0 < weight < math.inf for weight in weights):
            raise ValueError(f"the weights of a mixture must be positive numbers, not {list(weights)}")
        for part in parts[1:]:
            parts[0].vocabulary.require(part.vocabulary)
        self.parts, self.weights = tuple(parts), tuple(map(float, weights))
        self.vocabulary, self.origin = parts[0].vocabulary, parts[0].origin
        if self.origin is None or any(part.origin != self.origin for part in parts):
            raise ValueError("the parts of a mixture must begin at one place: give all the same .after(text), or none")

    def __repr__(self) -> str:
        return " + ".join(f"{weight:g}·{part!r}" for weight, part in zip(self.weights, self.parts))

    @property
    def fingerprint(self) -> Hashable:
        """Those of the parts, and the weights."""
        return (type(self).__name__, self.weights, *(part.fingerprint for part in self.parts))

    def covers(self, other: Potential) -> bool:
        """Whether some part has weight wherever ``other`` has."""
        return super().covers(other) or any(part.covers(other) for part in self.parts)

    def within(self, other: Potential) -> bool:
        """Whether ``other`` has weight wherever any part has."""
        return all(other.covers(part) for part in self.parts)

    def combine(self, log_weights: Sequence[Floats]) -> Floats:
        """Return the log of the weighted sum."""
        total = np.full(np.shape(log_weights[0]), -math.inf)
        for weight, more in zip(self.weights, log_weights):
            np.logaddexp(total, math.log(weight) + more, out=total)
        return total

    def logw_next_batch(self, contexts: Sequence[Context]) -> Floats:
        """Return `logw_next` of each context, (n, V+1)."""
        before = [part.prefix_batch(contexts)[:, None] for part in self.parts]
        after = self.combine([b + part.logw_next_batch(contexts) for b, part in zip(before, self.parts)])
        return ratio(after, self.combine(before))

    def opening_batch(self, contexts: Sequence[Context]) -> Floats:
        """Return what a step from each context multiplies in before its first token, (n,)."""
        return Potential.opening_batch(self, contexts)  # no sum over parts where steps before have it

    def logw_token_batch(self, contexts: Sequence[Context], tokens: Sequence[int]) -> Floats:
        """Return one entry of `logw_next` of each context, (n,)."""
        before = [part.prefix_batch(contexts) for part in self.parts]
        after = self.combine([b + part.logw_token_batch(contexts, tokens) for b, part in zip(before, self.parts)])
        return ratio(after, self.combine(before))


class TokenMixture(Mixture):
    """Laws mixed anew at each token. Made by ``mixture(…, of="tokens")``."""

    def prefix_batch(self, contexts: Sequence[Context]) -> Floats:
        """Return the sum over the tokens of each context, (n,)."""
        return self._along(contexts, [])

    def complete_batch(self, contexts: Sequence[Context]) -> Floats:
        """Return the sum over the tokens and the end, (n,)."""
        return self._along(contexts, [END])

    def _along(self, contexts: Sequence[Context], end: list[int]) -> Floats:
        owners = [i for i, context in enumerate(contexts) for _ in [*context, *end]]
        befores = [context[:t] for context in contexts for t in range(len(context) + len(end))]
        tokens = [token for context in contexts for token in [*context, *end]]
        total = np.zeros(len(contexts))
        if tokens:
            np.add.at(total, owners, self.logw_token_batch(befores, tokens))
        return total

    def logw_next_batch(self, contexts: Sequence[Context]) -> Floats:
        """Return `logw_next` of each context, (n, V+1)."""
        return self.combine([part.logw_next_batch(contexts) for part in self.parts])  # the dead are dead to all parts

    def logw_token_batch(self, contexts: Sequence[Context], tokens: Sequence[int]) -> Floats:
        """Return one entry of `logw_next` of each context, (n,)."""
        return self.combine([part.logw_token_batch(contexts, tokens) for part in self.parts])
