"""Unlearning by agents: an answer is audited for what is to be forgotten, and written again without it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ....ppl.program import program
from ....ppl.words import call, deterministic, gather, sample
from ...language.host import Host
from ..asking import ask, numbered


@program
async def unlearn(
    lm: Host,
    audit: Callable[[str, str], Any],
    critic: Callable[[str, str], Any],
    question: str,
    targets: Sequence[str],
    *,
    top: int = 2,
    erase: str = "{answer}\nWrite this again so that nothing of {target} is in it.",
    compose: str | None = None,
    **law: Any,
) -> str:
    """Answer a question, and for each target that the answer gives away write ``top`` variants without it, and keep
    one, or what they are composed to.

    The critic chooses among the variants that are clean of this target, or among all where none is. The composer
    makes one answer of the clean ones, best first, where there are two or more; one that gives the target away is not
    taken. Targets are gone over once, in their order: a variant that brings an earlier one back is not seen. If an
    answer leaks each of k targets with probability l and a variant is clean with e, then with one variant each the
    answer is clean with probability (1 − l·(1 − e))^k. It costs an answer, an audit for each target, and for a leak
    ``top`` variants and what is composed of them, with an audit each.

    Args:
        lm: writes answers and variants.
        audit: from an answer and a target to whether it gives it away: a string check, or a judge's probability (≥ ½).
        critic: from question and variant to a number, the larger the better.
        question: what is asked.
        targets: what is to be forgotten.
        top: how many variants.
        erase: the prompt of a variant.
        compose: the prompt of the composer, such as ``"{question}\\n{answers}\\nMake one of these."``;
            None keeps the best variant.
        law: keywords of `Sampling`, and ``max_tokens``.

    Raises ValueError where there is no variant.

    Source: Agentic LLM Unlearning (2025), arXiv:2502.00406.
    Guarantee: exact for the law that the program defines; nothing is promised of what variants hide in other words.
        Its prompt is ours: not a replication.
    Engines: ImportanceSampling, SMC, BestOfN, BeamSearch, SuffixMH; a run is one step.
    Not shown here: no model that rewrites reliably comes with the library.

    >>> import feynkac as fk
    >>> from feynkac.models.testing import ScriptedLM
    >>> lm = ScriptedLM(lambda before: "He is a wizard." if "again" in before else "Harry is a wizard.")
    >>> model = fk.programs.unlearn(lm, lambda answer, target: target in answer, lambda q, a: len(a), "Who?", ["Harry"])
    >>> fk.simulate(model, seed=0).value
    'He is a wizard.'
    """
    if top < 1:
        raise ValueError(f"there must be a variant at least, not {top}")
    answer = str(await sample("answer", lm.complete(ask(lm, question), **law)))
    for target in targets:
        if float(await call("audit", audit, answer, target)) < 0.5:
            continue
        start = ask(lm, erase.format(answer=answer, target=target))
        found = await gather(*(sample("variant", lm.complete(start, **law)) for _ in range(top)), name="variants")
        variants = list(map(str, found))
        worth = await gather(*(call("critic", critic, question, text) for text in variants), name="critics")
        leaks = await gather(*(call("check", audit, text, target) for text in variants), name="checks")
        order = sorted(range(top), key=lambda i: (leaks[i] < 0.5, worth[i]), reverse=True)
        clean = tuple(variants[i] for i in order if leaks[i] < 0.5)
        answer = variants[order[0]]
        if compose is not None and len(clean) > 1:
            start = ask(lm, compose.format(question=question, answers=numbered(clean)))
            made = str(await sample("composed", lm.complete(start, **law)))
            answer = answer if float(await call("last", audit, made, target)) >= 0.5 else made
    deterministic("output", answer)
    return answer
