"""The rules of effects, each with the error that keeps it."""

from __future__ import annotations

import asyncio
import math
import traceback

import pytest
from programs import COIN, run

import feynkac as fk
from feynkac import handlers
from feynkac.ppl import errors


def test_a_program_must_be_an_async_function():
    with pytest.raises(TypeError, match="needs an `async def` function"):
        fk.program(lambda: 1)


def test_a_wrong_call_fails_when_the_arguments_are_bound():
    @fk.program
    async def two(a, b):
        return a + b

    with pytest.raises(TypeError, match="missing a required argument: 'b'"):
        two(1)


def test_an_unbound_program_is_refused_with_the_fix():
    @fk.program
    async def nothing():
        return 1

    with pytest.raises(TypeError, match="call the program with its arguments first"):
        fk.infer(nothing, fk.SMC(2), seed=0)
    assert fk.infer(nothing(), fk.SMC(2), seed=0).values == (1, 1)


@pytest.mark.parametrize("where", ["body", "helper", "branch", "step"])
def test_a_missing_await_is_an_error_at_once(where):
    async def forgets(*_):
        fk.factor("lost", -1.0)
        await fk.sample("x", COIN)
        return 0, 0

    @fk.program
    async def body():
        await fk.sample("first", COIN)
        if where == "branch":
            await fk.gather(forgets())
        elif where == "step":
            await fk.scan(forgets, 0, [1])
        elif where == "helper":
            await forgets()
        else:
            fk.factor("lost", -1.0)
            await fk.sample("x", COIN)

    with pytest.raises(
        errors.UnawaitedEffect, match=r"fk\.factor\('lost', …\) was created but never awaited"
    ) as caught:
        run(body())
    assert "particle 0 of 4 of program 'body'" in caught.value.__notes__[0]


def test_a_missing_await_at_the_end_or_returned_is_found_too():
    @fk.program
    async def at_the_end():
        await fk.sample("x", COIN)
        fk.factor("lost", -1.0)

    @fk.program
    async def returned():
        return fk.sample("x", COIN)

    for model in (at_the_end(), returned()):
        with pytest.raises(errors.UnawaitedEffect, match="never awaited"):
            run(model)


def test_an_effect_kept_and_awaited_later_is_fine():
    @fk.program
    async def later():
        effect = fk.sample("x", COIN)
        await fk.sample("y", COIN)
        return await effect

    assert set(run(later(), n=50).values) == {0, 1}


def test_a_foreign_awaitable_is_an_error_that_names_the_fix():
    class Foreign:
        def __await__(self):
            yield "something"

    @fk.program
    async def awaits_it():
        await Foreign()

    with pytest.raises(errors.ForeignAwaitable, match=r"awaited a str.*await fk\.call\(name, fn"):
        run(awaits_it())

    @fk.program
    async def sleeps():
        await asyncio.sleep(1.0)

    with pytest.raises(RuntimeError, match="no running event loop") as caught:
        run(sleeps())
    assert any("await fk.call" in note for note in caught.value.__notes__)


def test_effects_outside_a_program_are_refused():
    with pytest.raises(errors.OutsideProgram, match="no program is running"):
        fk.sample("x", COIN)
    with pytest.raises(errors.OutsideProgram, match="no program is running"):
        fk.deterministic("x", 1)
    with pytest.raises(errors.OutsideProgram), handlers.mask(mask=False):
        pass


def test_a_user_error_names_the_particle_the_site_and_the_trace_and_keeps_the_users_line():
    @fk.program
    async def divides():
        x = await fk.sample("x", fk.dist.Categorical([0.5, 0.5]))
        await fk.factor("step", 0.0)
        await fk.sample("y", COIN)
        return 1 / (x - 1)  # the user's own line

    with pytest.raises(ZeroDivisionError) as caught:
        run(divides(), n=20)
    (note,) = [n for n in caught.value.__notes__ if "particle" in n]
    assert "of 20 of program 'divides', after site 'y'; its trace so far: x=1, step=None, y=" in note
    assert "the user's own line" in "".join(traceback.format_exception(caught.value))
    assert len(caught.value.posterior) == 20  # the step before is kept
    assert not caught.value.posterior.complete.any()


def test_names_that_look_like_addresses_are_refused():
    @fk.program
    async def names(name):
        await fk.sample(name, COIN)

    for name in ("a/b", "x[1]"):
        with pytest.raises(ValueError, match=r"must hold neither '/' nor '\['"):
            run(names(name))
    with pytest.raises(TypeError, match="must be a string, not 3"):
        run(names(3))
    with pytest.raises(ValueError, match="ends like a branch"):
        handlers.scope(names("x"), prefix="gather.0")


def test_forgotten_programs_and_effects_in_containers_are_found():
    @fk.program
    async def inner():
        await fk.factor("G", -1.0)

    @fk.program
    async def forgets_a_program():
        inner()
        return await fk.sample("x", COIN)

    @fk.program
    async def returns_effects():
        return [fk.sample("x", COIN) for _ in range(2)]

    for model in (forgets_a_program(), returns_effects()):
        with pytest.raises(errors.UnawaitedEffect):
            run(model)


def test_an_effect_is_awaited_once():
    @fk.program
    async def twice():
        effect = fk.sample("x", COIN)
        await effect
        await effect

    with pytest.raises(errors.FeynkacError, match="awaited twice"):
        run(twice())


def test_a_program_that_swallows_its_own_error_ends_with_it():
    @fk.program
    async def stubborn():
        while True:
            try:
                await fk.factor("x", math.nan)
            except Exception:
                await fk.factor("y", 0.0)

    with pytest.raises(errors.InvalidWeight, match="factor 'x'"):
        run(stubborn())
