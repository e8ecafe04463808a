"""Language models as judges: answers, grades, sampled verdicts and step tokens, and what they need not forward."""

from __future__ import annotations

import gc

import numpy as np
import pytest

import feynkac as fk
from feynkac.ppl.cost import Ledger, recording
from feynkac.ppl.score import evaluate
from laws import check_unbiased

torch = pytest.importorskip("torch")

from feynkac.models.rewards import Grader, Judge, StepTokenPRM, Votes, VotesError  # noqa: E402
from feynkac.models.testing import tiny_lm  # noqa: E402

QUESTION = "Please read what follows, think about it, and say whether it is so. The sea said: {text} Is it so?"
TEXTS = ["yes", "no, no", "the hill was green in the spring"]


def tokens_of(lm, prompt):
    prompt = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return lm.prompt(prompt).prompt_tokens


def law_after(lm, tokens):
    """Next-token probabilities by one fresh pass over the whole prompt."""
    with torch.no_grad():
        return lm.model(torch.tensor([tokens]), use_cache=False).logits[0, -1].double().softmax(-1).numpy()


def trie(rows):
    """Positions in the prefix tree of some token sequences."""
    return len({row[: i + 1] for row in rows for i in range(len(row))})


def common(rows):
    return next(i for i, column in enumerate(zip(*rows)) if len(set(column)) > 1)


# -- yes or no --------------------------------------------------------------------------------------------------


def test_judge_is_the_probability_of_yes():
    lm = tiny_lm()
    judge = Judge(lm, "Is it so? {text} {more}", yes=["Y", " y", "Yes!"], no=["N"])
    values = evaluate([judge(text, more="Well?") for text in TEXTS])
    for text, value in zip(TEXTS, values):
        p = law_after(lm, tokens_of(lm, f"Is it so? {text} Well?"))
        yes = p[lm.encode("Y")[0]] + (p[lm.encode(" y")[0]] if len(lm.encode(" y")) == 1 else 0)
        assert value == pytest.approx(yes / (yes + p[lm.encode("N")[0]]), abs=1e-5)


def test_judges_take_functions_and_remember():
    lm = tiny_lm()
    judge = Judge(lm, lambda text: [{"role": "user", "content": f"So? {text}"}], yes=["Y"], no=["N"])
    plain = Judge(lm, "So? {text}", yes=["Y"], no=["N"])
    (one,) = evaluate([judge("x")])
    before = lm.forwarded
    assert evaluate([judge("x")]) == [one]
    assert lm.forwarded == before
    assert evaluate([plain("x")]) == [pytest.approx(one, abs=1e-6)]
    del judge, plain
    gc.collect()
    assert lm.cache_info().bytes == 0


def test_what_prompts_begin_with_is_forwarded_once():
    lm = tiny_lm()
    judge = Judge(lm, QUESTION, yes=["Y"], no=["N"])
    rows = [tokens_of(lm, QUESTION.format(text=text)) for text in TEXTS]
    shared = common(rows)
    assert shared > 40
    with recording(Ledger()) as ledger:
        values = evaluate([judge(text) for text in TEXTS])
    first = shared + sum(len(row) - shared for row in rows)
    assert first < 0.6 * sum(map(len, rows))
    assert ledger.total().tokens_in == lm.forwarded == first
    for row, value in zip(rows, values):
        p = law_after(lm, row)
        assert value == pytest.approx(p[lm.encode("Y")[0]] / (p[lm.encode("Y")[0]] + p[lm.encode("N")[0]]), abs=1e-5)
    before = lm.forwarded  # the next wave goes on from the last: its texts are those of before, and longer
    longer = [text + " and so on" for text in TEXTS]
    after = [tokens_of(lm, QUESTION.format(text=text)) for text in longer]
    evaluate([judge(text) for text in longer])
    assert lm.forwarded - before == trie(rows + after) - trie(rows)


def test_a_judge_for_a_model_without_a_chat_template_and_overflow():
    lm = tiny_lm(context=40)
    judge = Judge(lm, "So? {text}", yes=["Y"], no=["N"], name="so")
    with pytest.raises(fk.errors.ContextOverflow, match=r"reward 'so', \(\('user', 'So\? xx.*the context of"):
        evaluate([judge("x" * 200)])
    with pytest.raises(TypeError, match="asks with a string or chat messages, not with a pair"):
        Judge(lm, lambda text: ("a", "b"))("x")


def test_answers_must_differ_in_their_first_token():
    with pytest.raises(ValueError, match=r"'judge': the answers \['xa'\] and \['xb'\] begin with the same token"):
        Judge(tiny_lm(), "{text}", yes=["xa"], no=["xb"])
    with pytest.raises(ValueError, match=r"'judge': the answer \[''\] has no token"):
        Judge(tiny_lm(), "{text}", yes=[""], no=["N"])


def test_a_judge_in_a_program_is_exact():
    judge = Judge(tiny_lm(), QUESTION, yes=["Y"], no=["N"])

    @fk.program
    async def model():
        text = ""
        for _ in range(2):
            text += await fk.sample("word", fk.dist.Categorical([0.5, 0.3, 0.2], values=[" sea", " hill", " no!"]))
            await fk.factor("judge", judge(text).log())
        return text

    exact = fk.enumerate_program(model())
    check_unbiased(model(), fk.SMC(4, ess_threshold=1.0), exact.law(), exact.log_evidence, runs=500)


# -- grades -----------------------------------------------------------------------------------------------------


def test_grades_are_averaged_by_the_law_of_the_first_token():
    lm = tiny_lm()
    grader = Grader(lm, "How good? {text}", grades={"A": 1.0, "B": 0.4, "C": -2.0})
    values = evaluate([grader(text) for text in TEXTS])
    for text, value in zip(TEXTS, values):
        law = law_after(lm, tokens_of(lm, f"How good? {text}"))
        p = np.array(
            [law[list({lm.encode(w)[0] for w in (a, f" {a}") if len(lm.encode(w)) == 1})].sum() for a in "ABC"]
        )
        assert value == pytest.approx((p @ [1.0, 0.4, -2.0]) / p.sum(), abs=1e-5)
    assert grader.kind == "real"
    assert Grader(lm, "{text}", grades={"A": 0, "B": 1}, kind="probability")("x").kind == "probability"
    with pytest.raises(ValueError, match=r"\['1', ' 1'\] and \['10', ' 10'\] begin with the same token"):
        Grader(lm, "{text}", grades={str(i): i for i in range(1, 11)})
    with pytest.raises(ValueError, match=r"must be in \[0, 1\], not \[1\.0"):
        Grader(lm, "{text}", kind="probability")
    with pytest.raises(ValueError, match="at least two answers with finite grades"):
        Grader(lm, "{text}", grades={"A": 1.0})


# -- votes ------------------------------------------------------------------------------------------------------


def vowel(critique):
    return None if len(critique) < 6 else "e" in critique


def votes_of(lm, **settings):
    return Votes(lm, QUESTION, **{"parse": vowel, "n": 6, "max_tokens": 6, "temperature": 0.8, **settings})


def test_votes_depend_on_their_prompt_and_seed_alone():
    together = votes_of(tiny_lm()).details(TEXTS)
    apart = [votes_of(tiny_lm()).details([text])[0] for text in TEXTS]
    other = votes_of(tiny_lm(), seed=1).details(TEXTS)
    fewer = votes_of(tiny_lm(), n=3).details(TEXTS)
    assert [v.critiques for v in together] == [v.critiques for v in apart]
    assert [v.critiques[:3] for v in together] == [v.critiques for v in fewer]
    assert not {c for v in together for c in v.critiques} & {c for v in other for c in v.critiques}
    assert len({c for v in together for c in v.critiques}) == 18


def test_the_value_is_the_mean_of_the_verdicts_that_can_be_read():
    votes = votes_of(tiny_lm())
    found = votes.details(TEXTS)
    values = evaluate([votes(text) for text in TEXTS])
    for verdicts, value in zip(found, values):
        told = [vowel(critique) for critique in verdicts.critiques]
        assert verdicts.unread == told.count(None)
        read = [v for v in told if v is not None]
        assert value == pytest.approx(sum(read) / len(read))
    assert (votes.cast, votes.unread) == (18, sum(v.unread for v in found))
    assert 0 < votes.unread < 18


def test_the_mean_vote_follows_the_model_s_law():
    """One-token critiques: the mean verdict estimates the mass of a set of tokens."""
    lm = tiny_lm()
    votes = Votes(lm, "{text}", parse=lambda critique: "e" in critique, n=4000, max_tokens=1)
    (value,) = evaluate([votes("Who?")])
    law = law_after(lm, tokens_of(lm, "Who?"))
    truth = sum(law[i] for i in range(lm.vocab_size) if "e" in lm.decode([i]))
    assert 0.02 < truth < 0.98
    assert abs(value - truth) / np.sqrt(truth * (1 - truth) / 4000) < 4.26  # false alarm: 2e-5


def test_patterns_read_the_last_match_as_a_number_or_as_yes_and_no():
    def read(pattern, critique):
        return Votes(tiny_lm(), "{text}", parse=pattern)._parse(critique)

    assert read(r"\b(yes|no)\b", "No. On second thoughts, YES!") == 1.0
    assert read(r"\b(yes|no)\b", "Yes; no") == 0.0
    assert read(r"score: (\S+)", "Score: 3, or rather score: 4.5") == 4.5
    assert read(r"score: (\S+)", "score: high") is None
    assert read(r"score: (\S+)", "nothing") is None
    with pytest.raises(ValueError, match="needs a group"):
        Votes(tiny_lm(), "{text}", parse="yes|no")


def test_no_readable_vote_is_an_error_or_the_value_given():
    with pytest.raises(
        VotesError, match=r"'votes': none of 6 critiques of .* holds a verdict; the first is '.*default="
    ):
        evaluate([votes_of(tiny_lm(), parse=lambda critique: None)("x")])
    votes = votes_of(tiny_lm(), parse=lambda critique: None, default=0.25)
    assert evaluate([votes("x"), votes("y")]) == [0.25, 0.25]
    assert (votes.cast, votes.unread) == (12, 12)
    with pytest.raises(fk.errors.InvalidWeight, match=r"returned 7\.0 .* a probability must be"):
        evaluate([votes_of(tiny_lm(), parse=lambda critique: 7)("x")])


def test_votes_share_batches_and_prompts_and_are_charged():
    lm = tiny_lm()
    votes = votes_of(lm)
    rows = [tokens_of(lm, QUESTION.format(text=text)) for text in TEXTS]
    shared = common(rows)
    with recording(Ledger()) as ledger:
        evaluate([votes(text) for text in [*TEXTS, *TEXTS]])
        evaluate([votes(text) for text in TEXTS])
    cost = ledger.total()
    assert cost.reward_calls == 3
    assert cost.tokens_in == lm.forwarded
    assert cost.tokens_out <= 18 * 6
    assert lm.forwarded <= shared + sum(len(row) - shared for row in rows) + cost.tokens_out
    assert cost.model_calls <= 2 + 2 * 6


def test_votes_charge_the_problem_whose_input_it_is():
    votes = votes_of(tiny_lm(), parse=lambda critique: 1.0)

    @fk.program
    async def model(text):
        await fk.factor("votes", votes(text).log())

    runs = fk.infer([model("yes"), model("no"), model("yes")], fk.SMC(3), seed=0)
    assert [run.cost.reward_calls for run in runs] == [1, 1, 0]
    assert min(run.cost.tokens_out for run in runs[:2]) > 6
    assert runs[2].cost.tokens_out == 0


# -- step tokens ------------------------------------------------------------------------------------------------

STEPS = ["I am the rain.", "The hill was green!", "It is so."]


def rendered(question, steps, tag="?"):
    return f"{question} " + "\n".join(f"{step} {tag}" for step in steps)


def good(lm, string):
    p = law_after(lm, lm.prompt(string).prompt_tokens)
    yes, no = p[lm.encode("+")[0]], p[lm.encode("-")[0]]
    return yes / (yes + no)


def test_step_tokens_are_read_after_each_step():
    lm = tiny_lm()
    prm = StepTokenPRM(lm, tag="?", aggregate="prod")
    (scores,) = prm.details([("Who?", STEPS)])
    truth = [good(lm, rendered("Who?", STEPS[: i + 1])) for i in range(3)]
    assert scores == pytest.approx(truth, abs=1e-5)
    assert np.ptp(truth) > 0.001
    assert evaluate([prm("Who?", STEPS)]) == pytest.approx([np.prod(truth)], abs=1e-5)
    whole = StepTokenPRM(lm, tag="?", aggregate="model")
    single = good(lm, rendered("Who?", ["\n".join(STEPS)]))
    assert evaluate([whole("Who?", STEPS)]) == pytest.approx([single], abs=1e-5)


def test_steps_may_be_rendered_as_a_chat():
    lm = tiny_lm()

    def render(question, steps):
        turns = [{"role": "user", "content": f"{question} {steps[0]}"}]
        for step in steps[1:]:
            turns += [{"role": "assistant", "content": "+"}, {"role": "user", "content": step}]
        return turns

    prm = StepTokenPRM(lm, render=render)
    p = law_after(lm, lm.prompt(render("Who?", STEPS)).prompt_tokens)
    yes, no = p[lm.encode("+")[0]], p[lm.encode("-")[0]]
    assert evaluate([prm("Who?", STEPS)]) == pytest.approx([yes / (yes + no)], abs=1e-5)


def test_only_what_is_new_is_forwarded():
    lm = tiny_lm()
    prm = StepTokenPRM(lm, tag="?")
    question = "Who are you, and who was on the hill in the spring?"
    waves = [
        [["a b"], ["a b"], ["c d e"]],
        [["a b", "one"], ["a b", "two"], ["c d e", "one"]],
        [["a b", "one", "x"], ["a b", "one", "x"], ["a b", "two", "y"]],
    ]
    seen = []
    for wave in waves:
        before = lm.forwarded
        with recording(Ledger()) as ledger:
            evaluate([prm(question, steps) for steps in wave])
        new = [lm.prompt(rendered(question, steps)).prompt_tokens for steps in wave]
        assert lm.forwarded - before == ledger.total().tokens_in
        # Two that part within the step share no more than was there before.
        assert lm.forwarded - before == (
            sum(trie([*seen, row]) - trie(seen) for row in set(new)) if seen else trie(new)
        )
        seen += new
    before = lm.forwarded
    assert [len(steps) for steps in prm.details([(question, steps) for steps in waves[2]])] == [3, 3, 3]
    assert lm.forwarded == before  # what was scored is known


def test_a_process_reward_in_a_program_is_exact_and_forwards_new_steps_alone():
    lm = tiny_lm()
    prm = StepTokenPRM(lm, tag="?")

    @fk.program
    async def model():
        steps = ()
        for _ in range(2):
            steps += (await fk.sample("step", fk.dist.Categorical([0.6, 0.3, 0.1], values=["a b", "c", "d e f"])),)
            await fk.factor("prm", prm("Who?", steps).logit())
        return steps

    exact = fk.enumerate_program(model())
    everything = [rendered("Who?", steps) for steps in exact.law()]
    assert lm.forwarded <= trie([lm.prompt(string).prompt_tokens for string in everything])
    check_unbiased(model(), fk.SMC(4, ess_threshold=1.0), exact.law(), exact.log_evidence, runs=500)


@pytest.mark.parametrize("question", ['{"q": "{text}"}', "Is it {nope}?", "Is {0} like {1}?", "Is it { so?"])
def test_a_template_that_cannot_be_filled_says_so(question):
    with pytest.raises(ValueError, match=r"the template .* cannot be filled .* a brace that is meant as such"):
        Judge(tiny_lm(), question)("x")
