"""Products and mixtures of language models: their law over whole texts, and what they cost.

Each z-test raises a false alarm twice in 100,000 times (`laws.Z_LIMIT`); there are about 100 here. Seeds are fixed.
"""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

import feynkac as fk
from laws import check_unbiased

pytest.importorskip("torch")
pytest.importorskip("llguidance")

from toys_constrained import PATTERN, PROMPT, letters_lm, models, prefix_prob, strings, target, whole_prob

from feynkac.models.constraints import Language, constrained, mixture, targeting
from feynkac.ppl import keys as fkeys
from feynkac.ppl.cost import Ledger, recording
from feynkac.ppl.memory import afresh

C = fk.constraints


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


@pytest.mark.slow
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
