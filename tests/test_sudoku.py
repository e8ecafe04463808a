"""Sudoku of four by four: verifier, solver, held-out problems; the reasoner that ships, and its training."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import feynkac as fk  # noqa: E402
from feynkac.models.tasks import checked, shipped, sudoku  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
PROBLEM = fk.tasks.Sudoku(((0, 0, 2, 0), (0, 4, 0, 1), (4, 3, 0, 0), (0, 0, 0, 0)))
SOLUTION = "3 1 2 4\n2 4 3 1\n4 3 1 2\n1 2 4 3"
BLANK = (0, 0, 0, 0)


# The verifier


def test_a_solution_is_followed_row_by_row():
    lines = SOLUTION.splitlines()
    prefixes = ["\n".join(lines[:i]) for i in range(5)]
    assert PROBLEM.left("") == PROBLEM.clues
    assert PROBLEM.left(prefixes[2]) == ((3, 1, 2, 4), (2, 4, 3, 1), (4, 3, 0, 0), BLANK)
    assert [PROBLEM.solvable(prefix) for prefix in prefixes] == [True] * 5
    assert [PROBLEM.solved(prefix) for prefix in prefixes] == [False] * 4 + [True]
    assert [PROBLEM.solution(prefix) for prefix in prefixes] == [tuple(lines[i:]) for i in range(5)]
    assert PROBLEM.solved(f"\n {SOLUTION}\n\n")


@pytest.mark.parametrize(
    "line",
    [
        "3 1 4 2",  # not the clue
        "3 3 2 1", "0 1 2 3", "3 1 2 5", "3 1 2", "3 1 2 4 4", "3124", "3 1 2 _", "", "3 1 2 4 and so on", "٣ 1 2 4",
        "3 4 2 1",  # 4 twice in a column, 1 too
        "4 1 2 3",  # 4 twice in a column and in a square
    ],
)  # fmt: skip
def test_wrong_rows(line):
    text = line or "\n".join([*SOLUTION.splitlines(), "3 1 2 4"])  # or a row too many
    assert PROBLEM.left(text) is None
    assert not PROBLEM.solvable(text)
    assert PROBLEM.solution(text) is None
    assert not PROBLEM.solved(text)


def test_a_row_may_keep_the_rules_and_leave_no_way():
    problem = fk.tasks.Sudoku(((0, 4, 0, 0), (0, 0, 3, 0), (0, 2, 0, 0), (1, 3, 4, 0)))
    right = [sudoku.shown(row) for row in itertools.permutations(range(1, 5))]
    right = [row for row in right if problem.left(row) is not None]
    assert [(row, problem.solvable(row)) for row in right] == [("3 4 1 2", False), ("3 4 2 1", True)]
    assert problem.solution("3 4 1 2") is None


@pytest.mark.parametrize(
    "clues",
    [
        (BLANK,) * 3, (BLANK,) * 5, ((0, 0, 0),) * 4, ((5, 0, 0, 0), *(BLANK,) * 3), ((True, 0, 0, 0), *(BLANK,) * 3),
        ((1.0, 0, 0, 0), *(BLANK,) * 3), ((1, 0, 1, 0), *(BLANK,) * 3), ((1, 0, 0, 0), BLANK, (1, 0, 0, 0), BLANK),
        ((1, 0, 0, 0), (0, 1, 0, 0), BLANK, BLANK),
    ],
)  # fmt: skip
def test_bad_clues_are_refused(clues):
    with pytest.raises(ValueError, match="clues"):
        fk.tasks.Sudoku(clues)


# The solver


def brute(grid):
    """All ways to fill a grid, cell by cell."""
    for i, j in itertools.product(range(4), repeat=2):
        if not grid[i][j]:
            found = []
            for number in range(1, 5):
                more = [list(row) for row in grid]
                more[i][j] = number
                seen = more[i] + [row[j] for row in more]
                seen += [more[2 * (i // 2) + a][2 * (j // 2) + b] for a in (0, 1) for b in (0, 1)]
                if seen.count(number) == 3:  # once in the row, the column and the square
                    found += brute(more)
            return found
    return [tuple(map(tuple, grid))]


def test_the_solver_agrees_with_brute_force():
    assert sorted(sudoku.grids()) == sorted(brute([[0] * 4 for _ in range(4)]))
    rng = np.random.default_rng(0)
    ways = []
    for clues in (2, 3, 4, 5, 6, 8):
        whole = np.array(sudoku.grids()[rng.integers(288)])
        given = (rng.permutation(16) < clues).reshape(4, 4)
        problem = fk.tasks.Sudoku((whole * given).tolist())
        truth = brute(problem.clues)
        ways.append(len(truth))
        assert sudoku.completions(problem.clues).bit_count() == len(truth)
        firsts = {grid[0] for grid in truth}
        for row in itertools.permutations(range(1, 5)):
            text = sudoku.shown(row)
            assert problem.solvable(text) == (row in firsts)
            if row in firsts:
                assert problem.solved("\n".join([text, *problem.solution(text)]))
    assert min(ways) == 1 < max(ways)


# Problems


def test_problems_have_one_solution_and_are_distinct_and_the_same_for_a_seed():
    made = fk.tasks.sudokus(60, seed=3)
    assert made == fk.tasks.sudokus(80, seed=3)[:60]
    assert made != fk.tasks.sudokus(60, seed=4)
    assert len({problem.name for problem in made}) == 60
    assert all(len(brute(problem.clues)) == 1 for problem in made[:20])
    assert all(sum(map(bool, sum(p.clues, ()))) == 6 for p in made)


def test_the_splits_have_no_problem_in_common_whatever_numbers_are_called():
    made = {split: fk.tasks.sudokus(100, clues=5, split=split) for split in ("train", "test")}
    assert all(problem.split == split for split, some in made.items() for problem in some)
    assert not {p.name for p in made["train"]} & {p.name for p in made["test"]}
    for names in itertools.permutations(range(1, 5)):
        renamed = fk.tasks.Sudoku([[number and names[number - 1] for number in row] for row in PROBLEM.clues])
        assert (renamed.name, renamed.split) == (PROBLEM.name, PROBLEM.split)


def test_there_are_only_so_many_problems(monkeypatch):
    monkeypatch.setattr(checked, "HELD_OUT", 2)  # so that it gives up sooner
    with pytest.raises(ValueError, match="hardly more than 7 problems of 16 clues, not 12"):
        fk.tasks.sudokus(12, clues=16)
    for clues in (3, 17):
        with pytest.raises(ValueError, match="from 4 to 16"):
            fk.tasks.sudokus(1, clues=clues)
    with pytest.raises(ValueError, match="split"):
        fk.tasks.sudokus(1, split="dev")


def test_reasoning_gym_asks_the_same():
    pytest.importorskip("reasoning_gym")
    for exercise in fk.tasks.gym("mini_sudoku", seed=1, size=3):
        problem = fk.tasks.Sudoku(exercise.metadata["puzzle"])
        assert problem.prompt.rstrip() in exercise.prompt
        assert "\n".join(problem.solution()) == exercise.expected
        assert exercise.score("\n".join(problem.solution())) == 1.0


# The exact verifier


def test_the_exact_verifier_knows_whether_each_step_leaves_a_way():
    prm = fk.tasks.ExactVerifier([PROBLEM, fk.tasks.Countdown((3, 5, 7), 22)])
    wrong = "3 1 2 4\n2 4 3 1\n4 3 2 1"
    assert prm.details([(PROBLEM.prompt, SOLUTION.splitlines()), (PROBLEM.prompt, wrong.splitlines())]) == [
        (0.99,) * 4,
        (0.99, 0.99, 1 - 0.99),
    ]
    assert prm("3 5 7 > 22\n", ["5*3=15"]).evaluate() == 0.99
    ended = type("Ended", (), {"steps": ("3 1 2 4", "2 4 3 1"), "finished": True})()  # a way is left, and not taken
    assert prm.details([(PROBLEM.prompt, ended)]) == [(0.99, 1 - 0.99)]
    with pytest.raises(LookupError, match="2 problems"):
        prm("1 2 > 3\n", ["1+2=3"])
    with pytest.raises(ValueError, match="1/2"):
        fk.tasks.ExactVerifier([], sure=1.0)


# What ships


@pytest.fixture(scope="module")
def lm():
    return fk.tasks.reasoner("sudoku")


@pytest.fixture(scope="module")
def found(lm):
    """Two answers to each of 60 held-out problems."""
    problems = fk.tasks.sudokus(60, seed=7)
    posteriors = fk.infer([fk.tasks.solve(lm, None, p) for p in problems], fk.ImportanceSampling(2), seed=0)
    return [(p, text) for p, posterior in zip(problems, posteriors) for text in posterior.values]


def test_the_record_of_the_reasoner_is_whole_and_true(lm, found):
    told = fk.tasks.record("sudoku_reasoner")
    assert {"about", "license", "data", "training", "sha256", "parameters", "config", "measured"} <= set(told)
    assert sum(value.numel() for value in lm.model.parameters()) == told["parameters"]
    assert (ROOT / "models" / "tasks" / "weights" / "sudoku_reasoner.safetensors").stat().st_size < 1_000_000
    # The rule by which the training ended knows training problems alone, and what is held out is solved as often.
    history = list(told["accuracy_on_training_problems_by_step"].values())
    assert history[-1] >= 0.2 > max(history[:-1])
    share = told["measured"]["6_clues"]["solved"]
    assert 0.1 < share < 0.35
    # 120 answers to 60 problems: at most sqrt(p(1-p)/60) of standard error, 4 of them: 6e-5.
    assert abs(np.mean([p.solved(text) for p, text in found]) - share) < 4 * (share * (1 - share) / 60) ** 0.5
    assert np.mean([len(text.steps) == 4 for _, text in found]) > 0.95


def test_reasoners_go_by_task(lm):
    assert [repr(each) for each in (lm, fk.tasks.reasoner())] == [
        "<TransformersLM sudoku-reasoner>",
        "<TransformersLM countdown-reasoner>",
    ]
    with pytest.raises(ValueError, match="countdown and sudoku, not of 'chess'"):
        fk.tasks.reasoner("chess")


def test_its_tokenizer_reads_and_writes_what_the_task_is_made_of(lm):
    tokenizer = shipped.tokenizer("sudoku")
    tokens = tokenizer(PROBLEM.prompt + SOLUTION + "\n").input_ids
    assert tokenizer.decode(tokens) == PROBLEM.prompt + SOLUTION + "\n"
    assert tokenizer.unk_token_id not in tokens
    assert len(tokenizer) == lm.model.config.vocab_size
    assert len(tokens) == 41


def test_the_exact_verifier_solves_what_samples_do_not(lm, found):
    problems = fk.tasks.sudokus(20, seed=8)
    prm = fk.tasks.ExactVerifier(problems)
    posteriors = fk.infer([fk.tasks.solve(lm, prm, p) for p in problems], fk.SMC(16), seed=0)
    solved = [p.solved(posterior.best("reward")) for p, posterior in zip(problems, posteriors)]
    assert np.mean(solved) > np.mean([p.solved(text) for p, text in found]) + 0.3


def test_other_language_models_take_the_few_shot_prompt():
    head, question, answer, again = PROBLEM.few_shot.split("\n\n", 3)
    assert "2x2" in head
    assert again == PROBLEM.prompt
    clues = [[int(cell.replace("_", "0")) for cell in row.split()] for row in question.splitlines()]
    assert fk.tasks.Sudoku(clues).solved(answer)


def test_the_reasoner_on_tape(lm):
    problems = fk.tasks.sudokus(2, seed=3, clues=8)
    tape = fk.tasks.Tape.record(lm, problems, cutoff=0.02).scored(exact=fk.tasks.ExactVerifier(problems))
    for place in np.flatnonzero(tape.level > 0):
        text = tape.text(int(place))
        problem = problems[tape.prompts.index(text.prompt)]
        assert (tape.scores["exact"][place] > 0.5) == problem.solvable(text)
        assert tape.solved[place] == problem.solved(text)
    n = 250
    for place, problem in enumerate(problems):
        texts = fk.infer(fk.tasks.solve(lm, None, problem), fk.ImportanceSampling(n), seed=place).values
        share, p = np.mean([problem.solved(text) for text in texts]), tape.success[place]
        # Beside the noise (|z| < 4.265: 2e-5), the law differs by what was cut off.
        assert abs(share - p) < 4.265 * (p * (1 - p) / n) ** 0.5 + 4 * tape.missing.max()


def test_the_cassette_is_of_held_out_problems_and_of_the_reasoner(lm, monkeypatch):
    problems = fk.tasks.sudokus(200)
    tape = fk.tasks.Tape.load(ROOT / "benchmarks" / "cassettes" / "sudoku_6.npz")
    assert tape.prompts == tuple(problem.prompt for problem in problems)
    share = fk.tasks.record("sudoku_reasoner")["measured"]["6_clues"]["solved"]  # of 500 problems, these among them
    assert tape.success[:200].mean() == pytest.approx(share, abs=0.04)
    again = fk.tasks.Tape.record(lm, problems[:1])
    assert again.success[0] == pytest.approx(tape.success[0], abs=2e-3)
    assert again.missing[0] == pytest.approx(tape.missing[0], abs=1e-3)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import reasoning_pages

    assert reasoning_pages.one_way("sudoku_6").prod(1) == pytest.approx(tape.success[:200])


# Training


def read(tokens):
    """The problem and the answer in a row of tokens."""
    head, body = shipped.tokenizer("sudoku").decode(tokens.tolist(), skip_special_tokens=True).split("\n\n")
    return fk.tasks.Sudoku([[int(cell.replace("_", "0")) for cell in row.split()] for row in head.splitlines()]), body


def test_traces_solve_training_problems_unless_they_slip(training):
    import sudoku_data

    for clues in (5, 8):
        rows = sudoku_data.traces(40, clues, 0.0, np.random.default_rng(0))
        clean = [read(row) for row in rows]
        assert all(p.split == "train" and p.solved(body) and len(brute(p.clues)) == 1 for p, body in clean)
        made = [shipped.tokenizer("sudoku")(p.prompt + body).input_ids for p, body in clean]
        assert made == rows[:, :-1].tolist()
        astray = [read(row) for row in sudoku_data.traces(40, clues, 1.0, np.random.default_rng(0))]
        assert 0 < np.mean([p.solved(body) for p, body in astray]) < 0.9
        for problem, body in astray:
            for clue, row in zip(problem.clues, body.splitlines()):
                assert all(given in (0, int(number)) for given, number in zip(clue, row.split()))


def test_a_row_astray_breaks_no_rule_above_if_it_need_not(training):
    import sudoku_data

    shown = np.zeros((200, 4, 4), int)
    rows = np.broadcast_to(np.array([[1, 2, 3, 4], *[[0] * 4] * 3]), (200, 4, 4))
    drawn = sudoku_data.astray(shown, rows, 1, np.random.default_rng(0))
    assert {sudoku.shown(row) for row in drawn.tolist()} == {"3 4 1 2", "3 4 2 1", "4 3 1 2", "4 3 2 1"}
    shown[:, 1, 0] = 2  # now every row that keeps its clue breaks a rule
    drawn = sudoku_data.astray(shown, rows, 1, np.random.default_rng(0))
    assert set(drawn[:, 0].tolist()) == {2}
    assert len({sudoku.shown(row) for row in drawn.tolist()}) == 6


def test_what_the_script_writes_the_library_loads(training, monkeypatch):
    import sudoku as script
    from loop import Settings

    small = {"hidden_size": 16, "intermediate_size": 16}
    monkeypatch.setattr(script, "CONFIG", {**script.CONFIG, **small})
    path = script.reasoner(Settings(4, batch=4, save_every=2), 5, training)
    told = json.loads(path.with_suffix(".json").read_text())
    assert told["training"]["steps"] == 4
    assert list(told["accuracy_on_training_problems_by_step"]) == ["2", "4"]
    folder = type("Folder", (), {"__truediv__": lambda self, name: training})()
    monkeypatch.setattr(shipped, "files", lambda package: folder)
    script.measure(path.with_suffix(".json"), 2, 1)
    assert set(fk.tasks.record("sudoku_reasoner")["measured"]) == {"5_clues", "6_clues", "7_clues", "8_clues"}
