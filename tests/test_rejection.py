"""Rejection of single steps: exact, whatever the ceiling; one particle with an exact value is a draw of the target."""

from __future__ import annotations

import math

import numpy as np
import pytest
from outcomes import Speller, expected

import feynkac as fk
from chains import chain
from feynkac.inference.particles import rejection
from feynkac.ppl.errors import InvalidWeight
from laws import Z_LIMIT, check_all_dead, check_unbiased, deadly, t2, z_score

HEAD = {True: 1.5, False: 0.5}


@fk.program
async def coins(steps, right=True, resampled_on="twist"):
    """Coins whose target is heads with probability 3/4 each; the guide is their exact value, or wrong."""
    value, before, heads = 0.0, 0.0, 0
    for left in reversed(range(steps)):
        head = bool(await fk.sample("head", fk.dist.Bernoulli(0.5)))
        heads += head
        value += math.log(HEAD[head])
        guide = value if right else 0.7 * value + 0.4 * (heads % 2)
        if not left:
            await fk.factor("G", value - (before if resampled_on == "advantage" else 0.0))
        elif resampled_on == "twist":
            await fk.twist("value", guide)
        else:
            await fk.factor("advantage", guide - before)
            before = guide
    return heads


# 3 + 9 + 5 comparisons at |z| < 4.26: a correct engine fails with probability 17 × 2.0e-5 = 3.5e-4; seeds are fixed.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "engine"),
    [
        (coins(2, right=False), fk.RejectionSMC(2, ceiling=0.8, ess_threshold=1.0, trials=3, all_dead="zero")),
        (t2(shaping=lambda text: 1.5 * text.count("b") - 0.7 * len(text)), fk.RejectionSMC(3, ceiling=1.3, start=5.0)),
        (deadly(), fk.RejectionSMC(3, ceiling=0.4, trials=4, all_dead="zero")),
    ],
    ids=["wrong guide", "unequal lengths", "deaths"],
)
def test_it_is_unbiased_whatever_the_ceiling(model, engine):
    truth = fk.enumerate_program(model)
    check_unbiased(model, engine, {x: p for x, p in truth.law().items() if p > 0.05}, truth.log_evidence, runs=200)


@pytest.mark.slow
@pytest.mark.parametrize("trust", [False, True])
def test_one_particle_with_an_exact_value_is_a_draw_of_the_target_where_that_of_smc_is_not(trust):
    posteriors = fk.infer([coins(8)] * 160, fk.RejectionSMC(1, ceiling=1.5, trust=trust), seed=0)
    heads = [p.values[0] for p in posteriors]
    assert abs(z_score(heads, 6.0)) < Z_LIMIT
    assert abs(z_score(np.square(np.array(heads) - 6.0), 8 * 0.75 * 0.25)) < Z_LIMIT
    children = np.mean([p.info["trials"] for p in posteriors])
    assert children == pytest.approx(1.5 if trust else 3.0, rel=0.1)
    assert math.isnan(posteriors[0].log_evidence) == trust
    assert posteriors[0].guarantee == ("heuristic" if trust else "unbiased")
    plain = fk.infer([coins(8)] * 160, fk.SMC(2), seed=0)
    assert z_score([p.expect(float) for p in plain], 6.0) < -5


def test_a_telescoping_twist_resamples_on_the_advantage():
    """A guide as a twist, and its increments as factors: the same ancestors, the same draws, the same evidence."""
    for engine in (fk.SMC(6), fk.SMC(6, ess_threshold=1.0, resampling="multinomial")):
        twisted = fk.infer(coins(6, False), engine, seed=3)
        advantage = fk.infer(coins(6, False, "advantage"), engine, seed=3)
        assert twisted.values == advantage.values
        assert twisted.log_evidence == pytest.approx(advantage.log_evidence, abs=1e-12)
        for one, other in zip(twisted.steps, advantage.steps, strict=True):
            np.testing.assert_array_equal(one.ancestors, other.ancestors)


def test_a_child_above_the_ceiling_is_weighed_and_never_clipped_and_refused_where_the_twist_is_trusted():
    with pytest.raises(InvalidWeight, match=r"1\.5 times what they were, above the ceiling 1\.2.*raise it"):
        fk.infer(coins(4), fk.RejectionSMC(2, ceiling=1.2, trust=True), seed=0)
    below = fk.infer([coins(1)] * 300, fk.RejectionSMC(1, ceiling=0.1), seed=0)  # every child is accepted
    assert {round(math.exp(p.log_evidence), 9) for p in below} == {0.5, 1.5}


def test_every_key_is_used_once_and_the_cost_is_what_the_model_saw():
    model = chain()
    posterior = fk.infer(model, fk.RejectionSMC(4, ceiling=0.5), seed=3)
    assert len(model.keys) == len(set(model.keys)) == posterior.cost.nfe
    assert len(model.calls) == posterior.cost.model_calls
    assert posterior.info["trials"] == pytest.approx(posterior.cost.nfe / 12)


def test_deaths_and_settings_are_named():
    check_all_dead(fk.RejectionSMC(3))
    for settings, message in [
        ({"ceiling": 0.0}, "ceiling is a positive number"),
        ({"ceiling": math.inf}, "ceiling is a positive number"),
        ({"start": -1.0}, "start is a positive number"),
        ({"trials": 1}, "two acceptances"),
        ({"ess_threshold": 2.0}, "ess_threshold"),
    ]:
        with pytest.raises(ValueError, match=message):
            fk.RejectionSMC(2, **settings)
    assert fk.RejectionSMC(2, trials=1, trust=True).trials == 1


LAW = {"": {"a": 0.6, "b": 0.3, "z": 0.1}, "a": {"a": 0.2, "z": 0.8}, "b": {"a": 0.6, "z": 0.4}}
LOG_G = {"a": 0.5, "b": -1.0, "z": 0.3, "aa": 1.2, "az": -0.4, "ba": 0.1, "bz": 2.0}
LOG_PSI = {"a": -0.8, "b": 0.9}


@pytest.mark.parametrize(
    ("ceiling", "trials", "start"),
    [(3.0, 2, 0.4), (0.6, 3, 1.0), pytest.param(3.0, 3, 1.0, marks=pytest.mark.slow)],
)
def test_every_outcome_of_one_particle_enumerated_sums_to_the_target(monkeypatch, ceiling, trials, start):
    """E[Ẑ·1{x}] = p(x)·∏G(x) to rounding: children, coins and the numbers of trials are gone through, none is drawn."""
    engine = fk.RejectionSMC(1, ceiling=ceiling, trials=trials, start=start, all_dead="zero")
    told = {}

    def model(choose):
        told["model"] = Speller(choose, LAW.__getitem__, LOG_G.__getitem__, LOG_PSI.__getitem__, ends=2)
        return told["model"]

    def coin(keys):
        speller = told["model"]
        ((before, _, log_g, psi),) = speller.last
        level = LOG_PSI[before] if before else math.log(start)
        accepted = min(1.0, math.exp(log_g + psi - level) / ceiling)
        good = speller.choose([accepted, 1.0 - accepted]) == 0
        return np.array([accepted / 2 if good else (1 + accepted) / 2])

    monkeypatch.setattr(rejection._keys, "uniform", coin)
    mean, _, count = expected(engine, model)
    truth = model(None).exact()
    assert count > 50
    assert mean == pytest.approx(truth, abs=1e-12)
