"""Language models over bytes, alone and together, against sums over all sequences of tokens.

Each z-test raises a false alarm twice in 100,000 times (`laws.Z_LIMIT`); there are about 45 here. Seeds are fixed.
"""

from __future__ import annotations

import itertools
import math
from functools import cache

import numpy as np
import pytest

import feynkac as fk
from laws import check_unbiased

pytest.importorskip("torch")
pytest.importorskip("transformers")

import tiny_tokenizers as tt
from random_models import random_weights
from toys_constrained import target

from feynkac.models.constraints import (
    ByteLM,
    Bytes,
    Language,
    Where,
    byte_law,
    coerced,
    constrained,
    mixture,
    power_mean,
    targeting,
)
from feynkac.models.local.transformers_lm import TransformersLM
from feynkac.models.testing import tiny_lm
from feynkac.ppl.errors import BeamWarning, ContextOverflow, Unsupported
from feynkac.ppl.memory import afresh

VOCABULARIES = {"one": ("a", "b", "ab", "ba", "aab"), "two": ("b", "a", "<user>", "bb", "abb", "bab")}
PAGE = Bytes()
LONGEST = 3


@cache
def words_lm(name, context=32, apart=1):
    """A random Llama over some strings, an end and perhaps a special token; ids are so far apart."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokens = ("<eos>", *VOCABULARIES[name])
    raw = Tokenizer(models.BPE(vocab={token: apart * i for i, token in enumerate(tokens)}, merges=[]))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = {"additional_special_tokens": ["<user>"]} if "<user>" in tokens else {}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>", **special)
    config = LlamaConfig(
        vocab_size=apart * len(tokens), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=context, eos_token_id=0,
        bos_token_id=None,
    )  # fmt: skip
    model = random_weights(lambda: LlamaForCausalLM(config), len(name + tokens[1]) + ord(tokens[1]), std=0.5)
    model.lm_head.weight.data.mul_(0.4)
    return TransformersLM(model, tokenizer, name=f"words-{name}")


@cache
def probs(name, history):
    lm = words_lm(name)
    return np.exp(lm.next_log_probs(lm.prompt(list(history))))


def tokens(name):
    return {i + 1: token for i, token in enumerate(VOCABULARIES[name]) if token != "<user>"}


@cache
def begins(name, string, history=(1,)):
    """The probability that what comes after a history begins with a string."""
    if not string:
        return 1.0
    p, total = probs(name, history), 0.0
    for token, spelled in tokens(name).items():
        if string.startswith(spelled):
            total += p[token] * begins(name, string[len(spelled) :], (*history, token))
        elif spelled.startswith(string):
            total += p[token]
    return total


@cache
def is_whole(name, string, history=(1,)):
    """The probability that what comes after a history is a string."""
    p = probs(name, history)
    if not string:
        return p[0]
    return sum(
        p[token] * is_whole(name, string[len(spelled) :], (*history, token))
        for token, spelled in tokens(name).items()
        if string.startswith(spelled)
    )


def law_of(name, **settings):
    lm = words_lm(name)
    return ByteLM(lm, lm.prompt([1]), **settings)


def strings(longest, letters="ab"):
    return ["".join(s) for n in range(longest + 1) for s in itertools.product(letters, repeat=n)]


def context(string):
    return tuple(string.encode())


def log(p):
    return math.log(p) if p > 0 else -math.inf


@pytest.mark.parametrize("name", VOCABULARIES)
def test_beginnings_and_wholes_are_sums_over_all_sequences_of_tokens(name):
    law, some = law_of(name), strings(4, "abc")
    found = law.prefix_batch([context(s) for s in some])
    assert found == pytest.approx([log(begins(name, s)) for s in some], abs=1e-5)
    found = law.complete_batch([context(s) for s in some])
    assert found == pytest.approx([log(is_whole(name, s)) for s in some], abs=1e-5)
    assert len(law._covers([context("aabab")])[0].covers) > 3
    law.check([context(s) for s in ("", "a", "ab", "aab", "bbab", "c", "ac")] + [(97, 256), (256,)])
    # The next byte and the end have all of the probability but that of the special token.
    for s in ("", "b", "ab"):
        lost = sum(
            math.exp(cover.log_p) * probs(name, (1, *cover.node.response))[3]
            for cover in law._covers([context(s)])[0].covers
            if not cover.depth and name == "two"
        )
        left = np.exp(law.logw_next(context(s))).sum() * begins(name, s)
        assert left == pytest.approx(begins(name, s) - lost, abs=1e-5)


def test_the_law_keeps_to_its_sampling_and_its_start():
    lm = words_lm("one")
    text = lm.prompt([1]).append("ab")
    after = ByteLM(lm, text)
    history = (1, *text.tokens)
    assert after.prefix(context("ba")) == pytest.approx(log(begins("one", "ba", history)), abs=1e-5)
    cold = ByteLM(lm, lm.prompt([1]), top_k=1)
    best = int(probs("one", (1,)).argmax())
    rows = np.exp(cold.logw_next(()))
    assert rows.max() == pytest.approx(1.0)
    assert int(rows.argmax()) == (257 if best == 0 else tokens("one")[best].encode()[0])


def test_beams_are_lower_bounds_that_say_what_they_cut():
    exact, some = law_of("one"), [context(s) for s in strings(5)]
    narrow = law_of("one", beam=2)
    with pytest.warns(BeamWarning, match="a beam of 2 has cut"):
        bounds = narrow.complete_batch(some)
    true = exact.complete_batch(some)
    assert (bounds <= true + 1e-9).all()
    assert (bounds < true - 0.01).any()
    wide = law_of("one", beam=500)
    assert wide.complete_batch(some) == pytest.approx(true)
    assert max(wide.lost(s) for s in some) == 0.0
    # What is cut at the first string that has more covers than the beam: its least ones.
    first = next(s for s in some if len(exact._covers([s])[0].covers) > 2)
    masses = sorted((math.exp(cover.log_mass) for cover in exact._covers([first])[0].covers), reverse=True)
    assert narrow.lost(first) == pytest.approx(1 - sum(masses[:2]) / sum(masses))
    assert all(narrow.lost(s) >= narrow.lost(s[:-1]) >= 0 for s in some[1:])
    tolerant = law_of("one", beam=2, tolerance=1.0)
    tolerant.check(some[:12])
    assert tolerant.fingerprint != exact.fingerprint


def likely(law):
    """What is drawn often enough for a z-score."""
    return {value: p for value, p in law.items() if p > 0.08}


ENSEMBLES = {
    "one": (lambda a, b: a, lambda p, q: p),
    "product": (lambda a, b: a**0.7 * b**1.5, lambda p, q: p**0.7 * q**1.5),
    "contrast": (lambda a, b: a**2 / b, lambda p, q: p**2 / q),
    "mixture": (lambda a, b: mixture([a, b], [0.3, 0.7]), lambda p, q: 0.3 * p + 0.7 * q),
    "harmonic": (lambda a, b: power_mean([a, b], [0.3, 0.7], -1.0), lambda p, q: 1 / (0.3 / p + 0.7 / q)),
    "root": (lambda a, b: power_mean([a, b], [0.3, 0.7], 0.5), lambda p, q: (0.3 * p**0.5 + 0.7 * q**0.5) ** 2),
    "smallest": (lambda a, b: power_mean([a, b], [0.5, 0.5], -math.inf), min),
}


@fk.program
async def by_bytes(potential):
    text = PAGE.prompt("")
    for _ in range(LONGEST - 1):
        text = await fk.sample("byte", targeting(PAGE.next_token(text), potential))
        await fk.factor("step", 0.0)
    return str(await fk.sample("rest", targeting(PAGE.complete(text, max_tokens=1), potential)))


@pytest.mark.parametrize("name", ENSEMBLES)
def test_ensembles_across_tokenizers_have_the_law_of_whole_strings(name):
    combine, weigh = ENSEMBLES[name]
    z, law = target({s: weigh(is_whole("one", s), is_whole("two", s)) for s in strings(LONGEST)})
    potential = combine(law_of("one"), law_of("two"))
    potential.check([context(s) for s in ("", "b", "aba", "c")], tokens=[97, 98, 99])
    check_unbiased(by_bytes(potential), fk.SMC(4), likely(law), math.log(z), runs=100)


def test_ensembles_of_a_byte_at_a_time_enumerate():
    potential = law_of("one") ** 0.5 * law_of("two") * Where(PAGE, lambda s: "bb" not in s)

    @fk.program
    async def two():
        text = PAGE.prompt("")
        for _ in range(2):
            text = await fk.sample("byte", targeting(PAGE.next_token(text), potential))
        return str(text), text.finished

    exact = fk.enumerate_program(two())
    found = dict(zip(exact.values, np.exp(exact.log_weights).tolist()))
    wanted = {(s, True): is_whole("one", s) ** 0.5 * is_whole("two", s) for s in strings(1)}
    wanted |= {(s, False): begins("one", s) ** 0.5 * begins("two", s) for s in ("aa", "ab", "ba")}
    assert {value: p for value, p in found.items() if p} == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("sampler", ["mask", "awrs"])
def test_a_model_weighs_the_tokens_of_another_by_their_bytes(sampler):
    lm = words_lm("one")
    other = coerced(law_of("two"), lm)
    other.check([(), (1,), (3, 2), (5,), (0,), (1, 0, 1)])

    @fk.program
    async def both():
        text = lm.prompt([1])
        text = await fk.sample("token", constrained(lm.next_token(text), other, sampler=sampler))
        await fk.factor("step", 0.0)
        text = await fk.sample("rest", constrained(lm.complete(text, max_tokens=1), other, sampler=sampler))
        return text.tokens[:-1]

    weights = {}
    for n in range(3):
        for ids in itertools.product(range(1, 6), repeat=n):
            histories = [(1, *ids[:t]) for t in range(n + 1)]
            own = math.prod(probs("one", h)[t] for h, t in zip(histories, (*ids, 0)))
            weights[ids] = own * is_whole("two", "".join(tokens("one")[t] for t in ids))
    z, law = target(weights)
    check_unbiased(both(), fk.SMC(4), likely(law), math.log(z), runs=100)


def test_a_product_is_coerced_as_a_whole():
    lm = words_lm("one")
    both = coerced(law_of("two") ** 2 * Where(PAGE, lambda s: "aa" not in s), lm)
    assert both.complete((3, 2)) == pytest.approx(2 * log(is_whole("two", "abb")), abs=1e-5)
    assert both.complete((1, 1)) == -math.inf
    (both * Language(lm, lm.prompt([1]))).check([(), (3, 2), (1, 1)])


def test_what_begins_later_is_coerced_with_its_weight_there():
    lm = words_lm("one")
    law = law_of("two")
    half = mixture([law, law], [0.25, 0.25])
    text = lm.prompt([1]).append("ab")
    step = constrained(lm.next_token(text), coerced(half.after(2), lm))
    own = np.exp(lm.next_log_probs(text))
    b = next(i for i, token in tokens("one").items() if token == "b")
    wanted = math.log(0.5 * own[b] * begins("two", "b"))
    assert step.log_prob_batch([step], [text.append("b")])[0] == pytest.approx(wanted, abs=1e-5)
    later, first = coerced(half.after(2), lm), coerced(half, lm)
    with pytest.raises(ValueError, match="begin at one place"):
        mixture([later, first], [0.5, 0.5])
    assert first.opening_batch([(), (1,), (0,)]).tolist() == [math.log(0.5), 0.0, 0.0]


def test_each_model_is_called_once_a_byte_and_remembers_it():
    a, b = law_of("one"), law_of("two")

    @fk.program
    async def three():
        return await fk.sample("text", targeting(PAGE.tokens(PAGE.prompt(""), 3), a * b))

    posterior = fk.infer(three(), fk.SMC(16), seed=0)
    assert posterior.cost.model_calls <= 2 * (3 + 1)  # a prompt may be forwarded apart
    with afresh():
        first = fk.infer(three(), fk.SMC(16), seed=0)
        second = fk.infer(three(), fk.SMC(16), seed=0)
    assert second.cost.tokens_in == 0 < first.cost.tokens_in == posterior.cost.tokens_in
    assert second.values == first.values


@pytest.mark.parametrize("r", [1e-300, -1e-16, 1e-12, -1e-6, 1e-3])
def test_power_means_of_small_exponents_are_near_the_geometric_one(r):
    a, b = law_of("one"), law_of("two")
    mean, exact = (power_mean([a, b], [0.3, 0.7], power) for power in (r, 0.0))
    first, second = np.array([-700.0, -3.0, -2.0]), np.array([-690.0, -3.0, -math.inf])
    found, limit = mean.combine([first, second])[:2], exact.combine([first, second])[:2]
    spread = np.array([0.5 * 0.21 * 100.0, 0.0])  # half the variance, the next term of the series
    np.testing.assert_allclose(found, limit + r * spread, atol=1e-10 + 200 * r**2)


def test_power_means_where_a_part_is_nothing():
    a, b = law_of("one"), law_of("two") * Where(PAGE, lambda s: "a" not in s)
    only_one, both = context("a"), context("b")
    for r, wanted in [(1.0, 0.3), (2.0, 0.3**0.5), (math.inf, 1.0), (0.0, 0.0), (-1.0, 0.0), (-math.inf, 0.0)]:
        mean = power_mean([a, b], [0.3, 0.7], r)
        assert math.exp(mean.complete(only_one)) == pytest.approx(wanted * is_whole("one", "a"), rel=1e-4)
        assert mean.complete(both) > -math.inf
        mean.check([(), only_one, both], tokens=[97, 98, 99])
        assert mean.covers(a) == (r > 0)
        assert b.covers(mean) == (r <= 0 and b.covers(b))


@pytest.mark.parametrize("kind", tt.EXACT)
def test_tokens_read_as_their_bytes(kind):
    lm = tt.lm_of(kind)
    for string in (" river", " 3+4\n", " naïve 日"):
        ids = lm.encode(string, lm.prompt("Once"))
        assert b"".join(lm.token_bytes[i] for i in ids) == string.encode()
    assert len(lm.token_bytes) == lm.vocab_size
    assert not any(lm.token_bytes[i] for i in lm.eos)


def test_a_first_space_that_is_not_displayed_is_there_in_bytes():
    lm = tt.lm_of("metaspace, first")
    (token,) = [i for i, spelled in enumerate(lm.token_bytes) if spelled == b" x"]
    step = lm.next_token(lm.prompt(""), mask=np.arange(lm.vocab_size) == token)
    (text,) = step.sample_batch([step], fk.keys.fold(fk.keys.root(0), np.arange(1))).values
    assert str(text) == "x"
    one = coerced(Where(PAGE, lambda s: s == " x"), lm)
    assert one.complete(text.tokens) == 0.0


def test_ids_that_stand_for_nothing_hide_no_token_after_them():
    lm = words_lm("one", apart=3)
    assert {i: string for i, string in enumerate(lm.token_bytes) if string} == {
        3 * i: string.encode() for i, string in tokens("one").items()
    }
    law = np.exp(lm.next_log_probs(lm.prompt([3])))
    found = np.exp(ByteLM(lm, lm.prompt([3])).prefix_batch([(97,), (98,)]))
    spelled = [[3 * i for i, string in tokens("one").items() if string[0] == first] for first in "ab"]
    assert found == pytest.approx([law[ids].sum() for ids in spelled], rel=1e-5)


def test_what_has_no_law_over_bytes_is_refused(monkeypatch):
    text = PAGE.prompt("a")
    with pytest.raises(Unsupported, match=r"targeting\(step, potential\)"):
        fk.simulate(_plain(text), seed=0)
    with pytest.raises(Unsupported, match="does not decode tokens as bytes"):
        _ = tt.lm_of("word piece").token_bytes
    with pytest.raises(ValueError, match="not the same tokens"):
        law_of("one") * Language(words_lm("one"), words_lm("one").prompt([1]))
    with pytest.raises(ValueError, match="not the same tokens"):
        coerced(Language(words_lm("one"), words_lm("one").prompt([1])), words_lm("two"))
    with pytest.raises(ValueError, match="NaN"):
        power_mean([law_of("one")], [1.0], math.nan)
    with pytest.raises(ValueError, match="beam must be at least 1"):
        law_of("one", beam=0)
    with pytest.raises(ValueError, match="tolerance is a share"):
        law_of("one", beam=1, tolerance=2)
    monkeypatch.setattr(byte_law, "_MOST", 3)
    with pytest.raises(Unsupported, match="more than 3 ways: give it a beam"):
        law_of("one").prefix(context("aabaab"))
    short = words_lm("one", context=4)
    with pytest.raises(ContextOverflow, match="its context of 4"):
        ByteLM(short, short.prompt([1]), beam=3, tolerance=1.0).prefix(context("abababab"))


@fk.program
async def _plain(text):
    return await fk.sample("byte", PAGE.next_token(text))


@pytest.mark.slow
@pytest.mark.parametrize("engine", [fk.SuffixMH(700, burn_in=20), fk.ParticleGibbs(8, sweeps=200, burn_in=20)])
def test_chains_over_bytes_keep_the_law(engine):
    """Total variation below .1 at a fixed seed, where that of the first model alone is above .25."""
    one, two = ({s: is_whole(name, s) for s in strings(LONGEST)} for name in VOCABULARIES)
    _, law = target({s: one[s] ** 0.7 * two[s] ** 1.5 for s in one})
    _, alone = target(one)
    posterior = fk.infer(by_bytes(law_of("one") ** 0.7 * law_of("two") ** 1.5), engine, seed=1)
    found = {s: sum(w for v, w in zip(posterior.values, posterior.probabilities) if v == s) for s in law}
    assert 0.5 * sum(abs(found[s] - law[s]) for s in law) < 0.1
    assert 0.5 * sum(abs(alone[s] - law[s]) for s in law) > 0.25


@pytest.mark.real
def test_a_real_model_over_bytes_and_one_with_another_tokenizer():
    lm = fk.models.TransformersLM.from_pretrained("smollm2")
    start, string = lm.prompt("The weather report says that"), " it"
    spelled = {i: lm.tokenizer.decode([i]) for i in range(lm.vocab_size) if i not in lm.tokenizer.all_special_ids}

    def begins(rest, history):
        law, total = np.exp(lm.next_log_probs(lm.prompt(list(history)))), 0.0
        for token, s in spelled.items():
            if s.startswith(rest):
                total += law[token]
            elif s and rest.startswith(s):
                total += law[token] * begins(rest[len(s) :], (*history, token))
        return total

    exact = ByteLM(lm, start)
    assert exact.prefix(context(string)) == pytest.approx(log(begins(string, start.prompt_tokens)), abs=1e-3)
    beam = ByteLM(lm, start, beam=4, tolerance=1.0)
    longer = context(" it will rain")
    assert beam.prefix(longer) >= Language(lm, start).prefix(lm.encode(" it will rain", start)) - 1e-3
    assert beam.lost(longer) < 1e-3
    tiny = tiny_lm()
    both = beam * ByteLM(tiny, tiny.prompt("Once"), beam=4, tolerance=1.0) ** 0.2
    both.check([context(" it")], tokens=[97, 32, 115], atol=1e-3)

    @fk.program
    async def written():
        text = PAGE.prompt("")
        for _ in range(6):
            text = await fk.sample("byte", targeting(PAGE.next_token(text), both))
            await fk.factor("step", 0.0)
        return str(text)

    posterior = fk.infer(written(), fk.SMC(4), seed=0)
    assert posterior.log_evidence < 0
    assert all(value.isprintable() for value in posterior.values)
