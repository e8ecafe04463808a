"""What is of a wrong kind is refused where it is given, by name, and not by what breaks later."""

import math

import numpy as np
import pytest

import feynkac as fk
from feynkac.models.testing import tiny_lm


@fk.program
async def coin():
    heads = await fk.sample("heads", fk.dist.Bernoulli(0.5))
    await fk.factor("G", 1.0 * heads)
    return heads


@pytest.mark.parametrize("limit", ["3", math.nan, -1, True, [5]])
def test_a_budget_is_made_of_numbers(limit):
    # NaN is reached by no cost: such a budget would stop nothing.
    with pytest.raises(ValueError, match=r"the budget's seconds must be a number from 0 up, or None, not"):
        fk.Budget(seconds=limit)
    assert fk.Budget(tokens=0).limited
    assert fk.Budget(tokens=np.int64(3), seconds=0.5).limited


def test_a_move_is_a_kernel_with_its_settings():
    # The class has a method `move`, too, and fails only where particles are first resampled.
    with pytest.raises(ValueError, match=r"move must be a Markov kernel .* such as SuffixMH\(1\), not <class"):
        fk.SMC(3, move=fk.SuffixMH)
    with pytest.raises(ValueError, match="kernel must be a Markov kernel"):
        fk.ParallelTempering((1.0, 2.0), sweeps=3, kernel=fk.SuffixMH)


def test_settings_that_are_numbers():
    with pytest.raises(ValueError, match="power must be a finite number, not 'a'"):
        fk.PowerSampling(3, power="a")
    with pytest.raises(ValueError, match="temperature must be positive and finite, or None for the best, not 'a'"):
        fk.SVDD(2, 2, temperature="a")


@pytest.mark.parametrize("model", [coin, None, "coin", [coin()]])
def test_programs_are_bound(model):
    for run in (fk.enumerate_program, lambda model: fk.simulate(model, seed=0)):
        with pytest.raises(TypeError, match=r"takes a bound program, such as f\(args\), not"):
            run(model)


@pytest.mark.parametrize("value", [None, 5, b"ab", [1, 2], np.array([1, 2]), True])
@pytest.mark.parametrize("step", ["tokens", "complete", "constrained"])
def test_a_step_is_observed_to_be_a_string_or_a_text(value, step):
    lm = tiny_lm()
    kernel = lm.complete(lm.prompt("a")) if step == "complete" else lm.tokens(lm.prompt("a"), 2)
    if step == "constrained":
        kernel = fk.constraints.constrained(kernel, fk.constraints.regex(lm, "[a-z]+"))

    @fk.program
    async def observed():
        return await fk.observe("x", kernel, value)

    @fk.program
    async def drawn():
        return await fk.sample("x", kernel)

    with pytest.raises(TypeError, match="is observed to be a string or a Text, not"):
        fk.infer(observed(), fk.SMC(2), seed=0)
    with pytest.raises(TypeError, match=r"a value of .* is a Text, not"):
        fk.infer(fk.handlers.substitute(drawn(), data={"x": value}), fk.SMC(2), seed=0)


@pytest.mark.parametrize("text", [None, "a", [1, 2]])
def test_a_step_goes_on_from_a_text(text):
    lm = tiny_lm()
    for make in (lambda: lm.tokens(text, 3), lambda: lm.complete(text), lambda: lm.next_log_probs(text)):
        with pytest.raises(TypeError, match=r"from a text, such as lm.prompt\('Once'\), not from"):
            make()


def test_stops_are_strings_and_there_are_some():
    lm = tiny_lm()
    text = lm.prompt("a")
    for wrong in (None, 5, b"x", [None]):
        with pytest.raises(TypeError, match="a string is needed, not"):
            lm.until(text, wrong)
    with pytest.raises(ValueError, match=r"a step needs a stop to go on to; lm\.complete goes on to the text's end"):
        lm.until(text, [])


def test_what_a_language_model_is_made_of():
    for wrong in (None, 5, ["gpt2"]):
        with pytest.raises(TypeError, match="a model is loaded by its name or from a folder, not from"):
            fk.models.TransformersLM.from_pretrained(wrong)
    lm = tiny_lm()
    for pair in ((None, None), (lm.tokenizer, lm.model), ("gpt2", "gpt2")):
        with pytest.raises(TypeError, match="a language model is made of a model and its tokenizer, not"):
            fk.models.TransformersLM(*pair)


def test_what_never_differs_has_no_spread():
    @fk.program
    async def same():
        heads = await fk.sample("heads", fk.dist.Bernoulli(0.3))
        await fk.factor("G", 0.7 * heads)
        return {"two": 2.1}

    row = fk.infer(same(), fk.SMC(50), seed=0).table()["two"]
    assert (row.mean, row.sd) == (2.1, 0.0)
