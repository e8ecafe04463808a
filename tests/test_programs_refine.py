"""Methods that refine, retry, go back and exit early: what their rules come to on scripts that can be counted."""

from __future__ import annotations

import math
from hashlib import sha256
from types import SimpleNamespace

import numpy as np
import pytest

import feynkac as fk
from feynkac.models.testing import ScriptedLM, tiny_lm

Z = 4.265
"""A right program fails a comparison at |z| < 4.265 with probability 2e-5; this file makes 16 of them."""


def asks(steps=1, prompt="Q\n"):
    return SimpleNamespace(prompt=prompt, steps=steps)


def near(draws, truth):
    """Assert that the mean of independent draws is near the truth; not where they cannot differ."""
    draws = np.asarray(draws, float)
    assert draws.std() > 0
    assert abs(draws.mean() - truth) < Z * draws.std(ddof=1) / math.sqrt(len(draws)), (draws.mean(), truth)


def drawn(model, n=1500, seed=0):
    return fk.infer(model, fk.ImportanceSampling(n), seed=seed)


def is_a(question, text):
    return 9.0 * str(text).strip().endswith("a")


# SpecReason


def test_a_step_is_a_kept_draft_or_the_bases():
    draft, base = (ScriptedLM(lambda before, p=p: {"a": p, "b": 1 - p}) for p in (0.6, 0.3))
    posterior = drawn(fk.programs.specreason(draft, base, is_a, asks()))
    near([str(text) == "a" for text in posterior.values], 0.6 + 0.4 * 0.3)
    kept = [len(posterior.trace(i)) for i in range(500)]
    assert len(set(kept)) == 2  # with the base's line, and without
    near(np.array(kept) == min(kept), 0.6)
    without = drawn(fk.programs.specreason(draft, base, is_a, asks(), first=1))
    near([str(text) == "a" for text in without.values], 0.3)


def test_grades_at_the_threshold_keep_the_draft():
    draft, base = (ScriptedLM(lambda before, who=who: f"{who}\n") for who in "sb")
    grades = iter([9, 6, 7])
    model = fk.programs.specreason(draft, base, lambda question, text: next(grades), asks(3))
    assert str(fk.simulate(model, seed=0).value).split() == ["s", "b", "s"]


def test_a_reward_guides_on_the_way_and_weighs_at_the_end():
    lm = ScriptedLM(lambda before: {"a\n": 0.3, "b\n": 0.7})

    @fk.reward(kind="probability")
    def share(question, text):
        return (1 + str(text).count("a")) / 4

    model = fk.programs.specreason(lm, lm, lambda question, text: 9, asks(2), reward=share)
    truth = (0.49 * 1 + 0.42 * 2 + 0.09 * 3) / 4
    posteriors = fk.infer([model] * 400, fk.SMC(4, ess_threshold=1.0), seed=0)
    near([math.exp(posterior.log_evidence) for posterior in posteriors], truth)


# Staying or starting over


def judged(right, accepted, n):
    """A model that is right so often, and says no restart were better where it is (and is not)."""

    def script(before):
        if before.endswith("No)\n"):
            return {"No": 0.99, "Yes": 0.01} if "+" in before else {"No": 0.01, "Yes": 0.99}
        law = {}
        for word, p, a in (("right", right, accepted[0]), ("wrong", 1 - right, accepted[1])):
            law |= {f"{word}+": p * a, f"{word}-": p * (1 - a)}
        return law

    lm = ScriptedLM(script)
    model = fk.programs.stay_or_restart(lm, lm.prompt("Q: "))
    return fk.infer([model] * 600, fk.AdaptiveBestOfN(n, threshold=0.9), seed=0)


@pytest.mark.slow
def test_how_many_draws_it_takes_until_one_is_accepted():
    near([len(posterior) for posterior in judged(0.5, (1.0, 0.0), 3)], 1.75)
    found = judged(0.4, (0.9, 0.2), 4)
    near([len(posterior) for posterior in found], 1.931)
    near(["right" in str(posterior.best()) for posterior in found], 0.700787)


def test_what_a_model_says_of_itself_is_the_weight():
    lm = ScriptedLM(lambda before: {"No": 0.3, "Yes": 0.1, "?": 0.6} if before.endswith("No)\n") else "abcdef")
    model = fk.programs.stay_or_restart(lm, lm.prompt("Q: "), checks=[2, 4])
    posterior = fk.infer(model, fk.ImportanceSampling(1), seed=0)
    assert posterior.log_evidence == pytest.approx(math.log(0.75))
    assert str(posterior.values[0]) == "abcdef"


def test_poor_answers_are_given_up_at_a_check():
    lm = ScriptedLM(lambda before: {"good and long": 0.5, "evil and long": 0.5})

    @fk.reward(kind="probability")
    def good(text):
        return 0.9 if str(text).startswith("g") else 0.1

    model = fk.programs.stay_or_restart(lm, lm.prompt("Q: "), checks=[4], judge=good)
    pruned = fk.infer(model, fk.AdaptiveBestOfN(8, threshold=0.95, batch=8, prune={0: 0.25}), seed=0)
    whole = fk.infer(model, fk.AdaptiveBestOfN(8, threshold=0.95, batch=8), seed=0)
    assert str(pruned.best()) == "good and long"
    assert pruned.cost.tokens_out == 8 * 4 + 2 * 10
    assert whole.cost.tokens_out == 8 * 14


# Iterative decoding


def test_without_feedback_it_is_best_of_n_and_the_best_never_falls():
    lm = ScriptedLM(lambda before: {"3": 0.2, "2": 0.3, "1": 0.5})

    def number(question, text):
        return float(str(text))

    posterior = drawn(fk.programs.iterative_decoding(lm, number, asks(), rounds=2, width=2, feedback=None), 1000)
    near([str(text) == "3" for text in posterior.values], 1 - 0.8**4)
    near([str(text) == "1" for text in posterior.values], 0.5**4)
    model = fk.programs.iterative_decoding(lm, number, asks(), rounds=3)
    for seed in range(20):
        run = fk.simulate(model, seed=seed)
        best = [site.value for name, site in run.trace.items() if name.startswith("best")]
        assert len(best) == 3
        assert best == sorted(best)
        assert best[-1] == float(str(run.value))


def test_the_next_round_is_told_of_the_best_and_the_worst():
    told = []
    lm = ScriptedLM(lambda before: told.append(before) or ("2" if "best" in before else {"1": 0.5, "0": 0.5}))
    model = fk.programs.iterative_decoding(
        lm,
        lambda question, text: float(str(text)),
        asks(),
        rounds=3,
        width=8,
        feedback=lambda prompt, best, worst: f"{prompt}best {best} worst {worst}\n",
    )
    assert str(fk.simulate(model, seed=0).value) == "2"
    assert told == ["Q\n", "Q\nbest 1 worst 0\n", "Q\nbest 2 worst 0\n"]


# Early exits

THOUGHT = "one wait two wait three wait four"


def exits(probe, threshold, **options):
    lm = ScriptedLM(lambda before: "!" if before.endswith("so:") else THOUGHT)
    return str(
        fk.simulate(
            fk.programs.early_exit(lm, probe, lm.prompt("Q"), threshold=threshold, end=" so:", **options), seed=0
        ).value
    )


@pytest.mark.parametrize(
    ("threshold", "words"),
    [
        (0.1, 4),  # 0.9 is reached at the third cue
        (0.31, 2),  # {ready} at 0.7
        (0.4, 2),
        ((0.8, 0.6), 4),  # at 0.4 and 0.7 "not yet" is in the set, too
        ((0.2, 0.6), 1),
        (math.inf, 4),
    ],
)
def test_a_thought_ends_where_the_conformal_set_is_ready_alone(threshold, words):
    said = exits(lambda text: {1: 0.4, 2: 0.7, 3: 0.9}[str(text).count("wait")], threshold)
    if threshold == math.inf:
        assert said == THOUGHT
    else:
        wanted = {1: "one wait", 2: "one wait two wait", 4: "one wait two wait three wait"}[words]
        assert said.startswith(wanted + " so:")


def test_an_exit_saves_the_tokens_after_it():
    lm = ScriptedLM(lambda before: THOUGHT)
    model = fk.programs.early_exit(lm, lambda text: 0.95, lm.prompt("Q"), threshold=0.1, answer_tokens=0)
    posterior = drawn(model, 1)
    assert str(posterior.values[0]) == "one wait"
    assert posterior.cost.tokens_out == len("one wait")
    model = fk.programs.early_exit(lm, lambda text: 0.0, lm.prompt("Q"), threshold=0.1, max_tokens=12)
    assert str(fk.simulate(model, seed=0).value) == THOUGHT[:12]


def last_digit(part):
    return next(filter(str.isdigit, part), None)


@pytest.mark.parametrize(("stable", "segments"), [(3, 5), (2, 4), (1, 1)])
def test_equal_answers_in_a_row_end_a_thought(stable, segments):
    parts = [f"it is {answer} wait" for answer in "12-223"]
    lm = ScriptedLM(lambda before: "." if "</think>" in before else " ".join(parts) + " it is 3")
    model = fk.programs.trim(lm, last_digit, lm.prompt("Q"), stable=stable, cues=["wait"])
    assert str(fk.simulate(model, seed=0).value).partition("</think>")[0] == " ".join(parts[:segments])


def test_a_thought_that_does_not_end_is_ended():
    lm = ScriptedLM(lambda before: "." if "</think>" in before else "hm " * 50)
    model = fk.programs.trim(lm, last_digit, lm.prompt("Q"), max_tokens=9)
    assert str(fk.simulate(model, seed=0).value).startswith("hm hm hm </think>")
    whole = ScriptedLM(lambda before: "4")
    assert str(fk.simulate(fk.programs.trim(whole, last_digit, whole.prompt("Q")), seed=0).value) == "4"


# Markovian thinking


def markovian_counts(question, head, chunk, carry, chunks):
    """Return how many tokens are thought, the longest context, and the positions that attention reads."""
    tokens, longest, read = 0, 0, 0
    for i in range(chunks):
        before = question + (head + carry if i else 0)
        new = chunk - carry if i else chunk
        tokens, longest = tokens + new, max(longest, before + new)
        read += new * before + new * (new - 1) / 2
    return tokens, longest, read


def test_the_papers_settings():
    tokens, longest, read = markovian_counts(100, 100, 8192, 4096, 5)
    assert (tokens, longest) == (24_576, 100 + 100 + 8192)
    assert (tokens * 100 + tokens * (tokens - 1) / 2) / read == pytest.approx(2.2012, abs=5e-5)


def test_what_is_read_grows_linearly_in_the_chunks():
    settings = {"head": 2, "chunk": 16, "carry": 8}
    costs = []
    for chunks in (2, 3, 4, 5):
        asked = len(ScriptedLM(str).prompt("Q").prompt_tokens)
        tokens, longest, _ = markovian_counts(asked, chunks=chunks, **settings)
        # No chunk comes to the end of what is said, nor to that of the context.
        lm = ScriptedLM(lambda before: sha256(before.encode()).hexdigest(), context=longest + 1)
        posterior = drawn(fk.programs.markovian(lm, "Q", chunks=chunks, **settings), 1)
        assert len(posterior.values[0]) == tokens == posterior.cost.tokens_out
        costs.append(posterior.cost.tokens_in)
    assert len(set(np.diff(costs))) == 1


def test_a_chunk_is_told_the_question_the_head_and_the_last_tokens():
    told = []
    lm = ScriptedLM(lambda before: told.append(before) or "".join(chr(97 + (len(told) * 7 + i) % 26) for i in range(9)))
    model = fk.programs.markovian(lm, "Q", chunk=6, carry=3, chunks=3, head=2)
    thought = fk.simulate(model, seed=0).value
    assert told == ["Q", "Q" + thought[:2] + thought[3:6], "Q" + thought[:2] + thought[6:9]]
    assert len(thought) == 6 + 3 + 3


# Backtracking


def lines_of(p, q):
    """Two lines: a first one that is right so often, which nobody can tell, and a second one."""
    return ScriptedLM(lambda before: {"R\n": p, "W\n": 1 - p} if before.endswith("Q\n") else {"yes": q, "no ": 1 - q})


def good_end(question, text):
    return 0.0 if "no" in str(text) else float("R" in str(text)) if "yes" in str(text) else 0.5


def test_a_search_goes_back_by_a_line_within_its_budget():
    lm = lines_of(0.5, 0.4)
    model = fk.programs.backtrack(lm, good_end, asks(2), lines=8, width=None)
    posterior = drawn(model, 1200)
    solved = ["R\nyes" in str(text) for text in posterior.values]
    near(solved, 0.5 * (1 - 0.6**7))  # a wrong first line is never left; four answers side by side have 1 − 0.8⁴
    assert 0.5 * (1 - 0.6**7) < 1 - 0.8**4
    sites = [sum(name.startswith("line") for name in posterior.trace(i)) for i in range(200)]
    assert max(sites) == 8


def test_a_place_is_left_after_so_many_lines():
    # The first place is never left, so that 8 lines are two whole tries of 3, and one with a single second line.
    lm = lines_of(0.5, 0.4)
    two, one = 0.5 * (1 - 0.6**2), 0.5 * 0.4
    model = fk.programs.backtrack(lm, good_end, asks(2), lines=8)
    near(["R\nyes" in str(text) for text in drawn(model, 1200).values], 1 - (1 - two) ** 2 * (1 - one))


def test_poor_lines_are_taken_back_and_cost_a_line():
    lm = ScriptedLM(lambda before: {"R\n": 0.25, "W\n": 0.75} if before.endswith("Q\n") else "yes")
    model = fk.programs.backtrack(lm, lambda question, text: float("W" not in str(text)), asks(2), lines=4, width=None)
    near(["yes" in str(text) for text in drawn(model, 1000).values], 1 - 0.75**3)
    with pytest.raises(ValueError, match="lines"):
        fk.simulate(fk.programs.backtrack(lm, good_end, asks(2), lines=0), seed=0)


# Corrections by a tool


def test_a_failed_step_is_drawn_again():
    lm = ScriptedLM(lambda before: {"a": 0.6, "b": 0.4})
    posterior = drawn(fk.programs.self_correct(lm, lambda text: str(text) == "a", asks(), retries=2))
    near([str(text) == "a" for text in posterior.values], 0.936)
    tries = [sum(name.startswith("step") for name in posterior.trace(i)) for i in range(1500)]
    near(tries, 1.56)
    assert posterior.cost.tokens_out == 2 * sum(tries)  # a letter and the end


def test_the_last_tokens_of_a_step_are_drawn_again():
    lm = ScriptedLM(lambda before: {"xa": 0.3, "xb": 0.2, "ya": 0.1, "yb": 0.4})
    model = fk.programs.self_correct(lm, lambda text: str(text)[1] == "a", asks(), retries=1, suffix=2)
    values = [str(text) for text in drawn(model).values]
    # The end is a token, too. The first letter stays: x with 0.5, and then a with 0.6, in two tries.
    near([value == "xa" for value in values], 0.5 * (1 - 0.4**2))
    near([value == "ya" for value in values], 0.5 * (1 - 0.8**2))


# Completion, exits from layers, and the switch


def test_a_completion_stops_where_no_token_is_likely():
    lm = ScriptedLM(lambda before: {"a": 0.5, "b": 0.3, "c": 0.2})

    def said(stop_below):
        return str(
            fk.simulate(fk.programs.cautious_completion(lm, lm.prompt("Q"), stop_below=stop_below), seed=0).value
        )

    assert said(0.5) in "abc"
    assert said(0.5)
    assert said(0.51) == ""


def test_sure_tokens_are_the_early_models():
    early = ScriptedLM(lambda before: {"aa": 0.95, "bb": 0.05} if before == "Q" else "")
    lm = ScriptedLM(lambda before: {"zz": 0.7, "yy": 0.3})
    model = fk.programs.cautious_completion(lm, early.prompt("Q"), stop_below=0.1, early=early, exit_above=0.9)
    values = {str(text) for text in drawn(model, 50).values}
    assert values <= {"aa", "bb"}
    model = fk.programs.cautious_completion(lm, lm.prompt("Q"), stop_below=0.1, early=early, exit_above=1.01)
    assert {str(text) for text in drawn(model, 50).values} == {"zz", "yy"}


@pytest.fixture(scope="module")
def deep():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=8, num_attention_heads=2
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return tiny_lm(model=transformers.LlamaForCausalLM(config))


@pytest.mark.parametrize(("hazard", "q", "layer"), [(0.2, 0.5, 4), (0.1, 0.5, 7), (0.1, 0.99, 8), (1.0, 1.0, 1)])
def test_the_exit_is_a_quantile(deep, hazard, q, layer):
    seen = []
    text = deep.prompt("Once")
    model = fk.programs.q_exit(deep, lambda i, state: seen.append(i) or hazard, text, q=q)
    found = fk.simulate(model, seed=0).value
    assert (found.layer, seen) == (layer, list(range(1, layer + 1)))
    assert found.mass == pytest.approx(1 - (1 - hazard) ** layer)
    np.testing.assert_allclose(found.state, deep.read(text, "hidden", layer=layer), atol=1e-6)


def test_models_without_hidden_states_are_refused():
    lm = ScriptedLM(lambda before: "a")
    with pytest.raises(fk.errors.Unsupported):
        fk.simulate(fk.programs.q_exit(lm, lambda i, state: 0.5, lm.prompt("Q")), seed=0)


@pytest.mark.parametrize(("hard", "said"), [(True, "think: long"), (False, "short")])
def test_the_gate_says_whether_there_is_a_thought(hard, said):
    lm = ScriptedLM(lambda before: {"think: long": 0.5, "short": 0.5})
    model = fk.programs.switch_thinking(
        lm, "Q", lambda question: hard, long="think: ", short="sh", short_tokens=8, long_tokens=80
    )
    assert str(fk.simulate(model, seed=0).value) == said


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda lm, text: fk.programs.stay_or_restart(lm, text, checks=[4, 4]), "increase"),
        (lambda lm, text: fk.programs.stay_or_restart(lm, text, checks=[256]), "increase"),
        (lambda lm, text: fk.programs.stay_or_restart(lm, text, yes="a", no="ab"), "same token"),
        (lambda lm, text: fk.programs.iterative_decoding(lm, is_a, asks(), rounds=0), "rounds"),
        (lambda lm, text: fk.programs.trim(lm, last_digit, text, stable=0), "stable"),
        (lambda lm, text: fk.programs.markovian(lm, "Q", chunk=4, carry=4), "carry"),
        (lambda lm, text: fk.programs.backtrack(lm, good_end, asks(), width=0), "width"),
        (lambda lm, text: fk.programs.self_correct(lm, bool, asks(), suffix=0), "suffix"),
        (lambda lm, text: fk.programs.q_exit(tiny_lm(), lambda i, s: 2.0, tiny_lm().prompt("Q")), "hazard of layer 1"),
        (lambda lm, text: fk.programs.q_exit(tiny_lm(), lambda i, s: 0.5, tiny_lm().prompt("Q"), q=0.0), "quantile"),
    ],
)
def test_settings_out_of_range_are_refused(make, match):
    lm = ScriptedLM(lambda before: "a")
    with pytest.raises(ValueError, match=match):
        fk.simulate(make(lm, lm.prompt("Q")), seed=0)
