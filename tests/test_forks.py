"""What a fork checks: that a program repeats what it did, and that what particles share stays as it was."""

import collections
import itertools
import random
import time
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import feynkac as fk
from feynkac import errors

COIN = fk.dist.Bernoulli(0.5)
FORKS = fk.SMC(8, ess_threshold=1.0, resampling="multinomial")


# -- chance that sites do not show ------------------------------------------------------------------------------------


@fk.program
async def hides(chance):
    u = chance()
    for _ in range(3):
        x = await fk.sample("x", COIN)
        await fk.factor("G", x)
    return u


@fk.program
async def hides_in_a_branch(chance):
    async def branch():
        inside = {"u": [chance()]}
        await fk.factor("G", await fk.sample("x", COIN))
        await fk.factor("G", await fk.sample("x", COIN))
        return inside

    return await fk.gather(branch(), branch())


@fk.program
async def hides_in_a_scan(chance):
    async def step(carry, _):
        noise = chance()
        await fk.factor("G", await fk.sample("x", COIN))
        return carry + 0 * len(str(noise)), 0

    return await fk.scan(step, 0, range(3))


@fk.program
async def hides_further_in(chance):
    return await hides(chance)


@dataclass
class Held:
    """An object that holds a value."""

    value: object


CHANCES = {
    "random": random.random,
    "a clock": time.perf_counter_ns,
    "an unseeded generator": lambda: np.random.default_rng(),
    "an array": lambda: np.random.default_rng().normal(size=3),
    "an object": lambda: Held(random.random()),
    "a closure": lambda: (lambda u: lambda: u)(random.random()),
    "a list": lambda: [random.random()],
    "a count": itertools.count().__next__,
    "an iterator": lambda: iter(range(random.randrange(10**9))),
    "a deque": lambda: collections.deque([random.random()]),
}


@pytest.mark.parametrize("chance", CHANCES.values(), ids=CHANCES)
@pytest.mark.parametrize("program", [hides, hides_in_a_branch, hides_in_a_scan, hides_further_in])
def test_chance_that_no_site_shows_is_found_in_the_variables(program, chance):
    with pytest.raises(errors.NonDeterministicProgram, match=r"its variable `(u|inside|noise)` was .*, it is"):
        fk.infer(program(chance), FORKS, seed=0)


def test_chance_that_is_recorded_or_changed_by_a_call_is_found():
    @fk.program
    async def records():
        fk.deterministic("u", random.random())
        await fk.factor("G", 1.0 * await fk.sample("x", COIN))
        await fk.factor("G", 0.0)

    @fk.program
    async def calls():
        notes = []
        await fk.call("note", notes.append, 1)
        await fk.factor("G", 1.0 * await fk.sample("x", COIN))
        await fk.factor("G", 0.0)
        return len(notes)

    with pytest.raises(errors.NonDeterministicProgram, match=r"had recorded 0\.\d+ for 'u' by fk.deterministic"):
        fk.infer(records(), FORKS, seed=0)
    with pytest.raises(errors.NonDeterministicProgram, match=r"`notes` was \[1\], it is \[\].*it changes in place"):
        fk.infer(calls(), FORKS, seed=0)


def test_chance_in_numbers_is_found_by_engines_that_take_a_particle_up_again():
    for engine in (FORKS, fk.BeamSearch(4), fk.SuffixMH(20), fk.TreeSearch(8)):
        with pytest.raises(errors.NonDeterministicProgram):
            fk.infer(hides(random.random), engine, seed=0)


def test_a_program_that_repeats_what_it_did_is_not_accused():
    class Opaque:
        __slots__ = ()

    @fk.program
    async def honest(array):
        rng, old = np.random.default_rng(0), random.Random(0)
        u, v, nan = rng.normal(size=3), old.random(), float("nan")
        notes, words = [nan], {"a", "b"}
        it, text = iter([1, 2, 3]), "".join(sorted(words))
        tensor, thing, error = torch.ones(2) * 2, Opaque(), ValueError("x")
        held, counter = Held([v, {"k": u}]), collections.Counter("aab")
        kernel, score = fk.dist.Normal(v, 1.0), fk.reward(lambda x: 1.0)("a") / 1.0
        pick = lambda: (v, notes)  # noqa: E731
        total = 0
        for i, _ in zip(it, itertools.count()):
            fk.deterministic("u", u[0] + i)
            notes.append(rng.random() + array[0])
            x = await fk.sample("x", kernel)
            total += x
            with fk.handlers.scope(prefix="s"):
                await fk.factor("G", score)
            held.value.append(x)
            del _
        return total, pick, tensor, thing, error, counter, text

    posterior = fk.infer(honest([1.0, 2.0]), FORKS, seed=0)
    assert len(posterior.values) == 8


# -- what particles share ---------------------------------------------------------------------------------------------


class Vectors:
    """A kernel that draws torch vectors."""

    batch_key = fingerprint = "vectors"

    def sample_batch(self, requests, keys):
        return fk.Draws([torch.tensor([float(k % 7), 1.0]) for k in keys.tolist()], np.zeros(len(keys)))


CHANGES = {
    "add_": lambda x: x.add_(1.0),
    "an item": lambda x: x.__setitem__(0, 5.0),
    "a view": lambda x: x.view(-1)[:1].mul_(2.0),
    "the same without a graph": lambda x: x.detach().zero_(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_tensor_that_particles_share_is_not_changed_in_place(change):
    @fk.program
    async def model():
        x = await fk.sample("x", Vectors())
        await fk.factor("G", 0.1 * float(x[0]))
        change(x)
        await fk.factor("H", 0.1 * float(x[0]))

    @fk.program
    async def called():
        x, _ = await fk.call("pair", lambda: (torch.zeros(3), [torch.ones(2)]))
        change(x)
        await fk.factor("H", 0.0)

    async def work(x):
        change(x)
        await fk.factor("H", 0.0)

    @fk.program
    async def shared(scans):
        x = await fk.sample("x", Vectors())
        if scans:
            await fk.scan(lambda carry, _: work(carry), x, [0])
        else:
            await fk.gather(work(x), work(x))

    for program, what in ((model(), "'x'"), (called(), r"'pair\[0\]'")):
        with pytest.raises(errors.SharedMutation, match=rf"a Tensor that {what} returned has been changed.*clone"):
            fk.infer(program, fk.SMC(4), seed=0)
    for scans in (False, True):
        with pytest.raises(errors.SharedMutation, match=r"has changed `(x|carry)`"):
            fk.infer(shared(scans), fk.SMC(4), seed=0)


def test_a_tensor_among_a_programs_arguments_is_not_changed_in_place():
    @fk.program
    async def model(w):
        await fk.factor("G", 0.0)
        w["w"][0].mul_(2.0)

    with pytest.raises(errors.SharedMutation, match=r"a Tensor that is the argument w\['w'\]\[0\].*clone"):
        fk.infer(model({"w": [torch.ones(2)]}), fk.SMC(4), seed=0)


SHARED = torch.zeros(2)


@pytest.mark.parametrize("where", ["SHARED", "enclosed", "the argument given"])
def test_a_tensor_around_a_program_is_not_changed_in_place(where):
    enclosed = torch.zeros(2)

    async def by_global():
        SHARED.add_(await fk.sample("x", COIN) + 1)

    async def by_closure():
        enclosed.add_(await fk.sample("x", COIN) + 1)

    async def by_default(given=torch.zeros(2)):  # noqa: B008
        given.add_(await fk.sample("x", COIN) + 1)

    fn = {"SHARED": by_global, "enclosed": by_closure}.get(where, by_default)
    with pytest.raises(errors.SharedMutation, match=rf"a Tensor that is {where} has been changed in place.*clone"):
        fk.infer(fk.program(fn)(), fk.SMC(4), seed=0)


def test_an_object_that_a_call_made_is_not_changed_in_place():
    @fk.program
    async def model():
        held = await fk.call("make", lambda: Held([0]))
        await fk.factor("G", 1.0 * await fk.sample("x", COIN))
        held.value.append(1)
        await fk.factor("H", 0.0)

    with pytest.raises(errors.SharedMutation, match=r"a list that 'make\.value' returned has been changed.*copy"):
        fk.infer(model(), FORKS, seed=0)


def test_copies_of_tensors_are_the_particles_own():
    @torch.inference_mode()
    def made():
        return torch.ones(2)

    @fk.program
    async def model(w):
        x = (await fk.sample("x", Vectors())).clone()
        for _ in range(3):
            x.add_(w)
            await fk.factor("G", 0.01 * float(x[0]))
        await fk.call("made in inference mode", made)
        await fk.factor("H", 0.0)
        return x

    values = fk.infer(model(torch.ones(2)), FORKS, seed=0).values
    assert all(value[1] == 4.0 for value in values)
