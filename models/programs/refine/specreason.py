"""SpecReason: a small model drafts each step, and a large one writes those that are graded too low."""

from __future__ import annotations

from typing import Any

from ....ppl.program import program
from ....ppl.words import call, deterministic, sample
from ...language.model import LanguageModel
from ...language.texts.text import Text
from ..weighing import Reward
from .shared import Judge, Problem, steer


@program
async def specreason(
    draft: LanguageModel,
    base: LanguageModel,
    grade: Judge,
    problem: Problem,
    *,
    threshold: float = 7.0,
    first: int = 0,
    max_tokens: int = 64,
    reward: Reward | None = None,
    **sampling: Any,
) -> Text:
    """Draft each line with one model, and have another write it anew where the draft is graded below a threshold.

    With D and B the laws of a line under the two models and a(x) whether a draft is accepted, a step has the law
    M(x) = D(x)·a(x) + (1 − D(a))·B(x). That is not B's: speculation by the step is not exact, as it is by the token.
    A step takes a draft, a grade, and a line of the base with probability 1 − D(a); rejected drafts are counted, too.
    With costs c_d, c_v and c_b of the three it is c_b / (c_d + c_v + (1 − D(a))·c_b) times as fast as the base alone.

    Args:
        draft: the small model.
        base: the large one; its tokenizer must be equal.
        grade: from a question and the text with the draft to a grade: in the paper the base's own, a digit from 0 to 9.
        problem: has a ``prompt``, and ``steps``, the most lines.
        threshold: drafts with this grade or a higher one are kept; it is on the scale of ``grade``.
        first: so many steps are the base's without a draft.
        max_tokens: most tokens of a line.
        reward: weighs the answer at its end, and guides it on the way (a twist after each line); a probability, or a
            log-weight (a number is one).
        sampling: keywords of `Sampling`, of both models.

    Source: SpecReason: Fast and Accurate Inference-Time Compute via Speculative Reasoning (2025), arXiv:2504.07891.

    Guarantee: exact for the law that the program defines. Its threshold is part of that law, which is neither model's.

    Engines: all of whole runs and of steps (SMC, BestOfN, BeamSearch, SuffixMH, trees); without ``reward`` there is
    nothing to weigh, and ImportanceSampling is all that is needed.

    Measured: Countdown with 4 numbers, 200 held-out problems, 3 seeds, ± 1 standard error. Drafts are the same
    reasoner's at temperature 1.3, graded by the verifier's probability. At thresholds of 0.3, 0.5 and 0.7 it solves
    0.207, 0.235 and 0.246 ± 0.017 with 43, 45 and 53 tokens; the base alone 0.204 ± 0.015 with 30, and the best of two
    of its answers 0.318 ± 0.024 with 60. Speed is not shown here, as both models cost the same.

    >>> import feynkac as fk
    >>> from feynkac.models.testing import ScriptedLM
    >>> small, large = ScriptedLM(lambda before: {"a": 0.6, "b": 0.4}), ScriptedLM(lambda before: {"a": 0.3, "b": 0.7})
    >>> model = fk.programs.specreason(
    ...     small, large, lambda question, text: 9 * str(text).startswith("a"), fk.tasks.Countdown((1, 2), 3)
    ... )
    >>> posterior = fk.infer(model, fk.ImportanceSampling(2000), seed=0)
    >>> abs(posterior.expect(lambda text: str(text) == "a") - 0.72) < 0.04  # 0.6 + 0.4 · 0.3
    True
    """
    text: Text = base.prompt(problem.prompt)
    for i in range(problem.steps):
        kept = False
        if i >= first:
            drafted: Text = await sample("draft", draft.line(text, max_tokens=max_tokens, **sampling))
            kept = await call("grade", grade, problem.prompt, drafted) >= threshold
        text = drafted if kept else await sample("step", base.line(text, max_tokens=max_tokens, **sampling))
        deterministic("output", text)
        over = text.finished or i == problem.steps - 1
        await steer(reward, problem.prompt, text, over)
        if over:
            break
    return text
