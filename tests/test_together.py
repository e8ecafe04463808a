"""Texts that see each other's tokens as they come: against a slow reference, alone and in company, under engines."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
import transformers
from random_models import random_weights

import feynkac as fk
from feynkac.models.language.stepping.together import Together
from feynkac.models.local.hogwild import workers
from feynkac.models.local.hogwild.blocks import NEVER, Blocks, Seat
from feynkac.models.local.hogwild.workers import LocalWorkers
from feynkac.models.local.memory.kept import Kept, Wave
from feynkac.models.testing import tiny_lm
from feynkac.ppl.cost import Ledger, recording
from laws import check_unbiased

SIZES = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 96,
}  # fmt: skip
KINDS = {
    "Llama": {"num_key_value_heads": 4},
    "Qwen2": {"num_key_value_heads": 2},
    "Qwen3": {"num_key_value_heads": 1, "head_dim": 8},
    "Mistral": {"num_key_value_heads": 2, "sliding_window": 9},
}


@cache
def model_of(kind):
    config = getattr(transformers, f"{kind}Config")(**SIZES, **KINDS[kind])
    return random_weights(lambda: getattr(transformers, f"{kind}ForCausalLM")(config)).eval()


def lm_of(kind="Llama", **options):
    lm = tiny_lm(model=model_of(kind), **options)
    lm.eos = frozenset()
    return lm


def keyring(n, *path):
    return fk.keys.fold(fk.keys.root(3), *path, np.arange(n))


def begun(lm, *openings, prompt="The sea said"):
    text = lm.prompt(prompt)
    return tuple(text.append(opening) if opening else text for opening in openings)


def turned(x, position):
    """Rotate a vector (heads, dim) that stands at position 0 to a position, by hand."""
    half = x.shape[-1] // 2
    angle = position * 10000.0 ** (-torch.arange(half).double() / half)
    a, b = x[:, :half], x[:, half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def slow(model, texts, times):
    """Log-probabilities after each token of each text, token by token and key by key, at the places of the layout.

    ``times`` are those of all tokens after the prompt. Keys are turned here to where they are seen from, queries never.
    """
    core, config = model.model.double(), model.config
    prompt, count = texts[0].prompt_tokens, len(texts)
    spots = [(-1, i, token, -1) for i, token in enumerate(prompt)]
    spots += [(w, i, x, times[w][i]) for w, text in enumerate(texts) for i, x in enumerate(text.tokens)]
    hidden = core.embed_tokens(torch.tensor([token for _, _, token, _ in spots]))
    window = getattr(config, "sliding_window", None) or math.inf

    def view(w, i, now):
        """Where each token that a token sees stands, as (place among all, position), itself the last."""
        blocks = [-1, *(v for v in range(count) if v != w), w] if w >= 0 else [-1]
        seen = [
            at for block in blocks for at, (v, j, _, time) in enumerate(spots)
            if v == block and (j <= i if v == w else time <= now)
        ]  # fmt: skip
        return [(at, position) for position, at in enumerate(seen) if position > len(seen) - 1 - window]

    views = [view(w, i, now) for w, i, _, now in spots]
    for layer in core.layers:
        attention, x = layer.self_attn, layer.input_layernorm(hidden)
        heads = {name: getattr(attention, f"{name}_proj")(x).unflatten(-1, (-1, attention.head_dim)) for name in "qkv"}
        for name in "qk":
            if hasattr(attention, f"{name}_norm"):
                heads[name] = getattr(attention, f"{name}_norm")(heads[name])
        out = []
        for q, seen in zip(heads["q"], views):
            q = turned(q, seen[-1][1])
            keys = torch.stack([turned(heads["k"][at], position) for at, position in seen])
            values = torch.stack([heads["v"][at] for at, _ in seen])
            keys, values = (y.repeat_interleave(len(q) // y.shape[1], 1) for y in (keys, values))
            weights = (torch.einsum("hd,thd->ht", q, keys) * attention.head_dim**-0.5).softmax(-1)
            out.append(torch.einsum("ht,thd->hd", weights, values).flatten())
        hidden = hidden + attention.o_proj(torch.stack(out))
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    laws = model.lm_head.double()(core.norm(hidden)).log_softmax(-1)
    model.float()
    return {(w, i): law for (w, i, _, _), law in zip(spots, laws)}


def slow_log_prob(model, start, value):
    """Log p of the tokens of a value after its start's, by the slow reference."""
    now = 1 + max((t for times in value.times for t in times), default=0)
    times = [(*times, *(now,) * (len(text.tokens) - len(times))) for text, times in zip(value, value.times)]
    with torch.no_grad():
        laws = slow(model, value.texts, times)
    total = 0.0
    for w, text in enumerate(value):
        for i in range(len(start[w].tokens), len(text.tokens)):
            total += float(laws[(w, i - 1) if i else (-1, len(text.prompt_tokens) - 1)][text.tokens[i]])
    return total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("openings", [(" Alice:", " Bob says:"), ("", "", "")], ids=["two", "three"])
def test_the_law_is_that_of_a_slow_reference(kind, openings):
    lm = lm_of(kind)
    texts = begun(lm, *openings)
    request = lm.together(texts, 4)
    draws = request.sample_batch([request] * 2, keyring(2))
    for value, log_prob in zip(draws.values, draws.log_prob):
        assert slow_log_prob(lm.model, texts, value) == pytest.approx(log_prob, abs=1e-5)
    again = lm.together(draws.values[1].append(0, " Who?"), 3)
    (value,), (log_prob,), _ = again.sample_batch([again], keyring(1, 1))
    assert slow_log_prob(lm.model, again.texts, value) == pytest.approx(log_prob, abs=1e-5)
    assert value.log_prob == pytest.approx(draws.log_prob[1] + log_prob)


@pytest.mark.parametrize("opening", ["", " a time"])
def test_one_text_goes_on_as_it_does_alone(opening):
    lm = tiny_lm(context=40)
    lm.eos = frozenset(range(1, 8))
    (text,) = begun(lm, opening)
    for sampling in ({}, {"temperature": 0.5, "top_k": 9}):
        alone, shared = lm.tokens(text, 50, **sampling), lm.together((text,), 50, **sampling)
        truth, draws = (step.sample_batch([step] * 5, keyring(5)) for step in (alone, shared))
        assert [value[0] for value in draws.values] == truth.values
        assert {text.finish_reason for text in truth.values} == {"eos", "context"}
        assert [value[0].finish_reason for value in draws.values] == [text.finish_reason for text in truth.values]
        counts = np.array([len(value.tokens) for value in truth.values])
        np.testing.assert_allclose(draws.log_prob / counts, truth.log_prob / counts, atol=1e-5)
        assert [str(value[0]) for value in draws.values] == [str(text) for text in truth.values]


@pytest.mark.parametrize("most", [2**26, 1])
def test_given_texts_are_scored_as_they_were_drawn(monkeypatch, most):
    monkeypatch.setattr("feynkac.models.local.hogwild.workers._LOGITS", most)  # 1: a pass for each tick
    lm = tiny_lm()
    start = begun(lm, " Alice:", " Bob says:")
    requests = [lm.together(start, 4), lm.together(start, 9), lm.together(start[::-1], 1)] * 2
    first = requests[0].sample_batch(requests, keyring(6))
    requests = [lm.together(value, 3) for value in first.values]
    draws = requests[0].sample_batch(requests, keyring(6, 1))
    np.testing.assert_allclose(requests[0].log_prob_batch(requests, draws.values), draws.log_prob, atol=1e-5)
    lm.refresh()
    plain = [tuple(value.detach()) for value in draws.values]
    fresh = [lm.together(value.detach(), 3) for value in first.values]
    np.testing.assert_allclose(requests[0].log_prob_batch(fresh, plain), draws.log_prob, atol=1e-5)
    value = draws.values[0]
    late = Together(value.texts, (value.times[0], (*value.times[1][:-1], value.times[1][-1] + 1)))
    wrong = [tuple(value)[::-1], (value[0], start[1]), tuple(first.values[0]), first.values[1], late]
    assert np.isneginf(requests[0].log_prob_batch(requests[:1] * 5, wrong)).all()
    with pytest.raises(TypeError, match="2 texts"):
        requests[0].log_prob_batch(requests[:1], [value[0]])


def test_company_changes_nothing():
    lm = tiny_lm()
    texts = begun(lm, " Alice:", " Bob says: I am"), begun(lm, " No", " Yes", prompt="It is so. Is it? Who are you?")
    requests = [lm.together(texts[i % 2], k) for i, k in enumerate((5, 2, 7, 4, 5))]
    company = requests[0].sample_batch(requests, keyring(5))
    for i, request in enumerate(requests):
        other = tiny_lm()
        alone = other.together(tuple(map(other.attach, request.texts.detach())), request.k)
        draws = alone.sample_batch([alone], keyring(5)[i : i + 1])
        assert draws.values[0] == company.values[i]
        assert draws.log_prob[0] == pytest.approx(company.log_prob[i], rel=1e-6)


def test_what_is_forwarded_is_charged():
    lm = lm_of()
    texts = begun(lm, " Alice:", " Bob says:")
    prompt, opening = len(texts[0].prompt_tokens), sum(len(text.tokens) for text in texts)
    requests = [lm.together(texts, 4)] * 3
    with recording(Ledger()) as ledger:
        value = requests[0].sample_batch(requests, keyring(3)).values[0]
    assert (ledger.total().tokens_in, ledger.total().tokens_out) == (prompt + opening + 3 * 2 * 3, 24)
    assert ledger.total().model_calls == 1 + 1 + 3
    requests = [lm.together(value, 4)] * 3  # a fork: what is left of its last tick is written once
    with recording(Ledger()) as ledger:
        draws = requests[0].sample_batch(requests, keyring(3, 1))
    assert (ledger.total().tokens_in, ledger.total().model_calls) == (2 + 3 * 2 * 3, 4)
    with recording(Ledger()) as ledger:
        requests = [lm.together(value, 4) for value in draws.values]
        requests[0].sample_batch(requests, keyring(3, 2))
    assert (ledger.total().tokens_in, ledger.total().model_calls) == (3 * 2 * 4, 4)
    assert lm.cache_info().recomputed == 0
    with recording(Ledger()) as ledger:  # what follows the start is known, and the rest goes in one pass
        requests[0].log_prob_batch([lm.together(value, 4)] * 3, draws.values)
    assert (ledger.total().tokens_in, ledger.total().model_calls) == (3 * 2 * 3, 1)


def test_equal_draws_are_written_once():
    lm = lm_of()
    texts = begun(lm, " Alice:", " Bob says:")
    start = lm.together(texts, 1)
    one(start)
    requests = [lm.together(start.texts, k, temperature=0) for k in (6, 2, 6, 4)]
    with recording(Ledger()) as ledger:
        draws = requests[0].sample_batch(requests, keyring(4))
    assert draws.values[0] == draws.values[2]
    assert draws.log_prob.tolist() == [0] * 4
    assert ledger.total().tokens_in == 5 * 2
    assert lm.cache_info().recomputed == 0
    requests = [lm.together(value, 3, temperature=2.0) for value in draws.values]
    with recording(Ledger()) as ledger:
        draws = requests[0].sample_batch(requests, keyring(4))
    assert ledger.total().tokens_in == 2 * (3 + 2 * 4)
    assert lm.cache_info().recomputed == 0
    for request, value in zip(requests, draws.values):
        (log_prob,) = request.log_prob_batch([replace(request, sampling=fk.models.Sampling())], [value])
        assert slow_log_prob(lm.model, request.texts, value) == pytest.approx(log_prob, abs=1e-5)


def test_texts_move_between_variants_and_changed_weights():
    lm = tiny_lm()
    value = one(lm.together(begun(lm, " Alice:", " Bob says:"), 4))
    fast = lm.variant(layers=1)
    (text,) = begun(fast, " a time")
    assert one(fast.together((text,), 8))[0] == one(fast.tokens(text, 8))
    moved = one(fast.together(value, 4))
    assert moved.texts[0].lm is fast
    assert moved[0].tokens[: len(value[0].tokens)] == value[0].tokens
    assert moved != one(lm.together(value, 4))
    request = lm.together(value, 4)
    before = request.log_prob_batch([request], [moved])
    with torch.no_grad():
        lm.model.model.layers[0].self_attn.v_proj.weight.mul_(0.5)
    other = tiny_lm(model=lm.model).together(value.detach(), 4)
    truth = other.log_prob_batch([other], [moved.detach()])
    np.testing.assert_allclose(request.log_prob_batch([request], [moved]), truth, atol=1e-5)
    assert abs(truth - before) > 1e-3
    lm.model.double()
    assert one(lm.together((text,), 8))[0] == one(lm.tokens(text, 8))


@pytest.mark.parametrize("seed", range(4))
def test_no_history_disturbs_another(seed):
    """Texts go on, part, end, get appendices and are forgotten at random: each law is that of a fresh cache."""
    lm, fresh = tiny_lm(), tiny_lm()
    fresh.eos = lm.eos = frozenset(range(250, 300))
    random = np.random.default_rng(seed)
    values = [lm.together(begun(lm, " Alice: I am the", " Bob"), 1).texts] * 8
    for t in range(8):
        requests = [lm.together(value, int(random.integers(1, 6))) for value in values]
        draws = requests[0].sample_batch(requests, keyring(8, seed, t))
        fresh.refresh()
        again = [fresh.together(request.texts.detach(), request.k) for request in requests]
        given = [value.detach() for value in draws.values]
        np.testing.assert_allclose(again[0].log_prob_batch(again, given), draws.log_prob, atol=3e-5)
        live = [value for value in draws.values if not value.finished] + [values[0]]
        if random.random() < 0.3:
            live = [value if value[0].finished else value.append(0, " And?") for value in live]
        del requests, draws  # so that rows of what is gone are free
        values = [live[i] for i in random.integers(0, len(live), 8)]
        del live
    assert lm.cache_info().recomputed == 0


def test_rows_that_are_used_again_hold_nothing_of_what_was_there():
    like = {0: (torch.zeros(1, 0, 2), torch.zeros(1, 0, 2))}
    old, new = Blocks((2, 2, 6), like), Blocks((3, 2, 8), like)
    for i, blocks in enumerate((old, new)):
        blocks.layers[0][0][:] = blocks.layers[0][1][:] = i
        blocks.times[:] = 1 + i
    new.copy([Seat(Wave(None, old), row, 0) for row in (1, 0)], [2, 0], np.array([[3, 5], [2, 4]]))
    assert (new.times != NEVER).sum(-1).tolist() == [[2, 4], [8, 8], [3, 5]]
    assert new.filled.tolist() == [[2, 4], [0, 0], [3, 5]]
    for row, w, length in ((0, 0, 2), (0, 1, 4), (2, 0, 3), (2, 1, 5)):
        assert (new.times[row, w, :length] == 1).all()
        assert all((part[row, w, :, :length] == 0).all() for part in new.layers[0])


def test_a_pass_that_fails_leaves_no_trace(monkeypatch):
    truth, lm = lm_of(), lm_of()
    wrong = ["out of memory", "something else"]
    run = LocalWorkers._run

    def fail(self, now, ids, *rest):
        logits = run(self, now, ids, *rest)
        if self is lm.workers and wrong and len(ids) > 4 and ids.shape[1] == 1:
            raise RuntimeError(wrong.pop(0))
        return logits

    start = [begun(model, " Alice:", " Bob says:") for model in (truth, lm)]
    team = [model.together(texts, 5) for model, texts in zip((truth, lm), start)]
    lm.workers.turn
    monkeypatch.setattr(LocalWorkers, "_run", fail)
    with pytest.raises(RuntimeError, match="something else"):
        team[1].sample_batch([team[1]] * 5, keyring(5))
    assert lm.cache_info().shortages == 1
    draws = [request.sample_batch([request] * 5, keyring(5)) for request in team]
    assert draws[0].values == draws[1].values
    more = [[model.together(value, 3) for value in drawn.values] for model, drawn in zip((truth, lm), draws)]
    wrong.append("something else")
    with pytest.raises(RuntimeError, match="something else"):
        more[1][0].sample_batch(more[1], keyring(5, 1))
    draws = [requests[0].sample_batch(requests, keyring(5, 1)) for requests in more]
    assert lm.cache_info().recomputed > 0  # what a failed pass has written is not read
    assert draws[0].values == draws[1].values
    np.testing.assert_allclose(draws[0].log_prob, draws[1].log_prob, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("place", ["prompt", "blocks", "pass"])
@pytest.mark.parametrize("n", [1, 3])
def test_where_memory_runs_out_less_is_held_at_once(monkeypatch, place, n):
    truth, lm = lm_of(), lm_of()
    left = [0]
    lm.workers.turn
    room, name = {
        "prompt": (workers.Prompt, "write"),
        "blocks": (workers.Blocks, "__init__"),
        "pass": (workers.Writing, "write"),
    }[place]
    kept = getattr(room, name)

    def short(*args):
        if left[0]:
            left[0] -= 1
            raise torch.OutOfMemoryError("CUDA out of memory")
        return kept(*args)

    def draw(model):
        begins = [begun(model, f" {i}:", " Bob says:") for i in range(n)]
        teams = [model.together(texts, 4) for texts in begins]
        return teams[0].sample_batch(teams, keyring(n))

    expected = draw(truth)
    monkeypatch.setattr(room, name, short)
    left[0] = 1
    draws = draw(lm)
    assert draws.values == expected.values
    assert lm.cache_info().shortages == 1
    np.testing.assert_allclose(draws.log_prob, expected.log_prob, atol=1e-5)
    lm.refresh()
    left[0] = 100
    with pytest.raises(fk.errors.OutOfMemory, match=r"tokens .*does not fit into the memory of cpu"):
        draw(lm)


def test_plain_texts_are_observed_as_texts_of_the_cache():
    lm = tiny_lm()
    texts = begun(lm, " Alice:", " Bob says:")
    value = one(lm.together(texts, 3))

    @fk.program
    async def seen(observed):
        return await fk.sample("ticks", lm.together(texts, 3), obs=observed)

    for observed in (value, tuple(value)):
        posterior = fk.infer(seen(observed), fk.ImportanceSampling(1), seed=0)
        assert posterior.values == (value,)
        assert posterior.values[0].times == value.times
        assert posterior.log_evidence == pytest.approx(value.log_prob, abs=1e-5)


def test_a_text_may_end_before_the_others():
    lm = lm_of()
    texts = begun(lm, " Alice:", " Bob says:", " Eve")
    value = one(lm.together(texts, 6))
    lm.eos = frozenset((value[1].tokens[len(texts[1].tokens) + 2],))
    ended = one(lm.together(texts, 6))
    counts = [len(after.tokens) - len(before.tokens) for before, after in zip(texts, ended)]
    assert counts == [6, 3, 6]
    assert [text.finish_reason for text in ended] == [None, "eos", None]
    assert ended.times[1][-1] == 4
    assert slow_log_prob(lm.model, texts, ended) == pytest.approx(ended.log_prob, abs=1e-5)
    more = one(lm.together(ended, 3))
    assert more[1] == ended[1]
    assert len(more[0].tokens) == len(ended[0].tokens) + 3
    assert slow_log_prob(lm.model, texts, more) == pytest.approx(more.log_prob, abs=1e-5)
    with pytest.raises(ValueError, match="seen that it ended"):
        more.append(1, " I am back")
    assert len(one(lm.together(more.append(0, " I am still here"), 2))[0].tokens) > len(more[0].tokens) + 2
    lm.eos = frozenset(range(lm.vocab_size))
    over = one(lm.together(texts, 6))
    assert over.finished
    assert one(lm.together(over, 6)) == over


def one(request, *path):
    (value,) = request.sample_batch([request], keyring(1, *path)).values
    return value


def test_the_context_is_that_of_all_together():
    lm = lm_of()
    texts = begun(lm, " Alice:", " Bob says:")
    total = len(texts[0].prompt_tokens) + sum(len(text.tokens) for text in texts)
    value = one(lm.together(texts, 100))
    assert [text.finish_reason for text in value] == ["context"] * 2
    assert [len(value[w].tokens) - len(texts[w].tokens) for w in (0, 1)] == [(lm.context - total) // 2] * 2
    assert one(lm.together(value, 5)) == value
    lm.context = total + 1
    with pytest.raises(fk.errors.ContextOverflow, match=f"{total} tokens in all"):
        lm.together(texts, 1)


@pytest.mark.slow
def test_what_is_lost_is_written_again():
    truth, lm = lm_of(), lm_of(cache_bytes=500_000)
    for model in (truth, lm):
        values = [begun(model, " Alice:", " Bob says:")] * 12
        for t in range(3):
            requests = [model.together(value, 5) for value in values]
            draws = requests[0].sample_batch(requests, keyring(12, t))
            values = [draws.values[i] for i in np.random.default_rng(t).integers(0, 12, 12)]
        if model is truth:
            wanted = draws
    assert list(draws.values) == list(wanted.values)
    np.testing.assert_allclose(draws.log_prob, wanted.log_prob, atol=1e-5)
    info = lm.cache_info()
    assert info.evictions
    assert info.recomputed
    assert info.bytes <= info.limit == 500_000
    assert truth.cache_info().recomputed == 0
    small = lm_of(cache_bytes=20_000)
    with pytest.raises(fk.errors.OutOfMemory, match=r"2 texts of .* cache_bytes"):
        one(small.together(begun(small, " Alice:", " Bob says:"), 30))


def test_values_are_kept_and_read_again(tmp_path):
    lm = tiny_lm()
    posterior = fk.infer(side_by_side(lm), fk.SMC(4), seed=0)
    posterior.save(tmp_path / "posterior.zip")
    loaded = fk.Posterior.load(tmp_path / "posterior.zip")
    assert loaded.values == posterior.values
    assert isinstance(loaded.values[0], Together)
    assert loaded.values[0].board is None
    values = [value.append(1, " And?") for value in map(lm_attached(lm), loaded.values)]
    requests = [[lm.together(v.append(1, " And?"), 3)] for v in posterior.values]
    for value, request in zip(values, requests):
        again = lm.together(value, 3).sample_batch([lm.together(value, 3)], keyring(1))
        assert again.values == request[0].sample_batch(request, keyring(1)).values


def lm_attached(lm):
    return lambda value: Together(tuple(map(lm.attach, value)), value.times)


@fk.program
async def side_by_side(lm, steps=3):
    """Two texts go on in a loop, and are weighed by what the one has of the other's tokens."""
    team = begun(lm, " Alice:", " Bob says:")
    for _ in range(steps):
        team = await fk.sample("ticks", lm.together(team, 2))
        await fk.factor("common", 0.5 * len({*team[0].tokens} & {*team[1].tokens}))
    return team


@pytest.mark.slow
def test_a_program_runs_under_engines():
    lm = lm_of()
    posterior = fk.infer(side_by_side(lm), fk.SMC(8), seed=1)
    assert len(set(posterior.values)) > 1
    assert posterior.log_evidence < 8
    assert posterior.cost.tokens_out == 8 * 2 * 6
    assert lm.cache_info().recomputed == 0
    for value in posterior.values:
        texts = begun(lm, " Alice:", " Bob says:")
        assert slow_log_prob(lm.model, texts, value) == pytest.approx(value.log_prob, abs=1e-5)
    for engine in (fk.BestOfN(3), fk.SuffixMH(2), fk.ParticleGibbs(3, 2), fk.BeamSearch(2)):
        assert fk.infer(side_by_side(lm, 2), engine, seed=0).values


class Scripted(LocalWorkers):
    """A model that says 1 with probability .2 + .15 for each 1 that it sees, and else 0."""

    def __init__(self, lm):
        self.turn, self._forwarder, self._kept = None, lm.forwarder, Kept(2**60)
        self._boards, self._like = {}, {0: (torch.zeros(1, 0, 1),)}

    def laws(self, boards, owners, tally):
        ones = [sum(sum(node.tokens(board.prompt.length)) for node in board.nodes) for board in boards]
        p = torch.tensor([[[0.8 - 0.15 * n, 0.2 + 0.15 * n]] * len(boards[0].nodes) for n in ones])
        return torch.nn.functional.pad(p.log(), (0, 298), value=-math.inf)


@fk.program
async def ones(lm):
    team = (lm.prompt("Once"),) * 2
    for _ in range(2):
        team = await fk.sample("tick", lm.together(team, 1))
        await fk.factor("ones", float(sum(text.tokens[-1] for text in team)))
    return sum(sum(text.tokens) for text in team) == 4


@pytest.mark.slow
def test_evidence_is_that_of_tokens_seen_a_tick_later():
    # Same-tick visibility would give Z = 5.428990 and P(all ones) = .228792: at least 8 standard errors away.
    # 3 comparisons at |z| < 4.26: a correct engine fails with probability 3 × 2.0e-5 = 6e-5.
    lm = lm_of()
    lm._workers = Scripted(lm)
    law = {True: 0.123868, False: 1 - 0.123868}
    check_unbiased(ones(lm), fk.SMC(4), law, math.log(4.407758), runs=1000)


def test_each_draw_has_a_number_of_its_own():
    lm = lm_of()
    lm._workers = Scripted(lm)
    request = lm.together((lm.prompt("Once"),) * 2, 2)
    draws = request.sample_batch([request] * 50, keyring(50))
    first, second = fk.keys.uniform(keyring(50), 4).reshape(50, 2, 2).transpose(1, 0, 2)
    seen = first > 0.8
    later = second > 0.8 - 0.15 * seen.sum(1, keepdims=True)
    assert [tuple(text.tokens for text in value) for value in draws.values] == [
        tuple(zip(*pair)) for pair in np.stack([seen, later], 1).astype(int).tolist()
    ]


def test_what_has_no_meaning_is_refused():
    lm = lm_of()
    a, b = begun(lm, " Alice:", " Bob says:")
    for wrong in (a, [], (), (a, "b"), "ab"):
        with pytest.raises(TypeError, match="a tuple of texts"):
            lm.together(wrong, 3)
    with pytest.raises(ValueError, match="share one prompt"):
        lm.together((a, lm.prompt("Who?").append(" I")), 3)
    with pytest.raises(ValueError, match="text 1 has no token of its own"):
        lm.together((a, lm.prompt("The sea said")), 3)
    with pytest.raises(ValueError, match="number of tokens"):
        lm.together((a, b), 0)


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}, "does something else"),
        ("Bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 2}, "numbers of their positions"),
        ("Mamba", {"hidden_size": 32, "num_hidden_layers": 2}, "numbers of their positions"),
    ],
)
def test_models_that_cannot_are_refused_by_name(kind, settings, reason):
    config = getattr(transformers, f"{kind}Config")(vocab_size=300, **settings)
    name = {"GPT2": "GPT2LMHeadModel"}.get(kind, f"{kind}ForCausalLM")
    lm = tiny_lm(model=random_weights(lambda: getattr(transformers, name)(config)).eval())
    for _ in range(2):
        with pytest.raises(fk.errors.Unsupported, match=f"{name}.*({reason})"):
            lm.together(begun(lm, " Alice:", " Bob says:"), 3)


def test_keys_that_turn_otherwise_in_long_texts_are_refused_there():
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    config = transformers.LlamaConfig(
        **SIZES, num_key_value_heads=2, rope_parameters={**rope, "original_max_position_embeddings": 32, "factor": 3.0}
    )
    lm = tiny_lm(model=random_weights(lambda: transformers.LlamaForCausalLM(config)).eval())
    lm.eos = frozenset()
    (text,) = begun(lm, " a")
    k = 32 - text.node.length
    step = lm.tokens(text, k)
    assert one(lm.together((text,), k))[0] == one(step)
    with pytest.raises(fk.errors.Unsupported, match="LongRoPE"):
        lm.together((text,), k + 1)


FAMILIES = {
    "cohere2": "some layers do not turn",
    "gemma2": "scores are capped, and some layers see a window",
    "gemma3_text": "layers turn at different speeds",
    "glm4": "a half of each vector is turned, neighbour by neighbour",
    "gpt_oss": "attention has a sink",
    "phi": "a half of each vector is turned",
}


@pytest.mark.parametrize("family", FAMILIES)
def test_families_that_attend_in_other_ways(family):
    from zoo import build

    model = build(family)
    for layer in model.model.layers:
        if family == "gemma2":
            layer.self_attn.attn_logit_softcapping = 0.2
    lm = tiny_lm(model=model)
    lm.eos = frozenset()
    (text,) = begun(lm, " a time")
    alone, shared = lm.tokens(text, 12), lm.together((text,), 12)
    truth, draws = (step.sample_batch([step] * 3, keyring(3)) for step in (alone, shared))
    assert [value[0] for value in draws.values] == truth.values
    np.testing.assert_allclose(draws.log_prob, truth.log_prob, atol=1e-4)


def test_threads_share_a_model():
    lm, other = lm_of(), lm_of()
    texts = begun(lm, " Alice:", " Bob says:")
    truth = [one(other.together(begun(other, " Alice:", " Bob says:"), 6), i) for i in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: one(lm.together(texts, 6), i), range(4)))
    assert found == truth
