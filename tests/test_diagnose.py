"""What scores are worth: closed forms on a chain whose values are known, and what is refused."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

import feynkac as fk
from feynkac.inference.scaling import measures
from feynkac.ppl.errors import InvalidWeight
from laws import Z_LIMIT, z_score

STEPS, P = 3, 0.6


def value(heads, thrown):
    """The chance of two heads or more among three coins."""
    left = STEPS - thrown
    law = [math.comb(left, k) * P**k * (1 - P) ** (left - k) for k in range(left + 1)]
    return sum(p for k, p in enumerate(law) if heads + k >= 2)


def guess(heads, thrown, wrong):
    """The value, or what a verifier makes of it that is too sure and thinks well of a first head."""
    v = min(max(value(heads, thrown), 0.02), 0.98)
    odds = v / (1 - v)
    return v if not wrong else 1 / (1 + odds**-2.0 * (0.5 if heads == 1 else 1.0))


@fk.program
async def coins(wrong=False, scored=True):
    heads = 0
    for thrown in range(1, STEPS + 1):
        heads += int(await fk.sample("head", fk.dist.Bernoulli(P)))
        score = math.log(guess(heads, thrown, wrong))
        if thrown == STEPS:
            await fk.factor("last", score)
        elif scored:
            await fk.twist("value", score)
        else:
            await fk.factor("nothing", 0.0)
    return heads


def success(heads):
    return heads >= 2


def prefixes(thrown):
    """Return the paths of some throws with their probability, as (heads, p)."""
    return [
        (sum(path), math.prod(P if x else 1 - P for x in path)) for path in itertools.product([1, 0], repeat=thrown)
    ]


def truth(thrown, wrong):
    """Return bellman, relative, drift and ESS of the step that comes to so many throws, by sums over all paths."""
    states = [(guess(h, thrown - 1, wrong) if thrown > 1 else 1.0, h, p) for h, p in prefixes(thrown - 1)]
    rows = [(v, p, [(guess(h + x, thrown, wrong), P if x else 1 - P) for x in (0, 1)]) for v, h, p in states]
    mean = [(v, p, sum(c * q for c, q in made)) for v, p, made in rows]
    square = sum(p * sum(q * c * c for c, q in made) / v for v, p, made in rows)
    total, after = sum(p * v for v, p, _ in mean), sum(p * m for _, p, m in mean)
    error = sum(p * (m - v) ** 2 for v, p, m in mean)
    relative = sum(p * (m - v) ** 2 / v for v, p, m in mean) / total
    return error, relative, math.log(after / total), after**2 / (total * square)


@pytest.mark.parametrize("wrong", [False, True])
def test_bellman_errors_and_the_predicted_ess_are_the_closed_forms(wrong):
    """Of every pair of children exactly as often as it comes (probabilities of fifths): the mean is then exact."""
    for thrown in (2, 3):
        before, pairs = [], []
        for h, p in prefixes(thrown - 1):
            children = [guess(h + x, thrown, wrong) for x in (1, 1, 1, 0, 0)]
            for pair in itertools.product(children, repeat=2):
                before += [guess(h, thrown - 1, wrong)] * round(p * 5 ** (thrown - 1))
                pairs += [pair] * round(p * 5 ** (thrown - 1))
        v, c = np.array(before), np.array(pairs).T
        error, relative, drift, ess = truth(thrown, wrong)
        assert tuple(measures.bellman(v, c)) == pytest.approx((error, relative, drift), abs=1e-12)
        assert measures.predicted_ess(v, c) == pytest.approx(ess, rel=1e-12)
    assert wrong or error < 1e-4  # of a verifier that knows, but for what is kept from 0 and 1


def test_a_diagnosis_has_them_without_bias():
    """12 comparisons at |z| < 4.26: a right estimate fails with probability 2.4e-4; seeds are fixed."""
    for wrong in (False, True):
        found = [fk.diagnose([coins(wrong)], success, answers=60, children=3, seed=seed).rows for seed in range(25)]
        for t in (1, 2):
            error, _, drift, ess = truth(t + 1, wrong)
            assert abs(z_score([rows[t].bellman for rows in found], error)) < Z_LIMIT
            assert abs(z_score([math.exp(rows[t].drift) for rows in found], math.exp(drift))) < Z_LIMIT
            assert abs(z_score([rows[t].ess for rows in found], ess)) < Z_LIMIT
        assert np.mean([rows[0].ess for rows in found]) == pytest.approx(truth(1, wrong)[3], abs=0.02)


def test_a_guide_by_twists_and_by_factors_of_its_ratios_is_the_same_score():
    @fk.program
    async def ratios():
        heads, before = 0, 0.0
        for thrown in range(1, STEPS + 1):
            heads += int(await fk.sample("head", fk.dist.Bernoulli(P)))
            score = math.log(guess(heads, thrown, True))
            await fk.factor("ratio", score - before)
            before = score
        return heads

    one, other = (fk.diagnose([model], success, seed=2).rows for model in (coins(True), ratios()))
    for row, same in zip(one, other, strict=True):
        assert tuple(row) == pytest.approx(tuple(same), nan_ok=True)


def test_auc_calibration_and_slope_are_the_closed_forms():
    fifths = [(h, round(p * 5**2)) for h, p in prefixes(2)]
    # Of each prefix a share of value(h) comes out right.
    rows = [(value(h, 2), right, count * (value(h, 2) if right else 1 - value(h, 2)) * 5) for h, count in fifths
            for right in (True, False)]  # fmt: skip
    scores = np.repeat([v for v, _, _ in rows], [round(c) for _, _, c in rows])
    right = np.repeat([r for _, r, _ in rows], [round(c) for _, _, c in rows])
    won = sum(a * b * (1.0 if v > u else 0.5 if v == u else 0.0) for v, r, a in rows for u, s, b in rows if r and not s)
    pairs = sum(c for _, r, c in rows if r) * sum(c for _, r, c in rows if not r)
    assert measures.auc(scores, right) == pytest.approx(won / pairs)
    assert measures.calibration_error(scores, right) == pytest.approx(0.0, abs=1e-12)
    assert measures.calibration_error(1 - scores, right) == pytest.approx(
        sum(c * abs(1 - 2 * v) for v, _, c in rows) / sum(c for _, _, c in rows)
    )
    # Scores that are the shares have the slope 1, and those with twice their log-odds 1/2.
    x, y = np.array([0.2] * 10 + [0.7] * 10), np.array([True] * 2 + [False] * 8 + [True] * 7 + [False] * 3)
    assert measures.slope(x, y) == pytest.approx(1.0, abs=1e-8)
    assert measures.slope(1 / (1 + ((1 - x) / x) ** 2), y) == pytest.approx(0.5, abs=1e-8)
    assert measures.slope(np.array([0.1, 0.4, 0.6]), np.array([False, False, True])) == math.inf
    assert math.isnan(measures.slope(np.full(4, 0.5), np.array([True, False, True, False])))
    groups = [(np.array([0.9, 0.8]), np.array([True, False])), (np.array([0.2, 0.1]), np.array([True, False]))]
    assert measures.auc_within(groups) == 1.0
    assert measures.auc(*(np.concatenate(part) for part in zip(*groups))) == 0.75


def test_a_diagnosis_tells_its_pool_cost_and_engine_and_shows_itself():
    found = fk.diagnose([coins(True), coins(True)], [success, success], answers=24, seed=1)
    assert found.right.shape == found.scores.shape == (2, 24)
    assert found.best_of(1) == pytest.approx(found.right.mean())
    assert found.best_of(24) == 1.0
    with pytest.raises(ValueError, match="24 answers"):
        found.best_of(25)
    assert found.variance == pytest.approx(sum(1 / row.ess - 1 for row in found.rows))
    text, html = repr(found), found._repr_html_()
    assert "Bellman" in text
    assert html.count("<tr>") == 4
    assert len(found.plot().axes) == 3
    assert fk.diagnose([coins(True), coins(True)], success, answers=24, seed=1).rows == found.rows


def test_what_cannot_be_told_is_refused():
    @fk.program
    async def broken():
        await fk.sample("x", fk.dist.Bernoulli(0.5))
        await fk.twist("value", math.nan)
        await fk.factor("G", 0.0)

    for models, solved, settings, error, message in [
        ([coins(scored=False)], success, {}, ValueError, "no run has a score before its end"),
        ([coins()], lambda heads: True, {}, ValueError, "all of the 32 answers are right"),
        ([coins()], lambda heads: False, {}, ValueError, "none of the 32 answers are right"),
        ([coins()], lambda heads: math.nan, {}, ValueError, "must be True or False, not nan"),
        ([coins()], [success, success], {}, ValueError, "1 models and 2 functions"),
        ([], success, {}, ValueError, "no model"),
        ([coins()], success, {"children": 1}, ValueError, "children must be 2 or more"),
        ([coins()], success, {"answers": 0}, ValueError, "answers"),
        ([broken()], success, {}, InvalidWeight, "NaN|nan"),
    ]:
        with pytest.raises(error, match=message):
            fk.diagnose(models, solved, **settings)


def test_scores_that_are_no_probabilities_have_no_calibration():
    @fk.program
    async def odds():
        heads = 0
        for _ in range(2):
            heads += int(await fk.sample("head", fk.dist.Bernoulli(P)))
            await fk.factor("odds", 2.0 * heads - 1.0)
        return heads

    rows = fk.diagnose([odds()], lambda heads: heads == 2, seed=0).rows
    assert all(math.isnan(row.ece) and math.isnan(row.slope) and math.isnan(row.score) for row in rows)
    assert rows[-1].auc == 1.0


def test_the_advice_is_the_rule():
    found = fk.diagnose([coins()] * 3, success, answers=32, seed=0)
    row, others = found.rows[0], [other._replace(slope=1.2) for other in found.rows[1:]]
    early, late, sure = (
        replace(found, rows=(row._replace(auc_within=auc, slope=slope), *others))
        for auc, slope in ((0.71, math.inf), (0.69, 0.61), (0.69, 0.59))
    )
    assert [early.choose(n) for n in (8, 128)] == [fk.AStar(64, width=8), fk.AStar(64, width=128)]
    assert [late.choose(n) for n in (1, 24, 25)] == [
        fk.AStar(64, width=1), fk.AStar(64, width=16), fk.ParticleFilter(25)
    ]  # fmt: skip
    fooled = replace(early, rows=(*early.rows[:-1], early.rows[-1]._replace(auc_within=0.98)))
    assert [fooled.choose(n) for n in (8, 128)] == [fk.ParticleFilter(8), fk.ParticleFilter(128)]
    assert sure.choose(25) == fk.EntropicParticleFilter(25, 3)
    assert "too sure" in repr(sure)
    assert replace(found, rows=found.rows[:1]).choose(32) == fk.BestOfN(32)
    real = tuple(one._replace(slope=math.nan) for one in found.rows)
    assert replace(found, rows=real).choose(8) == fk.ParticleFilter(8)
    assert early.advice(8).startswith("For a budget of 8 answers to a problem try AStar(64, width=8) on the score of")
    assert "ParticleFilter(64) on the odds of each step's score: after step 1" in late.advice(64)
    assert replace(found, rows=found.rows[:1]).advice(4).endswith("nothing to compare before the end.")
    with pytest.raises(ValueError, match="budget"):
        found.choose(0)
