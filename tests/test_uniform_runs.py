"""Engines over diffusion with uniform noise: evidence, Markov chains, prompts, blocks, ends, and what is refused."""

import itertools
import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import feynkac as fk  # noqa: E402
from feynkac.diffusion import (  # noqa: E402
    BlockRefinement,
    DiscreteDDIM,
    EntropyBound,
    InOrder,
    JumpDiffusion,
    MaskedDiffusion,
    Network,
    Ratios,
    Steering,
    UniformDiffusion,
    anneal,
    guide,
    product,
    tilt,
)
from feynkac.diffusion.generator import InvalidOutput  # noqa: E402
from feynkac.ppl.errors import Unsupported  # noqa: E402
from walks import drift, drive, forced, keys_of, value_of  # noqa: E402

K, L = 2, 2
LAW = torch.tensor(np.random.default_rng(3).normal(size=(4, L, K)))
TABLE = torch.tensor([0.9, -0.6, 0.2, 1.3], dtype=torch.float64)
RULES = [DiscreteDDIM(3), EntropyBound(2, 0.4, 1.3, 0.9, settle=False), BlockRefinement(2, 0.7)]


def network(x, share):
    return LAW[x @ torch.tensor([2, 1])] * (1 + share[:, None, None])


def reward(x):
    return TABLE[x @ torch.tensor([2, 1])]


def model(rule, fn=network, length=L, vocabulary=K, **settings):
    return UniformDiffusion(Network(fn, "logits"), length, rule, vocabulary=vocabulary, **settings)


def paths_of(made):
    """All paths of a model of two bits, and their probability times their weight."""
    lowest = -K if made.rule.commits else 0
    states = np.array(list(itertools.product(range(lowest, K), repeat=L)))
    start = made.start(np.zeros(len(states), np.uint64), [*states])
    paths, batch, log_mass = [[x] for x in states], start.state, start.log_prob + start.log_potential
    for _ in range(made.steps):
        index = np.repeat(np.arange(len(batch)), len(states))
        moved = made.advance(made.select(batch, index), np.zeros(len(index), np.uint64), [*states] * len(batch))
        log_mass = log_mass[index] + moved.log_prob + moved.log_potential
        kept = np.flatnonzero(log_mass > -np.inf)
        paths = [[*paths[i // len(states)], states[i % len(states)]] for i in kept]
        batch, log_mass = made.select(moved.state, kept), log_mass[kept]
    return paths, np.exp(log_mass)


@pytest.mark.parametrize(
    ("rule", "potential", "runs"),
    [
        (RULES[2], "difference", 40),
        *(
            pytest.param(rule, potential, 150, marks=pytest.mark.slow)
            for rule in RULES
            for potential in ("difference", "current")
        ),
    ],
    ids=str,
)
def test_smc_is_unbiased(rule, potential, runs):
    made = model(rule, steering=Steering(reward, 1.2, potential))
    paths, mass = paths_of(made)
    plain, share = paths_of(model(rule))
    assert share.sum() == pytest.approx(1, abs=1e-9)
    target = sum(p * math.exp(1.2 * TABLE[int(path[-1] @ [2, 1])]) for path, p in zip(plain, share))
    assert mass.sum() == pytest.approx(target, rel=1e-9)
    runs = fk.infer([made] * runs, fk.SMC(6, ess_threshold=1.0), seed=0)
    found = np.exp([run.log_evidence for run in runs])
    mean = np.array([z * run.expect(lambda x: x[0] - 0.5 * x[1]) for z, run in zip(found, runs)])
    exact = sum(m * (path[-1][0] - 0.5 * path[-1][1]) for path, m in zip(paths, mass))
    for numbers, truth in (found, mass.sum()), (mean, exact):  # 14 comparisons: 2.8e-4
        assert abs(numbers.mean() - truth) < 4.265 * numbers.std(ddof=1) / np.sqrt(len(numbers))


@pytest.mark.parametrize("rule", [DiscreteDDIM(2), BlockRefinement(2, 0.7)], ids=str)
@pytest.mark.parametrize("engine", [fk.SuffixMH(1), pytest.param(fk.ParticleGibbs(2, 1), marks=pytest.mark.slow)])
def test_chains_leave_the_target_as_it_is(rule, engine):
    made = model(rule, steering=Steering(reward, 1.2))
    paths, mass = paths_of(made)
    n = 600
    drawn = np.searchsorted(np.cumsum(mass / mass.sum())[:-1], fk.keys.uniform(keys_of(n, 7)), side="right")
    walked = dict(zip(np.unique(drawn).tolist(), forced(made, [paths[i] for i in np.unique(drawn)])))
    begin = [walked[i] for i in drawn.tolist()]
    if isinstance(engine, fk.SuffixMH):
        ((after, _),) = drive(made, [engine.move(made, begin, keys_of(n, 8), None, np.ones(n))])
    else:
        sweeps = [engine._sweep(made, path, keys_of(n, 9)[[i]]) for i, path in enumerate(begin)]
        after = [path for (path,), _ in drive(made, sweeps)]
    before, after = ([tuple(value_of(made, path)) for path in many] for many in (begin, after))
    assert np.mean([a != b for a, b in zip(before, after)]) > 0.1
    assert drift(before, after, list(itertools.product(range(K), repeat=L))) < 4.265  # 16 comparisons: 3e-4


def varied(x, share):
    """Laws over four tokens that depend on the place and on the first token."""
    place = torch.arange(x.shape[1])[:, None] * torch.arange(4)[None]
    return (0.7 * place + 0.4 * x[:, :1, None]).sin().double() * 2


@pytest.mark.parametrize("rule", [DiscreteDDIM(2), EntropyBound(2), BlockRefinement(2)], ids=str)
def test_blocks_and_prompts(rule):
    made = model(rule, varied, 6, 4, template=[3, 1, -1, -1, 2, -1], block=2)
    assert (made.blocks, made.steps) == (2, 4)
    start = made.start(keys_of(50))
    assert start.log_prob == pytest.approx(-3 * math.log(4))
    state = start.state
    for step in range(4):
        moved = made.advance(state, keys_of(50, step + 1))
        same = (moved.state.x == state.x).all(0)
        assert same[[0, 1, 4, *((2, 3) if step > 1 else (5,))]].all()
        assert step % 2 or not same.all()
        assert np.isfinite(moved.log_prob).all()
        again = made.advance(state, keys_of(50, 99), list(moved.choices))
        np.testing.assert_array_equal(again.log_prob, moved.log_prob)
        np.testing.assert_array_equal(again.state.x, moved.state.x)
        other = moved.choices[0].copy()
        other[0] = 0
        assert made.advance(state, keys_of(50), [other] * 50).log_prob.max() == -np.inf  # the prompt stays
        state = moved.state
    values = np.array(made.values(state))
    assert (values[:, [0, 1, 4]] == [3, 1, 2]).all()
    assert (values >= 0).all()
    wrong = start.choices[0].copy()
    wrong[4] = 0
    assert made.start(keys_of(1), [wrong]).log_prob[0] == -np.inf


def test_particles_may_be_at_times_of_their_own():
    made = model(BlockRefinement(3), varied, 4, 4, block=2, steering=Steering(lambda x: x.double().sum(1), 0.2))
    keys = keys_of(3)
    states = [made.start(keys).state]
    for step in range(made.steps):
        states.append(made.advance(states[-1], keys_of(3, step)).state)
    several = [0, 2, 3, 5, 6]
    mixed = made.advance(made.concat([states[i].select([1]) for i in several]), keys_of(5, 1))
    for row, i in enumerate(several):
        alone = made.advance(states[i].select([1]), keys_of(5, 1)[[row]])
        np.testing.assert_array_equal(mixed.state.x[row], alone.state.x[0])
        assert mixed.log_prob[row] == pytest.approx(alone.log_prob[0], abs=1e-12)
        assert mixed.log_potential[row] == pytest.approx(alone.log_potential[0], abs=1e-12)
    assert mixed.done.tolist() == [False, False, False, True, True]


def test_a_text_that_has_ended_asks_nothing_more():
    calls = []

    def counted(x, share):
        calls.append(len(x))
        return varied(x, share)

    made = model(DiscreteDDIM(2), counted, 6, 4, block=2, end=[2], pad=3)
    found = fk.infer(made, fk.ImportanceSampling(300), seed=0)
    texts = np.array(found.values)
    first, second = ((texts[:, :2] == 2).any(1), (texts[:, :4] == 2).any(1))
    assert (texts[first, 2:] == 3).all()
    assert (texts[second, 4:] == 3).all()
    assert (texts[~first, 2:4] != 3).any()
    assert all(x[1] == 3 for x in texts if x[0] == 2)  # in its own block, too, values are cut
    assert found.cost.nfe == sum(calls) == 2 * (300 + (~first).sum() + (~second).sum())
    state = made.start(keys_of(1)).state
    for step, x in enumerate([[2, 0, 1, 1, 1, 1], [2, 0, 1, 1, 1, 1], [2, 0, 3, 3, 1, 1]]):
        moved = made.advance(state, keys_of(1, step), [np.array(x)])
        other = made.advance(state, keys_of(1, step), [np.array([*x[:2], 3, 1, *x[4:]])])
        state = moved.state
    assert (moved.log_prob[0], other.log_prob[0]) == (0, -np.inf)
    state = made.start(keys_of(40)).state
    for step in range(made.steps):
        np.testing.assert_array_equal(made.values(state), state.fields["estimate"])
        state = made.advance(state, keys_of(40, step)).state
    np.testing.assert_array_equal(made.values(state), state.fields["estimate"])  # which is what rewards see


def test_noise_put_back_is_that_of_the_forward_process():
    n, clean = 6000, np.array([3, 0, 1, 2])
    made = model(DiscreteDDIM(4), varied, 4, 4)
    state = made.start(keys_of(n)).state
    done = type(state)(torch.tensor(clean).repeat(n, 1), np.full(n, 4), 4, None, state.fields)
    for depth in (3, 1, 0):
        back = made.renoise(done, keys_of(n, depth), depth).state
        share = (back.x == torch.tensor(clean)).double().mean(0)
        kept = depth / 4 + (1 - depth / 4) / 4
        assert (abs(share - kept) < 5 * math.sqrt(kept * (1 - kept) / n) + 1e-12).all()  # 12 comparisons: 7e-6
        assert (back.depth == depth).all()
        again = made.renoise(back, keys_of(n, 9), 0).state if depth else back
        assert abs((again.x == torch.tensor(clean)).double().mean() - 0.25) < 5 * math.sqrt(0.1875 / 4 / n)
    refined = model(BlockRefinement(4, 0.8), varied, 4, 4, block=2)
    end = refined.start(keys_of(50)).state
    for step in range(refined.steps):
        end = refined.advance(end, keys_of(50, step)).state
    back = refined.renoise(end, keys_of(50, 99), 6).state
    assert ((back.x >= 0).sum(1) == 2 + 1).all()  # the first block, and what is owed after two steps of the second
    assert ((back.x < 0) | (back.x == end.x)).all()
    assert (refined.renoise(end, keys_of(50, 99), 3).state.x[:, 2:] < 0).all()
    with pytest.raises(ValueError, match="one before it"):
        refined.renoise(end, keys_of(50), refined.steps)
    with pytest.raises(Unsupported, match=r"PathSearch adds noise again, and .*EntropyBound.* has no method renoise"):
        fk.infer(model(EntropyBound(3)), fk.PathSearch(2, branches=2, first=2, back=1, forward=2), seed=0)


@pytest.mark.parametrize("rule", [DiscreteDDIM(3), BlockRefinement(2, 0.7)], ids=str)
def test_steps_are_kernels_of_programs(rule):
    made = model(rule)

    @fk.program
    async def written():
        particle = await fk.sample("noise", fk.diffusion.begin(made))
        while not particle.done:
            particle = await fk.sample("step", fk.diffusion.denoise(particle))
        await fk.factor("reward", float(reward(torch.tensor(particle.image[None]))[0]))
        return tuple(particle.image.tolist())

    paths, mass = paths_of(made)
    exact = sum(m * math.exp(TABLE[int(path[-1] @ [2, 1])]) for path, m in zip(paths, mass))
    found = np.exp([run.log_evidence for run in fk.infer([written()] * 30, fk.SMC(8), seed=0)])
    assert abs(found.mean() - exact) < 4.265 * found.std(ddof=1) / np.sqrt(30)  # 2e-5
    assert len(fk.infer(written(), fk.SuffixMH(20), seed=0).values) > 0


def test_values_are_what_decode_makes_of_tokens():
    made = model(BlockRefinement(3), varied, 3, 4, decode=lambda x: ["".join("abcd"[t] for t in row) for row in x])
    assert all(set(text) <= set("abcd") for text in fk.infer(made, fk.SMC(8), seed=0).values)
    assert len(made.values(made.start(keys_of(3)).state)[0]) == 3


def test_networks_of_uniform_noise_are_networks_of_ratios():
    said = Network(network, "logits")
    ddim, x = UniformDiffusion(said, L, DiscreteDDIM(4), vocabulary=K), list(itertools.product(range(K), repeat=L))
    jumps = JumpDiffusion(Ratios(said), L, [-math.log(i / 4) for i in (1, 2, 3, 4)], vocabulary=K)
    start = ddim.start(keys_of(4), [np.array(one) for one in x]).state
    for step in range(3):  # the steps between the same α, whatever the network says
        here = type(start)(start.x, np.full(4, step + 1), 4, None)
        there = type(start)(start.x, np.full(4, step), 3, None)
        index, after = np.repeat(np.arange(4), 4), [np.array(one) for one in x] * 4
        one, other = (
            made.advance(made.select(made.look(state), index), keys_of(16), after).log_prob
            for made, state in ((ddim, here), (jumps, there))
        )
        assert other == pytest.approx(one, abs=1e-5)  # whose σ is of single precision
    with pytest.raises(ValueError, match='made of "logits"'):
        Ratios(Network(network, "sample"))


def test_particles_are_smoothed_backward():
    made = model(BlockRefinement(2, 0.7), steering=Steering(reward, 1.2))
    paths, mass = paths_of(made)
    smoothed = fk.smooth(fk.infer(made, fk.SMC(250), seed=0), 250, seed=1, model=made)
    exact = sum(m * path[-1][0] for path, m in zip(paths, mass)) / mass.sum()
    assert abs(np.mean([x[0] for x in smoothed.values]) - exact) < 0.15


def test_what_cannot_be_made_right_is_refused():
    good = Network(lambda x, share: torch.zeros(len(x), 3, 4), "logits")
    nan = Network(lambda x, share: torch.full((len(x), 3, 4), torch.nan), "logits")
    small = Network(lambda x, share: torch.zeros(len(x), 3, 3), "logits")
    rule, masks = DiscreteDDIM(2), MaskedDiffusion(good, 3, InOrder(), vocabulary=4)

    def made(network=good, length=3, rule=rule, vocabulary=4, **settings):
        return UniformDiffusion(network, length, rule, vocabulary=vocabulary, **settings)

    plain = made()
    state = plain.start(keys_of(1)).state
    refusals = [
        (ValueError, 'predicts "logits"', lambda: made(Network(lambda x, t: x, "sample"))),
        (ValueError, "temperature must be positive", lambda: made(temperature=0.0)),
        (ValueError, "3 tokens, -1 where", lambda: made(template=[1, 2])),
        (ValueError, "3 tokens, -1 where", lambda: made(template=[1, 2, 0])),
        (ValueError, "none of the 4", lambda: made(template=[1, 7, -1])),
        (ValueError, "must divide the 3 positions: 2", lambda: made(block=2)),
        (TypeError, "block must be a whole", lambda: made(block=1.5)),
        (ValueError, "that end a text", lambda: made(end=[4])),
        (ValueError, "not pad=9", lambda: made(end=[1], pad=9)),
        (ValueError, "vocabulary must be at least 2", lambda: made(vocabulary=1)),
        (Unsupported, "no gradient", lambda: made(steering=Steering(torch.sum, gradient=True))),
        (ValueError, "count", lambda: DiscreteDDIM(0)),
        (ValueError, "bound must be", lambda: EntropyBound(2, -1.0)),
        (ValueError, "positive and fall", lambda: EntropyBound(2, hottest=0.3)),
        (ValueError, "threshold", lambda: BlockRefinement(2, 1.5)),
        (InvalidOutput, "NaN", lambda: fk.infer(made(nan), fk.SMC(2), seed=0)),
        (InvalidOutput, "not the logits of 4", lambda: fk.infer(made(small), fk.SMC(2), seed=0)),
        (Unsupported, "UniformDiffusion", lambda: anneal(plain, 2.0)),
        (Unsupported, "UniformDiffusion", lambda: product([plain, plain])),
        (ValueError, "not of both", lambda: product([masks, plain])),
        (Unsupported, r"JumpDiffusion\(Ratios\(network\).*not a UniformDiffusion", lambda: anneal(plain, 0.5)),
        (Unsupported, "UniformDiffusion", lambda: guide(plain, 2.0, torch.zeros(1))),
        (Unsupported, "UniformDiffusion", lambda: tilt(plain, lambda x: x.sum(1), of="estimate")),
        *((ValueError, "particle 0 was given .*tokens are 0 to 3", lambda x=x: plain.advance(state, keys_of(1), [x]))
          for x in (np.array([7, 0, 0]), np.array([-1, 0, 0]), np.array([0.5, 0, 0]))),
    ]  # fmt: skip
    for kind, words, call in refusals:
        with pytest.raises(kind, match=words):
            call()
