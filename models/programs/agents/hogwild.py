"""Hogwild inference: workers write side by side, and each sees the others' tokens as they come."""

from __future__ import annotations

from collections.abc import Sequence

from ....ppl.program import program
from ....ppl.words import deterministic, sample
from ...language.model import LanguageModel
from ...language.stepping.together import Together
from ...language.texts.text import Text
from ..asking import ask


@program
async def hogwild(
    lm: LanguageModel,
    task: str,
    *,
    workers: Sequence[str] = ("Alice: ", "Bob: "),
    ticks: int = 256,
    check_every: int = 64,
    check: str = "\nAm I doing redundant work (yes/no)? ",
    finish: str = "\nThe final answer: ",
    answer_tokens: int = 32,
    **sampling: float | int | None,
) -> Text:
    """Let workers write on a task together, tell each now and then to look at the others, and ask the first to answer.

    A tick draws a token of each worker, from what all had written before it; keys and values are shared, so that W
    workers cost W tokens a tick and one call of the model. After every ``check_every`` ticks each worker's text gets
    the question ``check``, which it answers as it goes on. In the end the first worker's text gets ``finish`` and goes
    on alone, with what the others wrote in view.

    Args:
        lm: a model that runs here, with rotary embeddings (see `LanguageModel.together`).
        task: what is asked of all.
        workers: what opens the text of each.
        ticks: how many in all.
        check_every: ticks between checks.
        check: what each is asked then.
        finish: what makes the first one answer.
        answer_tokens: ticks of the answer; the others write on meanwhile.
        sampling: keywords of `Sampling`.

    Returns the text of the first worker.

    Source: Hogwild! Inference (2025), arXiv:2504.06261.
    Guarantee: exact for the law that the program defines: that of the shared cache, which is not the law after any
        prompt. Its prompts are ours: not a replication.
    Engines: ImportanceSampling, SMC, BestOfN, BeamSearch, SuffixMH.
    Not shown here: models of 1.7 billion parameters and more are needed to divide work; mechanics only.

    >>> import feynkac as fk
    >>> from feynkac.models.testing import tiny_lm
    >>> model = fk.programs.hogwild(tiny_lm(), "Count to ten.", ticks=8, check_every=4, answer_tokens=2)
    >>> run = fk.simulate(model, seed=0)
    >>> "The final answer: " in str(run.value)
    True
    """
    if not workers or ticks < 1 or check_every < 1:
        raise ValueError("there must be a worker, a tick, and a tick between checks, at least")
    prompt = ask(lm, task)
    texts: Together | tuple[Text, ...] = tuple(prompt.append(opening) for opening in workers)
    left = ticks
    while left > 0:
        together: Together = await sample("ticks", lm.together(texts, min(check_every, left), **sampling))
        left -= check_every
        if together.finished:
            deterministic("output", together[0])
            return together[0]  # type: ignore[no-any-return]
        if left > 0:
            for i, text in enumerate(together.texts):
                together = together if text.finished else together.append(i, check)
        texts = together
    if not texts[0].finished:
        texts = await sample("answer", lm.together(texts.append(0, finish), answer_tokens, **sampling))  # type: ignore[union-attr]
    deterministic("output", texts[0])
    return texts[0]
