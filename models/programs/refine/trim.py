"""TrimR: a thought ends once several of its parts in a row have come to the same answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ....ppl.program import program
from ....ppl.words import call, deterministic, sample
from ...language.model import LanguageModel
from ...language.texts.text import Text
from ..weighing import Reward
from .early_exit import CUES
from .shared import Judge, steer


@program
async def trim(
    lm: LanguageModel,
    verify: Judge,
    text: Text,
    *,
    stable: int = 3,
    cues: Sequence[str] = CUES,
    end: str = "</think>\n\n",
    max_tokens: int = 1024,
    answer_tokens: int = 64,
    reward: Reward | None = None,
    **sampling: Any,
) -> Text:
    """Cut a thought into segments at its cues, and end it when ``stable`` answers in a row are the same.

    Segments without an answer are skipped, another answer starts to count anew. After ``max_tokens`` the thought is
    ended in any case (it thinks too much to come to an end by itself). A verdict a segment is what it costs; what it
    saves are the tokens after the exit.

    Args:
        lm: the language model.
        verify: from a segment (a string) to the answer that it holds, or None; a small model in the paper, which is
            asked whether there is one and whether it equals the last.
        text: what to go on from.
        stable: how many equal answers end the thought.
        cues: strings that a segment ends with.
        end: what ends the thought.
        max_tokens: of the thought.
        answer_tokens: of the answer.
        reward: weighs what is returned, given prompt and text; a probability, or a log-weight (a number is one).
        sampling: keywords of `Sampling`.

    Returns the text with its answer; where the model ended the text itself, as it is. Raises ValueError for ``stable``
    below 1.

    Source: TrimR: Verifier-based Training-Free Thinking Compression for Efficient Test-Time Scaling (2025),
    arXiv:2505.17155.

    Guarantee: exact for the law that the program defines, of which the early end is a part.

    Engines: ImportanceSampling, BestOfN, SelfConsistency; a thought is one step, so that particle filters and trees
    have nothing to steer by, and SMC and BeamSearch are importance sampling.

    Not shown here: no model that ships thinks in words. On a written trace it stops where the rule says (a test).

    >>> import feynkac as fk
    >>> from feynkac.models.testing import ScriptedLM
    >>> lm = ScriptedLM(lambda before: "!" if "think" in before else "1 wait 2 wait or wait 2 wait 2 wait 3 wait 3")
    >>> model = fk.programs.trim(
    ...     lm, lambda part: next(filter(str.isdigit, part), None), lm.prompt("1+1?"), cues=["wait"]
    ... )
    >>> str(fk.simulate(model, seed=0).value).partition("</think>")[0]
    '1 wait 2 wait or wait 2 wait 2 wait'
    """
    if stable < 1:
        raise ValueError(f"stable is 1 or more, not {stable}")
    start, count, last = len(text.tokens), 0, None
    while (left := max_tokens - (len(text.tokens) - start)) > 0:
        text = await sample("thought", lm.until(text, cues, max_tokens=left, include_stop=True, **sampling))
        deterministic("output", text)
        if text.finished or text.shown is None:
            break
        answer = await call("verify", verify, text.steps[-1])
        if answer is not None:
            count, last = count + 1 if answer == last else 1, answer
        if count >= stable:
            break
    if not text.finished:
        text = await sample("answer", lm.complete(text.append(end), max_tokens=answer_tokens, **sampling))
    await steer(reward, text.prompt, text, True)
    return text
