"""`infer` and `steps`: shared batches, budgets, interrupts, errors, callbacks, the cost ledger, and engine settings."""

from __future__ import annotations

import gc
import io
import math
import sys
import time
import types
from typing import ClassVar

import numpy as np
import pytest

import feynkac as fk
from feynkac.ppl.cost import charge
from laws import t2


class Meter:
    """A kernel like a language model: it counts what it does, and charges it. Draws 0, 1 or 2 letters."""

    expensive = True
    fingerprint = None

    def __init__(self, fail_at=None, error=None):
        self.batch_key = id(self)
        self.batches, self.tokens = [], []
        self.fail_at, self.error = fail_at, error

    def sample_batch(self, requests, keys):
        if len(self.batches) == self.fail_at:
            raise self.error
        draws = (fk.keys.uniform(keys) * 3).astype(int)
        self.batches.append(len(requests))
        self.tokens.append(int((draws + 1).sum()))
        charge(model_calls=1, tokens_in=np.full(len(requests), 4), tokens_out=draws + 1)
        return fk.Draws(draws, np.full(len(requests), math.log(1 / 3)))


class Judge:
    """A reward that counts the inputs that it scored."""

    def __init__(self):
        self.seen = 0
        self.reward = fk.reward(self.score, batched=True, cache=0, name="judge")

    def score(self, inputs):
        self.seen += len(inputs)
        return [0.3 * x for x in inputs]


@fk.program
async def writes(lm, judge, rounds=6, label=""):
    text = 0
    for t in range(rounds):
        text += await fk.sample("x", lm)
        fk.deterministic("output", (label, t, text))
        await fk.factor("G", judge.reward(text) / 1.0)
    return text


def setup(**settings):
    lm, judge = Meter(**settings), Judge()
    return lm, judge, writes(lm, judge)


def alike(a, b):
    assert a.values == b.values
    assert (a.log_weights == b.log_weights).all()
    assert [chain.evidence for chain in a.chains] == [chain.evidence for chain in b.chains]
    assert [len(chain.steps) for chain in a.chains] == [len(chain.steps) for chain in b.chains]
    assert (a.stopped, a.guarantee, a.engine, a.model, a.seed) == (b.stopped, b.guarantee, b.engine, b.model, b.seed)
    return True


# -- batches and cost -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "engine",
    [fk.SMC(5, chains=2), fk.ImportanceSampling(10), fk.BestOfN(5, chains=2), fk.SelfConsistency(5, chains=2)],
    ids=repr,
)
def test_many_models_and_chains_share_one_call_a_wave(engine):
    lm, judge = Meter(), Judge()
    posteriors = fk.infer([writes(lm, judge, n) for n in (6, 3, 1)], engine, seed=0)
    assert lm.batches == [30, 20, 20, 10, 10, 10]
    assert [len(p.steps) for p in posteriors] == [6, 3, 1]
    assert all(p.complete.all() for p in posteriors)


def test_the_ledger_says_what_the_model_and_the_reward_saw():
    lm, judge, other = Meter(), Judge(), Judge()
    models = [writes(lm, judge, 4), writes(lm, other, 2)]
    first, second = (p.cost for p in fk.infer(models, fk.SMC(7, chains=3, ess_threshold=1.0), seed=1))
    assert first.tokens_out + second.tokens_out == sum(lm.tokens)
    assert first.tokens_in + second.tokens_in == 4 * sum(lm.batches)
    assert (first.tokens_in, second.tokens_in) == (4 * 7 * 3 * 4, 4 * 7 * 3 * 2)
    assert (first.model_calls, second.model_calls) == (4, 2)  # the calls that each took part in
    assert (first.reward_calls, second.reward_calls) == (judge.seen, other.seen)
    assert min(first.tokens_out, second.tokens_out, judge.seen, other.seen) > 0
    assert first.nfe == second.nfe == 0
    assert first.seconds > 0
    run = fk.steps(writes(lm, judge, 2), fk.SMC(7, chains=3), seed=1)
    list(run)
    total, own = run.ledger.total(), run.posterior.cost
    assert (total.model_calls, total.tokens_out, total.reward_calls) == (2, own.tokens_out, own.reward_calls)


def test_tokens_of_a_problem_are_its_own():
    alone = [fk.infer(writes(Meter(), Judge(), n), fk.SMC(9), seed=0).cost for n in (5, 2)]
    lm = Meter()
    first, second = (p.cost for p in fk.infer([writes(lm, Judge(), n) for n in (5, 2)], fk.SMC(9), seed=0))
    assert first.tokens_out == alone[0].tokens_out
    assert first.tokens_out + second.tokens_out == sum(lm.tokens)


# -- budgets ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "limit", "waves"),
    [("model_calls", 3, 3), ("tokens", 1, 1), ("tokens", 40, None), ("reward_calls", 5, None), ("seconds", 0.0, 1)],
)
def test_a_budget_stops_the_run_at_the_wave_and_keeps_what_there_is(unit, limit, waves):
    lm, _, model = setup()
    budget = fk.Budget(**{unit: limit})
    posterior = fk.infer(model, fk.SMC(8, ess_threshold=1.0), seed=0, budget=budget)
    assert posterior.stopped == unit
    assert not posterior.complete.any()
    made = len(posterior.steps)
    assert len(lm.batches) == made < 6
    if waves:
        assert made == waves
    spent = {"model_calls": posterior.cost.model_calls, "tokens": posterior.cost.tokens_out}
    used = spent.get(unit, posterior.cost.reward_calls)
    last = {"model_calls": 1, "tokens": lm.tokens[-1]}.get(unit, 8)
    assert limit <= used < limit + last  # over by less than a wave, and the wave before was within it
    for i, value in enumerate(posterior.values):
        letters = [site.value for site in posterior.trace(i).values() if site.kind == "sample"]
        assert value == ("", made - 1, sum(letters))
    whole = fk.infer(writes(Meter(), Judge()), fk.SMC(8, ess_threshold=1.0), seed=0)
    for a, b in zip(posterior.steps, whole.steps, strict=False):  # a prefix of the run without a limit
        assert (a.log_weights == b.log_weights).all()


def test_seconds_are_a_budget_too():
    @fk.program
    async def slow():
        for _ in range(100):
            await fk.call("wait", time.sleep, 0.01)
            await fk.factor("step", 0.0)

    posterior = fk.infer(slow(), fk.SMC(2), seed=0, budget=fk.Budget(seconds=0.1))
    assert posterior.stopped == "seconds"
    assert 1 <= len(posterior.steps) < 20


def test_a_budget_covers_all_models_together_and_enough_of_it_changes_nothing():
    lm, judge = Meter(), Judge()
    models = [writes(lm, judge, n) for n in (6, 1)]
    short, done = fk.infer(models, fk.SMC(8), seed=0, budget=fk.Budget(model_calls=2))
    assert (short.stopped, done.stopped) == ("model_calls",) * 2
    assert done.complete.all()
    assert not short.complete.any()
    free = fk.infer(models, fk.SMC(8), seed=0)
    rich = fk.infer(models, fk.SMC(8), seed=0, budget=fk.Budget(model_calls=1000, tokens=10**9, seconds=1e9))
    assert all(alike(a, b) for a, b in zip(free, rich, strict=True))
    exact = fk.infer(models, fk.SMC(8), seed=0, budget=fk.Budget(model_calls=6))
    assert exact[0].complete.all()  # reached with the last wave: nothing was cut
    assert exact[0].stopped is None


# -- stopping ---------------------------------------------------------------------------------------------------


def test_callbacks_see_every_step_and_may_stop_the_run():
    seen, also = [], []
    model = setup()[2]
    posterior = fk.infer(
        model,
        fk.SMC(4, chains=2),
        seed=0,
        callbacks=[lambda step: seen.append(step.depth) or step.depth == 2, lambda step: also.append(step.ess)],
    )
    assert posterior.stopped == "callback"
    assert not posterior.complete.any()
    assert len(seen) == len(also)
    assert max(seen) == 2
    assert [len(chain.steps) for chain in posterior.chains] == [3, 3]  # whole waves
    # What a callback returns stops the run only if it is True itself.
    assert fk.infer(model, fk.SMC(4), seed=0, callbacks=[lambda step: 1, lambda step: "yes"]).stopped is None


def test_an_exception_in_a_callback_keeps_the_posterior():
    def broken(step):
        if step.depth == 3:
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine") as caught:
        fk.infer(setup()[2], fk.SMC(4), seed=0, callbacks=[broken])
    assert caught.value.posterior.stopped == "error"
    assert len(caught.value.posterior.steps) == 4


def test_an_interrupt_within_a_kernel_returns_the_posterior_so_far():
    _, judge, model = setup(fail_at=3, error=KeyboardInterrupt())
    posterior = fk.infer(model, fk.SMC(6, ess_threshold=1.0), seed=0)
    assert posterior.stopped == "interrupted"
    assert len(posterior.steps) == 3
    assert not posterior.complete.any()
    assert all(value[1] == 2 for value in posterior.values)
    assert posterior.cost.model_calls == 3
    assert "stopped: interrupted" in posterior.summary()
    several = fk.infer([writes(Meter(1, KeyboardInterrupt()), judge, n) for n in (3, 1)], fk.SMC(3), seed=0)
    assert [p.stopped for p in several] == ["interrupted"] * 2


def test_an_interrupt_before_there_is_anything_is_raised():
    with pytest.raises(KeyboardInterrupt):
        fk.infer(setup(fail_at=0, error=KeyboardInterrupt())[2], fk.SMC(6), seed=0)


def test_errors_keep_the_posterior_of_the_steps_before():
    _, judge, model = setup(fail_at=2, error=ConnectionError("gone"))
    with pytest.raises(ConnectionError, match="gone") as caught:
        fk.infer(model, fk.SMC(6), seed=0)
    kept = caught.value.posterior
    assert (len(kept), len(kept.steps), kept.stopped) == (6, 2, "error")
    assert any("in the error's attribute `posterior`" in note for note in caught.value.__notes__)
    with pytest.raises(ConnectionError) as caught:
        fk.infer([writes(Meter(2, ConnectionError()), judge)] * 2, fk.SMC(6), seed=0)
    assert [len(p.steps) for p in caught.value.posterior] == [2, 2]
    with pytest.raises(ConnectionError) as caught:
        fk.infer(setup(fail_at=0, error=ConnectionError())[2], fk.SMC(6), seed=0)
    assert not hasattr(caught.value, "posterior")


# -- steps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "engine", [fk.SMC(6, chains=2, ess_threshold=0.9), fk.BestOfN(6), fk.SelfConsistency(6)], ids=repr
)
def test_stepping_leaving_and_resuming_gives_the_posterior_of_infer(engine):
    model = setup()[2]
    run = fk.steps(model, engine, seed=5)
    seen = []
    for step in run:  # leave after each step, and take the run up again
        seen.append(step)
        break
    assert len(run.posterior.steps) == 1
    assert not run.posterior.complete.any()
    while True:
        again = next(iter(run), None)
        if again is None:
            break
        seen.append(again)
    assert run.stopped is None
    whole = fk.infer(model, engine, seed=5)
    assert alike(run.posterior, whole)
    assert [step.depth for step in seen] == list(range(6))
    assert list(run) == []


def test_the_posterior_can_be_taken_at_any_time():
    model = setup()[2]
    run = fk.steps(model, fk.SMC(5, ess_threshold=1.0), seed=0)
    with pytest.raises(RuntimeError, match="has not made a step yet"):
        run.posterior
    for step in run:
        now = run.posterior
        assert len(now.steps) == step.depth + 1
        assert now.log_evidence == pytest.approx(step.log_evidence)
        assert now.complete.all() == (step.depth == 5)
    assert alike(run.posterior, fk.infer(model, fk.SMC(5, ess_threshold=1.0), seed=0))


def test_a_run_can_be_stopped_by_hand():
    run = fk.steps(setup()[2], fk.SMC(5), seed=0)
    for step in run:
        if step.depth == 1:
            run.stop("enough")
    assert (run.posterior.stopped, len(run.posterior.steps)) == ("enough", 2)


def test_a_run_goes_on_after_an_interrupt_or_error_of_its_model():
    lm = Meter(fail_at=2, error=ConnectionError())
    run = fk.steps(writes(lm, Judge()), fk.SMC(5, ess_threshold=1.0), seed=0)
    with pytest.raises(ConnectionError):
        list(run)
    lm.fail_at = None
    assert [step.depth for step in run] == [2, 3, 4, 5]
    assert run.posterior.complete.all()
    whole = fk.infer(writes(Meter(), Judge()), fk.SMC(5, ess_threshold=1.0), seed=0)
    assert run.posterior.values == whole.values
    assert (run.posterior.log_weights == whole.log_weights).all()


# -- progress ---------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def able(monkeypatch):
    """rich shows nothing in a terminal that it takes for a dumb one."""
    pytest.importorskip("rich")
    monkeypatch.setenv("TERM", "xterm")


def test_progress_is_shown_where_somebody_watches(monkeypatch, able):
    plain = fk.infer(setup()[2], fk.SMC(5), seed=0, progress=False)
    for show, stream in ((True, Terminal()), (None, Terminal()), (True, io.StringIO())):
        monkeypatch.setattr(sys, "stderr", stream)
        shown = fk.infer(setup()[2], fk.SMC(5), seed=0, progress=show)
        assert shown.values == plain.values
        if stream.isatty():
            assert "step" in stream.getvalue() or "particles" in stream.getvalue()
    for show, stream in ((False, Terminal()), (None, io.StringIO())):
        monkeypatch.setattr(sys, "stderr", stream)
        fk.infer(setup()[2], fk.SMC(5), seed=0, progress=show)
        assert stream.getvalue() == ""


class Kernel:
    """A notebook as IPython shows it: one display that changes."""

    kernel = object()
    shown: ClassVar[list[str]] = []

    def update(self, line):
        self.shown.append((repr(line), line._repr_html_()))


@pytest.mark.parametrize("show", [None, True])
def test_in_a_notebook_progress_is_one_line_that_changes(monkeypatch, show):
    opened = []
    kernel, module = Kernel(), types.ModuleType("IPython")
    module.get_ipython = lambda: kernel
    module.display = types.ModuleType("IPython.display")
    module.display.display = lambda first, display_id: opened.append(first) or kernel
    monkeypatch.setitem(sys.modules, "IPython", module)
    monkeypatch.setitem(sys.modules, "IPython.display", module.display)
    monkeypatch.setitem(sys.modules, "rich", None)  # which a notebook does not need
    monkeypatch.setattr("feynkac.inference.base.progress._EVERY", 0.0)
    monkeypatch.setattr(sys, "stderr", stream := Terminal())
    kernel.shown.clear()
    fk.infer(setup()[2], fk.SMC(5), seed=0, progress=show)
    assert stream.getvalue() == ""
    assert len(opened) == 1
    *lines, (last, empty) = kernel.shown
    assert any("5 of 5 particles finished" in text and '<progress value="5" max="5"' in html for text, html in lines)
    assert not any("\n" in text for text, _ in lines)
    assert (last, empty) == ("", "<span></span>")


def test_progress_ends_with_an_error(monkeypatch, able):
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(ConnectionError):
        fk.infer(setup(fail_at=2, error=ConnectionError())[2], fk.SMC(5), seed=0, progress=True)
    monkeypatch.setattr(sys, "stderr", again := Terminal())
    fk.infer(setup()[2], fk.SMC(5), seed=0, progress=True)
    assert "step" in again.getvalue()  # a display that was left open would keep the next from being shown


@pytest.mark.parametrize("engine", [fk.SMCSteer(4, beam=3), fk.MCTS(100, moves=False), fk.SMC(4), fk.SVDD(4)], ids=repr)
def test_no_more_particles_finish_than_there_are(engine):
    run = fk.steps(t2(), engine, seed=0)
    for step in run:
        done, total, _ = run.standing()
        assert done <= total
        if not isinstance(engine, fk.MCTS):
            assert (done, total) == (int(step.done.sum()), len(step.done))
    assert done == total > 0


def test_the_open_nodes_of_a_search_have_not_finished():
    run = fk.steps(t2(), fk.BeamSearch(4, width=2), seed=0)
    seen = [run.standing()[:2] for _ in run]
    assert seen[0][0] == 0 < seen[0][1]
    assert seen[-1][0] == seen[-1][1]


# -- arguments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fk.SMC(0), "particles must be a positive integer, not 0"),
        (lambda: fk.SMC(2.5), r"particles must be a positive integer, not 2\.5"),
        (lambda: fk.SMC(4, chains=-1), "chains must be a positive integer, not -1"),
        (lambda: fk.SMC(4, ess_threshold=1.5), r"ess_threshold is a fraction of the particles, in \[0, 1\], not 1\.5"),
        (lambda: fk.SMC(4, ess_threshold=math.nan), "ess_threshold is a fraction"),
        (lambda: fk.SMC(4, resampling="best"), 'resampling must be "multinomial", .* or "ssp", not \'best\''),
        (lambda: fk.SMC(4, all_dead="ignore"), 'all_dead must be "error" or "zero", not \'ignore\''),
        (lambda: fk.ImportanceSampling(0), "particles must be a positive integer"),
        (lambda: fk.ImportanceSampling(3, all_dead="no"), "all_dead must be"),
        (lambda: fk.BestOfN(0), "particles must be a positive integer"),
        (lambda: fk.BestOfN(2, temperature=0.0), r"temperature must be positive and finite, .* not 0\.0"),
        (lambda: fk.BestOfN(2, chains=0), "chains must be a positive integer"),
        (lambda: fk.BestOfN(2, all_dead="no"), "all_dead must be"),
    ],
)
def test_settings_are_checked_when_they_are_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_infer_checks_its_arguments():
    with pytest.raises(TypeError, match="infer takes Feynman-Kac models, not int"):
        fk.infer(3, fk.SMC(2), seed=0)
    with pytest.raises(TypeError, match="not ProgramFactory; call the program with its arguments first"):
        fk.infer([setup()[2], writes], fk.SMC(2), seed=0)
    with pytest.raises(TypeError, match="seed must be an integer, not float"):
        fk.infer(setup()[2], fk.SMC(2), seed=0.5)
    assert fk.infer([], fk.SMC(2), seed=0) == []
    assert len(fk.infer((setup()[2],), fk.SMC(2), seed=0)) == 1


# -- engines ----------------------------------------------------------------------------------------------------


def test_the_threshold_says_when_to_resample():
    model = setup()[2]
    never, always = (fk.infer(model, fk.SMC(12, ess_threshold=x), seed=0) for x in (0.0, 1.0))
    assert [step.resampled for step in never.steps] == [False] * 6
    assert [step.resampled for step in always.steps] == [False] + [True] * 5  # and not after the last step
    half = fk.infer(model, fk.SMC(12, ess_threshold=0.6), seed=0)
    assert [step.resampled for step in half.steps[1:]] == [step.ess <= 7.2 for step in half.steps[:-1]]
    assert 0 < sum(step.resampled for step in half.steps) < 5
    imp = fk.infer(model, fk.ImportanceSampling(12), seed=0)
    assert imp.values == never.values
    assert (imp.log_weights == never.log_weights).all()
    assert (never.guarantee, imp.guarantee) == ("unbiased", "unbiased")
    assert fk.infer(model, fk.BestOfN(12), seed=0).guarantee == "heuristic"


def test_equal_weights_are_resampled_at_threshold_one_alone():
    @fk.program
    async def even():
        for _ in range(3):
            await fk.sample("x", fk.dist.Bernoulli(0.3))
            await fk.factor("G", -0.7)

    for threshold, resampled in ((1.0, True), (0.999, False)):
        posterior = fk.infer(even(), fk.SMC(7, ess_threshold=threshold), seed=0)
        assert [step.resampled for step in posterior.steps] == [False, resampled, resampled]
        assert posterior.log_evidence == pytest.approx(-2.1)


@fk.program
async def die():
    face = await fk.sample("face", fk.dist.DiscreteUniform(1, 3))
    await fk.factor("high", float(face))
    return face


def test_best_of_n_shares_its_weight_among_the_best():
    posterior = fk.infer(die(), fk.BestOfN(30), seed=0)
    best = np.array(posterior.values) == 3
    assert 3 < best.sum() < 25
    assert posterior.probabilities == pytest.approx(best / best.sum())
    assert posterior.vote() == pytest.approx({3: 1.0})
    soft = fk.infer(die(), fk.BestOfN(30, temperature=2.0), seed=0)
    w = np.exp(np.array(soft.values) / 2.0)
    assert soft.probabilities == pytest.approx(w / w.sum())
    same = fk.infer(die(), fk.ImportanceSampling(30), seed=0)
    assert posterior.log_evidence == soft.log_evidence == pytest.approx(same.log_evidence)


def test_best_of_n_ranks_by_the_reward_and_not_by_the_proposal():
    @fk.program
    async def proposed():
        x = await fk.sample("x", fk.dist.Categorical([0.98, 0.02]), proposal=fk.dist.Categorical([0.5, 0.5]))
        await fk.factor("G", 0.1 * x)
        return x

    posterior = fk.infer(proposed(), fk.BestOfN(30), seed=0)
    assert posterior.vote() == pytest.approx({1: 1.0})
    weighted = fk.infer(proposed(), fk.ImportanceSampling(30), seed=0)
    assert weighted.vote()[0] > 0.9
    assert posterior.log_evidence == pytest.approx(weighted.log_evidence)


def test_best_of_n_with_all_dead():
    @fk.program
    async def doomed():
        await fk.factor("G", -math.inf)

    with pytest.raises(fk.errors.AllParticlesDead, match="all 4 particles have weight zero at step 0"):
        fk.infer(doomed(), fk.BestOfN(4), seed=0)
    assert fk.infer(doomed(), fk.BestOfN(4, all_dead="zero"), seed=0).log_evidence == -math.inf


@fk.program
async def straight():
    async def step(carry, x):
        carry += await fk.sample("x", fk.dist.Normal(0.0, 1.0))
        await fk.factor("G", 0.1 * carry)
        return carry, x

    return await fk.scan(step, 0.0, range(3), compiled=False)


def test_a_run_leaves_next_to_nothing_to_the_collector():
    """A wave that held itself would hold all that its particles had made until the collector comes, which is seldom."""
    engine = fk.SMC(50, ess_threshold=1.0)
    fk.infer(straight(), engine, seed=0)
    gc.collect()
    gc.disable()
    try:
        fk.infer(straight(), engine, seed=0)
        left = gc.collect()
    finally:
        gc.enable()
    assert left < 50
