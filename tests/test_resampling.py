"""Resampling schemes and the arithmetic of weights.

Every statistical test here fails by chance at most once in 1 / TEST_FAILURE_RATE choices of its fixed seed.
"""

import math

import numpy as np
import pytest
from scipy import stats

from feynkac.inference.base.resampling import SCHEMES, resample
from feynkac.inference.base.weights import ess, logmeanexp, normalize, spread
from feynkac.ppl import keys
from feynkac.ppl.errors import InvalidWeight

TEST_FAILURE_RATE = 2e-5
RUNS = 3000

WEIGHTS = {
    "one": [1.0],
    "two": [0.3, 0.7],
    "asymmetric": [0.02, 0.4, 0.11, 0.05, 0.25, 0.16, 0.01],
    "zeros": [0.0, 0.35, 0.0, 0.05, 0.6, 0.0, 0.0],
    "all on one": [0.0, 0.0, 1.0],
    "equal": [0.125] * 8,
    "thirds": [1 / 3] * 3,
}


KEYS = keys.fold(keys.root(7), np.arange(RUNS))


def key(run):
    return KEYS[run : run + 1]


@pytest.mark.parametrize("m", [1, 2, 7, 20])
@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_unbiased(scheme, weights, m):
    p = np.array(weights)
    counts = np.empty((RUNS, len(p)))
    for run in range(RUNS):
        ancestors = SCHEMES[scheme](p, m, key(run))
        assert ancestors.shape == (m,)
        assert ancestors.dtype.kind == "i"
        counts[run] = np.bincount(ancestors, minlength=len(p))
    assert not counts[:, p == 0].any()
    error = counts.mean(0) - m * p
    deviation = counts.std(0) / math.sqrt(RUNS)
    sure = deviation == 0
    np.testing.assert_allclose(error[sure], 0.0, atol=1e-9)
    z = error[~sure] / deviation[~sure]
    # The rate is shared by all cases and particles.
    assert np.all(np.abs(z) < stats.norm.isf(TEST_FAILURE_RATE / 2 / (140 * len(p))))
    low, high = np.floor(m * p - 1e-9), np.ceil(m * p + 1e-9)
    if scheme in ("systematic", "ssp"):
        assert np.all((low <= counts) & (counts <= high))
    if scheme == "residual":
        assert np.all(counts >= np.floor(m * p + 1e-9) - (np.abs(m * p - np.round(m * p)) < 1e-9))
    if scheme == "stratified":
        assert np.all((counts > m * p - 2) & (counts < m * p + 2))


def test_ssp_has_the_law_of_its_definition():
    # Two fractions that add up to less, to exactly, and to more than one.
    for p, m in (([0.1, 0.2, 0.7], 1), ([0.25, 0.25, 0.5], 2), ([0.45, 0.35, 0.2], 2)):
        seen = {}
        for run in range(RUNS):
            counts = tuple(np.bincount(SCHEMES["ssp"](np.array(p), m, key(run)), minlength=3).tolist())
            seen[counts] = seen.get(counts, 0) + 1
        expected = dict(_ssp_law([m * x for x in p]))
        assert set(seen) <= set(expected)
        observed = [seen.get(c, 0) for c in expected]
        assert stats.chisquare(observed, [RUNS * q for q in expected.values()]).pvalue > TEST_FAILURE_RATE / 3


def _ssp_law(copies):
    """Enumerate the counts of three particles: settle the first pair, then what is left and the third."""
    whole = np.floor(copies)
    a, b, c = np.array(copies) - whole
    law = {}

    def settle(i, fi, j, fj):
        """The branches of a pair: (rounded up or None, unsettled, its fraction, probability)."""
        both = fi + fj
        if math.isclose(both, 0.0, abs_tol=1e-12):
            return [(None, i, 0.0, 1.0)]
        if both < 1 - 1e-12:
            return [(None, i, both, fi / both), (None, j, both, fj / both)]
        return [(i, j, both - 1, (1 - fj) / (2 - both)), (j, i, both - 1, (1 - fi) / (2 - both))]

    for up, i, fraction, p in settle(0, a, 1, b):
        for up2, i2, last, q in settle(i, fraction, 2, c):
            counts = whole.astype(int)
            for chosen in (up, up2, i2 if last > 0.5 else None):
                if chosen is not None:
                    counts[chosen] += 1
            if p * q > 1e-12:
                law[tuple(counts.tolist())] = law.get(tuple(counts.tolist()), 0.0) + p * q
    return law


@pytest.mark.parametrize("scheme", SCHEMES)
def test_function_of_its_key(scheme):
    p = np.array(WEIGHTS["asymmetric"])
    draws = [SCHEMES[scheme](p, 50, key(run)).tolist() for run in (0, 0, 1, 2, 3)]
    assert draws[0] == draws[1]
    assert any(draw != draws[0] for draw in draws[2:])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rounding_at_scale(scheme):
    rng = np.random.default_rng(0)
    for _ in range(5):
        p = rng.gamma(0.05, size=20_000) * (rng.random(20_000) < 0.5)
        p /= p.sum()
        counts = np.bincount(SCHEMES[scheme](p, 30_000, key(1)), minlength=len(p))
        assert counts.sum() == 30_000
        assert not counts[p == 0].any()
        if scheme in ("systematic", "ssp"):
            assert np.all(np.abs(counts - 30_000 * p) < 1 + 1e-6)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_no_probability_is_refused(scheme):
    for p in ([0.5, 0.6], [0.0, 0.0], [1.5, -0.5], [math.nan, 1.0], [[1.0]]):
        with pytest.raises(ValueError, match="probabilities"):
            SCHEMES[scheme](np.array(p), 3, key(0))


def test_resample_takes_log_weights():
    ancestors = resample([-math.inf, 1000.0, 1000.0 + math.log(3)], 8, key(0), "residual")
    assert np.bincount(ancestors).tolist() == [0, 2, 6]
    with pytest.raises(ValueError, match="sum of 0"):
        resample([-math.inf, -math.inf], 2, key(0))


def test_weights():
    logs = np.array([-1000.0, -1001.0, -math.inf, -1003.5])
    w = np.exp([0.0, -1.0, -math.inf, -3.5])
    np.testing.assert_allclose(normalize(logs), w / w.sum(), rtol=1e-13)
    assert logmeanexp(logs) == pytest.approx(-1000 + math.log(w.sum() / 4), rel=1e-14)
    assert ess(logs) == pytest.approx(w.sum() ** 2 / (w**2).sum())
    assert spread(logs).entropy == pytest.approx(stats.entropy(w))
    assert ess(logs + 5000) == pytest.approx(ess(logs), rel=1e-12)


@pytest.mark.parametrize("dead", [[-math.inf], [-math.inf] * 3, []])
def test_all_weights_zero(dead):
    assert ess(dead) == spread(dead).entropy == 0.0
    assert logmeanexp(dead) == -math.inf
    assert normalize(dead).tolist() == [0.0] * len(dead)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("function", [normalize, logmeanexp, ess, spread])
def test_bad_weights_are_named(function, bad):
    with pytest.raises(InvalidWeight, match="log-weight"):
        function([0.0, bad])


def test_one_weight():
    assert spread([-3.0]) == (1.0, 0.0, -3.0)
