"""Models behind servers: draws, scores and engines against what their law says, and against a model that runs here."""

from __future__ import annotations

import math
from itertools import pairwise, product

import numpy as np
import pytest

pytest.importorskip("httpx2")
import torch
from served import few_tokens, served

import feynkac as fk
from feynkac.models.language.drawing.laws import log_normalise
from feynkac.models.testing import Bigram, tiny_lm, tiny_tokenizer
from feynkac.ppl.cost import Ledger, recording
from laws import Z_LIMIT, check_unbiased
from walks import drift, drive, forced, keys_of, value_of

LAWS = [{}, {"temperature": 0.7, "top_p": 0.9}, {"temperature": 1.4, "top_k": 9, "min_p": 0.05}, {"temperature": 0}]


@pytest.fixture(scope="module")
def local():
    return tiny_lm(scale=0.5)


@pytest.fixture(scope="module")
def twin(local):
    """The same law, behind a server."""
    return served(lambda ids: local.next_log_probs(local.prompt(list(ids))))


def steps_of(lm, text, **sampling):
    return [
        lm.next_token(text, **sampling),
        lm.tokens(text, 4, **sampling),
        lm.until(text, ["Q", "ZZ", "!?", "##", "e", "th"], max_tokens=9, **sampling),
        lm.until(text, "<user>", max_tokens=12, **sampling),
        lm.line(text, max_tokens=5, **sampling),
        lm.sentence(text, max_tokens=20, **sampling),
        lm.complete(text, max_tokens=7, **sampling),
    ]


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_steps_end_and_weigh_as_those_of_a_model_that_runs_here(law, local, twin):
    lm, client = twin
    requests = steps_of(lm, lm.prompt("Once upon"), **law)
    draws = requests[0].sample_batch(requests, keys_of(len(requests), 1))
    here = steps_of(local, local.prompt("Once upon"), **law)
    # A step that ended elsewhere would have density zero.
    truth = here[0].log_prob_batch(here, [local.attach(text) for text in draws.values])
    np.testing.assert_allclose(draws.log_prob, truth, atol=1e-4)
    assert [str(local.attach(text)) for text in draws.values] == [str(text) for text in draws.values]
    assert [text.log_prob for text in draws.values] == draws.log_prob.tolist()
    first = client.asked[-1]
    assert all(request["prompt"] == list(requests[0].text.prompt_tokens) for request in client.asked[0][:1])
    assert all({"temperature", "top_p", "top_k", "min_p", "repetition_penalty"} <= request.keys() for request in first)
    assert all(len(request["stop"]) <= 4 for request in first)  # more are refused


def test_a_draw_depends_on_its_key_alone():
    lm, client = served()
    text = lm.prompt("Once upon")
    keys = keys_of(6, 2)
    client.asked.clear()
    step = lm.sentence(text, max_tokens=40)
    together = step.sample_batch([step] * 6, keys)
    seeds = [[request["seed"] for request in wave] for wave in client.asked]
    assert len(seeds) > 1
    flat = [seed for wave in seeds for seed in wave]
    assert len(set(flat)) == len(flat)
    assert all(0 <= seed < 2**62 for seed in flat)
    assert seeds[0] == (keys >> np.uint64(2)).tolist()
    alone = [step.sample_batch([step], keys[[i]]) for i in range(6)]
    assert [draws.values[0].tokens for draws in alone] == [text.tokens for text in together.values]
    assert len({text.tokens for text in together.values}) == 6


def test_draws_have_the_law_of_a_model_that_runs_here():
    """The ten likeliest tokens, 10 comparisons at |z| < 4.26: 2e-4."""
    table, n = Bigram(300, scale=1.5), 2000
    lm, _ = served(table)
    step = lm.next_token(lm.prompt("The sea"), temperature=0.8, top_p=0.8)
    tokens = np.array([text.tokens[0] for text in step.sample_batch([step] * n, keys_of(n, 3)).values])
    logits = torch.tensor(table(step.text.prompt_tokens), dtype=torch.float32)[None]
    law = log_normalise(logits, step.sampling).exp().numpy()[0].astype(float)
    for token in np.argsort(-law)[:10]:
        assert abs(np.mean(tokens == token) - law[token]) < Z_LIMIT * math.sqrt(law[token] * (1 - law[token]) / n)
    assert (law[tokens] > 0).all()


def test_what_was_drawn_beyond_the_end_is_dropped_and_each_token_keeps_its_own_log_prob():
    tokenizer = tiny_tokenizer()
    support = tokenizer.convert_tokens_to_ids(["a", ".", "Ġ"])
    table = Bigram(len(tokenizer), support)
    lm, _ = served(table)
    text = lm.prompt("The")
    step = lm.sentence(text, max_tokens=40)
    with recording(Ledger()) as ledger:
        draws = step.sample_batch([step] * 8, keys_of(8, 13))
    assert ledger.total().tokens_out > sum(len(value.tokens) for value in draws.values)
    assert all(str(value).rstrip().endswith(".") for value in draws.values)
    for value, log_prob in zip(draws.values, draws.log_prob):
        path = (*text.prompt_tokens[-1:], *value.tokens)
        each = [table((a,))[b] - np.logaddexp.reduce(table((a,))) for a, b in pairwise(path)]
        assert log_prob == pytest.approx(sum(each))
        first = lm.next_token(text)
        assert first.log_prob_batch([first], [value.cut(to=1)])[0] == pytest.approx(each[0])


# -- given tokens ----------------------------------------------------------------------------------------------------


def test_what_was_drawn_is_given_again_without_a_request_and_what_was_not_is_scored(local, twin):
    lm, client = twin
    text = lm.prompt("Once upon")
    requests = [lm.tokens(text, 6), lm.line(text, max_tokens=5), lm.tokens(text, 3, temperature=0.7)]
    draws = requests[0].sample_batch(requests, keys_of(3, 4))
    client.asked.clear()
    np.testing.assert_array_equal(requests[0].log_prob_batch(requests, draws.values), draws.log_prob)
    assert client.asked == []
    gone = [value.detach() for value in draws.values]
    del draws.values[:]  # so that their histories are forgotten
    np.testing.assert_allclose(requests[0].log_prob_batch(requests[:2], gone[:2]), draws.log_prob[:2], atol=1e-5)
    [wave] = client.asked
    assert [(request["echo"], request["max_tokens"]) for request in wave] == [(True, 0)] * 2
    with pytest.raises(fk.errors.Unsupported, match=r"temperature=0.7.*ServedLM fake.*score_warped=True"):
        requests[0].log_prob_batch(requests[2:], gone[2:])
    once = local.prompt("Once upon")
    for continuation in (" a time", "\n"):
        mine, truth = lm.score(text, continuation), local.score(once, continuation)
        assert fk.ppl.score.evaluate([mine])[0] == pytest.approx(fk.ppl.score.evaluate([truth])[0], abs=1e-4)


def test_given_tokens_are_scored_under_any_law_where_that_is_allowed(local):
    lm, client = served(lambda ids: local.next_log_probs(local.prompt(list(ids))), score_warped=True)
    text, here = lm.prompt("Once"), local.prompt("Once")
    for law in LAWS[1:3]:
        step = lm.tokens(text, 3, **law)
        value = step.sample_batch([step], keys_of(1, 5)).values[0].detach()
        other = lm.tokens(text, 3).sample_batch([lm.tokens(text, 3)], keys_of(1, 6)).values[0].detach()
        client.asked.clear()
        found = step.log_prob_batch([step, step], [value, other])
        assert len(client.asked) == 1
        truth = local.tokens(here, 3, **law)
        wanted = truth.log_prob_batch([truth] * 2, [local.attach(value), local.attach(other)])
        np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_masks_and_judges_are_those_of_a_model_that_runs_here(local, twin):
    lm, _ = twin
    text, here = lm.prompt("Once"), local.prompt("Once")
    mask = np.zeros(lm.vocab_size, bool)
    mask[list(lm.encode("time river"))] = True
    n = 60
    step = lm.next_token(text, mask=mask, temperature=0.9)
    draws = step.sample_batch([step] * n, keys_of(n, 7))
    truth = local.next_token(here, mask=mask, temperature=0.9)
    np.testing.assert_allclose(
        draws.log_prob, truth.log_prob_batch([truth] * n, [local.attach(value) for value in draws.values]), atol=1e-4
    )
    mass, wanted = lm.log_mass(text, mask, temperature=0.9), local.log_mass(here, mask, temperature=0.9)
    assert fk.ppl.score.evaluate([mass])[0] == pytest.approx(fk.ppl.score.evaluate([wanted])[0], abs=1e-4)
    nothing = lm.next_token(text, mask=np.zeros(lm.vocab_size, bool)).sample_batch([step], keys_of(1))
    assert nothing.log_prob is not None
    for reward in (fk.rewards.Judge, fk.rewards.Grader):
        scores = [reward(model, "Is it so? {text}")("the sea") for model in (lm, local)]
        one, two = (fk.ppl.score.evaluate([score])[0] for score in scores)
        assert one == pytest.approx(two, abs=1e-5)


# -- engines ---------------------------------------------------------------------------------------------------------


def weight_of(token, support):
    return 0.5 * (support.index(token) % 3)


@fk.program
async def spells(lm, support, twisted=False, **law):
    """Two letters (or an end), each weighed, and a guide that is wrong."""
    text = lm.prompt("The")
    for _ in range(2):
        if not text.finished:
            text = await fk.sample("letter", lm.next_token(text, **law))
        if twisted:
            await fk.twist("guide", 0.5 * math.sin(text.tokens[-1]))
        await fk.factor("likes", weight_of(text.tokens[-1], support))
    return text.tokens


def exact(law, support, start, **warp):
    """The weights of all runs of `spells`, by their tokens."""
    from feynkac.models.testing.bigram import warped

    asked = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, **warp}

    def p(a, b):
        return math.exp(warped(law((a,)), asked)[b])

    end = support[-1]
    weights = {(end,): p(start, end) * math.exp(2 * weight_of(end, support))}
    for a, b in product(support[:-1], support):
        weights[a, b] = p(start, a) * p(a, b) * math.exp(weight_of(a, support) + weight_of(b, support))
    return {tokens: weight for tokens, weight in weights.items() if weight > 0}


@pytest.mark.parametrize(
    ("law", "mode"),
    [
        ({}, "processed_logprobs"),
        ({"temperature": 0.6, "top_k": 3}, "processed_logprobs"),
        ({"temperature": 1.3, "top_p": 0.8}, "raw_logprobs"),
    ],
    ids=str,
)
def test_smc_is_unbiased_whatever_law_is_drawn_from(law, mode):
    """At most 14 comparisons for each of three at |z| < 4.26: 9e-4."""
    table, support = few_tokens()
    lm, _ = served(table, mode=mode)
    weights = exact(table, support, lm.prompt("The").prompt_tokens[-1], **law)
    z = sum(weights.values())
    model = spells(lm, support, twisted=True, **law)
    check_unbiased(model, fk.SMC(6), {x: w / z for x, w in weights.items()}, math.log(z), runs=100)
    assert set(model.start(keys_of(3)).scored) == {mode == "processed_logprobs" or not law}


@fk.program
async def observed(lm, support):
    """What is likely to be followed by a certain end."""
    text = await fk.sample("letter", lm.next_token(lm.prompt("The"), mask=None))
    if not text.finished:
        await fk.observe("rest", lm.tokens(text, 2), "ab")
    else:
        await fk.factor("none", -3.0)
    return text.tokens[-1]


def test_observed_strings_weigh_as_their_law_says():
    table, support = few_tokens()
    lm, client = served(table)
    start = lm.prompt("The").prompt_tokens[-1]

    def p(a, b):
        return math.exp(table((a,))[b] - np.logaddexp.reduce(table((a,))))

    a, b, *_, end = support
    law = {x: p(start, x) * p(x, a) * p(a, b) for x in support[:-1]} | {end: p(start, end) * math.exp(-3.0)}
    z = sum(law.values())
    check_unbiased(observed(lm, support), fk.SMC(4), {x: w / z for x, w in law.items()}, math.log(z), runs=150)
    assert any(request.get("echo") for wave in client.asked for request in wave)


@fk.program
async def guided(lm, support, mask=None):
    """`spells` with draws from a warmer law, or from a mask that is paid for."""
    text, warm = lm.prompt("The"), {"temperature": 1.6}
    for _ in range(2):
        if mask is not None:
            await fk.factor("mass", lm.log_mass(text, mask, **warm))
            text = await fk.sample("letter", lm.next_token(text, mask=mask, **warm))
        elif not text.finished:
            text = await fk.sample("letter", lm.next_token(text), proposal=lm.next_token(text, **warm))
        await fk.factor("likes", weight_of(text.tokens[-1], support))
    return text.tokens


@pytest.mark.parametrize("masked", [False, True])
def test_proposals_are_weighed_and_masks_paid_for(masked):
    """At most 13 comparisons for each of two at |z| < 4.26: 5e-4."""
    table, support = few_tokens()
    lm, _ = served(table)
    mask = np.isin(np.arange(lm.vocab_size), support[:-1]) if masked else None
    weights = exact(table, support, lm.prompt("The").prompt_tokens[-1], temperature=1.6 if masked else 1.0)
    weights = {x: w for x, w in weights.items() if not masked or support[-1] not in x}
    z = sum(weights.values())
    model = guided(lm, support, mask)
    check_unbiased(model, fk.SMC(5), {x: w / z for x, w in weights.items()}, math.log(z), runs=80)


@pytest.mark.parametrize(
    "engine",
    [
        fk.SuffixMH(1),
        fk.SuffixMH(1, power=1.7),
        fk.ParticleGibbs(2, 1),
        pytest.param(fk.SuffixMH(1, block=1), marks=pytest.mark.slow),
        pytest.param(fk.ParticleGibbs(3, 1, ancestor_sampling=True), marks=pytest.mark.slow),
    ],
    ids=lambda engine: repr(engine)[:36],
)
def test_a_move_leaves_the_posterior(engine):
    """Exact draws before and after a move, 16 comparisons at |z| < 4.26: 3e-4 for each of five."""
    table, support = few_tokens()
    lm, client = served(table)
    weights = exact(table, support, lm.prompt("The").prompt_tokens[-1])
    power = getattr(engine, "power", 1.0)
    if power != 1.0:
        weights = {x: w * (w / math.exp(sum_of(x, support))) ** (power - 1.0) for x, w in weights.items()}
    runs = list(weights)
    law = np.array([weights[x] for x in runs]) / sum(weights.values())
    n = 400
    model = spells(lm, support)
    index = np.searchsorted(law.cumsum()[:-1], fk.keys.uniform(keys_of(n, 9)), side="right")
    paths = forced(model, [choices(lm, x) for x in runs])
    begin = [paths[i] for i in index]
    client.asked.clear()
    if isinstance(engine, fk.SuffixMH):
        [(moved, _)] = drive(model, [engine.move(model, begin, keys_of(n, 10), None, np.ones(n))])
    else:
        keys = keys_of(n, 11)
        found = drive(model, [engine._sweep(model, path, keys[[i]]) for i, path in enumerate(begin)])
        moved = [path for (path,), _ in found]
    before, after = [runs[i] for i in index], [value_of(model, path) for path in moved]
    assert np.mean([a != b for a, b in zip(before, after)]) > 0.1
    assert drift(before, after, runs) < Z_LIMIT


def sum_of(tokens, support):
    end = support[-1]
    return sum(weight_of(token, support) for token in tokens) * (2 if tokens == (end,) else 1)


def choices(lm, tokens):
    """What the run of `spells` with some tokens chose, step by step."""
    from feynkac.models.language.drawing.runs import Run

    text, steps = lm.prompt("The"), []
    for t in range(2):
        if t < len(tokens):
            run = Run(lm.next_token(text))
            run.advance(tokens[t], 0.0)
            text = run.text()
            steps.append({"letter" if not t else "letter[1]": text})
        else:
            steps.append({})
    return steps


# -- the books -------------------------------------------------------------------------------------------------------


def test_costs_are_those_that_the_server_counted():
    lm, client = served()
    text = lm.prompt("Once upon")
    client.asked.clear()
    step = lm.sentence(text, max_tokens=40)
    with recording(Ledger()) as ledger:
        step.sample_batch([step] * 3, keys_of(3, 12))
        fk.ppl.score.evaluate([lm.score(text, " a time")])
    cost = ledger.total()
    sent = [request for wave in client.asked for request in wave]
    answers = [client.server.answer(request.pop("path"), request)[1] for request in sent]
    drawn = [answer for request, answer in zip(sent, answers) if not request.get("echo")]
    assert cost.model_calls == len(client.asked)
    assert cost.requests == len(sent)
    assert cost.tokens_out == sum(len(answer["choices"][0]["token_ids"]) for answer in drawn)
    assert cost.tokens_in == sum(answer["usage"]["prompt_tokens"] for answer in answers) + cost.tokens_out


def test_a_posterior_is_saved_and_its_texts_go_on(twin, tmp_path, local):
    lm, _ = twin

    @fk.program
    async def writes(lm):
        text = await fk.sample("line", lm.line(lm.prompt("Once"), max_tokens=6))
        await fk.factor("short", -0.1 * len(str(text)))
        return text

    posterior = fk.infer(writes(lm), fk.SMC(4), seed=0)
    posterior.save(tmp_path / "run.fk")
    text = fk.Posterior.load(tmp_path / "run.fk").values[0]
    again = lm.attach(text)
    assert again == posterior.values[0]
    assert again.append(" and").full.endswith(" and")
    assert local.attach(text).full == again.full


def test_a_full_context_ends_a_text_without_a_request():
    lm, client = served(context=8)
    text = lm.prompt(list(range(3, 9)))
    step = lm.tokens(text, 5)
    value = step.sample_batch([step], keys_of(1)).values[0]
    assert (len(value.tokens), value.finish_reason) == (2, "context")
    assert [request["max_tokens"] for wave in client.asked for request in wave] == [2]
    client.asked.clear()
    drawn, gone = value.log_prob, value.detach()
    del value, step
    assert fk.ppl.score.evaluate([lm.score(gone)])[0] == pytest.approx(drawn, abs=1e-9)
    assert [len(request["prompt"]) for wave in client.asked for request in wave] == [7, 7]
    client.asked.clear()
    value = lm.attach(gone)
    more = lm.tokens(value, 3)
    assert more.sample_batch([more], keys_of(1)).values == [value]
    assert client.asked == []
    with pytest.raises(fk.errors.ContextOverflow, match=r"9 tokens.*is 8"):
        lm.prompt(list(range(3, 12)))
