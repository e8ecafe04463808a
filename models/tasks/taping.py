"""How a tape is recorded: all lines above a probability, token by token, many prefixes in a pass of the model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..language.drawing.laws import log_normalise, read
from ..language.host import Tally
from ..language.scoring import node_of

_TOGETHER = 4
"""Problems whose lines are looked for at a time."""


class Line(NamedTuple):
    """A line that may follow a prefix."""

    node: Any
    string: str
    log_prob: float
    tokens: int
    finished: bool
    cut: bool = False


class _Part(NamedTuple):
    """The beginning of a line."""

    prefix: int
    node: Any
    log_prob: float


def record(
    lm: Any,
    problems: Sequence[Any],
    name: str,
    cutoff: float,
    max_tokens: int,
    progress: Callable[[int], None],
) -> dict[str, Any]:
    """Return what `Tape.record` makes a tape of."""
    prompts = [problem.prompt for problem in problems]
    if len(set(prompts)) < len(prompts):
        raise ValueError("two of the problems have one prompt, so that the tape could not tell them apart")
    if not prompts:
        raise ValueError("there are no problems to record")
    if not 0 < cutoff < 1:
        raise ValueError(f"cutoff is a probability between 0 and 1, not {cutoff!r}")
    levels: list[list[dict[str, Any]]] = []
    known: dict[str, int] = {}
    for begin in range(0, len(problems), _TOGETHER):
        for depth, rows in enumerate(_block(lm, problems[begin : begin + _TOGETHER], cutoff, max_tokens, known)):
            if depth == len(levels):
                levels.append([])
            levels[depth] += rows
        progress(min(begin + _TOGETHER, len(problems)))
    rows = [row for level in levels for row in level]
    return {
        "name": name,
        "prompts": tuple(prompts),
        "depth": np.array([problem.steps for problem in problems]),
        "lines": tuple(known),
        "temperature": lm.sampling.temperature,
        "scores": {},
        **{key: np.array([row[key] for row in rows]) for key in rows[0]},
    }


def _block(
    lm: Any, problems: Sequence[Any], cutoff: float, max_tokens: int, known: dict[str, int]
) -> list[list[dict[str, Any]]]:
    """Return the places of some problems by level: what a tape's arrays hold of each."""
    texts: list[tuple[Any, Any, tuple[str, ...]]] = [
        (problem, node_of(lm, lm.prompt(problem.prompt)), ()) for problem in problems
    ]
    levels = [[_place(-1, Line(None, "", 0.0, 0, False), False) for _ in texts]]
    while texts:
        going = [i for i, row in enumerate(levels[-1]) if not row["finished"] and len(texts[i][2]) < texts[i][0].steps]
        found = following(lm, [texts[i][1] for i in going], cutoff, max_tokens)
        after, places = [], []
        for i, lines in zip(going, found):
            problem, _, steps = texts[i]
            kept = math.fsum(math.exp(line.log_prob) for line in lines)
            if not lines:
                raise ValueError(f"after {problem.prompt!r} and {list(steps)} no line has a probability of {cutoff}")
            levels[-1][i]["count"], levels[-1][i]["missing"] = len(lines), max(0.0, 1 - kept)
            for line in lines:
                answer = (*steps, line.string)
                over = line.finished or len(answer) == problem.steps
                if line.cut and not over:
                    raise ValueError(
                        f"after {problem.prompt!r} and {list(steps)} the line {line.string!r} is cut by "
                        f"max_tokens={max_tokens}, and what follows goes on in it: allow more tokens"
                    )
                scaled = line._replace(log_prob=line.log_prob - math.log(kept))
                number = known.setdefault(line.string, len(known))
                places.append(_place(number, scaled, over and problem.solved("\n".join(answer))))
                after.append((problem, line.node, answer))
        levels.append(places)
        texts = after
    return levels[:-1]


def _place(number: int, line: Line, solved: bool) -> dict[str, Any]:
    return {
        "line_of": number,
        "count": 0,
        "log_prob": line.log_prob,
        "tokens": line.tokens,
        "finished": line.finished,
        "solved": solved,
        "missing": 0.0,
    }


def following(lm: Any, nodes: Sequence[Any], cutoff: float, max_tokens: int) -> list[list[Line]]:
    """Return the lines that may follow each of some histories, the likeliest first."""
    ends = _Ends(lm)
    lines: list[list[Line]] = [[] for _ in nodes]
    begin = [node.length for node in nodes]
    parts = [_Part(i, node, 0.0) for i, node in enumerate(nodes)]
    for length in range(1, max_tokens + 1):
        if not parts:
            break
        total = np.array([part.log_prob for part in parts])[:, None] + next_token(lm, [part.node for part in parts])
        longer = []
        for row, token in zip(*map(np.ndarray.tolist, np.nonzero(total >= math.log(cutoff)))):
            part, log_prob = parts[row], float(total[row, token])
            node = lm.tree.child(part.node, token)
            over = token in lm.eos
            whole = over or ends(token)
            if whole or length == max_tokens:
                string = lm.decode_response(node.tokens(begin[part.prefix])).removesuffix("\n")
                lines[part.prefix].append(Line(node, string, log_prob, length, over, not whole))
            else:
                longer.append(_Part(part.prefix, node, log_prob))
        parts = longer
    return [sorted(some, key=lambda line: -line.log_prob) for some in lines]


def next_token(lm: Any, nodes: Sequence[Any]) -> NDArray[np.float64]:
    """Return the log-law (n, V) of the next token after some histories, as the model is sampled."""
    laws: list[Any] = [None] * len(nodes)

    def note(rows: NDArray[np.intp], logits: Any) -> None:
        for row, law in zip(rows.tolist(), read(log_normalise(logits, lm.sampling))):
            laws[row] = law

    lm.laws(nodes, np.arange(len(nodes)), Tally(len(nodes)), note)
    return np.stack(laws)


class _Ends:
    """Which tokens end a line, found out when they are met."""

    def __init__(self, lm: Any) -> None:
        self._lm = lm
        self._known: dict[int, bool] = {}

    def __call__(self, token: int) -> bool:
        """Return whether a token ends with a newline. Raises ValueError where it goes on after one."""
        if token not in self._known:
            word = self._lm.decode_response((token,))
            if "\n" in word[:-1]:
                raise ValueError(f"the token {word!r} of {self._lm!r} goes on after its newline")
            self._known[token] = word.endswith("\n")
        return self._known[token]
