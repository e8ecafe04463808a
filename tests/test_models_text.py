"""Texts are values: decoding, equality, appending, detaching, JSON."""

import dataclasses
import json

import numpy as np
import pytest
from random_models import draw, fresh_log_prob
from tiny_tokenizers import MAKERS, lm_of, tokenizer
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from feynkac.inference.results.keeping.encoding import Decoder, Encoder
from feynkac.models import Text, TransformersLM
from feynkac.models.language.texts.encoding import Codec
from feynkac.models.language.texts.text import Reading
from feynkac.models.testing import tiny_lm
from feynkac.ppl import keys
from feynkac.ppl.errors import ContextOverflow, TokenizerMismatch


def grown(lm, seed=0):
    text = lm.prompt("Once upon")
    for t in range(4):
        step = lm.tokens(text, 3)
        text = step.sample_batch([step], keys.fold(keys.root(seed), t)).values[0]
    return text


@pytest.mark.parametrize("string", ["héllo wörld", "日本語 and 🎉🎉", "plain", " lead", "a\n\nb", "👩‍👩‍👧‍👦"])
def test_reading_token_by_token_gives_the_whole_string(string):
    lm = tiny_lm()
    reading = lm.prompt("The").reading
    seen = [""]
    for token in lm.encode(string):
        reading = reading.read(lm.decode, (token,))
        assert reading.raw.startswith(seen[-1])
        assert "\ufffd" not in reading.raw
        seen.append(reading.raw)
    assert reading.string == string
    assert not reading.tail


def test_broken_characters_are_not_held_back_for_ever():
    lm = tiny_lm()
    broken = lm.encode("日")[0]
    reading = Reading()
    for _ in range(200):
        reading = reading.read(lm.decode, (broken,))
    assert len(reading.held) <= 65
    assert len(reading.string) == 200


def test_a_chunk_that_ends_inside_a_character_is_read_up_to_it():
    lm = tiny_lm()
    reading = Reading().read(lm.decode, lm.encode("some 日本")[:-1])
    assert reading.raw == "some 日"
    assert reading.read(lm.decode, lm.encode("some 日本")[-1:]).string == "some 日本"


def test_a_tokenizer_that_strips_leading_spaces():
    words = {1: "▁the", 2: "▁sea", 3: "s"}

    def decode(tokens):
        return "".join(words[t] for t in tokens).replace("▁", " ").removeprefix(" ")

    reading = Reading(context=(1,), before="the")
    for token in (2, 3, 1):
        reading = reading.read(decode, (token,))
    assert reading.string == " seas the"


def test_the_response_is_what_the_tokenizer_reads():
    lm = tiny_lm()
    for seed in range(20):
        text = grown(lm, seed)
        assert str(text) == lm.decode(text.tokens)
        assert text.full == "Once upon" + str(text)
        assert len(text.steps) == 4


def test_equal_histories_are_equal_texts():
    lm = tiny_lm()
    one, two = lm.prompt("The").append(" sea").append("s"), lm.prompt("The").append(" sea").append("s")
    assert one == two
    assert one.node is two.node
    assert hash(one) == hash(two) == hash(one.detach())
    assert one == one.detach()
    assert one.detach() == two
    assert one != lm.prompt("The sea").append("s")  # the response begins elsewhere
    assert one != tiny_lm(1).prompt("The").append(" sea").append("s")
    assert one != "The seas"
    assert len({one, two, one.detach()}) == 1


def test_texts_cannot_be_changed():
    text = tiny_lm().prompt("The")
    with pytest.raises(dataclasses.FrozenInstanceError):
        text.prompt = "A"
    assert repr(text.append(" sea")) == "<Text ' sea'>"


def test_json_round_trip_without_a_model():
    lm = tiny_lm()
    text = grown(lm)
    copy = Text.from_json(json.loads(json.dumps(text.to_json())))
    assert copy == text
    assert hash(copy) == hash(text)
    for name in (
        "tokens",
        "prompt_tokens",
        "prompt",
        "full",
        "steps",
        "log_prob",
        "finished",
        "finish_reason",
    ):
        assert getattr(copy, name) == getattr(text, name)
    assert str(copy) == str(text)
    with pytest.raises(ValueError, match="attach"):
        copy.append("x")


def test_texts_have_one_name_in_files_wherever_their_class_moves():
    text, encoder = Text("lm", "Once", (1, 2)), Encoder()
    written = encoder.encode(text, "a text")
    assert written["~object"][0] == "feynkac.models.text:Text"
    assert Decoder(encoder.arrays, 10**6).decode(written) == text


def test_a_loaded_text_goes_on_where_it_was():
    lm = tiny_lm()
    text = grown(lm)
    for copy in (text.detach(), Text.from_json(text.to_json())):
        step, same = lm.tokens(copy, 3), lm.tokens(text, 3)
        k = keys.fold(keys.root(5))
        one, two = step.sample_batch([step], k).values[0], same.sample_batch([same], k).values[0]
        assert one == two
        assert (str(one), one.steps) == (str(two), two.steps)
        assert lm.attach(copy) == text


@pytest.mark.parametrize("saved", [False, True])
def test_a_text_moves_to_a_model_with_an_equal_tokenizer(saved):
    one, other = tiny_lm(0), tiny_lm(1)
    assert one.identity != other.identity
    text = grown(one)
    given = Text.from_json(text.to_json()) if saved else text
    moved = other.attach(given)
    assert moved.lm is other
    assert moved.identity == other.identity
    for name in ("tokens", "prompt_tokens", "steps", "log_prob", "finish_reason", "full"):
        assert getattr(moved, name) == getattr(text, name)
    (longer,) = draw([other.tokens(given, 3)])
    drawn = longer.log_prob - text.log_prob
    assert drawn == pytest.approx(fresh_log_prob(other, longer, len(text.prompt_tokens + text.tokens)), abs=1e-4)
    step = one.tokens(text, 3)  # what another model drew can be scored
    assert step.log_prob_batch([step], [longer])[0] == pytest.approx(
        fresh_log_prob(one, longer, len(text.prompt_tokens + text.tokens)), abs=1e-4
    )


def test_a_text_of_another_tokenizer_is_refused_whatever_its_model_is_called():
    one = lm_of("byte-level")
    other = TransformersLM(one.model, tokenizer("llama"), name=one.identity)
    text = one.prompt("The sea")
    assert one.encode("The sea") != other.encode("The sea")
    with pytest.raises(TokenizerMismatch, match="whose tokenizer is not that of <TransformersLM byte-level-0>"):
        other.attach(text)
    with pytest.raises(TokenizerMismatch, match="read as something else"):
        other.tokens(Text.from_json(text.to_json()), 1).sample_batch([other.tokens(text, 1)], keys.root(0)[None])
    step = other.tokens(other.prompt("The sea"), 3)
    assert step.log_prob_batch([step], [draw([one.tokens(text, 3)])[0]])[0] == -np.inf


def test_a_text_of_an_old_file_is_known_by_its_name():
    one, other = tiny_lm(0), tiny_lm(1)
    text = grown(one)
    data = text.to_json()
    del data["fingerprint"]
    old = Text.from_json(data)
    assert old == text
    assert one.attach(old).fingerprint == text.fingerprint
    with pytest.raises(TokenizerMismatch, match=r"belongs to tiny-LlamaForCausalLM-0, not to .* from a file"):
        other.attach(old)
    with pytest.raises(TypeError, match="not those of a text"):
        Text.from_json({**data, "fingerprint": 3})


def test_tokenizers_are_told_apart_by_what_they_read():
    def of(made):
        return Codec(made, len(made), "it").fingerprint

    found = {kind: of(tokenizer(kind)) for kind in MAKERS}
    assert len(set(found.values())) == len(MAKERS)
    fast = tokenizer("llama")
    raw = Tokenizer.from_str(fast.backend_tokenizer.to_str())
    again = PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>")
    assert of(tokenizer("llama", begin=False, end=True)) == found["llama"], "what is put round it is in a prompt"
    assert of(again) == found["llama"]
    again.add_special_tokens({"pad_token": "<eos>"})
    again(["padded", "and"], padding="max_length", max_length=9, truncation=True)
    assert of(again) == found["llama"]
    again.add_tokens(["<tool>"], special_tokens=True)
    assert of(again) != found["llama"]

    class InPython(PreTrainedTokenizer):
        def __init__(self, words, **options):
            self.words = words
            super().__init__(unk_token="<unk>", **options)

        vocab_size = property(lambda self: len(self.words))

        def get_vocab(self):
            return {word: i for i, word in enumerate(self.words)} | self.added_tokens_encoder

        def _tokenize(self, string, **options):
            return list(string)

        def _convert_token_to_id(self, token):
            return self.words.index(token) if token in self.words else 0

        def _convert_id_to_token(self, index):
            return self.words[index]

    letters = ["<unk>", *"abcdefgh"]
    assert of(InPython(letters)) == of(InPython(letters)) != of(InPython([*letters[:-1], "z"]))


def test_a_text_that_does_not_fit_another_model_is_refused():
    long, short = tiny_lm(0), tiny_lm(1, context=12)
    text = draw([long.tokens(long.prompt("Once upon a time"), 20)])[0]
    assert len(text.prompt_tokens + text.tokens) > 12
    with pytest.raises(ContextOverflow, match=r"but the context of .* is 12"):
        short.attach(text)
    with pytest.raises(ContextOverflow, match="the prompt has"):
        short.attach(long.prompt("Once upon a time there was a river"))
    few = tiny_lm(2)
    few.model.resize_token_embeddings(280)
    few = tiny_lm(model=few.model)
    with pytest.raises(ValueError, match=r"has the token 299, but .* knows the tokens 0 to 279"):
        few.attach(long.prompt([5, 299]))


def test_what_ends_a_text_is_for_its_model_to_say():
    one, other = tiny_lm(0), tiny_lm(1)
    other.eos = frozenset({7})
    ended = Text.from_json({**one.prompt("The").to_json(), "tokens": [5, 1], "finish_reason": "eos"})
    assert one.attach(ended).finish_reason == "eos"
    assert other.attach(ended).finish_reason is None
    other.eos = frozenset({1, 7})
    assert other.attach(ended).finish_reason == "eos"
    full = tiny_lm(1, context=one.attach(ended).node.length)
    assert full.attach(dataclasses.replace(ended, finish_reason=None)).finish_reason == "context"


def test_tokens_that_a_model_does_not_have_are_not_decoded():
    lm = tiny_lm()
    for decode in (lm.decode, lm.decode_response):
        for wrong in (300, -1):
            with pytest.raises(ValueError, match=rf"decoded has the token {wrong}, but .* knows the tokens 0 to 299"):
                decode([5, wrong])
    with pytest.raises(ValueError, match="the prompt has the token 300"):
        lm.prompt([5, 300])


def test_detached_texts_hold_no_cache():
    lm = tiny_lm()
    texts = [grown(lm, seed).detach() for seed in range(3)]
    assert lm.cache_info().bytes == 0
    assert np.isfinite([text.log_prob for text in texts]).all()
