"""What a potential promises: its laws, and the check that finds broken ones."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

import feynkac as fk

pytest.importorskip("torch")
pytest.importorskip("llguidance")

from toys_constrained import PATTERN, PROMPT, contexts, letters_lm, models

from feynkac.models.constraints import Constraint, Language, Rewarded, Where, mixture
from feynkac.ppl.score import evaluate

C = fk.constraints


def test_the_potentials_of_the_library_keep_their_laws():
    one, _, a, b = models()
    start = one.prompt(PROMPT)
    some = [*contexts(one, ["", "a", "ab", "bbc", "cc", "abab"]), (1, 0), (1, 0, 2)]

    @fk.reward
    def length(text):
        return float(len(str(text)))

    grammar = C.regex(one, PATTERN)
    no_c = Where(one, lambda s: "c" not in s)
    brief = Rewarded(start, lambda text: length(text) / 2.0)
    parts = [a, b, grammar, no_c, brief, grammar * no_c, a * grammar, a**2 / b, no_c**3, (a * brief) ** -0.5]
    parts += [
        Language(one, start, temperature=0.6),
        mixture([a, b, grammar], [1.0, 0.2, 3.0]),
        mixture([a, b], [0.5, 0.5], of="tokens"),
    ]
    for potential in parts:
        potential.check(some, atol=1e-4)
    for potential in (grammar.after(1), (a * b).after(1), grammar.after(start.append("a"))):
        potential.check(some[1:], atol=1e-4)
    for potential in (a, b, grammar, no_c, brief):  # an end token is the end, and no token
        assert potential.prefix((1, 0)) == -math.inf
        assert potential.logw_next((1,))[0] == -math.inf
    assert grammar.after(start) is grammar


def test_potentials_that_differ_are_told_apart():
    """Those of one fingerprint share a call of the first of them."""
    one, _, a, b = models()
    start = one.prompt(PROMPT)

    @fk.reward
    def length(text):
        return float(len(str(text)))

    def short(string):
        return len(string) < 3

    def never(string):
        return False

    def half(text):
        return length(text) / 2.0

    ab, bc = C.regex(one, "ab"), C.regex(one, "bc")
    everything = [
        a, b, Language(one, one.prompt("ca")), Language(one, start, temperature=0.5), ab, bc,
        C.lark(one, 'start: "ab"'), Where(one, short), Where(one, never), Where(one, short, never),
        Rewarded(start, half), Rewarded(start, length), Rewarded(one.prompt("ca"), half), ab * bc,
        ab * Where(one, short), a * ab, a * bc, a**2, a**3, b**2, ab.after(1), ab.after(2), bc.after(1), a / b, b / a,
        mixture([a, b], [0.5, 0.5]), mixture([a, b], [0.2, 0.8]), mixture([b, a], [0.5, 0.5]),
        mixture([a, b], [0.5, 0.5], of="tokens"),
    ]  # fmt: skip
    assert len({potential.fingerprint for potential in everything}) == len(everything)
    again = [
        Language(one, start),
        C.regex(one, "ab"),
        Where(one, short),
        Rewarded(start, half),
        C.regex(one, "ab") * bc,
    ]
    assert {potential.fingerprint for potential in again} < {potential.fingerprint for potential in everything}


def test_a_constraint_may_have_parts_of_its_own():
    class Few(Constraint):
        vocabulary = C.Vocabulary(2)
        parts = ("one", "two")

        def viable(self, context):
            return len(context) <= len(self.parts)

        accepts = viable

    both = Few() * Few() * Few()
    both.check([(), (0, 1), (1, 1, 1)])
    assert len(both.parts) == 3


class Broken(C.Potential):
    vocabulary = C.Vocabulary(3)

    def __repr__(self):
        return "Broken"

    def prefix(self, context):
        return -0.5 * len(context) if 2 not in context else -math.inf

    def complete(self, context):
        return self.prefix(context) - 1.0


class WrongNext(Broken):
    def logw_next(self, context):
        return np.array([-0.5, -0.4, -math.inf, -1.0])


class WrongEnd(Broken):
    def logw_next(self, context):
        return np.array([-0.5, -0.5, -math.inf, -2.0])


class Risen(Broken):
    def complete(self, context):
        return 0.0


class Alive(Broken):
    def prefix(self, context):
        return -math.inf if context == (2,) else 0.0

    def complete(self, context):
        return self.prefix(context)


class BadBatch(Broken):
    def logw_next_batch(self, contexts):
        return np.array([self.logw_next(contexts[0])] * len(contexts))


class BadToken(Broken):
    def logw_token_batch(self, contexts, tokens):
        return np.zeros(len(contexts))


class NotANumber(Broken):
    def complete(self, context):
        return math.nan


class TooLarge(Broken):
    def complete(self, context):
        return math.inf


class NoEnd(Broken):
    def logw_next(self, context):
        return super().logw_next(context)[:-1]


class Undead(Broken):
    def logw_next(self, context):
        return np.array([-0.5, -0.5, -math.inf, -1.0])


class BadEnds(Broken):
    def complete_batch(self, contexts):
        return np.array([self.complete(context) for context in contexts[:1]] * len(contexts))


@pytest.mark.parametrize(
    ("potential", "message"),
    [
        (WrongNext(), r"Broken: context \(0,\), token 1: logw_next says -0.4, but .* is -0.5"),
        (WrongEnd(), r"context \(0,\), the end: logw_next says -2.0, but complete\(context\) .* is -1.0"),
        (Risen(), r"context \(2,\): prefix is -inf, but complete is 0.0"),
        (Alive(), r"context \(2,\), token 0: prefix is -inf, but prefix\(context \+ token\) is 0.0"),
        (BadBatch(), r"context \(2,\): logw_next_batch differs from logw_next at entry 0"),
        (BadToken(), r"context \(0,\), token 0: logw_token_batch says 0.0, not -0.5"),
        (NotANumber(), r"context \(0,\): complete is NaN"),
        (TooLarge(), r"context \(0,\): complete is NaN or \+inf"),
        (NoEnd(), r"context \(0,\): logw_next has shape \(3,\), not \(4,\)"),
        (Undead(), r"context \(2,\): prefix is -inf, but logw_next is not at entry 0"),
        (BadEnds(), r"context \(2,\): complete_batch differs from complete"),
    ],
)
def test_broken_laws_are_found_by_context_and_token(potential, message):
    with pytest.raises(AssertionError, match=message):
        potential.check([(0,), (2,), (0, 1)])


def test_the_sound_one_passes():
    Broken().check([(0,), (2,), (0, 1)])


class Wide(C.Potential):
    """1 everywhere; it says something else of its last token, and counts what it is asked."""

    def __init__(self, size):
        self.vocabulary, self.asked = C.Vocabulary(size), 0

    def prefix(self, context):
        self.asked += 1
        return 0.0

    complete = prefix

    def logw_next(self, context):
        return np.r_[np.zeros(self.vocabulary.size - 1), 1.0, 0.0]


def test_every_token_is_looked_at_unless_there_are_very_many():
    with pytest.raises(AssertionError, match=r"context \(\), token 511: logw_next says 1.0"):
        Wide(512).check([()])
    wide = Wide(513)
    wide.check([()])
    assert wide.asked < 4 * 64
    with pytest.raises(AssertionError, match=r"token 512: logw_next says 1.0"):
        Wide(513).check([()], tokens=[3, 512])


def test_a_reward_as_a_potential_sees_the_response_as_a_step_after_those_before():
    lm, seen = letters_lm(), []

    @fk.reward
    def steps(text):
        seen.append(text.steps)
        return 0.0

    Rewarded(lm.prompt("a").append("bc"), lambda text: steps(text) / 1.0).complete(tuple(lm.encode("ab")))
    assert seen == [("bc", "ab")]


def test_a_text_is_worth_what_it_ends_as():
    lm = letters_lm()
    grammar, start = C.regex(lm, "abc|ab"), lm.prompt(PROMPT)
    going = start.append("ab")
    ended = replace(going, node=lm.tree.child(going.node, 0), finish_reason="eos")
    early = replace(start, node=lm.tree.child(start.node, 0), finish_reason="eos")
    assert evaluate([grammar.score(text) for text in (start, going, ended, early)]) == [0.0, 0.0, 0.0, -math.inf]
