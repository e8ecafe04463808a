"""Grammars over the tokens of a byte-level tokenizer: what they let through is valid, in all cases."""

from __future__ import annotations

import json
import math
import re

import pytest

import feynkac as fk

pytest.importorskip("torch")
pytest.importorskip("llguidance")

from toys_constrained import PATTERN, PROMPT, contexts, letters_lm, strings, whole_prob

from feynkac.models.constraints import Where, constrained
from feynkac.models.testing import tiny_lm

C = fk.constraints
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["sea", "hill"]}, "n": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "n"],
    "additionalProperties": False,
}
PLACES = "(Zürich|Köln|東京)(, (Zürich|Köln|東京))?"
NESTED = 'start: "[" start "]" | "x" | "(" start start ")"'


def test_grammars_on_bytes_keep_their_laws():
    lm = tiny_lm()
    cities = C.regex(lm, "(Zürich|Köln|東京)( and (Zürich|Köln|東京))*")
    nested = C.lark(lm, 'start: "(" start ")" | ITEM\nITEM: /[a-z]+/')
    schema = C.json_schema(lm, SCHEMA)
    cities.check([*contexts(lm, ["", "Z", "Zür", "Köln and", "東京", "Bern"]), tuple(lm.encode("東京"))[:-1]])
    nested.check(contexts(lm, ["", "((", "(a", "((the)", "((the))", "((the)))"]))
    schema.check(contexts(lm, ["", "{", '{"name": "', '{"name":"sea","n":', '{"name":"sea","n":7}', "[]"]))


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


@pytest.mark.slow
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


@pytest.mark.slow
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
