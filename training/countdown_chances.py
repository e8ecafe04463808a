"""Answers of the reasoner to training problems, with the exact chance of success after each of their steps."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from countdown_data import LINE, Noise, traces
from countdown_rollouts import answer, problem, roll
from data import folder

from feynkac.models.tasks.countdown import moves, reach
from feynkac.models.tasks.shipped import FIRST, SIGNS, SPACED, TEMPERATURE, tokenizer

BLOCK = 500
"""Problems that are answered together."""


@lru_cache(maxsize=1 << 16)
def ways(left: tuple[int, ...], target: int) -> tuple[str, ...]:
    """Return the texts that lead from some numbers to a target, as the reasoner writes them.

    It puts the larger number first and keeps the order in brackets, as its training traces did; other spellings of a
    right step have next to no probability.

    >>> ways((2, 3, 4), 20)
    ('3+2=5 (4 5)\\n5*4=20 (20)\\n', '4+2=6 (3 6)...')
    """
    if len(left) == 1:
        return ("",) if left[0] == target else ()
    good = {str(move): move.left for move in moves(left) if reach(move.left) >> target & 1}
    return tuple(f"{line}\n{rest}" for line, state in good.items() for rest in ways(state, target))


def chances(model: Any, rows: list[list[int]], most: int = 3, batch: int = 250) -> list[list[tuple[int, float]]]:
    """Return, for rows of answers, the (end, probability) of their steps: of success under the model, sampled on.

    The probabilities of all ways to the target from the end of a step are summed, which is exact; while more numbers
    than ``most`` are left, that of the next step stands in, whose mean it is.
    """
    marks: list[list[tuple[int, float]]] = []
    asked: list[tuple[int, int, list[int], int]] = []
    for i, row in enumerate(rows):
        task, stops = problem(row)
        marks.append([])
        for place, end in enumerate(stops[: task.steps]):
            left = task.left(answer(row, end))
            marks[i].append((end, float(left == (task.target,))))
            if left is not None and 1 < len(left) <= most:
                for way in ways(left, task.target):
                    asked.append((i, place, row[: end + 1] + tokenizer()(way).input_ids, end + 1))
    sums = _sums(model, asked, batch)
    for i, row in enumerate(rows):
        for place in reversed(range(len(marks[i]))):
            end, chance = marks[i][place]
            task, _ = problem(row)
            if task.steps - place > most:
                marks[i][place] = (end, marks[i][place + 1][1] if place + 1 < len(marks[i]) else 0.0)
            else:
                marks[i][place] = (end, sums.get((i, place), chance))
    return marks


def _sums(model: Any, asked: list[tuple[int, int, list[int], int]], batch: int) -> dict[tuple[int, int], float]:
    sums: dict[tuple[int, int], float] = {}
    asked = sorted(asked, key=lambda each: len(each[2]))
    with torch.inference_mode():
        for begin in range(0, len(asked), batch):
            some = asked[begin : begin + batch]
            rows = torch.zeros(len(some), len(some[-1][2]), dtype=torch.long)
            for k, (_, _, tokens, _) in enumerate(some):
                rows[k, : len(tokens)] = torch.tensor(tokens)
            logits = model(input_ids=rows[:, :-1], use_cache=False).logits.float() / TEMPERATURE
            logs = logits.log_softmax(-1).gather(2, rows[:, 1:, None])[..., 0]
            for k, (i, place, tokens, start) in enumerate(some):
                chance = float(logs[k, start - 1 : len(tokens) - 1].sum().exp())
                sums[i, place] = sums.get((i, place), 0.0) + chance
    return sums


def dataset(model: Any, problems: int, seed: int) -> dict[int, tuple[Any, Any]]:
    """Return, by how many numbers, answers (n, length) and the chances of success after their steps (n, steps).

    Three in four problems have 4 numbers, the others 5; answers of another form than steps have are left out. Kept
    beside the checkpoints, since it takes a while.
    """
    path = folder() / f"countdown_chances_{problems}_{seed}.pt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        kept: dict[int, list[tuple[list[int], list[tuple[int, float]]]]] = {4: [], 5: []}
        for block, numbers in enumerate([4, 4, 4, 5] * -(-problems // (4 * BLOCK))):
            heads = traces(BLOCK, numbers, Noise(0.0, 0.0), np.random.default_rng([seed, block]))[:, : numbers + 3]
            with torch.inference_mode():
                rows = roll(model, torch.from_numpy(heads), torch.Generator().manual_seed(seed * 1_000_003 + block))
            kept[numbers] += [pair for pair in zip(rows, chances(model, rows)) if in_form(pair[0], numbers)]
            print(f"answers: {sum(map(len, kept.values()))}", flush=True)
        found = {
            numbers: (
                torch.tensor([row for row, _ in pairs]),
                torch.tensor([[chance for _, chance in marks] for _, marks in pairs]),
            )
            for numbers, pairs in kept.items()
        }
        torch.save(found, path)
    read: dict[int, tuple[Any, Any]] = torch.load(path, weights_only=True)
    return read


def ends(numbers: int) -> list[int]:
    """Return where the steps of an answer end.

    >>> ends(4)
    [17, 27, 36]
    """
    found = [numbers + 2]
    for left in range(numbers - 1, 0, -1):
        found.append(found[-1] + 8 + left)
    return found[1:]


def in_form(row: list[int], numbers: int) -> bool:
    """Return whether the steps of an answer end where they should, and hold numbers where they should."""
    places = ends(numbers)
    if len(row) != places[-1] + 1 or any(row[end] != LINE for end in places):
        return False
    states = (row[end - left - 1 : end - 1] for left, end in zip(range(numbers - 1, 0, -1), places))
    return all(FIRST <= first < SPACED and all(SPACED <= n < SIGNS for n in rest) for first, *rest in states)
