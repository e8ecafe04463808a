"""A program that solves a problem step by step, weighed by a process reward model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from ...ppl.program import program
from ...ppl.score import Score
from ...ppl.words import deterministic, factor, sample, twist

if TYPE_CHECKING:
    from ..language.texts.text import Text

Weigh = Literal["telescope", "product", "odds", "final"]


class Problem(Protocol):
    """What `solve` needs of a problem."""

    @property
    def prompt(self) -> str:
        """What the model reads."""

    @property
    def steps(self) -> int:
        """Most lines of an answer."""


@program
async def solve(
    lm: Any,
    prm: Callable[[str, Text], Score] | None,
    problem: Problem,
    weigh: Weigh = "telescope",
    *,
    prompt: Any = None,
    max_tokens: int = 40,
    temperature: float | None = None,
) -> Text:
    """Write an answer, a line a step, until the model ends it or the problem has no further step.

    With r_t the score of the first t of T steps, and p the language model, the target is, by ``weigh``:

        "telescope"   p · r_T, and resampling is guided by r_t on the way (a twist). Weights then make good for what the
                      guide has done, so that the heaviest answer is not that of the largest r_T: for one good answer
                      take ``posterior.best("reward")``
        "final"       p · r_T, with nothing on the way: the model is asked once, as best-of-N wants it
        "product"     p · Π_t r_t
        "odds"        p · Π_t r_t / (1 − r_t), the weight of Puri et al. 2025, arXiv:2502.01618

    An answer without a single step has the weight 0.

    Args:
        lm: a `TransformersLM`, such as ``reasoner()``.
        prm: gives a probability for a question and a text, such as ``verifier()``; None leaves all weights at 1.
        problem: has a ``prompt`` and ``steps``, as `Countdown` does.
        weigh: see above.
        prompt: what the language model reads instead of the problem's prompt, such as ``problem.few_shot``.
        max_tokens: most tokens of a line.
        temperature: of sampling; None is the model's own.

    >>> import feynkac as fk
    >>> lm, prm = fk.tasks.reasoner(), fk.tasks.verifier()
    >>> problem = fk.tasks.Countdown((3, 5, 7, 9), 24)
    >>> posterior = fk.infer(fk.tasks.solve(lm, prm, problem), fk.SMC(32), seed=0)
    >>> problem.solved(posterior.best("reward"))
    True
    """
    law = {} if temperature is None else {"temperature": temperature}
    _check(weigh)
    text: Text = lm.prompt(problem.prompt if prompt is None else prompt)
    for left in reversed(range(problem.steps)):
        text = await sample("step", lm.line(text, max_tokens=max_tokens, **law))
        deterministic("output", text)
        over = text.finished or left == 0
        if prm is not None and over and not str(text).strip():
            await factor("blank", -math.inf)
        elif prm is not None and str(text).strip():
            score = prm(problem.prompt, text)
            if weigh == "odds":
                await factor("prm", score.logit())
            elif weigh == "product" or over:
                await factor("prm", score.log())
            elif weigh == "telescope":
                await twist("prm", score.log())
        if over:
            break
    return text


def _check(weigh: str) -> None:
    if weigh not in get_args(Weigh):
        raise ValueError(f"weigh must be one of {', '.join(get_args(Weigh))}, not {weigh!r}")
