"""Tempered SMC, waste-free SMC and persistent sampling: their ladders, evidence, draws, errors and labels."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from tempered import G1, G2, G3, Exact, Mortal, Stuck, Walk

import feynkac as fk
from feynkac.inference.base.step import Step
from feynkac.inference.base.thermodynamic import thermodynamic
from feynkac.inference.base.weights import ess
from feynkac.inference.tempering.ladder import conditional_ess, next_inverse, reweighted
from laws import T2_ORDER, T2_POSTERIOR, T2_Z, Z_LIMIT, check_all_dead, check_unbiased, deadly, z_score
from walks import tokens

LADDERS = {
    (G1, 0.5): (0, 0.351048, 1),
    (G1, 0.9): (0, 0.066801, 0.162581, 0.304864, 0.524387, 0.876216, 1),
    (G2, 0.5): (0, 0.762292, 1),
}
ONE_SHOT = {G1: 0.269597, G2: 0.427148}
RUNGS = (0.0, 0.351, 1.0)


def grid(toy):
    """A fine grid of points, with the log of their share of the prior, and log G."""
    x = np.linspace(-9, 9, 20_001) if toy is G1 else (np.arange(80_000) + 0.5) * 5e-4
    model = toy()
    return model.log_prior(x[:, None]), model.log_g(x[:, None])


def walk_exactly(toy, share):
    """The ladder of infinitely many particles."""
    log_p, log_g = grid(toy)
    ladder = [0.0]
    while ladder[-1] < 1.0:
        here = reweighted(log_p, log_g, ladder[-1])
        left = conditional_ess(here, log_g)
        ladder.append(next_inverse(lambda gap, left=left: left(gap) / share, ladder[-1]))
    return ladder


def stages_of(toy, ladder):
    """The stages of infinitely many particles on a ladder."""
    log_p, log_g = grid(toy)
    n, out = len(log_p), []
    for t, rung in enumerate(ladder):
        logs = reweighted(log_p, log_g, rung)
        log_z = np.logaddexp.reduce(logs) - np.logaddexp.reduce(log_p)
        nothing = np.zeros(n)
        temperature = 1 / rung if rung else math.inf
        step = Step(t, 1.0, 0.0, log_z, False, np.arange(n), logs, log_g, nothing, nothing > 0, (), temperature)
        out.append(step)
    return out


# -- ladders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("toy", "share"), LADDERS)
def test_the_ladder_of_many_particles(toy, share):
    assert walk_exactly(toy, share) == pytest.approx(LADDERS[toy, share], abs=2e-6)
    log_p, log_g = grid(toy)
    assert conditional_ess(log_p, log_g)(1.0) == pytest.approx(ONE_SHOT[toy], abs=1e-5)


def test_a_run_walks_the_ladder_of_many_particles():
    posterior = fk.infer(G1(), fk.TemperedSMC(4000, Exact(), moves=1), seed=0)
    found = [1 / step.temperature for step in posterior.steps]
    assert found == pytest.approx([0, 0.351048, 1, 1], abs=0.02)
    assert [step.ess / 4000 for step in posterior.steps][1] == pytest.approx(0.5, abs=1e-6)
    assert posterior.expect(lambda x: x[0]) == pytest.approx(1.2, abs=0.04)


def test_no_weight_is_left_at_a_potential_of_zero_however_small_the_rise():
    logs, dead = np.zeros(3), np.array([0.0, -np.inf, -1.0])
    assert reweighted(logs, dead, 0.0).tolist() == [0.0, -np.inf, 0.0]
    assert conditional_ess(logs, dead)(0.0) == pytest.approx(2 / 3)
    assert conditional_ess(np.array([0.0, -np.inf, 0.0]), dead)(0.0) == pytest.approx(1.0)


def test_a_ladder_that_cannot_rise_says_so():
    class Cliff(G1):
        def log_g(self, x):
            return -1e12 * np.abs(x[:, 0])

    for engine in (fk.TemperedSMC(50, Exact()), fk.PersistentSampling(50, Exact())):
        with pytest.raises(fk.errors.LadderStuck, match="λ = 0: however small"):
            fk.infer(Cliff(), engine, seed=0)


# -- evidence --------------------------------------------------------------------------------------------------------


def ratios(toy, engine, runs, seed=0):
    """Ẑ/Z of independent runs."""
    found = fk.infer([toy()] * runs, engine, seed=seed)
    return np.exp([p.log_evidence - toy.log_z for p in found]), found


@pytest.mark.slow
def test_evidence_is_unbiased_on_a_fixed_ladder():
    """At each rung, too. 5 comparisons at |z| < 4.26: 1e-4. The weights at λ for λ' fail it."""
    engine = fk.TemperedSMC(5, Exact(), moves=1, ladder=(0, 0.1, 0.3, 1))
    assert engine.guarantee == "unbiased"
    found, posteriors = ratios(G1, engine, 500)
    assert abs(z_score(found, 1.0)) < Z_LIMIT
    for t, log_z in ((1, -0.512243825), (2, -1.075602450)):
        assert abs(z_score(np.exp([p.steps[t].log_evidence - log_z for p in posteriors]), 1.0)) < Z_LIMIT
    for power, moment in ((1, 1.2), (2, 1.64)):
        means = [r * p.expect(lambda x, k=power: x[0] ** k) for r, p in zip(found, posteriors)]
        assert abs(z_score(means, moment)) < Z_LIMIT


@pytest.mark.slow
def test_waste_free_evidence_is_unbiased_on_a_fixed_ladder():
    engine = fk.WasteFreeSMC(20, Walk(0.9), length=5, ladder=RUNGS)
    assert engine.guarantee == "unbiased"
    found, posteriors = ratios(G1, engine, 500)
    # 2 comparisons at |z| < 4.26: 4e-5.
    assert abs(z_score(found, 1.0)) < Z_LIMIT
    assert abs(z_score([r * p.expect(lambda x: x[0]) for r, p in zip(found, posteriors)], 1.2)) < Z_LIMIT


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "mean", "error"),
    [
        (fk.TemperedSMC(10, Exact(), moves=1), 1.0324, 0.0017),
        (fk.TemperedSMC(100, Exact(), moves=1), 1.0037, 0.0005),
        (fk.PersistentSampling(20, Exact(), moves=1), 1.0031, 0.0019),
    ],
)
def test_the_bias_of_adaptive_ladders_is_the_small_one_that_it_is(engine, mean, error):
    """3 comparisons at |z| < 4.26: 6e-5. The means of TemperedSMC are those of 60,000 runs written in NumPy alone."""
    assert engine.guarantee == "consistent"
    found, _ = ratios(G1, engine, 400)
    own = found.std(ddof=1) / math.sqrt(len(found))
    assert abs(found.mean() - mean) < Z_LIMIT * math.hypot(own, error)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "mean", "error"),
    [
        (fk.TemperedSMC(10, Exact(), moves=1), 1.0324, 0.0017),
        (fk.WasteFreeSMC(20, Exact(), length=5, ladder=RUNGS), 0.9997, 0.0011),
        (fk.PersistentSampling(20, Exact(), moves=1), 1.0031, 0.0019),
    ],
)
def test_the_bias_over_many_runs(engine, mean, error):
    """3 comparisons at |z| < 4.26: 6e-5."""
    found, _ = ratios(G1, engine, 6000, seed=1)
    own = found.std(ddof=1) / math.sqrt(len(found))
    assert abs(found.mean() - mean) < Z_LIMIT * math.hypot(own, error)


@pytest.mark.slow
@pytest.mark.parametrize("engine", [fk.TemperedSMC(1500, Walk(0.6)), fk.PersistentSampling(700, Walk(0.6))])
def test_both_modes_are_found_with_their_masses(engine):
    """Means over six runs by their own spread: 8 comparisons at |t₅| < 12: 6e-4."""
    found = fk.infer([G3()] * 6, engine, seed=2)
    assert abs(z_score(np.exp([p.log_evidence - G3.log_z for p in found]), 1.0)) < 12
    assert abs(z_score([p.expect(lambda x: x[0] > 0) for p in found], G3.mode)) < 12
    for k in range(2):
        assert abs(z_score([p.expect(lambda x, k=k: x[k]) for p in found], G3.mean[k])) < 12
    assert np.mean([p.log_evidence for p in found]) == pytest.approx(G3.log_z, abs=0.1)
    assert np.mean([p.expect(lambda x: x[0] > 0) for p in found]) == pytest.approx(G3.mode, abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(
    "engine",
    [
        fk.TemperedSMC(4, fk.SuffixMH(1), moves=1, ladder=(0, 0.3, 1)),
        fk.WasteFreeSMC(6, fk.SuffixMH(1), length=3, ladder=(0, 0.3, 1)),
    ],
)
def test_texts_are_tempered(engine):
    """16 comparisons at |z| < 4.26: 3e-4. The model has factors at its steps, and proposals of its own."""
    check_unbiased(tokens(heat=0.6), engine, dict(zip(T2_ORDER, T2_POSTERIOR)), math.log(T2_Z), runs=250, seed=4)


def test_persistent_sampling_weighs_texts_with_proposals():
    found = fk.infer(tokens(heat=0.6), fk.PersistentSampling(700, fk.SuffixMH(1), moves=2), seed=4)
    assert found.log_evidence == pytest.approx(math.log(T2_Z), abs=0.15)
    for text, p in zip(T2_ORDER, T2_POSTERIOR):
        assert found.expect(lambda v, x=text: v == x) == pytest.approx(p, abs=0.05)


# -- weights of zero -------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "engine",
    [
        fk.TemperedSMC(6, Walk(0.9), moves=2, ladder=RUNGS),
        fk.TemperedSMC(6, Walk(0.9), moves=2, ladder=RUNGS, ess=0.9),  # the first runs are resampled, too
        fk.WasteFreeSMC(6, Walk(0.9), length=3, ladder=RUNGS),
    ],
)
def test_runs_of_weight_zero_count_in_the_evidence(engine):
    """6 comparisons at |z| < 4.26: 1e-4."""
    found, posteriors = ratios(Mortal, replace(engine, all_dead="zero"), 400, seed=3)
    assert abs(z_score(found, 1.0)) < Z_LIMIT
    masses = [r * p.expect(lambda x: x[0] < 1.0) if r > 0 else 0.0 for r, p in zip(found, posteriors)]
    low = [0.5 * math.erfc((1.2 - x) / math.sqrt(0.4)) for x in (0.0, 1.0)]
    assert abs(z_score(masses, (low[1] - low[0]) / (1 - low[0]))) < Z_LIMIT


def test_a_ladder_is_found_where_most_of_the_prior_is_dead():
    class Rare(G1):
        def log_g(self, x):
            return np.where(x[:, 0] > 1.3, super().log_g(x), -np.inf)

    for engine in (fk.TemperedSMC(400, Walk(0.5)), fk.PersistentSampling(400, Walk(0.5))):
        posterior = fk.infer(Rare(), engine, seed=0)
        tail = math.log(0.5 * math.erfc(0.1 / math.sqrt(0.4)))
        assert posterior.log_evidence == pytest.approx(G1.log_z + tail, abs=0.5)
        assert min(v[0] for v, w in zip(posterior.values, posterior.probabilities) if w > 0) > 1.3
        assert posterior.steps[0].ess < 100


def test_all_dead():
    engines = [fk.TemperedSMC(4, fk.SuffixMH(1)), fk.WasteFreeSMC(4, fk.SuffixMH(1), 2)]
    for engine in [*engines, fk.PersistentSampling(4, fk.SuffixMH(1))]:
        check_all_dead(engine)
        assert fk.infer(deadly(), replace(engine, particles=40), seed=0).log_evidence < 0


# -- errors and checks -----------------------------------------------------------------------------------------------


def test_the_thermodynamic_integral_of_many_particles():
    found = thermodynamic(stages_of(G1, LADDERS[G1, 0.9]))
    assert found.mean[[0, -1]].tolist() == pytest.approx([-6.725791, -0.805791], abs=1e-5)
    assert found.trapezoid == pytest.approx(-1.98084, abs=1e-5)
    assert found.log_evidence == pytest.approx(-1.92904, abs=1e-5)
    assert found.difference == pytest.approx(G1.log_z + 1.92904, abs=1e-5)
    dead = thermodynamic(stages_of(G1, (0.0, 1.0))[:1])
    assert dead.log_evidence == dead.difference == 0.0


def test_the_posterior_reports_the_integral_beside_the_evidence(tmp_path):
    posterior = fk.infer(G1(), fk.TemperedSMC(600, Exact(), moves=1, ess=0.9, chains=2), seed=0)
    assert posterior.info["thermodynamic"] == pytest.approx(-1.92904, abs=0.15)
    assert abs(posterior.info["difference"]) < 0.15
    assert posterior.info["stages"] > 5
    tree = posterior.to_datatree()["smc"]
    inverse = tree["inverse_temperature"].to_numpy()
    assert inverse[0, :2].tolist() == pytest.approx([0.0, 0.0668], abs=0.01)
    assert np.nanmax(tree["acceptance"].to_numpy()) == 1.0
    increments = np.nansum(tree["log_normalizer_increment"].to_numpy(), 1)
    np.testing.assert_allclose(increments, tree["log_normalizer"].to_numpy())
    assert "Tempering" in [ax.get_title(loc="left") for ax in fk.plots.overview(posterior).figure.axes]
    assert "by the integral" in fk.plots.tempering(posterior).axes[0].get_title(loc="right")
    posterior.save(tmp_path / "kept")
    again = fk.Posterior.load(tmp_path / "kept")
    assert [s.acceptance for s in again.steps[2:]] == [s.acceptance for s in posterior.steps[2:]]
    assert again.thermodynamic[1].difference == posterior.thermodynamic[1].difference
    with pytest.raises(ValueError, match=r"SMC.* has none"):
        fk.infer(G1(), fk.SMC(5), seed=0).thermodynamic


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param(fk.WasteFreeSMC(120, Walk(0.9), length=30, ladder=RUNGS), marks=pytest.mark.slow),
        fk.TemperedSMC(160, Exact(), moves=1, ladder=RUNGS, resampling="multinomial"),
    ],
)
def test_one_chain_has_a_standard_error(engine):
    """Its square is that of the spread of many runs: z-score of the paired difference; 2 at |z| < 4.26: 4e-5.

    As if the states of a chain were independent it would be a third of it, 8 standard errors away.
    """
    found, posteriors = ratios(G1, engine, 160, seed=6)
    claims = np.array([p.log_evidence_se for p in posteriors]) ** 2
    spread = (np.log(found) - np.log(found).mean()) ** 2
    assert abs(z_score(spread - claims, 0.0)) < Z_LIMIT
    assert claims.mean() == pytest.approx(spread.mean(), rel=0.5)


def test_other_chains_say_why_they_have_none():
    for engine in (fk.TemperedSMC(20, Exact()), fk.PersistentSampling(20, Exact())):
        posterior = fk.infer(G1(), engine, seed=0)
        assert math.isnan(posterior.log_evidence_se)
        assert "chains=4" in posterior.log_evidence_se_reason
        several = fk.infer(G1(), replace(engine, chains=4), seed=0)
        assert 0 < several.log_evidence_se < 1
        assert len(several.chains) == 4


def test_chains_are_pooled_by_their_evidence():
    posterior = fk.infer(G1(), fk.TemperedSMC(20, Exact(), chains=3), seed=1)
    shares = posterior.probabilities.reshape(3, 20).sum(1)
    evidence = np.exp([chain.evidence for chain in posterior.chains])
    np.testing.assert_allclose(shares, evidence / evidence.sum())


def test_a_posterior_says_what_speaks_against_it():

    class Sharp(G1):
        def log_g(self, x):
            return 400 * super().log_g(x)

    stuck = fk.infer(Sharp(), fk.TemperedSMC(60, Stuck()), seed=0)
    assert any("particles are distinct: the moves seldom part" in said for said in stuck.warnings)
    steep = fk.infer(Sharp(), fk.TemperedSMC(60, Exact(), ladder=(0, 1)), seed=0)
    assert any("on the way to λ = 1" in said for said in steep.warnings)
    assert fk.infer(G1(), fk.TemperedSMC(60, Exact()), seed=0).warnings == ()


# -- static programs under SMC -----------------------------------------------------------------------------------------


@fk.program
async def measured(ys):
    z = await fk.sample("z", fk.dist.Normal(0.0, 1.0))
    for y in ys:
        await fk.observe("y", fk.dist.Normal(z, 0.5), y)
    return z


@pytest.mark.slow
def test_observations_one_after_the_other_with_moves_are_ibis():
    """θ first, then y: Ẑ of the first t observations, mean and second moment; 5 at |z| < 4.26: 1e-4."""
    engine, logs, found = fk.SMC(40, ess_threshold=1.0, move=fk.SuffixMH(2)), [], []
    for seed in range(120):
        run = fk.steps(measured((1.5, 0.3, -0.2)), engine, seed=seed)
        logs.append([step.log_evidence for step in run][:3])
        found.append(run.posterior)
    truth = np.cumsum((-1.930510, -1.419685, -1.794269))
    assert truth[-1] == pytest.approx(-5.144464)
    for t, log_z in enumerate(truth):
        assert abs(z_score(np.exp(np.array(logs)[:, t] - log_z), 1.0)) < Z_LIMIT
    for power, moment in ((1, 0.492308), (2, 1 / 13 + 0.492308**2)):
        masses = [math.exp(p.log_evidence - truth[-1]) * p.expect(lambda z, k=power: z**k) for p in found]
        assert abs(z_score(masses, moment)) < Z_LIMIT


@fk.program
async def sharp(size=8, sd=0.05):
    z = [await fk.sample("z", fk.dist.Normal(0.0, 1.0)) for _ in range(size)]
    for k, x in enumerate(z):
        await fk.observe("y", fk.dist.Normal(x, sd), 0.3 * k - 0.6)
    return tuple(z)


def test_a_static_prior_that_collapses_under_smc_is_sent_to_tempering():
    with pytest.warns(fk.errors.CollapseWarning, match=r"100 particles are worth .* different draws.*TemperedSMC"):
        posterior = fk.infer(sharp(), fk.SMC(100, move=fk.SuffixMH(3)), seed=0)
    truth = sum(-0.5 * ((0.3 * k - 0.6) ** 2 / 1.0025 + math.log(2 * math.pi * 1.0025)) for k in range(8))
    assert posterior.log_evidence < truth - 5  # so it is right to warn
    tempered = fk.infer(sharp(4, 0.3), fk.TemperedSMC(150, fk.SuffixMH(2)), seed=0)
    truth = sum(-0.5 * ((0.3 * k - 0.6) ** 2 / 1.09 + math.log(2 * math.pi * 1.09)) for k in range(4))
    assert tempered.log_evidence == pytest.approx(truth, abs=0.6)


def test_suffix_mh_writes_from_a_step_that_draws():
    """Of a run that draws once and then weighs six times, each move draws anew: acceptance tells of moves alone."""
    posterior = fk.infer(measured((1.5, 0.3, -0.2, 0.4, 0.6, 0.1)), fk.SuffixMH(400), seed=0)
    changed = np.diff(np.array(posterior.values)) != 0
    acceptance = posterior.chains[0].info["acceptance"]
    assert changed.mean() == pytest.approx(acceptance, abs=0.06)
    assert acceptance < 0.5


# -- runs ------------------------------------------------------------------------------------------------------------


def test_a_step_is_a_stage_and_a_run_that_is_cut_short_is_that_of_its_last():
    engine = fk.TemperedSMC(30, fk.SuffixMH(1), moves=2, ladder=(0, 0.2, 0.5, 1))
    run = fk.steps(tokens(), engine, seed=0)
    seen = [(step.depth, 1 / step.temperature, step.resampled) for step in run]
    assert seen == [(0, 0.0, False), (1, 0.2, False), (2, 0.5, True), (3, 1.0, True), (4, 1.0, True)]
    assert run.posterior.guarantee == "unbiased"

    def stop(step):
        return step.temperature == 2.0

    cut = fk.infer(tokens(), engine, seed=0, callbacks=[stop])
    assert (cut.guarantee, cut.stopped, cut.complete.all()) == ("prefix", "callback", True)
    assert [step.log_evidence for step in cut.steps] == [step.log_evidence for step in run.posterior.steps[:3]]
    np.testing.assert_array_equal(cut.log_weights, cut.steps[-1].log_weights)
    assert cut.log_evidence == cut.steps[-1].log_evidence
    assert cut.info["inverse"] == 0.5

    def interrupt(step):
        if step.depth == 1:
            raise KeyboardInterrupt

    ended = fk.infer(tokens(), engine, seed=0, callbacks=[interrupt])
    assert (ended.guarantee, ended.stopped, len(ended.steps)) == ("prefix", "interrupted", 2)
    early = fk.infer(tokens(), engine, seed=0, budget=fk.Budget(seconds=1e-9))
    assert early.guarantee == "prefix"
    assert not early.complete.all()


def test_a_move_is_one_batched_call_and_no_run_is_made_twice():
    model = G1()
    posterior = fk.infer(model, fk.TemperedSMC(50, Exact(), moves=3, ladder=RUNGS), seed=0)
    assert model.starts == 1 + 3 * 2
    assert posterior.info["distinct"] == 50


def test_a_kernel_that_adapts_is_tuned_between_stages_and_promises_less():
    seen = []

    class Tuned(Walk):
        def tuned(self, model, paths, log_weights, horizon, inverse, acceptance):
            seen.append((len(paths), float(inverse[0]), horizon, acceptance, ess(log_weights)))
            return Tuned(self.size * 0.9)

    engine = fk.TemperedSMC(40, Tuned(1.0), moves=1, ladder=(0, 0.3, 1))
    assert engine.guarantee == "consistent"
    steps = fk.infer(G1(), engine, seed=0).steps
    assert [(n, inverse, horizon) for n, inverse, horizon, *_ in seen] == [(40, 0.3, None), (40, 1.0, None)]
    assert [acceptance for *_, acceptance, _ in seen] == [None, steps[2].acceptance]
    assert [size for *_, size in seen] == pytest.approx([steps[1].ess, steps[2].ess])


@pytest.mark.slow
def test_kernels_with_gradients_are_compiled_once_for_all_stages_and_runs():
    """G2 in its coordinates log θ; a run of five rungs more needs no look at the model. 2 at |t₇| < 10: 4e-5."""
    numpyro = pytest.importorskip("numpyro")
    looks = []

    def counted():
        looks.append(1)
        rate = numpyro.sample("rate", numpyro.distributions.Exponential(1.0))
        numpyro.sample("y", numpyro.distributions.Poisson(rate), obs=3)

    model = fk.from_numpyro(counted)
    engine = fk.TemperedSMC(100, fk.HMC(), moves=2)
    found, counts = [], []
    for k, share in enumerate((0.5, 0.9, 0.9, 0.9, 0.9, 0.5, 0.9, 0.9)):
        found.append(fk.infer(model, replace(engine, ess=share), seed=k))
        counts.append(len(looks))
    assert counts[1] - counts[0] <= 1  # of 12 moves more, one remakes fewer runs than any before: a smaller batch
    assert counts[1:] == [counts[1]] * 7
    assert found[1].info["stages"] > found[0].info["stages"]
    assert found[0].guarantee == "consistent"
    assert replace(engine, kernel=fk.HMC(step=0.5), ladder=RUNGS).guarantee == "unbiased"
    assert abs(z_score(np.exp([p.log_evidence - G2.log_z for p in found]), 1.0)) < 10
    assert abs(z_score([p.expect(lambda v: v["rate"]) for p in found], 2.0)) < 10
    assert np.mean([p.expect(lambda v: v["rate"]) for p in found]) == pytest.approx(2.0, abs=0.2)  # 1.5 by no Jacobian


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: fk.TemperedSMC(0, Exact()), "particles"),
        (lambda: fk.TemperedSMC(10, fk.SuffixMH), "kernel"),
        (lambda: fk.TemperedSMC(10, fk.SuffixMH(1, power=2.0)), "kernel"),
        (lambda: fk.TemperedSMC(10, Exact(), moves=0), "moves"),
        (lambda: fk.TemperedSMC(10, Exact(), ess=1.0), "ess"),
        (lambda: fk.TemperedSMC(10, Exact(), ladder=(0, 0.5)), "rise from 0 to 1"),
        (lambda: fk.TemperedSMC(10, Exact(), ladder=(0, 0.5, 0.5, 1)), "rise from 0 to 1"),
        (lambda: fk.TemperedSMC(10, Exact(), ladder=0.5), "rise from 0 to 1"),
        (lambda: fk.TemperedSMC(10, Exact(), ladder=(0, "a", 1)), "rise from 0 to 1"),
        (lambda: fk.TemperedSMC(10, Exact(), resampling="best"), "resampling"),
        (lambda: fk.WasteFreeSMC(10, Exact(), length=3), "length"),
        (lambda: fk.WasteFreeSMC(10, Exact(), length=1), "length"),
        (lambda: fk.PersistentSampling(10, Exact(), moves=0), "moves"),
    ],
)
def test_settings_are_checked(make, match):
    with pytest.raises(ValueError, match=match):
        make()
