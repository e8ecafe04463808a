"""Constrained generation: its law against enumeration, its outputs, its refusals.

Each z-test raises a false alarm twice in 100,000 times (`laws.Z_LIMIT`); there are about 250 here. Seeds are fixed.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest

import feynkac as fk
from laws import T2_ORDER, T2_POSTERIOR, T2_Z, check_unbiased

pytest.importorskip("torch")
pytest.importorskip("llguidance")

from toys_constrained import CountA, Table, letters_lm, prefix_prob, strings, target, value, whole_prob

from feynkac.models.constraints import AWRS, Constraint, Language, Rewarded, Where, constrained, mixture, targeting
from feynkac.models.testing import tiny_lm
from feynkac.ppl import keys as fkeys
from feynkac.ppl.cost import Ledger, recording
from feynkac.ppl.memory import afresh
from feynkac.ppl.score import evaluate

C = fk.constraints
PATTERN = "(ab|b)?c?|cab+c"  # after three tokens "abc" may end, and "cab" may not
LONGEST = 3
PROMPT = "ab"
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["sea", "hill"]}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "n"],
    "additionalProperties": False,
}


def regular(lm, also=lambda s: 1.0):
    """The exact target: whole texts of at most so many tokens, under the pattern."""
    return target({s: whole_prob(lm, PROMPT, s) * also(s) for s in strings(LONGEST) if re.fullmatch(PATTERN, s)})


# -- the law of constrained texts against enumeration -----------------------------------------------------------------


@fk.program
async def in_one(lm, potential, sampler="mask"):
    step = lm.complete(lm.prompt(PROMPT), max_tokens=LONGEST)
    return str(await fk.sample("all", constrained(step, potential, sampler=sampler)))


@fk.program
async def by_token(lm, potential, sampler="mask"):
    text = lm.prompt(PROMPT)
    for _ in range(LONGEST - 1):
        text = await fk.sample("token", constrained(lm.next_token(text), potential, sampler=sampler))
        await fk.factor("step", 0.0)
    step = lm.complete(text, max_tokens=1)
    return str(await fk.sample("rest", constrained(step, potential, sampler=sampler)))


@fk.program
async def by_line(lm, potential, sampler="mask"):
    text = lm.prompt(PROMPT)
    line = lm.until(text, "b", max_tokens=LONGEST - 1, include_stop=True)
    text = await fk.sample("line", constrained(line, potential, sampler=sampler))
    await fk.factor("step", 0.0)
    step = lm.complete(text, max_tokens=LONGEST - len(text.tokens))
    return str(await fk.sample("rest", constrained(step, potential, sampler=sampler)))


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


def test_a_reward_as_a_potential_must_be_a_log_weight():
    lm = letters_lm()

    @fk.reward(kind="probability")
    def fine(text):
        return 0.25

    start = lm.prompt(PROMPT)
    with pytest.raises(fk.errors.AmbiguousScore, match=r"fine.*\.log\(\)"):
        Rewarded(start, fine).complete(())
    with pytest.raises(TypeError, match=r"returned 0\.25"):
        Rewarded(start, lambda text: 0.25).complete(())
    assert Rewarded(start, lambda text: fine(text).log()).complete(()) == pytest.approx(math.log(0.25))


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


# -- products and mixtures of language models -------------------------------------------------------------------------


def models():
    one, other = letters_lm(0), letters_lm(1)
    return one, other, Language(one, one.prompt(PROMPT)), Language(other, other.prompt("ca"))


def by_tokens(string, probs):
    """Π_t Σ_i w_i p_i(x_t | …), the end included."""
    total = 1.0
    for t in range(len(string) + 1):
        part = 0.0
        for weight, lm, prompt in probs:
            whole = whole_prob(lm, prompt, string) if t == len(string) else prefix_prob(lm, prompt, string[: t + 1])
            part += weight * whole / prefix_prob(lm, prompt, string[:t])
        total *= part
    return total


COMBINED = {
    "experts": (lambda a, b: a**0.7 * b**1.5, lambda p, q, s: p**0.7 * q**1.5),
    "contrast": (lambda a, b: a**2 / b, lambda p, q, s: p**2 / q),
    "mixture": (lambda a, b: mixture([a, b], [0.3, 0.7]), lambda p, q, s: 0.3 * p + 0.7 * q),
    "mixture of tokens": (
        lambda a, b: mixture([a, b], [0.3, 0.7], of="tokens"),
        lambda p, q, s: by_tokens(s, [(0.3, letters_lm(0), PROMPT), (0.7, letters_lm(1), "ca")]),
    ),
    "three": (
        lambda a, b: a * b * mixture([a, b], [0.5, 0.5]) ** 0.5,
        lambda p, q, s: p * q * (0.5 * p + 0.5 * q) ** 0.5,
    ),
}


@pytest.mark.parametrize("name", COMBINED)
def test_the_target_is_the_product_over_whole_texts(name):
    one, other, a, b = models()
    combine, weigh = COMBINED[name]
    z, law = target({s: weigh(whole_prob(one, PROMPT, s), whole_prob(other, "ca", s), s) for s in strings(2)})

    @fk.program
    async def both(potential):
        text = one.prompt(PROMPT)
        text = await fk.sample("token", targeting(one.next_token(text), potential))
        await fk.factor("step", 0.0)
        return str(await fk.sample("rest", targeting(one.complete(text, max_tokens=1), potential)))

    check_unbiased(both(combine(a, b)), fk.SMC(4), law, math.log(z), runs=600)
    z, law = target({s: w * z for s, w in law.items() if re.fullmatch(PATTERN, s)})
    check_unbiased(both(combine(a, b) * C.regex(one, PATTERN)), fk.SMC(4, all_dead="zero"), law, math.log(z), runs=600)


def test_a_product_with_a_model_is_its_own_law_times_the_other():
    one, _, a, b = models()
    step = one.tokens(one.prompt(PROMPT), 2)
    draws = constrained(step, b).sample_batch([constrained(step, b)] * 5, fkeys.fold(fkeys.root(0), np.arange(5)))
    assert targeting(step, a * b).log_prob_batch([targeting(step, a * b)] * 5, draws.values) == pytest.approx(
        draws.log_prob, abs=1e-5
    )


def test_what_a_model_said_of_a_context_is_forgotten_afresh():
    lm = letters_lm()
    law, context, costs = Language(lm, lm.prompt(PROMPT)), (1, 2, 1), []

    def ask():
        ledger = Ledger(1)
        with recording(ledger):
            assert law.prefix(context) == pytest.approx(prefix)
        costs.append(ledger.total().tokens_in)

    prefix = law.prefix(context)
    ask()
    for _ in range(2):
        with afresh():
            ask()
    assert costs[0] == 0 < costs[1] == costs[2]


def test_each_model_makes_one_call_a_wave():
    one, other, _, b = models()
    calls = {}
    for lm in (one, other):
        lm.forwarder.clear()
        invoke = lm.forwarder.invoke
        calls[lm] = 0

        def counted(lm=lm, invoke=invoke, **inputs):
            calls[lm] += 1
            return invoke(**inputs)

        lm.forwarder.invoke = counted

    @fk.program
    async def both():
        return await fk.sample("x", targeting(one.tokens(one.prompt(PROMPT), 4), Language(one, one.prompt(PROMPT)) * b))

    posterior = fk.infer(both(), fk.SMC(16), seed=3)
    for lm in (one, other):
        del lm.forwarder.invoke
    assert max(calls.values()) <= 5  # a prompt may be forwarded apart
    assert posterior.cost.model_calls == sum(calls.values())


# -- the contract ------------------------------------------------------------------------------------------------------


def contexts(lm, words):
    return [tuple(lm.encode(word)) if word else () for word in words]


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


def test_grammars_on_bytes_keep_their_laws():
    lm = tiny_lm()
    cities = C.regex(lm, "(Zürich|Köln|東京)( and (Zürich|Köln|東京))*")
    nested = C.lark(lm, 'start: "(" start ")" | ITEM\nITEM: /[a-z]+/')
    schema = C.json_schema(lm, SCHEMA)
    cities.check([*contexts(lm, ["", "Z", "Zür", "Köln and", "東京", "Bern"]), tuple(lm.encode("東京"))[:-1]])
    nested.check(contexts(lm, ["", "((", "(a", "((the)", "((the))", "((the)))"]))
    schema.check(contexts(lm, ["", "{", '{"name": "', '{"name":"sea","n":', '{"name":"sea","n":7}', "[]"]))


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


# -- texts of a byte-level tokenizer: valid in all cases --------------------------------------------------------------

PLACES = "(Zürich|Köln|東京)(, (Zürich|Köln|東京))?"
NESTED = 'start: "[" start "]" | "x" | "(" start start ")"'


def valid_json(string):
    found = json.loads(string)
    return set(found) == {"name", "n"} and found["name"] in ("sea", "hill") and 0 <= found["n"] <= 99


def valid_nested(string):
    before = None
    while before != string:
        before, string = string, re.sub(r"\[x\]|\(xx\)", "x", string)
    return string == "x"


GRAMMARS = {
    "schema": (lambda lm: C.json_schema(lm, SCHEMA, whitespace=False), valid_json),
    "regex": (lambda lm: C.regex(lm, PLACES), lambda s: re.fullmatch(PLACES, s) is not None),
    "nested": (lambda lm: C.lark(lm, NESTED), valid_nested),
}


@pytest.mark.parametrize("sampler", ["mask", "awrs"])
@pytest.mark.parametrize("name", GRAMMARS)
def test_complete_texts_are_valid(name, sampler):
    lm = tiny_lm()
    make, valid = GRAMMARS[name]
    grammar = make(lm)

    @fk.program
    async def one():
        text = await fk.sample(
            "all", constrained(lm.complete(lm.prompt("Once"), max_tokens=40), grammar, sampler=sampler)
        )
        await fk.factor("judge", 0.1 * len(str(text)))
        return text

    count = 0
    for posterior in fk.infer([one()] * 8, fk.SMC(8, all_dead="zero"), seed=1):
        for text, p in zip(posterior.values, posterior.probabilities):
            if p > 0:
                assert text.finish_reason == "eos"
                assert valid(str(text)), str(text)
                count += 1
    assert count > 30


@pytest.mark.parametrize("sampler", ["mask", "awrs"])
def test_steps_of_all_kinds_give_viable_prefixes(sampler):
    lm = tiny_lm()
    grammar = C.regex(lm, r"([a-z]{2,5} ){1,3}[a-z]+\.\n([A-Z][a-z]*[.!] ?)+")

    @fk.program
    async def some():
        text = lm.prompt("Once")
        for step in (lm.next_token, lambda text: lm.tokens(text, 3), lm.line, lm.sentence):
            text = await fk.sample("step", constrained(step(text), grammar, sampler=sampler))
            fk.deterministic("output", text)
            await fk.factor("end", 0.0)
        return text

    for posterior in fk.infer([some()] * 4, fk.SMC(8, all_dead="zero"), seed=0):
        alive = [text for text, p in zip(posterior.values, posterior.probabilities) if p > 0]
        assert all(grammar.viable(tuple(t for t in text.tokens if t not in lm.eos)) for text in alive)
        assert alive


def test_each_request_has_its_own_constraint_in_a_shared_wave():
    lm = letters_lm()
    text = lm.prompt(PROMPT)
    patterns = {"a{1,3}": "mask", "b{1,3}": "mask", "c{1,3}": "awrs", "(a|c){2}": "awrs"}

    @fk.program
    async def one(pattern):
        step = lm.complete(text, max_tokens=3)
        return str(await fk.sample("x", constrained(step, C.regex(lm, pattern), sampler=patterns[pattern])))

    posteriors = fk.infer([one(pattern) for pattern in patterns], fk.SMC(200, all_dead="zero"), seed=0)
    for pattern, posterior in zip(patterns, posteriors):
        z = sum(whole_prob(lm, PROMPT, s) for s in strings(3) if re.fullmatch(pattern, s))
        assert math.exp(posterior.log_evidence) == pytest.approx(z, rel=0.5)
        assert all(re.fullmatch(pattern, s) for s, p in zip(posterior.values, posterior.probabilities) if p > 0)


def test_a_wave_makes_one_call():
    lm = tiny_lm(seed=5)
    grammar = C.regex(lm, "[a-z]{30,}")

    @fk.program
    async def one():
        return await fk.sample("x", constrained(lm.tokens(lm.prompt("Once"), 6), grammar))

    cost = fk.infer(one(), fk.SMC(32), seed=0).cost
    assert cost.model_calls == 6
    assert cost.tokens_out == 6 * 32


def test_rejection_asks_about_few_tokens():
    lm = tiny_lm(scale=3.0)
    asked = []

    def brief(string):
        asked.append(string)
        return "e" not in string

    @fk.program
    async def one():
        return await fk.sample("x", constrained(lm.tokens(lm.prompt("Once"), 5), Where(lm, brief), sampler="awrs"))

    posterior = fk.infer(one(), fk.SMC(4, all_dead="zero"), seed=0)
    assert all("e" not in str(text) for text, p in zip(posterior.values, posterior.probabilities) if p > 0)
    assert len(asked) < 4 * 5 * lm.vocab_size / 5


# -- forced values, observed values, replays ---------------------------------------------------------------------------


def test_forced_texts_have_the_weights_they_were_drawn_with():
    lm = letters_lm()
    grammar = C.regex(lm, PATTERN)
    model = by_line(lm, grammar)
    keys = fkeys.fold(fkeys.root(4), np.arange(20))
    first = model.start(keys)
    again = model.start(fkeys.fold(keys, 1), given=list(first.choices))
    assert np.exp(first.log_increment).std() > 0.01
    assert again.log_prob == pytest.approx(first.log_prob, abs=1e-4)
    assert again.log_increment == pytest.approx(first.log_increment, abs=1e-4)


def test_a_step_in_the_middle_of_a_text_is_scored_as_it_was_drawn():
    one, _, a, b = models()
    text = one.prompt(PROMPT).append("ba")
    assert b.prefix(text.tokens) < -1.0  # what came before counts in neither
    for step in (one.tokens(text, 2), one.complete(text, max_tokens=2)):
        for request in (constrained(step, b), targeting(step, a * b)):
            requests = [request] * 6
            draws = request.sample_batch(requests, fkeys.fold(fkeys.root(1), np.arange(6)))
            assert request.log_prob_batch(requests, draws.values) == pytest.approx(draws.log_prob, abs=1e-5)
            ledger = Ledger(1)
            with recording(ledger):
                log_proposal = request.log_proposal_batch(requests[:1], draws.values[:1])
            assert log_proposal == pytest.approx(draws.log_proposal[:1], abs=1e-5)
            assert ledger.total().tokens_out == 0  # nothing was drawn


def test_a_text_is_scored_as_the_model_times_the_grammar():
    lm = letters_lm()
    text = lm.prompt(PROMPT)
    step = constrained(lm.complete(text, max_tokens=LONGEST), C.regex(lm, PATTERN))
    for string in strings(LONGEST):
        ended = lm.attach(text.append(string)) if string else text
        value = replace(ended, node=lm.tree.child(ended.node, 0), finish_reason="eos")
        p = whole_prob(lm, PROMPT, string) if re.fullmatch(PATTERN, string) else 0.0
        assert math.exp(step.log_prob_batch([step], [value])[0]) == pytest.approx(p, rel=1e-5)
    assert step.log_prob_batch([step], [text.append("ab")])[0] == -math.inf  # it does not end there
    unknown = replace(text, node=lm.tree.child(lm.tree.child(text.node, 99), 0), finish_reason="eos")
    assert step.log_prob_batch([step], [unknown])[0] == -math.inf


def test_rejection_cannot_be_forced():
    lm = letters_lm()
    model = by_token(lm, C.regex(lm, PATTERN), "awrs")
    first = model.start(fkeys.root(2))
    with pytest.raises(fk.errors.CannotScore, match='sampler="mask"'):
        model.start(fkeys.root(3), given=list(first.choices))


def test_a_request_draws_alike_alone_and_beside_others():
    lm = letters_lm()
    text, grammar = lm.prompt(PROMPT), C.regex(lm, "[ab]*")
    steps = [lm.complete(text, max_tokens=1), lm.complete(text, max_tokens=3), lm.tokens(text, 2, temperature=0.3)]
    steps += [lm.tokens(text, 2, temperature=3.0)]
    requests = [targeting(steps[1], grammar), constrained(lm.complete(text, max_tokens=2), grammar, sampler="awrs")]
    requests += [constrained(step, grammar) for step in steps for _ in range(4)]
    keys = fkeys.fold(fkeys.root(3), np.arange(len(requests)))
    together = requests[0].sample_batch(requests, keys)
    for i, request in enumerate(requests):
        alone = request.sample_batch([request], keys[i : i + 1])
        assert alone.values[0] == together.values[i]
        assert alone.log_prob[0] == pytest.approx(together.log_prob[i], abs=1e-5)
        assert alone.log_proposal[0] == pytest.approx(together.log_proposal[i], abs=1e-5)


class Flat(C.Potential):
    """1 everywhere: it does not know which tokens are ends."""

    def __init__(self, lm):
        self.vocabulary = C.Vocabulary.of(lm)

    def prefix(self, context):
        return 0.0

    complete = prefix


def test_of_several_end_tokens_a_potential_alone_draws_one():
    lm = letters_lm(9)  # its own, as it is changed
    lm.eos = frozenset((0, 3))
    start = lm.prompt(PROMPT)
    for kind, ends in ((constrained, 2), (targeting, 1)):
        assert sum(text.finished for text in kind(lm.next_token(start), Flat(lm)).support()) == ends


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda lm: C.regex(lm, r"[^\s\S]"), "matches no text at all"),
        (lambda lm: C.regex(lm, "(ab"), "cannot be read: .*unclosed group"),
        (lambda lm: C.lark(lm, "start: missing"), "cannot be read: .*unknown name"),
        (lambda lm: C.json_schema(lm, {"allOf": [{"type": "string"}, {"type": "number"}]}), "Unsatisfiable schema"),
        (lambda lm: C.json_schema(lm, {"type": "blub"}), "cannot be read: Invalid type"),
    ],
)
def test_grammars_that_cannot_be_kept_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(tiny_lm())


def test_other_tokens_are_refused_by_name():
    lm, letters = tiny_lm(), letters_lm()
    message = "tokenizer of letters-abc-0 .* and the tokenizer of tiny-.* are not the same tokens"
    with pytest.raises(ValueError, match=message):
        Language(letters, letters.prompt("a")) * C.regex(lm, "a")
    with pytest.raises(ValueError, match="not the same tokens"):
        C.regex(letters, "a") * C.regex(lm, "a")
    with pytest.raises(ValueError, match=r"\(4 tokens\) .* \(4 tokens\) are not the same tokens"):
        C.regex(letters, "a") * C.regex(letters_lm(letters="abd"), "a")
    with pytest.raises(ValueError, match="not the same tokens"):
        mixture([C.regex(letters, "a"), C.regex(lm, "a")], [0.5, 0.5])
    with pytest.raises(ValueError, match="not the same tokens"):
        constrained(lm.next_token(lm.prompt("Once")), C.regex(letters, "a"))


def test_arguments_are_refused():
    lm = letters_lm()
    text, grammar = lm.prompt("a"), C.regex(lm, PATTERN)
    for bad in (
        lambda: constrained(lm.next_token(text, temperature=0), grammar),
        lambda: constrained(lm.next_token(text, mask=np.ones(4, bool)), grammar),
        lambda: constrained(lm.next_token(text), grammar, sampler="beam"),
        lambda: targeting(lm.next_token(text, temperature=0.5), grammar),
        lambda: grammar**0,
        lambda: Language(lm, text) ** math.inf,
        lambda: mixture([grammar], [0.5, 0.5]),
        lambda: mixture([grammar], [-1.0]),
        lambda: AWRS(max_accepts=1),
        lambda: AWRS("recursive", max_rejects=5),
        lambda: AWRS("other"),
    ):
        with pytest.raises(ValueError):
            bad()
    with pytest.raises(TypeError, match="a step of a language model"):
        constrained(fk.dist.Normal(0, 1), grammar)
    with pytest.raises(TypeError, match="a Potential is needed"):
        constrained(lm.next_token(text), lambda text: 0.0)


class DeadEnd(Constraint):
    """Alive for two tokens, and then nothing."""

    def __init__(self, lm):
        self.vocabulary = C.Vocabulary.of(lm)

    def viable(self, context):
        return len(context) <= 2 and 0 not in context

    def accepts(self, context):
        return False


def test_what_schemas_let_through_is_as_the_docstring_says():
    lm = tiny_lm()

    def accepted(schema, *strings):
        grammar = C.json_schema(lm, schema)
        return [grammar.accepts(lm.encode(string)) for string in strings]

    two = {"type": "object", "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}}}
    twice = '{"z": 1, "z": 2}'
    assert accepted(two, twice, '{"x": 1, "x": 2}', '{"y": 1, "x": 1}') == [True, False, False]
    assert accepted({**two, "additionalProperties": False}, twice) == [False]
    assert accepted({"type": "number"}, "1e999") == [True]
    assert accepted({"type": "integer"}, "100000", "1e5", "1.0") == [True, False, False]
    assert accepted({"type": "string", "format": "date"}, '"2023-02-29"', '"2023-02-31"') == [True, False]
    assert accepted({"type": "string", "maxLength": 2}, '"ab"', '"\\u0061b"') == [True, False]


def test_a_parser_that_gives_up_is_no_dead_end():
    class Matcher:
        def __init__(self, error):
            self.error = error

        def is_error(self):
            return True

        def get_error(self):
            return self.error

    grammar = C.regex(letters_lm(), PATTERN)
    grammar._check(Matcher("NoExtension: nothing fits"))
    with pytest.raises(RuntimeError, match=r"<regex .*>: llguidance gave up: ParserTooComplex: too many items$"):
        grammar._check(Matcher("ParserTooComplex: too\n many items<state> and so on"))


@pytest.mark.parametrize("sampler", ["mask", "awrs"])
def test_ids_that_the_tokenizer_does_not_have_are_never_drawn(sampler):
    lm = letters_lm(padding=4)
    assert lm.vocab_size == C.Vocabulary.of(lm).size + 4
    step = constrained(lm.tokens(lm.prompt(PROMPT), 3), Where(lm, lambda string: True), sampler=sampler)
    draws = step.sample_batch([step] * 30, fkeys.fold(fkeys.root(0), np.arange(30)))
    assert all(token < 4 for text in draws.values for token in text.tokens)


@pytest.mark.parametrize("sampler", ["mask", "awrs"])
def test_a_constraint_that_dies_kills_at_its_site(sampler):
    lm = letters_lm()
    with pytest.raises(fk.errors.AllParticlesDead, match="4 at site 'rest'"):
        fk.infer(by_token(lm, DeadEnd(lm), sampler), fk.SMC(4), seed=0)
    (posterior,) = fk.infer([by_token(lm, DeadEnd(lm), sampler)], fk.SMC(4, all_dead="zero"), seed=0)
    assert posterior.log_evidence == -math.inf


def test_a_weight_that_is_no_number_is_named():
    lm = letters_lm()
    vocabulary = C.Vocabulary.of(lm)
    bad = CountA(vocabulary, lambda context: math.nan if len(context) == 2 else 0.0)
    with pytest.raises(
        fk.errors.InvalidWeight, match=r"CountA: after the tokens \(\d,\) a log-weight is nan"
    ) as raised:
        fk.infer(by_token(lm, bad), fk.SMC(2), seed=0)
    assert "token" in "".join(raised.value.__notes__)


def test_a_full_context_leaves_no_room_for_the_end():
    lm = letters_lm(context=6)
    step = constrained(lm.complete(lm.prompt("ab"), max_tokens=20), Where(lm, lambda s: True, lambda s: len(s) > 9))
    draws = step.sample_batch([step] * 3, fkeys.fold(fkeys.root(0), np.arange(3)))
    assert (draws.log_prob == -math.inf).all()


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


def test_a_law_beyond_the_context_of_its_model_is_refused():
    small = letters_lm(context=6)
    law = Language(small, small.prompt("ab"))
    assert np.isfinite(law.prefix((1, 2, 1, 2)))
    with pytest.raises(fk.errors.ContextOverflow, match="7 tokens are more than its context of 6"):
        law.prefix((1, 2, 1, 2, 1))


def test_a_reward_as_a_potential_sees_the_response_as_a_step_after_those_before():
    lm, seen = letters_lm(), []

    @fk.reward
    def steps(text):
        seen.append(text.steps)
        return 0.0

    Rewarded(lm.prompt("a").append("bc"), lambda text: steps(text) / 1.0).complete(tuple(lm.encode("ab")))
    assert seen == [("bc", "ab")]


def test_a_context_that_is_too_short_for_what_comes_after_is_refused():
    rest = C.regex(letters_lm(), PATTERN).after(2)
    assert rest.prefix((3, 3)) == 0.0
    with pytest.raises(ValueError, match=r"after 2 tokens was asked about \(3,\), which has only 1 tokens"):
        rest.prefix((3,))


def test_a_text_is_worth_what_it_ends_as():
    lm = letters_lm()
    grammar, start = C.regex(lm, "abc|ab"), lm.prompt(PROMPT)
    going = start.append("ab")
    ended = replace(going, node=lm.tree.child(going.node, 0), finish_reason="eos")
    early = replace(start, node=lm.tree.child(start.node, 0), finish_reason="eos")
    assert evaluate([grammar.score(text) for text in (start, going, ended, early)]) == [0.0, 0.0, 0.0, -math.inf]


@pytest.mark.real
def test_json_by_the_real_model():
    lm = fk.models.TransformersLM.from_pretrained("smollm2")
    schema = C.json_schema(lm, {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 12}, "rainy": {"type": "boolean"}},
        "required": ["city", "rainy"], "additionalProperties": False,
    })  # fmt: skip
    start = lm.prompt([{"role": "user", "content": "Give a city in England and whether it is rainy, as JSON."}])
    schema.check([(), lm.encode('{"city'), lm.encode('{"city": "Zü'), lm.encode('{"city": "York", "rainy": true}')])
    weights = {}
    for sampler in ("mask", "awrs"):

        @fk.program
        async def answer(sampler):
            text = start
            for _ in range(4):
                text = await fk.sample("some", constrained(lm.tokens(text, 3), schema, sampler=sampler))
                await fk.factor("step", 0.0)
            return await fk.sample("rest", constrained(lm.complete(text, max_tokens=30), schema, sampler=sampler))

        posterior = fk.infer(answer(sampler), fk.SMC(8), seed=0)
        weights[sampler] = posterior.log_evidence
        alive = [text for text, p in zip(posterior.values, posterior.probabilities) if p > 0]
        for text in alive:
            found = json.loads(str(text))
            assert isinstance(found["city"], str)
            assert isinstance(found["rainy"], bool)
        assert alive
    assert abs(weights["mask"] - weights["awrs"]) < 10  # of the same quantity; the laws are tested on toys
