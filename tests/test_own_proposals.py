"""Kernels that draw from a law of their own: the weight is p/q, however the value came about.

Each z-test raises a false alarm twice in 100,000 times. Seeds are fixed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest

import feynkac as fk
from laws import check_unbiased

P = {"a": 0.5, "b": 0.9, "c": 0.1}  # not normalised
Q = {"a": 0.2, "b": 0.3, "c": 0.5}


@dataclass(frozen=True)
class Own:
    """p not normalised, drawn from q; with ``noisy`` the weight is doubled or dropped by a coin."""

    noisy: bool = False

    batch_key = "own"

    @property
    def fingerprint(self):
        return self.noisy

    def sample_batch(self, requests, keys):
        u = fk.keys.uniform(keys, 2)
        values = [list(Q)[int(np.searchsorted(np.cumsum(list(Q.values())), x))] for x in u[:, 0]]
        log_p, log_q = self.log_prob_batch(requests, values), self.log_proposal_batch(requests, values)
        coin = np.array([request.noisy for request in requests])
        log_q = np.where(coin, log_q + np.where(u[:, 1] < 0.25, math.log(0.4), math.log(1.2)), log_q)
        return fk.Draws(values, log_p, log_q)

    def log_prob_batch(self, requests, values):
        return np.log([P[value] for value in values])

    def log_proposal_batch(self, requests, values):
        return np.log([Q[value] for value in values])

    def support(self):
        return list(P)


@fk.program
async def two(noisy=False):
    first = await fk.sample("first", Own(noisy))
    await fk.factor("G", 1.0 if first == "c" else 0.0)
    return first + await fk.sample("second", Own(noisy))


def exact():
    weights = {x + y: P[x] * P[y] * (math.e if x == "c" else 1.0) for x in P for y in P}
    z = sum(weights.values())
    return z, {value: w / z for value, w in weights.items()}


# E[1/q] over the coin is (0.25 / 0.4 + 0.75 / 1.2) = 1.25 times 1/q.
@pytest.mark.slow
@pytest.mark.parametrize(("noisy", "scale"), [(False, 1.0), (True, 1.25**2)])
def test_smc_has_the_law_of_p(noisy, scale):
    z, law = exact()
    check_unbiased(two(noisy), fk.SMC(4), law, math.log(z * scale), runs=1500)


def test_enumeration_takes_p():
    z, law = exact()
    found = fk.enumerate_program(two())
    assert found.log_evidence == pytest.approx(math.log(z))
    assert found.law() == pytest.approx(law)


def test_forced_values_have_p_over_q():
    model = two()
    step = model.start(fk.keys.fold(fk.keys.root(0), np.arange(10)))
    again = model.start(fk.keys.fold(fk.keys.root(1), np.arange(10)), given=list(step.choices))
    assert again.log_increment == pytest.approx(step.log_increment)
    assert step.log_increment.std() > 0.1
    assert (step.log_prob != step.log_proposal).all()


def test_observations_take_p():
    @fk.program
    async def seen():
        await fk.observe("x", Own(), "b")

    assert fk.infer(seen(), fk.SMC(2), seed=0).log_evidence == pytest.approx(math.log(P["b"]))


def test_as_a_proposal_its_q_counts():
    @fk.program
    async def proposed():
        return await fk.sample("x", fk.dist.Categorical([0.6, 0.3, 0.1], values=["a", "b", "c"]), proposal=Own())

    check_unbiased(proposed(), fk.SMC(3), {"a": 0.6, "b": 0.3, "c": 0.1}, 0.0, runs=1500)
    model = proposed()
    step = model.start(fk.keys.fold(fk.keys.root(0), np.arange(10)))
    again = model.start(fk.keys.fold(fk.keys.root(1), np.arange(10)), given=list(step.choices))
    assert again.log_increment == pytest.approx(step.log_increment)


def test_counts_are_checked():
    class Short(Own):
        batch_key = "short"

        def sample_batch(self, requests, keys):
            draws = super().sample_batch(requests, keys)
            return draws._replace(log_proposal=draws.log_proposal[:-1])

    @fk.program
    async def short():
        return await fk.sample("x", Short())

    with pytest.raises(ValueError, match="got 3 requests and returned 2 results"):
        fk.infer(short(), fk.SMC(3), seed=0)
