"""Correctors as jump processes: exact laws of their steps by enumeration, and how they go to the target."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import lattices  # noqa: E402
from masked import P2, REWARD, STATES, F, M, P, V, distance, model  # noqa: E402

import feynkac as fk  # noqa: E402
from feynkac.diffusion import (  # noqa: E402
    Ancestral,
    AtRandom,
    InOrder,
    JumpDiffusion,
    Network,
    Steering,
    TokenTable,
    anneal,
    guide,
    product,
    tilt,
)  # fmt: skip
from feynkac.diffusion.generator import InvalidOutput  # noqa: E402
from feynkac.diffusion.latents import Latents  # noqa: E402
from feynkac.ppl.errors import InvalidWeight, Unsupported  # noqa: E402


def of_state(table):
    """Return the reward of tokens that a table (27,) holds; masks count as token 0."""
    table = torch.as_tensor(table)
    return lambda x: table[(x.where(x < V, 0) * torch.tensor([9, 3, 1])).sum(1)]


def drawn_anew(law=P, steps=8, **settings):
    """Return the jump process of a law over three tokens."""
    return JumpDiffusion(TokenTable(law.reshape(V, V, V)).ratios(), 3, steps, vocabulary=V, **settings)


def in_steps(steps):
    return lambda law=P: model(Ancestral(steps), law)


def anew(steps):
    return lambda law=P: drawn_anew(law, steps)


def mass_of(made, *, weighed=True):
    """Return what each final state weighs, (27,), by enumeration of all steps; paths that meet go on together."""
    masks = hasattr(made, "mask")
    states = np.array(np.meshgrid(*[range(V + masks)] * 3, indexing="ij")).reshape(3, -1).T
    start = made.start(fk.keys.fold(fk.keys.root(0), np.arange(len(states))), [*states])
    batch, mass = start.state, np.exp(start.log_prob + (start.log_potential if weighed else 0.0))
    at = np.arange(len(states))
    for _ in range(made.steps):
        before, to = (one.ravel() for one in np.meshgrid(at, np.arange(len(states)), indexing="ij"))
        can = ((states[before] == states[to]) | (states[before] == M)).all(1) if masks else np.full(len(to), True)
        before, to = before[can & (mass[before] > 0)], to[can & (mass[before] > 0)]
        rows = np.searchsorted(at, before)
        moved = made.advance(made.select(batch, rows), np.zeros(len(rows), np.uint64), [*states[to]])
        gain = np.exp(moved.log_prob + (moved.log_potential if weighed else 0.0))
        mass = np.bincount(to, mass[before] * gain, len(states))
        at, first = np.unique(to, return_index=True)
        batch = made.select(moved.state, first)
    return mass[(states < V).all(1)]


TARGETS = {
    "cold": (lambda of: anneal(of(), 2.0), P**2, 0.0441791653912866, 2.561200923787529),
    "hot": (lambda of: anneal(of(), 0.5), P**0.5, 5.0242694940892045, 2.211531852938937),
    "both": (lambda of: product([of(), of(P2)]), P * P2, 0.03823320928584087, 2.6488991888760136),
    "guided": (lambda of: product([of(), of(P2)], [2.5, -1.5]), P**2.5 * P2**-1.5, 2.0821500819025656,
               1.9172255803617544),
    "tilted": (lambda of: tilt(of(), of_state(REWARD), of="estimate"), P * np.exp(REWARD), 2.3250770937939653,
               3.034170901591366),
    "noisily": (lambda of: tilt(of(), of_state(REWARD)), P * np.exp(REWARD), 2.3250770937939653, 3.034170901591366),
    "cold, tilted": (lambda of: anneal(tilt(of(), of_state(0.5 * REWARD)), 2.0), P**2 * np.exp(REWARD), None, None),
}  # fmt: skip


@pytest.mark.parametrize("of", [in_steps, anew], ids=["masks", "tokens"])
@pytest.mark.parametrize("name", TARGETS)
def test_the_target_is_reached_as_steps_get_smaller(name, of):
    made, target, evidence, mean = TARGETS[name]
    if evidence:
        assert (target.sum(), target @ F / target.sum()) == pytest.approx((evidence, mean), rel=1e-12)
    errors, evidences = [], []
    for steps in (4, 8) if of is in_steps else (8, 16):
        mass = mass_of(made(of(steps)))
        errors.append(distance(mass / mass.sum(), target / target.sum()))
        evidences.append(np.log(mass.sum() / target.sum()))
    if of is in_steps:  # as C/T
        assert 0.45 < errors[1] / errors[0] < 0.6
        assert errors[1] < 0.05
        assert abs(evidences[1]) < 0.06
    else:  # as C/T², by a look back
        assert errors[1] / errors[0] < 0.45
        assert errors[1] < 0.003
        assert abs(evidences[1]) < 0.01


def test_the_power_one_is_the_model_itself():
    plain, powered = in_steps(4)(), anneal(in_steps(4)(), 1.0)
    assert mass_of(powered) == pytest.approx(mass_of(plain), rel=1e-12)
    keys = fk.keys.fold(fk.keys.root(0), np.arange(50))
    moved = powered.advance(powered.start(keys).state, keys)
    same = plain.advance(plain.start(keys).state, keys, [*moved.choices])
    assert moved.log_prob == pytest.approx(same.log_prob)
    assert moved.log_potential == pytest.approx(0.0, abs=1e-12)


def test_the_power_one_makes_good_for_steps_that_are_large():
    plain, powered = anew(12)(), anneal(anew(12)(), 1.0)
    assert mass_of(powered, weighed=False) == pytest.approx(mass_of(plain), rel=1e-12)
    assert distance(mass_of(plain), P) > 0.02
    corrected = mass_of(powered)
    assert distance(corrected / corrected.sum(), P) < 0.002


def test_a_reward_is_weighed_exactly_at_any_number_of_steps():
    target = mass_of(in_steps(2)()) * np.exp(REWARD)  # of the model's own law
    for kind in ("noisy", "estimate"):
        made = tilt(in_steps(2)(), of_state(REWARD), lambda s: s**2, of=kind)
        assert mass_of(made) == pytest.approx(target, rel=1e-9)


def test_tokens_gain_what_they_add_to_the_reward():
    made = tilt(drawn_anew(steps=4), of_state(REWARD), lambda s: 2.0)
    state = made.start(np.zeros(len(STATES), np.uint64), [*STATES]).state
    gain = made.gains(state, torch.ones(len(STATES), 3, V) > 0).numpy()
    table = REWARD.reshape(V, V, V)
    for i, (a, b, c) in enumerate(STATES):
        there = np.stack([table[:, b, c], table[a, :, c], table[a, b, :]])
        assert gain[i] == pytest.approx(2.0 * (there - table[a, b, c]), abs=1e-12)


def test_without_weights_the_law_is_another():
    for of, apart in ((in_steps(8), 0.09), (anew(24), 0.04)):
        unweighted = mass_of(anneal(of(), 2.0), weighed=False)
        assert unweighted.sum() == pytest.approx(1.0)
        assert distance(unweighted, P**2 / (P**2).sum()) > apart


def test_a_guide_over_conditions_is_the_product():
    first, second = (TokenTable(law.reshape(V, V, V)).ratios() for law in (P, P2))

    def network(x, sigma, condition):
        return torch.where(condition[:, None, None] == 1, first(x, sigma, None), second(x, sigma, None))

    one = JumpDiffusion(Network(network, "log_ratios"), 3, 4, vocabulary=V, condition=torch.ones(1))
    two = product([drawn_anew(P, 4), drawn_anew(P2, 4)], [2.5, -1.5])
    assert mass_of(guide(one, 2.5, torch.zeros(1))) == pytest.approx(mass_of(two), rel=1e-12)


def test_smc_is_unbiased_for_what_the_steps_come_to():
    made = tilt(anneal(drawn_anew(steps=6), 2.0), of_state(2 * REWARD))
    exact = mass_of(made).sum()
    found = np.exp([fk.infer(made, fk.SMC(8, ess_threshold=1.0), seed=seed).log_evidence for seed in range(25)])
    assert abs(found.mean() - exact) < 4.265 * found.std(ddof=1) / np.sqrt(len(found))  # 2e-5
    assert fk.infer(made, fk.SMC(2), seed=0).guarantee == "discretised"


@pytest.mark.parametrize("of", [in_steps(3), anew(5)], ids=["masks", "tokens"])
def test_draws_are_as_their_probability_says(of):
    made, n = tilt(anneal(of(), 1.7), of_state(REWARD)), 6000
    keys = fk.keys.fold(fk.keys.root(0), np.arange(n))
    state = made.start(fk.keys.fold(fk.keys.root(1), np.zeros(n, int))).state  # all at one place
    moved = made.advance(state, keys)
    tokens, first, count = np.unique(moved.state.x.numpy(), axis=0, return_index=True, return_counts=True)
    p = np.exp(moved.log_prob[first])
    assert 0.99 < p.sum() < 1 + 1e-12
    assert len(tokens) >= 20
    assert (np.abs(count / n - p) < 4.9 * np.sqrt(p * (1 - p) / n) + 3 / n).all()  # 1e-6 each
    again = made.advance(state, keys, [*moved.state.x.numpy()])
    assert again.log_prob == pytest.approx(moved.log_prob)
    assert again.log_potential == pytest.approx(moved.log_potential)


def test_what_cannot_come_about_has_no_probability():
    made = anneal(model(Ancestral(2)), 2.0)
    state = made.start(np.zeros(3, np.uint64), None).state
    there = made.advance(state, np.zeros(3, np.uint64), [np.array(x) for x in ((0, M, 1), (0, M, 1), (0, M, 1))]).state
    moved = made.advance(there, np.zeros(3, np.uint64), [np.array(x) for x in ((0, 2, 1), (1, 2, 1), (0, M, 1))])
    assert np.isfinite(moved.log_prob).tolist() == [True, False, False]  # another token, or a mask at the last step
    assert np.isfinite(moved.log_potential).tolist() == [True, False, False]


def test_particles_die_where_factors_have_no_token_in_common():
    with np.errstate(divide="ignore", invalid="ignore"):
        zero, one = (model(Ancestral(3), np.where(STATES[:, 0] == v, P, 0.0)) for v in (0, 1))
    with pytest.raises(fk.errors.AllParticlesDead):
        fk.infer(product([zero, one]), fk.SMC(20), seed=0)


def exact(p, made):
    """Return the mass of each state of a lattice at the end, weighed and not, by the matrices of all steps."""
    n, length = len(p), made.shape[0]
    states = torch.as_tensor(np.array(np.meshgrid(*[(0, 1)] * length, indexing="ij")).reshape(length, -1).T)
    start = made.start(fk.keys.fold(fk.keys.root(0), np.arange(n)), [*states.numpy()])
    weighed, drawn = np.exp(start.log_prob + start.log_potential), np.exp(start.log_prob)
    for step in range(made.steps):
        here = made.look(Latents(states, np.full(n, step), made.steps, (None,)))
        there = made.look(Latents(states, np.full(n, step + 1), made.steps, (None,)))
        law, kernel = made.laws(here).exp().numpy(), np.ones((n, 1))
        for at in range(length):
            kernel = (kernel[:, :, None] * law[:, at, None]).reshape(n, -1)
        ahead, behind = (one.fields[name].flatten(1).numpy() for one, name in ((here, "ahead"), (there, "behind")))
        put = np.eye(2)[states].reshape(n, -1).T  # which token each state has at each position
        seen = 0.0 if step + 1 == made.steps else -0.5 * (ahead @ put + (behind @ put).T)
        weighed, drawn = weighed @ (kernel * np.exp(seen)), drawn @ (kernel / kernel.sum(1, keepdims=True))
    return weighed, drawn


def test_the_lattices_are_those_of_the_literature():
    """Sums over all states of a lattice with two bonds a site."""
    _, energy = lattices.lattice(3, 0.1)
    for beta, mean in ((0.30, -1.010788813146), (0.35, -1.269089618294), (0.60, -1.959990533465)):
        assert lattices.law(energy, beta) @ energy / 9 == pytest.approx(mean, abs=1e-11)
    p = lattices.law(energy, 0.30)
    assert np.log((p ** (7 / 6)).sum()) == pytest.approx(-0.7142406586151, abs=1e-11)
    assert np.log((p**2).sum()) == pytest.approx(-3.0092293220187, abs=1e-11)
    spins, energy = lattices.lattice(4, 0.1)
    p = lattices.law(energy, 0.30)
    assert p @ energy / 16 == pytest.approx(-0.879085667790, abs=1e-11)
    assert p @ spins.mean(1) == pytest.approx(0.168825004588, abs=1e-11)
    assert np.log((p ** (7 / 6)).sum()) == pytest.approx(-1.3225353686584, abs=1e-11)
    noised = lattices.table(p).noised(6.0)
    assert np.log((p ** (7 / 6)).sum() / (noised ** (7 / 6)).sum()) == pytest.approx(0.5258568, abs=1e-6)


def test_a_lattice_is_cooled_and_the_error_is_as_one_over_steps_squared():
    _, energy = lattices.lattice(3, 0.1)
    p, target = lattices.law(energy, 0.30), lattices.law(energy, 0.60) @ energy / 9
    evidence, energies = [], []
    for steps in (10, 20):
        weighed, drawn = exact(p, anneal(JumpDiffusion(lattices.table(p).ratios(), 9, steps, vocabulary=2), 2.0))
        evidence.append(np.log(weighed.sum()) - np.log((p**2).sum()))
        energies.append((weighed @ energy / weighed.sum() / 9 - target, drawn @ energy / 9 - target))
    errors = np.array(energies)
    assert -0.024 < evidence[1] < -0.021
    assert 0.2 < evidence[1] / evidence[0] < 0.3
    assert 0.1 < errors[1, 0] / errors[0, 0] < 0.3
    assert errors[0, 1] > 20 * errors[0, 0] > 0  # without weights
    assert errors[1, 1] > 50 * errors[1, 0] > 0


def test_sharp_laws_are_cooled_by_steps_that_one_side_alone_would_not_do():
    """Seen from where a step begins alone, log Ẑ is 38 here, for two tokens that change together count twice."""
    pair, other = np.full((2, 2), 0.2) + 0.6 * np.eye(2), np.full((2, 2), 0.9) - 0.8 * np.eye(2)
    sharp = np.array([0.7, 0.3])[:, None, None] * pair[:, :, None] * other[None]
    weighed, _ = exact(sharp.ravel(), anneal(JumpDiffusion(TokenTable(sharp).ratios(), 3, 40, vocabulary=2), 4.0))
    assert np.log(weighed.sum()) == pytest.approx(np.log((sharp**4).sum()), abs=0.03)
    assert distance(weighed / weighed.sum(), (sharp**4 / (sharp**4).sum()).ravel()) < 0.03


def test_one_position_at_a_time_cools_a_lattice_exactly():
    _, energy = lattices.lattice(3, 0.1)
    p = lattices.law(energy, 0.30)
    left = fk.diffusion.MaskedDiffusion(lattices.table(p).conditionals(), 9, InOrder("left"), vocabulary=3)
    made = anneal(left, 2.0)
    states = np.array(np.meshgrid(*[(0, 1)] * 9, indexing="ij")).reshape(9, -1).T
    moved = made.start(fk.keys.fold(fk.keys.root(0), np.arange(512)))
    total, drawn = moved.log_potential.copy(), moved.log_prob.copy()
    for step in range(9):
        there = np.where(np.arange(9) <= step, states, 2)
        moved = made.advance(moved.state, np.zeros(512, np.uint64), [*there])
        total, drawn = total + moved.log_potential, drawn + moved.log_prob
    assert np.exp(total + drawn) == pytest.approx(p**2, rel=1e-9)
    assert np.exp(drawn) @ energy / 9 == pytest.approx(-1.7558202030095, abs=1e-9)  # without weights


def test_the_benchmark_of_lattices_runs(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parent.parent / "benchmarks"))
    import ising

    ising.main(["--short", "--folder", str(tmp_path)])
    assert "any order       T=  9       360 evaluations" in capsys.readouterr().out
    _, energy = lattices.lattice(3, 0.1)
    assert ising.energies(3) == pytest.approx(energy)


def test_noise_added_again_is_that_between_the_levels():
    made, n = drawn_anew(steps=4), 4000
    state = made.start(fk.keys.fold(fk.keys.root(1), np.zeros(n, int))).state
    for depth in range(3):
        state = made.advance(state, fk.keys.fold(fk.keys.root(2 + depth), np.zeros(n, int))).state
    again = made.renoise(state, fk.keys.fold(fk.keys.root(9), np.arange(n)), 2)
    assert (again.state.step == 2).all()
    assert (again.log_prob == 0).all()
    kept = np.exp(made.levels[3] - made.levels[2])
    share = (again.state.x == state.x).numpy().mean()
    chance = kept + (1 - kept) / V
    assert abs(share - chance) < 4.265 * np.sqrt(chance * (1 - chance) / (3 * n))  # 2e-5
    with pytest.raises(ValueError, match="depth 3"):
        made.renoise(state, fk.keys.fold(fk.keys.root(9), np.arange(n)), 3)


def test_steering_weighs_the_estimate():
    steered = drawn_anew(steps=3, steering=Steering(of_state(REWARD)))
    assert fk.infer(steered, fk.SMC(2000), seed=0).log_evidence == pytest.approx(
        np.log(mass_of(drawn_anew(steps=3)) @ np.exp(REWARD)), abs=0.05
    )


def test_ratios_of_no_law_give_no_token_a_negative_probability():
    wild = JumpDiffusion(
        Network(lambda x, sigma: torch.randn(*x.shape, V, generator=torch.Generator().manual_seed(1)), "log_ratios"),
        3, [6.0, 1.0, 0.0], vocabulary=V,
    )  # fmt: skip
    state = wild.start(fk.keys.fold(fk.keys.root(0), np.arange(20))).state
    assert state.fields["law"].exp().sum(-1).numpy() == pytest.approx(1.0)


def test_what_is_said_of_tokens_that_are_there_is_not_read():
    plain = TokenTable(P.reshape(V, V, V)).ratios()

    def network(x, sigma):
        return plain(x, sigma, None).scatter(-1, x[..., None], 7.0)

    loud = JumpDiffusion(Network(network, "log_ratios"), 3, 4, vocabulary=V)
    keys = fk.keys.fold(fk.keys.root(0), np.arange(9))
    law, same = (one.start(keys).state.fields["law"].numpy() for one in (loud, drawn_anew(steps=4)))
    assert law == pytest.approx(same)


def test_what_is_no_jump_process_is_refused():
    half = TokenTable((P * (STATES[:, 0] == 1)).reshape(V, V, V)).ratios()
    whole = Network(lambda x, sigma: torch.full((*x.shape, V), torch.inf), "log_ratios")
    short = Network(lambda x, sigma: torch.zeros(len(x), V), "log_ratios")
    drawn = [drawn_anew(), drawn_anew(P, 4)]

    def begun(network):
        return JumpDiffusion(network, 3, 4, vocabulary=V).start(np.zeros(1, np.uint64))

    refusals = [
        (ValueError, "log_ratios", lambda: JumpDiffusion(Network(None, "logits"), 3, 4, vocabulary=3)),
        (ValueError, "end at 0", lambda: drawn_anew(steps=[1.0, 2.0, 0.0])),
        (ValueError, "end at 0", lambda: drawn_anew(steps=[2.0, 1.0])),
        (Unsupported, "no gradient", lambda: drawn_anew(steering=Steering(of_state(REWARD), gradient=True))),
        (Unsupported, "replace steering", lambda: anneal(drawn_anew(steering=Steering(of_state(REWARD))), 2.0)),
        (ValueError, "masks it again|masks none again", lambda: anneal(model(Ancestral(4, remask=0.5)), 2.0)),
        (ValueError, "by InOrder", lambda: anneal(model(AtRandom(3)), 2.0)),
        (ValueError, "one kind", lambda: product([drawn_anew(), model(InOrder())])),
        (ValueError, "one length", lambda: product(drawn)),
        (TypeError, "zeta", lambda: anneal(drawn_anew(), 2.0, zeta=1.0)),
        (ValueError, "finite", lambda: anneal(drawn_anew(), np.inf)),
        (InvalidWeight, "no probability of token", lambda: mass_of(
            product([drawn_anew(steps=2), JumpDiffusion(half, 3, 2, vocabulary=V)], [2.0, -1.0]))),
        (InvalidOutput, "no ratios for particle 0", lambda: begun(whole)),
        (InvalidOutput, "returned", lambda: begun(short)),
        (ValueError, "tokens are 0 to 2", lambda: drawn_anew().start(np.zeros(1, np.uint64), [np.array([0, 3, 1])])),
        (ValueError, "as long on all sides", lambda: TokenTable([[0.5, 0.5]])),
    ]  # fmt: skip
    for kind, words, call in refusals:
        with pytest.raises(kind, match=words):
            call()
