"""What is a weight, which proposals are taken, and what is scored."""

from __future__ import annotations

import math
import traceback

import numpy as np
import pytest
from programs import COIN, NoScores, run

import feynkac as fk
from feynkac.ppl import errors

# -- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_and_positive_infinity_are_not_weights(bad):
    @fk.program
    async def weighs():
        await fk.factor("bad", bad)

    with pytest.raises(errors.InvalidWeight, match=rf"particle 0, factor 'bad': the log-weight is {bad}") as caught:
        run(weighs())
    assert 'await fk.factor("bad", bad)' in "".join(traceback.format_exception(caught.value))


def test_a_twist_must_be_finite():
    @fk.program
    async def twists():
        await fk.twist("guide", -math.inf)

    with pytest.raises(errors.InvalidWeight, match="a twist must be finite; −inf belongs in a factor"):
        run(twists())


def test_a_bool_is_not_a_log_weight():
    @fk.program
    async def says(ok):
        await fk.factor("ok", ok)

    for ok in (True, np.bool_(True)):
        with pytest.raises(errors.AmbiguousScore, match=r"a bool, not a number: .*write 0\.0 if ok else"):
            run(says(ok))
    with pytest.raises(errors.AmbiguousScore, match="a str, not a number: 'high'"):
        run(says("high"))


def test_minus_infinity_ends_a_particle_at_once():
    reached = []

    @fk.program
    async def dies():
        x = await fk.sample("x", fk.dist.Bernoulli(0.5))
        await fk.factor("G", -math.inf if x else 0.0)
        reached.append(x)
        await fk.sample("y", COIN)
        return x

    posterior = run(dies(), n=40, ess_threshold=0.0)
    assert set(reached) == {0}
    dead = np.isneginf(posterior.log_weights)
    assert 5 < dead.sum() < 35
    assert all(value is None for value, gone in zip(posterior.values, dead) if gone)


def test_a_dead_branch_kills_its_particle_and_no_coroutine_is_left_unawaited():
    async def branch(fatal):
        await fk.sample("x", COIN)
        await fk.factor("G", -math.inf if fatal else 0.0)
        return 1

    @fk.program
    async def two():
        fatal = await fk.sample("fatal", fk.dist.Bernoulli(0.5))
        return await fk.gather(branch(fatal), branch(False))

    posterior = run(two(), n=30, ess_threshold=0.0)
    assert {value for value in posterior.values if value is not None} == {(1, 1)}


# -- proposals --------------------------------------------------------------------------------------------------------


def test_a_proposal_of_smaller_support_is_refused():
    @fk.program
    async def narrow(q):
        await fk.sample("x", fk.dist.Categorical([0.5, 0.5]), proposal=fk.dist.Categorical(q))

    with pytest.raises(errors.UnsupportedProposal, match=r"particle 0, sample 'x': the proposal .* cannot reach all"):
        run(narrow([1.0, 0.0]))
    run(narrow([0.9, 0.1]))


def test_a_kernel_without_scores_runs_but_refuses_by_name_what_needs_them():
    @fk.program
    async def free():
        return await fk.sample("x", NoScores())

    assert fk.infer(free(), fk.SMC(3), seed=0).log_evidence == 0.0
    step = free().start(fk.keys.fold(fk.keys.root(0), np.arange(3)))
    assert not step.scored.any()

    @fk.program
    async def observes():
        await fk.observe("x", NoScores(), "text 1")

    with pytest.raises(errors.CannotScore, match="particle 0, sample 'x': NoScores has no log_prob_batch"):
        run(observes())
    with pytest.raises(errors.CannotScore, match="NoScores has no log_prob_batch"):
        free().start(fk.keys.root(0), given=[{"x": "text 1"}])

    @fk.program
    async def proposes():
        await fk.sample("x", COIN, proposal=NoScores())

    with pytest.raises(errors.CannotScore, match="gives no log-probabilities"):
        run(proposes())


# -- given ------------------------------------------------------------------------------------------------------------


def test_given_choices_are_forced_and_scored_and_must_be_met():
    @fk.program
    async def model():
        x = await fk.sample("x", fk.dist.Bernoulli(0.3), proposal=fk.dist.Bernoulli(0.8))
        await fk.factor("G", 1.0)
        return x

    step = model().start(fk.keys.fold(fk.keys.root(0), np.arange(3)), given=[{"x": 1}, None, {"x": 0}])
    assert [choices[0].value for choices in step.choices][::2] == [1, 0]
    assert step.log_prob[[0, 2]] == pytest.approx([math.log(0.3), math.log(0.7)])
    assert step.log_proposal[[0, 2]] == pytest.approx([math.log(0.8), math.log(0.2)])
    with pytest.raises(errors.ImpossibleChoice, match=r"forced choices \['y'\] were not met"):
        model().start(fk.keys.root(0), given=[{"y": 1}])


def test_a_kernel_that_returns_too_little_is_named():
    class Short:
        batch_key = fingerprint = "short"

        def sample_batch(self, requests, keys):
            return fk.Draws([1] * (len(requests) - 1), None)

        def log_prob_batch(self, requests, values):
            return np.zeros(1)

    @fk.program
    async def draws():
        await fk.sample("x", Short())

    @fk.program
    async def observes():
        await fk.observe("x", Short(), 1)

    with pytest.raises(ValueError, match=r"Short\.sample_batch got 4 requests and returned 3 results"):
        run(draws())
    with pytest.raises(ValueError, match=r"Short\.log_prob_batch got 4 requests and returned 1 results"):
        run(observes())
