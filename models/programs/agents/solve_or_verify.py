"""Generative verification: solutions, and for each of them several written verdicts."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ....ppl.program import program
from ....ppl.words import deterministic, gather, sample
from ...language.host import Host
from ...language.texts.text import Text
from ..asking import ask


def last_word(said: str) -> bool:
    """Return whether the last yes or no of a verdict is a yes.

    >>> last_word("Yes, they are added. But the sum is wrong: No.")
    False
    """
    return re.findall(r"\b(yes|no)\b", said.lower())[-1:] == ["yes"]


@program
async def solve_or_verify(
    lm: Host,
    judge: Host,
    question: str,
    *,
    solutions: int = 4,
    verifications: int = 2,
    yes: Callable[[str], bool] = last_word,
    prompt: str = "{question}\nAnswer: {answer}\nCheck it step by step, then say Yes or No.",
    max_tokens: int = 256,
    **law: Any,
) -> Text:
    """Draw S solutions and V verdicts on each; the one of the largest share of good verdicts is the answer.

    The cost is S(1 + λV) solutions; `fk.scaling.verify_or_vote` says in closed form which S and V are best for it, and
    when a plain vote (V = 0, `SelfConsistency`) is better.

    Args:
        lm: writes solutions.
        judge: writes verdicts; it may be the same model.
        question: what is asked.
        solutions: S.
        verifications: V, 1 or more.
        yes: whether a verdict is good: by default, whether its last yes or no is a yes.
        prompt: of a verdict.
        max_tokens: of a draw.
        law: keywords of `Sampling`.

    Source: When To Solve, When To Verify (2025), arXiv:2504.01005; Generative Verifiers (2024), arXiv:2408.15240.
    Guarantee: exact for the law that the program defines; the argmax (the first of the best) is part of it. Its
        prompt is ours: not a replication.
    Engines: ImportanceSampling, SMC, BestOfN, BeamSearch, SuffixMH; a run is one step.
    Not shown here: no generative verifier comes with the library.

    >>> import feynkac as fk
    >>> from feynkac.models.testing import ScriptedLM
    >>> lm = ScriptedLM(lambda before: {"4": 0.5, "5": 0.5})
    >>> judge = ScriptedLM(lambda before: "Yes" if "Answer: 4" in before else "No")
    >>> posterior = fk.infer(fk.programs.solve_or_verify(lm, judge, "2+2?"), fk.ImportanceSampling(200), seed=0)
    >>> posterior.expect(lambda text: str(text) == "4") > 0.85  # 1 − 2⁻⁴
    True
    """
    if solutions < 1 or verifications < 1:
        raise ValueError(f"there must be a solution and a verdict, not {solutions} and {verifications}")
    start = ask(lm, question)

    async def tried() -> tuple[float, Text]:
        text: Text = await sample("solution", lm.complete(start, max_tokens=max_tokens, **law))
        asked = ask(judge, prompt.format(question=question, answer=text))
        kernels = [judge.complete(asked, max_tokens=max_tokens, **law) for _ in range(verifications)]
        said = await gather(*(sample("verdict", kernel) for kernel in kernels), name="verdicts")
        return sum(yes(str(one)) for one in said) / verifications, text

    found: tuple[tuple[float, Text], ...] = await gather(*(tried() for _ in range(solutions)), name="solutions")
    share, best = max(found, key=lambda one: one[0])
    deterministic("share", share)
    deterministic("output", best)
    return best
