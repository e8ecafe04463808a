"""Sudoku of four by four: verifier, solver, held-out problems; the reasoner that ships, and its training."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import feynkac as fk  # noqa: E402
from feynkac.models.tasks import shipped, sudoku  # noqa: E402

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


def test_there_are_only_so_many_problems():
    with pytest.raises(ValueError, match="hardly more than 1 "):
        fk.tasks.sudokus(2, clues=16)
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
