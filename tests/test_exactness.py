"""Law 1 and law 2: engines are exact on enumerable programs, whatever the twist, proposal and resampling."""

from __future__ import annotations

import math

import numpy as np
import pytest

import feynkac as fk
from laws import (
    T1_POTENTIALS,
    T1_REWARD,
    T1_TARGETS,
    T2_ORDER,
    T2_POSTERIOR,
    T2_PRIOR,
    T2_Z,
    check_unbiased,
    deadly,
    t1,
    t2,
    t3,
    z_score,
)

T1_ORDER = ("aa", "ab", "ba", "bb")
SCHEMES = ("multinomial", "stratified", "systematic", "residual", "ssp")


@pytest.mark.parametrize("potential", T1_POTENTIALS)
def test_enumeration_of_t1_matches_the_tables(potential):
    target, z = T1_TARGETS[potential]
    found = fk.enumerate_program(t1(potential))
    assert math.exp(found.log_evidence) == pytest.approx(z, abs=5e-5)
    assert [found.law()[x] for x in T1_ORDER] == pytest.approx(target, abs=5e-5)


def test_enumeration_of_t2_and_t3_matches_the_tables():
    found = fk.enumerate_program(t2())
    assert math.exp(found.log_evidence) == pytest.approx(T2_Z, abs=5e-7)
    assert [found.law()[x] for x in T2_ORDER] == pytest.approx(T2_POSTERIOR, abs=5e-6)
    assert np.exp(found.log_prob) == pytest.approx([T2_PRIOR[T2_ORDER.index(v)] for v in found.values])
    assert fk.enumerate_program(t3()).law() == pytest.approx({"a": 0.9, "b": 0.1})


@pytest.mark.parametrize("potential", T1_POTENTIALS)
@pytest.mark.parametrize("n", [1, 2, 7])
def test_smc_is_unbiased_on_t1(potential, n):
    truth = fk.enumerate_program(t1(potential))
    check_unbiased(t1(potential), fk.SMC(n, ess_threshold=1.0), truth.law(), truth.log_evidence, runs=1500)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("threshold", [0.0, 0.7, 1.0])
def test_smc_is_unbiased_on_t2_with_unequal_lengths(scheme, threshold):
    truth = fk.enumerate_program(t2())
    engine = fk.SMC(3, ess_threshold=threshold, resampling=scheme)
    check_unbiased(t2(), engine, truth.law(), truth.log_evidence, runs=1000)


@pytest.mark.slow
def test_importance_sampling_is_unbiased_on_t2():
    truth = fk.enumerate_program(t2())
    check_unbiased(t2(), fk.ImportanceSampling(4), truth.law(), truth.log_evidence)


def _wild(text):
    """A positive but misleading guide: it favours b, and is left far from 0 at the end."""
    return 1.5 * text.count("b") - 0.7 * len(text)


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 7])
@pytest.mark.parametrize("threshold", [0.5, 1.0])
def test_twists_change_neither_target_nor_evidence(n, threshold):
    truth = fk.enumerate_program(t2())
    engine = fk.SMC(n, ess_threshold=threshold, resampling="stratified")
    check_unbiased(t2(shaping=_wild), engine, truth.law(), truth.log_evidence)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_proposals_change_neither_target_nor_evidence(scheme):
    model = t1("product of odds", twist=lambda s: 0.8 * s.count("b"), proposal=[0.15, 0.85])
    truth = fk.enumerate_program(t1("product of odds"))
    check_unbiased(model, fk.SMC(3, ess_threshold=0.8, resampling=scheme), truth.law(), truth.log_evidence)


def test_perfect_twists_and_proposals_have_zero_variance():
    """With the optimal twist and the proposal that it induces every run gives Z (Whiteley and Lee 2014)."""
    truth = fk.enumerate_program(t1("product of r"))
    total = {p: sum(T1_REWARD[p + x] / 2 for x in "ab") for p in "ab"}

    @fk.program
    async def optimal():
        z = sum(0.5 * T1_REWARD[x] * total[x] for x in "ab")
        first = fk.dist.Categorical([0.5 * T1_REWARD[x] * total[x] / z for x in "ab"], values=["a", "b"])
        prior = fk.dist.Categorical([0.5, 0.5], values=["a", "b"])
        x = await fk.sample("step", prior, proposal=first)
        await fk.twist("psi", math.log(T1_REWARD[x] * total[x]))
        second = fk.dist.Categorical([0.5 * T1_REWARD[x + y] / total[x] for y in "ab"], values=["a", "b"])
        y = await fk.sample("step", prior, proposal=second)
        await fk.factor("prm", math.log(T1_REWARD[x] * T1_REWARD[x + y]))
        return x + y

    for seed in range(5):
        posterior = fk.infer(optimal(), fk.SMC(4, ess_threshold=1.0), seed=seed)
        assert posterior.log_evidence == pytest.approx(truth.log_evidence, abs=1e-12)


@pytest.mark.slow
def test_t3_is_right_where_resampling_and_then_selecting_by_the_weight_is_not():
    """At N=2, P(a) = .700 by one resampling; weighing twice would give .736."""
    posteriors = fk.infer([t3()] * 20_000, fk.SMC(2), seed=3)
    hits = [fk.Posterior.sample(p, 1, seed=i)[0] == "a" for i, p in enumerate(posteriors)]
    assert abs(z_score(hits, 0.7)) < 4.26
    assert abs(z_score(hits, 0.736)) > 4.26


@pytest.mark.slow
def test_best_of_n_has_the_laws_of_the_tables():
    @fk.program
    async def pick():
        x = await fk.sample("x", fk.dist.Categorical([0.5, 0.3, 0.2], values=[1, 2, 3]))
        await fk.factor("r", float(x))
        return x

    for engine, law in (
        (fk.BestOfN(2), (0.25, 0.39, 0.36)),
        (fk.BestOfN(2, temperature=1.0), (0.35452, 0.34159, 0.30389)),
    ):
        posteriors = fk.infer([pick()] * 20_000, engine, seed=1)
        for value, probability in zip((1, 2, 3), law):
            mass = [sum(w for v, w in zip(p.values, p.probabilities) if v == value) for p in posteriors]
            assert abs(z_score(mass, probability)) < 4.26


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 7])
def test_runs_in_which_all_die_count_as_zero(n):
    truth = fk.enumerate_program(deadly())
    check_unbiased(deadly(), fk.SMC(n, ess_threshold=0.9, all_dead="zero"), truth.law(), truth.log_evidence)


def test_all_dead_names_the_step_and_the_site():
    @fk.program
    async def doomed():
        await fk.sample("x", fk.dist.Normal(0.0, 1.0))
        await fk.factor("fine", 0.0)
        await fk.factor("impossible", -math.inf)

    with pytest.raises(fk.errors.AllParticlesDead, match=r"all 5 particles .* step 1 \(5 at site 'impossible'\)"):
        fk.infer(doomed(), fk.SMC(5), seed=0)
    posterior = fk.infer(doomed(), fk.SMC(5, all_dead="zero"), seed=0)
    assert posterior.log_evidence == -math.inf
    with pytest.raises(ValueError, match="weight zero"):
        posterior.probabilities


@pytest.mark.slow
def test_chains_are_pooled_in_proportion_to_their_evidence():
    truth = fk.enumerate_program(t2())
    engine = fk.SMC(2, ess_threshold=1.0, chains=3)
    check_unbiased(t2(), engine, truth.law(), truth.log_evidence, runs=1000)
    posterior = fk.infer(t2(), engine, seed=0)
    shares = [posterior.probabilities[2 * c : 2 * c + 2].sum() for c in range(3)]
    evidences = np.exp([chain.evidence for chain in posterior.chains])
    assert shares == pytest.approx(evidences / evidences.sum())


@pytest.mark.slow
def test_the_spread_of_chains_gives_a_calibrated_standard_error():
    posteriors = fk.infer([t2()] * 300, fk.SMC(10, chains=8), seed=5)
    truth = math.log(T2_Z)
    covered = np.mean([abs(p.log_evidence - truth) < 2.36 * p.log_evidence_se for p in posteriors])
    assert 0.87 < covered < 0.99  # t with 7 degrees of freedom covers 0.95; 300 runs, ±0.05 is 4 s.e.
    assert math.isnan(fk.infer(t2(), fk.SMC(5), seed=0).log_evidence_se)
