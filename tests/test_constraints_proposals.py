"""Proposals for constrained steps: which are known to cover the target, and that the weights are then right.

Each z-test raises a false alarm twice in 100,000 times (`laws.Z_LIMIT`); there are about 50 here. Seeds are fixed.
"""

from __future__ import annotations

import math
import re

import pytest

import feynkac as fk
from laws import check_unbiased

pytest.importorskip("torch")
pytest.importorskip("llguidance")

from toys_constrained import LONGEST, PATTERN, PROMPT, letters_lm, strings, target, whole_prob

from feynkac.models.constraints import AWRS, Language, constrained, mixture, targeting

C = fk.constraints
LM = letters_lm()
TEXT = LM.prompt(PROMPT)


def complete(k=LONGEST, **sampling):
    return LM.complete(TEXT, max_tokens=k, **sampling)


def grammar(pattern=PATTERN):
    return C.regex(LM, pattern)


KNOWN = grammar()
LAW, OTHER = Language(LM, TEXT), Language(letters_lm(1), letters_lm(1).prompt("ca"))

COVERING = {
    "another temperature": lambda: constrained(complete(temperature=2.0), KNOWN),
    "the same grammar, made again": lambda: constrained(complete(temperature=0.7), grammar()),
    "rejection": lambda: constrained(complete(temperature=2.0), KNOWN, sampler="awrs"),
    "rejection, geometric": lambda: constrained(complete(), KNOWN, sampler=AWRS("geometric", 3, max_rejects=8)),
    "the grammar alone": lambda: targeting(complete(), KNOWN),
    "a product of models": lambda: targeting(complete(), KNOWN * LAW**0.5 * OTHER),
    "more tokens": lambda: constrained(complete(LONGEST + 1), KNOWN),
    "the model alone": lambda: complete(LONGEST + 1),
    "the model alone, warm": lambda: complete(LONGEST + 2, temperature=1.5),
}


@fk.program
async def proposed(proposal, potential=KNOWN):
    text = await fk.sample("text", constrained(complete(), potential), proposal=proposal)
    await fk.factor("G", 0.5 * str(text).count("b"))
    return str(text)


@pytest.mark.parametrize("name", COVERING)
def test_a_proposal_that_covers_the_target_leaves_it_as_it_is(name):
    z, law = target(
        {
            s: whole_prob(LM, PROMPT, s) * math.exp(0.5 * s.count("b"))
            for s in strings(LONGEST)
            if re.fullmatch(PATTERN, s)
        }
    )
    check_unbiased(proposed(COVERING[name]()), fk.SMC(8, all_dead="zero"), law, math.log(z), runs=500)


REFUSED = {
    "another grammar": lambda: constrained(complete(), grammar("ab|b")),
    "one factor more": lambda: constrained(complete(), KNOWN * grammar("(a|b|c)*")),
    "a truncated law": lambda: constrained(complete(top_k=2), KNOWN),
    "a truncated law of a model": lambda: targeting(complete(), KNOWN * Language(LM, TEXT, top_p=0.5)),
    "fewer tokens": lambda: constrained(complete(LONGEST - 1), KNOWN),
    "no token for the end": lambda: complete(),
    "tokens and not the whole": lambda: constrained(LM.tokens(TEXT, LONGEST), KNOWN),
    "another text": lambda: constrained(LM.complete(LM.prompt("ba"), max_tokens=LONGEST), KNOWN),
    "weights that are not proper": lambda: constrained(complete(), KNOWN, sampler=AWRS(proper_weights=False)),
    "a mask": lambda: LM.next_token(TEXT, mask=[True] * LM.vocab_size),
    "a model alone, truncated": lambda: complete(LONGEST + 1, top_p=0.9),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_to_cover_is_refused_before_anything_is_drawn(name):
    before = LM.forwarded
    with pytest.raises(fk.errors.UnsupportedProposal, match="cannot reach all that"):
        fk.infer(proposed(REFUSED[name]()), fk.SMC(2), seed=0)
    assert LM.forwarded == before


def test_potentials_know_what_they_cover():
    a, b, c = grammar("a*"), grammar("b*"), grammar("c*")
    for wide, narrow in [
        (a, a), (a, grammar("a*")), (a, a * b), (a * b, b * c * a), (a**2, a), (a, a**0.5), (a, a * LAW),
        (mixture([a, b], [0.5, 0.5]), a), (mixture([a, b], [0.5, 0.5]), mixture([b, a], [0.1, 0.9])),
        (LAW, a), (LAW, OTHER), (LAW * a, OTHER * a), (a.after(1), (a * b).after(1)),
        (LAW, Language(LM, TEXT, top_k=1)), (a, mixture([a * b, a * c], [0.5, 0.5])),
    ]:  # fmt: skip
        assert wide.covers(narrow), (wide, narrow)
    for narrow, wide in [
        (a, b), (a * b, a), (a, mixture([a, b], [0.5, 0.5])), (a, LAW), (a.after(1), a), (a, a.after(1)),
        (a.after(1), a.after(2)), (Language(LM, TEXT, top_k=2), LAW), (a * LAW, LAW),
    ]:  # fmt: skip
        assert not narrow.covers(wide), (narrow, wide)


def test_steps_and_constrained_steps_cover_each_other_where_they_should():
    tokens = LM.tokens(TEXT, 2)
    here = constrained(tokens, KNOWN)
    assert here.covers(here)
    assert here.covers(constrained(tokens, KNOWN, sampler="awrs"))
    assert tokens.covers(here)
    assert LM.tokens(TEXT, 2, temperature=0.5).covers(here)
    assert constrained(LM.tokens(TEXT, 2, top_k=2), KNOWN).covers(constrained(LM.tokens(TEXT, 2, top_k=2), KNOWN))
    assert LM.tokens(TEXT, 2, top_k=2).covers(constrained(LM.tokens(TEXT, 2, top_k=2), KNOWN))
    assert not LM.tokens(TEXT, 2, top_k=2).covers(targeting(tokens, KNOWN))
    for other in (tokens, constrained(LM.tokens(TEXT, 3), KNOWN), constrained(tokens, grammar("ab"))):
        assert not here.covers(other)
