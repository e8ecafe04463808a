"""State-space models against their exact oracles: native batched models in NumPy, and the same as programs."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest

import feynkac as fk
from feynkac import handlers
from laws import Z_LIMIT, check_unbiased, z_score

# x_0 ~ N(M, P), x_t ~ N(F x + B, Q), y_t ~ N(H x + C, R); nothing in it is symmetric about 0.
M, P, F, B, Q, H, C, R = 0.4, 0.8, 0.7, 0.3, 0.5, 1.3, -0.2, 0.6
Y = np.array([1.1, 0.2, 2.0, 1.4, -0.3])
EXACT = fk.oracles.kalman(
    Y,
    initial_mean=M,
    initial_cov=P,
    transition=F,
    transition_cov=Q,
    emission=H,
    emission_cov=R,
    transition_offset=B,
    emission_offset=C,
)


def log_normal(x, mean, variance):
    return -0.5 * ((x - mean) ** 2 / variance + np.log(2 * math.pi * variance))


@dataclass(frozen=True)
class Paths:
    """One array for the whole population, (n, all steps), NaN where a particle has not been yet."""

    x: np.ndarray
    depth: np.ndarray

    @property
    def done(self):
        return self.depth == len(Y) - 1

    def __len__(self):
        return len(self.x)


class LinearGaussian:
    """A batched model. The optimal proposal is p(x_t | x_{t−1}, y_t)."""

    def __init__(self, optimal=False):
        self.optimal = optimal

    def start(self, keys, given=None):
        n = len(keys)
        return self._step(Paths(np.full((n, len(Y)), np.nan), np.full(n, -1)), np.full(n, M), P, keys)

    def advance(self, state, keys, given=None):
        last = state.x[np.arange(len(keys)), state.depth]
        return self._step(state, F * last + B, Q, keys)

    def _step(self, past, mean, variance, keys):
        depth, n = past.depth + 1, len(keys)
        y = Y[depth]
        q_mean, q_variance = mean, variance
        if self.optimal:
            q_variance = 1 / (1 / variance + H * H / R)
            q_mean = q_variance * (mean / variance + H * (y - C) / R)
        x = q_mean + math.sqrt(q_variance) * fk.keys.normal(keys)
        state = Paths(past.x.copy(), depth)
        state.x[np.arange(n), depth] = x
        return fk.Advance(
            state,
            [(value,) for value in x.tolist()],
            log_normal(x, mean, variance),
            log_normal(x, q_mean, q_variance),
            log_normal(y, H * x + C, R),
            np.zeros(n),
            state.done,
            np.ones(n, bool),
        )

    def select(self, state, index):
        return Paths(state.x[index], state.depth[index])

    def concat(self, states):
        return Paths(np.concatenate([s.x for s in states]), np.concatenate([s.depth for s in states]))

    def values(self, state):
        return list(state.x)


@fk.program
async def linear_gaussian():
    async def step(x, y):
        x = await fk.sample("x", fk.dist.Normal(F * x + B, math.sqrt(Q)))
        await fk.observe("y", fk.dist.Normal(H * x + C, math.sqrt(R)), y)
        return x, x

    first = await fk.sample("x", fk.dist.Normal(M, math.sqrt(P)))
    await fk.observe("y", fk.dist.Normal(H * first + C, math.sqrt(R)), Y[0])
    _, rest = await fk.scan(step, first, Y[1:].tolist())
    return np.array([first, *rest])


def check_kalman(posteriors):
    """E[Ẑ]/Z = 1, and E[Ẑ·mean]/Z is the filtered mean of the last state and the smoothed mean of the first."""
    ratios = np.exp([p.log_evidence - EXACT.log_evidence for p in posteriors])
    means = np.array([p.probabilities @ np.stack(p.values) for p in posteriors])
    squares = np.array([p.probabilities @ np.stack(p.values)[:, -1] ** 2 for p in posteriors])
    assert abs(z_score(ratios, 1.0)) < Z_LIMIT
    assert abs(z_score(ratios * means[:, -1], EXACT.filtered_means[-1, 0])) < Z_LIMIT
    assert abs(z_score(ratios * means[:, 0], EXACT.smoothed_means[0, 0])) < Z_LIMIT
    second = EXACT.filtered_covs[-1, 0, 0] + EXACT.filtered_means[-1, 0] ** 2
    assert abs(z_score(ratios * squares, second)) < Z_LIMIT
    return ratios, means


@pytest.mark.parametrize("optimal", [False, True])
@pytest.mark.parametrize("n", [1, 2, 7, 50])
def test_a_native_linear_gaussian_model_agrees_with_the_kalman_filter(n, optimal):
    ratios, means = check_kalman(
        fk.infer([LinearGaussian(optimal)] * (1500 if n < 7 else 700), fk.SMC(n, ess_threshold=0.7), seed=n)
    )
    if n == 50:  # the test would notice the filtered mean in place of the smoothed one
        assert abs(z_score(ratios * means[:, 0], EXACT.filtered_means[0, 0])) > Z_LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_the_same_model_as_a_program_with_scan_agrees_with_the_kalman_filter(threshold):
    check_kalman(fk.infer([linear_gaussian()] * 500, fk.SMC(7, ess_threshold=threshold), seed=1))


@pytest.mark.slow
def test_the_optimal_proposal_lowers_the_variance_and_leaves_the_target():
    spreads = {}
    for optimal in (False, True):
        posteriors = fk.infer([LinearGaussian(optimal)] * 600, fk.SMC(20, ess_threshold=0.5), seed=3)
        spreads[optimal] = check_kalman(posteriors)[0].std()
    assert spreads[True] < 0.6 * spreads[False]


def test_many_particles_come_close_to_the_filtered_moments():
    posterior = fk.infer(LinearGaussian(), fk.SMC(20_000), seed=0)
    last = np.stack(posterior.values)[:, -1]
    assert posterior.log_evidence == pytest.approx(EXACT.log_evidence, abs=0.03)
    assert posterior.probabilities @ last == pytest.approx(EXACT.filtered_means[-1, 0], abs=0.03)
    assert posterior.expect(lambda path: path) == pytest.approx(EXACT.smoothed_means[:, 0], abs=0.04)


def test_native_models_and_programs_can_be_solved_together():
    mixed = [LinearGaussian(), linear_gaussian(), LinearGaussian(True)]
    together = fk.infer(mixed, fk.SMC(500), seed=2)
    assert [len(p) for p in together] == [500] * 3
    for posterior in together:
        assert posterior.log_evidence == pytest.approx(EXACT.log_evidence, abs=0.4)
    (alone,) = fk.infer(mixed[:1], fk.SMC(500), seed=2)
    assert (np.stack(alone.values) == np.stack(together[0].values)).all()


def test_particles_at_different_depths_share_a_batch():
    model, key = LinearGaussian(optimal=True), fk.keys.fold(fk.keys.root(0), np.arange(3))
    early = model.start(key).state
    late = model.advance(early, fk.keys.fold(key, 1)).state
    fresh = fk.keys.fold(key, 8), fk.keys.fold(key, 9)
    together = model.advance(model.concat([early, late]), np.concatenate(fresh))
    for rows, state, keys in ((slice(0, 3), early, fresh[0]), (slice(3, 6), late, fresh[1])):
        alone = model.advance(state, keys)
        for term in ("log_prob", "log_proposal", "log_potential", "done"):
            np.testing.assert_array_equal(getattr(together, term)[rows], getattr(alone, term))
        np.testing.assert_array_equal(together.state.x[rows], alone.state.x)


def test_a_tree_over_a_native_model_tends_to_the_kalman_filter():
    """Its waves mix depths. Ẑ of a tree is consistent: within a tenth at 3,000 rollouts (0.04 off at this seed)."""
    posterior = fk.infer(LinearGaussian(optimal=True), fk.TreeSampling(3000, growth=0.5, batch=100), seed=0)
    assert posterior.log_evidence == pytest.approx(EXACT.log_evidence, abs=0.1)
    assert posterior.expect(lambda path: path[0]) == pytest.approx(EXACT.smoothed_means[0, 0], abs=0.15)


# -- a finite chain ---------------------------------------------------------------------------------------------

START = (0.6, 0.3, 0.1)
MOVES = ((0.7, 0.2, 0.1), (0.1, 0.6, 0.3), (0.25, 0.05, 0.7))
EMIT = np.array([[0.5, 0.1, 0.2], [0.05, 0.8, 0.3], [0.4, 0.3, 0.0], [0.3, 0.1, 0.9]])  # of each step and state
with np.errstate(divide="ignore"):
    LOG_EMIT = np.log(EMIT)
CHAIN = fk.oracles.forward_filter(START, MOVES, LOG_EMIT)


@fk.program
async def hidden_markov():
    async def step(x, t):
        x = await fk.sample("x", fk.dist.Categorical(START if x is None else MOVES[x]))
        await fk.factor("G", LOG_EMIT[t, x])
        return x, x

    _, path = await fk.scan(step, None, range(len(EMIT)))
    return tuple(path)


def test_enumeration_of_the_chain_agrees_with_the_forward_filter():
    exact = fk.enumerate_program(hidden_markov())
    assert exact.log_evidence == pytest.approx(CHAIN.log_evidence)
    for t in range(len(EMIT)):
        law = [exact.expect(lambda path, t=t, k=k: path[t] == k) for k in range(3)]
        assert law == pytest.approx(CHAIN.smoothed[t].tolist())


@pytest.mark.slow
@pytest.mark.parametrize(("n", "place"), [(1, -1), (2, 0), (2, -1), (7, -1)])
def test_smc_on_the_chain_agrees_with_the_forward_filter(n, place):
    @fk.program
    async def one_state():
        return (await hidden_markov())[place]

    law = {k: p for k, p in enumerate(CHAIN.smoothed[place].tolist()) if p > 0}
    engine = fk.SMC(n, ess_threshold=0.9, all_dead="zero")
    check_unbiased(one_state(), engine, law, CHAIN.log_evidence, runs=600, seed=4)


def test_a_chain_forced_to_its_smoothed_path_has_the_joint_probability():
    path = [0, 1, 0, 2]
    data = {"x" if t == 0 else f"x[{t}]": x for t, x in enumerate(path)}
    run = fk.simulate(handlers.substitute(hidden_markov(), data=data), seed=0)
    assert run.value == tuple(path)
    log_p = math.log(START[0]) + sum(math.log(MOVES[a][b]) for a, b in itertools.pairwise(path))
    assert run.log_prob == pytest.approx(log_p)
    assert run.log_weight == pytest.approx(sum(LOG_EMIT[t, x] for t, x in enumerate(path)))
