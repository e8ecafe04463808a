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
