"""Texts that are cut: the tokens, steps and display that there were, and nothing is forwarded again."""

import json
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from random_models import draw, fresh_log_prob
from test_models_encdec import lm_of as encoder_decoder
from tiny_tokenizers import MAKERS, lm_of
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import feynkac as fk
from feynkac.models import Text
from feynkac.models.language.drawing.runs import replay
from feynkac.models.language.texts.text import Reading
from feynkac.models.testing import tiny_lm
from laws import T2_NEXT, T2_ORDER, T2_PRIOR


@contextmanager
def said_at_random(lm, seed):
    """Let a model say whole characters: how broken ones are displayed depends on what is read at once."""
    rng = np.random.default_rng(seed)
    known = [token for token in range(lm.vocab_size) if lm.decode([token]).isascii() and lm.decode([token])]

    def step(runs, keys, tally):
        for run in runs:
            while not run.over:
                run.advance(int(rng.choice(known)), -1.0)

    lm.draw = step
    yield
    del lm.draw


def grown(lm):
    """Texts that follow each other, by steps of all kinds."""
    text = lm.prompt("The sea")
    texts = [text]
    for _ in range(3):
        for step in (
            lambda text: lm.tokens(text, 3),
            lambda text: text.append(" said: yes. "),
            lambda text: lm.until(text, ["e", "s", "<user>"], max_tokens=6),
            lambda text: text.append(""),
            lambda text: lm.sentence(text, max_tokens=5),
            lambda text: text.append(" no! i am."),
            lambda text: lm.until(text, ["a", "i"], max_tokens=6, include_stop=True),
        ):
            made = step(text)
            text = made if isinstance(made, Text) else draw([made], len(texts))[0]
            texts.append(text)
            if text.finished:
                return texts
    return texts


def same(one, other):
    """Whether two texts are the same in all that is seen of them, but for the log-probability of what was drawn."""
    names = "tokens", "steps", "ends", "full", "finish_reason", "identity"
    return one == other and all(getattr(one, name) == getattr(other, name) for name in names)


@pytest.mark.parametrize("kind", [*MAKERS, "t5"])
def test_a_text_is_cut_to_what_it_was(kind):
    lm = encoder_decoder(kind) if kind == "t5" else lm_of(kind)
    for seed in range(3):
        with said_at_random(lm, seed):
            texts = grown(lm)
        text = texts[-1]
        by_length = {len(each.tokens): each for each in texts}  # the last of each length
        for k in range(len(text.tokens) + 1):
            cut = text.cut(to=k)
            assert cut.log_prob == text.log_prob
            if k in by_length:
                assert same(cut, by_length[k]), (k, cut.ends, by_length[k].ends)
            assert cut.tokens == text.tokens[:k]
            assert cut.node is text.node.ancestor(cut.node.length)
            assert cut == text.cut(len(text.tokens) - k)
            whole = sum(len(each.tokens) <= k for each in texts[1:])
            assert len(cut.steps) == len(cut.ends) == whole + (k not in by_length)
            if k < len(text.tokens):  # the same tokens again give the same display
                again = replay(lm.tokens(cut, len(text.tokens) - k), text).text()
                assert again.tokens == text.tokens
                assert again.reading.string == text.reading.string
        assert text.cut(0) is text
        assert same(text.cut(to=0), texts[0])


def test_a_step_that_is_cut_through_displays_what_is_left():
    lm = tiny_lm()
    text = lm.prompt("The").append(" sea said").append(" yes. No.")
    first = len(text.cut(to=text.ends[0].tokens).tokens)
    cut = text.cut(to=first + 2)
    assert cut.steps == (" sea said", lm.decode(text.tokens[first : first + 2]))
    assert text.cut(to=first).steps == (" sea said",)
    assert text.full.startswith(cut.full)
    longer = cut.append("!")
    assert longer.steps == (*cut.steps, "!")
    assert longer.cut(to=first + 1).steps == (" sea said", lm.decode(text.tokens[first : first + 1]))
    assert longer.cut(1).steps == cut.steps


def test_a_cut_inside_a_character():
    lm = tiny_lm()
    text = lm.prompt("The").append("a日本b")
    tokens = lm.encode("a日本b")
    for k in range(1, len(tokens)):
        cut = text.cut(to=k)
        broken = lm.decode(tokens[:k])
        assert str(cut) == broken
        assert cut.steps == (broken.rstrip("\ufffd"),)
        rest = replay(lm.tokens(cut, len(tokens) - k), text).text()
        assert str(rest) == "a日本b"
        assert "".join(rest.steps) == "a日本b"


def test_a_long_chunk_that_ends_inside_a_character_is_read_up_to_it():
    lm = tiny_lm()
    tokens = lm.encode("so it is " * 20 + "日本")
    assert len(tokens) > 80
    reading = Reading().read(lm.decode, tokens[:-1])
    assert reading.raw == "so it is " * 20 + "日"
    assert reading.read(lm.decode, tokens[-1:]).string == "so it is " * 20 + "日本"


def test_a_text_that_ended_goes_on_after_a_cut():
    lm = tiny_lm()
    text = lm.prompt("Once").append(" upon")
    text = draw([lm.next_token(text, mask=np.arange(300) == 1)])[0]
    assert text.finish_reason == "eos"
    assert text.cut(0).finish_reason == "eos"
    open_ = text.cut(1)
    assert open_.finish_reason is None
    assert str(open_) == str(text)
    assert str(text.append(" a")) == str(open_.append(" a")) == str(text) + " a"
    assert lm.encode(" a", text) == lm.encode(" a", open_)
    data = {**text.to_json(), "shown": text.shown, "begin": text.begin}
    del data["ends"]
    old = lm.attach(Text.from_json(data))
    assert old.append(" a").full == text.append(" a").full
    short = tiny_lm(context=12)
    full = draw([short.complete(short.prompt("Once"))])[0]
    assert full.finish_reason == "context"
    assert full.cut(3).finish_reason is None


def test_nothing_is_forwarded_again():
    lm = tiny_lm()
    text = draw([lm.tokens(lm.prompt("Once upon a time there was"), 8)])[0]
    texts = [draw([lm.tokens(text, 1)], t)[0] for t in range(3)]
    before = lm.forwarded
    cut = [each.cut(to=k) for each, k in zip(texts, (8, 6, 3))]
    assert lm.forwarded == before
    longer = draw([lm.tokens(each, 2) for each in cut])
    assert lm.forwarded == before + 3, "one token of each: that before its second"
    for each in longer:
        at = len(each.prompt_tokens) + len(each.tokens) - 2
        drawn = each.log_prob - next(c.log_prob for c in cut if c.tokens == each.tokens[:-2])
        assert drawn == pytest.approx(fresh_log_prob(lm, each, at), abs=1e-4)


def test_files_tell_where_steps_end():
    lm = tiny_lm()
    with said_at_random(lm, 0):
        text = grown(lm)[-1]
    data = json.loads(json.dumps(text.to_json()))
    loaded = Text.from_json(data)
    with pytest.raises(ValueError, match=r"loaded without its language model: use lm.attach\(text\).cut"):
        loaded.cut(1)
    loaded = lm.attach(loaded)
    for k in range(len(text.tokens)):
        assert same(loaded.cut(to=k), text.cut(to=k))
    # A file of before.
    end = data.pop("ends")[-1]
    old = lm.attach(Text.from_json({**data, "shown": end[1], "begin": end[2]}))
    assert (str(old), old.steps, old.shown, old.begin) == (str(text), text.steps, text.shown, text.begin)
    last = len(text.tokens) - text.ends[-2].tokens
    assert last > 2
    for n in range(last):
        assert (old.cut(n).full, old.cut(n).steps) == (text.cut(n).full, text.cut(n).steps)
    with pytest.raises(ValueError, match="tells of its last step alone where it begins: cut off fewer"):
        old.cut(last + 2)
    longer = old.append(" and so on")
    assert same(longer.cut(to=len(text.tokens)), old)
    assert longer.cut(1).steps[:-1] == text.steps
    for wrong in ([[1, None, 0]], [*[[0, None, 0]] * (len(text.steps) - 1), [1, "a", 0]], [[1, 2]] * len(text.steps)):
        with pytest.raises(TypeError, match="not those of a text"):
            Text.from_json({**data, "ends": wrong})


def test_what_cannot_be_cut_is_refused_by_name():
    text = tiny_lm().prompt("Once upon").append(" a time")
    n = len(text.tokens)
    with pytest.raises(ValueError, match=rf"has {n} tokens, so that {n + 1} cannot be cut off"):
        text.cut(n + 1)
    with pytest.raises(ValueError, match=rf"has {n} tokens, so that {n + 1} cannot be kept"):
        text.cut(to=n + 1)
    for wrong in ({"n": -1}, {"to": -1}, {}, {"n": 1, "to": 1}):
        with pytest.raises(ValueError, match=r"at least 0|by n tokens, or to some"):
            text.cut(**wrong)
    with pytest.raises(TypeError, match="whole number"):
        text.cut(1.0)


# -- In programs: T2, a token model over {a, b, $} ------------------------------------------------------------------


def t2_lm():
    """A model whose law depends on the last token alone: those of T2, with ids 1 for $, 2 for a and 3 for b."""
    words = {"<bos>": 0, "$": 1, "a": 2, "b": 3}
    raw = Tokenizer(models.WordLevel(words, unk_token="$"))
    config = LlamaConfig(vocab_size=4, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
                         eos_token_id=1, bos_token_id=0, max_position_embeddings=8)  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0 if "norm" in name else 0.0)
        model.model.embed_tokens.weight[:, :4] = torch.eye(4)
        for last, p in ((0, T2_NEXT[""]), (2, T2_NEXT["a"]), (3, T2_NEXT["b"])):
            for token, mass in zip((2, 3, 1), p):
                model.lm_head.weight[token, last] = float(np.log(mass)) / 4  # the norm multiplies by the root of 16
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<bos>", eos_token="$")
    return fk.models.TransformersLM(model, tokenizer, name="t2")


@fk.program
async def cut_and_redrawn(lm, **how):
    text = await to_the_end(lm, lm.prompt([0]))
    return "".join(lm.spelled([token])[0] for token in (await to_the_end(lm, text.cut(**how))).tokens)


async def to_the_end(lm, text):
    while not text.finished:
        allowed = [False, True, False, False] if len(text.tokens) == 2 else [False, True, True, True]
        text = await fk.sample("token", lm.next_token(text, mask=np.array(allowed)))
    return text


@pytest.mark.parametrize(
    ("how", "law"),
    [({"n": 0}, T2_PRIOR), ({"to": 1}, T2_PRIOR), ({"n": 1}, (0.04, 0.075, 0.15, 0.375, 0.024, 0.21, 0.126))],
)
def test_what_is_redrawn_after_a_cut(how, law):
    found = fk.enumerate_program(cut_and_redrawn(t2_lm(), **how)).law()
    assert found.keys() == set(T2_ORDER)
    assert [found[value] for value in T2_ORDER] == pytest.approx(law, abs=1e-5)
