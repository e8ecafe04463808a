"""Sudoku of 4 rows of 4: fill in what is missing, a row a line; with exact verifier and solver.

    _ _ 2 _               the clues
    _ 4 _ 1
    4 3 _ _
    _ _ _ _

    3 1 2 4               a step: a row, in which each number stands once, as in each column and each square of 2 by 2
    2 4 3 1
    4 3 1 2
    1 2 4 3               the last row that is right solves it

It is the mini_sudoku of reasoning-gym (Stojanovski et al. 2025, arXiv:2505.24760), written in its form. There are only
288 grids that keep the rules, so that the solver has them all: a set of grids is a number whose bits say which.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import permutations, product
from typing import Any

from .checked import Checked, Split, distinct

SIZE = 4
Row = tuple[int, ...]
Grid = tuple[Row, ...]

_ROW = re.compile(r"\s*([1-4])\s+([1-4])\s+([1-4])\s+([1-4])\s*")
_EXAMPLES = (
    "1 _ _ 4\n_ 4 1 _\n_ 1 4 _\n4 _ _ 1\n",
    "1 2 3 4\n3 4 1 2\n2 1 4 3\n4 3 2 1\n",
)
_INSTRUCTION = (
    "Fill in the blanks so that each row, each column and each 2x2 square holds each number from 1 to 4 exactly once. "
    "Answer with the four rows, numbers separated by spaces.\n\n"
)


@dataclass(frozen=True)
class Sudoku(Checked):
    """A problem: some cells of a grid are given, the others to be found.

    Attributes:
        clues: four rows of four numbers from 1 to 4, and 0 where a cell is blank; no number twice in a row, column or
            square of two by two.

    Texts are strings, or texts of a language model, with a row in each line; blank lines do not count.

    Raises ValueError for clues of another form, or that break the rules.

    >>> problem = Sudoku(((0, 0, 2, 0), (0, 4, 0, 1), (4, 3, 0, 0), (0, 0, 0, 0)))
    >>> problem.prompt, problem.steps
    ('_ _ 2 _\\n_ 4 _ 1\\n4 3 _ _\\n_ _ _ _\\n\\n', 4)
    >>> problem.left("3 1 2 4\\n2 4 3 1")
    ((3, 1, 2, 4), (2, 4, 3, 1), (4, 3, 0, 0), (0, 0, 0, 0))
    >>> problem.solvable("3 1 2 4"), problem.solvable("1 3 2 4"), problem.left("4 1 2 3")
    (True, False, None)
    >>> problem.solution("3 1 2 4\\n2 4 3 1")
    ('4 3 1 2', '1 2 4 3')
    """

    clues: Grid

    def __post_init__(self) -> None:
        object.__setattr__(self, "clues", tuple(map(tuple, self.clues)))
        if len(self.clues) != SIZE or any(len(row) != SIZE for row in self.clues):
            raise ValueError(f"clues are four rows of four, not {self.clues}")
        for number in (number for row in self.clues for number in row):
            if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= SIZE:
                raise ValueError(f"clues are whole numbers from 1 to {SIZE}, or 0 for a blank, not {number!r}")
        if not lawful(self.clues):
            raise ValueError(f"the clues have a number twice in a row, column or square: {self.clues}")

    @property
    def prompt(self) -> str:
        """The problem as four lines and a blank one, as the reasoner reads it."""
        return "".join(f"{shown(row)}\n" for row in self.clues) + "\n"

    @property
    def few_shot(self) -> str:
        """The problem after an instruction and a solved example, for a language model that was not made for it."""
        return _INSTRUCTION + "\n".join(_EXAMPLES) + "\n" + self.prompt

    @property
    def steps(self) -> int:
        """How many steps a solution has."""
        return SIZE

    @property
    def name(self) -> str:
        """The clues, with the numbers renamed in the order in which they come: what is held out is so under all names.

        >>> Sudoku(((0, 3, 0, 1), (0, 0, 0, 0), (0, 0, 3, 0), (4, 0, 0, 0))).name
        '_ 1 _ 2/_ _ _ _/_ _ 1 _/3 _ _ _'
        """
        renamed = {0: 0}
        for number in (number for row in self.clues for number in row):
            renamed.setdefault(number, len(renamed))
        return "/".join(shown([renamed[number] for number in row]) for row in self.clues)

    def left(self, text: Any) -> Grid | None:
        """Return the grid after the rows of a text, blanks in those to come; None where one of them is wrong.

        A row is wrong unless it keeps its clues and has no number twice, nor once more in a column or square.
        """
        grid = self.clues
        for done, line in enumerate(_lines(text)):
            match = _ROW.fullmatch(line)
            if match is None or done == SIZE:
                return None
            row = tuple(map(int, match.groups()))
            grid = (*grid[:done], row, *grid[done + 1 :])
            if any(clue not in (0, number) for clue, number in zip(self.clues[done], row)) or not lawful(grid):
                return None
        return grid

    def solved(self, text: Any) -> bool:
        """Return whether a text solves the problem: it has all rows, and none is wrong."""
        return self.left(text) is not None and len(_lines(text)) == SIZE

    def solvable(self, text: Any = "") -> bool:
        """Return whether the rows of a text are right and the others can still be found: the true value."""
        left = self.left(text)
        return left is not None and bool(completions(left))

    def solution(self, text: Any = "") -> tuple[str, ...] | None:
        """Return rows that solve the problem after those of a text, or None where there are none."""
        left = self.left(text)
        if left is None or not (bits := completions(left)):
            return None
        return tuple(map(shown, grids()[bits.bit_length() - 1][len(_lines(text)) :]))


def _lines(text: Any) -> list[str]:
    return [line for line in str(text).splitlines() if line.strip()]


def shown(row: Row | list[int]) -> str:
    """Return a row as it is written.

    >>> shown((3, 0, 1, 2))
    '3 _ 1 2'
    """
    return " ".join(str(number or "_") for number in row)


def lawful(grid: Grid) -> bool:
    """Return whether no number stands twice in a row, a column or a square; blanks may."""
    squares = [[grid[i + a][j + b] for a in (0, 1) for b in (0, 1)] for i in (0, 2) for j in (0, 2)]
    for unit in (*grid, *zip(*grid), *squares):
        numbers = [number for number in unit if number]
        if len(set(numbers)) < len(numbers):
            return False
    return True


@cache
def grids() -> tuple[Grid, ...]:
    """Return all whole grids that keep the rules.

    >>> len(grids())
    288
    """
    rows = list(permutations(range(1, SIZE + 1)))
    blank = (0,) * SIZE
    halves = [half for half in product(rows, rows) if lawful((*half, blank, blank))]
    return tuple((*top, *bottom) for top, bottom in product(halves, halves) if lawful((*top, *bottom)))


@cache
def _holders() -> dict[tuple[int, int, int], int]:
    """Return, by row, column and number, the set of grids that have it there."""
    found: dict[tuple[int, int, int], int] = {}
    for bit, grid in enumerate(grids()):
        for i, j in product(range(SIZE), repeat=2):
            found[i, j, grid[i][j]] = found.get((i, j, grid[i][j]), 0) | 1 << bit
    return found


def completions(grid: Grid) -> int:
    """Return the set of whole grids that agree with a grid where it is not blank."""
    bits = (1 << len(grids())) - 1
    for i, row in enumerate(grid):
        for j, number in enumerate(row):
            if number:
                bits &= _holders()[i, j, number]
    return bits


def sudokus(count: int, seed: int = 0, *, clues: int = 6, split: Split = "test") -> list[Sudoku]:
    """Return distinct problems with one solution each: random whole grids of which random cells stay.

    Args:
        count: how many.
        seed: same seed, same problems; the first of more are the same.
        clues: how many cells are given.
        split: "test" are held out: none of them, whatever its numbers are called, is in "train".

    Raises ValueError for clues that are too few for one solution (there must be 4) or more than there are cells, a
    split of another name, or more problems than there are.

    >>> print(sudokus(1, seed=1)[0].prompt.rstrip())
    _ 1 4 3
    _ _ 1 _
    _ _ _ _
    4 3 _ _
    """
    if not SIZE <= clues <= SIZE * SIZE:
        raise ValueError(f"a problem with one solution has from {SIZE} to {SIZE * SIZE} clues, not {clues}")
    return distinct(_endless(random.Random(f"sudoku {seed} {clues}"), clues), count, split, f"{clues} clues")


def _endless(rng: random.Random, clues: int) -> Iterator[Sudoku]:
    while True:
        whole, given = rng.choice(grids()), rng.sample(range(SIZE * SIZE), clues)
        kept = tuple(
            tuple(number if SIZE * i + j in given else 0 for j, number in enumerate(row)) for i, row in enumerate(whole)
        )
        if completions(kept).bit_count() == 1:
            yield Sudoku(kept)
