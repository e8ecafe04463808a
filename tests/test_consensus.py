"""What a posterior likes best as a whole, and votes in which rewards are added up."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

import feynkac as fk

TABLE = np.array([[1.0, 0.6, 0.2], [0.6, 1.0, 0.3], [0.2, 0.3, 1.0]])


@fk.program
async def answers(rewards):
    """Each answer is an iteration of its own: which, and what it is worth."""
    i = await fk.sample("i", fk.dist.Categorical([1 / len(rewards)] * len(rewards)))
    name, reward = rewards[i]
    await fk.factor("reward", math.log(reward))
    return name


def posterior_of(rewards):
    """A posterior that has each answer once, weighed by its reward."""
    exact = fk.infer(answers(rewards), fk.ImportanceSampling(400), seed=0)
    first = [exact.site("i").index(i) for i in range(len(rewards))]
    chain = exact.chains[0]
    kept = fk.infer(answers(rewards), fk.ImportanceSampling(len(rewards)), seed=0)
    return replace(
        kept,
        values=tuple(exact.values[i] for i in first),
        chains=(replace(kept.chains[0], log_weights=chain.log_weights[first]),),
    )


def test_the_most_liked_need_not_be_the_commonest():
    posterior = posterior_of([("a", 0.3), ("b", 0.3), ("c", 0.4)])
    assert next(iter(posterior.vote())) == "c"
    assert posterior.mbr(TABLE) == "b"
    assert posterior.mbr(lambda one, other: TABLE["abc".index(one), "abc".index(other)]) == "b"
    assert posterior.mbr(lambda one, other: one == other) == "c"


def test_rewards_are_added_up_by_answer():
    """A has the best answer, C the most of them, and B the largest sum."""
    scores = [("A", 0.9), ("B", 0.6), ("B", 0.5), ("C", 0.4), ("C", 0.35), ("C", 0.05)]
    posterior = posterior_of(scores)
    votes = posterior.vote()
    assert list(votes) == ["B", "A", "C"]
    assert votes["B"] / votes["A"] == pytest.approx(1.1 / 0.9)
    assert posterior.best("weight") == "A"


SCORES = [("A", 0.9), ("B", 0.6), ("B", 0.5), ("C", 0.4), ("C", 0.35), ("C", 0.05)]


@pytest.mark.parametrize(
    ("pool", "order", "most"),
    [
        ("sum", "BAC", 1.1),
        ("max", "ABC", 0.9),
        ("min", "ABC", 0.9),
        ("mean", "ABC", 0.9),
        ("logsumexp", "CBA", math.log(math.exp(0.4) + math.exp(0.35) + math.exp(0.05))),
    ],
)
def test_rewards_are_pooled_by_answer_whatever_the_weights(pool, order, most):
    posterior = posterior_of([(name, 1.0) for name, _ in SCORES])
    assert next(iter(posterior.vote())) == "C"
    votes = posterior.vote(reward=[score for _, score in SCORES], pool=pool)
    assert "".join(votes) == order
    assert next(iter(votes.values())) == pytest.approx(most, rel=1e-12)
    heavy = replace(posterior, chains=(replace(posterior.chains[0], log_weights=np.array([-np.inf] * 5 + [0.0])),))
    assert heavy.vote(reward=[score for _, score in SCORES], pool=pool) == votes


def test_what_ties_keeps_the_order_of_its_draws():
    posterior = posterior_of([("B", 1.0), ("A", 1.0), ("A", 1.0), ("C", 1.0)])
    assert list(posterior.vote(reward=[0.75, 0.25, 0.5, 1.0])) == ["C", "B", "A"]
    assert list(posterior.vote(lambda name: None if name == "C" else name.lower(), reward=np.ones(4))) == ["a", "b"]


@pytest.mark.parametrize("engine", [fk.SMC(8), fk.BestOfN(8), fk.BeamSearch(8), fk.SuffixMH(8), fk.SelfConsistency(8)])
def test_a_reward_votes_under_any_engine_in_one_batch(engine):
    batches = []

    @fk.reward(kind="probability", batched=True)
    def worth(names):
        batches.append(names)
        return [{"a": 0.1, "b": 0.9}[name] for name in names]

    posterior = fk.infer(answers([("a", 0.6), ("b", 0.4)]), engine, seed=1)
    votes = posterior.vote(reward=worth)
    assert votes == {name: pytest.approx(w * posterior.values.count(name)) for name, w in (("a", 0.1), ("b", 0.9))}
    assert len(batches) == 1
    assert posterior.vote(reward={"a": 0.1, "b": 0.9}.get) == votes


def test_a_utility_that_is_a_reward_is_asked_in_one_batch():
    batches = []

    @fk.reward(kind="real", batched=True)
    def alike(pairs):
        batches.append(pairs)
        return [TABLE["abc".index(one), "abc".index(other)] for one, other in pairs]

    posterior = posterior_of([("a", 0.3), ("b", 0.3), ("c", 0.4), ("c", 1e-9)])
    assert posterior.mbr(alike) == "b"
    assert [len(pairs) for pairs in batches] == [9]


def test_what_says_nothing_is_refused():
    posterior = posterior_of([("a", 0.3), ("b", 0.7)])
    with pytest.raises(ValueError, match=r"each of 2 values, not \(3, 3\)"):
        posterior.mbr(TABLE)
    with pytest.raises(ValueError, match="utility of value 0 to value 1 is NaN"):
        posterior.mbr(lambda one, other: math.nan if one != other else 1.0)
    with pytest.raises(ValueError, match="nothing to choose from"):
        fk.infer(endless(), fk.SMC(3), seed=0, callbacks=[lambda step: True]).mbr(TABLE)


@fk.program
async def endless():
    while True:
        await fk.sample("x", fk.dist.Normal(0.0, 1.0))
        await fk.factor("G", 0.0)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"reward": [1.0]}, r"each of 2 particles, not \(1,\)"),
        ({"reward": [1.0, math.nan]}, "the reward of particle 1 is NaN"),
        ({"pool": "max"}, "give reward=, too"),
        ({"reward": len, "pool": "median"}, "pool"),
    ],
)
def test_votes_that_say_nothing_are_refused(more, told):
    with pytest.raises(ValueError, match=told):
        posterior_of([("a", 0.3), ("b", 0.7)]).vote(**more)
