"""Steering of masked diffusion: samples of the data, proposals, twists; none of them moves the target."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from masked import REWARD, STATES, X2, Exact, F, L, M, P, V, law_of, model  # noqa: E402

import feynkac as fk  # noqa: E402
from feynkac.diffusion import (  # noqa: E402
    Ancestral,
    AtRandom,
    Confident,
    Diffusion,
    InOrder,
    MaskedDiffusion,
    Mixture,
    Network,
    Schedule,
    Steering,
    anneal,
)
from feynkac.ppl.errors import InvalidWeight, Unsupported  # noqa: E402

PLACES = torch.tensor([9, 3, 1])
TABLE = torch.tensor(REWARD)
POTENTIALS = ["current", *(pytest.param(name, marks=pytest.mark.slow) for name in ("difference", "max", "sum"))]
PROPOSED = [Ancestral(2), Ancestral(3), InOrder(), InOrder("left"), InOrder("entropy"), AtRandom(2), Confident(2),
            Confident(3), Confident(3, 0.4)]  # fmt: skip


def reward(x):
    return TABLE[(x * PLACES).sum(1)]


def of_hot(hot):
    """Return the same reward of one-hot tokens (n, L, V + 1), as a polynomial in them."""
    return 0.7 * hot[:, 0, 1] + 0.5 * hot[:, :, 2].sum(1) - 0.4 * hot[:, 1, 0]


def hope(x):
    """Return log E[e^r | revealed], the exact twist of one position a step."""
    fits = ((torch.tensor(STATES)[None] == x[:, None]) | (x[:, None] == M)).all(2).double()
    return ((fits @ torch.tensor(P * np.exp(REWARD))) / (fits @ torch.tensor(P))).log()


def keys(n, seed=0):
    return fk.keys.fold(fk.keys.root(seed), np.arange(n))


def target(rule, scale=1.0):
    """Return the mass (27,) of what a rule generates, weighed by the reward."""
    return law_of(model(rule)) * np.exp(scale * REWARD)


def is_mean(found, exact, z=4.265):  # 2e-5
    found = np.array(found)
    return abs(found.mean() - exact) < z * found.std(ddof=1) / np.sqrt(len(found)) + 1e-12


def evidences(made, engine, seeds):
    return np.exp([fk.infer(made, engine, seed=seed).log_evidence for seed in range(seeds)])


# Samples of the data


@pytest.mark.parametrize("potential", POTENTIALS)
def test_samples_leave_the_target(potential):
    made = model(Ancestral(2), steering=Steering(reward, 1.5, potential, samples=2))
    assert is_mean(evidences(made, fk.SMC(16, ess_threshold=1.0), 40), 3.9152858472555563)


def every_record(k):
    """Return all that a step may record: tokens, and k samples of the data."""
    tokens = np.stack(np.meshgrid(*[np.arange(V + 1)] * L, indexing="ij"), -1).reshape(-1, L)
    pairs = np.array(np.meshgrid(np.arange(len(tokens)), *[np.arange(27)] * k, indexing="ij")).reshape(k + 1, -1).T
    return np.stack([tokens[pairs[:, 0]], *(STATES[pairs[:, j]] for j in range(1, k + 1))], 1)


@pytest.mark.parametrize("potential", ["difference", "max"])
def test_all_that_samples_can_be_sums_to_the_target(potential):
    made = model(Ancestral(1), steering=Steering(reward, 1.5, potential, samples=1))
    begins = [np.stack([[M] * L, s]) for s in STATES]
    start = made.start(keys(27), begins)
    assert np.exp(start.log_prob).sum() == pytest.approx(1, abs=1e-12)
    records = [np.stack([s, s]) for s in STATES]
    index = np.repeat(np.arange(27), 27)
    moved = made.advance(made.select(start.state, index), keys(27 * 27), records * 27)
    mass = np.exp((start.log_prob + start.log_increment)[index] + moved.log_prob + moved.log_increment)
    assert mass.reshape(27, 27).sum(0) == pytest.approx(target(Ancestral(1), 1.5), rel=1e-11)


def test_steps_with_samples_have_a_law():
    made = model(InOrder("left"), steering=Steering(reward, samples=1))
    state = made.start(keys(1)).state
    every = every_record(1)
    moved = made.advance(made.select(state, np.zeros(len(every), int)), keys(len(every)), [*every])
    assert np.exp(moved.log_prob).sum() == pytest.approx(1, abs=1e-12)
    kept = moved.log_prob > -np.inf
    assert kept.sum() == 3 * 9  # a sample keeps what is revealed


def test_forced_choices_weigh_what_was_recorded():
    made = model(Ancestral(3), steering=Steering(reward, 1.5, samples=3))
    first = made.start(keys(50, 1))
    again = made.start(keys(50, 2), [*first.choices])
    moved = made.advance(first.state, keys(50, 3))
    after = made.advance(again.state, keys(50, 4), [*moved.choices])
    for one, other in ((first, again), (moved, after)):
        np.testing.assert_array_equal(one.choices, other.choices)
        for name in ("log_prob", "log_increment"):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-12)
    guesses = moved.choices[:, 1:]
    psi = np.log(np.exp(1.5 * REWARD[(guesses * [9, 3, 1]).sum(2)]).mean(1))
    was = np.log(np.exp(1.5 * REWARD[(first.choices[:, 1:] * [9, 3, 1]).sum(2)]).mean(1))
    np.testing.assert_allclose(moved.log_increment, psi - was)


def test_many_samples_are_what_is_expected():
    """ψ of many samples is E[e^{λr}] of independent tokens, and no reward is asked twice of what is settled."""
    made = model(InOrder("left"), steering=Steering(reward, samples=4000))
    state = made.start(keys(1)).state
    mu = np.exp(state.fields["log_mu"][0].numpy())[:, :V]
    mean = np.einsum("a,b,c,abc->", *mu, np.exp(REWARD).reshape(3, 3, 3))
    assert abs(np.exp(float(state.fields["reward"][0])) / mean - 1) < 0.05
    few = fk.infer(model(InOrder("left"), steering=Steering(reward, samples=4)), fk.ImportanceSampling(10), seed=0)
    assert few.cost.nfe == 30
    assert 30 < few.cost.reward_calls <= 10 * (4 * 3 + 1)


def test_samples_that_are_impossible_are_not_the_end():
    never = torch.where(torch.tensor(X2 > 0), TABLE, -torch.inf)
    made = model(InOrder("left"), steering=Steering(lambda x: never[(x * PLACES).sum(1)], samples=30))
    exact = (P * np.where(X2 > 0, np.exp(REWARD), 0)).sum()
    assert is_mean(evidences(made, fk.SMC(20), 30), exact)
    tempered = Steering(lambda x: never[(x * PLACES).sum(1)], samples=30, temper=lambda share: float(share > 0.5))
    found = fk.infer(model(InOrder("left"), steering=tempered), fk.ImportanceSampling(50), seed=0)
    assert np.isfinite(found.log_evidence)  # where λ is 0, what is impossible is not 0 · ∞
    with pytest.raises(InvalidWeight, match="give the reward a floor"):
        fk.infer(model(InOrder("left"), steering=Steering(lambda x: x[:, 0].double().log(), samples=1)), fk.SMC(20),
                 seed=0)  # fmt: skip


@pytest.mark.parametrize("engine", [fk.SuffixMH(60), fk.ParticleGibbs(4, 20)], ids=str)
def test_chains_replay_samples(engine):
    made = model(InOrder("left"), steering=Steering(reward, samples=2))
    mean = fk.infer(made, engine, seed=0).expect(lambda x: x[0] + x[1] * x[2])
    assert 2.2 < mean < 3.9  # 3.034 is exact


@pytest.mark.parametrize("samples", [0, 30])
def test_what_is_impossible_in_the_end_is_so_at_scale_0(samples):
    steering = Steering(lambda x: torch.where(x[:, 0] == 0, -torch.inf, 0.0), 0.0, every=L, samples=samples)
    posterior = fk.infer(model(InOrder("left"), steering=steering), fk.ImportanceSampling(300), seed=0)
    assert posterior.log_evidence == pytest.approx(np.log(P[STATES[:, 0] > 0].sum()), abs=0.25)
    assert all(x[0] > 0 for x, w in zip(posterior.values, posterior.probabilities) if w)


@pytest.mark.parametrize("engine", [fk.PowerSMC(10), fk.SuffixMH(10, power=2.0), fk.PowerSampling(4)], ids=str)
def test_powers_of_samples_are_refused(engine):
    made = model(InOrder("left"), steering=Steering(reward, samples=1))
    for one in (made, fk.Blocks(made, 2)):
        with pytest.raises(Unsupported, match="of auxiliary draws, too"):
            fk.infer(one, engine, seed=0)


# Proposals


@pytest.mark.parametrize("rule", PROPOSED, ids=str)
def test_proposals_leave_the_probability_of_a_step(rule):
    """All that q can draw is what M can, each with the probability M·(its weight)."""
    after = [*np.stack(np.meshgrid(*[np.arange(V + 1)] * L, indexing="ij"), -1).reshape(-1, L)]
    models = [
        model(rule),
        model(rule, steering=Steering(of_hot, 2.0, gradient=True)),
        model(rule, steering=Steering(reward, 2.0), optimal=200),
    ]
    for x, depth in ([M, M, M], 0), ([M, 1, M], 1), ([2, M, M], 1), ([M, M, 0], models[0].steps - 1):
        p, q, o = (at(made, x, depth, after) for made in models)
        np.testing.assert_allclose(q.log_prob, p.log_prob)
        np.testing.assert_allclose(o.log_prob, p.log_prob)
        assert np.exp(q.log_proposal).sum() == pytest.approx(1, abs=1e-6)
        assert np.exp(o.log_proposal).sum() == pytest.approx(1, abs=1e-9)
        can = p.log_prob > -np.inf
        assert ((q.log_proposal > -np.inf) == can).all()
        assert np.ptp(o.log_increment[can]) < 1e-9  # the normaliser, whatever is drawn
        assert o.log_increment[can][0] == pytest.approx(np.log(np.exp(p.log_prob + o.log_potential)[can].sum()))


def at(made, x, depth, after):
    """Return all steps of a model from tokens that are part-way."""
    begun, n = made.start(keys(1)).state, len(after)
    here = type(begun)(torch.tensor([x]), np.array([depth]), begun.steps)
    return made.advance(made.select(made.arrive(begun, here)[1], np.zeros(n, int)), keys(n), after)


@pytest.mark.parametrize("rule", PROPOSED, ids=str)
@pytest.mark.parametrize("how", ["gradient", "optimal"])
def test_draws_have_the_probability_of_the_proposal(rule, how):
    n = 1500
    made = (
        model(rule, steering=Steering(of_hot, 1.5, gradient=True))
        if how == "gradient"
        else model(rule, steering=Steering(reward, 1.5), optimal=200)
    )
    moved = made.advance(made.select(made.start(keys(1)).state, np.zeros(n, int)), keys(n, 5))
    _, first, count = np.unique(moved.choices, axis=0, return_index=True, return_counts=True)
    q = np.exp(moved.log_proposal[first])
    assert 0.95 < q.sum() < 1 + 1e-9
    assert (np.abs(count / n - q) < 5.5 * np.sqrt(q * (1 - q) / n) + 1e-9).all()  # 4e-8 each, 18 × 64: 5e-5
    forced = made.advance(made.select(made.start(keys(1)).state, np.zeros(n, int)), keys(n, 6), [*moved.choices])
    for name in ("log_prob", "log_proposal", "log_increment"):
        np.testing.assert_allclose(getattr(forced, name), getattr(moved, name), atol=1e-9)


@pytest.mark.parametrize("rule", [Ancestral(2), InOrder("entropy"), Confident(3), Confident(3, 0.4)], ids=str)
@pytest.mark.parametrize("how", ["gradient", "optimal"])
@pytest.mark.parametrize("potential", ["difference", pytest.param("current", marks=pytest.mark.slow)])
def test_proposals_leave_the_target(rule, how, potential):
    if how == "gradient":
        made = model(rule, steering=Steering(of_hot, 1.0, potential, gradient=True))
    else:
        made = model(rule, steering=Steering(reward, 1.0, potential), optimal=200)
    mass = target(rule)
    runs = [fk.infer(made, fk.SMC(12), seed=seed) for seed in range(24)]
    assert is_mean([np.exp(run.log_evidence) for run in runs], mass.sum())
    first = [np.exp(run.log_evidence) * run.expect(lambda x: x[0] + x[1] * x[2]) for run in runs]
    assert is_mean(first, mass @ F)


def test_the_gradient_is_the_change_of_the_reward():
    """Of a reward that is linear in one-hot tokens the gradient is λ times what each token adds, but for a constant."""
    made = model(InOrder("left"), steering=Steering(of_hot, 2.0, gradient=True))
    gradient = made.start(keys(1)).state.fields["gradient"][0]
    adds = np.zeros((L, V))
    adds[0, 1] += 0.7
    adds[:, 2] += 0.5
    adds[1, 0] -= 0.4
    np.testing.assert_allclose(gradient[:, :V], 2.0 * adds, atol=1e-6)


class Soft(Exact):
    """The exact network for one-hot tokens, too: the mixture of what it says of those that have weight."""

    def __call__(self, x, share):
        if not x.is_floating_point():
            return super().__call__(x, share)
        table = self.table.reshape(4, 4, 4, L, V + 1).clamp(min=-4.0).float()
        return torch.einsum("na,nb,nc,abclv->nlv", *x.unbind(1), table)


@pytest.mark.parametrize("samples", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_gradients_go_through_soft_networks(samples):
    soft = MaskedDiffusion(Network(Soft(), "logits", soft=True), L, InOrder("left"), vocabulary=V + 1,
                           steering=Steering(of_hot, gradient=True, samples=samples))  # fmt: skip
    hard = model(InOrder("left"), steering=Steering(of_hot, gradient=True, samples=samples))
    one, other = (made.start(keys(1)).state.fields["gradient"][0] for made in (soft, hard))
    assert float((one - other).abs().max()) > 0.05
    assert is_mean(evidences(soft, fk.SMC(12), 24), 2.3250770937939653)


@pytest.mark.parametrize("rule", [Ancestral(3), InOrder("left"), InOrder(), Confident(2)], ids=str)
def test_proposals_are_worth_more_than_none(rule):
    """Effective sizes of 300 runs, without resampling."""
    late = Steering(reward, 3.0, every=3 if rule != Confident(2) else 2)
    pairs = [
        (model(rule, steering=Steering(reward, 2.0)), model(rule, steering=Steering(of_hot, 2.0, gradient=True))),
        (model(rule, steering=late), model(rule, steering=late, optimal=100)),
    ]
    for plain, better in pairs:
        ess = [fk.infer(made, fk.ImportanceSampling(300), seed=0).ess for made in (plain, better)]
        assert ess[1] > 1.2 * ess[0]


def test_the_mask_may_be_any_token():
    """With the mask before the words, an optimal proposal's weights are those of the words."""
    logits = torch.tensor([9.0, 0.2, 1.1, -0.3])
    network = Network(lambda x, share: logits.expand(*x.shape, 4), "logits")
    made = MaskedDiffusion(network, 2, InOrder("left"), vocabulary=4, mask=0, optimal=7,
                           steering=Steering(lambda x: 1.0 * (x == 3).sum(1), every=2))  # fmt: skip
    mu = logits[1:].softmax(0).numpy()
    found = fk.infer(made, fk.ImportanceSampling(400), seed=0)
    assert is_mean(np.exp(found.log_weights), (mu @ np.exp([0, 0, 1])) ** 2)
    assert {int(t) for x in found.values for t in x} == {1, 2, 3}


def test_optimal_proposals_cost_what_they_try():
    made = model(InOrder("left"), steering=Steering(reward), optimal=100)
    found = fk.infer(made, fk.ImportanceSampling(10), seed=0)
    assert found.cost.nfe == 10 * (1 + 3 + 3)  # the last step reveals all, and asks nothing
    assert found.cost.reward_calls == 10 * (1 + 3 + 3 + 3)


# Twists


@pytest.mark.parametrize("order", ["uniform", "left", "probability"])
def test_exact_twists_with_optimal_proposals_leave_no_variance(order):
    made = model(InOrder(order), steering=Steering(reward, every=L), twist=hope, optimal=100)
    for seed in range(3):
        found = fk.infer(made, fk.SMC(5), seed=seed)
        assert np.exp(found.log_evidence) == pytest.approx(2.3250770937939653, rel=1e-11)
        assert found.ess == pytest.approx(5)


@pytest.mark.parametrize("twist", [hope, lambda x: 3.0 * (x == M).sum(1) - 2.0 * x[:, 1]], ids=["exact", "any"])
def test_twists_leave_the_target(twist):
    made = model(Ancestral(2), steering=Steering(reward, 1.5, every=2), twist=twist)
    assert is_mean(evidences(made, fk.SMC(16, ess_threshold=1.0), 40), 3.9152858472555563)
    done = made.start(keys(4))
    for seed in range(2):
        assert (done.log_twist != 0).any()
        done = made.advance(done.state, keys(4, seed))
    assert (done.log_twist == 0).all()


def test_twists_are_learned_over_masked_states():
    """Features of a text on its way are read from what was recorded; a learned twist lowers the variance."""
    length, logits = 8, torch.tensor([0.7, 0.3, 1.0]).log()
    network = Network(lambda x, share: logits.expand(*x.shape, 3), "logits")

    def late(x):
        return 1.2 * (x == 1).sum(1)

    def phi(x):
        return [1.0, float((x == 2).sum()), float((x == 1).sum())]

    def made(twist):
        return MaskedDiffusion(network, length, InOrder(), vocabulary=3, steering=Steering(late, every=length),
                               twist=lambda some: [twist(phi(x)) for x in some.numpy()], optimal=17)  # fmt: skip

    twist = fk.LinearTwist.fit(fk.infer(made(fk.LinearTwist()), fk.SMC(200), seed=0), phi)
    exact = (0.7 + 0.3 * np.exp(1.2)) ** length
    before, after = (evidences(made(one), fk.SMC(20), 10) for one in (fk.LinearTwist(), twist))
    assert is_mean(before, exact)
    assert is_mean(after, exact)
    assert np.log(after).std() < 0.3 * np.log(before).std()


# What is refused


def test_what_cannot_be_proposed_is_refused():
    good = Network(lambda x, share: torch.zeros(len(x), 3, 4), "logits")
    schedule = Schedule.vp(3)
    normal = Mixture([1.0], [[0.0]], [1.0]).denoiser(schedule)

    def make(rule, **settings):
        return MaskedDiffusion(good, 3, rule, vocabulary=4, **settings)

    refusals = [
        (Unsupported, "up to 64 texts from 3 masks and 3 tokens, and optimal=63",
         lambda: make(Ancestral(3), optimal=63)),
        (Unsupported, "up to 10 texts", lambda: make(InOrder(), optimal=9)),
        (Unsupported, "remask=0", lambda: make(Ancestral(3, remask=0.1), optimal=100)),
        (Unsupported, "greedy", lambda: make(Confident(3, greedy=True), optimal=100)),
        (Unsupported, "greedy", lambda: make(Confident(3, greedy=True), steering=Steering(of_hot, gradient=True))),
        (Unsupported, "without gradient, samples",
         lambda: make(InOrder(), optimal=100, steering=Steering(reward, samples=2))),
        (Unsupported, "without gradient, samples",
         lambda: make(InOrder(), optimal=100, steering=Steering(of_hot, gradient=True))),
        (Unsupported, "take the model without", lambda: anneal(make(InOrder(), optimal=100), 2.0)),
        (Unsupported, "take the model without", lambda: anneal(make(InOrder(), twist=hope), 2.0)),
        (ValueError, "at least 1", lambda: make(InOrder(), optimal=0)),
        (ValueError, "samples must be at least 0", lambda: Steering(reward, samples=-1)),
        (Unsupported, "MaskedDiffusion alone",
         lambda: Diffusion(normal, schedule, (1,), steering=Steering(lambda x: x[:, 0], samples=2))),
        (InvalidWeight, "finite number for each of 4 texts",
         lambda: fk.infer(make(InOrder(), twist=lambda x: x[:, 0].double().log() * 0 - np.inf), fk.SMC(4), seed=0)),
        (Unsupported, "cannot be differentiated",
         lambda: fk.infer(make(InOrder(), steering=Steering(lambda x: reward(x.argmax(-1)), gradient=True)), fk.SMC(4),
                          seed=0)),
        (ValueError, r"shape \(3,\), not \(3, 3\)",
         lambda: make(InOrder(), steering=Steering(reward, samples=2)).start(keys(1), [np.array([3, 3, 3])])),
    ]  # fmt: skip
    for kind, words, call in refusals:
        with pytest.raises(kind, match=words):
            call()


# Masks put on again


@pytest.mark.parametrize("rule", [InOrder(), Confident(2), Ancestral(4)], ids=str)
@pytest.mark.parametrize("samples", [0, 2])
def test_what_the_network_was_sure_of_stays(rule, samples):
    made = model(rule, steering=Steering(reward, samples=samples), keep=0.45)
    there = made.start(keys(300)).state
    sure = torch.zeros(300, L)
    for step in range(made.steps):
        after = made.advance(there, keys(300, step)).state
        new = (there.x == M) & (after.x != M)
        drawn = there.fields["log_mu"][...].gather(-1, after.x[..., None])[..., 0].exp()
        sure, there = torch.where(new, drawn.float(), sure), after
    back = made.renoise(there, keys(300, 9), 0).state
    assert torch.equal(back.x, torch.where(sure > 0.45, there.x, M))
    assert 0.03 < float((back.x != M).double().mean()) < 0.9
    for step in range(made.steps):
        back = made.advance(back, keys(300, 20 + step)).state
    assert not (back.x == M).any()
    assert torch.equal(torch.where(sure > 0.45, back.x, M), torch.where(sure > 0.45, there.x, M))


def test_prism_prunes_and_writes_again_what_was_not_sure():
    made = model(InOrder(), steering=Steering(reward), keep=0.5)
    found = fk.infer(made, fk.PathSearch(3, branches=4, first=3, back=3, forward=3 + 1), seed=0)
    plain = fk.infer(made, fk.ImportanceSampling(3), seed=0)
    assert REWARD[int(np.dot(found.best(), [9, 3, 1]))] >= max(REWARD[int(np.dot(x, [9, 3, 1]))] for x in plain.values)


def test_looked_ahead_children_are_judged_by_their_estimates():
    """S3: of each text's children the best by x̂₀ goes on; of many children it is the best that one can be."""
    made = model(InOrder("left"), steering=Steering(reward, 4.0))
    found = fk.infer(made, fk.SVDD(6, children=12, temperature=None), seed=0)
    assert np.mean([REWARD[int(np.dot(x, [9, 3, 1]))] for x in found.values]) > REWARD @ P + 0.4
    assert found.guarantee == "heuristic"


# Its own likelihood as the reward


@pytest.mark.parametrize("order", ["left", "uniform", "entropy"])
def test_self_rewarding_smc_is_a_power_of_the_law(order):
    """G = μ(revealed)^{β−1} one token at a time: Σ p^β, but for the order's own probability to the power."""
    found = evidences(model(InOrder(order)), fk.PowerSMC(20, power=2.0), 30)
    constant = 1 / 6 if order == "uniform" else 1.0
    assert is_mean(found, constant * 0.0441791653912866)
    runs = fk.infer(model(InOrder(order)), fk.PowerSMC(600, power=2.0), seed=0)
    assert abs(runs.expect(lambda x: x[0] + x[1] * x[2]) - 2.561200923787529) < 0.4
