"""Constrained values: forced, observed and replayed, alone and beside others."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest

import feynkac as fk

pytest.importorskip("torch")
pytest.importorskip("llguidance")

from toys_constrained import LONGEST, PATTERN, PROMPT, by_line, by_token, letters_lm, models, strings, whole_prob

from feynkac.models.constraints import Where, constrained, targeting
from feynkac.ppl import keys as fkeys
from feynkac.ppl.cost import Ledger, recording

C = fk.constraints


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


@pytest.mark.parametrize("sampler", ["mask", "awrs"])
def test_ids_that_the_tokenizer_does_not_have_are_never_drawn(sampler):
    lm = letters_lm(padding=4)
    assert lm.vocab_size == C.Vocabulary.of(lm).size + 4
    step = constrained(lm.tokens(lm.prompt(PROMPT), 3), Where(lm, lambda string: True), sampler=sampler)
    draws = step.sample_batch([step] * 30, fkeys.fold(fkeys.root(0), np.arange(30)))
    assert all(token < 4 for text in draws.values for token in text.tokens)
