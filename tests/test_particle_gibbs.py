"""Sweeps of particle Gibbs as exact matrices, for every scheme of resampling, with and without ancestor sampling."""

from __future__ import annotations

import itertools
import math
from functools import cache, partial

import numpy as np
import pytest
from branching import CHANCE, Coin, outcomes

import feynkac as fk
from feynkac.inference.base import resampling
from feynkac.inference.base.paths import run_on
from feynkac.inference.base.weights import normalize
from feynkac.inference.mcmc import particle_gibbs
from feynkac.inference.particles import path_filter
from walks import drive, keys_of, stationary, value_of

SCHEMES = ["multinomial", "stratified", "systematic", "residual"]

# -- the law of ancestors, of which one is kept ------------------------------------------------------------------------


@cache
def counts_of(p, m, scheme):
    """The exact law of the numbers of copies; of stratified and systematic draws, in a random order."""
    law: dict = {}

    def add(counts, probability):
        law[counts] = law.get(counts, 0.0) + probability

    def independent(shares, before=0, weight=1.0):
        for picks in itertools.product(range(len(p)), repeat=len(shares)):
            chance = math.prod(share[j] for share, j in zip(shares, picks))
            if chance > 0:
                add(tuple(np.add(before, np.bincount(picks, minlength=len(p))).tolist()), weight * chance)

    if scheme == "multinomial":
        independent([p] * m)
    elif scheme == "residual":
        whole = [math.floor(m * x + 1e-12) for x in p]
        rest = [m * x - w for x, w in zip(p, whole)]
        independent([np.array(rest) / sum(rest)] * (m - sum(whole)) if sum(whole) < m else [], whole)
    orders = list(itertools.permutations(range(len(p)))) if scheme in ("stratified", "systematic") else []
    for order in orders:
        ends, back = m * np.cumsum([p[j] for j in order]), np.argsort(order)
        if scheme == "stratified":
            shares = [np.diff(np.clip(ends, k, k + 1), prepend=k)[back] for k in range(m)]
            independent(shares, weight=1 / len(orders))
        else:
            cuts = sorted({0.0, 1.0, *(float(end % 1.0) for end in ends)})
            for a, b in itertools.pairwise(cuts):
                below = np.floor(ends - (a + b) / 2) + 1  # points k + u below each end
                below[-1] = m
                add(tuple(np.diff(below, prepend=0)[back].astype(int).tolist()), (b - a) / len(orders))
    return law


def kept_law(p, m, scheme, kept):
    """The same given that an ancestor, whichever, is ``kept``: each outcome counts as often as it has copies of it."""
    law = {c: q * c[kept] / (m * p[kept]) for c, q in counts_of(p, m, scheme).items() if c[kept]}
    assert sum(law.values()) == pytest.approx(1.0)
    return law


class Scripted:
    """Stands for the keys in the file of resampling: answers with given uniforms, first an order where one is drawn."""

    def __init__(self, order, uniforms):
        self.order, self.uniforms = order, list(uniforms)

    def fold(self, *_):
        return None

    def uniform(self, key, size):
        if self.order is not None:
            ranks, self.order = np.argsort(self.order), None
            return ranks[None] / size
        return np.array([[self.uniforms.pop(0) for _ in range(size)]])


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("twelfths", [(3, 6, 3), (5, 4, 3), (1, 7, 4)], ids=str)
def test_ancestors_have_the_law_of_the_scheme_given_the_one_that_is_kept(scheme, twelfths, monkeypatch):
    """The orders run over all, and the uniforms over grids on whose cells the outcome does not change."""
    m, n, p = 2, len(twelfths), tuple(x / 12 for x in twelfths)
    fine, grid = ((np.arange(k) + 0.5) / k for k in (math.lcm(12, *twelfths), 12))
    fine, grid = fine.tolist(), grid.tolist()
    for kept in range(n):
        orders = itertools.permutations(range(n)) if scheme in ("stratified", "systematic") else [None]
        others = [grid] if scheme in ("stratified", "residual") else []
        tries = list(itertools.product(orders, itertools.product(fine, *others)))
        found: dict = {}
        for order, u in tries:
            monkeypatch.setattr(resampling, "_keys", Scripted(order, [*u, u[-1]]))
            drawn = resampling.conditional(np.array(p), m, None, scheme, kept)
            assert drawn[0] == kept
            counts = tuple(np.bincount(drawn, minlength=n).tolist())
            found[counts] = found.get(counts, 0.0) + 1 / len(tries)
        assert found == pytest.approx(kept_law(p, m, scheme, kept))


# -- sweeps ------------------------------------------------------------------------------------------------------------


@fk.program
async def walk(start, moves, log_g, guide=None):
    """x_0 ~ start, x_t ~ moves[x_{t−1}], and log_g[t](path) at each step."""
    path: tuple = ()
    for t in range(len(log_g)):
        proposal = None if guide is None else Coin((0.5 - guide, 0.5 + guide))
        path = (*path, await fk.sample("x", Coin(moves[path[-1]] if t else start), proposal=proposal))
        if guide is not None and t == 0:
            await fk.twist("guide", guide * (1 + 2 * path[0]))
        await fk.factor("G", log_g[t][path])
    return path


def table(*steps):
    """Potentials by path, from nested tuples."""
    return [dict(np.ndenumerate(np.array(step))) for step in steps]


# The chain on which ancestors that are drawn after the others' offsets were set have another law.
ISSUE = walk((0.99, 0.01), ((0.54, 0.46), (0.29, 0.71)), table((4.7, 4.4), ((-3.4, -3.8), (1.6, -0.06))))
MOVES = ((0.4, 0.6), (0.85, 0.15))
LONG = walk(
    (0.7, 0.3),
    MOVES,
    table((0.6, -0.4), ((0.2, 1.1), (-0.9, 0.3)), (((0.5, -0.3), (0.1, 0.9)), ((-1.2, 0.4), (0.7, 0.0)))),
)
GUIDED = walk((0.7, 0.3), MOVES, table((0.6, -0.4), ((0.2, 1.1), (-0.9, 0.3))), 0.2)


def whole_runs(model):
    """Every whole run by its value, as a path, and the exact target."""
    found = outcomes(lambda: drive(model, [run_on(model, [None], keys_of(1))])[0][0])
    law = np.array([p * math.exp(path.log_weight) for p, path in found])
    return {value_of(model, path): path for _, path in found}, law / law.sum()


def pick(log_weights, m, key, scheme):
    assert m == 1
    return np.array([CHANCE.choose(normalize(log_weights))])


def keep(p, m, key, scheme, kept=0):
    law = kept_law(tuple(np.asarray(p).tolist()), m, scheme, kept)
    counts = np.array(list(law)[CHANCE.choose(list(law.values()))])
    counts[kept] -= 1
    return np.r_[kept, np.repeat(np.arange(len(p)), counts)]


def sweep_matrix(model, engine, monkeypatch):
    """The exact kernel of a sweep: whatever it draws is enumerated, and the last pick summed over."""
    ends: list = []
    monkeypatch.setattr(path_filter, "conditional", keep)
    monkeypatch.setattr(path_filter, "resample", pick)
    monkeypatch.setattr(particle_gibbs, "_pick", lambda paths, logs, key: ends.append((paths, logs)) or paths[0])
    paths, law = whole_runs(model)
    names = list(paths)
    kernel = np.zeros((len(names), len(names)))

    def sweep(path):
        drive(model, [engine._sweep(model, path, keys_of(1))])
        return ends.pop()

    for a, path in enumerate(paths.values()):
        for p, (found, log_weights) in outcomes(partial(sweep, path)):
            for new, chance in zip(found, normalize(log_weights)):
                kernel[a, names.index(value_of(model, new))] += p * chance
    assert kernel.sum(1) == pytest.approx(np.ones(len(names)))
    return kernel, law


@pytest.mark.slow
@pytest.mark.parametrize("ancestors", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("n", [2, 3])
def test_a_sweep_leaves_the_target_as_an_exact_matrix(n, scheme, ancestors, monkeypatch):
    """With others drawn for the ancestor that was there before, the second has (.4685, .2667, .2094, .0553)."""
    kernel, law = sweep_matrix(ISSUE, fk.ParticleGibbs(n, 1, ancestors, resampling=scheme), monkeypatch)
    assert law == pytest.approx([0.4090, 0.2335, 0.2439, 0.1136], abs=5e-5)
    assert np.abs(law @ kernel - law).max() < 1e-12
    assert stationary(kernel) == pytest.approx(law, abs=1e-10)


@pytest.mark.parametrize(
    ("model", "scheme", "threshold"),
    [*((GUIDED, scheme, x) for scheme in SCHEMES for x in (1.0, 0.8)), (LONG, "systematic", 0.9)],
)
def test_sweeps_with_twists_and_proposals_at_adaptive_times_leave_it_too(model, scheme, threshold, monkeypatch):
    kernel, law = sweep_matrix(model, fk.ParticleGibbs(2, 1, True, threshold, scheme), monkeypatch)
    assert np.abs(law @ kernel - law).max() < 1e-12
    assert stationary(kernel) == pytest.approx(law, abs=1e-10)


def test_a_scheme_without_a_conditional_form_is_refused_by_name():
    with pytest.raises(ValueError, match=r'resampling must be "multinomial", .* or "residual", not .ssp.'):
        fk.ParticleGibbs(3, 5, resampling="ssp")
