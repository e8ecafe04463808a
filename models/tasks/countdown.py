"""Countdown: reach a target from some numbers, one arithmetic step a line; with exact verifier and solver.

    3 5 7 9 > 24          the numbers, and the target
    7-5=2 (3 9 2)         a step: two of the numbers left become one; in brackets what is left
    9+3=12 (2 12)
    12*2=24 (24)          every number is used once, and the last line holds the target

All numbers are whole, and from 1 to `LIMIT`. It is the game of the television show in the form in which language models
are tried at it (Gandhi et al. 2024, arXiv:2404.03683; Yao et al. 2023, arXiv:2305.10601, for the target 24).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from .checked import Checked, Split, distinct

LIMIT = 100
"""The largest number that a step may give."""
LARGEST = 20
"""The largest number that `problems` begin with."""
SMALLEST_TARGET = 10
"""The smallest target of `problems`."""
Numbers = tuple[int, ...]

# A number of ten digits is wrong anyway, and Python refuses to read one of thousands.
_STEP = re.compile(r"(?!.*[0-9]{10})\s*([0-9]+)\s*([-+*/])\s*([0-9]+)\s*=\s*([0-9]+)\s*(?:\(([0-9 ]*)\)\s*)?")
_EXAMPLES = ("2 3 4 > 20\n3+2=5 (4 5)\n5*4=20 (20)\n", "8 1 6 5 > 8\n8-1=7 (6 5 7)\n7+6=13 (5 13)\n13-5=8 (8)\n")
_INSTRUCTION = (
    "Reach the target after > with the numbers before it. In each line, two of the numbers that are left become one by "
    "+, -, * or /, and brackets hold what is left. Use every number once.\n\n"
)


class Move(NamedTuple):
    """A legal step: ``a op b = result``, and the numbers ``left`` after it, the result last."""

    a: int
    op: str
    b: int
    result: int
    left: Numbers

    def __str__(self) -> str:
        return f"{self.a}{self.op}{self.b}={self.result} ({' '.join(map(str, self.left))})"


@dataclass(frozen=True)
class Countdown(Checked):
    """A problem: every number is to be used once, and the last result to be the target.

    Attributes:
        numbers: two or more, each from 1 to `LIMIT`.
        target: from 1 to `LIMIT`.

    Texts are strings, or texts of a language model, with a step in each line; blank lines do not count. What stands in
    brackets after a step may be left out, and may be in any order, but must not be wrong.

    Raises ValueError for numbers outside the range.

    >>> problem = Countdown((3, 5, 7, 9), 24)
    >>> problem.prompt, problem.steps
    ('3 5 7 9 > 24\\n', 3)
    >>> problem.left("7-5=2 (3 9 2)\\n9+3=12 (2 12)")
    (2, 12)
    >>> problem.solved("7-5=2\\n9+3=12\\n12*2=24"), problem.solvable("9*7=63"), problem.left("9+9=18")
    (True, False, None)
    """

    numbers: Numbers
    target: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "numbers", tuple(self.numbers))
        if len(self.numbers) < 2:
            raise ValueError(f"a problem has two numbers or more, not {list(self.numbers)}")
        for number in (*self.numbers, self.target):
            if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= LIMIT:
                raise ValueError(f"numbers and target are whole numbers from 1 to {LIMIT}, not {number!r}")

    @property
    def prompt(self) -> str:
        """The problem as one line, as the reasoner reads it."""
        return f"{' '.join(map(str, self.numbers))} > {self.target}\n"

    @property
    def few_shot(self) -> str:
        """The problem after an instruction and solved examples, for a language model that was not made for it.

        >>> Countdown((1, 2), 3).few_shot.endswith("1 2 > 3\\n")
        True
        """
        return _INSTRUCTION + "".join(f"{example}\n" for example in _EXAMPLES) + self.prompt

    @property
    def steps(self) -> int:
        """How many steps a solution has."""
        return len(self.numbers) - 1

    @property
    def name(self) -> str:
        """The numbers in order, and the target: what is held out is so in any order."""
        return f"{' '.join(map(str, sorted(self.numbers)))} > {self.target}"

    def left(self, text: Any) -> Numbers | None:
        """Return the numbers left after the steps of a text; None where one of them is wrong."""
        left: Numbers | None = self.numbers
        for line in str(text).splitlines():
            if line.strip() and left is not None:
                left = after(left, line)
        return left

    def answer(self, text: Any) -> int | None:
        """Return the last result of a text that uses every number and has no wrong step, else None."""
        left = self.left(text)
        return left[0] if left is not None and len(left) == 1 else None

    def solved(self, text: Any) -> bool:
        """Return whether a text solves the problem."""
        return self.answer(text) == self.target

    def solvable(self, text: Any = "") -> bool:
        """Return whether the steps of a text are right and the target can still be reached: the true value."""
        left = self.left(text)
        return left is not None and bool(reach(left) >> self.target & 1)

    def solution(self, text: Any = "") -> tuple[str, ...] | None:
        """Return steps that solve the problem after those of a text, or None where there are none.

        >>> Countdown((3, 5, 7), 36).solution()
        ('7+5=12 (3 12)', '12*3=36 (36)')
        """
        left = self.left(text)
        if left is None or not reach(left) >> self.target & 1:
            return None
        found = []
        while len(left) > 1:
            move = next(move for move in moves(left) if reach(move.left) >> self.target & 1)
            found.append(str(move))
            left = move.left
        return tuple(found)


def after(left: Numbers, line: str) -> Numbers | None:
    """Return the numbers left after one more step; None where it is wrong.

    A step is wrong unless it takes two of the numbers that are left, its arithmetic is right, its result is a whole
    number from 1 to `LIMIT`, and what its brackets hold, if it has them, is what is left.

    >>> after((6, 4, 2), "6/4=1"), after((6, 4, 2), "6 / 2 = 3 (3 4)"), after((6, 4, 2), "6/2=3 (3)")
    (None, (4, 3), None)
    """
    match = _STEP.fullmatch(line)
    if match is None:
        return None
    a, op, b, result, shown = int(match[1]), match[2], int(match[3]), int(match[4]), match[5]
    rest = list(left)
    for number in (a, b):
        if number not in rest:
            return None
        rest.remove(number)
    if not _right(a, op, b, result):
        return None
    found = (*rest, result)
    return found if shown is None or sorted(map(int, shown.split())) == sorted(found) else None


def _right(a: int, op: str, b: int, result: int) -> bool:
    right = {"+": a + b == result, "-": a - b == result, "*": a * b == result, "/": b * result == a}[op]
    return right and 1 <= result <= LIMIT


def moves(left: Sequence[int]) -> list[Move]:
    """Return all legal steps, the larger number first.

    >>> [str(move) for move in moves((2, 6))]
    ['6+2=8 (8)', '6-2=4 (4)', '6*2=12 (12)', '6/2=3 (3)']
    """
    found = []
    for i in range(len(left)):
        for j in range(i):
            a, b = max(left[i], left[j]), min(left[i], left[j])
            rest = tuple(left[k] for k in range(len(left)) if k not in (i, j))
            for op, result in (("+", a + b), ("-", a - b), ("*", a * b), ("/", a // b)):
                if _right(a, op, b, result):
                    found.append(Move(a, op, b, result, (*rest, result)))
    return found


def reach(left: Sequence[int]) -> int:
    """Return the targets that some numbers can reach, as a set of bits: bit t stands for target t."""
    return _reach(tuple(sorted(left)))


@lru_cache(maxsize=1 << 18)
def _reach(left: Numbers) -> int:
    if len(left) == 1:
        return 1 << left[0]
    bits = 0
    for rest in {tuple(sorted(move.left)) for move in moves(left)}:
        bits |= _reach(rest)
    return bits


def problems(count: int, seed: int = 0, *, numbers: int = 5, split: Split = "test") -> list[Countdown]:
    """Return distinct solvable problems: random numbers, and as target where random legal steps lead.

    Args:
        count: how many.
        seed: same seed, same problems; the first of more are the same.
        numbers: how many numbers each has.
        split: "test" are held out: none of them, in any order of its numbers, is in "train".

    Raises ValueError for fewer than two numbers, a split of another name, or more problems than there are.

    >>> problems(2, seed=1, numbers=3)
    [Countdown(numbers=(2, 19, 15), target=23), Countdown(numbers=(12, 18, 6), target=24)]
    """
    if numbers < 2:
        raise ValueError(f"a problem has two numbers or more, not {numbers}")
    draws = _endless(random.Random(f"countdown {seed} {numbers}"), numbers)
    return distinct(draws, count, split, f"{numbers} numbers")


def _endless(rng: random.Random, numbers: int) -> Iterator[Countdown]:
    while True:
        start = tuple(rng.randint(1, LARGEST) for _ in range(numbers))
        left = start
        while len(left) > 1:
            left = rng.choice(moves(left)).left
        if left[0] >= SMALLEST_TARGET:
            yield Countdown(start, left[0])
