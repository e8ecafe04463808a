"""DeepSeek-GRM: a generative reward model scores responses several times over, and the scores are added up."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from ....ppl.distributions.dist import Permutation
from ....ppl.program import program
from ....ppl.words import call, deterministic, gather, sample
from ...language.host import Host
from ..asking import ask, numbered


def scores_of(said: str, n: int, least: int = 1, most: int = 10) -> tuple[int, ...]:
    """Return the n scores that a judgement ends with, rounded and clipped; the least for those that it does not say.

    >>> scores_of("Both are fine. Scores: 8.6, 12/10", 2)
    (9, 10)
    """
    numbers = [round(float(number)) for number in re.findall(r"(-?\d+(?:\.\d+)?)(?:/\d+)?", said)][-n:]
    return tuple(min(max(x, least), most) for x in [*numbers, *[least] * (n - len(numbers))])


@program
async def grm_vote(
    judge: Host,
    question: str,
    responses: Sequence[str],
    *,
    k: int = 8,
    keep: int | None = None,
    meta: Callable[[str, str], Any] | None = None,
    prompt: str = "{question}\n{responses}\nJudge them, then give each a score from 1 to 10, in order. Scores:",
    **law: Any,
) -> int:
    """Score responses k times, each time in another order, add the scores up, and return the number of the best.

    With ``meta``, a model of which judgements are sound, only the ``keep`` judgements of the largest meta-score count
    (half of them by default). The orders are sites, uniform ones, since judges prefer the first. Ties go to the earlier
    response. It costs k judgements of all responses together.

    Args:
        judge: writes judgements.
        question: what was asked.
        responses: two or more answers.
        k: how many judgements.
        keep: how many of them count, where there is ``meta``; None: half.
        meta: from prompt and judgement to a number or a score.
        prompt: of a judgement.
        law: keywords of `Sampling`, and ``max_tokens``.

    Returns the index of the best response; the sums are recorded as "sums".

    Raises ValueError where there is nothing to choose from or by, and where ``keep`` comes without ``meta``.

    Source: Inference-Time Scaling for Generalist Reward Modeling (2025), arXiv:2504.02495.
    Guarantee: exact for the law that the program defines; the sum and its argmax are part of it. Its prompt is ours:
        not a replication.
    Engines: ImportanceSampling, SelfConsistency over the index, SMC, BestOfN; a run is one step.
    Not shown here: no generative judge comes with the library.

    >>> import feynkac as fk
    >>> from feynkac.models.testing import ScriptedLM
    >>> judge = ScriptedLM(lambda before: "9 1" if "[1] right" in before else "2 8")
    >>> fk.simulate(fk.programs.grm_vote(judge, "?", ["wrong", "right"], k=4), seed=0).value
    1
    """
    n = len(responses)
    if n < 2 or k < 1:
        raise ValueError(f"there must be two responses and a judgement at least, not {n} and {k}")
    if keep is not None and (meta is None or not 1 <= keep <= k):
        raise ValueError(f"keep={keep} of k={k} judgements: it needs a meta, and must be from 1 to k")

    async def judgement() -> tuple[float, tuple[int, ...]]:
        order = await sample("order", Permutation(n))
        asked = prompt.format(question=question, responses=numbered(tuple(responses[i] for i in order)))
        said = str(await sample("judgement", judge.complete(ask(judge, asked), **law)))
        sound = 0.0 if meta is None else float(await call("meta", meta, asked, said))
        scores = dict(zip(order, scores_of(said, n)))
        return sound, tuple(scores[i] for i in range(n))

    found = await gather(*(judgement() for _ in range(k)), name="judgements")
    if meta is not None:  # the largest meta-scores first, the earlier of equal ones
        found = tuple(sorted(found, key=lambda one: -one[0])[: max(1, k // 2) if keep is None else keep])
    sums = tuple(sum(scores[i] for _, scores in found) for i in range(n))
    deterministic("sums", sums)
    deterministic("output", max(range(n), key=lambda i: sums[i]))
    return max(range(n), key=lambda i: sums[i])
