"""Strings in context: what is added to a text has the tokens that its tokenizer gives it there."""

import copy

import numpy as np
import pytest

import feynkac as fk
from feynkac.models.language.texts.encoding import Codec
from feynkac.models.language.texts.text import Text
from feynkac.ppl.score import evaluate

torch = pytest.importorskip("torch")

from random_models import draw  # noqa: E402
from tiny_tokenizers import EXACT, MAKERS, lm_of, tokenizer  # noqa: E402

from feynkac.models.rewards import Grader, Judge, StepTokenPRM, ValueHeadPRM  # noqa: E402

PROMPTS = ["The sea", "said: ", "Is it so?\n", "the river ran to the sea. " * 6 + "Who", "a<user>b", "x"]
STRINGS = [
    "yes", " yes", "\nyes", "\n\n no", "  two", "a b  c", ".", "ish", "s and so", "Yes, No!", " ", "\n", "é", " día",
    "日本語", "🎉🎉x", "👩‍👩‍👧‍👦", "\t1", "x\n", "<x>", "##s",
]  # fmt: skip


def pieces(lm, tokens):
    return lm.tokenizer.convert_ids_to_tokens(list(tokens))


@pytest.mark.parametrize("kind", EXACT)
def test_a_text_reads_as_it_did_and_then_the_string(kind):
    lm = lm_of(kind)
    rng = np.random.default_rng(0)
    ordinary = [i for i in range(lm.vocab_size) if "\ufffd" not in lm.decode((i,)) and lm.decode((i,))]
    texts = [lm.prompt(prompt) for prompt in PROMPTS]
    # Prompts of any tokens, which no tokenizer would have made.
    texts += [lm.prompt([0, *rng.choice(ordinary, n).tolist()]) for n in (1, 2, 5, 40)]
    for text in texts:
        for string in [*STRINGS, "".join(rng.choice(STRINGS, 6))]:
            longer = text.append(string)
            assert str(longer) == string
            assert lm.decode(longer.prompt_tokens + longer.tokens) == lm.decode(text.prompt_tokens) + string
            again = longer.append(" and").append(string)
            assert str(again) == string + " and" + string
            assert str(lm.attach(Text.from_json(longer.to_json())).append("ly")) == string + "ly"


@pytest.mark.parametrize("kind", MAKERS)
def test_a_string_has_the_tokens_that_the_whole_gives_it(kind):
    lm = lm_of(kind)
    same = 0
    for prompt in [*PROMPTS, "", "a<user>"]:
        text = lm.prompt(prompt)
        for string in STRINGS:
            whole = lm.prompt(prompt + string).prompt_tokens
            if whole[: len(text.prompt_tokens)] == text.prompt_tokens and 2 not in whole:  # 2 is unknown
                same += 1
                assert lm.encode(string, text) == whole[len(text.prompt_tokens) :], (prompt, string)
                assert text.append(string).tokens == whole[len(text.prompt_tokens) :]
    assert same > 0.5 * len(STRINGS) * len(PROMPTS)


@pytest.mark.parametrize("kind", ["byte-level", "llama", "unigram"])
def test_scores_are_those_of_the_whole(kind):
    lm = lm_of(kind)
    for prompt in PROMPTS[:3]:
        text = lm.prompt(prompt)
        strings = ["yes", " yes", " the sea, and so", "."]
        for string, score in zip(strings, evaluate([lm.score(text, string) for string in strings])):
            whole = lm.prompt(prompt + string).prompt_tokens
            n = len(text.prompt_tokens)
            if whole[:n] == text.prompt_tokens:
                with torch.no_grad():
                    law = lm.model(torch.tensor([whole]), use_cache=False).logits[0].double().log_softmax(-1)
                true = sum(float(law[i - 1, whole[i]]) for i in range(n, len(whole)))
                assert score == pytest.approx(true, abs=1e-4)


def test_a_space_that_the_tokenizer_puts_first_is_not_put_inside_a_text():
    lm = lm_of("llama")
    assert pieces(lm, lm.encode("yes")) == ["▁yes"]
    text = lm.prompt("said")
    assert pieces(lm, text.append(" yes").tokens) == ["▁yes"] == pieces(lm, lm.encode(" yes", text))
    assert pieces(lm, text.append("yes").tokens) == ["yes"] or "▁" not in "".join(pieces(lm, text.append("yes").tokens))
    assert str(text.append("yes")) == "yes"
    assert str(text.append("a").append(" yes").append("ish")) == "a yesish"


@pytest.mark.parametrize("kind", EXACT)
def test_where_a_token_would_join_both_the_kept_tokens_stay(kind):
    lm = lm_of(kind)
    text = lm.prompt("the ri")
    whole = lm.prompt("the river").prompt_tokens
    assert whole[: len(text.prompt_tokens)] != text.prompt_tokens
    longer = text.append("ver")
    assert longer.prompt_tokens == text.prompt_tokens
    assert str(longer) == "ver"
    assert lm.decode(longer.prompt_tokens + longer.tokens) == lm.decode(whole)
    # A prompt that ends with a space, which the next word would take.
    assert str(lm.prompt("said: ").append("yes")) == "yes"


@pytest.mark.parametrize("kind", ["byte-level", "llama", "unigram"])
def test_a_text_that_was_ended_goes_on_as_if_it_had_not(kind):
    lm = lm_of(kind)
    text = lm.prompt("who").append(" said")
    step = lm.next_token(text, mask=np.arange(lm.vocab_size) == 1)
    ended = draw([step])[0]
    assert ended.finish_reason == "eos"
    for string in (" yes", "yes"):
        assert ended.append(string) == text.append(string)
        assert str(ended.append(string)) == str(text.append(string))
        assert lm.encode(string, ended) == lm.encode(string, text)
        one, other = evaluate([lm.score(ended, string), lm.score(text, string)])
        assert one == other


@pytest.mark.parametrize(("kind", "piece"), [("llama", "▁yes"), ("byte-level", "y")])
def test_after_a_special_token_a_string_begins_as_the_tokenizer_lets_it(kind, piece):
    lm = lm_of(kind)
    text = lm.prompt("said").append(" so<user>")
    assert text.tokens[-1] == lm.tokenizer.convert_tokens_to_ids("<user>")
    assert str(text) == " so"
    assert pieces(lm, text.append("yes").tokens)[len(text.tokens)] == piece
    assert str(text.append("yes")) == " soyes"
    assert str(text.append(" yes")) == " so yes"
    both = text.append("yes<user> no")
    assert str(both) == " soyes no"
    assert both.tokens.count(text.tokens[-1]) == 2


def test_special_tokens_take_up_the_space_that_they_are_said_to():
    from transformers import AddedToken, PreTrainedTokenizerFast

    own = PreTrainedTokenizerFast(tokenizer_object=MAKERS["byte-level"](), eos_token="<eos>", unk_token="<unk>")
    turn = AddedToken("<turn>", rstrip=True, special=True, normalized=False)
    own.add_special_tokens({"extra_special_tokens": [turn]})
    codec = Codec(own, len(own), "tiny")
    assert codec.follow(codec.encode("a"), " b<turn>\n c") == codec.encode("a b<turn>\n c")[1:]
    own.split_special_tokens = True
    assert Codec(own, len(own), "tiny").special == {}


def test_what_a_tokenizer_does_not_keep_is_written_as_it_writes_it():
    t5, bert, qwen = lm_of("unigram"), lm_of("word piece"), lm_of("byte-level, composed")
    assert str(t5.prompt("said").append("\n\nyes  no")) == " yes no"
    assert str(t5.prompt("said: ").append("yes")) == " yes"  # the prompt's tokens have lost its space
    assert str(t5.prompt("said").append(" so ").append("yes")) == " so yes"
    assert str(t5.prompt("said").append(" ").append("yes")) == " yes"
    assert str(bert.prompt("Said").append(" YES.")) == " yes ."
    assert str(bert.prompt("Said").append("ly")) == "ly"
    assert str(qwen.prompt("caf").append("e\u0301")) == "\u00e9"


@pytest.mark.parametrize("kind", ["unigram", "word piece"])
def test_what_a_tokenizer_does_not_know_is_refused(kind):
    lm = lm_of(kind)
    text = lm.prompt("said")
    with pytest.raises(fk.errors.CannotWrite, match="cannot write '日', in ' yes 日本'"):
        text.append(" yes 日本")
    with pytest.raises(fk.errors.CannotWrite):
        lm.score(text, "日")


@pytest.mark.parametrize("kind", ["byte-level", "llama"])
def test_a_character_that_was_left_unfinished_stays_so(kind):
    lm = lm_of(kind)
    said = lm.prompt("said").prompt_tokens
    whole = lm.encode("日", lm.prompt("said"))
    for n in range(1, len(whole)):
        for string in (" yes", "yes", "ish"):
            broken = lm.prompt([*said, *whole[:n]]).append(string)
            assert broken.tokens == lm.encode(string, lm.prompt("said"))
            assert lm.decode(broken.prompt_tokens + broken.tokens).endswith("\ufffd" + string)


# -- rewards, thoughts and constraints ------------------------------------------------------------------------------


def answer_law(lm, text, *answers):
    """The law of the next token after a text, restricted to some pieces, by a fresh pass."""
    with torch.no_grad():
        law = lm.model(torch.tensor([text.prompt_tokens]), use_cache=False).logits[0, -1].double().softmax(-1)
    p = np.array([sum(float(law[lm.tokenizer.convert_tokens_to_ids(piece)]) for piece in ways) for ways in answers])
    return p / p.sum()


def test_a_judge_looks_for_its_answers_where_they_are_to_stand():
    lm = lm_of("llama")
    judge = Judge(lm, "Is it so? {text}\n", yes=["yes", " yes", "Y"], no=["no", " no"])
    (p,) = evaluate([judge("said")])
    # Alone " yes" would be two tokens; after the question "yes" is two, and counts no more.
    assert pieces(lm, lm.encode(" yes")) == ["▁", "▁yes"]
    assert p == pytest.approx(answer_law(lm, lm.prompt("Is it so? said\n"), ["▁yes", "Y"], ["▁no"])[0], abs=1e-5)
    grader = Grader(lm, "How good? {text}", grades={"1": 1.0, "2": 5.0})
    (grade,) = evaluate([grader("said")])
    text = lm.prompt("How good? said")
    assert grade == pytest.approx(answer_law(lm, text, ["1", "▁1"], ["2", "▁2"]) @ [1.0, 5.0], abs=1e-5)


def test_a_judge_asks_for_answers_that_differ_after_each_prompt():
    lm = lm_of("llama")
    with pytest.raises(ValueError, match="begin with the same token"):
        Judge(lm, "{text}", yes=["xa"], no=["xb"])
    # An uncased tokenizer writes "Yes" as "yes"; what it does not know is left out.
    bert = lm_of("word piece")
    judge = Judge(bert, "Is it so? {text}", yes=["Yes", " Yes", "日"], no=["No", " No"])
    assert 0 < evaluate([judge("said")])[0] < 1


def test_the_token_of_a_step_is_that_of_its_sign_alone():
    lm = lm_of("llama")
    prm = StepTokenPRM(lm, good="+", bad="-", tag="?")
    (p,) = evaluate([prm("Who?", ["said"])])
    text = lm.prompt("Who? said ?")
    first = [[pieces(lm, lm.encode(sign))[0]] for sign in "+-"]
    assert p == pytest.approx(answer_law(lm, text, *first)[0], abs=1e-5)


@pytest.mark.parametrize("kind", ["byte-level", "llama", "unigram"])
def test_steps_of_an_answer_are_encoded_after_each_other(kind):
    from transformers import LlamaConfig, LlamaForTokenClassification

    own = tokenizer(kind)
    config = LlamaConfig(
        vocab_size=len(own), hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        num_labels=2, pad_token_id=1,
    )  # fmt: skip
    prm = ValueHeadPRM(LlamaForTokenClassification(config), own)
    steps = ["The sea said yes.", "No, said the hill."]
    encoding, ends = prm._pieces("who are you?", tuple(steps))
    wholes = [own("who are you?\n" + "\n".join(steps[:n]) + "\n").input_ids for n in (1, 2)]
    assert encoding["input_ids"] == wholes[1]
    assert ends == [len(whole) - 1 for whole in wholes]


def test_a_thought_goes_on_in_context():
    lm = lm_of("llama")
    text = lm.prompt("who")
    run = fk.simulate(fk.models.think(lm, text, end="e", wait="yes", ignore=2, max_tokens=120), seed=3)
    assert str(run.value).count("yes") == 2
    assert "▁yes" not in pieces(lm, run.value.tokens)
    own = fk.simulate(fk.models.think(lm, text, end="e", wait=" yes", ignore=1, max_tokens=120), seed=3)
    assert pieces(lm, own.value.tokens).count("▁yes") == 1
    assert str(own.value).endswith("e")


def test_a_predicate_sees_the_response_as_it_stands_in_its_text():
    lm = lm_of("llama")
    seen = []
    where = fk.constraints.Where(lm, lambda string: seen.append(string) or True)
    text = lm.prompt("who").append(" yes")
    assert where.viable(text.tokens)
    assert seen == [str(text)] == [" yes"]


def test_a_space_that_only_the_tokens_hold_is_kept():
    lm = lm_of("unigram")  # which drops a space at the end of a string
    text = lm.prompt([*lm.prompt("said").prompt_tokens, lm.tokenizer.convert_tokens_to_ids("▁")])
    assert lm.decode(text.prompt_tokens) == "said "
    assert str(text.append("yes")) == "yes"


@pytest.mark.parametrize("kind", MAKERS)
def test_tokens_read_as_their_tokenizer_reads_them(kind):
    own = copy.deepcopy(tokenizer(kind))
    own.add_tokens(["<tool>", "  two", "日本"])
    codec = Codec(own, len(own), kind)
    rng = np.random.default_rng(0)
    broken = [token for token in range(len(own)) if "\ufffd" in codec._raw((token,))] or [0]
    for n in rng.integers(1, 9, 400):  # parts of characters in any order, and other tokens among them
        tokens = np.where(rng.random(n) < 0.7, rng.choice(broken, n), rng.integers(0, len(own), n)).tolist()
        said = own.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert codec.anew or codec.decode(tokens) == said
        if kind.startswith("byte-level"):
            assert codec.joined(tokens) == said
        else:
            with pytest.raises(KeyError):
                codec.joined(tokens)


def test_a_tokenizer_that_reads_in_its_own_way_is_asked():
    class Own(type(tokenizer("byte-level"))):
        def _decode(self, *args, **kwargs):
            return super()._decode(*args, **kwargs).upper()

    own = Own(tokenizer_object=tokenizer("byte-level").backend_tokenizer)
    assert Codec(own, len(own), "own").decode(own("abc").input_ids) == "ABC"
