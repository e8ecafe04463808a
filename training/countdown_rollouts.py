"""Rollouts of the reasoner, and labels of their steps for the process reward model."""

from __future__ import annotations

from typing import Any

import torch
from countdown_data import END, LINE, SPACED
from transformers import DynamicCache

from feynkac.models.tasks.countdown import Countdown
from feynkac.models.tasks.shipped import TEMPERATURE, tokenizer

_LONGEST = 56
"""Most tokens of an answer; the longest right one has 44."""


def roll(model: Any, prefixes: Any, generator: Any) -> list[list[int]]:
    """Sample an answer after each prefix (n, t), as `reasoner` does; return the whole rows, up to the end token."""
    cache, rows, ended = DynamicCache(), prefixes, torch.zeros(len(prefixes), dtype=torch.bool)
    last = prefixes
    for _ in range(_LONGEST):
        logits = model(input_ids=last, past_key_values=cache, use_cache=True).logits[:, -1].float()
        last = torch.multinomial((logits / TEMPERATURE).softmax(-1), 1, generator=generator)
        rows = torch.cat([rows, last], 1)
        ended |= last[:, 0] == END
        if bool(ended.all()):
            break
    return [row[: row.index(END)] if END in row else row for row in rows.tolist()]


def problem(row: list[int]) -> tuple[Countdown, list[int]]:
    """Return the problem that a row of tokens begins with, and where each of its steps ends."""
    ends = [i for i, token in enumerate(row) if token == LINE]
    numbers, target = tokenizer().decode(row[: ends[0] - 2]), row[ends[0] - 1] - SPACED
    return Countdown(tuple(map(int, numbers.split())), target), ends[1:]


def answer(row: list[int], end: int | None = None) -> str:
    """Return the answer in a row of tokens, up to a place."""
    string: str = tokenizer().decode(row[row.index(LINE) + 1 : end])
    return string


def labelled(model: Any, heads: Any, rollouts: int, generator: Any) -> list[tuple[list[int], list[tuple[int, bool]]]]:
    """Sample an answer to each prompt (n, t); return rows of tokens with (end, label) of their steps.

    The label of a step before the last says whether at least one of some rollouts from there solves the problem;
    after a wrong step none can. That of the last step is the verdict itself.
    """
    found, asked = [], []
    with torch.inference_mode():
        for row in roll(model, heads, generator):
            task, ends = problem(row)
            labels = []
            for end in ends[: task.steps]:
                left = task.left(answer(row, end))
                labels.append((end, left == (task.target,)))
                if left is not None and len(left) > 1:
                    asked.append((len(found), len(labels) - 1, row[: end + 1]))
            found.append((row, labels))
        for length in sorted({len(prefix) for _, _, prefix in asked}):
            some = [each for each in asked if len(each[2]) == length]
            prefixes = torch.tensor([prefix for _, _, prefix in some]).repeat_interleave(rollouts, 0)
            ends_of = roll(model, prefixes, generator)
            for k, (i, step, prefix) in enumerate(some):
                task, _ = problem(prefix)
                solved = any(task.solved(answer(row)) for row in ends_of[k * rollouts : (k + 1) * rollouts])
                found[i][1][step] = (found[i][1][step][0], solved)
    return found
