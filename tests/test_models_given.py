"""What is given to a language model: strings observed, stops, prompts of every kind, settings that are none."""

import math

import numpy as np
import pytest

import feynkac as fk
from feynkac.models import Sampling
from feynkac.ppl.score import evaluate

torch = pytest.importorskip("torch")

from random_models import draw  # noqa: E402
from tiny_tokenizers import lm_of, tokenizer  # noqa: E402

from feynkac.models.local.transformers_lm import TransformersLM  # noqa: E402
from feynkac.models.testing import tiny_lm  # noqa: E402


def observed(make, text, string):
    """The program that observes a string, and one run of it."""

    @fk.program
    async def model():
        return await fk.observe("x", make(text), string)

    return fk.simulate(model(), seed=0)


# -- strings observed -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lm", [tiny_lm(), lm_of("llama")], ids=["byte-level", "llama"])
def test_a_string_is_observed_in_context(lm):
    text = lm.prompt("Once upon a time")
    for string in (" there was", " the sea", "ly"):
        (score,) = evaluate([lm.score(text, string)])
        run = observed(lambda text: lm.tokens(text, 12), text, string)
        assert run.log_weight == pytest.approx(score, abs=1e-5)
        assert run.value == text.append(string)  # a text to go on from
        assert str(run.value) == string
        step = lm.tokens(text, len(lm.encode(string, text)))
        assert run.log_weight == step.log_prob_batch([step], [run.value])[0]


def test_a_string_is_observed_under_the_law_of_its_step():
    lm = tiny_lm()
    text = lm.prompt("Once")
    run = observed(lambda text: lm.tokens(text, 9, temperature=0.5), text, " upon")
    step = lm.tokens(text, len(run.value.tokens), temperature=0.5)
    assert run.log_weight == step.log_prob_batch([step], [run.value])[0]
    assert run.log_weight != pytest.approx(evaluate([lm.score(text, " upon")])[0], abs=1e-3)


def test_steps_that_end_are_observed_with_their_ends():
    lm = tiny_lm()
    text = lm.prompt("Once")

    def truth(string):
        return evaluate([lm.score(text, string)])[0]

    line = observed(lm.line, text, " upon a time\n")
    assert line.log_weight == pytest.approx(truth(" upon a time\n"), abs=1e-5)
    assert str(line.value) == " upon a time"
    whole = observed(lm.complete, text, " upon<eos>")
    assert whole.log_weight == pytest.approx(truth(" upon<eos>"), abs=1e-5)
    assert whole.value.finish_reason == "eos"
    with pytest.raises(ValueError, match=r"does not end with ' upon': write an end token after it, '<eos>'"):
        observed(lm.complete, text, " upon")
    with pytest.raises(ValueError, match=r"write the stop after it, '\\n'"):
        observed(lm.line, text, " upon")
    with pytest.raises(ValueError, match=r"a sentence ends with its stop and white space"):
        observed(lm.sentence, text, " upon.")
    with pytest.raises(ValueError, match=r"ends after 2 of the .* tokens of ' upon a time'"):
        observed(lambda text: lm.tokens(text, 2), text, " upon a time")
    with pytest.raises(ValueError, match=r"it has no tokens"):
        observed(lambda text: lm.tokens(text, 2), text, "")
    with pytest.warns(fk.errors.ContextWarning, match="the text has 602 tokens"):
        assert observed(lambda text: lm.tokens(text, 900), text, "x" * 600).log_weight == -math.inf


def test_nothing_is_observed_after_the_end():
    lm = tiny_lm()
    ended = draw([lm.next_token(lm.prompt("Once"), mask=np.arange(lm.vocab_size) == 1)])[0]
    assert observed(lambda text: lm.tokens(text, 5), ended, " upon").log_weight == -math.inf
    assert observed(lambda text: lm.tokens(text, 5), ended, "").log_weight == 0


def test_strings_condition_texts_of_programs():
    lm = tiny_lm()

    @fk.program
    async def model():
        name = await fk.sample("name", fk.dist.Categorical([0.5, 0.5], values=[" river", " hill"]))
        text = await fk.sample("line", lm.tokens(lm.prompt("The").append(name), 9))
        await fk.factor("more", 0.0)
        return name if len(text.tokens) > 1 else ""

    conditioned = fk.handlers.condition(model(), data={"line": " ran to"})
    posterior = fk.infer(conditioned, fk.SMC(64, ess_threshold=1.0), seed=0)
    scores = evaluate([lm.score(lm.prompt("The").append(name), " ran to") for name in (" river", " hill")])
    exact = fk.enumerate_program(conditioned)
    assert exact.log_evidence == pytest.approx(np.logaddexp(*scores) - math.log(2), abs=1e-4)
    assert posterior.log_evidence == pytest.approx(exact.log_evidence, abs=1.0)
    constrained = fk.constraints.constrained(lm.tokens(lm.prompt("The"), 9), fk.constraints.Where(lm, lambda s: True))
    assert observed(lambda _: constrained, None, " sea").log_weight == pytest.approx(
        evaluate([lm.score(lm.prompt("The"), " sea")])[0], abs=1e-4
    )


# -- stops ----------------------------------------------------------------------------------------------------------


def scripted(lm, monkeypatch, *tokens):
    from feynkac.models.local.passes import drawing

    script = iter(tokens)
    monkeypatch.setattr(
        drawing, "drawn", lambda logits, uniforms, *_: torch.tensor([[next(script), -1.0]]).expand(len(uniforms), 2)
    )


def test_a_step_stops_at_a_special_token(monkeypatch):
    lm = tiny_lm()
    user = lm.tokenizer.convert_tokens_to_ids("<user>")
    said = [*lm.encode("so it is"), user, *lm.encode("and more")]
    step = lm.until(lm.prompt("Is it?"), ["<user>", "q"], max_tokens=40)
    scripted(lm, monkeypatch, *said)
    (text,) = draw([step])
    assert text.tokens == tuple(said[: said.index(user) + 1])
    assert str(text) == "so it is"
    assert text.finish_reason is None
    assert str(text.append("!")) == "so it is!"
    monkeypatch.undo()
    shorter = lm.prompt("Is it?").append("so it is")
    log_prob = step.log_prob_batch([step, step], [text, shorter])
    assert log_prob[0] == pytest.approx(evaluate([lm.score(lm.prompt("Is it?"), "so it is<user>")])[0], abs=1e-4)
    assert log_prob[1] == -math.inf
    assert lm.until(lm.prompt("Is it?"), "<user>") != lm.until(lm.prompt("Is it?"), "<eos>")


def test_an_end_token_as_a_stop_ends_the_text(monkeypatch):
    lm = tiny_lm()
    scripted(lm, monkeypatch, *lm.encode("so"), 1)
    (text,) = draw([lm.until(lm.prompt("Is it?"), "<eos>")])
    assert text.finish_reason == "eos"


def test_stops_that_would_never_be_met_are_refused():
    lm = tiny_lm()
    text = lm.prompt("Is it?")
    with pytest.raises(ValueError, match="would never be met: special tokens are not displayed"):
        lm.until(text, "<user>\n")
    for bad in (["a", None], b"a", 3):
        with pytest.raises(TypeError):
            lm.until(text, bad)


def test_a_thought_ends_at_a_special_token(monkeypatch):
    lm = tiny_lm()
    user = lm.tokenizer.convert_tokens_to_ids("<user>")
    scripted(lm, monkeypatch, *lm.encode("so"), user, *lm.encode("no"), user)
    run = fk.simulate(fk.models.think(lm, lm.prompt("Is it?"), end="<user>", wait=" Wait", ignore=1), seed=0)
    assert str(run.value) == "so Waitno"
    assert run.value.tokens.count(user) == 1
    assert run.value.tokens[-1] == user


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("河流入海。山在", "河流入海。"),
        ("「河。」と", "「河。」"),
        ("本当？！そう", "本当？！"),
        ("是吗？ 是", "是吗？"),
        ("هل هذا؟ نعم", "هل هذا؟"),
        ("3。x", "3。"),
        ("no stop here", "no stop here"),
    ],
)
def test_sentences_end_at_stops_of_other_scripts(monkeypatch, said, shown):
    lm = tiny_lm()
    tokens = lm.encode(said)
    scripted(lm, monkeypatch, *tokens)
    (text,) = draw([lm.sentence(lm.prompt("The"), max_tokens=len(tokens))])
    assert str(text) == shown


# -- prompts --------------------------------------------------------------------------------------------------------


def test_prompts_of_ids_are_taken_as_they_are():
    lm = tiny_lm()
    text = lm.prompt("Once upon")
    for ids in (list(text.prompt_tokens), np.array(text.prompt_tokens), torch.tensor(text.prompt_tokens)):
        same = lm.prompt(ids)
        assert same == text
        assert same.prompt == "Once upon"
        assert same.append(" a").full == "Once upon a"
    with pytest.raises(ValueError, match=r"the prompt has the token 300, but .* knows the tokens 0 to 299"):
        lm.prompt([1, 300])
    with pytest.raises(ValueError, match="has the token -1"):
        lm.prompt([-1])


def test_a_prompt_may_have_tokens_that_its_tokenizer_would_not_give():
    lm = tiny_lm()
    letters = [token for letter in "Once upon" for token in lm.encode(letter)]
    usual = lm.prompt("Once upon")
    assert tuple(letters) != usual.prompt_tokens
    for tokens in (letters, np.array(letters)):
        text = lm.prompt("Once upon", tokens=tokens)
        assert text.prompt_tokens == tuple(letters)
        assert text.append(" a").full == "Once upon a"
        assert text != usual
        assert text == lm.prompt(letters)
    assert lm.prompt("Once", tokens=[0, *letters]).full == "Once"
    assert lm.prompt([0, *letters]).full == "<bos>Once upon"
    messages = [{"role": "user", "content": "Hi"}]
    chat = lm.prompt(messages)
    assert lm.prompt(messages, tokens=letters).prompt == chat.prompt
    assert lm.prompt(messages, tokens=chat.prompt_tokens) == chat
    with pytest.raises(ValueError, match="the prompt has the token 300"):
        lm.prompt("Once", tokens=[300])
    with pytest.raises(ValueError, match="an empty list is no prompt"):
        lm.prompt("Once", tokens=[])
    with pytest.raises(TypeError, match="a prompt may be ids itself"):
        lm.prompt(letters, tokens=letters)
    with pytest.raises(TypeError, match="not 'Once'"):
        lm.prompt("Once", tokens="Once")


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        (None, TypeError, "a prompt is a string, chat messages or token ids, not None"),
        (b"Once", TypeError, "decode it first"),
        (3, TypeError, "not 3"),
        (True, TypeError, "not True"),
        ([], ValueError, "an empty list is no prompt"),
        (np.zeros(0, int), ValueError, "an empty list is no prompt"),
        ([1.5], TypeError, "a list of token ids"),
        ([True], TypeError, "a list of token ids"),
        (["Once", "upon"], TypeError, "a list of token ids"),
        ([[1, 2]], TypeError, "a list of token ids"),
        ({"role": "user", "content": "Hi"}, TypeError, "chat messages"),
        ([{"content": "Hi"}], TypeError, '"role" and "content"'),
        ("\ud800", ValueError, "a lone surrogate, half a character, at 0"),
        ([{"role": "user", "content": "x\udfff"}], ValueError, "a lone surrogate"),
    ],
)
def test_what_is_no_prompt_is_refused(prompt, error, message):
    with pytest.raises(error, match=message):
        tiny_lm().prompt(prompt)


def test_what_is_no_string_is_not_appended():
    text = tiny_lm().prompt("Once")
    with pytest.raises(TypeError, match="a string is needed"):
        text.append(None)
    with pytest.raises(TypeError, match="a string is needed"):
        text.append(b"x")
    with pytest.raises(ValueError, match="lone surrogate"):
        text.append("x\ud83d")
    with pytest.raises(ValueError, match="lone surrogate"):
        tiny_lm().score(text, "\udc00")


def test_a_text_is_no_prompt():
    lm = tiny_lm()
    with pytest.raises(TypeError, match=r"use str\(text\) or text.full"):
        lm.prompt(lm.prompt("Once"))


def test_a_tokenizer_that_is_larger_than_its_model():
    lm = lm_of("byte-level", size=100)
    with pytest.raises(ValueError, match=r"'the river' has the token .* knows the tokens 0 to 99: .*resize_token"):
        lm.prompt("the river")
    with pytest.raises(ValueError, match="knows the tokens 0 to 99"):
        lm.prompt([5]).append(" the river")


@pytest.mark.parametrize("kind", ["byte-level", "llama"])
def test_a_prompt_with_two_begin_tokens_or_an_end_token_warns(kind):
    with pytest.warns(fk.errors.PromptWarning, match="two begin tokens") as seen:
        lm_of(kind).prompt("<bos>said")
    assert seen[0].filename == __file__
    with pytest.warns(fk.errors.PromptWarning, match="two begin tokens"):
        lm_of(kind).prompt([0, 0, 5])
    with pytest.warns(fk.errors.PromptWarning, match="puts the end token '<eos>' after the prompt 'said'") as seen:
        lm_of(kind, end=True).prompt("said")
    assert seen[0].filename == __file__
    lm_of(kind, end=True).prompt(tokenizer(kind)("said").input_ids)  # silent, as are these
    lm_of(kind, begin=False).prompt("<bos>said")
    lm_of(kind).prompt("said<eos>")
    lm_of(kind).prompt("")


# -- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["3", 3.0, None, True])
def test_numbers_of_tokens_are_whole_numbers(bad):
    lm = tiny_lm()
    text = lm.prompt("Once")
    for make in (
        lambda: lm.tokens(text, bad),
        lambda: lm.complete(text, max_tokens=bad),
        lambda: lm.line(text, max_tokens=bad),
        lambda: fk.simulate(fk.models.think(lm, text, max_tokens=bad), seed=0),
        lambda: fk.models.rewards.Votes(lm, "{text}", n=bad),
        lambda: fk.models.rewards.Votes(lm, "{text}", max_tokens=bad),
    ):
        with pytest.raises(TypeError, match="must be a whole number"):
            make()
    assert lm.tokens(text, np.int64(3)) == lm.tokens(text, 3)


@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p", "min_p"])
def test_settings_of_sampling_are_numbers(name):
    with pytest.raises(TypeError, match=f"{name} must be a number, not '1'"):
        tiny_lm().tokens(tiny_lm().prompt("Once"), 3, **{name: "1"})
    with pytest.raises(TypeError, match=f"{name} must be a number, not True"):
        Sampling(**{name: True})


@pytest.mark.parametrize("cold", [1e-40, 1e-50, 5e-324])
def test_the_law_of_a_very_low_temperature_is_its_limit(cold):
    lm = tiny_lm()
    text = lm.prompt("Once")
    best = int(lm.next_log_probs(text).argmax())
    law = lm.next_log_probs(text, temperature=cold)
    assert law[best] == 0
    assert np.isneginf(np.delete(law, best)).all()
    (drawn,) = draw([lm.next_token(text, temperature=cold)])
    assert drawn.tokens == (best,)
    assert drawn.log_prob == 0


def test_end_tokens_that_the_model_lacks_are_no_end_tokens():
    lm = lm_of("byte-level")
    lm.model.config.eos_token_id = [1, 5000]
    try:
        assert TransformersLM(lm.model, lm.tokenizer).eos == {1}
    finally:
        lm.model.config.eos_token_id = 1


# -- texts that do not fit ------------------------------------------------------------------------------------------


@fk.program
async def growing(lm, prompt, added):
    text = await fk.sample("line", lm.tokens(lm.prompt(prompt), 3))
    await fk.factor("G", -0.1 * len(str(text)))
    text = text.append(added(text))
    return await fk.sample("more", lm.tokens(text, 2))


def test_a_particle_whose_text_does_not_fit_dies_alone():
    lm = tiny_lm(context=24)
    heavy = growing(lm, "The sea", lambda text: "x" * 40 if text.tokens[0] % 2 else " x")
    with pytest.warns(fk.errors.ContextWarning, match=r"of 16 particles ended with weight zero.*append less") as seen:
        posterior = fk.infer([growing(lm, "Once", lambda text: " x"), heavy], fk.SMC(8, ess_threshold=0.0), seed=0)
    assert len(seen) == 1
    light, lost = posterior
    assert light.complete.all()
    assert np.isfinite(light.log_weights).all()
    dead = np.isneginf(lost.log_weights)
    assert 0 < dead.sum() < 8
    # The others are what they would have been: their weights are those of the factor alone.
    first = lost.chains[0].steps[0].choices
    for sites, died in zip(first, dead):
        line = next(site for site in sites if site.name == "line").value
        assert died == bool(line.tokens[0] % 2)
        assert (sites[-1].name == "context overflow") == died


def test_the_evidence_is_that_of_the_texts_that_fit():
    lm = tiny_lm(context=8)

    @fk.program
    async def model():
        string = await fk.sample("string", fk.dist.Categorical([0.25, 0.75], values=[" x" * 20, " x"]))
        text = lm.prompt("Once").append(string)
        await fk.factor("G", 1.0)
        return str(text)

    with pytest.warns(fk.errors.ContextWarning):
        exact = fk.enumerate_program(model())
    assert exact.log_evidence == pytest.approx(1.0 + math.log(0.75))


def test_a_program_may_catch_what_does_not_fit():
    lm = tiny_lm(context=8)

    @fk.program
    async def model():
        text = lm.prompt("Once")
        try:
            return text.append("x" * 40)
        except fk.errors.ContextOverflow:
            return text

    assert str(fk.simulate(model(), seed=0).value) == ""


def test_what_a_reward_or_a_step_cannot_read_ends_its_own_particle():
    lm, small = tiny_lm(), tiny_lm(1, context=30)
    judge = fk.models.rewards.Judge(small, "{text}", yes=["Y"], no=["N"])

    @fk.program
    async def judged(call):
        text = await fk.sample("text", fk.dist.Categorical([0.5, 0.5], values=["so", "x" * 60]))
        if call:
            await fk.factor("judge", math.log(await fk.call("p", judge(text))))
        else:
            await fk.factor("judge", judge(text).log())
        return text

    for call in (True, False):
        with pytest.warns(fk.errors.ContextWarning, match="reward 'judge'"):
            posterior = fk.infer(judged(call), fk.SMC(12), seed=0)
        alive = np.isfinite(posterior.log_weights)
        assert [value == "so" for value in posterior.values if value is not None] == [True] * alive.sum()
        assert 0 < alive.sum() < 12

    experts = fk.constraints.Language(small, small.prompt("so"))

    @fk.program
    async def both():
        start = await fk.sample("n", fk.dist.Categorical([0.5, 0.5], values=[2, 40]))
        step = fk.constraints.constrained(lm.tokens(lm.prompt("Once"), start), experts)
        text = await fk.sample("text", step)
        await fk.factor("G", 0.0)
        return len(text.tokens)

    with pytest.warns(fk.errors.ContextWarning, match="more than its context of 30"):
        posterior = fk.infer(both(), fk.SMC(8), seed=0)
    assert {value for value in posterior.values if value is not None} == {2}


ENGINES = [
    fk.SMC(4),
    fk.SMC(4, move=fk.SuffixMH(1)),
    fk.ImportanceSampling(4),
    fk.BestOfN(4),
    fk.BeamSearch(2, 2),
    fk.TreeSampling(6),
    fk.SuffixMH(4),
    fk.ParticleGibbs(4, 3),
    fk.SelfConsistency(4),
]


@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: type(engine).__name__)
def test_a_problem_that_does_not_fit_does_not_end_the_run_of_the_others(engine):
    lm = tiny_lm(context=24)
    problems = [growing(lm, prompt, lambda text: " x") for prompt in ("Once", "xq" * 40, "The sea")]
    with pytest.warns(fk.errors.ContextWarning, match="the prompt has 80 tokens"):
        first, lost, last = fk.infer(problems, engine, seed=0)
    for posterior in (first, last):
        assert len(posterior.values)
        assert all(str(value) for value in posterior.values)
    assert not any(str(value or "") for value in lost.values)
    assert not lost.log_evidence > -math.inf


def test_one_problem_that_does_not_fit_is_an_error_that_says_why():
    lm = tiny_lm(context=24)
    with (
        pytest.warns(fk.errors.ContextWarning),
        pytest.raises(fk.errors.AllParticlesDead, match=r"4 at site 'context overflow'") as raised,
    ):
        fk.infer(growing(lm, "xq" * 40, lambda text: " x"), fk.SMC(4), seed=0)
    assert any("the prompt has 80 tokens" in note for note in raised.value.__notes__)
