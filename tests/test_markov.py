"""What a posterior says of Markov chains, and how it gives them, and weighted particles, to ArviZ."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

import feynkac as fk
from feynkac.inference.results.datatree import equal_draws
from feynkac.inference.results.trust.autocorrelation import chain_ess, rhat
from feynkac.inference.results.trust.markov import layout


@fk.program
async def die():
    face = await fk.sample("face", fk.dist.DiscreteUniform(1, 6))
    await fk.factor("high", 1.0 * (face == 6))
    return face


@fk.program
async def narrow(width=0.15):
    """A target that draws from the prior seldom hit, so that a chain stays where it is for long."""
    x = await fk.sample("x", fk.dist.Normal(0.0, 1.0))
    await fk.factor("G", -0.5 * ((x - 1.5) / width) ** 2)
    return x


@fk.program
async def word(letters=3):
    text = ""
    for _ in range(letters):
        text += await fk.sample("letter", fk.dist.Categorical([0.7, 0.2, 0.1], values=["a", "b", "c"]))
        await fk.factor("G", 2.0 * text.endswith("b"))
    return text


@fk.program
async def certain():
    x = await fk.sample("x", fk.dist.Bernoulli(0.5))
    await fk.factor("G", 0.0 if x else -math.inf)
    return x


def test_the_best_draw_of_a_chain_is_that_of_largest_reward():
    engine = fk.ParallelTempering((1.0, 3.0), sweeps=60)
    assert [fk.infer(die(), engine, seed=seed).best() for seed in range(10)] == [6] * 10


def test_among_equal_rewards_the_commonest_value_is_the_best():
    @fk.program
    async def biased():
        return await fk.sample("x", fk.dist.Categorical([0.3, 0.45, 0.25]))

    assert [fk.infer(biased(), fk.PowerSampling(40, power=4.0), seed=seed).best() for seed in range(5)] == [1] * 5


# -- effective sample size --------------------------------------------------------------------------------------


def test_ess_and_rhat_are_those_of_arviz():
    stats = pytest.importorskip("arviz_stats.base").array_stats
    rng = np.random.default_rng(0)
    for trial in range(120):
        chains, draws = int(rng.integers(1, 5)), int(rng.integers(4, 200))
        rough = rng.normal(size=(chains, draws))
        x = np.zeros((chains, draws))
        for t in range(draws):
            x[:, t] = rng.choice([0.0, 0.6, 0.95, -0.5]) * x[:, t - 1] + rough[:, t]
        x = [x, np.round(x), (x > 0).astype(float)][trial % 3]
        if np.ptp(x) == 0:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = stats.ess(x, chain_axis=0, draw_axis=1, method="bulk"), stats.rhat(x, chain_axis=0, draw_axis=1)
        assert chain_ess(x) == pytest.approx(float(theirs[0]), rel=1e-9)
        assert rhat(x) == pytest.approx(float(theirs[1]), rel=1e-9, nan_ok=True)


def test_what_cannot_be_estimated_is_nan_and_what_never_moves_is_one_draw():
    assert chain_ess(np.ones((2, 50))) == 1.0
    assert math.isnan(rhat(np.ones((2, 50))))
    assert math.isnan(chain_ess(np.ones((2, 3))))
    assert math.isnan(chain_ess(np.array([[1.0, 2.0, math.nan, 3.0]])))
    assert rhat(np.repeat([[0.0], [1.0]], 20, axis=1)) == math.inf


@pytest.mark.slow
def test_the_ess_of_a_chain_is_not_the_number_of_its_draws():
    posterior = fk.infer(narrow(), fk.SuffixMH(400), seed=0)
    x = np.array(posterior.values)[None]
    assert posterior.ess == pytest.approx(chain_ess(x))
    assert posterior.ess < 60 < len(posterior) == 320
    assert posterior.mixing.distinct == len(set(posterior.values))
    assert posterior.mixing.changes == (int((np.diff(x) != 0).sum()),)
    # Its square error is that of so many independent draws: over 30 seeds, within a factor of 2.5.
    found = fk.infer([narrow()] * 30, fk.SuffixMH(200), seed=1)
    means = np.array([np.mean(p.values) for p in found])
    truth = 1.5 / (1 + 0.15**2)
    spread = 0.15**2 / (1 + 0.15**2)
    claimed = np.mean([spread / p.ess for p in found])
    assert 0.4 < np.mean((means - truth) ** 2) / claimed < 2.5


def test_the_ess_of_texts_is_that_of_rewards_and_of_which_text_it_is():
    posterior = fk.infer(word(), fk.SuffixMH(500, chains=2), seed=0)
    rows = layout(posterior)
    reward = chain_ess(posterior.log_potential[rows])
    assert 10 < posterior.ess <= reward < len(posterior)
    assert posterior.mixing.rhat == pytest.approx(rhat(posterior.log_potential[rows]))
    assert "R-hat" in posterior.summary()


def test_arrays_and_programs_without_a_value_have_an_ess():
    @fk.program
    async def images():
        x = await fk.sample("x", fk.dist.Normal(0.0, 1.0))
        await fk.factor("G", -x * x)
        return np.full((10, 10), x)

    @fk.program
    async def silent():
        x = await fk.sample("x", fk.dist.Normal(0.0, 1.0))
        await fk.factor("G", -x * x)

    for model in (images(), silent()):
        posterior = fk.infer(model, fk.SuffixMH(200), seed=0)
        assert 5 < posterior.ess < 160


def test_other_engines_do_not_mix():
    with pytest.raises(ValueError, match="mixing is that of Markov chains"):
        fk.infer(die(), fk.SMC(4), seed=0).mixing


# -- warnings ---------------------------------------------------------------------------------------------------


def said(model, engine, seed=0):
    return " | ".join(fk.infer(model, engine, seed=seed).warnings)


def test_a_chain_that_moves_well_says_nothing():
    for engine in (fk.SuffixMH(600, chains=2), fk.ParticleGibbs(8, sweeps=200), fk.PowerSampling(40)):
        assert said(die(), engine) == ""


def test_chains_that_move_badly_say_so_and_name_settings_that_they_have():
    told = said(narrow(0.05), fk.SuffixMH(200))
    assert "of the moves were accepted" in told
    assert "the effective sample size is" in told
    assert "use more moves" in told
    told = said(narrow(0.01), fk.ParticleGibbs(2, sweeps=100, chains=3))
    assert "of the sweeps changed the run" in told
    assert "particles_per_sweep" in told
    assert "R-hat" in told
    for engine in (fk.SuffixMH(200), fk.ParticleGibbs(2, sweeps=60), fk.ParallelTempering((1.0, 2.0), sweeps=60)):
        told = said(narrow(0.01), engine)
        for setting in ("ess_threshold", "more particles,", "a twist"):
            assert setting not in told


def test_a_stuck_chain_says_so_and_one_at_the_optimum_says_nothing():
    @fk.program
    async def rare():
        x = await fk.sample("x", fk.dist.Normal(0.0, 1.0))
        await fk.factor("G", 0.0 if await fk.call("first", first) else -1e9)
        return x

    met = iter([True, True])

    def first():
        return next(met, False)

    assert "2 of 2 chains never moved: all 40 draws are one value" in said(rare(), fk.SuffixMH(50, chains=2))
    assert said(certain(), fk.SuffixMH(60, chains=2)) == ""
    assert said(certain(), fk.ParticleGibbs(4, sweeps=40)) == ""


def test_settings_that_an_engine_lacks_are_not_named():
    @fk.program
    async def long():
        for _ in range(40):
            x = await fk.sample("x", fk.dist.Normal(0.0, 1.0))
            await fk.factor("G", x)

    assert "a lower ess_threshold" in said(long(), fk.SMC(6, ess_threshold=1.0))
    told = said(long(), fk.ParticleFilter(6))
    assert "descend from one" in told
    assert "ess_threshold" not in told


# -- ArviZ ------------------------------------------------------------------------------------------------------


def test_chains_go_into_the_tree_as_they_are():
    az = pytest.importorskip("arviz_stats")
    posterior = fk.infer(narrow(), fk.SuffixMH(100, chains=3), seed=0)
    tree = posterior.to_datatree()
    assert dict(tree.posterior.sizes) == {"chain": 3, "draw": 80}
    x = np.array(posterior.values).reshape(3, 80)
    assert (tree.posterior["x"].values == x).all()
    assert (tree.posterior["particle"].values.ravel() == np.arange(240)).all()
    table = az.summary(tree, round_to="none")
    assert float(table.loc["x", "ess_bulk"]) == pytest.approx(chain_ess(x))
    assert float(table.loc["x", "r_hat"]) == pytest.approx(rhat(x))
    assert float(az.rhat(tree)["x"]) == pytest.approx(rhat(x))
    assert float(az.ess(tree)["x"]) == pytest.approx(chain_ess(x))
    assert "smc" not in tree.children
    assert tree.attrs["warnings"] == "\n".join(posterior.warnings)


def test_chains_that_were_cut_or_began_dead_are_as_long_as_the_shortest():
    pytest.importorskip("arviz_base")
    posterior = fk.infer(certain(), fk.SuffixMH(10, chains=6, burn_in=0, all_dead="zero"), seed=0)
    rows = layout(posterior)
    assert np.isneginf(posterior.log_weights).any()
    assert (posterior.log_weights[rows] == 0.0).all()
    assert (np.diff(rows) == 1).all()
    assert dict(posterior.to_datatree().posterior.sizes) == {"chain": rows.shape[0], "draw": rows.shape[1]}
    cut = fk.infer(word(), fk.SuffixMH(50), seed=0, callbacks=[lambda step: step.depth == 2])
    assert cut.ess >= 0.0
    assert cut.summary()


def test_weighted_particles_look_like_as_many_draws_as_they_are_worth():
    """ArviZ's standard error of a mean is the true one, over 120 runs within a third; that of shuffled draws is not."""
    az = pytest.importorskip("arviz_stats")
    stats = pytest.importorskip("arviz_stats.base").array_stats

    def mcse(x):
        return float(stats.mcse(x[None], chain_axis=0, draw_axis=1))

    @fk.program
    async def tilted():
        x = await fk.sample("x", fk.dist.Normal(0.0, 1.0))
        await fk.factor("G", 1.2 * x)
        return x

    found = fk.infer([tilted()] * 120, fk.ImportanceSampling(150), seed=0)
    tree = found[0].to_datatree(draws=600)
    drawn = [np.array(p.values)[equal_draws(p, 600, p.seed)] for p in found]
    assert (tree.posterior["x"].values[0] == drawn[0]).all()
    assert float(az.summary(tree, round_to="none").loc["x", "mcse_mean"]) == pytest.approx(mcse(drawn[0]))
    means = np.array([x.mean() for x in drawn])
    assert 2 / 3 < math.sqrt(np.mean([mcse(x) ** 2 for x in drawn])) / means.std() < 3 / 2
    shuffled = [np.random.default_rng(0).permutation(x) for x in drawn]
    assert math.sqrt(np.mean([mcse(x) ** 2 for x in shuffled])) < 0.6 * means.std()
    assert 0.5 < np.mean([float(chain_ess(x[None])) / p.ess for x, p in zip(drawn, found)]) < 1.5


def test_relatives_stand_side_by_side():
    posterior = fk.infer(word(8), fk.SMC(60, ess_threshold=1.0, resampling="multinomial", chains=2), seed=0)
    index = equal_draws(posterior, 2000, 0)
    assert (np.abs(np.bincount(index, minlength=120) - 2000 * posterior.probabilities) < 1).all()
    for first in (0, 60):
        mine = index[(index >= first) & (index < first + 60)]
        line = posterior.chains[first // 60].lines[0][mine - first]
        assert (np.diff(line) != 0).sum() == len(set(line.tolist())) - 1  # each founder's descendants are one block


def test_heuristic_engines_have_no_group_that_arviz_takes_for_a_posterior():
    az = pytest.importorskip("arviz_stats")
    tree = fk.infer(die(), fk.BestOfN(20), seed=0).to_datatree()
    assert "posterior" not in tree.children
    assert "log_weight" in tree.particles
    with pytest.raises(ValueError, match="Can not extract posterior"):
        az.summary(tree)


# -- pages ------------------------------------------------------------------------------------------------------


def test_pages_show_what_an_engine_has(tmp_path):
    pytest.importorskip("matplotlib")
    chain, best, smc = (fk.infer(word(), e, seed=0) for e in (fk.SuffixMH(40), fk.BeamSearch(8), fk.SMC(8)))
    shown = {}
    for name, posterior in (("chain", chain), ("best", best), ("smc", smc)):
        pages = [posterior._repr_html_(), fk.report(posterior, tmp_path / "r.html").read_text(encoding="utf-8")]
        figure = [ax.get_title(loc="left") for ax in fk.plots.overview(posterior).axes]
        assert all(("Evidence: log" in page) == (name == "smc") for page in pages)
        assert all(("Effective sample size" in page) == (name != "chain") for page in pages)
        assert all("unknown" not in page for page in pages)
        assert ("no evidence" in pages[0]) == (name != "smc")
        shown[name] = figure
    assert shown == {
        "chain": ["log G", "Rewards"],
        "best": ["Genealogy", "Effective sample size", "Rewards", "Weights"],
        "smc": ["Genealogy", "Effective sample size", "Evidence", "Rewards", "Weights"],
    }
    for draw, posterior, words in (
        (fk.plots.ess, chain, "effective sample size by step"),
        (fk.plots.weights, chain, "spread of the weight"),
        (fk.plots.evidence, best, "no evidence"),
    ):
        with pytest.raises(ValueError, match=words):
            draw(posterior)
