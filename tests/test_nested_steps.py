"""``fk.nested`` one step after the other: PMMH and SMC², their laws, records, forks and refusals."""

from __future__ import annotations

import gc
import math

import numpy as np
import pytest

import feynkac as fk
from feynkac.inference.nested import Live

# A hidden Markov model of two states: start (.6, .4), stay with probability theta, P(1 | state) = (.2, .7).
OBS = (0, 1, 1, 0, 1, 1, 1, 0)
THETA, PRIOR = (0.5, 0.7, 0.95), (0.2, 0.5, 0.3)
Z, POSTERIOR = 0.00278029879, (0.240923, 0.525072, 0.234006)


def forward(theta, obs=OBS):
    """p(obs | theta) after each observation."""
    law, out, total = np.array([0.6, 0.4]), [], 1.0
    for t, y in enumerate(obs):
        law = law if t == 0 else law @ np.array([[theta, 1 - theta], [1 - theta, theta]])
        law = law * np.where(y, (0.2, 0.7), (0.8, 0.3))
        total, law = total * law.sum(), law / law.sum()
        out.append(total)
    return np.array(out)


@fk.program
async def hidden(theta, obs=OBS):
    state = None
    for y in obs:
        state = await fk.sample("state", fk.dist.Bernoulli(0.4 if state is None else theta if state else 1 - theta))
        await fk.observe("y", fk.dist.Bernoulli(0.7 if state else 0.2), y)
        fk.deterministic("output", state)
    return state


async def prior():
    return await fk.sample("theta", fk.dist.Categorical(PRIOR, values=THETA))


@fk.program
async def pmmh(n):
    theta = await prior()
    run = await fk.nested("filter", hidden(theta), fk.SMC(n))
    await fk.factor("Z", run.log_evidence)
    return theta


@fk.program
async def smc2(n, engine=None):
    theta = await prior()
    run = await fk.nested("filter", hidden(theta), engine or fk.SMC(n, ess_threshold=1.0), steps=1)
    await fk.factor("Z", run.log_evidence)
    for t in range(2, len(OBS) + 1):
        before, run = run, await fk.nested("filter", run, steps=t)
        await fk.factor("Z", run.log_evidence - before.log_evidence)
    return theta, run


@fk.program
async def scanned(n):
    """The same as a scan, whose carry is the run."""
    theta = await prior()
    first = await fk.nested("filter", hidden(theta), fk.SMC(n), steps=1)
    await fk.factor("Z", first.log_evidence)

    async def step(before, t):
        run = await fk.nested("filter", before, steps=t)
        await fk.factor("Z", run.log_evidence - before.log_evidence)
        return run, None

    run, _ = await fk.scan(step, first, range(2, len(OBS) + 1))
    return theta, run


def agree(samples, truth, z=4.75):
    """Each column's mean is the truth. |z| < 4.75: a correct engine fails each with probability 2.0e-6."""
    samples = np.asarray(samples, float).reshape(len(samples), -1)
    error = samples.std(0, ddof=1) / math.sqrt(len(samples))
    assert (np.abs(samples.mean(0) - truth) < z * error).all(), (samples.mean(0), truth, error)
    return error


def shares(posterior):
    """Ẑ, and Ẑ times the weight of each theta."""
    ratio = math.exp(posterior.log_evidence) / Z
    return [
        ratio,
        *(ratio * posterior.expect(lambda v, t=t: np.isclose(v if np.isscalar(v) else v[0], t)) for t in THETA),
    ]


def test_the_numbers():
    evidence = [float(forward(theta)[-1]) for theta in THETA]
    assert evidence == pytest.approx((0.00334918547, 0.00291971246, 0.00216868490), rel=1e-8)
    assert np.dot(PRIOR, evidence) == pytest.approx(Z, rel=1e-8)
    assert np.multiply(PRIOR, evidence) / Z == pytest.approx(POSTERIOR, abs=1e-6)


# -- the law ----------------------------------------------------------------------------------------------------


def test_the_evidence_of_some_steps_is_that_of_the_model_cut_there():
    # 8 comparisons: 1.6e-5.
    @fk.program
    async def outer():
        run, out = await fk.nested("filter", hidden(0.7), fk.SMC(2, ess_threshold=1.0), steps=1), []
        out.append(run.log_evidence)
        for t in range(2, 9):
            run = await fk.nested("filter", run, steps=t)
            out.append(run.log_evidence)
        return out

    found = fk.infer(outer(), fk.ImportanceSampling(200), seed=0)
    assert found.guarantee == "unbiased"
    agree(np.exp(found.values), forward(0.7))


SMC2 = {
    "no move": fk.SMC(4, ess_threshold=1.0),
    "moved": fk.SMC(3, ess_threshold=0.8, move=fk.SuffixMH(1)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMC2)
def test_smc2_is_unbiased(name):
    # 4 comparisons of 2 engines: 1.6e-5.
    found = fk.infer([smc2(2)] * 45, SMC2[name], seed=0)
    assert {p.guarantee for p in found} == {"unbiased"}
    agree([shares(p) for p in found], (1.0, *POSTERIOR))


def test_as_a_scan_too():
    # 4 comparisons: 8.0e-6.
    agree([shares(p) for p in fk.infer([scanned(2)] * 50, fk.SMC(4, ess_threshold=1.0), seed=1)], (1.0, *POSTERIOR))


class Matrix:
    """The hidden Markov model as a batched model of arrays: state (n,), and the depth of each."""

    def __init__(self, theta):
        self.theta = theta

    def start(self, keys, given=None):
        return self._step(keys, np.zeros(len(keys), int), np.full(len(keys), 0.4))

    def advance(self, state, keys, given=None):
        x, depth = state.x, state.depth
        return self._step(keys, depth + 1, np.where(x, self.theta, 1 - self.theta))

    def _step(self, keys, depth, up):
        x = (fk.keys.uniform(fk.keys.fold(keys, fk.keys.tag("x"))) < up).astype(int)
        y = np.array(OBS)[depth]
        log_potential = np.log(np.where(y == 1, np.where(x, 0.7, 0.2), np.where(x, 0.3, 0.8)))
        zero = np.zeros(len(keys))
        state = States(x, depth)
        return fk.Advance(state, x, zero, zero, log_potential, zero, state.done, np.ones(len(keys), bool))

    def select(self, state, index):
        return States(state.x[index], state.depth[index])

    def concat(self, states):
        return States(np.concatenate([s.x for s in states]), np.concatenate([s.depth for s in states]))

    def values(self, state):
        return state.x.tolist()


class States:
    def __init__(self, x, depth):
        self.x, self.depth, self.done = x, depth, depth == len(OBS) - 1

    def __len__(self):
        return len(self.x)


@fk.program
async def pmmh_of_arrays(n):
    theta = await prior()
    run = await fk.nested("filter", Matrix(theta), fk.SMC(n))
    await fk.factor("Z", run.log_evidence)
    return theta


@pytest.mark.slow
def test_pmmh_has_the_law_and_the_acceptance_that_it_should():
    # 3 comparisons: 6.0e-6.
    chains = fk.infer([pmmh_of_arrays(4)] * 30, fk.SuffixMH(240, burn_in=20), seed=0)
    agree([[p.expect(lambda v, t=t: v == t) for t in THETA] for p in chains], POSTERIOR)
    assert {p.guarantee for p in chains} == {"consistent"}
    agree([[p.info["acceptance"]] for p in chains], 0.556)


P, W = np.array([0.5, 0.3, 0.2]), np.array([[1.0, 1.1, 0.9], [0.05, 0.06, 5.0]])


@fk.program
async def choice(theta):
    x = await fk.sample("x", fk.dist.Categorical(P))
    await fk.factor("w", math.log(W[theta][x]))


@fk.program
async def two():
    theta = await fk.sample("theta", fk.dist.Bernoulli(0.4))
    run = await fk.nested("inner", choice(theta), fk.ImportanceSampling(1))
    await fk.factor("Z", run.log_evidence)
    return theta


@pytest.mark.slow
def test_an_estimate_is_replayed_and_never_made_again():
    # The chain over (theta, estimate) as a matrix, and that over theta of the classic fault, which estimates both.
    start = np.outer([0.6, 0.4], P).ravel()
    ratio = np.minimum(1.0, W.ravel()[None, :] / W.ravel()[:, None])
    move = start[None, :] * ratio
    acceptance = move.sum(1)
    move += np.diag(1 - acceptance)
    law = start * W.ravel() / (start @ W.ravel())
    assert law @ move == pytest.approx(law)
    truth = law[3:].sum()
    faulty = np.array([[P @ np.minimum(1.0, W[b][None, :] / W[a][:, None]) @ P for b in (0, 1)] for a in (0, 1)])
    up, down = 0.4 * faulty[0, 1], 0.6 * faulty[1, 0]
    chains = fk.infer([two()] * 20, fk.SuffixMH(90, burn_in=20), seed=0)
    # 2 comparisons: 4.0e-6.
    error = agree([[p.expect(float), p.info["acceptance"]] for p in chains], (truth, law @ acceptance))
    assert abs(up / (up + down) - truth) > 6 * error[0]
    # One inner run for each proposal and one for the start; a draw that stays keeps its estimate.
    for p in chains[:3]:
        runs = [p.trace(i)["inner"].value.seed for i in range(len(p))]
        assert len(set(runs)) == len(set(zip(runs, p.log_potential)))


Y = (0.5, -1.0, 2.0, 1.0)


@fk.program
async def walk(drift):
    x = await fk.sample("x", fk.dist.Normal(0.0, 2.0))
    for t, y in enumerate(Y):
        x = x if t == 0 else await fk.sample("x", fk.dist.Normal(0.9 * x + drift, 1.0))
        await fk.observe("y", fk.dist.Normal(x, 1.0), y)


@fk.program
async def drifts(n):
    drift = await fk.sample("drift", fk.dist.Normal(0.5, 0.8))
    run = await fk.nested("filter", walk(drift), fk.SMC(n), steps=1)
    await fk.factor("Z", run.log_evidence)
    for t in range(2, len(Y) + 1):
        before, run = run, await fk.nested("filter", run, steps=t)
        await fk.factor("Z", run.log_evidence - before.log_evidence)
    return drift


def over_drifts():
    """Z of `drifts`, and the posterior mean of its parameter, by quadrature."""
    grid = np.linspace(-4.5, 5.5, 401)
    exact = [
        fk.oracles.kalman(
            Y, initial_mean=0.0, initial_cov=4.0, transition=0.9, transition_cov=1.0, transition_offset=b,
            emission=1.0, emission_cov=1.0,
        ).log_evidence
        for b in grid
    ]  # fmt: skip
    mass = np.exp(np.array(exact) - 0.5 * ((grid - 0.5) / 0.8) ** 2) / math.sqrt(2 * math.pi) / 0.8
    total = np.trapezoid(mass, grid)
    return total, np.trapezoid(mass * grid, grid) / total


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [fk.SuffixMH(1), fk.RandomWalk(step=0.8)], ids=["SuffixMH", "RandomWalk"])
def test_a_continuous_parameter_agrees_with_the_integral_over_it(kernel):
    # 2 comparisons of 2 kernels: 8.0e-6. E[Ẑ]/Z, and E[Ẑ·drift]/Z = E[drift | y].
    total, mean = over_drifts()
    found = fk.infer([drifts(3)] * 40, fk.SMC(5, ess_threshold=0.8, move=kernel), seed=0)
    ratios = [[r := math.exp(p.log_evidence) / total, r * p.expect(float)] for p in found]
    agree(ratios, (1.0, mean))
    assert {p.guarantee for p in found} == {"unbiased"}


@pytest.mark.slow
def test_pmmh_walks_on_continuous_parameters():
    # 1 comparison: 2.0e-6.
    @fk.program
    async def outer(n):
        drift = await fk.sample("drift", fk.dist.Normal(0.5, 0.8))
        run = await fk.nested("filter", walk(drift), fk.SMC(n))
        await fk.factor("Z", run.log_evidence)
        return drift

    engine = fk.MCMC(fk.RandomWalk(step=1.0), draws=100, warmup=25, chains=1)
    found = fk.infer([outer(5)] * 24, engine, seed=0)
    agree([[p.expect(float)] for p in found], over_drifts()[1])


# -- forks, records, cost ---------------------------------------------------------------------------------------


def test_twins_go_on_independently_and_leave_what_they_go_on_from_as_it_is():
    posterior = fk.infer(smc2(3), fk.SMC(6, ess_threshold=1.0, resampling="multinomial"), seed=0)
    runs, before = {}, {}
    for i in range(6):
        sites = posterior.trace(i)
        runs.setdefault(posterior.genealogy(i)[-2], []).append(sites["filter[7]"].value)
        before.setdefault(posterior.genealogy(i)[-2], []).append(sites["filter[6]"].value)
    assert max(map(len, runs.values())) > 1  # some are twins
    for twins, parents in zip(runs.values(), before.values()):
        assert len({run.seed for run in parents}) == 1
        assert len({run.seed for run in twins}) == len(twins)
        assert len({len(run.steps) for run in twins}) == 1
    assert len({run.draw for twins in runs.values() for run in twins}) > 1
    assert len({tuple(run.log_weights) for twins in runs.values() for run in twins}) == 6


def test_a_run_that_went_on_is_whole():
    simulation = fk.simulate(smc2(5), seed=3)
    run = simulation.value[1]
    assert (len(run.steps), run.complete.all(), run.guarantee) == (8, True, "unbiased")
    assert run.log_evidence == pytest.approx(simulation.log_weight)
    assert [step.depth for step in run.steps] == list(range(8))
    part = simulation.trace["filter[4]"].value
    assert (len(part.steps), part.complete.any(), part.guarantee) == (5, False, "unbiased")
    assert all(one is other for one, other in zip(part.steps, run.steps))
    for i, line in enumerate(run.chains[0].lines.T):  # each particle's potentials along its line make its reward
        total = sum(step.log_potential[a] for step, a in zip(run.steps, line))
        assert run.log_potential[i] == pytest.approx(total)
    assert "live" not in repr(run)


def test_given_replays_each_part():
    model = smc2(3)
    key = fk.keys.fold(fk.keys.root(0), np.arange(1))
    first = model.start(key)
    choices, advance = [first.choices], first
    while not advance.done.all():
        advance = model.advance(advance.state, fk.keys.fold(key, len(choices)))
        choices.append(advance.choices)
    again = model.start(fk.keys.root(9), [choices[0][0]])
    for t, given in enumerate(choices[1:], 1):
        again = model.advance(again.state, fk.keys.fold(fk.keys.root(9), t), [given[0]])
    (theta, run), (other, same) = model.values(advance.state)[0], model.values(again.state)[0]
    assert (theta, run) == (other, same)
    assert run is same


def test_a_fork_of_any_step_goes_on_from_what_was_recorded():
    model = smc2(3)
    state = model.start(fk.keys.root(0)).state
    for t in range(3):
        state = model.advance(state, fk.keys.fold(fk.keys.root(1), t)).state
    twins = model.select(state, np.array([0, 0, 0]))
    keys = fk.keys.fold(fk.keys.root(2), np.array([5, 5, 6]))
    ends = model.advance(twins, keys)
    one, two, three = (next(site.value for site in chosen if site.name == "filter") for chosen in ends.choices)
    assert (one.seed, one.values) == (two.seed, two.values)  # the same key: the same
    np.testing.assert_array_equal(one.log_weights, two.log_weights)
    assert three.seed != one.seed


class Counted:
    batch_key = "counted"
    fingerprint = None
    batches: list[int] = []  # noqa: RUF012

    def sample_batch(self, requests, keys):
        n = len(requests)
        self.batches.append(n)
        fk.charge(model_calls=1, tokens_out=np.full(n, 3))
        return fk.Draws((fk.keys.uniform(keys) * 3).astype(int), np.full(n, -math.log(3)))


@fk.program
async def spends():
    for _ in range(4):
        x = await fk.sample("x", Counted())
        await fk.factor("G", 0.3 * x)
        await fk.gather(*[fk.factor("H", 0.1 * x)])


@fk.program
async def spender(engine):
    run = await fk.nested("inner", spends(), engine, steps=1)
    await fk.factor("Z", run.log_evidence)
    while not run.complete.all():
        before, run = run, await fk.nested("inner", run, steps=len(run.steps) + 1)
        await fk.factor("Z", run.log_evidence - before.log_evidence)
    return run


def test_it_costs_what_it_does_and_its_owner_pays():
    Counted.batches.clear()
    engine = fk.SMC(5, chains=2)
    one, other = fk.infer([spender(engine)] * 2, fk.ImportanceSampling(3), seed=0)
    assert Counted.batches == [2 * 3 * 10] * 4  # in lockstep, whatever the particle and the problem
    assert one.cost.tokens_out == other.cost.tokens_out == 3 * 10 * 4 * 3
    run = one.values[0]
    assert (run.cost.tokens_out, run.cost.model_calls, len(run.chains)) == (10 * 4 * 3, 4, 2)
    Counted.batches.clear()
    moved = fk.infer(spender(engine), fk.SMC(3, ess_threshold=1.0, move=fk.SuffixMH(1)), seed=0)
    assert moved.cost.tokens_out == 3 * sum(Counted.batches) > one.cost.tokens_out


def test_what_goes_on_forgets_what_it_went_on_from():
    posterior = fk.infer(scanned(2), fk.SMC(3), seed=0, callbacks=[lambda step: step.depth == 5])
    lives = [x for x in gc.get_objects() if type(x) is Live]
    assert all(live.problem.since is None for live in lives)
    assert len(posterior) == 3
    del posterior, lives
    gc.collect()
    assert not [x for x in gc.get_objects() if type(x) is Live]


def test_runs_of_other_lengths_end_when_they_do():
    @fk.program
    async def short(n):
        for _ in range(n):
            await fk.factor("G", -0.5)

    @fk.program
    async def outer():
        n = await fk.sample("n", fk.dist.DiscreteUniform(1, 4))
        run = await fk.nested("inner", short(n), fk.SMC(2), steps=1)
        for t in (2, 3, 4):
            run = await fk.nested("inner", run, steps=t)
        return n, len(run.steps), run.log_evidence

    for n, steps, log_evidence in fk.infer(outer(), fk.ImportanceSampling(8), seed=0).values:
        assert (steps, log_evidence) == (n, pytest.approx(-0.5 * n))


def test_the_dead_are_raised_at_their_step():
    @fk.program
    async def mortal():
        await fk.factor("G", 0.0)
        await fk.factor("H", -math.inf)

    @fk.program
    async def outer():
        run = await fk.nested("inner", mortal(), fk.SMC(2), steps=1)
        try:
            await fk.nested("inner", run, steps=2)
        except fk.errors.AllParticlesDead:
            return "dead"

    assert fk.infer(outer(), fk.ImportanceSampling(2), seed=0).values == ("dead", "dead")


def test_a_label_that_was_lost_stays_lost():
    @fk.program
    async def middle():
        found = await fk.nested("deep", choice(1), fk.BestOfN(2))
        await fk.factor("Z", found.log_evidence)
        await fk.factor("G", 0.0)

    @fk.program
    async def outer(reads):
        run = await fk.nested("inner", middle(), fk.SMC(2), steps=1)
        run = await fk.nested("inner", run, steps=2)
        if reads:
            await fk.factor("Z", run.log_evidence)
        return run

    one, other = fk.infer([outer(True), outer(False)], fk.SMC(2), seed=0)
    assert (one.guarantee, other.guarantee, other.values[0].guarantee) == ("heuristic", "unbiased", "heuristic")


REFUSALS = {
    "a tree": (fk.TreeSampling(4), 1, None, fk.errors.Unsupported, r"cannot make 1 steps alone"),
    "a move": (fk.SMC(4, move=fk.SuffixMH(1)), 1, None, fk.errors.Unsupported, r"SMC without move"),
    "no number": (fk.SMC(4), 0.5, None, ValueError, "steps must be a positive integer"),
    "nothing more": (fk.SMC(4), 3, {"steps": 3}, ValueError, "has made 3 steps, so that steps must be more"),
    "an engine": (fk.SMC(4), 3, {"engine": fk.SMC(4), "steps": 4}, TypeError, r"nested\(name, run, steps=t\)"),
    "no steps": (fk.SMC(4), 3, {}, TypeError, r"nested\(name, run, steps=t\)"),
    "whole": (fk.SMC(4), None, {"steps": 9}, ValueError, "has no live run to go on from"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_go_on_is_refused_by_name(name):
    engine, steps, then, kind, message = REFUSALS[name]

    @fk.program
    async def outer():
        run = await fk.nested("filter", hidden(0.7), engine, steps=steps)
        await fk.nested("more", run, **then)

    with pytest.raises(kind, match=message):
        fk.infer(outer(), fk.ImportanceSampling(1), seed=0)


def test_a_posterior_from_elsewhere_has_no_live_run():
    found = fk.infer(hidden(0.7), fk.SMC(2), seed=0)

    @fk.program
    async def outer():
        await fk.nested("more", found, steps=20)

    with pytest.raises(ValueError, match="has no live run"):
        fk.infer(outer(), fk.ImportanceSampling(1), seed=0)
    kept = fk.infer(smc2(2), fk.SMC(2), seed=0)
    assert kept.trace(0)["filter"].value.live is None  # what is kept holds nothing live
    assert kept.values[0][1].live is None


# -- compiled scans ---------------------------------------------------------------------------------------------


def drifting(ys, compiled=True):
    dist = pytest.importorskip("numpyro.distributions")

    @fk.program
    async def filtered(drift):
        async def step(x, y):
            x = await fk.sample("x", dist.Normal(0.9 * x + drift, 1.0))
            await fk.observe("y", dist.Normal(x, 1.0), y)
            return x, None

        x = await fk.sample("x", dist.Normal(0.0, 2.0))
        return (await fk.scan(step, x, np.array(ys), compiled=compiled))[0]

    return filtered


@pytest.mark.slow
def test_compiled_scans_go_on_too():
    # 2 comparisons: 4.0e-6. Drifts differ and share what is compiled.
    model = drifting((0.5, -1.0, 2.0))

    @fk.program
    async def outer(steps):
        drift = await fk.sample("drift", fk.dist.Normal(0.5, 0.8))
        run = await fk.nested("filter", model(drift), fk.SMC(6), steps=1 if steps else None)
        for t in range(2, 4) if steps else ():
            run = await fk.nested("filter", run, steps=t)
        return drift, run

    for steps in (True, False):
        ratios = []
        for drift, run in fk.infer(outer(steps), fk.ImportanceSampling(24), seed=0).values:
            assert (run.chains[0].info["compiled"], len(run.steps), run.guarantee) == ("yes", 3, "unbiased")
            exact = fk.oracles.kalman(
                (0.5, -1.0, 2.0), initial_mean=drift, initial_cov=0.81 * 4 + 1, transition=0.9, transition_cov=1.0,
                transition_offset=drift, emission=1.0, emission_cov=1.0,
            ).log_evidence  # fmt: skip
            ratios.append([math.exp(run.log_evidence - exact)])
        agree(ratios, 1.0)
        again = fk.infer(model(drift), fk.SMC(6), seed=run.seed)
        assert steps or again.log_evidence == run.log_evidence
