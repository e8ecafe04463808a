"""Traces of Countdown for the reasoner: random legal steps, whose result is the target; some slip, some miscount.

No solver is needed: a trace that is made first, and its result then called the target, solves it. Its law given numbers
and target is that of random legal steps that happen to end there.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from feynkac.models.tasks.checked import held_out
from feynkac.models.tasks.countdown import LARGEST, LIMIT, SMALLEST_TARGET, reach
from feynkac.models.tasks.shipped import FIRST, SIGNS, SPACED, SYMBOLS

OPEN, CLOSE, GOAL, LINE = (SIGNS + SYMBOLS.index(sign) for sign in (" (", ")", " >", "\n"))
EQUALS = SIGNS + SYMBOLS.index("=")
END = 1


@dataclass(frozen=True)
class Noise:
    """What is wrong in traces.

    Attributes:
        slip: share of traces that leave the way to the target, before a step that is chosen evenly.
        miscount: share of steps whose result is off, by up to 10.
    """

    slip: float
    miscount: float


def step(left: Any, rng: Any) -> tuple[Any, Any]:
    """Take a random legal step from states (n, k). Returns (a, op, b, result), shape (n, 4), and the places kept."""
    n, k = left.shape
    pairs = np.array(list(combinations(range(k), 2)))
    kept = np.array([[i for i in range(k) if i not in pair] for pair in pairs.tolist()], int).reshape(len(pairs), k - 2)
    x, y = left[:, pairs].max(-1), left[:, pairs].min(-1)
    results = np.stack([x + y, x - y, x * y, x // y], -1)
    legal = (results >= 1) & (results <= LIMIT)
    legal[..., 3] &= x % y == 0
    chosen = (rng.random(legal.shape) * legal).reshape(n, -1).argmax(1)
    pair, op = np.divmod(chosen, 4)
    rows = np.arange(n)
    return np.stack([x[rows, pair], op, y[rows, pair], results[rows, pair, op]], 1), kept[pair]


def take(left: Any, move: Any, kept: Any) -> Any:
    """Return the states after a step: what is kept, and the result."""
    return np.concatenate([np.take_along_axis(left, kept, 1), move[:, 3:]], 1)


def traces(n: int, numbers: int, noise: Noise, rng: Any, skip: int = 0) -> Any:
    """Return tokens of n traces of training problems, shape (n, length).

    The first steps may be skipped: the problem then is what they leave.
    """
    found: list[Any] = []
    while sum(map(len, found)) < n:
        found.append(_some(2 * n, numbers, noise, rng, skip))
    return np.concatenate(found)[:n]


def _some(n: int, numbers: int, noise: Noise, rng: Any, skip: int) -> Any:
    start = rng.integers(1, LARGEST + 1, (n, numbers))
    for _ in range(skip):
        start = take(start, *step(start, rng))
    true = shown = start
    numbers -= skip
    slips_at = np.where(rng.random(n) < noise.slip, rng.integers(0, numbers - 1, n), numbers)
    lines = []
    for t in range(numbers - 1):
        move, kept = step(true, rng)
        true = take(true, move, kept)
        other, elsewhere = step(shown, rng)
        astray = (t >= slips_at)[:, None]
        move, kept = np.where(astray, other, move), np.where(astray, elsewhere, kept)
        wrong = rng.random(n) < noise.miscount
        off = np.clip(move[:, 3] + rng.integers(1, 11, n) * rng.choice([-1, 1], n), 1, LIMIT)
        move[:, 3] = np.where(wrong, off, move[:, 3])
        slips_at = np.where(wrong, np.minimum(slips_at, t), slips_at)
        shown = take(shown, move, kept)
        lines.append(line(move, shown))
    tokens = np.concatenate([head(start, true[:, 0]), *lines, np.full((n, 1), END)], 1)
    return tokens[(true[:, 0] >= SMALLEST_TARGET) & for_training(start, true[:, 0])]


def exact(tokens: Any, numbers: int) -> tuple[list[int], Any]:
    """Return where the steps of traces end, and whether the target is in reach after each, shape (n, steps)."""
    begin = numbers + 3
    target, right = tokens[:, begin - 2] - SPACED, np.ones(len(tokens), bool)
    ends, good = [], []
    for left in range(numbers - 1, 0, -1):
        a, op, b = tokens[:, begin] - FIRST, tokens[:, begin + 1] - SIGNS, tokens[:, begin + 2] - FIRST
        true = np.choose(op, [a + b, a - b, a * b, a // np.maximum(b, 1)])
        right = right & (true == tokens[:, begin + 4] - FIRST)
        state = tokens[:, begin + 6 : begin + 6 + left] - SPACED
        state[:, 0] += SPACED - FIRST
        in_reach = [reach(row) >> goal & 1 for row, goal in zip(state.tolist(), target.tolist())]
        begin += 8 + left
        ends.append(begin - 1)
        good.append(right & np.array(in_reach, bool))
    return ends, np.stack(good, 1)


def for_training(start: Any, target: Any) -> Any:
    """Return which problems are not held out, shape (n,), as ``Countdown.split`` has it."""
    names = (f"{' '.join(map(str, row))} > {goal}" for row, goal in zip(np.sort(start, 1).tolist(), target.tolist()))
    return np.array([not held_out(name) for name in names])


def head(start: Any, target: Any) -> Any:
    """Return the tokens of prompts."""
    n = len(start)
    return np.concatenate([_row(start), np.full((n, 1), GOAL), SPACED + target[:, None], np.full((n, 1), LINE)], 1)


def line(move: Any, left: Any) -> Any:
    """Return the tokens of steps: moves (n, 4) and the states after them (n, k)."""
    columns = [
        FIRST + move[:, 0],
        SIGNS + move[:, 1],
        FIRST + move[:, 2],
        np.full(len(move), EQUALS),
        FIRST + move[:, 3],
    ]
    brackets = np.full(len(move), OPEN), np.full(len(move), CLOSE), np.full(len(move), LINE)
    return np.column_stack([*columns, brackets[0], _row(left), *brackets[1:]])


def _row(numbers: Any) -> Any:
    tokens = SPACED + numbers
    tokens[:, 0] = FIRST + numbers[:, 0]
    return tokens
