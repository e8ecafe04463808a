"""Votes: an answer of None abstains, and NaN is one answer, in every engine that counts and in `vote` itself."""

from __future__ import annotations

import math

import numpy as np
import pytest

import feynkac as fk


@fk.program
async def answers(law):
    """Draw an answer; its place in the law is its reward."""
    x = await fk.sample("x", fk.dist.Categorical(law))
    await fk.factor("G", 0.1 * x)
    return x


def number(x):
    """0 has no answer, 1 and 2 are made NaN by other ways, 3 is an answer."""
    return [None, float("nan"), np.float64("nan"), 7.0][x]


# No answer has more than NaN as one, and NaN taken apart has less than 3 alone.
LAW = [0.5, 0.15, 0.15, 0.2]
ENGINES = [
    fk.SelfConsistency(400, key=number),
    fk.SelfConsistency(400, key=number, weighted=True),
    fk.AdaptiveConsistency(400, 0.999, batch=400, key=number),
    fk.FirstFinish(400, 400, key=number),
    fk.BestOfN(400, by=number),
]


@pytest.mark.parametrize(
    "engine", ENGINES, ids=lambda e: f"{type(e).__name__}{'-weighted' * getattr(e, 'weighted', 0)}"
)
def test_no_answer_abstains_and_nan_is_one(engine):
    posterior = fk.infer(answers(LAW), engine, seed=0)
    votes = posterior.vote(number)
    assert None not in votes
    assert math.isnan(next(iter(votes)))
    assert posterior.best() in (1, 2)
    if not isinstance(engine, fk.BestOfN):  # whose weight is all the winner's
        assert len(votes) == 2
        assert posterior.vote() == votes
        assert list(votes.values()) == pytest.approx([0.6, 0.4], abs=0.1)


@pytest.mark.parametrize(
    "engine", ENGINES, ids=lambda e: f"{type(e).__name__}{'-weighted' * getattr(e, 'weighted', 0)}"
)
def test_where_all_abstain_there_is_no_vote_and_a_best_run(engine):
    posterior = fk.infer(answers([0.5, 0.5]), type(engine)(8, **{_key(engine): lambda x: None}), seed=0)
    assert posterior.vote(lambda x: None) == {}
    assert posterior.best() in (0, 1)
    assert np.isfinite(posterior.log_weights).any()


def _key(engine):
    return "by" if isinstance(engine, fk.BestOfN) else "key"


def test_values_vote_alike():
    @fk.program
    async def maybe():
        x = await fk.sample("x", fk.dist.Categorical([0.6, 0.2, 0.2]))
        return [None, (1, float("nan")), (1, float("nan"))][x]

    votes = fk.infer(maybe(), fk.ImportanceSampling(50), seed=0).vote()
    assert list(votes) == [(1, math.nan)]


def test_a_key_is_asked_once_for_each_run_that_abstains_too():
    asked = []

    @fk.program
    async def slow():
        x = await fk.sample("x", fk.dist.Categorical([0.5, 0.5]))
        for _ in range(1 + 3 * x):
            await fk.factor("G", 0.0)
        return x

    fk.infer(slow(), fk.SelfConsistency(10, key=lambda x: asked.append(x) or None), seed=0)
    assert len(asked) == 10
