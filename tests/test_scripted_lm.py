"""A language model that says what a script says: its laws, its log-probabilities, and what it costs."""

from __future__ import annotations

import math

import numpy as np
import pytest

import feynkac as fk
from feynkac.models.testing import ScriptedLM


def script(before):
    if before.endswith("Q: "):
        return {"a\n": 0.6, "b\n": 0.3, "c": 0.1}
    return {"yes": 0.25, "no": 0.75} if before.endswith("a\n") else "end"


@fk.program
async def told(lm):
    text = await fk.sample("line", lm.line(lm.prompt("Q: ")))
    await fk.factor("G", {"a": 1.0, "b": 0.0, "c": -1.0}[str(text)])
    return str(text if text.finished else await fk.sample("rest", lm.complete(text)))


def test_all_that_it_can_draw_is_the_scripts():
    posterior = fk.infer(told(ScriptedLM(script)), fk.ImportanceSampling(4000), seed=0)
    truth = {"a\nyes": 0.15 * math.e, "a\nno": 0.45 * math.e, "b\nend": 0.3, "c": 0.1 / math.e}
    assert set(posterior.values) == set(truth)
    weights = np.exp(np.array([lw for chain in posterior.chains for lw in chain.log_weights]))
    for value, mass in truth.items():
        each = weights * np.array([v == value for v in posterior.values])
        # 4 comparisons at |z| < 4.26: false alarm 8e-5.
        assert abs(each.mean() - mass) < 4.26 * each.std() / math.sqrt(len(each))


def test_log_probabilities_laws_and_reads_are_the_scripts():
    lm = ScriptedLM(script)
    prompt = lm.prompt("Q: ")
    posterior = fk.infer(told(lm), fk.ImportanceSampling(50), seed=1)
    draws = [posterior.trace(i)["line"].value for i in range(50)]
    assert {round(math.exp(text.log_prob), 6) for text in draws} == {0.6, 0.3, 0.1}

    @fk.program
    async def reads():
        law = await fk.call("law", lm.read(prompt, "law"))
        cold = await fk.call("cold", lm.read(prompt, "top", temperature=0.5))
        return law, cold, await fk.call("score", lm.score(prompt, "a\nno"))

    law, cold, score = fk.simulate(reads(), seed=0).value
    assert np.sort(np.exp(law))[-3:] == pytest.approx([0.1, 0.3, 0.6])
    assert cold == pytest.approx(0.36 / 0.46)
    assert score == pytest.approx(math.log(0.45))


def test_what_a_program_appends_is_gone_on_from():
    lm = ScriptedLM(lambda before: {"the cat": 0.2, "the dog": 0.6, "a bird": 0.2})

    @fk.program
    async def begun(words):
        return str(await fk.sample("rest", lm.complete(lm.prompt("Q: ").append(words))))

    found = fk.infer(begun("the "), fk.ImportanceSampling(400), seed=0).values
    assert set(found) == {"the cat", "the dog"}
    assert abs(sum(v == "the cat" for v in found) - 100) < 4.26 * math.sqrt(75)  # 2e-5
    assert fk.simulate(begun("no line begins so"), seed=0).value == "no line begins so"


def test_equal_histories_are_read_once():
    lm = ScriptedLM(lambda before: "word\n" if len(before) < 20 else "end")

    @fk.program
    async def lines():
        text = lm.prompt("Q: ")
        for _ in range(2):
            text = await fk.sample("line", lm.line(text))
            await fk.factor("G", 0.0)
        return str(text)

    posterior = fk.infer(lines(), fk.SMC(8), seed=0)
    positions = len(lm.prompt("Q: ").prompt_tokens) + len("word\nword\n") - 1  # nothing follows the last one
    assert posterior.cost.tokens_in == positions
    assert posterior.cost.tokens_out == 8 * len("word\nword\n")
    assert posterior.cost.model_calls == len("word\nword\n")


@pytest.mark.parametrize(
    ("said", "match"),
    [({"a": 0.5, "b": 0.6}, "no law"), ({"a": 1.5, "b": -0.5}, "no law"), ("one\ntwo", "more than a line")],
)
def test_scripts_that_are_no_law_are_refused(said, match):
    lm = ScriptedLM(lambda before: said)
    with pytest.raises(ValueError, match=match):
        fk.simulate(told(lm), seed=0)
