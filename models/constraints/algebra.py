"""Mixtures and power means of potentials. Products and powers are `Product` and `Power`."""

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


def power_mean(parts: Sequence[Potential], weights: Sequence[float], exponent: float) -> Potential:
    """Return the power mean (Σ wᵢ·aᵢ^r)^(1/r) of potentials, of whole sequences: how much they have to agree.

    Args:
        parts: potentials over one vocabulary; language models, say.
        weights: one positive number for each; of a mean they sum to 1.
        exponent: r. 1 is the mixture, 0 the geometric mean Π aᵢ^wᵢ, −1 the harmonic one; −∞ the smallest, ∞ the
            largest (which are the same for all weights). At 0 and below a sequence has weight only where all parts give
            it some.

    Raises ValueError for an exponent that is NaN, and as `mixture` does.

    >>> from feynkac.models.constraints import Language
    >>> from feynkac.models.testing import tiny_lm
    >>> one, other = (Language(lm, lm.prompt("Once")) for lm in (tiny_lm(0), tiny_lm(1)))
    >>> means = [power_mean([one, other], [0.5, 0.5], r).complete((60,)) for r in (-np.inf, -1, 0, 1, np.inf)]
    >>> means == sorted(means), means[0] == min(one.complete((60,)), other.complete((60,)))
    (True, True)
    """
    if math.isnan(exponent):
        raise ValueError("the exponent of a power mean must be a number, not NaN")
    return PowerMean(parts, weights, float(exponent))


def guide(conditioned: Potential, unconditioned: Potential, s: float) -> Potential:
    """Return the product a(x)^(1+s)·b(x)^(−s): classifier-free guidance of texts as a law of whole texts.

    With `targeting` a step draws each token from the renormalised product of the two laws, as guidance usually does,
    and its weight has what that leaves out, the sum S over the tokens at each place: so that engines that weigh have
    the product as their target, and no other (Sanchez et al. 2023, arXiv:2306.17806, guide texts without it).

    Args:
        conditioned: a, the law after the prompt, such as ``Language(lm, text)``.
        unconditioned: b, that after a prompt without what is to be followed.
        s: how much; 0 is none. γ of guidance is 1 + s.

    Raises ValueError for an s that is not finite, and for potentials over other vocabularies.

    >>> from feynkac.models.constraints import Language
    >>> from feynkac.models.testing import tiny_lm
    >>> lm = tiny_lm()
    >>> a, b = Language(lm, lm.prompt("Be brief. Once")), Language(lm, lm.prompt("Once"))
    >>> one, other, both = (part.logw_next((60,))[61] for part in (a, b, guide(a, b, 0.5)))
    >>> bool(np.isclose(both, 1.5 * one - 0.5 * other))
    True
    """
    if not math.isfinite(s):
        raise ValueError(f"guidance is a finite number, not {s}")
    return conditioned ** (1.0 + s) * unconditioned**-s if s else conditioned


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


class PowerMean(Mixture):
    """The power mean of potentials of whole sequences. Made by `power_mean`."""

    def __init__(self, parts: Sequence[Potential], weights: Sequence[float], exponent: float) -> None:
        super().__init__(parts, weights)
        self.exponent = exponent

    def __repr__(self) -> str:
        return f"mean of power {self.exponent:g} of {super().__repr__()}"

    @property
    def fingerprint(self) -> Hashable:
        """Those of the parts, the weights and the exponent."""
        return ("power mean", super().fingerprint, self.exponent)

    def covers(self, other: Potential) -> bool:
        """Whether some part has weight wherever ``other`` has, or all where they have to agree."""
        if self.exponent > 0:
            return super().covers(other)
        return self.fingerprint == other.fingerprint or all(part.covers(other) for part in self.parts)

    def within(self, other: Potential) -> bool:
        """Whether ``other`` has weight wherever any part has, or some where they have to agree."""
        if self.exponent > 0:
            return super().within(other)
        return any(other.covers(part) for part in self.parts)

    def combine(self, log_weights: Sequence[Floats]) -> Floats:
        """Return the log of the mean."""
        all_of = np.stack([np.asarray(part, float) for part in log_weights])
        shares = np.array(self.weights).reshape(-1, *[1] * (all_of.ndim - 1))
        r, dead = self.exponent, np.isneginf(all_of)
        if math.isinf(r):
            extreme: Floats = all_of.max(axis=0) if r > 0 else all_of.min(axis=0)
            return extreme
        alive = np.where(dead, 0.0, all_of)
        if r == 0:
            mean = (shares * alive).sum(axis=0)
        else:
            terms = np.where(dead, -math.inf, np.log(shares) + r * alive)
            mean = np.logaddexp.reduce(terms, axis=0) / r
            middle, surplus = alive.mean(axis=0), math.fsum(self.weights) - 1.0
            gap = r * (alive - middle)  # where it is small, the log of nearly 1 divided by r has no digits left
            near = ~dead.any(axis=0) & (np.abs(gap).max(axis=0) < 0.1) & (abs(surplus) < 1e-12)
            more = (shares * np.expm1(np.where(near, gap, 0.0))).sum(axis=0)
            mean = np.where(near, middle + np.log1p(more) / r, mean)
        nothing = dead.all(axis=0) if r > 0 else dead.any(axis=0)
        return np.where(nothing, -math.inf, mean)


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
