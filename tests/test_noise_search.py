"""Searches that choose among noise, children or draws: zero-order search, SVDD and rollover budget forcing."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

import feynkac as fk
from chains import LOG_G, MOVES, START, FiniteChain, chain
from feynkac.inference.search.noise_search import turned
from laws import Z_LIMIT, t2, t3, z_score

torch = pytest.importorskip("torch")
from feynkac.diffusion import Diffusion, Mixture, Schedule, Steering  # noqa: E402

FLOW = Schedule.flow(8)
DATA = Mixture([0.6, 0.3, 0.1], [[-2.0, 0.0, 1.0], [1.0, 2.0, 0.0], [3.0, -1.0, 0.5]], [0.1, 0.2, 0.1])


class Counted(Diffusion):
    """Keeps what the network saw."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.evaluated, self.keys, self.starts = 0, [], []

    def denoise(self, latents, *args):
        self.evaluated += int((~latents.done).sum())
        return super().denoise(latents, *args)

    def start(self, keys, given=None):
        self.keys += keys.tolist()
        advance = super().start(keys, given)
        self.starts += list(advance.choices)
        return advance

    def advance(self, state, keys, given=None):
        self.keys += keys.tolist()
        return super().advance(state, keys, given)

    def renoise(self, state, keys, depth):
        self.keys += keys.tolist()
        return super().renoise(state, keys, depth)


def image(eta=0.0, every=1, dtype=None):
    reward = Steering(lambda x: x[:, 0] - 0.5 * x[:, 2], every=every)
    return Counted(DATA.denoiser(FLOW), FLOW, (3,), eta=eta, steering=reward, dtype=dtype or torch.float64)


# -- zero-order noise search ------------------------------------------------------------------------------------


@pytest.mark.parametrize("cosine", [0.95, 0.2, -0.5])
def test_neighbours_keep_the_norm_and_lie_at_the_cosine(cosine):
    noise = np.random.default_rng(0).normal(size=(2, 5, 3)) * 7
    around = turned(noise, cosine, fk.keys.fold(fk.keys.root(1), np.arange(50)))
    assert around.shape == (50, 2, 5, 3)
    flat, norm = around.reshape(50, -1), np.linalg.norm(noise)
    assert np.linalg.norm(flat, axis=1) == pytest.approx(norm)
    assert flat @ noise.ravel() / norm**2 == pytest.approx(cosine)
    assert np.linalg.matrix_rank(flat - cosine * noise.ravel()) == 29  # all the directions at a right angle to it
    assert abs(flat.mean(0) / norm - cosine * noise.ravel() / norm).max() < 0.15


def test_the_pivot_moves_to_the_best_neighbour_and_is_drawn_afresh_where_none_is_better():
    model = image()
    posterior = fk.infer(model, fk.NoiseSearch(12, neighbours=3), seed=1)
    starts, rewards = iter(model.starts), iter(np.concatenate([posterior.log_potential]))
    fresh, pivot, best = 0, None, -math.inf
    for _ in range(12):
        if pivot is None:
            pivot, best = next(starts), next(rewards)
            fresh += 1
        made = [(next(starts), next(rewards)) for _ in range(3)]
        for start, _ in made:
            assert start @ pivot / (np.linalg.norm(start) * np.linalg.norm(pivot)) == pytest.approx(0.95, abs=1e-6)
        leader, reward = max(made, key=lambda pair: pair[1])
        pivot, best = (leader, reward) if reward > best else (None, best)
    assert next(starts, None) is None
    assert 1 < fresh < 12  # it both moved on and began again
    assert len(posterior) == 36 + fresh


def test_all_weight_is_on_the_candidate_of_the_largest_reward():
    posterior = fk.infer(image(), fk.NoiseSearch(10), seed=0)
    rewards = [x[0] - 0.5 * x[2] for x in posterior.values]
    assert posterior.log_potential == pytest.approx(rewards)
    assert posterior.best()[0] - 0.5 * posterior.best()[2] == max(rewards)
    assert posterior.ess == 1.0
    assert math.isnan(posterior.log_evidence)
    assert posterior.guarantee == "heuristic"
    assert len(posterior.steps) == len(FLOW) + 1


@pytest.mark.slow
def test_it_climbs_where_random_search_wanders():
    """A smooth reward in 60 dimensions: turning a good noise beats drawing as many new ones."""
    d = 60
    data = Mixture([1.0], [np.zeros(d)], [1.0])

    def model():
        return Diffusion(data.denoiser(FLOW), FLOW, (d,), eta=0.0, steering=Steering(lambda x: x.sum(1)))

    searched = [p.log_potential.max() for p in fk.infer([model()] * 4, fk.NoiseSearch(60), seed=0)]
    plain = [p.log_potential.max() for p in fk.infer([model()] * 4, fk.BestOfN(300), seed=0)]
    assert np.mean(searched) > np.mean(plain)


def test_its_cost_is_what_the_network_did_and_no_key_is_used_twice():
    model = image(eta=1.0)
    posterior = fk.infer(model, fk.NoiseSearch(6), seed=0)
    assert posterior.cost.nfe == model.evaluated == len(posterior) * len(FLOW)
    assert len(set(model.keys)) == len(model.keys)


def test_a_budget_keeps_the_candidates_so_far(tmp_path):
    posterior = fk.infer(image(), fk.NoiseSearch(50), seed=0, budget=fk.Budget(nfe=150))
    assert posterior.stopped == "nfe"
    assert len(posterior) == 1 + 4 * 4
    posterior.save(tmp_path / "noise.fk")
    again = fk.Posterior.load(tmp_path / "noise.fk")
    assert all((a == b).all() for a, b in zip(again.values, posterior.values))
    assert (again.log_potential == posterior.log_potential).all()


@pytest.mark.parametrize(("model", "kind"), [(t2(), "tuple"), (chain(), "tuple")])
def test_models_that_begin_with_something_else_are_refused_by_name(model, kind):
    with pytest.raises(fk.errors.Unsupported, match=rf"begins with {kind}. Use BestOfN"):
        fk.infer(model, fk.NoiseSearch(2), seed=0)


def test_one_number_cannot_be_turned():
    model = Diffusion(Mixture([1.0], [[0.0]], [1.0]).denoiser(FLOW), FLOW, (1,), eta=0.0)
    with pytest.raises(fk.errors.Unsupported, match="an array of 1 float32"):
        fk.infer(model, fk.NoiseSearch(2), seed=0)


def test_a_model_that_ignores_what_it_is_given_is_refused():
    class Deaf(Counted):
        def start(self, keys, given=None):
            return super().start(keys)

    model = Deaf(DATA.denoiser(FLOW), FLOW, (3,), eta=0.0)
    with pytest.raises(fk.errors.Unsupported, match="began with another"):
        fk.infer(model, fk.NoiseSearch(2), seed=0)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: fk.NoiseSearch(0), "rounds"),
        (lambda: fk.NoiseSearch(1, cosine=1.0), "cosine"),
        (lambda: fk.SVDD(0), "particles"),
        (lambda: fk.SVDD(1, temperature=0.0), "temperature"),
        (lambda: fk.RolloverBudget(0), "quota"),
        (lambda: fk.RolloverBudget(1, all_dead="no"), "all_dead"),
    ],
)
def test_wrong_settings_are_refused(make, name):
    with pytest.raises(ValueError, match=name):
        make()


# -- SVDD -------------------------------------------------------------------------------------------------------


def test_svdd_with_one_child_is_the_model_itself():
    mine = fk.infer(chain(), fk.SVDD(300, children=1), seed=0)
    plain = fk.infer(chain(), fk.ImportanceSampling(300), seed=0)
    assert mine.values == plain.values  # draw by draw
    assert mine.probabilities == pytest.approx(1 / 300)
    assert math.isnan(mine.log_evidence)


@pytest.mark.slow
def test_svdd_keeps_a_child_in_proportion():
    """One step, weights 9 and 1, two children: P(a) = ¼ + ½·0.9 at T = 1, and ¾ where the best is kept."""
    # 3 comparisons at |z| < 4.26: false alarm 6e-5.
    for temperature, truth in ((1.0, 0.7), (None, 0.75), (2.0, 0.25 + 0.5 * 0.75)):
        posterior = fk.infer(t3(), fk.SVDD(8_000, children=2, temperature=temperature), seed=1)
        assert abs(z_score([v == "a" for v in posterior.values], truth)) < Z_LIMIT


@pytest.mark.slow
def test_svdd_with_an_exact_twist_and_many_children_tends_to_the_target():
    model = FiniteChain(START, MOVES, np.zeros((2, 3)))
    value = np.array([0.2, 1.0, 2.5])

    @fk.program
    async def twisted():
        x = await fk.sample("x", fk.dist.Categorical(START))
        await fk.twist("value", math.log(np.dot(MOVES[x], np.exp(value))))
        y = await fk.sample("y", fk.dist.Categorical(MOVES[x]))
        await fk.factor("reward", value[y])
        return x, y

    law = FiniteChain(START, MOVES, [np.zeros(3), value]).exact()[1]
    assert model.exact()[0] == pytest.approx(1.0)
    posterior = fk.infer(twisted(), fk.SVDD(1500, children=20), seed=0)
    for pair, p in law.items():
        assert np.mean([v == pair for v in posterior.values]) == pytest.approx(p, abs=0.05)


def test_svdd_of_texts_and_images_runs_on_after_some_have_finished():
    posterior = fk.infer(t2(), fk.SVDD(50, children=4), seed=0)
    assert posterior.complete.all()
    assert {len(v) for v in posterior.values} == {1, 2, 3}
    model = image(eta=1.0)
    posterior = fk.infer(model, fk.SVDD(6, children=3), seed=0)
    assert posterior.cost.nfe == model.evaluated == 6 * 3 * len(FLOW)
    assert len(set(model.keys)) == len(model.keys)
    plain = fk.infer(image(eta=1.0), fk.SVDD(6, children=1), seed=0)
    assert posterior.log_potential.mean() > plain.log_potential.mean()


def test_dead_lines_weigh_nothing():
    log_g = LOG_G.copy()
    log_g[1, 0] = -math.inf
    posterior = fk.infer(FiniteChain(START, MOVES, log_g), fk.SVDD(40, children=1), seed=0)
    dead = np.array([path[1] == 0 for path in posterior.values])
    assert 0 < dead.sum() < 40
    assert (np.isneginf(posterior.log_weights) == dead).all()
    log_g[1] = -math.inf
    for engine in (fk.SVDD(5), fk.RolloverBudget(5)):
        with pytest.raises(fk.errors.AllParticlesDead, match="at step 1"):
            fk.infer(FiniteChain(START, MOVES, log_g), engine, seed=0)


# -- rollover ---------------------------------------------------------------------------------------------------


class Climb:
    """A native model whose k-th draw of all is worth ``scores[k]``: the reward of a particle is its last score."""

    def __init__(self, scores, steps):
        self.scores, self.steps, self.draws = iter(scores), steps, []

    def _step(self, state, n):
        assert n == 1
        new = next(self.scores)
        self.draws.append(state[1] + 1)
        after = _One(new, state[1] + 1, self.steps)
        gain, done = np.array([new - state[0]]), after.done
        return fk.Advance(after, [(new,)], np.zeros(1), np.zeros(1), gain, np.zeros(1), done, np.ones(1, bool))

    def start(self, keys, given=None):
        return self._step((0.0, -1), len(keys))

    def advance(self, state, keys, given=None):
        return self._step((state.x, state.at), len(keys))

    def select(self, state, index):
        return state

    def concat(self, states):
        (state,) = states
        return state

    def values(self, state):
        return [state.x]


class _One:
    def __init__(self, x, at, steps):
        self.x, self.at, self.done, self.depth = x, at, np.array([at == steps - 1]), np.array([at])

    def __len__(self):
        return 1


def test_what_a_step_does_not_need_rolls_over():
    """Quota 3. The start takes 1 and saves 2; 5 may try the next, which gains at the second and saves 3; the third has
    6 and none gains, so that its best goes on from a lower score; the last gains on that at once."""
    scores = [1.0, 0.5, 2.0, 1.1, 0.2, 1.5, 1.9, 1.2, 0.0, 1.95, 9.0]
    model = Climb(scores, steps=4)
    posterior = fk.infer(model, fk.RolloverBudget(3), seed=0)
    assert model.draws == [0, 1, 1, 2, 2, 2, 2, 2, 2, 3]
    assert posterior.values == (1.95,)
    assert posterior.log_potential.tolist() == pytest.approx([1.95])
    assert [step.choices[0] for step in posterior.steps] == [(1.0,), (2.0,), (1.9,), (1.95,)]


def test_a_quota_is_never_overdrawn_and_one_draw_is_the_model_itself():
    model = Climb(-np.arange(100.0), steps=5)  # nothing ever gains but the first, which has nothing to beat
    fk.infer(model, fk.RolloverBudget(4), seed=0)
    assert model.draws == [0] + [1] * 7 + [2] * 4 + [3] * 4 + [4] * 4
    mine = fk.infer(chain(), fk.RolloverBudget(1, chains=20), seed=0)
    plain = fk.infer(chain(), fk.ImportanceSampling(1, chains=20), seed=0)
    assert mine.values == plain.values


def test_rollover_improves_an_image_within_its_budget():
    model = image(eta=1.0)
    posterior = fk.infer(model, fk.RolloverBudget(6, chains=6), seed=0)
    plain = fk.infer(image(eta=1.0), fk.ImportanceSampling(60), seed=0)
    assert posterior.log_potential.mean() > plain.log_potential.mean() + 0.5
    assert posterior.cost.nfe == model.evaluated <= 6 * 6 * len(FLOW)
    assert len(set(model.keys)) == len(model.keys)


def test_rollover_runs_on_a_program():
    posterior = fk.infer(t2(), fk.RolloverBudget(8, chains=5), seed=0)
    assert np.mean([value.count("a") for value in posterior.values]) >= 1
    assert posterior.guarantee == "heuristic"


# -- search over paths ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [Schedule.vp(8), Schedule.ve(8), Schedule.flow(8)])
def test_noise_put_on_again_has_the_law_of_its_level(schedule):
    """Data that is noised to depth 3, directly and by way of depth 6, has one mean and one covariance."""
    # 9 comparisons at |z| < 4.26: false alarm 2e-4.
    model = Diffusion(DATA.denoiser(schedule), schedule, (3,), dtype=torch.float64)
    n = 8000
    data = torch.as_tensor(DATA.sample(n, seed=1))
    done = fk.diffusion.latents.Latents(data, np.full(n, 8), 8)
    keys = fk.keys.fold(fk.keys.root(3), np.arange(n))
    once = model.renoise(done, keys, 3)
    twice = model.renoise(model.renoise(done, fk.keys.fold(keys, 1), 6).state, fk.keys.fold(keys, 2), 3)
    for made in (once, twice):
        assert (made.state.depth == 3).all()
        x = made.state.x.numpy()
        alpha, sigma = schedule.alpha[3], schedule.sigma[3]
        assert max(abs(z_score(x[:, j], alpha * DATA.mean[j])) for j in range(3)) < Z_LIMIT
        truth = alpha**2 * DATA.covariance + sigma**2 * np.eye(3)
        assert np.cov(x.T) == pytest.approx(truth, rel=0.12, abs=0.06 * np.trace(truth) / 3)
    with pytest.raises(ValueError, match="from depth 3 to one before it, not 5"):
        model.renoise(once.state, keys, 5)


def test_search_over_paths_keeps_the_best_and_goes_on_from_them():
    model = image()
    engine = fk.PathSearch(3, branches=4, first=6, back=4, forward=5)
    posterior = fk.infer(model, engine, seed=0)
    rewards = np.array([x[0] - 0.5 * x[2] for x in posterior.values])
    assert posterior.log_potential == pytest.approx(rewards)  # it telescopes, through the noise too
    assert posterior.best()[0] - 0.5 * posterior.best()[2] == rewards.max()
    depths = [0, 1, 2, 3, 4, 5, 6, 2, 3, 4, 5, 6, 7, 3, 4, 5, 6, 7, 8]
    assert len(posterior.steps) == len(depths)
    before = posterior.steps[6]
    totals = np.array([sum(step.log_potential[i] for step in posterior.steps[:7]) for i in range(3)])
    assert posterior.steps[7].ancestors.tolist() == np.repeat(np.argsort(-totals), 4).tolist()
    assert (before.ancestors == np.arange(3)).all()
    assert len(posterior) == 12
    assert posterior.cost.nfe == model.evaluated == 3 * 7 + 12 * (len(depths) - 7 - 1)
    assert len(set(model.keys)) == len(model.keys)
    assert math.isnan(posterior.log_evidence)


def test_search_over_paths_beats_as_many_evaluations_of_best_of_n():
    engine = fk.PathSearch(3, branches=6, first=7, back=5, forward=6)
    searched = fk.infer([image() for _ in range(12)], engine, seed=0)
    most = np.mean([p.log_potential.max() for p in searched])
    n = searched[0].cost.nfe // len(FLOW)
    plain = fk.infer([image() for _ in range(12)], fk.BestOfN(n), seed=1)
    assert most > np.mean([p.log_potential.max() for p in plain])


def test_search_over_paths_says_what_it_needs(tmp_path):
    with pytest.raises(fk.errors.Unsupported, match=r"t2\(\) has no method renoise"):
        fk.infer(t2(), fk.PathSearch(2, 2, 2, 1, 2), seed=0)
    with pytest.raises(ValueError, match="must be at most first"):
        fk.PathSearch(2, 2, first=1, back=2, forward=3)
    posterior = fk.infer(image(), fk.PathSearch(2, 2, 3, 1, 2), seed=0, budget=fk.Budget(nfe=12))
    assert posterior.stopped == "nfe"
    posterior.save(tmp_path / "paths.fk")
    assert (fk.Posterior.load(tmp_path / "paths.fk").log_weights == posterior.log_weights).all()


class Nameless(Counted):
    """Weighs a particle by NaN, as a model of one's own may."""

    def advance(self, state, keys, given=None):
        advance = super().advance(state, keys, given)
        return replace(advance, log_potential=np.where(np.arange(len(keys)) == 1, math.nan, advance.log_potential))


@pytest.mark.parametrize(
    "engine",
    [fk.SVDD(2, children=3), fk.SVDD(2, children=3, temperature=None), fk.PathSearch(2, 2, first=3, back=1, forward=2)],
)
def test_a_weight_that_is_no_number_is_not_taken_for_the_best_or_the_dead(engine):
    model = Nameless(DATA.denoiser(FLOW), FLOW, (3,))
    with pytest.raises(fk.errors.InvalidWeight, match="got nan"):
        fk.infer(model, engine, seed=0)
