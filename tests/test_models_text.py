"""Texts are values: decoding, equality, appending, detaching, JSON."""

import dataclasses
import json

import numpy as np
import pytest

from feynkac.inference.results.encoding import Decoder, Encoder
from feynkac.models import Text
from feynkac.models.language.text import Reading
from feynkac.models.testing import tiny_lm
from feynkac.ppl import keys


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


def test_the_text_of_another_model_is_refused():
    with pytest.raises(ValueError, match="belongs to"):
        tiny_lm(1).attach(tiny_lm(0).prompt("The"))


def test_detached_texts_hold_no_cache():
    lm = tiny_lm()
    texts = [grown(lm, seed).detach() for seed in range(3)]
    assert lm.cache_info().bytes == 0
    assert np.isfinite([text.log_prob for text in texts]).all()
