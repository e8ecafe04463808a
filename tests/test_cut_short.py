"""Runs that end before their time: by a budget, a callback or Ctrl-C. What they keep, and how it is labelled."""

from __future__ import annotations

import contextlib
import gc
import math
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import feynkac as fk
from feynkac.ppl.cost import recorded
from feynkac.ppl.sites import Running

HOME = str(Path(fk.__file__).parent)


@fk.program
async def factors(n, log_weight=1.0):
    for _ in range(n):
        await fk.factor("G", log_weight)
    return n


@fk.program
async def walk(steps, label=0):
    x = 0.0
    for t in range(steps):
        x = await fk.sample("x", fk.dist.Normal(x, 1.0))
        fk.deterministic("output", (label, t, x))
        await fk.factor("G", -x * x)
    return x


# -- one posterior for each model -------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", [fk.TreeSearch(8), fk.TreeSampling(8), fk.MCTS(8), fk.AStar(8, 1)], ids=repr)
def test_a_budget_in_the_first_wave_leaves_one_posterior_for_each_model(engine):
    lengths = (5, 1, 3)
    found = fk.infer([walk(n, label=n) for n in lengths], engine, seed=0, budget=fk.Budget(seconds=0.0))
    assert [p.model for p in found] == [repr(walk(n, label=n)) for n in lengths]
    assert [p.stopped for p in found] == ["seconds"] * 3
    assert len(found[1]) > 0
    for posterior in found:
        for i, value in enumerate(posterior.values):
            assert value is None or isinstance(value, float) or value[0] == int(posterior.model[5])
            assert posterior.trace(i)


@pytest.mark.parametrize("end", ["budget", "interrupt", "error"])
def test_a_model_without_particles_gives_an_empty_posterior(end, tmp_path):
    calls = []

    @fk.batched
    def count(inputs):
        calls.append(len(inputs))
        if len(calls) == 2 and end != "budget":
            raise KeyboardInterrupt if end == "interrupt" else KeyError("mine")
        return inputs

    @fk.program
    async def counted(n):
        for _ in range(n):
            await fk.call("count", count, 0)
            await fk.factor("G", 0.5)
        return n

    models = [counted(n) for n in (4, 1, 4)]
    if end == "error":
        with pytest.raises(KeyError, match="mine") as caught:
            fk.infer(models, fk.TreeSearch(2), seed=0)
        found = caught.value.posterior
    else:
        budget = fk.Budget(seconds=0.0) if end == "budget" else None
        found = fk.infer(models, fk.TreeSearch(2), seed=0, budget=budget)
    assert [len(p) for p in found] == [0, 2, 0]
    stopped = {"budget": "seconds", "interrupt": "interrupted", "error": "error"}[end]
    empty, told = found[0], f"the posterior is empty: the run was cut short (stopped: {stopped}) before it had any"
    assert (empty.values, empty.steps, empty.stopped, empty.ess) == ((), (), stopped, 0.0)
    assert math.isnan(empty.log_evidence)
    assert empty.log_evidence_se_reason == "the engine gives no evidence"
    assert len(empty.warnings) == 1
    for text in (empty.warnings[0], empty.summary(), empty._repr_html_().replace("&#x27;", "'")):
        assert told in text
    for ask in (
        empty.best,
        lambda: empty.best("reward"),
        lambda: empty.probabilities,
        lambda: empty.sample(1, seed=0),
        lambda: empty.expect(float),
        lambda: empty.estimate(float),
        lambda: empty.best_of(1, float),
        empty.vote,
        lambda: fk.report(empty, tmp_path / "empty.html"),
        lambda: fk.plots.overview(empty),
        lambda: fk.plots.tree(empty),
    ):
        with pytest.raises(ValueError, match="the posterior is empty: the run was cut short"):
            ask()
    empty.save(tmp_path / "empty.fk")
    assert repr(fk.Posterior.load(tmp_path / "empty.fk")) == repr(empty)


# -- the label of what was cut short ----------------------------------------------------------------------------


def test_a_run_that_is_cut_short_has_the_evidence_of_a_prefix_and_says_so():
    short = fk.infer(factors(6), fk.SMC(4), seed=0, budget=fk.Budget(seconds=0.0))
    assert short.log_evidence == pytest.approx(1.0)  # and log Z = 6
    assert short.guarantee == "prefix"
    assert "log evidence 1 ± 0 (prefix)" in short.summary()
    assert "(prefix)" in short._repr_html_()
    assert any("those of the steps that were made, and not of the model" in warning for warning in short.warnings)
    whole = fk.infer(factors(6), fk.SMC(4), seed=0)
    assert (whole.guarantee, whole.log_evidence) == ("unbiased", pytest.approx(6.0))
    assert not any("steps that were made" in warning for warning in whole.warnings)


def test_what_was_finished_keeps_its_label():
    finished, short = fk.infer([factors(1), factors(3)], fk.SMC(4), seed=0, budget=fk.Budget(seconds=0.0))
    assert (finished.guarantee, short.guarantee) == ("unbiased", "prefix")
    run = fk.steps(factors(3), fk.SMC(4), seed=0)
    assert [run.posterior.guarantee for _ in run] == ["prefix", "prefix", "unbiased"]
    # Fewer sweeps, and fewer rollouts, are what the label "consistent" speaks of; unfinished paths are not.
    for engine in (fk.SuffixMH(50), fk.TreeSampling(200)):
        seen = [0]

        def enough(step, seen=seen):
            seen[0] += 1
            return seen[0] == 12

        stopped = fk.infer(walk(3), engine, seed=0, callbacks=[enough])
        assert (stopped.stopped, stopped.guarantee) == ("callback", "consistent")
        assert stopped.complete.all()
    assert fk.infer(walk(3), fk.SuffixMH(50), seed=0, budget=fk.Budget(seconds=0.0)).guarantee == "prefix"
    assert fk.infer(walk(3), fk.BestOfN(5), seed=0, budget=fk.Budget(seconds=0.0)).guarantee == "heuristic"


def test_a_comparison_leaves_the_evidence_of_prefixes_out():
    models = [factors(1), factors(6)]
    found = fk.compare(
        models, [fk.SMC(2)], metric=lambda p: 1.0, seeds=[0], budget=fk.Budget(seconds=0.0), progress=False
    )
    assert found.table()[0].log_evidence == pytest.approx(1.0)  # of the first alone
    assert [trial.prefix for trial in found.trials] == [False, True]
    assert math.isnan(found.trials[1].log_evidence)
    for shown in (repr(found), found._repr_html_()):
        assert "log Ẑ leaves out 1 trial cut short, which have that of a prefix alone" in shown


# -- callbacks --------------------------------------------------------------------------------------------------


def truths():
    yield from (True, np.True_, np.array(True), np.array(3.0) > 2, np.array([True]))
    torch = pytest.importorskip("torch")
    yield from (torch.tensor(True), torch.tensor([True]))


def test_a_callback_stops_the_run_by_the_truth_of_any_library():
    for truth in truths():
        assert fk.infer(factors(3), fk.SMC(2), seed=0, callbacks=[lambda step, t=truth: t]).stopped == "callback"
    for other in (False, np.False_, np.array(False), np.array([True, True]), 1, "yes", np.array(1.0), None):
        assert fk.infer(factors(3), fk.SMC(2), seed=0, callbacks=[lambda step, o=other: o]).stopped is None


# -- arguments --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", [fk.infer, fk.steps], ids=["infer", "steps"])
@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (fk.SMC, r"takes an engine with its settings, such as fk\.SMC\(32\), not the class alone"),
        ("SMC", r"takes an engine, such as fk\.SMC\(32\), not 'SMC'"),
        ([fk.SMC(2)], r"takes one engine, such as fk\.SMC\(32\), not a list"),
        (None, r"takes an engine, such as fk\.SMC\(32\), not None"),
    ],
)
def test_what_is_no_engine_is_refused_by_name(run, engine, message):
    with pytest.raises(TypeError, match=message):
        run(factors(1), engine, seed=0)


@pytest.mark.parametrize("run", [fk.infer, fk.steps], ids=["infer", "steps"])
def test_what_is_no_budget_is_refused_by_name(run):
    with pytest.raises(TypeError, match=r"such as fk\.Budget\(tokens=1000\), and is not 5"):
        run(factors(1), fk.SMC(2), seed=0, budget=5)
    with pytest.raises(TypeError, match="not the class Program"):
        run(fk.Program, fk.SMC(2), seed=0)


# -- Ctrl-C -----------------------------------------------------------------------------------------------------


class Interrupter:
    """Sends SIGINT when the library comes to its n-th line, as a tracer of the thread."""

    def __init__(self, at):
        self.at, self.lines = at, 0

    def __call__(self, frame, event, arg):
        if not frame.f_code.co_filename.startswith(HOME):
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self.at:
                signal.raise_signal(signal.SIGINT)
        return self

    def __enter__(self):
        self.outer = sys.gettrace()
        sys.settrace(self)
        return self

    def __exit__(self, *_):
        sys.settrace(self.outer)


def prefixes(models, engine):
    """The posteriors of a run after each of its waves."""
    out = []
    session = fk.Session(models, engine, 0)
    while not session.over:
        session._wave([i for i in range(len(session._tasks)) if session._goes_on(i)])
        out.append(session.posteriors)
    return out


def same(one, other):
    return (
        one.values == other.values
        and np.array_equal(one.log_weights, other.log_weights)
        and len(one.steps) == len(other.steps)
        and all([a.trace(i) for i in range(len(a))] == [b.trace(i) for i in range(len(b))] for a, b in [(one, other)])
        and (one.log_evidence == other.log_evidence or math.isnan(one.log_evidence))
    )


def interrupted_at(at, models, engine):
    with Interrupter(at) as tracer:
        try:
            found = fk.infer(models, engine, seed=0)
        except KeyboardInterrupt:
            found = None
    assert Running.fiber is None
    assert not recorded()
    assert gc.isenabled()
    return found, tracer.lines >= at


CASES = [
    ([walk(2), walk(3, 1)], fk.SMC(3, ess_threshold=1.0)),
    ([walk(2)], fk.TreeSampling(5, batch=2)),
    ([walk(2)], fk.SuffixMH(3)),
]


def check_interrupts(models, engine, places):
    """Interrupt a run at each place; what comes back is what some number of whole waves had made, or nothing."""
    waves = prefixes(models, engine)
    kept = 0
    for at in places:
        found, reached = interrupted_at(at, models, engine)
        if not reached:
            break
        if found is None:
            continue
        kept += 1
        assert len(found) == len(models)
        matches = [w for w in waves if all(map(same, found, w))]
        assert matches, f"line {at} leaves what no number of waves makes: {found}"
        assert all(p.stopped == "interrupted" for p in found) or matches[0] is waves[-1]
    clean = fk.infer(models, engine, seed=0)
    assert all(map(same, clean, waves[-1]))
    gc.collect()  # coroutines that were made and not begun say so here, and not in a later test
    return kept


def length(models, engine):
    with Interrupter(-1) as tracer:
        fk.infer(models, engine, seed=0)
    return tracer.lines


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("models", "engine"), CASES, ids=["SMC", "TreeSampling", "SuffixMH"])
def test_an_interrupt_counts_a_wave_as_a_whole_or_not_at_all(models, engine):
    total = length(models, engine)
    places = sorted({*range(1, total, total // 150), *range(total - 30, total + 1)})
    assert check_interrupts(models, engine, places) > 30


class Swallows:
    """Its end sends SIGINT, and Python drops what is raised there."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("how", ["__del__", "suppress"])
def test_an_interrupt_counts_where_it_is_swallowed(how):
    @fk.program
    async def hungry():
        for t in range(4):
            fk.deterministic("output", t)
            if t == 2 and how == "__del__":
                Swallows()
            elif t == 2:
                with contextlib.suppress(BaseException):
                    signal.raise_signal(signal.SIGINT)
            await fk.factor("G", 0.1)
        return "end"

    posterior = fk.infer(hungry(), fk.ImportanceSampling(3), seed=0)
    assert (posterior.stopped, posterior.guarantee) == ("interrupted", "prefix")
    assert posterior.values in ((0,) * 3, (1,) * 3)
    assert {len(step.choices) for step in posterior.steps} == {3}
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_of_a_run_inside_another_one_ends_both():
    def inside():
        done.append(fk.infer(factors(3), fk.SMC(2), seed=0, callbacks=[interrupt]).stopped)
        return 0

    def interrupt(step):
        if len(done) == 4 and step.depth == 1:
            signal.raise_signal(signal.SIGINT)

    @fk.program
    async def outer():
        for t in range(3):
            await fk.call("inside", inside)
            fk.deterministic("output", t)
            await fk.factor("G", 0.0)

    done = []
    posterior = fk.infer(outer(), fk.ImportanceSampling(3), seed=0)
    assert done == [None] * 4
    assert (posterior.stopped, posterior.values, len(posterior.steps)) == ("interrupted", (0, 0, 0), 1)


def test_a_handler_of_ones_own_is_left_alone():
    heard = []
    outer = signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    try:
        stop = [lambda step: signal.raise_signal(signal.SIGINT)]
        assert fk.infer(factors(2), fk.SMC(2), seed=0, callbacks=stop).stopped is None
    finally:
        signal.signal(signal.SIGINT, outer)
    assert heard == [1, 1]


def test_a_run_goes_on_after_an_interrupt_of_its_model_and_not_after_one_of_its_engine():
    run = fk.steps(walk(4), fk.SMC(3), seed=0)
    iterator = iter(run)
    next(iterator)
    serve, go_on = run._serve, run._go_on
    run._serve = lambda asking: (_ for _ in ()).throw(KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        next(iterator)
    run._serve = serve
    assert run.stopped is None
    assert [step.depth for step in run] == [1, 2, 3]
    run = fk.steps(walk(4), fk.SMC(3), seed=0)
    next(iter(run))
    run._go_on = lambda i, answer: (go_on, (_ for _ in ()).throw(KeyboardInterrupt))[1]
    with pytest.raises(KeyboardInterrupt):
        next(iter(run))
    assert (run.stopped, len(run.posterior.steps)) == ("interrupted", 1)
    assert list(run) == []


@pytest.mark.slow
@pytest.mark.parametrize("case", range(len(CASES)), ids=["SMC", "TreeSampling", "SuffixMH"])
def test_an_interrupt_at_every_line_counts_a_wave_as_a_whole_or_not_at_all(case):
    # In a process of its own: what an interrupt leaves half made is collected some time, and would warn in other tests.
    code = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells that start tests in the background ignore it
sys.path.insert(0, {str(Path(__file__).parent)!r})
import test_cut_short as here
case = here.CASES[{case}]
here.check_interrupts(*case, range(1, here.length(*case) + 1))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
