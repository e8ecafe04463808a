"""Runs that moves make from arrays are those that the interpreter makes, and can be taken up at any step."""

import numpy as np
import pytest
from test_unconstrained import draw

import feynkac as fk
from feynkac.inference.moves import replay
from feynkac.ppl import keys
from feynkac.ppl.errors import InconsistentDensity

jax = pytest.importorskip("jax")
jnp = jax.numpy
D = fk.dist


@fk.program
async def track(ys):
    a = await fk.sample("a", D.Exponential(1.5))
    k = await fk.sample("k", D.Bernoulli(0.3))
    fk.deterministic("twice", 2.0 * a)

    async def step(x, y):
        x = await fk.sample("x", D.Normal(0.9 * x + k, np.ones(2)))
        await fk.observe("y", D.Normal(x[0], a), y)
        return x, x[1]

    x, seen = await fk.scan(step, np.zeros(2), ys)
    await fk.factor("f", -0.2 * (x**2).sum())
    fk.deterministic("output", a)
    return {"a": a, "seen": seen}


def test_runs_from_arrays_are_those_of_the_interpreter():
    model = track([0.5, -1.0, 2.0])
    paths = draw(model, 6)
    (density,) = model.unconstrained(paths, None)
    u, rows = density.position + 0.1, np.array([4, 1])
    made = density.runs(u, rows)
    forced = [density.choices(u)[i] for i in rows]
    theirs = model.start(keys.fold(keys.root(0), np.arange(2)), [given[0] for given in forced])
    for t, step in enumerate(made):
        if t:
            step_keys = keys.fold(keys.root(t), np.arange(2))
            theirs = model.advance(theirs.state, step_keys, [given[t] for given in forced])
        assert step.done.tolist() == theirs.done.tolist()
        for name in ("log_prob", "log_proposal", "log_potential", "log_twist"):
            np.testing.assert_allclose(getattr(step, name), getattr(theirs, name), rtol=1e-9, atol=1e-12)
        for mine, its in zip(step.choices, theirs.choices):
            told = [[(site.address, site.kind, type(site.value)) for site in sites] for sites in (mine, its)]
            assert told[0] == told[1]
            for one, other in zip(mine, its):
                np.testing.assert_allclose(one.value, other.value, rtol=1e-9)
                np.testing.assert_allclose(one.log_prob, other.log_prob, rtol=1e-9)
        state = model.select(step.state, np.array([1, 0, 1]))  # earlier steps are made by the interpreter
        assert state.depth.tolist() == [t] * 3
    for mine, its in zip(model.values(made[-1].state), model.values(theirs.state)):
        assert mine == {"a": pytest.approx(its["a"]), "seen": pytest.approx(its["seen"])}
    assert [item.output for item in made[-1].state.items] == [item.output for item in theirs.state.items]


@pytest.mark.slow
def test_moves_make_no_run_by_the_interpreter_but_the_first(monkeypatch):
    made = []
    monkeypatch.setattr(replay, "replay", lambda *given: made.append(given))
    engine = fk.TemperedSMC(20, fk.RandomWalk(step=0.1), moves=1, ladder=(0.0, 0.5, 1.0))
    fk.infer(track([0.5, -1.0, 2.0]), engine, seed=0)
    assert not made


def test_what_does_not_agree_is_left_to_the_interpreter():
    @fk.program
    async def odd():
        x = await fk.sample("x", D.Normal(0.5, 1.0))
        return x + isinstance(x, jax.core.Tracer)  # another value where it is traced

    model = odd()
    (density,) = model.unconstrained(draw(model, 2), None)
    assert density.runs(density.position, np.arange(2)) is None


def test_what_changes_around_a_program_after_its_trace_is_found():
    around = {"y": 1.0}

    @fk.program
    async def model():
        x = await fk.sample("x", D.Normal(0.0, 1.0))
        await fk.observe("y", D.Normal(x, 0.1), around["y"])
        return x

    bound, engine = model(), fk.MCMC(fk.RandomWalk(step=0.1), draws=30, warmup=0, chains=1)
    fk.infer(bound, engine, seed=0)
    around["y"] = -1.0
    with pytest.raises(InconsistentDensity):
        fk.infer(bound, engine, seed=0)
