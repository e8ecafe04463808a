"""A tape: the law of a language model's lines on some problems, written down, with scores; it stands in for both."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ...ppl.cost import charge
from ...ppl.keys import Keys, uniform
from ...ppl.model import Draws
from ...ppl.score import Reward, reward
from .tape_file import read, write

Floats = NDArray[np.float64]
Places = NDArray[np.int64]


@dataclass(frozen=True)
class TapedText:
    """An answer so far, as a tape has it. ``str(text)`` is the response.

    Attributes:
        tape: name of the tape that it is of.
        prompt: the problem.
        place: of the last line in the tape.
        steps: the lines.
        finished: whether the model ended the answer.
        log_prob: log-probability of the lines.
    """

    tape: str
    prompt: str
    place: int
    steps: tuple[str, ...] = ()
    finished: bool = False
    log_prob: float = 0.0

    def __str__(self) -> str:
        return "\n".join(self.steps)


@dataclass(frozen=True)
class TapedLine:
    """A request for one more line: a kernel (see `feynkac.ppl.model.Kernel`) over texts of a tape."""

    on: Tape
    text: TapedText
    expensive: ClassVar[bool] = True

    @property
    def batch_key(self) -> Hashable:
        """All lines of one tape share a call."""
        return (TapedLine, id(self.on))

    @property
    def fingerprint(self) -> Hashable:
        """The tape, and the place in it."""
        return (self.on.name, self.text.place)

    def sample_batch(self, requests: Sequence[TapedLine], keys: Keys) -> Draws:
        """Draw a line for each request, from its own key; a finished text is given as it is, with log-probability 0."""
        going = [i for i, request in enumerate(requests) if not request.text.finished]
        values, log_prob = [request.text for request in requests], np.zeros(len(requests))
        tokens = np.zeros(len(requests), np.int64)
        if going:
            at = np.array([values[i].place for i in going])
            places = self.on.drawn(at, uniform(keys[going], 1)[:, 0])
            log_prob[going], tokens[going] = self.on.log_prob[places], self.on.tokens[places]
            for i, place in zip(going, places.tolist()):
                values[i] = self.on.text(place)
        charge(model_calls=int(tokens.max(initial=0)), tokens_out=tokens)
        return Draws(values, log_prob)

    def log_prob_batch(self, requests: Sequence[TapedLine], values: Sequence[Any]) -> Floats:
        """Return log p of each text under its request, (n,)."""
        return np.array([self._log_prob(request.text, value) for request, value in zip(requests, values)])

    def _log_prob(self, text: TapedText, value: TapedText) -> float:
        if text.finished:
            return 0.0 if value == text else -math.inf
        follows = self.on.owns(value) and self.on.parent[value.place] == text.place
        return float(self.on.log_prob[value.place]) if follows else -math.inf

    def support(self) -> list[TapedText]:
        """Return all texts that may come of it."""
        if self.text.finished:
            return [self.text]
        first = int(self.on.first[self.text.place])
        return [self.on.text(place) for place in range(first, first + int(self.on.count[self.text.place]))]

    def fits(self, value: Any) -> bool:
        """Whether a value is a text of this tape."""
        return self.on.owns(value)


@dataclass(frozen=True, eq=False, repr=False)
class Tape:
    """The law of a model's lines on some problems, as a tree of places in arrays of length n, level by level.

    In a program that goes by lines, such as `solve`, it stands in for the language model, and its `verifier` for the
    process reward model. A run then takes milliseconds, charges the tokens that the model would have drawn, and what
    the model and a reward would have done in all is known: the probability of success from every place, and that of
    every answer. The law is the model's but for lines that were too improbable to be written down (`record`), whose
    share is in ``missing``; a program that asks for anything but ``prompt`` and ``line`` needs the model itself.

    Attributes:
        name: tells it from other tapes.
        prompts: of the problems; the first places are theirs.
        depth: most lines of an answer, by problem.
        lines: all lines that occur, each once.
        line_of: which of them each place is, −1 for a prompt.
        count: how many lines may follow each place; they follow one another in the arrays.
        log_prob: log-probability of each line after its parent.
        tokens: of each line, what ends it included.
        finished: whether the model ended the answer there.
        solved: whether the answer solves the problem there.
        missing: probability of the lines after each place that were not written down, before it was shared out.
        scores: of a process reward model after each place, by name; NaN at prompts.
        temperature: that the model was sampled at.

    >>> import feynkac as fk
    >>> from feynkac.models.testing import ScriptedLM
    >>> lm = ScriptedLM(lambda before: {"6/2=3": 0.5, "6-2=4": 0.3, "6+2=9": 0.2})
    >>> problem = fk.tasks.Countdown((2, 6), 3)
    >>> tape = fk.tasks.Tape.record(lm, [problem])
    >>> round(float(tape.success[0]), 6), [str(text) for text in tape.line(tape.prompt(problem.prompt)).support()]
    (0.5, ['6/2=3', '6-2=4', '6+2=9'])
    >>> posterior = fk.infer(fk.tasks.solve(tape, tape.verifier("success", clip=0.01), problem), fk.SMC(8), seed=0)
    >>> str(posterior.best("reward"))
    '6/2=3'
    """

    name: str
    prompts: tuple[str, ...]
    depth: Places
    lines: tuple[str, ...]
    line_of: Places
    count: Places
    log_prob: Floats
    tokens: Places
    finished: NDArray[np.bool_]
    solved: NDArray[np.bool_]
    missing: Floats
    scores: dict[str, Floats]
    temperature: float

    def __repr__(self) -> str:
        return f"<Tape {self.name!r} of {len(self.prompts)} problems, {len(self.parent)} places>"

    @cached_property
    def first(self) -> Places:
        """The first place that follows each."""
        return len(self.prompts) + np.cumsum(self.count) - self.count

    @cached_property
    def parent(self) -> Places:
        """The place that each follows; −1 for prompts."""
        follow = np.repeat(np.arange(len(self.count)), self.count)
        return np.concatenate([np.full(len(self.prompts), -1), follow])

    @cached_property
    def success(self) -> Floats:
        """The probability that the answer which the model goes on with solves the problem, exactly, by place."""
        value = self.solved.astype(float)
        mass = np.exp(self.log_prob)
        for rows in reversed(self._levels[1:]):
            inner = np.zeros(len(value))
            np.add.at(inner, self.parent[rows], mass[rows] * value[rows])
            parents = np.unique(self.parent[rows])
            value[parents] = inner[parents]
        return value

    @cached_property
    def level(self) -> Places:
        """How many lines there are up to each place."""
        level = np.zeros(len(self.parent), np.int64)
        for depth, rows in enumerate(self._levels):
            level[rows] = depth
        return level

    @cached_property
    def _levels(self) -> list[Places]:
        rows, found = np.arange(len(self.prompts)), []
        while len(rows):
            found.append(rows)
            rows = np.arange(self.first[rows[0]], self.first[rows[-1]] + self.count[rows[-1]])
        return found

    @cached_property
    def _steps(self) -> Floats:
        """For each line, its parent's place plus the probability of it and its elder siblings: it increases."""
        mass = np.exp(self.log_prob[len(self.prompts) :])
        parent = self.parent[len(self.prompts) :]
        total = np.cumsum(mass)
        before = np.concatenate([[0.0], total])[self.first[parent] - len(self.prompts)]
        steps: Floats = parent + (total - before)
        return steps

    @cached_property
    def _place(self) -> dict[str, int]:
        return {prompt: place for place, prompt in enumerate(self.prompts)}

    @cached_property
    def _texts(self) -> dict[int, TapedText]:
        return {}

    def drawn(self, places: Places, uniforms: Floats) -> Places:
        """Return the place of a line drawn after each of some places, by a uniform number each."""
        found = len(self.prompts) + np.searchsorted(self._steps, places + uniforms, side="right")
        drawn: Places = np.clip(found, self.first[places], self.first[places] + self.count[places] - 1)
        return drawn

    def text(self, place: int) -> TapedText:
        """Return the text that ends at a place."""
        known = self._texts.get(place)
        if known is None:
            if place < len(self.prompts):
                known = TapedText(self.name, self.prompts[place], place)
            else:
                before = self.text(int(self.parent[place]))
                steps = (*before.steps, self.lines[self.line_of[place]])
                log_prob = before.log_prob + float(self.log_prob[place])
                known = TapedText(self.name, before.prompt, place, steps, bool(self.finished[place]), log_prob)
            self._texts[place] = known
        return known

    def owns(self, text: Any) -> bool:
        """Whether a text is of this tape: another of the same name may have other lines at its place."""
        if not isinstance(text, TapedText) or text.tape != self.name or not 0 <= text.place < len(self.parent):
            return False
        own = self.text(text.place)
        return text is own or (text.prompt, text.steps, text.finished) == (own.prompt, own.steps, own.finished)

    def prompt(self, prompt: str) -> TapedText:
        """Return a text with an empty response. Raises LookupError for a problem that is not on the tape."""
        if prompt not in self._place:
            raise LookupError(
                f"the tape {self.name!r} has {len(self.prompts)} problems, and {prompt!r} is none of them"
            )
        return self.text(self._place[prompt])

    def line(self, text: TapedText, *, max_tokens: int | None = None, temperature: float | None = None) -> TapedLine:
        """Return the kernel of the next line, as a language model's ``line`` does.

        Raises ValueError for a text of another tape, a text that the tape does not go on from, and a temperature at
        which it was not recorded. ``max_tokens`` is that of the recording.
        """
        if not self.owns(text):
            raise ValueError(f"a line of the tape {self.name!r} goes on from one of its own texts, not from {text!r}")
        if temperature not in (None, self.temperature):
            raise ValueError(f"the tape was recorded at temperature {self.temperature}, and not at {temperature}")
        if not text.finished and not self.count[text.place]:
            raise ValueError(f"the tape {self.name!r} ends after {len(text.steps)} lines, as the problem does")
        return TapedLine(self, text)

    def verifier(self, scores: str, *, clip: float = 0.0, cache: int = 1_000_000) -> Reward:
        """Return a reward of (question, text) that reads a column of ``scores``, or ``"success"``, as a probability.

        A text is scored once, as a reward model that remembers would. With ``clip`` scores keep that far from 0 and 1,
        as a twist and odds need it. Raises LookupError for a name that is not there, ValueError for a clip that is not
        in [0, ½).
        """
        if not 0 <= clip < 0.5:
            raise ValueError(f"clip is how far scores keep from 0 and 1, in [0, ½), not {clip!r}")
        if scores != "success" and scores not in self.scores:
            raise LookupError(f"the tape has the scores {', '.join(['success', *self.scores])}, and no {scores!r}")
        column = np.clip(self.success if scores == "success" else self.scores[scores], clip, 1 - clip)

        @reward(kind="probability", batched=True, name=scores, cache=cache)
        def looked_up(inputs: list[Any]) -> Floats:
            strange = [text for _, text in inputs if not self.owns(text)]
            if strange:
                raise ValueError(f"{scores!r} of the tape {self.name!r} was asked for another text, {strange[0]!r}")
            found: Floats = column[[text.place for _, text in inputs]]
            return found

        return looked_up

    def scored(self, **verifiers: Any) -> Tape:
        """Return the tape with more scores: of process reward models, each asked once for every place.

        A verifier is such as ``fk.tasks.verifier()``: its ``details`` of (question, text) are scores by step, of which
        the last is taken. An answer without a step has none: NaN, as a prompt has.

        Raises ValueError for the name "success", which is the exact one's, and a verifier that does not give each
        answer scores in [0, 1].
        """
        if "success" in verifiers:
            raise ValueError('the scores "success" are those that the tape knows exactly: give another name')
        texts = [self.text(place) for place in range(len(self.parent))]
        there = [place for place, text in enumerate(texts) if str(text).strip()]
        new = {}
        for name, verifier in verifiers.items():
            found = verifier.details([(texts[place].prompt, texts[place]) for place in there])
            if len(found) != len(there):
                raise ValueError(f"the verifier {name!r} gave scores of {len(found)} answers, and had {len(there)}")
            for place, scores in zip(there, found):
                if not len(scores) or not 0 <= scores[-1] <= 1:
                    raise ValueError(f"the verifier {name!r} scores {texts[place]!r} as {scores!r}, not in [0, 1]")
            new[name] = np.full(len(texts), np.nan)
            new[name][there] = [scores[-1] for scores in found]
        return replace(self, scores={**self.scores, **new})

    @classmethod
    def record(
        cls,
        lm: Any,
        problems: Sequence[Any],
        *,
        name: str = "tape",
        cutoff: float = 1e-3,
        max_tokens: int = 40,
        progress: Callable[[int], None] = lambda done: None,
    ) -> Tape:
        """Write down the law of a model's lines after each problem, at the temperature that it is sampled at.

        All beginnings of a line are followed whose probability, given the lines before, is at least ``cutoff``; the
        lines that were found share what is missing in proportion.

        Args:
            lm: a language model that offers the law of its next token, such as ``fk.tasks.reasoner()``.
            problems: each has a ``prompt``, ``steps`` and ``solved(text)``, as `Countdown` does; all prompts differ.
            name: of the tape.
            cutoff: the least probability of a line, or of its beginning, that is followed.
            max_tokens: of a line.
            progress: is told the number of problems done.

        Raises ValueError for no problem, two of one prompt, a cutoff out of (0, 1), a prompt after which no line
        reaches the cutoff, and a line that ``max_tokens`` cut and that the model would go on with.
        """
        from .taping import record

        return cls(**record(lm, problems, name, cutoff, max_tokens, progress))

    def save(self, path: str | Path) -> None:
        """Write the tape to a file; log-probabilities and scores are rounded to float16 (scores as log-odds).

        Raises ValueError for a null character in its words.
        """
        write(self, path)

    @classmethod
    def load(cls, path: str | Path) -> Tape:
        """Read a tape from a file of `save`: its law is that of the rounded probabilities, each place's summing to 1.

        Nothing is unpickled, and no more is read than 1 GiB. Raises ValueError for a file that is none, or damaged.
        """
        return cls(**read(path))
