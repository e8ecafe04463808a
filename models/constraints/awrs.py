"""Adaptive weighted rejection sampling: tokens under a predicate, properly weighted, without a mask.

A token is drawn from p and the predicate is asked about it; what it rejects is drawn no more. The token x that comes
out has a random weight w with E[w·1{x}] = p(x)·1[x is accepted], so that w estimates the mass of all that is accepted
without knowing it.

Source: Lipkin et al. (2025), Fast controlled generation from language models with adaptive weighted rejection
sampling, arXiv:2504.05410.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Attempt = Generator[int, bool, tuple[int, float]]
"""A draw in progress: yields the tokens to be asked about, and returns a token (−1: none) and its weight."""

_CERTAIN = 2 / 3
_GAPS = 16
"""Most gaps that a draw steps over, before the rest is added up anew."""


@dataclass(frozen=True)
class AWRS:
    """How tokens are drawn by adaptive weighted rejection.

    Attributes:
        form: "recursive" draws without replacement, until one token is accepted and one more is tried;
            "geometric" draws until ``max_accepts`` are accepted, as if with replacement, and is better where one token
            has most of the mass; "auto" takes it where that is ≥ 2/3, or where ``max_accepts`` is above 2.
        max_accepts: of the geometric form, at least 2: the more, the less the weight varies.
        max_rejects: of the geometric form: stop after so many rejections, repeated ones counted; None never.
        proper_weights: False takes the first accepted token with weight 1: cheaper, and the target is then that
            of locally masked draws without their weights.

    Raises ValueError for settings out of range.

    >>> AWRS(max_accepts=4).form
    'auto'
    """

    form: Literal["auto", "recursive", "geometric"] = "auto"
    max_accepts: int = 2
    max_rejects: int | None = None
    proper_weights: bool = True

    def __post_init__(self) -> None:
        if self.form not in ("auto", "recursive", "geometric"):
            raise ValueError(f'form must be "auto", "recursive" or "geometric", not {self.form!r}')
        if self.max_accepts < 2:
            raise ValueError(f"max_accepts must be at least 2, not {self.max_accepts}: a weight needs two")
        if self.max_rejects is not None and self.max_rejects < 2:
            raise ValueError(f"max_rejects must be at least 2 or None, not {self.max_rejects}")
        if self.form == "recursive" and (self.max_accepts > 2 or self.max_rejects is not None):
            raise ValueError('max_accepts and max_rejects belong to form="geometric"')


class Urn(Protocol):
    """A source of draws from a law over tokens, some of which have been taken out."""

    @property
    def left(self) -> float:
        """The share of the mass that is left, 0 where nothing is."""

    def draw(self) -> tuple[int, float]:
        """Return a token among those left, and its probability among them."""

    def remove(self, token: int) -> None:
        """Take a token out."""

    def misses(self) -> float:
        """Return how many draws from the whole law hit what was taken out, before one does not."""


class LawUrn:
    """An `Urn` over one law, by inverting its distribution function.

    Args:
        p: probabilities (V,).
        cumulative: their cumulative sums (V,).
        rng: where the numbers come from.
    """

    def __init__(self, p: Floats, cumulative: Floats, rng: np.random.Generator) -> None:
        self.p, self.cumulative, self.rng = p, cumulative, rng
        self.total = self.mass = float(cumulative[-1])
        self.gone: list[int] = []

    @property
    def left(self) -> float:
        """The share of the mass that is left."""
        return self.mass / self.total

    def draw(self) -> tuple[int, float]:
        """Return a token among those left, and its probability among them."""
        while True:
            point = self.rng.random() * self.mass
            for token in self.gone:  # in order: step over the gap of each
                if point >= self.cumulative[token] - self.p[token]:
                    point += float(self.p[token])
            token = min(int(np.searchsorted(self.cumulative, point, side="right")), len(self.p) - 1)
            if self.p[token] > 0 and token not in self.gone:  # it may be by rounding alone
                return token, min(1.0, float(self.p[token]) / self.mass)

    def remove(self, token: int) -> None:
        """Take a token out."""
        self.gone = sorted([*self.gone, token])
        self.mass = float(self.cumulative[-1] - self.p[self.gone].sum())
        if len(self.gone) >= _GAPS or self.mass < 1e-9 * self.cumulative[-1]:  # differences are rounded: add up again
            self.p = self.p.copy()
            self.p[self.gone] = 0.0
            self.cumulative, self.gone = np.cumsum(self.p), []
            self.mass = float(self.cumulative[-1])

    def misses(self) -> float:
        """Return how many draws from the whole law hit what was taken out, before one does not."""
        if self.mass >= self.total:
            return 0.0
        # By inversion, as a float: there may be more than an integer can count.
        return math.floor(math.log(1.0 - self.rng.random()) / math.log1p(-self.left)) if self.left < 1.0 else 0.0


def recursive(urn: Urn) -> Attempt:
    """Draw without replacement until a token is accepted; what is tried after it makes the weight.

    Each rejected draw, of probability q among those left, multiplies the weight by 1 − q: after all of them that is
    the share of the mass that is left, which is known where 1 − q would be rounded to 0. The first accepted one is
    returned; where the next is rejected, the weight is multiplied by its own q.
    """
    while (weight := urn.left) > 0:
        token, q = urn.draw()
        urn.remove(token)
        if (yield token):
            if urn.left > 0:
                other, _ = urn.draw()
                if not (yield other):
                    weight *= q
            return token, weight
    return -1, 0.0


def geometric(urn: Urn, max_accepts: int, max_rejects: int | None) -> Attempt:
    """Draw as if with replacement until enough tokens are accepted (or rejected); their counts make the weight.

    Draws that would have hit a token already rejected are counted and not made. The weight of the first accepted token,
    min(a−1, accepted) / (accepted + rejected − 1), is the unbiased estimate of a probability by inverse sampling
    (Girshick, Mosteller and Savage 1946, Annals of Mathematical Statistics 17).
    """
    most = math.inf if max_rejects is None else max_rejects
    first, accepted, rejected = -1, 0, 0.0
    verdicts: dict[int, bool] = {}
    while urn.left > 0:
        rejected += urn.misses()
        if rejected >= most:
            rejected = most
            break
        token, _ = urn.draw()
        if token not in verdicts:
            verdicts[token] = yield token
        if verdicts[token]:
            first = token if first < 0 else first
            accepted += 1
            if accepted == max_accepts:
                break
        else:
            urn.remove(token)
            rejected += 1
            if rejected >= most:
                break
    if not accepted:
        return -1, 0.0
    return first, min(max_accepts - 1, accepted) / (accepted + rejected - 1)


def first_accepted(urn: Urn) -> Attempt:
    """Draw without replacement until a token is accepted, with weight 1."""
    while urn.left > 0:
        token, _ = urn.draw()
        urn.remove(token)
        if (yield token):
            return token, 1.0
    return -1, 0.0


def attempt(settings: AWRS, urn: Urn, most: float) -> Attempt:
    """Return the draw that the settings ask for; ``most`` is the largest probability of a token."""
    if not settings.proper_weights:
        return first_accepted(urn)
    peaked = most >= _CERTAIN or settings.max_accepts > 2 or settings.max_rejects is not None
    if settings.form == "geometric" or (settings.form == "auto" and peaked):
        return geometric(urn, settings.max_accepts, settings.max_rejects)
    return recursive(urn)


def sample(
    p: Floats,
    accepts: Callable[[Sequence[int], Sequence[int]], Any],
    rngs: Sequence[np.random.Generator],
    settings: AWRS | None = None,
) -> tuple[NDArray[np.int64], Floats]:
    """Draw one token per row, each properly weighted for its law under a predicate.

    Args:
        p: probabilities (n, V); rows of zeros have no token.
        accepts: tells of rows and tokens (of equal length, one question each) whether they are accepted. All rows that
            are not finished ask together.
        rngs: one generator per row.
        settings: see `AWRS`.

    Returns:
        Tokens (n,), −1 where none is accepted, and the logs of their weights (n,): E[w·1{x}] = p(x)·1[x accepted].

    >>> rngs = [np.random.default_rng(i) for i in range(20_000)]
    >>> p = np.tile([0.5, 0.3, 0.2], (len(rngs), 1))
    >>> tokens, log_w = sample(p, lambda rows, tokens: np.asarray(tokens) > 0, rngs)
    >>> [round(float(np.exp(log_w[tokens == x]).sum()) / len(rngs), 2) for x in range(3)]
    [0.0, 0.3, 0.2]
    """
    settings = settings or AWRS()
    tokens, weights = np.full(len(p), -1, np.int64), np.zeros(len(p))
    cumulative = np.cumsum(p, axis=1)
    going: dict[int, tuple[Attempt, int]] = {}

    def proceed(row: int, draw: Attempt, verdict: bool | None) -> None:
        try:
            going[row] = draw, next(draw) if verdict is None else draw.send(verdict)
        except StopIteration as stop:
            tokens[row], weights[row] = stop.value
            going.pop(row, None)

    for row, rng in enumerate(rngs):
        if cumulative[row, -1] > 0:
            urn = LawUrn(p[row], cumulative[row], rng)
            proceed(row, attempt(settings, urn, float(p[row].max() / urn.total)), None)
    while going:
        rows = list(going)
        verdicts = np.asarray(accepts(rows, [going[row][1] for row in rows]), bool).tolist()
        for row, verdict in zip(rows, verdicts):
            proceed(row, going[row][0], verdict)
    with np.errstate(divide="ignore"):
        return tokens, np.log(weights) + np.where(weights > 0, np.log(cumulative[:, -1].clip(min=1e-300)), 0.0)
