"""Smoothing against exact laws: backward sampling at any number of particles, genealogies, fixed lags."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest

import feynkac as fk
from feynkac.inference.smoothing import backward
from laws import Z_LIMIT, z_score

# -- native models ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Paths:
    """(n,) last values and depths of a population."""

    x: np.ndarray
    depth: np.ndarray
    length: int

    @property
    def done(self):
        return self.depth == self.length - 1

    def __len__(self):
        return len(self.x)


class Native:
    """A batched model whose choices are an array, which it takes back."""

    def start(self, keys, given=None):
        return self._step(Paths(np.zeros(len(keys)), np.full(len(keys), -1), self.length), keys, given)

    def advance(self, state, keys, given=None):
        return self._step(state, keys, given)

    def _step(self, past, keys, given):
        t = int(past.depth[0]) + 1
        x = self.draw(t, past.x, keys) if given is None else np.asarray(given, float)
        log_prob, log_potential = self.log_m(t, past.x, x), self.log_g(t, past.x, x)
        state = Paths(x, past.depth + 1, self.length)
        level, scored = np.zeros(len(x)), np.ones(len(x), bool)
        return fk.Advance(state, x, log_prob, log_prob, log_potential, level, state.done, scored)

    def select(self, state, index):
        return Paths(state.x[index], state.depth[index], state.length)

    def concat(self, states):
        return Paths(np.concatenate([s.x for s in states]), np.concatenate([s.depth for s in states]), self.length)

    def values(self, state):
        return state.x.tolist()


class Gaussian(Native):
    y = (0.5, -1.0, 2.0, 1.0)
    length = 4

    def law(self, t, x):
        return (0.0 * x, 1 / 0.19) if t == 0 else (0.9 * x, 1.0)

    def draw(self, t, x, keys):
        mean, variance = self.law(t, x)
        return mean + math.sqrt(variance) * fk.keys.normal(keys)

    def log_m(self, t, x, new):
        mean, variance = self.law(t, x)
        return -0.5 * ((new - mean) ** 2 / variance + math.log(2 * math.pi * variance))

    def log_g(self, t, x, new):
        return -0.5 * ((self.y[t] - new) ** 2 + math.log(2 * math.pi)) + 0.0 * x


class Chain(Native):
    """A finite chain with potentials G_t(x_{t−1}, x_t)."""

    def __init__(self, start, moves, log_g):
        self.law, self.moves, self.logs = np.array(start), np.array(moves), np.array(log_g)
        self.length = len(log_g)

    def _probs(self, t, x):
        return np.broadcast_to(self.law, (len(x), len(self.law))) if t == 0 else self.moves[x.astype(int)]

    def draw(self, t, x, keys):
        return (fk.keys.uniform(keys)[:, None] > np.cumsum(self._probs(t, x), 1)).sum(1).astype(float)

    def log_m(self, t, x, new):
        return np.log(self._probs(t, x)[np.arange(len(x)), new.astype(int)])

    def log_g(self, t, x, new):
        return self.logs[t][x.astype(int), new.astype(int)]


class Direct(Gaussian):
    """The same, with all pairs at once."""

    asked = 0

    def log_transition(self, state, choices):
        self.asked += 1
        t, x, new = int(state.depth[0]) + 1, state.x[:, None], np.asarray(choices)[None]
        return self.log_m(t, x, new) + self.log_g(t, x, new)


LG = fk.oracles.kalman(
    Gaussian.y,
    initial_mean=0.0,
    initial_cov=1 / 0.19,
    transition=0.9,
    transition_cov=1.0,
    emission=1.0,
    emission_cov=1.0,
)

# Two states with what they show; the smoothed probabilities of state 1 are known.
SHOWN = (0, 1, 1, 0, 1, 1, 1, 0)
H2_LOGS = np.log([[[0.8, 0.3] if y == 0 else [0.2, 0.7]] * 2 for y in SHOWN])
H2 = Chain((0.6, 0.4), ((0.7, 0.3), (0.3, 0.7)), H2_LOGS)
H2_SMOOTHED = (0.303997, 0.762840, 0.800720, 0.534594, 0.834364, 0.879387, 0.808669, 0.403871)

PAIRED = Chain((0.7, 0.3), ((0.95, 0.05), (0.1, 0.9)), np.random.default_rng(51).normal(size=(4, 2, 2)) * 1.2)
PAIRED_EXACT = fk.oracles.forward_filter(PAIRED.law, PAIRED.moves, PAIRED.logs)


def scores(model, log_z, truth, functions=(lambda x: x,), runs=250, n=8, draws=8, broken=None):
    """z of E[Ẑ/Z · (f(x_t) − truth)] for each step and function, which is 0 at any n, with multinomial resampling."""
    engine = fk.SMC(n, ess_threshold=1.0, resampling="multinomial")
    ratios, means = [], []
    for seed, posterior in enumerate(fk.infer([model] * runs, engine, seed=3)):
        smoothed = fk.smooth(broken(posterior) if broken else posterior, draws, seed=seed, model=model)
        path = np.stack([step.choices for step in smoothed.steps])
        ratios.append(math.exp(posterior.log_evidence - log_z))
        means.append([f(path).mean(1) for f in functions])
    found = np.array(ratios)[:, None, None] * (np.array(means) - np.array(truth))
    return np.array([[z_score(found[:, i, t], 0.0) for t in range(found.shape[2])] for i in range(len(truth))])


@pytest.mark.slow
def test_backward_sampling_of_the_autoregression_is_exact():
    """Means, squares and lag-one products (the last of them is that of step 3 with itself)."""
    means, variances = LG.smoothed_means.ravel(), LG.smoothed_covs.ravel()
    products = np.append(LG.lag_covs.ravel() + means[1:] * means[:-1], variances[-1] + means[-1] ** 2)
    functions = (lambda x: x, lambda x: x**2, lambda x: x * x[[1, 2, 3, 3]])
    found = scores(Direct(), LG.log_evidence, (means, variances + means**2, products), functions, runs=400)
    assert np.abs(found).max() < Z_LIMIT  # 12 of them: a false alarm in 2.4e-4


@pytest.mark.slow
def test_backward_sampling_of_the_two_state_chain_is_exact():
    exact = fk.oracles.forward_filter(H2.law, H2.moves, H2.logs)
    np.testing.assert_allclose(exact.smoothed[:, 1], H2_SMOOTHED, atol=6e-7)
    assert math.exp(exact.log_evidence) == pytest.approx(0.00291971246, rel=1e-8)
    assert np.abs(scores(H2, exact.log_evidence, (H2_SMOOTHED,))).max() < Z_LIMIT


def test_potentials_of_two_states_count():
    assert np.abs(scores(PAIRED, PAIRED_EXACT.log_evidence, (PAIRED_EXACT.smoothed[:, 1],))).max() < Z_LIMIT


def no_weights(posterior):
    (chain,) = posterior.chains
    steps = tuple(replace(step, log_weights=np.zeros(len(step.log_weights))) for step in chain.steps[:-1])
    return replace(posterior, chains=(replace(chain, steps=(*steps, chain.steps[-1])),))


@pytest.mark.parametrize("forgotten", ["weights", "transition", "potential"])
def test_the_tests_notice_what_is_forgotten(monkeypatch, forgotten):
    if forgotten == "transition":
        monkeypatch.setattr(backward, "_density", lambda made: made.log_potential)
    if forgotten == "potential":
        monkeypatch.setattr(backward, "_density", lambda made: made.log_prob)
    broken = no_weights if forgotten == "weights" else None
    model, exact = PAIRED, PAIRED_EXACT
    found = scores(model, exact.log_evidence, (exact.smoothed[:, 1],), runs=300, n=16, broken=broken)
    assert np.abs(found).max() > 2 * Z_LIMIT


def test_many_draws_share_few_calls_and_all_ways_agree():
    posterior = fk.infer(Gaussian(), fk.SMC(300), seed=0)
    model = Direct()
    quick = fk.smooth(posterior, 500, seed=1, model=model)
    assert model.asked == 3  # steps 2, 1 and 0, one block each
    slow = fk.smooth(posterior, 500, seed=1, model=Gaussian())
    assert quick.values == slow.values
    for a, b in zip(quick.steps, slow.steps):
        np.testing.assert_array_equal(a.choices, b.choices)
    assert (quick.distinct == slow.distinct).all()


def test_blocks_change_nothing(monkeypatch):
    posterior = fk.infer(Gaussian(), fk.SMC(60), seed=0)
    whole = fk.smooth(posterior, 50, seed=1, model=Gaussian())
    monkeypatch.setattr(backward, "FORCED", 200)
    parts = fk.smooth(posterior, 50, seed=1, model=Gaussian())
    for a, b in zip(whole.steps, parts.steps):
        np.testing.assert_array_equal(a.choices, b.choices)


# -- programs ---------------------------------------------------------------------------------------------------


@fk.program
async def autoregression(y=Gaussian.y):
    async def step(x, seen):
        law = fk.dist.Normal(0.0, math.sqrt(1 / 0.19)) if x is None else fk.dist.Normal(0.9 * x, 1.0)
        x = await fk.sample("x", law)
        await fk.observe("y", fk.dist.Normal(x, 1.0), seen)
        return x, x

    return (await fk.scan(step, None, y))[1]


@pytest.fixture(scope="module")
def filtered():
    return fk.infer(autoregression(), fk.SMC(60), seed=0)


def test_a_program_is_smoothed_as_the_native_model_is(filtered):
    """The same weights of the same pairs: the native model is given the program's history."""
    (chain,) = filtered.chains
    plain = [[sites[0].value for sites in step.choices] for step in chain.steps]
    steps = tuple(replace(step, choices=np.array(x)) for step, x in zip(chain.steps, plain))
    native = replace(filtered, chains=(replace(chain, steps=steps),))
    ours = fk.smooth(filtered, 40, seed=2, model=autoregression())
    theirs = fk.smooth(native, 40, seed=2, model=Gaussian())
    np.testing.assert_array_equal(ours.series("x"), np.stack([s.choices for s in theirs.steps], 1))
    assert ours.values[0] == tuple(ours.series("x")[0])  # run again, so that it returns what it would have


@pytest.mark.slow
def test_a_smoothed_posterior_is_a_posterior(filtered):
    smoothed = fk.smooth(filtered, 40, seed=2, model=autoregression())
    assert len(smoothed) == 40
    assert smoothed.log_evidence == filtered.log_evidence
    assert (smoothed.guarantee, smoothed.method, smoothed.warnings) == ("consistent", "backward", ())
    np.testing.assert_allclose(smoothed.mean("x"), smoothed.series("x").mean(0))
    assert smoothed.quantiles("x").shape == (3, 4)
    assert (np.diff(smoothed.quantiles("x"), axis=0) >= 0).all()
    np.testing.assert_allclose(smoothed.expect(lambda path: path[1]), smoothed.mean("x")[1])
    assert smoothed.table()["x[1]"].mean == pytest.approx(smoothed.mean("x")[1])
    assert fk.smooth(filtered, 40, seed=2, model=autoregression()).values == smoothed.values
    assert fk.smooth(filtered, 40, seed=3, model=autoregression()).values != smoothed.values
    with pytest.raises(KeyError, match="named 'z'; there are x"):
        smoothed.series("z")


def test_a_smoothed_posterior_is_drawn_and_goes_to_arviz(filtered):
    pytest.importorskip("matplotlib")
    smoothed = fk.smooth(filtered, 20, seed=2, method="genealogy")
    (ax,) = smoothed.plot("x").axes
    np.testing.assert_allclose(ax.lines[0].get_ydata(), smoothed.mean("x"))
    assert ax.get_title(loc="left") == "Smoothed x"
    assert smoothed.to_datatree()["posterior"]["x"].sizes["x_visit"] == 4


def test_chains_count_by_their_evidence():
    posterior = fk.infer(autoregression(), fk.SMC(12, chains=2), seed=5)
    smoothed = fk.smooth(posterior, 400, seed=0, model=autoregression())
    evidence = np.array([chain.evidence for chain in posterior.chains])
    share = np.exp(evidence - np.logaddexp(*evidence))
    last = {sites[0].value for sites in posterior.chains[0].steps[-1].choices}
    found = np.mean([path[-1] in last for path in smoothed.values])
    assert abs(found - share[0]) < 4.265 * math.sqrt(share.prod() / 400)  # false alarm 2e-5


@pytest.mark.slow
def test_a_genealogy_is_degenerate_and_says_so():
    posterior = fk.infer(autoregression(np.linspace(-2, 3, 25).tolist()), fk.SMC(30, ess_threshold=1.0), seed=0)
    smoothed = fk.smooth(posterior, 200, seed=1, method="genealogy")
    assert smoothed.guarantee == "unbiased"
    assert smoothed.distinct[0] <= 3 < 15 < smoothed.distinct[-1]
    assert (np.diff(smoothed.distinct) >= 0).all()
    assert len(np.unique(smoothed.series("x")[:, 0])) == smoothed.distinct[0]
    assert 'the genealogy has lost its past there; use method="backward"' in smoothed.warnings[-1]
    backwards = fk.smooth(posterior, 60, seed=1, model=autoregression(np.linspace(-2, 3, 25).tolist()))
    assert backwards.distinct[0] > 2 * smoothed.distinct[0]


def test_a_fixed_lag_is_heuristic_and_between_filter_and_genealogy(filtered):
    (chain,) = filtered.chains
    x = np.array([[sites[0].value for sites in step.choices] for step in chain.steps])
    none = fk.smooth(filtered, 4000, seed=1, method="lag", lag=0)
    for t, step in enumerate(chain.steps):
        weights = np.exp(step.log_weights - step.log_weights.max())
        weights /= weights.sum()
        mean = weights @ x[t]
        error = math.sqrt(weights @ (x[t] - mean) ** 2 / 4000)
        assert abs(none.mean("x")[t] - mean) < 4.265 * error  # four at 2e-5 each
    one = fk.smooth(filtered, 4000, seed=1, method="lag", lag=1)
    assert abs(one.mean("x")[1] - LG.smoothed_means[1, 0]) < abs(none.mean("x")[1] - LG.smoothed_means[1, 0])
    assert (one.guarantee, set(one.values)) == ("heuristic", {None})
    assert "means of single steps alone" in one.warnings[0]


# -- what a step depends on ---------------------------------------------------------------------------------------


@fk.program
async def two_ends():
    """Two observations in each iteration: two steps, of which the second draws nothing."""

    async def step(x, y):
        x = await fk.sample("x", fk.dist.Normal(0.9 * x, 1.0))
        await fk.observe("y", fk.dist.Normal(x, 1.0), y)
        await fk.observe("z", fk.dist.Normal(x, 2.0), -y)
        return x, x

    return (await fk.scan(step, 0.4, [0.5, -1.0, 2.0]))[1]


@fk.program
async def rated():
    """A parameter that all steps depend on."""
    rate = await fk.sample("rate", fk.dist.Bernoulli(0.3))

    async def step(x, y):
        x = await fk.sample("x", fk.dist.Normal((0.9 if rate else -0.5) * x, 1.0))
        await fk.observe("y", fk.dist.Normal(x, 1.0), y)
        return x, x

    return (await fk.scan(step, 0.4, [0.5, -1.0, 2.0]))[1]


@pytest.mark.parametrize(("model", "order"), [(two_ends, 2), (rated, 3)])
def test_a_state_that_is_not_markov_in_one_step_is_found(model, order):
    posterior = fk.infer(model(), fk.SMC(20), seed=0)
    with pytest.raises(fk.errors.Unsupported, match="depends on more of the past than the last 1 step"):
        fk.smooth(posterior, 20, seed=1, model=model())
    assert fk.smooth(posterior, 20, seed=1, model=model(), order=order).complete.all()


@pytest.mark.slow
def test_two_ends_in_an_iteration_have_the_law_of_one():
    """Both observations together have precision 1.25 and mean y (1 − 1/4) / 1.25: the oracle's."""
    y = np.array([0.5, -1.0, 2.0]) * 0.6
    exact = fk.oracles.kalman(
        y,
        initial_mean=0.36,
        initial_cov=1.0,
        transition=0.9,
        transition_cov=1.0,
        emission=1.0,
        emission_cov=0.8,
    )
    engine = fk.SMC(4, ess_threshold=1.0, resampling="multinomial")
    posteriors = fk.infer([two_ends()] * 120, engine, seed=0)
    found = [fk.smooth(p, 2, seed=i, model=two_ends(), order=2).mean("x") for i, p in enumerate(posteriors)]
    weights = np.exp([p.log_evidence for p in posteriors])
    for t in range(3):
        terms = weights * (np.array(found)[:, t] - exact.smoothed_means[t, 0])
        assert abs(z_score(terms, 0.0)) < Z_LIMIT


@fk.program
async def stopping():
    """Runs of different lengths."""
    n = 0
    while n < 4 and await fk.sample("on", fk.dist.Bernoulli(0.6)):
        n += 1
        await fk.factor("G", 0.3 * n)
    await fk.factor("end", 0.0)
    return n


def test_runs_of_different_lengths_are_smoothed():
    exact = fk.enumerate_program(stopping())
    engine = fk.SMC(5, ess_threshold=1.0, resampling="multinomial")
    posteriors = fk.infer([stopping()] * 150, engine, seed=2)
    terms = [
        math.exp(p.log_evidence - exact.log_evidence)
        * np.mean([v == 2 for v in fk.smooth(p, 3, seed=i, model=stopping()).values])
        for i, p in enumerate(posteriors)
    ]
    assert abs(z_score(terms, exact.probability(2))) < Z_LIMIT


# -- refusals -----------------------------------------------------------------------------------------------------


class Mute:
    """A law that cannot say how likely its draws are."""

    batch_key = "mute"
    fingerprint = "mute"

    def sample_batch(self, requests, keys):
        return fk.Draws(fk.keys.normal(keys), None)


@fk.program
async def unscored():
    async def step(x, y):
        x = await fk.sample("x", Mute())
        await fk.observe("y", fk.dist.Normal(x, 1.0), y)
        return x, x

    await fk.scan(step, 0.0, [0.5, -1.0])


def test_a_model_without_scores_is_refused_by_name():
    posterior = fk.infer(unscored(), fk.SMC(5), seed=0)
    with pytest.raises(fk.errors.CannotScore, match=r"'x'.*Mute has no log_prob_batch"):
        fk.smooth(posterior, 5, seed=0, model=unscored())
    assert len(fk.smooth(posterior, 5, seed=0, method="genealogy")) == 5


def test_another_model_is_refused(filtered):
    with pytest.raises(fk.errors.InconsistentDensity, match="must be the model that the posterior was made with"):
        fk.smooth(filtered, 5, seed=0, model=autoregression((0.5, -1.0, 2.0, 1.1)))


def test_settings_are_checked(filtered):
    with pytest.raises(TypeError, match="it needs the model"):
        fk.smooth(filtered, 5, seed=0)
    with pytest.raises(ValueError, match='"backward", "genealogy" or "lag"'):
        fk.smooth(filtered, 5, seed=0, method="forward")
    with pytest.raises(ValueError, match="draws must be a positive integer"):
        fk.smooth(filtered, 0, seed=0, method="genealogy")
    for method, lag in (("lag", None), ("lag", -1), ("genealogy", 2)):
        with pytest.raises(ValueError, match="lag is a number of steps"):
            fk.smooth(filtered, 5, seed=0, method=method, lag=lag)
    with pytest.raises(TypeError, match="takes a posterior"):
        fk.smooth(autoregression(), 5, seed=0)
    moved = fk.infer(autoregression(), fk.SMC(5, move=fk.SuffixMH(1)), seed=0)
    with pytest.raises(fk.errors.Unsupported, match="use SMC without moves"):
        fk.smooth(moved, 5, seed=0, model=autoregression())
    assert len(fk.smooth(moved, 5, seed=0, method="genealogy")) == 5
