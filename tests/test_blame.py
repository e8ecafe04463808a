"""Errors name the particle and the word to use."""

import math
import os
import pathlib
import subprocess
import sys

import numpyro
import numpyro.distributions as nd
import pytest

import feynkac as fk
from feynkac import errors


def test_a_reward_that_raises_names_the_particle_that_it_raised_for():
    @fk.reward
    def picky(x):
        if x == 3:
            raise RuntimeError("three")
        return float(x)

    @fk.program
    async def model():
        x = await fk.sample("x", fk.dist.Categorical([0.2] * 5))
        fk.deterministic("output", x)
        await fk.factor("G", picky(x) / 1.0)
        return x

    for seed in range(10):
        with pytest.raises(RuntimeError, match="three") as caught:
            fk.infer(model(), fk.SMC(64), seed=seed)
        (note,) = [note for note in caught.value.__notes__ if note.startswith("feynkac: particle")]
        assert "x=3" in note


def test_a_sample_of_numpyro_in_a_program_is_told_of_fk_sample():
    @fk.program
    async def model():
        return numpyro.sample("x", nd.Normal(0.0, 1.0))

    with pytest.raises(errors.ForeignAwaitable, match=r"await fk\.sample") as caught:
        fk.infer(model(), fk.SMC(4), seed=0)
    assert "particle 0 of 4" in "".join(caught.value.__notes__)


# -- what would not end -----------------------------------------------------------------------------------------------


def test_a_loop_without_step_ends_is_an_error_under_a_budget_too(monkeypatch):
    import feynkac.ppl.running.wave

    monkeypatch.setattr(feynkac.ppl.running.wave, "MOST_ROUNDS", 500)

    @fk.program
    async def endless():
        while True:
            await fk.sample("x", fk.dist.Bernoulli(0.5))

    with pytest.raises(errors.EndlessStep, match="particle 0 has visited 500 sites without a step end"):
        fk.infer(endless(), fk.SMC(2), seed=0, budget=fk.Budget(seconds=1e-3))


def test_a_loop_of_what_needs_no_service_is_an_error_too(monkeypatch):
    import feynkac.ppl.running.wave

    monkeypatch.setattr(feynkac.ppl.running.wave, "MOST_ROUNDS", 500)

    @fk.program
    async def empty():
        while True:
            await fk.gather()

    @fk.program
    async def reading():
        cell = fk.cell("n", 0)
        while True:
            await cell.get()

    for model in (empty(), reading()):
        with pytest.raises(errors.EndlessStep, match="without a step end"):
            fk.infer(model, fk.SMC(2), seed=0, budget=fk.Budget(seconds=1e-3))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_asynchronous_calls_run_in_a_forked_process():
    code = """
import os, sys, warnings
import feynkac as fk
warnings.simplefilter("ignore")

async def ask():
    return 1

@fk.program
async def model():
    return await fk.call("ask", ask)

fk.infer(model(), fk.SMC(2), seed=0)  # starts the loop in the parent
child = os.fork()
if child == 0:
    os._exit(0 if fk.infer(model(), fk.SMC(2), seed=0).values == (1, 1) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0


@fk.program
async def attempt(x):
    await fk.factor("G", 0.0 if x else -math.inf)


@fk.program
async def stubborn(how, most=None):
    """Try again until it works, whatever happens."""
    tried = 0
    while most is None or tried < most:
        tried += 1
        try:
            x = await fk.sample("x", fk.dist.Bernoulli(0.5))
            if how == "factor":
                await fk.factor("G", 0.0 if x else -math.inf)
            elif how == "observe":
                await fk.observe("y", fk.dist.Bernoulli(float(x)), 1)
            elif how == "program":
                await attempt(x)
            elif how == "gather":
                await fk.gather(fk.factor("G", 0.0 if x else -math.inf))
            else:  # it lives, and is dropped as it was not selected
                for _ in range(4):
                    await fk.factor("G", 5.0 * x)
            return x
        except:  # noqa: E722
            continue


@pytest.mark.parametrize("how", ["factor", "observe", "program", "gather", "dropped"])
def test_a_bare_except_in_a_retry_loop_is_an_error_and_no_hang(how):
    with pytest.raises(errors.UncloseableProgram, match=r"`(stubborn|attempt)` catches .* write `except Exception:`"):
        fk.infer(stubborn(how), fk.SMC(8, ess_threshold=1.0, resampling="multinomial"), seed=0)
    # What another program left does not fall on the next.
    assert fk.infer(stubborn(how, 3), fk.SMC(8), seed=0).probabilities.sum() == pytest.approx(1.0)


def test_a_process_ends_after_a_program_that_would_not_be_closed():
    code = f"""
import sys
sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})
import feynkac as fk
import test_blame
try:
    fk.infer(test_blame.stubborn("factor"), fk.SMC(8), seed=0)
except fk.errors.UncloseableProgram:
    print("told")
"""
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("told\n", "")


def test_an_effect_outside_programs_is_always_an_error():
    for _ in range(200):
        with pytest.raises(errors.OutsideProgram):
            fk.factor("G", 0.0)
