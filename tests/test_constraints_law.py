"""The law of constrained texts against enumeration, with and without potentials along the way.

Each z-test raises a false alarm twice in 100,000 times (`laws.Z_LIMIT`); there are about 170 here. Seeds are fixed.
"""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

import feynkac as fk
from laws import T2_ORDER, T2_POSTERIOR, T2_Z, check_unbiased

pytest.importorskip("torch")
pytest.importorskip("llguidance")

from toys_constrained import (
    LONGEST,
    PATTERN,
    PROMPT,
    CountA,
    Table,
    by_line,
    by_token,
    in_one,
    letters_lm,
    prefix_prob,
    regular,
    strings,
    target,
    value,
    whole_prob,
)

from feynkac.models.constraints import AWRS, Rewarded, constrained, targeting

C = fk.constraints


# -- the law of constrained texts against enumeration -----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampler", ["mask", "awrs", AWRS("geometric"), AWRS("geometric", max_accepts=3, max_rejects=4)]
)
@pytest.mark.parametrize("program", [in_one, by_token, by_line])
def test_the_law_is_that_of_texts_under_the_grammar(program, sampler):
    lm = letters_lm()
    z, law = regular(lm)
    model = program(lm, C.regex(lm, PATTERN), sampler)
    check_unbiased(model, fk.SMC(3, ess_threshold=0.9, all_dead="zero"), law, math.log(z), runs=600)


@fk.program
async def without_weights(lm, grammar):
    """What masked generation does by itself: the mask's mass is dropped."""
    text = lm.prompt(PROMPT)
    while len(text.tokens) < LONGEST and not text.finished:
        allowed = grammar.allowed(text.tokens)
        text = await fk.sample("token", lm.next_token(text, mask=by_id(lm, allowed)))
    if not text.finished:
        text = await fk.sample("end", lm.next_token(text, mask=by_id(lm, np.array([False] * 4 + [True]))))
    return str(text)


def by_id(lm, allowed):
    mask = allowed[:-1].copy()
    mask[sorted(lm.eos)] = allowed[-1]
    return mask


def test_masks_without_weights_are_visibly_another_law():
    lm = letters_lm()
    z, law = regular(lm)
    with pytest.raises(AssertionError):
        check_unbiased(without_weights(lm, C.regex(lm, PATTERN)), fk.SMC(3), law, math.log(z), runs=300)
    unweighted = in_one(lm, C.regex(lm, PATTERN), AWRS(proper_weights=False))
    with pytest.raises(AssertionError):
        check_unbiased(unweighted, fk.SMC(3, all_dead="zero"), law, math.log(z), runs=300)


def test_one_token_programs_enumerate():
    lm = letters_lm()

    @fk.program
    async def three(potential):
        text = lm.prompt(PROMPT)
        for _ in range(LONGEST):
            text = await fk.sample("token", constrained(lm.next_token(text), potential))
        return str(text), text.finished

    exact = fk.enumerate_program(three(C.regex(lm, PATTERN)))
    for (string, finished), p in zip(exact.values, np.exp(exact.log_weights)):
        wanted = whole_prob(lm, PROMPT, string) if finished else prefix_prob(lm, PROMPT, string)
        assert p == pytest.approx(wanted, rel=1e-5)
    ended = {(s, True) for s in strings(LONGEST - 1) if re.fullmatch(PATTERN, s)}
    assert set(exact.values) == ended | {("abc", False), ("cab", False)}


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["mask", "awrs"])
def test_a_reward_multiplies_the_grammar(sampler):
    lm = letters_lm()

    @fk.reward
    def bees(text):
        return float(str(text).count("b"))

    start = lm.prompt(PROMPT)
    z, law = regular(lm, also=lambda s: math.exp(s.count("b") / 0.7))
    rewarded = C.regex(lm, PATTERN) * Rewarded(start, lambda text: bees(text) / 0.7)
    engine = fk.SMC(4, all_dead="zero")
    check_unbiased(by_token(lm, rewarded, sampler), engine, law, math.log(z), runs=600)

    @fk.program
    async def factored(grammar):
        text = await fk.sample("all", constrained(lm.complete(start, max_tokens=LONGEST), grammar, sampler=sampler))
        await fk.factor("bees", bees(text) / 0.7)
        return str(text)

    check_unbiased(factored(C.regex(lm, PATTERN)), engine, law, math.log(z), runs=600)


# -- T2: any potential along the way, and any twist, leaves the target ------------------------------------------------

SHAPES = {"none": lambda c: 0.0, "count": lambda c: 1.5 * c.count(0), "odd": lambda c: [0.3, -1.0, 2.0, 0.0][len(c)]}


@fk.program
async def t2(lm, potential, twist=None):
    text = lm.prompt("a")
    for _ in range(3):
        text = await fk.sample("token", targeting(lm.next_token(text), potential))
        if twist is None:
            await fk.factor("step", 0.0)
        else:
            await fk.twist("shaping", twist(str(text)) if not text.finished else 0.0)
    return str(text) + "$"


def t2_potential(lm, along):
    vocabulary = C.Vocabulary.of(lm)
    return Table(vocabulary) * CountA(vocabulary, along)


@pytest.mark.slow
@pytest.mark.parametrize("twist", [None, lambda s: 0.8 * s.count("a") - 0.5 * s.count("b")], ids=["", "twisted"])
@pytest.mark.parametrize("along", SHAPES.values(), ids=SHAPES)
def test_t2(along, twist):
    lm = letters_lm(letters="ab")
    law = dict(zip(T2_ORDER, T2_POSTERIOR))
    check_unbiased(t2(lm, t2_potential(lm, along), twist), fk.SMC(4), law, math.log(T2_Z), runs=600)


def test_the_optimal_prefix_has_no_variance():
    lm = letters_lm(letters="ab")
    for posterior in fk.infer([t2(lm, t2_potential(lm, value))] * 20, fk.SMC(2), seed=0):
        assert math.exp(posterior.log_evidence) == pytest.approx(T2_Z, rel=1e-6)


def test_a_potential_after_some_text():
    lm = letters_lm()

    @fk.program
    async def two(grammar):
        text = await fk.sample("free", lm.tokens(lm.prompt(PROMPT), 1))
        if text.finished:
            return "", ""
        rest = constrained(lm.complete(text, max_tokens=2), grammar.after(text))
        whole = await fk.sample("strict", rest)
        return str(text), str(whole)[len(str(text)) :]

    weights = {("", ""): whole_prob(lm, PROMPT, "")}
    for first in "abc":
        for rest in strings(2):
            if re.fullmatch(PATTERN, rest):
                weights[first, rest] = whole_prob(lm, PROMPT, first + rest)
    z, law = target(weights)
    check_unbiased(two(C.regex(lm, PATTERN)), fk.SMC(3, all_dead="zero"), law, math.log(z), runs=600)
