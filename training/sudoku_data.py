"""Traces of Sudoku for the reasoner: random problems with one solution, and their rows; some leave the way.

A trace that slips goes on by rows that are right as far as it can see: they keep their clues, and repeat no number in a
column or square above. Where there is none, they keep their clues.
"""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np

from feynkac.models.tasks.checked import held_out
from feynkac.models.tasks.shipped import FIRST, WORDS
from feynkac.models.tasks.sudoku import SIZE, Sudoku, grids

SPACED = FIRST + len(WORDS["sudoku"][0])
LINE = SPACED + len(WORDS["sudoku"][0])
END = 1
HEAD = SIZE * (SIZE + 1) + 1
"""Tokens of a prompt."""

WHOLE = np.array(grids())
ROWS = np.array(list(permutations(range(1, SIZE + 1))))


def puzzles(n: int, clues: int, rng: Any) -> tuple[Any, Any]:
    """Return clues (m, 4, 4), 0 where blank, and solutions of training problems, out of n random grids and cells."""
    solution = WHOLE[rng.integers(0, len(WHOLE), n)]
    given = (rng.random((n, SIZE * SIZE)).argsort(1) < clues).reshape(n, SIZE, SIZE)
    agree = ((solution[:, None] == WHOLE) | ~given[:, None]).all((2, 3)).sum(1)
    shown, solution = (solution * given)[agree == 1], solution[agree == 1]
    train = [not held_out(Sudoku(grid).name) for grid in shown.tolist()]
    return shown[train], solution[train]


def astray(shown: Any, rows: Any, t: int, rng: Any) -> Any:
    """Return a random row t (n, 4) after others (n, ≥ t, 4): one that breaks no rule so far, if there is one."""
    clues = shown[:, t, None]
    keeps = ((clues == 0) | (clues == ROWS)).all(2)
    fits = np.ones_like(keeps)
    for above in range(t):
        row = rows[:, above]
        fits &= (row[:, None] != ROWS).all(2)
        if above // 2 == t // 2:  # what stands beside a number below is in its square
            fits &= (row[:, None] != ROWS[:, [1, 0, 3, 2]]).all(2)
    return ROWS[(rng.random(keeps.shape) + 2 * keeps + (keeps & fits)).argmax(1)]


def traces(n: int, clues: int, slip: float, rng: Any) -> Any:
    """Return tokens of n traces of training problems, (n, 42); a share ``slip`` leaves the way at a random row."""
    found: list[Any] = []
    while sum(map(len, found)) < n:
        shown, solution = puzzles(2 * n, clues, rng)
        rows = solution.copy()
        slips_at = np.where(rng.random(len(rows)) < slip, rng.integers(0, SIZE, len(rows)), SIZE)
        for t in range(SIZE):
            rows[:, t] = np.where((t >= slips_at)[:, None], astray(shown, rows, t, rng), rows[:, t])
        blank, end = np.full((len(rows), 1), LINE), np.full((len(rows), 1), END)
        found.append(np.concatenate([lines(shown), blank, lines(rows), end], 1))
    return np.concatenate(found)[:n]


def lines(grid: Any) -> Any:
    """Return the tokens of grids (n, 4, 4), a row a line: (n, 20)."""
    tokens = SPACED + grid
    tokens[:, :, 0] = FIRST + grid[:, :, 0]
    return np.concatenate([tokens, np.full((len(grid), SIZE, 1), LINE)], 2).reshape(len(grid), -1)
