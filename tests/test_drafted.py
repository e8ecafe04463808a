"""Steps that a small model drafts: the law is the large model's, by the weight, and its passes are few.

Each z-test raises a false alarm twice in 100,000 times. Seeds are fixed.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from whole_steps import WholeSteps

import feynkac as fk
from feynkac.models.language.stepping.drafted import Drafted
from feynkac.models.testing import FakeServer, ScriptedLM, tiny_lm, tiny_tokenizer
from feynkac.ppl.errors import TokenizerMismatch, Unsupported, UnsupportedProposal
from laws import Z_LIMIT, check_unbiased, z_score

# What either model says by the line; a line without a newline ends the text. The draft says more than the model can.
LARGE = {"abc\n": 0.35, "ab\n": 0.15, "ac": 0.2, "b\n": 0.3}
SMALL = {"abc\n": 0.1, "ab\n": 0.3, "ac": 0.15, "b\n": 0.25, "bd\n": 0.1, "a\n": 0.1}
AFTER = {"abc\n": {"a\n": 0.9, "b\n": 0.1}, "ab\n": {"a\n": 0.2, "b\n": 0.8}, "b\n": {"a\n": 0.5, "b\n": 0.5}}


def pair(**settings):
    """The large model and its draft: two lines, of which the second depends on the first."""

    def large(before):
        first = before.removeprefix("go:")
        return LARGE if not first else AFTER.get(first, "b\n")

    def small(before):
        return SMALL if before == "go:" else {"a\n": 0.4, "b\n": 0.4, "c\n": 0.2}

    return ScriptedLM(large, **settings), ScriptedLM(small, **settings)


def chance(lines, said, after):
    """The probability of the next character after some; \0 is the end of a text."""
    ended = {line if line.endswith("\n") else line + "\0": p for line, p in lines.items()}
    mass = sum(p for line, p in ended.items() if line.startswith(said))
    return sum(p for line, p in ended.items() if line.startswith(said + after)) / mass if mass else float(after == "\0")


def laws(gamma):
    """p and q of each first line that may be drawn: each block begins with a token of the large model's own."""

    def grow(said):
        if said.endswith(("\n", "\0")):
            return [said]
        first = (gamma is None and not said) or (gamma is not None and len(said) % (gamma + 1) == 0)
        found = [c for c in "abcd\n\0" if chance(LARGE if first else SMALL, said, c) > 0]
        return [line for c in found for line in grow(said + c)]

    table = {}
    for line in grow(""):
        p = q = 1.0
        for i, c in enumerate(line):
            own = i == 0 if gamma is None else i % (gamma + 1) == 0
            p *= chance(LARGE, line[:i], c)
            q *= chance(LARGE if own else SMALL, line[:i], c)
        table[line] = p, q
    return table


def key_of(text):
    return text.full[3:] + ("\0" if text.finished else "\n" * (not text.full.endswith("\n")))


@pytest.mark.parametrize("gamma", [1, 2, 3, None])
def test_p_and_q_of_every_text_are_those_of_the_definition_drawn_or_given(gamma):
    lm, small = pair()
    step = lm.line(lm.prompt("go:"), draft=small, gamma=gamma)
    table = laws(gamma)
    assert sum(q for _, q in table.values()) == pytest.approx(1.0)
    # E_q[p/q] over all that can be drawn is the whole mass of p.
    assert sum(p for p, _ in table.values()) == pytest.approx(1.0)
    n = 400
    draws = step.sample_batch([step] * n, fk.keys.fold(fk.keys.root(0), np.arange(n)))
    lines = [key_of(text) for text in draws.values]
    assert set(lines) == set(table)
    with np.errstate(divide="ignore"):
        assert draws.log_prob == pytest.approx([np.log(table[line][0]) for line in lines])
    assert draws.log_proposal == pytest.approx([math.log(table[line][1]) for line in lines])
    for line, (_, q) in table.items():  # 6 to 8 comparisons
        assert abs(z_score([one == line for one in lines], q)) < Z_LIMIT
    assert step.log_prob_batch([step] * n, draws.values) == pytest.approx(draws.log_prob)
    assert step.log_proposal_batch([step] * n, draws.values) == pytest.approx(draws.log_proposal)
    longer = lm.tokens(draws.values[0], 1).sample_batch([lm.tokens(draws.values[0], 1)], fk.keys.root(3)).values
    assert np.isneginf(step.log_proposal_batch([step], longer)).all() or draws.values[0].finished


def test_temperature_is_that_of_both_and_a_step_of_the_draft_has_settings_of_its_own():
    lm, small = pair()
    text = lm.prompt("go:")
    step = lm.line(text, temperature=0.5, top_k=1, draft=small)
    assert (step.draft.sampling.temperature, step.draft.sampling.truncates) == (0.5, False)
    warm = lm.tokens(text, 2, draft=small.tokens(text, 2, temperature=2.0))
    (value,) = warm.sample_batch([warm], fk.keys.root(1)).values
    first, second = (lambda s: (s[0], s[1]))(key_of(value))
    cold = {c: chance(SMALL, first, c) ** 0.5 for c in "abcd\n\0"}
    q = chance(LARGE, "", first) * cold[second] / sum(cold.values())
    assert warm.log_proposal_batch([warm], [value])[0] == pytest.approx(math.log(q))


@fk.program
async def lines(lm, **settings):
    """Two lines, of which those with an a are liked; the second is not asked for where the first ends the text."""
    text = lm.prompt("go:")
    for _ in range(2):
        text = await fk.sample("line", lm.line(text, max_tokens=4, **settings))
        await fk.factor("likes", 0.8 * str(text).count("a") - 0.3 * str(text).count("b"))
    return key_of(text)


def exact(power=1.0):
    law = {}
    for first, p in LARGE.items():
        for second, p2 in {"\0": 1.0}.items() if first == "ac" else AFTER[first].items():
            value = first + second
            gains = [0.8 * s.count("a") - 0.3 * s.count("b") for s in (first, value)]
            law[value] = (p * p2) ** power * math.exp(sum(gains))
    return law


LATER = [pytest.param(*case, marks=pytest.mark.slow) for case in ((1.0, None), (2.0, 1))]


@pytest.mark.parametrize(("power", "gamma"), [(1.0, 1), (2.0, None), *LATER])
def test_smc_and_power_smc_have_the_law_of_the_plain_step(power, gamma):
    lm, small = pair()
    law = exact(power)
    z = sum(law.values())
    settings = {"ess_threshold": 1.0, "all_dead": "zero"}
    engine = fk.SMC(4, **settings) if power == 1.0 else fk.PowerSMC(4, power=power, **settings)
    model = lines(lm, draft=small, gamma=gamma)
    check_unbiased(model, engine, {x: w / z for x, w in law.items()}, math.log(z), runs=250)


@pytest.mark.slow
@pytest.mark.parametrize("engine", [fk.SuffixMH(60), fk.ParticleGibbs(4, sweeps=12)], ids=["SuffixMH", "ParticleGibbs"])
def test_markov_chains_leave_the_law_of_the_plain_step(engine):
    lm, small = pair()
    law = exact()
    z = sum(law.values())
    posteriors = fk.infer([lines(lm, draft=small, gamma=1)] * 120, engine, seed=2)
    ends = [posterior.values[-1] for posterior in posteriors]
    for value, weight in law.items():
        assert abs(z_score([end == value for end in ends], weight / z)) < Z_LIMIT


@fk.program
async def story(lm, steps=4, **settings):
    text = lm.prompt("Once upon a time there was a king who had three sons")
    for _ in range(steps):
        text = await fk.sample("block", lm.tokens(text, 6, **settings))
        await fk.factor("likes", 0.3 * text.tokens.count(5))
    return text


def watched(lm):
    """Count the passes of a model and its positions."""
    seen = []
    lm.model.register_forward_pre_hook(lambda _, args, inputs: seen.append(inputs["input_ids"].shape), with_kwargs=True)
    return seen


@pytest.mark.parametrize(("gamma", "blocks"), [(5, 1), (2, 2), (None, 1)])
def test_the_large_model_makes_one_pass_for_a_block_of_the_wave_and_neither_forgets(gamma, blocks):
    lm, small = tiny_lm(0), tiny_lm(1)
    lm.eos = small.eos = frozenset()
    passes, of_draft = watched(lm), watched(small)
    posterior = fk.infer(story(lm, draft=small, gamma=gamma), fk.SMC(6, ess_threshold=1.0), seed=0)
    assert len(passes) == 1 + 4 * blocks  # the prompt, and the blocks
    assert posterior.cost.model_calls == len(passes) + len(of_draft)
    assert posterior.cost.tokens_in == lm.forwarded + small.forwarded
    assert posterior.cost.tokens_out == 6 * 24
    # Neither reads the prompt, or what it has read of a text, again.
    assert max(width for _, width in passes[1:]) == 6 // blocks
    assert max(width for _, width in of_draft[1:]) <= 2


def test_a_model_that_weighs_what_another_proposes_reads_none_of_it_again():
    lm, small = tiny_lm(0), tiny_lm(1)
    lm.eos = small.eos = frozenset()
    passes = watched(lm)

    @fk.program
    async def proposed():
        text = lm.prompt("Once upon a time there was a king who had three sons")
        for _ in range(4):
            text = await fk.sample("block", lm.tokens(text, 6), proposal=small.tokens(text, 6))
            await fk.factor("likes", 0.3 * text.tokens.count(5))

    fk.infer(proposed(), fk.SMC(6, ess_threshold=1.0), seed=0)
    # The prompt, then by turns five tokens of a block and, of those that went on, the sixth.
    assert [width for _, width in passes[1:]] == [5, 1, 5, 1, 5, 1, 5]


def test_drawn_and_given_log_probs_are_the_same_on_a_real_network_and_do_not_depend_on_the_batch():
    lm, small = tiny_lm(0), tiny_lm(1)
    text = lm.prompt("Once upon a time")
    step = lm.tokens(text, 11, draft=small, gamma=3)
    keys = fk.keys.fold(fk.keys.root(4), np.arange(5))
    draws = step.sample_batch([step] * 5, keys)
    alone = step.sample_batch([step], keys[3:4])
    assert alone.values[0].tokens == draws.values[3].tokens
    assert alone.log_proposal[0] == pytest.approx(draws.log_proposal[3], abs=1e-4)
    assert step.log_prob_batch([step] * 5, draws.values) == pytest.approx(draws.log_prob, abs=1e-4)
    assert step.log_proposal_batch([step] * 5, draws.values) == pytest.approx(draws.log_proposal, abs=1e-4)
    assert [v.log_prob for v in draws.values] == pytest.approx(draws.log_prob)
    own = lm.tokens(text, 11, draft=lm, gamma=3)
    same = own.sample_batch([own] * 5, keys)
    assert same.log_proposal == pytest.approx(same.log_prob, abs=1e-4)


def test_no_key_is_used_twice():
    models, seen = (WholeSteps(), WholeSteps(1)), []
    for lm in models:
        lm.draw = lambda runs, keys, tally, draw=lm.draw: (seen.extend(keys.tolist()), draw(runs, keys, tally))
    step = models[0].tokens(models[0].prompt("a"), 7, draft=models[1], gamma=2)
    step.sample_batch([step] * 3, fk.keys.fold(fk.keys.root(0), np.arange(3)))
    assert len(seen) == len(set(seen)) >= 3 * 5


def test_a_served_model_scores_what_a_local_one_drafts():
    small = tiny_lm(1)
    with FakeServer() as server:
        lm = fk.models.ServerLM(server.url, tokenizer=tiny_tokenizer())
        step = lm.tokens(lm.prompt("Once"), 6, draft=small, gamma=2)
        draws = step.sample_batch([step] * 2, fk.keys.fold(fk.keys.root(0), np.arange(2)))
        assert step.log_prob_batch([step] * 2, draws.values) == pytest.approx(draws.log_prob, abs=1e-3)
        assert step.log_proposal_batch([step] * 2, draws.values) == pytest.approx(draws.log_proposal, abs=1e-3)
        with pytest.raises(Unsupported, match="score_warped"):
            lm.tokens(lm.prompt("Once"), 6, temperature=0.5, draft=small)


def test_a_journal_plays_what_was_drafted(tmp_path):
    lm, small = pair()
    engine = fk.SMC(4)
    first = fk.infer(lines(lm, draft=small, gamma=1), engine, seed=1, journal=tmp_path / "run.fkj")
    lm, small = pair()
    lm.draw = small.draw = lm.forced = None  # whoever asks them fails
    journal = fk.Journal(tmp_path / "run.fkj", mode="replay")
    again = fk.infer(lines(lm, draft=small, gamma=1), engine, seed=1, journal=journal)
    assert again.values == first.values
    assert again.log_evidence == pytest.approx(first.log_evidence, abs=1e-12)


def test_observed_lines_are_scored_by_the_model_alone():
    lm, small = pair()

    @fk.program
    async def seen():
        await fk.observe("line", lm.line(lm.prompt("go:"), draft=small), "abc\n")

    assert fk.infer(seen(), fk.SMC(2), seed=0).log_evidence == pytest.approx(math.log(0.35))


def test_what_cannot_be_drafted_is_refused_by_name():
    lm, small = tiny_lm(0), tiny_lm(1)
    text = lm.prompt("Once")
    with pytest.raises(ValueError, match="gamma says how far a draft goes"):
        lm.line(text, gamma=4)
    with pytest.raises(ValueError, match="gamma must be at least 1"):
        lm.line(text, draft=small, gamma=0)
    with pytest.raises(TypeError, match="a draft is a language model, or a step of one"):
        lm.line(text, draft="small")
    with pytest.raises(ValueError, match=r"temperature 0.*leave the draft out"):
        lm.line(text, draft=small, temperature=0)
    elsewhere = small.line(text.append(" a"))
    for draft in (small.line(text, top_k=3), small.tokens(text, 3), elsewhere, tiny_lm(1, context=8)):
        with pytest.raises(UnsupportedProposal, match="cannot reach all"):
            lm.line(text, draft=draft)
    with pytest.raises(TokenizerMismatch):
        fk.simulate(story(lm, draft=ScriptedLM(lambda _: "a\n")), seed=0)
    with pytest.raises(ValueError, match="leave draft= out"):
        fk.constraints.constrained(lm.line(text, draft=small), fk.constraints.regex(lm, " a"))
    silent = WholeSteps()
    silent.scores = lambda law: False
    with pytest.raises(Unsupported, match="needs the log-probabilities of what is drawn"):
        silent.tokens(silent.prompt("a"), 3, draft=WholeSteps(1))
    assert isinstance(lm.line(text, draft=small), Drafted)
    assert not isinstance(lm.line(text), Drafted)
