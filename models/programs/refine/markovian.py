"""Markovian thinking (Delethink): a long thought in chunks, each of which sees the question and a short carry."""

from __future__ import annotations

from typing import Any

from ....ppl.program import program
from ....ppl.words import deterministic, sample
from ...language.model import LanguageModel
from ...language.texts.text import Text
from ..weighing import Reward
from .shared import steer


@program
async def markovian(
    lm: LanguageModel,
    question: str,
    *,
    chunk: int = 8192,
    carry: int = 4096,
    chunks: int = 5,
    head: int = 100,
    reward: Reward | None = None,
    **sampling: Any,
) -> str:
    """Think in chunks of bounded context: each is prompted by the question, the first tokens and the last ones.

    The first chunk has C tokens, later ones C − m new ones after a prompt of the question, the first ``head`` tokens
    and the last m = carry. So I chunks hold C + (I − 1)(C − m) tokens, the context never exceeds question + head + C,
    and what attention reads grows linearly, not quadratically: 2.2 times less at these settings and 100 tokens of
    question. In exchange the carry is forwarded anew in each chunk. Tokens go over as ids, and are not cut otherwise.

    Args:
        lm: the language model; in the paper, one that was trained to think so.
        question: the prompt, a string.
        chunk: C.
        carry: m, below C.
        chunks: I, the most.
        head: how many of the first tokens stay in the prompt.
        reward: weighs the thought, given the question and the string; a probability, or a log-weight (a number is one).
        sampling: keywords of `Sampling`.

    Returns the whole thought as a string; it ends where the model ends it, or after the last chunk. Raises ValueError
    for settings out of range.

    Source: The Markovian Thinker: Architecture-Agnostic Linear Scaling of Reasoning (2025), arXiv:2510.06557.

    Guarantee: exact for the law that the program defines, which forgets; it is not the model's.

    Engines: ImportanceSampling, BestOfN, SelfConsistency, SuffixMH; no weights on the way, so that particle filters and
    trees have nothing to steer by.

    Not shown here: accuracy needs a model that thinks for thousands of tokens. What is read grows linearly in the
    chunks on a tiny model (a test), and the counts of tokens are those of the formulas.

    >>> import feynkac as fk
    >>> from feynkac.models.testing import ScriptedLM
    >>> lm = ScriptedLM(lambda before: "abcdefgh")
    >>> fk.simulate(fk.programs.markovian(lm, "q", chunk=4, carry=2, chunks=2, head=1), seed=0).value
    'abcdab'
    """
    if min(chunk, chunks, head + 1) < 1 or not 0 <= carry < chunk:
        raise ValueError(
            f"chunk and chunks are positive, head is at least 0 and carry below chunk, not chunk={chunk}, "
            f"chunks={chunks}, head={head}, carry={carry}"
        )
    asked = lm.prompt(question)
    drawn: tuple[int, ...] = ()
    for i in range(chunks):
        rest = drawn[head:]
        kept = (*drawn[:head], *rest[max(0, len(rest) - carry) :])
        text: Text = lm.prompt((*asked.prompt_tokens, *kept)) if i else asked
        text = await sample("chunk", lm.complete(text, max_tokens=chunk - carry if i else chunk, **sampling))
        drawn += text.tokens
        deterministic("output", lm.decode_response(drawn))
        if text.finished:
            break
    thought = lm.decode_response(drawn)
    await steer(reward, question, thought, True)
    return thought
