"""Steps of unmasking in programs: any text, count, rule and model; and methods that are such programs."""

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from masked import P2, REWARD, STATES, Exact, F, L, M, P, V, conditionals, model  # noqa: E402

import feynkac as fk  # noqa: E402
from feynkac.diffusion import (  # noqa: E402
    Ancestral,
    AtRandom,
    Confident,
    InOrder,
    MaskedDiffusion,
    Network,
    Steering,
    anneal,
    unmask,
)
from feynkac.ppl.cost import Ledger, recording  # noqa: E402

ONE, OTHER = model(InOrder()), model(InOrder(), P2)
EVERY = list(itertools.product(range(V + 1), repeat=L))


def keys(n, seed=0):
    return fk.keys.fold(fk.keys.root(seed), np.arange(n))


def law(step):
    """Return all texts that a step may lead to, with their probabilities."""
    return {x: p for x, p in zip(EVERY, np.exp(step.log_prob_batch([step] * len(EVERY), EVERY))) if p > 0}


STEPS = [
    unmask(ONE),
    unmask(ONE, (M, 1, M)),
    unmask(ONE, (M, 1, M), 1, InOrder("entropy")),
    unmask(ONE, None, 2, AtRandom(1)),
    unmask(ONE, None, 2, Confident(1)),
    unmask(ONE, None, 1, Confident(1, 0.4)),
    unmask(ONE, (M, M, 2), 5, Confident(1)),
    unmask(OTHER, None, 3, AtRandom(1), temperature=0.5),
    unmask(ONE, None, 1, AtRandom(1), among=[0, 2]),
    unmask(ONE, (0, 1, 2)),
    unmask(ONE, (0, M, 2), among=[0]),
    unmask(ONE, None, 2, Confident(1, greedy=True)),
]


@pytest.mark.parametrize("step", STEPS, ids=str)
def test_steps_have_a_law_and_are_drawn_by_it(step):
    p = law(step)
    assert sum(p.values()) == pytest.approx(1, abs=1e-9)
    n = 3000
    drawn = step.sample_batch([step] * n, keys(n))
    assert np.exp(drawn.log_prob) == pytest.approx([p[x] for x in drawn.values])
    for x, q in p.items():
        assert abs(drawn.values.count(x) / n - q) < 5.5 * np.sqrt(q * (1 - q) / n) + 1e-9  # 4e-8 each


def test_what_a_step_says_is_what_it_does():
    mu = conditionals(P, np.array([M, 1, M]))
    assert law(unmask(ONE, (M, 1, M), 1, InOrder("left")))[2, 1, M] == pytest.approx(mu[0, 2])
    cold = mu[0] ** 2 / (mu[0] ** 2).sum()
    assert law(unmask(ONE, (M, 1, M), temperature=0.5, rule=InOrder("left")))[2, 1, M] == pytest.approx(cold[2])
    assert law(unmask(ONE, (M, 1, M), 2, AtRandom(1)))[2, 1, 0] == pytest.approx(mu[0, 2] * mu[2, 0])
    assert set(law(unmask(ONE, None, among=[1]))) == {(M, v, M) for v in range(V)}
    assert law(unmask(ONE, (0, 1, 2))) == {(0, 1, 2): 1.0}
    surest = np.argmax(mu[[0, 2]].max(1))
    greedy = law(unmask(ONE, (M, 1, M), 1, Confident(1, greedy=True)))
    assert list(greedy.values()) == [1.0]
    assert next(iter(greedy))[[0, 2][surest]] == mu[[0, 2][surest]].argmax()


def test_steps_of_a_model_share_one_call_and_do_not_mind_each_other():
    network = Exact()
    mine = MaskedDiffusion(Network(network, "logits"), L, vocabulary=V + 1)
    steps = [unmask(mine), unmask(mine, (M, 1, M), 2, AtRandom(1)), unmask(mine, None, 1, Confident(1, 0.3))]
    steps.append(unmask(mine))
    with recording(Ledger()) as ledger:
        together = steps[0].sample_batch(steps, keys(4))
    assert network.calls == 1
    assert ledger.total().nfe == 4
    for i, step in enumerate(steps):
        alone = step.sample_batch([step], keys(4)[[i]])
        assert alone.values[0] == together.values[i]
        assert alone.log_prob[0] == pytest.approx(together.log_prob[i])


def reward(x):
    return float(REWARD[int(np.dot(x, [9, 3, 1]))])


@fk.program
async def written(start=None):
    x = await fk.sample("step", unmask(ONE, start))
    while M in x:
        x = await fk.sample("step", unmask(ONE, x))
    await fk.factor("reward", reward(x))
    return x


def test_programs_of_steps_are_unbiased():
    found = np.exp([fk.infer(written(), fk.SMC(20), seed=seed).log_evidence for seed in range(30)])
    assert abs(found.mean() - 2.3250770937939653) < 4.265 * found.std(ddof=1) / np.sqrt(30)  # 2e-5


def test_gaps_are_filled_by_their_law():
    fits = (STATES[:, 0] == 2) & (STATES[:, 2] == 0)
    mass = np.where(fits, P * np.exp(REWARD), 0.0)
    found = fk.infer(written((2, M, 0)), fk.ImportanceSampling(400), seed=0)
    exact = mass @ F / mass.sum()
    assert all(x[0] == 2 and x[2] == 0 for x in found.values)
    assert abs(found.expect(lambda x: x[0] + x[1] * x[2]) - exact) < 1e-9  # x2 = 0, and f = x0
    ones = mass @ (STATES[:, 1] == 1) / mass.sum()
    assert abs(found.expect(lambda x: x[1] == 1) - ones) < 4.265 * np.sqrt(0.25 / 400) * 1.5  # 2e-5; weights vary


def test_what_was_sure_is_kept_and_the_rest_is_written_again():
    """Masks put on again where the network was not sure, in a program: the law of both passes together."""

    @fk.program
    async def revised():
        first = await fk.sample("draft", unmask(ONE, None, L, AtRandom(1)))
        return await fk.sample("again", unmask(ONE, (first[0], M, M), 2, AtRandom(1)))

    found = fk.infer(revised(), fk.ImportanceSampling(2000), seed=0)
    first = np.array([P[STATES[:, 0] == v].sum() for v in range(V)])
    exact = sum(first[v] * conditionals(P, np.array([v, M, M]))[2, 1] for v in range(V))
    assert abs(found.expect(lambda x: x[2] == 1) - exact) < 4.265 * np.sqrt(0.25 / 2000)  # 2e-5


# UnMaskFork: a tree over what is certain, whose children are actions

ACTIONS = [(ONE, Confident(1, greedy=True)), (OTHER, Confident(1, greedy=True)), (ONE, Confident(1, 0.3, greedy=True))]


def filled(x):
    """Return the estimate: masks filled by the likeliest tokens of the first model."""
    return tuple(conditionals(P, np.array(x))[i].argmax() if t == M else t for i, t in enumerate(x))


@fk.program
async def forked():
    x = (M,) * L
    while M in x:
        action = await fk.sample("action", fk.dist.DiscreteUniform(0, len(ACTIONS) - 1))
        chosen, rule = ACTIONS[action]
        x = await fk.sample("step", unmask(chosen, x, 1, rule))
        await fk.factor("estimate", reward(filled(x)))
    return x


def reached():
    """Return all ends of the tree with their probability under uniform actions."""
    mass, done = {(M,) * L: 1.0}, {}
    while mass:
        after = {}
        for x, p in mass.items():
            for chosen, rule in ACTIONS:
                (y,) = law(unmask(chosen, x, 1, rule))
                where = after if M in y else done
                where[y] = where.get(y, 0.0) + p / len(ACTIONS)
        mass = after
    return done


def test_forks_draw_actions_and_the_rest_is_certain():
    ends = reached()
    found = fk.infer(forked(), fk.TreeSearch(40), seed=0)
    assert tuple(found.best()) in ends
    assert sum(ends.values()) == pytest.approx(1)
    assert len(ends) > 1


@pytest.mark.parametrize("engine", [fk.MCTS(30, width=4), fk.BeamSearch(8, width=3), fk.TreeSearch(30), fk.AStar(40)],
                         ids=str)  # fmt: skip
def test_tree_engines_find_the_best_end_of_forks(engine):
    ends = reached()
    best = fk.infer(forked(), engine, seed=0).best()
    assert reward(best) == max(reward(x) for x in ends)


def test_equal_texts_by_other_actions_are_other_children():
    """Two actions that lead to the same text are two choices, each with its probability."""

    @fk.program
    async def once():
        action = await fk.sample("action", fk.dist.DiscreteUniform(0, 1))
        x = await fk.sample("step", unmask((ONE, ONE)[action], None, 1, Confident(1, greedy=True)))
        await fk.factor("some", 1.0 * action)
        return action, x

    found = fk.infer(once(), fk.MCTS(1, width=16, moves=False), seed=0)
    assert len({value[0] for value in found.values}) == 2


# What is refused


def test_what_is_no_step_is_refused():
    steered = model(InOrder(), steering=Steering(lambda x: x[:, 0]))
    refusals = [
        (ValueError, "by a schedule", lambda: unmask(ONE, None, 1, Ancestral(2))),
        (ValueError, "one position, not 2", lambda: unmask(ONE, None, 2)),
        (ValueError, "is of several", lambda: unmask(ONE, None, 2, Confident(3))),
        (ValueError, "positive and finite", lambda: unmask(ONE, temperature=0.0)),
        (ValueError, "a text is 3 tokens", lambda: unmask(ONE, (M, M))),
        (ValueError, "a text is 3 tokens", lambda: unmask(ONE, (M, M, 4))),
        (ValueError, "positions are 0 to 2", lambda: unmask(ONE, among=[3])),
        (ValueError, "weighs particles itself", lambda: unmask(steered)),
        (TypeError, "network of a MaskedDiffusion", lambda: unmask(anneal(ONE, 2.0))),
        (ValueError, "count must be at least 1", lambda: unmask(ONE, None, 0)),
        (ValueError, "batch of several", lambda: unmask(model(InOrder(), condition=torch.zeros(2)))),
    ]  # fmt: skip
    for kind, words, call in refusals:
        with pytest.raises(kind, match=words):
            call()
