"""The posterior as ArviZ reads it, checked with ArviZ's own functions."""

from __future__ import annotations

import builtins
import math
from collections import namedtuple
from dataclasses import dataclass

import numpy as np
import pytest

import feynkac as fk
from feynkac.inference.results.columns.columns import columns
from feynkac.inference.results.trust.khat import khat
from laws import Z_LIMIT, z_score

xarray = pytest.importorskip("xarray")
az = pytest.importorskip("arviz_stats")
pytest.importorskip("arviz_base")


@fk.program
async def weighted(length=3):
    """A walk under a Gaussian pull: its posterior means are known in closed form."""
    x, path = 0.0, []
    for _ in range(length):
        x = await fk.sample("x", fk.dist.Normal(x, 1.0))
        path.append(x)
        await fk.observe("y", fk.dist.Normal(x, 1.0), 1.0)
    fk.deterministic("last", x)
    return {"end": x, "positive": x > 0, "path": np.array(path), "text": "up" if x > 0 else "down"}


@pytest.fixture(scope="module")
def posterior():
    return fk.infer(weighted(), fk.SMC(60, ess_threshold=0.9, chains=3), seed=0)


@pytest.fixture(scope="module")
def tree(posterior):
    return posterior.to_datatree(draws=2000)


# -- weights ----------------------------------------------------------------------------------------------------


def test_means_of_arviz_are_the_weighted_means(posterior, tree):
    """Systematic draws: each particle's share is within 1/draws of its probability."""
    table = az.summary(tree, round_to="none")
    mean = posterior.expect(lambda v: v["end"])
    plain = np.mean([v["end"] for v in posterior.values])
    assert float(table.loc["end", "mean"]) == pytest.approx(mean, abs=0.01)
    assert abs(plain - mean) > 0.04  # which a summary that ignores weights would give
    assert float(table.loc["last", "mean"]) == pytest.approx(mean, abs=0.01)
    assert float(table.loc["path[0]", "mean"]) == pytest.approx(posterior.expect(lambda v: v["path"])[0], abs=0.01)
    assert float(az.mean(tree)["positive"]) == pytest.approx(posterior.expect(lambda v: v["positive"]), abs=0.01)


@pytest.mark.slow
def test_weighted_draws_have_the_exact_posterior_mean():
    """Over independent runs, the mean of the draws times Ẑ/Z has the exact posterior mean, by the Kalman smoother."""
    exact = fk.oracles.kalman(
        np.ones(3),
        initial_mean=0.0,
        initial_cov=1.0,
        transition=1.0,
        transition_cov=1.0,
        emission=1.0,
        emission_cov=1.0,
    )
    posteriors = fk.infer([weighted()] * 250, fk.SMC(15, chains=2, ess_threshold=0.9), seed=1)
    trees = [p.to_datatree(draws=100, sites=False) for p in posteriors]
    ratios = np.exp([p.log_evidence - exact.log_evidence for p in posteriors])
    for name, get in (("path", lambda a: a[0]), ("end", float)):
        means = [get(tree.posterior[name].mean(("chain", "draw")).values) for tree in trees]
        truth = exact.smoothed_means[0, 0] if name == "path" else exact.filtered_means[-1, 0]
        assert abs(z_score(ratios * means, truth)) < Z_LIMIT
        raw = [get(tree.particles[name].mean(("chain", "draw")).values) for tree in trees]
        if name == "end":  # the particles without their weights have another mean
            assert abs(z_score(ratios * raw, truth)) > Z_LIMIT


def test_each_particle_is_drawn_in_proportion_to_its_weight(posterior, tree):
    index = tree.posterior["particle"].values[0]
    counts = np.bincount(index, minlength=180)
    assert (np.abs(counts - 2000 * posterior.probabilities) < 1).all()
    ends = np.array([v["end"] for v in posterior.values])
    assert (tree.posterior["end"].values[0] == ends[index]).all()
    assert [posterior.values[i]["text"] for i in index] == tree.posterior_text["text"].values[0].tolist()
    # Copies stand side by side, which ArviZ takes for what they are: see test_markov.py.
    assert (np.diff(index) != 0).sum() == len(set(index.tolist())) - 1


def test_draws_depend_on_the_seed_alone(posterior, tree):
    again = posterior.to_datatree(draws=2000, seed=posterior.seed)
    assert again.posterior.equals(tree.posterior)
    other = posterior.to_datatree(draws=2000, seed=1)
    assert not other.posterior.equals(tree.posterior)
    assert other.particles.equals(tree.particles)


# -- groups -----------------------------------------------------------------------------------------------------


def test_particles_are_there_raw(posterior, tree):
    group = tree.particles
    assert dict(group.sizes) == {"chain": 3, "draw": 60, "path_dim_0": 3, "x_visit": 3}
    assert (group["log_weight"].values.ravel() == posterior.log_weights).all()
    assert group["complete"].values.all()
    assert group["end"].values.ravel().tolist() == [v["end"] for v in posterior.values]
    assert group["positive"].dtype == bool
    assert group["text"].values.ravel().tolist() == [v["text"] for v in posterior.values]
    assert (group["path"].values == group["x"].values).all()


def test_the_history_of_each_chain_is_there(posterior, tree):
    group = tree.smc
    assert dict(group.sizes) == {"chain": 3, "step": 3, "particle": 60}
    evidence = np.array([chain.evidence for chain in posterior.chains])
    assert group["log_normalizer"].values == pytest.approx(evidence)
    assert group["log_normalizer_increment"].sum("step").values == pytest.approx(evidence)
    assert group["resampled"].values.any()
    for c, chain in enumerate(posterior.chains):
        for t, step in enumerate(chain.steps):
            for name in ("ess", "entropy", "resampled", "temperature"):
                assert group[name].values[c, t] == getattr(step, name)
            assert group["n_unique_ancestors"].values[c, t] == step.unique_ancestors
            assert (group["ancestor"].values[c, t] == step.ancestors).all()
            k = khat(step.log_weights + step.log_twist)
            assert group["khat"].values[c, t] == pytest.approx(k, nan_ok=True)


def test_khat_by_step_is_of_the_weights_with_their_twist():
    @fk.program
    async def twisted():
        x = await fk.sample("x", fk.dist.Normal(0.0, 1.0))
        await fk.twist("guide", 1.5 * x)
        await fk.sample("y", fk.dist.Normal(x, 1.0))
        await fk.factor("G", 0.0)

    posterior = fk.infer(twisted(), fk.SMC(500, ess_threshold=0.0), seed=0)
    found = posterior.to_datatree().smc["khat"].values[0]
    assert found[0] == khat(posterior.steps[0].log_twist)
    assert not math.isnan(found[0])
    assert math.isnan(found[1])  # equal weights


def test_chains_of_unequal_length_are_padded():
    @fk.program
    async def stops():
        while not await fk.sample("stop", fk.dist.Bernoulli(0.4)):
            await fk.factor("G", 0.1)

    posterior = fk.infer(stops(), fk.SMC(4, chains=5), seed=0)
    lengths = [len(chain.steps) for chain in posterior.chains]
    assert len(set(lengths)) > 1
    group = posterior.to_datatree().smc
    assert group.sizes["step"] == max(lengths)
    for c, length in enumerate(lengths):
        for name in ("ess", "entropy", "log_normalizer_increment", "temperature"):
            assert np.isnan(group[name].values[c]).tolist() == [False] * length + [True] * (max(lengths) - length)
        assert (group["n_unique_ancestors"].values[c, length:] == -1).all()
        assert (group["ancestor"].values[c, length:] == -1).all()
    sums = group["log_normalizer_increment"].sum("step").values
    assert sums == pytest.approx([chain.evidence for chain in posterior.chains])


def test_increments_sum_to_minus_infinity_where_all_die():
    @fk.program
    async def dies():
        for t in range(4):
            await fk.sample("x", fk.dist.Bernoulli(0.5))
            await fk.factor("G", -math.inf if t == 2 and await fk.call("chain", lambda: True) else 0.0)
        return 1

    mixed = fk.infer(dies(), fk.SMC(3, all_dead="zero", chains=2), seed=0)
    with pytest.raises(ValueError, match="weight zero"):
        mixed.to_datatree()
    from feynkac.inference.results.datatree import _history

    history = _history(mixed.chains)
    assert history["log_normalizer_increment"].sum(1).tolist() == [-math.inf] * 2


def test_the_tree_says_where_it_comes_from(posterior, tree):
    found = tree.attrs
    assert found["inference_library"] == tree.posterior.attrs["inference_library"] == "feynkac"
    assert found["inference_library_version"] == fk.__version__
    assert found["creation_library"] == "ArviZ"
    assert "created_at" in found
    assert (found["engine"], found["model"], found["seed"]) == (posterior.engine, posterior.model, 0)
    assert (found["guarantee"], found["stopped"]) == ("unbiased", "")
    assert found["cost_seconds"] == posterior.cost.seconds
    assert found["log_evidence"] == posterior.log_evidence


def test_unfinished_particles_are_flagged_and_never_drawn():
    @fk.program
    async def uneven():
        x = 0
        while not await fk.sample("stop", fk.dist.Bernoulli(0.4)):
            x += 1
            await fk.factor("G", 0.5)
        return x

    posterior = fk.infer(uneven(), fk.SMC(40), seed=0, callbacks=[lambda step: step.depth == 2])
    tree = posterior.to_datatree(draws=300)
    assert (tree.particles["complete"].values.ravel() == posterior.complete).all()
    assert 0 < posterior.complete.sum() < 40
    assert posterior.complete[tree.posterior["particle"].values].all()
    raw = tree.particles["value"].values.ravel()
    assert np.isnan(raw).tolist() == (~posterior.complete).tolist()
    assert tree.attrs["stopped"] == "callback"
    nothing = fk.infer(uneven(), fk.SMC(3), seed=0, budget=fk.Budget(seconds=0))
    if not nothing.complete.any():
        with pytest.raises(ValueError, match="no particle ran to its end"):
            nothing.to_datatree()


# -- what arviz does with it ------------------------------------------------------------------------------------


def test_arviz_takes_the_tree_as_it_is(tree):
    assert az.ess(tree)["end"].shape == ()
    assert float(az.mean(tree)["end"]) == pytest.approx(float(tree.posterior["end"].mean()), abs=0.01)
    assert az.hdi(tree)["end"].shape == (2,)
    assert set(az.summary(tree).index) >= {"end", "positive", "last", "path[2]", "x[0]"}


def test_arviz_plots_the_tree_with_its_weighted_means(posterior, tree):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    try:
        import arviz_plots as plots
    except (ImportError, AttributeError) as error:  # some of its releases and of matplotlib's do not go together
        pytest.skip(f"arviz_plots cannot be imported: {error}")
    import matplotlib.pyplot as plt

    means = [posterior.expect(lambda v: v["end"]), *posterior.expect(lambda v: v["path"])]
    for plot in (plots.plot_dist, plots.plot_forest):
        plot(tree, var_names=["end", "path"], point_estimate="mean", backend="matplotlib")
        points = [point.get_offsets()[0, 0] for axes in plt.gcf().axes for point in axes.collections]
        plt.close("all")
        assert points == pytest.approx(means, abs=0.01)


def test_a_posterior_without_numbers_still_has_its_groups():
    @fk.program
    async def says():
        return "heads" if await fk.sample("x", fk.dist.Bernoulli(0.3)) else "tails"

    posterior = fk.infer(says(), fk.SMC(50), seed=0)
    tree = posterior.to_datatree(draws=100, sites=False)
    assert list(tree.posterior) == ["log_potential"]  # so that ArviZ has something to sum up
    assert dict(tree.posterior.sizes) == {"chain": 1, "draw": 100}
    share = posterior.vote()["heads"]
    assert (tree.posterior_text["value"].values == "heads").mean() == pytest.approx(share, abs=0.011)
    assert "posterior_text" not in fk.infer(weighted(), fk.SMC(5), seed=0).to_datatree()["smc"]


def test_without_arviz_base_the_error_names_the_extra(posterior, monkeypatch):
    real = builtins.__import__

    def missing(name, *rest):
        if name.startswith("arviz_base"):
            raise ModuleNotFoundError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=r"pip install feynkac\[plots\]"):
        posterior.to_datatree()


@pytest.mark.parametrize("draws", [0, -1])
def test_there_must_be_draws(posterior, draws):
    with pytest.raises(ValueError, match="draws must be a positive integer"):
        posterior.to_datatree(draws=draws)


# -- sites ------------------------------------------------------------------------------------------------------


@fk.program
async def inner():
    return await fk.sample("x", fk.dist.Normal(0.0, 1.0))


@fk.program
async def odd():
    """Names that meet: a key, a site, a scope and a site with a dot; sites that few visit, and of several kinds."""
    x = await fk.sample("x", fk.dist.Normal(0.0, 1.0))
    a, b = await fk.gather(inner(), inner())
    with fk.handlers.scope(prefix="s"):
        y = await fk.sample("y", fk.dist.Normal(0.0, 1.0))
    dotted = await fk.sample("s.y", fk.dist.Normal(5.0, 1.0))
    if x > 0:
        word = await fk.sample("word", fk.dist.Categorical([0.5, 0.5], values=["yes", "no"]))
        fk.deterministic("rare", 7)
    else:
        word = None
    with fk.handlers.block():
        await fk.sample("hidden", fk.dist.Bernoulli(0.5))
    fk.deterministic("output", x)
    fk.deterministic("draw", 1.5)
    await fk.factor("G", 0.1 * x)
    return {"x": -x, "chain": y, "a/b": a + b, "step": dotted, "word": word}


def test_names_that_meet_are_all_kept():
    posterior = fk.infer(odd(), fk.SMC(40), seed=0)
    group = posterior.to_datatree(draws=50).particles
    values = posterior.values
    assert group["x"].values.ravel().tolist() == [v["x"] for v in values]
    assert group["x_"].values.ravel().tolist() == [-v["x"] for v in values]
    assert group["chain_"].values.ravel().tolist() == [v["chain"] for v in values]
    assert group["a.b"].values.ravel().tolist() == [v["a/b"] for v in values]
    assert group["s.y"].values.ravel().tolist() == [v["chain"] for v in values]
    assert group["s.y_"].values.ravel().tolist() == [v["step"] for v in values]
    assert group["word"].values.ravel().tolist() == [v["word"] or "" for v in values]
    rare = group["rare"].values.ravel()
    assert [r == 7.0 for r in rare] == [v["x"] < 0 for v in values]
    assert np.isnan(rare[[v["x"] >= 0 for v in values]]).all()
    assert (group["draw_"].values == 1.5).all()
    assert "hidden" not in group
    assert "output" not in group
    assert not {"G", "y"} & set(group)
    assert "x_" not in posterior.to_datatree(sites=False).particles


def test_sites_visited_several_times_are_stacked(posterior):
    @fk.program
    async def uneven():
        x = 0.0
        for t in range(3):
            x = await fk.sample("x", fk.dist.Normal(x, 1.0))
            pair = np.array([x, -x])
            fk.deterministic("pair", pair)
            fk.deterministic("say", f"step {t}")
            await fk.factor("G", 0.2 * x)
            if x > 1:
                break
        return x

    found = fk.infer(uneven(), fk.SMC(30, ess_threshold=1.0, chains=2), seed=0)
    group = found.to_datatree().particles
    assert group["x"].dims == ("chain", "draw", "x_visit")
    assert group["pair"].dims == ("chain", "draw", "pair_visit", "pair_dim_0")
    for i in range(60):
        trace, row = found.trace(i), group["x"].values.reshape(60, 3)[i]
        here = [trace[a].value if a in trace else math.nan for a in ("x", "x[1]", "x[2]")]
        assert row.tolist() == pytest.approx(here, nan_ok=True)
        said = [trace[a].value if a in trace else "" for a in ("say", "say[1]", "say[2]")]
        assert group["say"].values.reshape(60, 3)[i].tolist() == said
        assert group["pair"].values.reshape(60, 3, 2)[i, 0].tolist() == [row[0], -row[0]]


def test_native_models_have_values_alone():
    from test_diagnostics import Hmm

    tree = fk.infer(Hmm(), fk.SMC(30), seed=0).to_datatree()
    assert list(tree.posterior) == ["value"]
    assert tree.posterior["value"].shape == (1, 1000, 4)


def test_texts_are_strings():
    pytest.importorskip("torch")
    from feynkac.models.testing import tiny_lm

    lm = tiny_lm()

    @fk.program
    async def says():
        text = lm.prompt("Once")
        for _ in range(2):
            text = await fk.sample("token", lm.next_token(text))
        await fk.factor("G", 0.1 * len(str(text)))
        return {"text": text, "length": len(str(text))}

    posterior = fk.infer(says(), fk.SMC(6), seed=0)
    tree = posterior.to_datatree(draws=20)
    shown = tree.particles["text"].values.ravel().tolist()
    assert shown == [str(v["text"]) for v in posterior.values]
    assert tree.particles["token"].values.shape == (1, 6, 2)
    assert tree.particles["token"].values[0, :, 1].tolist() == shown
    assert list(tree.posterior) == ["length"]


# -- columns ----------------------------------------------------------------------------------------------------

Point = namedtuple("Point", ["x", "label"])


@dataclass
class Record:
    score: float
    inner: dict


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2], {"value": [1, 2]}),
        ([True, False], {"value": [True, False]}),
        ([1, 2.5], {"value": [1.0, 2.5]}),
        ([True, None], {"value": [1.0, math.nan]}),
        (["a", "bcd"], {"value": ["a", "bcd"]}),
        (["a", 1], {"value": ["a", "1"]}),
        ([None, "a"], {"value": ["", "a"]}),
        ([None, None], {}),
        ([[1, 2], [3, 4]], {"value": [[1, 2], [3, 4]]}),
        ([(1, 2), (3,)], {"value": [[1.0, 2.0], [3.0, math.nan]]}),
        ([np.ones((1, 2)), np.zeros((2, 1))], {"value": [[[1, 1], [math.nan] * 2], [[0, math.nan], [0, math.nan]]]}),
        ([np.ones(2), 3.0], {"value": ["[1. 1.]", "3.0"]}),
        ([("a", 1), ("b", 2)], {"0": ["a", "b"], "1": [1, 2]}),
        ([("a", 1), None], {"0": ["a", ""], "1": [1.0, math.nan]}),
        ([Point(1.0, "p"), Point(2.0, "q")], {"x": [1.0, 2.0], "label": ["p", "q"]}),
        ([Record(0.5, {"deep": 1}), Record(1.5, {"deep": 2})], {"score": [0.5, 1.5], "inner.deep": [1, 2]}),
        ([{"a": 1, ("k", 2): 2}], {"a": [1], "('k', 2)": [2]}),
        ([{"a": {"b": 1}, "a.b": 2}], {"a.b": [1], "a.b_": [2]}),
        ([{"": 1}], {"value": [1]}),
        ([{}, {"a": 1}], {"a": [math.nan, 1.0]}),
        ([{1, 2}], {"value": ["{1, 2}"]}),
        ([[], [1]], {"value": [[math.nan], [1.0]]}),
        ([np.array(["u", "v"])], {"value": ["['u' 'v']"]}),
        ([np.float32(0.5), np.int8(2)], {"value": [0.5, 2.0]}),
    ],
    ids=str,
)
def test_values_of_every_kind_have_columns(values, expected):
    found = columns(values)
    assert list(found) == list(expected)
    for name, column in expected.items():
        assert found[name].dtype.kind in "biufU"
        np.testing.assert_array_equal(found[name], np.array(column))
    assert all(len(array) == len(values) for array in found.values())


def test_integers_stay_integers():
    assert columns([1, 2])["value"].dtype == np.int64
    assert columns([True, False])["value"].dtype == bool
