"""What texts, steps and scores ask of a model: one that draws whole steps and gives no law serves all but masks."""

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
from whole_steps import WholeSteps

import feynkac as fk
from feynkac.models.language.stepping.steps import Ending, Step
from feynkac.models.rewards.judges.answers import Answers
from feynkac.ppl.errors import Unsupported
from laws import Z_LIMIT, z_score


def test_the_language_of_models_needs_no_torch():
    rooms = "stepping.steps", "scoring", "texts.text", "writing", "host", "model", "drawing.runs", "stepping.thinking"
    imports = ", ".join(f"feynkac.models.language.{room}" for room in rooms)
    code = f"import sys, {imports}; sys.exit(' '.join({{'torch', 'transformers'}} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_steps_of_every_kind_are_drawn_whole_and_scored():
    lm = WholeSteps()
    once = lm.prompt("Once upon")
    requests = [
        lm.next_token(once),
        lm.tokens(once, 4),
        lm.until(once, "e", max_tokens=9),
        lm.line(once, max_tokens=5),
        lm.sentence(once, max_tokens=6),
        lm.complete(once, max_tokens=7),
    ]
    keys = fk.keys.fold(fk.keys.root(0), np.arange(len(requests)))
    draws = requests[0].sample_batch(requests, keys)
    paths = [once.prompt_tokens[-1:] + text.tokens for text in draws.values]
    truth = [sum(lm.law[a, b] for a, b in pairwise(path)) for path in paths]
    np.testing.assert_allclose(draws.log_prob, truth, atol=1e-12)
    np.testing.assert_allclose(requests[0].log_prob_batch(requests, draws.values), truth, atol=1e-12)
    assert lm.requests == [6, 6]  # one request for the wave
    assert [len(text.tokens) for text in draws.values[:2]] == [1, 4]
    assert lm.tokens(once, 4).sample_batch([lm.tokens(once, 4)], keys[1:2]).values == draws.values[1:2]


@fk.program
async def likes(lm):
    """Two tokens in one step and one in another, weighed by which they are, and by a given end."""
    text = await fk.sample("two", lm.tokens(lm.prompt("Once"), 2))
    await fk.factor("likes", 0.8 * (text.tokens[-1] % 3))
    text = await fk.sample("one", lm.next_token(text))
    await fk.factor("likes", 0.8 * (text.tokens[-1] % 3))
    await fk.factor("ends", lm.score(text, " the sea"))
    return text


@pytest.mark.slow
def test_smc_is_unbiased_on_a_model_that_gives_no_law():
    lm = WholeSteps(1)
    [first], the_sea = lm.prompt("Once").prompt_tokens[-1:], lm.encode(" the sea")
    end = next(iter(lm.eos))
    weight = np.exp(0.8 * (np.arange(lm.vocab_size) % 3))
    p = np.exp(lm.law)
    tail = np.exp(sum(lm.law[a, b] for a, b in pairwise(the_sea)))

    def after(token):  # what the end token is taken off from goes on from the token before
        return p[token, the_sea[0]] * tail

    # The value of each token at the second place, given the one before it.
    reopened = np.array([after(token) for token in range(lm.vocab_size)])
    going = np.delete(np.arange(lm.vocab_size), end)
    third = p[:, going] @ (weight[going] * reopened[going]) + p[:, end] * weight[end] * reopened
    z = 0.0
    for a in range(lm.vocab_size):
        if a == end:
            z += p[first, a] * weight[end] ** 2 * reopened[first]
            continue
        second = p[a, going] @ (weight[going] * third[going]) + p[a, end] * weight[end] ** 2 * reopened[a]
        z += p[first, a] * second
    posteriors = fk.infer([likes(lm)] * 200, fk.SMC(16), seed=0)
    ratios = np.exp([posterior.log_evidence for posterior in posteriors]) / z
    assert abs(z_score(ratios, 1.0)) < Z_LIMIT  # a right engine fails once in 50,000, see laws.py


def test_thinking_and_rewards_that_score_run_on_it():
    lm = WholeSteps()
    run = fk.simulate(fk.models.think(lm, lm.prompt("Who?"), end="e", wait=" Wait", max_tokens=40), seed=0)
    assert str(run.value).count(" Wait") == 1

    @fk.program
    async def ends():
        text = await fk.sample("text", lm.tokens(lm.prompt("Once"), 3))
        await fk.factor("ends", lm.score(text, " sea"))

    before = len(lm.requests)
    posterior = fk.infer(ends(), fk.SMC(4), seed=0)
    assert posterior.cost.model_calls == len(lm.requests) - before == 2


def test_what_needs_the_law_is_refused_by_name_before_anything_is_drawn():
    lm = WholeSteps()
    text, mask = lm.prompt("Once"), np.ones(lm.vocab_size, bool)
    constraints = fk.constraints
    grammar = constraints.Where(lm, lambda string: "!" not in string)
    refused = {
        "a draw under a mask": lambda: lm.next_token(text, mask=mask),
        "lm.log_mass": lambda: lm.log_mass(text, mask),
        "lm.read": lambda: lm.next_log_probs(text),
        "a step times": lambda: constraints.constrained(lm.tokens(text, 2), grammar),
        "a Language": lambda: constraints.Language(lm, text),
        "reward 'asked'": lambda: Answers(lm, [["yes"], ["no"]], "asked"),
    }
    for who, call in refused.items():
        with pytest.raises(Unsupported, match=f"{who}.*the law of the next token.*whole-steps-0.*TransformersLM"):
            call()
    assert Step(lm, text, Ending(1), lm.sampling).support() is None
    assert lm.requests == []


def test_a_potential_alone_needs_no_law_of_the_model():
    lm = WholeSteps()
    no_bang = fk.constraints.Where(lm, lambda string: "!" not in string)
    step = fk.constraints.targeting(lm.tokens(lm.prompt("Once"), 2), no_bang)
    keys = fk.keys.fold(fk.keys.root(0), np.arange(3))
    assert all("!" not in str(text) for text in step.sample_batch([step] * 3, keys).values)
    assert lm.requests == []
