"""A tape has the law of the model that it was recorded of, and nothing else."""

import math

import numpy as np
import pytest

import feynkac as fk
from feynkac.models.testing import ScriptedLM

PROBLEM, OTHER = fk.tasks.Countdown((2, 3, 4), 20), fk.tasks.Countdown((2, 6), 3)
SAID = {
    "2 3 4 > 20\n": {"3+2=5 (4 5)\n": 0.5, "4-3=1 (2 1)\n": 0.3, "3+2=6 (4 6)\n": 0.15, "3+2": 0.05},
    "2 3 4 > 20\n3+2=5 (4 5)\n": {"5*4=20 (20)": 0.4, "5+4=9 (9)\n": 0.6},
    "2 3 4 > 20\n4-3=1 (2 1)\n": {"2*1=2 (2)\n": 1.0},
    "2 3 4 > 20\n3+2=6 (4 6)\n": {"6*4=20 (20)\n": 0.25, "6+4=10 (10)\n": 0.75},
    "2 6 > 3\n": {"6/2=3 (3)": 0.7, "6-2=4 (4)\n": 0.3},
}


def spoken(before):
    return SAID.get(before, "")


def answers(problem, steps=(), p=1.0):
    """Return the probability of every answer."""
    found = {}
    before = problem.prompt + "".join(f"{step}\n" for step in steps)
    for line, q in SAID[before].items():
        said = (*steps, line.removesuffix("\n"))
        over = not line.endswith("\n") or len(said) == problem.steps
        found |= {"\n".join(said): p * q} if over else answers(problem, said, p * q)
    return found


@pytest.fixture(scope="module")
def lm():
    return ScriptedLM(spoken)


@pytest.fixture(scope="module")
def tape(lm):
    return fk.tasks.Tape.record(lm, [PROBLEM, OTHER])


class Graded:
    """A verifier whose score of a step tells how many digits there are."""

    def details(self, inputs):
        return [[0.01 + 0.98 * sum(map(str.isdigit, step)) / 20 for step in text.steps] for _, text in inputs]


def test_law_success_and_answers_are_the_models(tape):
    value = {str(tape.text(i)): p for i, p in enumerate(tape.success) if tape.text(i).prompt == PROBLEM.prompt}
    assert value[""] == pytest.approx(0.5 * 0.4)
    assert value["3+2=5 (4 5)"] == pytest.approx(0.4)
    assert value["4-3=1 (2 1)"] == 0
    assert value["3+2=6 (4 6)\n6*4=20 (20)"] == 0  # a wrong step, for all that the target is there
    assert tape.success[1] == pytest.approx(0.7)
    assert tape.missing.max() < 1e-12
    found = fk.enumerate_program(fk.tasks.solve(tape, None, PROBLEM, "final"))
    law = {str(value): math.exp(w) for value, w in zip(found.values, found.log_weights)}
    assert law == pytest.approx(answers(PROBLEM))


def test_draws_have_the_law_and_the_tokens_of_the_model(tape):
    n = 4000
    model = fk.tasks.solve(tape, None, PROBLEM)
    found = fk.infer(model, fk.ImportanceSampling(n, all_dead="zero"), seed=1)
    texts = np.array([str(text) for text in found.values])
    expected_tokens = 0.0
    for value, p in answers(PROBLEM).items():
        z = ((texts == value).mean() - p) / math.sqrt(p * (1 - p) / n)
        assert abs(z) < 4.265  # 2e-5 each
        expected_tokens += p * (len(value) + 1)
    tokens = sum(len(text) + 1 for text in texts)  # a newline or an end for each line, a byte for each character
    assert found.cost.tokens_out == tokens
    assert tokens / n == pytest.approx(expected_tokens, rel=0.05)


def test_engines_reach_its_evidence(tape):
    prm = tape.verifier("success", clip=0.01)
    model = fk.tasks.solve(tape, prm, PROBLEM)
    for engine in (fk.SMC(4), fk.ImportanceSampling(8)):
        z = np.array([np.exp(fk.infer(model, engine, seed=seed).log_evidence) for seed in range(300)])
        error = z.std(ddof=1) / math.sqrt(len(z))
        assert abs(z.mean() - (0.2 * 0.99 + 0.8 * 0.01)) < 4.265 * error + 1e-12  # 2e-5 each


def test_scores_are_asked_for_by_place(tape):
    scored = tape.scored(graded=Graded())
    verifier = scored.verifier("graded")
    text = next(scored.text(i) for i in range(len(scored.parent)) if str(scored.text(i)) == "6/2=3 (3)")
    assert verifier(OTHER.prompt, text).evaluate() == pytest.approx(0.01 + 0.98 * 4 / 20)
    assert np.isnan(scored.scores["graded"][:2]).all()
    assert tape.scores == {}
    found = fk.infer(fk.tasks.solve(scored, verifier, PROBLEM), fk.SMC(4), seed=0)
    assert 0 < found.cost.reward_calls <= 8  # a text is scored once


def test_an_answer_without_a_step_has_no_score():
    tape = fk.tasks.Tape.record(ScriptedLM(lambda before: {"": 0.5, "6/2=3 (3)": 0.3, "\n": 0.2}), [OTHER])
    scores = tape.scored(exact=fk.tasks.ExactVerifier([OTHER])).scores["exact"]
    assert [str(tape.text(place)) for place in np.flatnonzero(~np.isnan(scores))] == ["6/2=3 (3)"]
    assert len(scores) == 4


def test_a_file_keeps_it(tape, tmp_path):
    path = tmp_path / "tape.npz"
    tape.scored(graded=Graded()).save(path)
    again = fk.tasks.Tape.load(path)
    assert (again.prompts, again.lines, again.name, again.temperature) == (tape.prompts, tape.lines, "tape", 1.0)
    for name in ("depth", "line_of", "count", "tokens", "finished", "solved"):
        assert (getattr(again, name) == getattr(tape, name)).all()
    assert np.allclose(again.success, tape.success, atol=1e-3)
    assert np.allclose(again.scores["graded"][2:], tape.scored(graded=Graded()).scores["graded"][2:], atol=1e-3)
    np.savez(tmp_path / "other.npz", words=np.zeros(3, np.uint8))
    with pytest.raises(ValueError, match=r"other\.npz is not a tape"):
        fk.tasks.Tape.load(tmp_path / "other.npz")
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(tmp_path / "cut.npz", **(arrays | {"count": arrays["count"][:-1]}))
    with pytest.raises(ValueError, match="tape"):
        fk.tasks.Tape.load(tmp_path / "cut.npz")


def test_rare_lines_are_shared_out_and_counted(lm):
    tape = fk.tasks.Tape.record(lm, [PROBLEM], cutoff=0.1)
    assert tape.missing[0] == pytest.approx(0.05)
    assert np.exp(tape.log_prob[1:4]) == pytest.approx(np.array([0.5, 0.3, 0.15]) / 0.95)


def test_what_it_cannot_do_is_refused(lm, tape):
    start = tape.prompt(PROBLEM.prompt)
    other = fk.tasks.Tape.record(lm, [OTHER], name="other")
    refusals = [
        (LookupError, "is none of them", lambda: tape.prompt("1 1 > 3\n")),
        (ValueError, "goes on from one of its own", lambda: other.line(start)),
        (ValueError, "recorded at temperature 1.0", lambda: tape.line(start, temperature=0.5)),
        (LookupError, "success, and no 'odds'", lambda: tape.verifier("odds")),
        (ValueError, "one prompt", lambda: fk.tasks.Tape.record(lm, [OTHER, OTHER])),
        (ValueError, r"no line has a probability of 0\.9", lambda: fk.tasks.Tape.record(lm, [OTHER], cutoff=0.9)),
        (ValueError, "asked for another text", lambda: other.verifier("success")(OTHER.prompt, start).evaluate()),
    ]
    for kind, words, call in refusals:
        with pytest.raises(kind, match=words):
            call()
    last = next(tape.text(i) for i in range(len(tape.parent)) if tape.level[i] == 2 and not tape.finished[i])
    with pytest.raises(ValueError, match="ends after 2 lines"):
        tape.line(last)


@pytest.mark.slow
def test_the_shipped_reasoner_on_tape():
    lm, problems = fk.tasks.reasoner(), fk.tasks.problems(4, seed=3, numbers=3)
    tape = fk.tasks.Tape.record(lm, problems)
    n = 2000
    for place, problem in enumerate(problems):
        found = fk.infer(fk.tasks.solve(lm, None, problem), fk.ImportanceSampling(n, all_dead="zero"), seed=place)
        share, p = np.mean([problem.solved(text) for text in found.values]), tape.success[place]
        # Beside the noise (|z| < 4.265: 2e-5), the law differs by what was cut off at the prompt and after one line.
        assert abs(share - p) < 4.265 * math.sqrt(p * (1 - p) / n) + 0.02
        assert tape.missing[place] < 0.02
