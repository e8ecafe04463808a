"""Adaptive weighted rejection: E[w·1{x}] = p(x)·1[x accepted], by enumeration and by simulation.

z-tests raise a false alarm twice in 100,000 times; there are about 60. Seeds are fixed.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from feynkac.models.constraints.awrs import AWRS, LawUrn, attempt, first_accepted, geometric, recursive, sample
from laws import Z_LIMIT, z_score

LAWS = ((0.5, 0.3, 0.2), (0.05, 0.6, 0.05, 0.3), (0.9, 0.06, 0.04), (0.25, 0.0, 0.35, 0.4))


def subsets(n):
    return [s for k in range(n + 1) for s in itertools.combinations(range(n), k)]


class Fork(Exception):
    """Raised where a scripted urn must choose: the branches and their probabilities."""

    def __init__(self, branches):
        self.branches = branches


class ScriptedUrn:
    """An urn whose draws are given, with the probability of all of them; beyond the script it asks."""

    def __init__(self, p, script, most):
        self.p, self.script, self.most = list(p), list(script), most
        self.gone = set()
        self.probability = 1.0

    @property
    def left(self):
        return math.fsum(q for token, q in enumerate(self.p) if token not in self.gone)

    def _choose(self, branches):
        branches = {branch: q for branch, q in branches.items() if q > 0}
        if not self.script:
            raise Fork(list(branches))
        branch = self.script.pop(0)
        self.probability *= branches[branch]
        return branch

    def draw(self):
        share = {token: q / self.left for token, q in enumerate(self.p) if token not in self.gone}
        token = self._choose(share)
        return token, share[token]

    def remove(self, token):
        self.gone.add(token)

    def misses(self):
        if not self.gone:
            return 0
        hit, left = 1 - self.left, self.left
        branches = {k: hit**k * left for k in range(self.most)}
        return self._choose({**branches, self.most: hit**self.most})


def enumerated(p, make, accepted, most=0):
    """E[w·1{x}] over all that an urn may do."""
    total = np.zeros(len(p))
    scripts = [()]
    while scripts:
        script = scripts.pop()
        urn = ScriptedUrn(p, script, most)
        draw = make(urn)
        try:
            asked = next(draw)
            while True:
                asked = draw.send(asked in accepted)
        except Fork as fork:
            scripts += [(*script, branch) for branch in fork.branches]
        except StopIteration as stop:
            token, weight = stop.value
            if token >= 0:
                total[token] += urn.probability * weight
    return total


@pytest.mark.parametrize("p", LAWS)
def test_the_recursive_form_over_all_orders(p):
    for accepted in subsets(len(p)):
        truth = [q if token in accepted else 0.0 for token, q in enumerate(p)]
        assert enumerated(p, recursive, accepted) == pytest.approx(truth, abs=1e-12)


@pytest.mark.parametrize(("accepts", "rejects"), [(2, 3), (3, 2), (2, 4)])
@pytest.mark.parametrize("p", LAWS)
def test_the_geometric_form_over_all_that_can_happen(p, accepts, rejects):
    for accepted in subsets(len(p)):
        truth = [q if token in accepted else 0.0 for token, q in enumerate(p)]
        found = enumerated(p, lambda urn: geometric(urn, accepts, rejects), accepted, rejects)
        assert found == pytest.approx(truth, abs=1e-12)


def test_the_first_accepted_has_another_law():
    found = enumerated((0.5, 0.3, 0.2), first_accepted, (1, 2))
    assert found == pytest.approx([0.0, 0.6, 0.4])


def test_the_numbers_of_the_specification():
    """p = (.5, .3, .2): accepting the second token, and the last two."""
    assert enumerated((0.5, 0.3, 0.2), recursive, (1,)) == pytest.approx([0, 0.3, 0])
    assert enumerated((0.5, 0.3, 0.2), recursive, (1, 2)) == pytest.approx([0, 0.3, 0.2])


SETTINGS = (AWRS(), AWRS("recursive"), AWRS("geometric"), AWRS(max_accepts=4), AWRS("geometric", 3, 5))


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("p", [*LAWS, (2.0, 0.5, 0.5, 1.0)])
def test_by_simulation(p, settings):
    """The real urn, its generators and gaps; the last law is not normalised, and its weights are larger so."""
    n, allowed = 2500, {1, 2}
    rngs = [np.random.default_rng((7, i)) for i in range(n)]
    accepts = lambda rows, tokens: [token in allowed for token in tokens]  # noqa: E731
    tokens, log_w = sample(np.tile(np.array(p), (n, 1)), accepts, rngs, settings)
    for token, q in enumerate(p):
        weights = np.where(tokens == token, np.exp(log_w), 0.0)
        assert abs(z_score(weights, q if token in allowed else 0.0)) < Z_LIMIT


def test_many_rejections():
    """Most of the mass is rejected, over many more tokens than a draw steps over at once."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(300, 0.3))
    allowed = set(np.argsort(p)[-40:-20].tolist())
    n = 1500
    rngs = [np.random.default_rng((3, i)) for i in range(n)]
    tokens, log_w = sample(np.tile(p, (n, 1)), lambda rows, tokens: [t in allowed for t in tokens], rngs)
    assert set(tokens.tolist()) <= allowed
    assert abs(z_score(np.exp(log_w), p[list(allowed)].sum())) < Z_LIMIT


def test_nothing_is_accepted():
    for settings in SETTINGS:
        tokens, log_w = sample(
            np.array([[0.5, 0.5], [0.0, 0.0]]), lambda rows, tokens: [False] * len(rows),
            [np.random.default_rng(i) for i in range(2)], settings,
        )  # fmt: skip
        assert tokens.tolist() == [-1, -1]
        assert np.isneginf(log_w).all()


def test_rows_ask_together_and_no_token_twice():
    waves, asked = [], set()

    def accepts(rows, tokens):
        waves.append(len(rows))
        for pair in zip(rows, tokens):
            assert pair not in asked
            asked.add(pair)
        return [token == 9 for token in tokens]

    p = np.full((6, 10), 0.1)
    for settings in (AWRS("recursive"), AWRS("geometric")):
        waves.clear()
        asked.clear()
        sample(p, accepts, [np.random.default_rng(i) for i in range(6)], settings)
        assert waves[0] == 6
        assert len(waves) <= 10


def test_an_urn_that_loses_nearly_all_its_mass():
    p = np.array([1 - 1e-12, 4e-13, 6e-13])
    urn = LawUrn(p, np.cumsum(p), np.random.default_rng(0))
    urn.remove(0)
    assert urn.left == pytest.approx(1e-12, rel=1e-6)
    assert {urn.draw()[0] for _ in range(200)} == {1, 2}
    assert urn.draw()[1] in (pytest.approx(0.4), pytest.approx(0.6))
    urn.remove(1)
    urn.remove(2)
    assert urn.left == 0


def test_the_form_follows_the_law():
    urn = ScriptedUrn((0.5, 0.5), (), 0)
    assert attempt(AWRS(), urn, 0.5).__name__ == "recursive"
    assert attempt(AWRS(), urn, 0.7).__name__ == "geometric"
    assert attempt(AWRS(max_accepts=3), urn, 0.5).__name__ == "geometric"
    assert attempt(AWRS(proper_weights=False), urn, 0.5).__name__ == "first_accepted"


@pytest.mark.parametrize("log10", [-9, -17, -20, -40, -290])
@pytest.mark.parametrize("settings", [AWRS("recursive"), AWRS("geometric"), AWRS("geometric", 3)], ids=str)
def test_far_tails_keep_their_mass(settings, log10):
    """All that is accepted has a mass below what 1 − q can say, or an integer count; the rest is certain."""
    tail = 10.0**log10
    p = np.tile([0.7, 2 * tail, 0.3, 5 * tail], (4000, 1))
    rngs = [np.random.default_rng((7, i)) for i in range(len(p))]
    tokens, log_w = sample(p, lambda rows, tokens: np.asarray(tokens) % 2 == 1, rngs, settings)
    for token in (1, 3):
        weights = np.where(tokens == token, np.exp(log_w - math.log(tail)), 0.0)
        assert abs(z_score(weights, p[0, token] / tail)) < Z_LIMIT
