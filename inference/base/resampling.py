"""Resampling: draw ancestors in proportion to weights, without bias.

A scheme maps probabilities (n,), a number m and a key of shape (1,) to the positions of m ancestors, shape
(m,), such that the expected number of copies of particle i is m·pᵢ; it never picks a particle of weight zero.
The number of copies of particle i is

    multinomial   binomial
    stratified    within 2 of m·pᵢ
    residual      at least ⌊m·pᵢ⌋
    systematic    ⌊m·pᵢ⌋ or ⌈m·pᵢ⌉
    ssp           ⌊m·pᵢ⌋ or ⌈m·pᵢ⌉, negatively associated: consistent in any order of the particles

Compared in Douc, Cappé and Moulines (2005), doi:10.1109/ISPA.2005.195385; Gerber, Chopin and Whiteley (2019),
doi:10.1214/18-AOS1746, arXiv:1708.02230. All raise ``ValueError`` on probabilities that do not sum to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from ...ppl import keys as _keys
from ...ppl.keys import Keys
from ...ppl.model import Floats, Index
from .checks import one_of
from .weights import logmeanexp, normalize

Scheme: TypeAlias = Literal["multinomial", "stratified", "systematic", "residual", "ssp"]

_BELOW_ONE = 1.0 - 2.0**-53


def resample(log_weights: ArrayLike, m: int, key: Keys, scheme: Scheme = "systematic") -> Index:
    """Draw m ancestors in proportion to weights that are given by their logs, shape (n,).

    >>> resample([0.0, -np.inf, 0.0], 4, _keys.root(0)).tolist()
    [0, 0, 2, 2]
    """
    return SCHEMES[scheme](normalize(log_weights), m, key)


def chosen(log_weights: Floats, log_twist: Floats, m: int, key: Keys, scheme: Scheme) -> tuple[Index, Floats]:
    """Draw m ancestors ∝ w·ψ, and return them with the log-weights of their copies, mean(wψ)/ψ."""
    guided = log_weights + log_twist
    ancestors = resample(guided, m, key, scheme)
    return ancestors, logmeanexp(guided) - log_twist[ancestors]


def multinomial(probabilities: Floats, m: int, key: Keys) -> Index:
    """Draw m ancestors independently. Gordon, Salmond and Smith (1993), doi:10.1049/ip-f-2.1993.0015.

    >>> multinomial(np.array([0.0, 1.0]), 3, _keys.root(0)).tolist()
    [1, 1, 1]
    """
    return _invert(probabilities, _uniforms(key, m))


def stratified(probabilities: Floats, m: int, key: Keys) -> Index:
    """Draw one ancestor in each of m strata of equal mass. Kitagawa (1996), doi:10.2307/1390750.

    >>> stratified(np.array([0.5, 0.25, 0.25]), 4, _keys.root(0)).tolist()
    [0, 0, 1, 2]
    """
    return _invert(probabilities, (np.arange(m) + _uniforms(key, m)) / m)


def systematic(probabilities: Floats, m: int, key: Keys) -> Index:
    """Draw ancestors at m evenly spaced points, from one uniform. Kitagawa (1996), doi:10.2307/1390750.

    >>> systematic(np.array([0.5, 0.25, 0.25]), 4, _keys.root(0)).tolist()
    [0, 0, 1, 2]
    """
    cdf = _check(probabilities).cumsum()
    # As many points lie below each edge of the shares; no search is needed, as they are evenly spaced.
    below = np.ceil(cdf * (m / cdf[-1]) - _uniforms(key, 1)).astype(np.intp)
    below[cdf == cdf[-1]] = m
    return np.repeat(np.arange(len(cdf)), np.diff(below, prepend=0))


def residual(probabilities: Floats, m: int, key: Keys) -> Index:
    """Keep ⌊m·p⌋ copies of each, and draw the rest independently. Liu and Chen (1998), doi:10.2307/2669847.

    >>> residual(np.array([0.5, 0.25, 0.25]), 4, _keys.root(0)).tolist()
    [0, 0, 1, 2]
    """
    counts, rest = _split(probabilities, m)
    missing = m - int(counts.sum())
    kept = np.repeat(np.arange(len(counts)), counts)
    if not missing:
        return kept
    return np.concatenate([kept, _invert(rest / rest.sum(), _uniforms(key, missing))])


def ssp(probabilities: Floats, m: int, key: Keys) -> Index:
    """Round each m·p up or down by the Srinivasan sampling process. Gerber, Chopin and Whiteley (2019).

    Pairs of fractions are settled one after the other: mass moves within the pair until one of the two is 0
    or 1, at odds that keep both expectations.

    >>> ssp(np.array([0.5, 0.25, 0.25]), 4, _keys.root(0)).tolist()
    [0, 0, 1, 2]
    """
    counts, rest = _split(probabilities, m)
    fractions, uniforms = rest.tolist(), _uniforms(key, len(rest)).tolist()
    unsettled, a = 0, fractions[0]
    for j in range(1, len(fractions)):
        b, u = fractions[j], uniforms[j]
        both = a + b
        if both < 1.0:
            # One of the two takes all, the other is rounded down.
            if u * both >= a:
                unsettled = j
            a = both
        else:
            # One of the two is rounded up, and the other keeps what is left.
            up = unsettled if u * (2.0 - both) < 1.0 - b else j
            unsettled = j if up == unsettled else unsettled
            counts[up] += 1
            a = both - 1.0
    # The last fraction is 0 or 1 but for rounding, which is what counts still miss.
    counts[unsettled] += m - int(counts.sum())
    return np.repeat(np.arange(len(counts)), counts)


SCHEMES: Mapping[str, Callable[[Floats, int, Keys], Index]] = MappingProxyType(
    {
        "multinomial": multinomial,
        "stratified": stratified,
        "systematic": systematic,
        "residual": residual,
        "ssp": ssp,
    }
)
"""The schemes by name."""


def _uniforms(key: Keys, m: int) -> Floats:
    u: Floats = np.minimum(_keys.uniform(key, m)[0], _BELOW_ONE)
    return u


def _check(probabilities: ArrayLike) -> Floats:
    p: Floats = np.asarray(probabilities, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0).all() and abs(p.sum() - 1.0) < 1e-6):
        raise ValueError(f"resampling needs probabilities (n,) that sum to 1, got a sum of {p.sum()}")
    return p


def _invert(probabilities: ArrayLike, points: Floats) -> Index:
    """Find the particle whose share of [0, 1) holds each point. The shares of weight zero are empty."""
    cdf = _check(probabilities).cumsum()
    return np.searchsorted(cdf / cdf[-1], np.minimum(points, _BELOW_ONE), side="right")


def _split(probabilities: ArrayLike, m: int) -> tuple[Index, Floats]:
    """Split m·p into whole copies and fractions."""
    p = _check(probabilities)
    expected = m * (p / p.sum())
    whole = np.floor(expected)
    rest: Floats = expected - whole
    return whole.astype(np.intp), rest


CONDITIONAL: tuple[Scheme, ...] = ("multinomial", "stratified", "systematic", "residual")
"""The schemes that have a form given one of the ancestors."""


def conditional(probabilities: Floats, m: int, key: Keys, scheme: Scheme = "multinomial", kept: int = 0) -> Index:
    """Draw m ancestors of which the first is ``kept``, by the law of the scheme given that one of them is.

    It is what conditional SMC needs. Each outcome of the scheme has the chance ∝ the copies of ``kept`` in it. A
    multinomial draw leaves the others as they are. In a stratified or systematic one the particles are taken in a
    random order, and a point is drawn in the share of the one that is kept; the others are free in the other strata, or
    set by that point. In a residual one it is either one of the whole copies or one that is drawn.

    Raises ValueError for other schemes.

    Source: Andrieu, Doucet and Holenstein (2010), doi:10.1111/j.1467-9868.2009.00736.x; Chopin and Singh (2015),
    doi:10.3150/14-BEJ629, arXiv:1304.1887.

    >>> conditional(np.array([0.5, 0.5, 0.0]), 4, _keys.root(0), "systematic", kept=1).tolist()
    [1, 1, 0, 0]
    """
    one_of("resampling of conditional SMC", scheme, CONDITIONAL)
    p = _check(probabilities)
    if scheme == "multinomial":
        return np.concatenate([[kept], multinomial(p, m - 1, key)])
    if scheme == "residual":
        return np.concatenate([[kept], _other_residuals(p / p.sum(), m, key, kept)])
    order = np.argsort(_keys.uniform(_keys.fold(key, 0), len(p))[0])
    ends = p[order].cumsum()
    share, end = p[kept], ends[int(np.flatnonzero(order == kept)[0])]
    point = m * max(float(end - share * _uniforms(_keys.fold(key, 1), 1)[0]), 0.0) / float(ends[-1])
    slot = min(int(point), m - 1)
    offsets = point - slot if scheme == "systematic" else _uniforms(_keys.fold(key, 2), m)
    drawn = order[_invert(p[order] / ends[-1], (np.arange(m) + offsets) / m)]
    return np.concatenate([[kept], np.delete(drawn, slot)])


def _other_residuals(p: Floats, m: int, key: Keys, kept: int) -> Index:
    """Draw the m − 1 ancestors beside the one that is kept."""
    counts, rest = _split(p, m)
    if counts[kept] == 0 and counts.sum() == m:  # its share is lost in rounding: one of the others is not whole
        counts = np.maximum(np.ceil(m * p).astype(np.intp) - 1, 0)
        rest = m * p - counts
    free = m - int(counts.sum())
    if float(_uniforms(_keys.fold(key, 0), 1)[0]) * m * p[kept] < counts[kept] or not free:
        counts[kept] -= 1
    else:
        free -= 1
    drawn = _invert(rest / rest.sum(), _uniforms(_keys.fold(key, 1), free)) if free else np.zeros(0, np.intp)
    return np.concatenate([np.repeat(np.arange(len(p)), counts), drawn])


def optimal(weights: Floats, m: int, key: Keys) -> tuple[Index, Floats]:
    """Keep at most m of n weighted particles, each once, without bias and with the least variance.

    With c such that Σ min(1, c·w) = m, those of c·w ≥ 1 are kept with their weight, and the rest are drawn by
    systematic sampling with probability c·w each, and get the weight 1/c.

    Returns:
        The positions of those kept in increasing order, and the chance that each had, min(1, c·w): divide its weight
        by it. Particles of weight zero are dropped.

    Source: Fearnhead and Clifford (2003), doi:10.1111/1467-9868.00421.

    >>> optimal(np.array([0.7, 0.2, 0.1, 0.0]), 3, _keys.root(0))
    (array([0, 1, 2]), array([1., 1., 1.]))
    >>> index, chance = optimal(np.array([0.6, 0.1, 0.1, 0.1, 0.1]), 3, _keys.root(0))
    >>> index.tolist(), chance.tolist()
    ([0, 2, 4], [1.0, 0.5, 0.5])
    """
    w = np.asarray(weights, np.float64)
    alive = np.flatnonzero(w > 0)
    if len(alive) <= m:
        return alive, np.ones(len(alive))
    ranked = np.sort(w[alive])[::-1]
    rest = ranked[::-1].cumsum()[::-1]  # of each and all below it
    # The k largest are kept if, with c = (m − k)/rest[k], the next is not.
    scale = (m - np.arange(m)) / rest[:m]
    sure = int(np.flatnonzero(ranked[:m] * scale < 1.0 + 1e-12)[0])
    chance = np.minimum(w * scale[sure], 1.0)
    kept = np.flatnonzero(w >= ranked[sure - 1]) if sure else np.zeros(0, np.intp)
    kept = kept[np.argsort(-w[kept], kind="stable")[:sure]]
    others = np.setdiff1d(alive, kept)
    chance[kept] = 1.0
    drawn = others[systematic(chance[others] / chance[others].sum(), m - sure, key)]
    index = np.union1d(kept, drawn)
    return index, chance[index]
