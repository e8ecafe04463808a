"""Texts whose end is forced at its own probability: their law against enumeration, and what refuses.

Each z-test raises a false alarm twice in 100,000 times (`laws.Z_LIMIT`); there are about 90 here. Seeds are fixed.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest

import feynkac as fk
from laws import check_unbiased

pytest.importorskip("torch")

from toys_constrained import PROMPT, letters_lm, prefix_prob, strings, target, whole_prob

from feynkac.models.constraints import AWRS, Length, Vocabulary, constrained, forced_end
from feynkac.models.testing import ScriptedLM, tiny_lm

LONGEST = 2


def wholes(at_least=0, lm=None):
    """Z and the law of whole texts of so many letters."""
    lm = lm or letters_lm()
    return target({s: whole_prob(lm, PROMPT, s) for s in strings(LONGEST) if len(s) >= at_least})


@fk.program
async def at_once(lm):
    text = await fk.sample("text", lm.complete(lm.prompt(PROMPT), max_tokens=LONGEST))
    return str(await fk.sample("end", forced_end(text)))


@fk.program
async def step_by_step(lm):
    text = lm.prompt(PROMPT)
    for _ in range(LONGEST):
        text = await fk.sample("token", lm.next_token(text))
        await fk.factor("step", 0.0)
    return str(await fk.sample("end", forced_end(text)))


@fk.program
async def under_a_length(lm, at_least=0, sampler="mask"):
    """Tokens under the potential, with room for more than it allows."""
    text = lm.prompt(PROMPT)
    length = Length(lm, at_least, LONGEST)
    for _ in range(LONGEST + 2):
        text = await fk.sample("token", constrained(lm.next_token(text), length, sampler=sampler))
        await fk.factor("step", 0.0)
    return str(text) if text.finished else "unfinished"


@fk.program
async def cut_short(lm):
    """What is usual: the text is cut at the limit and counted as whole."""
    return str(await fk.sample("text", lm.complete(lm.prompt(PROMPT), max_tokens=LONGEST)))


@pytest.mark.parametrize("program", [at_once, step_by_step])
def test_a_forced_end_conditions_on_ending_in_time(program):
    z, law = wholes()
    assert z < 0.7  # much is cut
    check_unbiased(program(letters_lm()), fk.SMC(3, ess_threshold=0.9), law, math.log(z), runs=150)
    with pytest.raises(AssertionError):
        check_unbiased(cut_short(letters_lm()), fk.SMC(3), law, math.log(z), runs=150)


@pytest.mark.parametrize(("at_least", "sampler"), [(0, "mask"), (1, AWRS("geometric")), (2, "mask"), (2, "awrs")])
def test_lengths_weigh_what_they_forbid(at_least, sampler):
    z, law = wholes(at_least)
    model = under_a_length(letters_lm(), at_least, sampler)
    check_unbiased(model, fk.SMC(4, all_dead="zero"), law, math.log(z), runs=150)


def test_one_token_programs_with_forced_ends_enumerate():
    for program, at_least in ((step_by_step, 0), (under_a_length, 0)):
        exact = fk.enumerate_program(program(letters_lm()))
        z, law = wholes(at_least)
        assert exact.log_evidence == pytest.approx(math.log(z), abs=1e-5)
        found = {}
        for string, p in zip(exact.values, exact.probabilities):
            found[string] = found.get(string, 0.0) + p
        assert found == pytest.approx(law, abs=1e-6)


def test_the_end_has_the_probability_of_the_law_that_the_text_was_drawn_with():
    lm = letters_lm()

    @fk.program
    async def cold():
        text = await fk.sample("text", lm.tokens(lm.prompt(PROMPT), 1, temperature=0.5))
        return str(await fk.sample("end", forced_end(text, temperature=0.5)))

    def at_half(string):
        p = np.exp(lm.next_log_probs(lm.prompt(PROMPT).append(string) if string else lm.prompt(PROMPT))) ** 2
        return p / p.sum()

    first = at_half("")
    z, law = target({"": first[0], **{s: first[lm.encode(s)[0]] * at_half(s)[0] for s in "abc"}})
    check_unbiased(cold(), fk.SMC(3), law, math.log(z), runs=150)


ENGINES = [
    fk.ImportanceSampling(400),
    fk.SMC(400),
    fk.TreeSampling(400, batch=50),
    pytest.param(fk.ParticleGibbs(8, sweeps=300, burn_in=20, ess_threshold=0.5), marks=pytest.mark.slow),
    pytest.param(fk.SuffixMH(900, burn_in=20), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: type(engine).__name__)
def test_chains_and_pools_keep_the_law(engine):
    """Total variation below .12 at a fixed seed, where that of texts that are cut is above .25."""
    _, law = wholes()
    posterior = fk.infer(step_by_step(letters_lm()), engine, seed=1)
    found = {s: sum(w for v, w in zip(posterior.values, posterior.probabilities) if v == s) for s in law}
    assert 0.5 * sum(abs(found[s] - law[s]) for s in law) < 0.12
    cut = {s: (prefix_prob if len(s) == LONGEST else whole_prob)(letters_lm(), PROMPT, s) for s in law}
    assert 0.5 * sum(abs(cut[s] - law[s]) for s in law) > 0.25


# -- lines ------------------------------------------------------------------------------------------------------------


@cache
def poet():
    """Lines, each the last or not."""

    def script(before):
        n = before.count("\n")
        return {"x\n": 0.5, "yy\n": 0.3, "z": 0.2} if n < 4 else "z"

    return ScriptedLM(script)


def lines_of(most, least=0):
    lm_law = {"x\n": 0.5, "yy\n": 0.3}

    def grow(so_far, p, n):
        if n < 4:
            for line, q in lm_law.items():
                yield from grow(so_far + line, p * q, n + 1)
        yield so_far + "z", p * (0.2 if n < 4 else 1.0), n + 1

    return target({s: p for s, p, n in grow("", 1.0, 0) if least <= n <= most})


@pytest.mark.parametrize("least", [0, 2])
def test_lines_are_counted_as_they_read(least):
    lm = poet()

    @fk.program
    async def poem():
        text = lm.prompt("A")
        for _ in range(3):
            text = await fk.sample("line", constrained(lm.line(text), Length(lm, least, 2, of="lines")))
            await fk.factor("step", 0.0)
        return "".join(f"{s}\n" if s else "" for s in str(text).split("\n")) if not text.finished else text.full[1:]

    z, law = lines_of(2, least)
    check_unbiased(poem(), fk.SMC(4, all_dead="zero"), law, math.log(z), runs=60)


@pytest.mark.parametrize("of", ["tokens", "lines"])
def test_lengths_keep_the_laws_of_potentials(of):
    lm = tiny_lm()
    some = [lm.encode(s) if s else () for s in ["", "a", "a\n", "a\nb", "a\n\n", "a\nb\nc"]]
    some += [(1,), (40, 1, 40), (0, 40), (40, *lm.encode("\n"), 0)]
    for potential in (
        Length(lm, 1, 2, of=of),
        Length(lm, 2, of=of),
        Length(lm, at_most=0, of=of),
        Length(lm, 1, 2, of=of) * Length(lm, 0, 1, of=of),
    ):
        potential.check(some)
    assert Length(lm, 1, 2, of=of).fingerprint == Length(lm, 1, 2, of=of).fingerprint
    assert Length(lm, 1, 2, of=of).fingerprint != Length(lm, 1, 3, of=of).fingerprint
    open_line, closed = lm.encode("a\nb"), lm.encode("a\nb\n")
    two = Length(lm, 0, 2, of="lines")
    assert two.allowed(open_line)[:-1].any()
    assert not two.allowed(closed)[lm.encode("c")[0]]
    assert two.allowed(closed)[-1]
    assert two.accepts(open_line)


def test_a_text_that_fills_its_context_dies():
    lm = letters_lm(context=4)

    @fk.program
    async def full(k):
        text = lm.prompt(PROMPT)
        for _ in range(k):
            text = await fk.sample("token", lm.next_token(text))
        return str(await fk.sample("end", forced_end(text)))

    exact = fk.enumerate_program(full(2))
    z, law = target({s: whole_prob(lm, PROMPT, s) for s in strings(1)})  # two letters leave no room for the end
    assert exact.log_evidence == pytest.approx(math.log(z), abs=1e-5)
    assert {v for v, p in zip(exact.values, exact.probabilities) if p > 0} == set(law)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda lm: Length(lm, 3, 2), ValueError, "at least 3 and at most 2 tokens"),
        (lambda lm: Length(lm, at_most=-1), ValueError, "at_most must be at least 0"),
        (lambda lm: Length(lm, 1.5), TypeError, "at_least must be a whole number"),
        (lambda lm: Length(lm, 1, of="words"), ValueError, "not of 'words'"),
        (lambda lm: forced_end("a string"), TypeError, "what ends is a text"),
    ],
)
def test_what_is_no_length_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make(letters_lm())


def test_lengths_belong_to_their_tokens():
    with pytest.raises(ValueError, match="not the same tokens"):
        Length(letters_lm(), 1) * Length(tiny_lm(), 1)
    assert Length(letters_lm(), 1).vocabulary == Vocabulary.of(letters_lm())
