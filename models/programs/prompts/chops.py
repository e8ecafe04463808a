"""CHOPs: a judge reads all candidates at once, writes a checklist, and chooses one."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, TypeVar

from ....ppl.program import program
from ....ppl.words import deterministic, factor, sample
from ...language.host import Host
from ..asking import ask, numbered

T = TypeVar("T")

PROMPT = (
    "{question}\n\nCandidate answers:\n{candidates}\n\nWrite a checklist of what a good answer has, compare the "
    "candidates by it, and end with the number of the best one as [number].\n"
)


@program
async def chops(
    judge: Host,
    question: str,
    candidates: Sequence[T],
    *,
    prompt: str = PROMPT,
    choice: str = r"\[(\d+)\]",
    max_tokens: int = 512,
    **sampling: Any,
) -> T:
    """Choose one of some candidates by one call of a judge, which writes its checklist first.

    The judge sees all candidates side by side, so that it needs one pass and no scale. It chooses by the last number
    that its verdict names.

    Feynman–Kac mapping: M draws the verdict, with its checklist; G is 0 for a verdict that names no candidate, else 1.
    So the law is that of the verdicts that can be read, and the evidence is how often that is so. It costs one text of
    the judge.

    Args:
        judge: a language model.
        question: what the candidates answer.
        candidates: texts, strings, or whatever ``str`` shows; the first is number 1.
        prompt: a template of ``{question}`` and ``{candidates}``.
        choice: a regular expression whose first group is the number.
        max_tokens: of the verdict.
        sampling: keywords of `Sampling`; ``temperature=0`` makes the judge decide once and for all.

    Returns the candidate. Raises ValueError where there are none.

    Source: When Life Gives You Samples (2025), arXiv:2506.20544. Its prompts are ours: not a replication.
    Guarantee: exact for the law that the program defines: the judge's, among verdicts that can be read.
    Engines: all; with one step, SMC is importance sampling.
    Not shown here: its gain; no judge of several languages comes with the library.

    >>> import feynkac as fk
    >>> from feynkac.models.testing import ScriptedLM
    >>> judge = ScriptedLM(lambda before: "It should name a place, as [2] does, not [1]. So [2]")
    >>> fk.simulate(chops(judge, "Where?", ["Yes.", "The sea."]), seed=0).value
    'The sea.'

    With the pool of `hedged`, as one program:

    >>> lm = ScriptedLM(lambda before: {"sea": 0.6, "hill": 0.4})
    >>> @fk.program
    ... async def selected(lm, judge, question):
    ...     pool = await fk.programs.hedged(lm, lm.prompt(question), n=3)
    ...     return await fk.programs.chops(judge, question, pool)
    >>> posterior = fk.infer(selected(lm, judge, "Where?"), fk.ImportanceSampling(1000), seed=0)
    >>> round(posterior.expect(lambda text: str(text) == "hill"), 1)
    0.4
    """
    if not candidates:
        raise ValueError("chops needs a candidate at least")
    asked = prompt.format(question=question, candidates=numbered(tuple(map(str, candidates))))
    verdict = await sample("verdict", judge.complete(ask(judge, asked), max_tokens=max_tokens, **sampling))
    named = [int(match.group(1)) for match in re.finditer(choice, str(verdict))]
    readable = bool(named) and 1 <= named[-1] <= len(candidates)
    await factor("readable", 0.0 if readable else -math.inf)  # no particle goes on from −∞
    return deterministic("output", candidates[named[-1] - 1])  # type: ignore[no-any-return]
