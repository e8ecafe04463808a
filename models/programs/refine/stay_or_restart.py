"""Self-evaluation: a model says of what it has written whether it would do better if it started over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ....ppl.program import program
from ....ppl.score import Score
from ....ppl.words import deterministic, factor, sample, twist
from ...language.model import LanguageModel
from ...language.texts.text import Text


@program
async def stay_or_restart(
    lm: LanguageModel,
    text: Text,
    *,
    checks: Sequence[int] = (),
    max_tokens: int = 256,
    judge: Callable[[Text], Score] | None = None,
    question: str = "\nWould you do better if you started over? (Yes or No)\n",
    yes: str = "Yes",
    no: str = "No",
    **sampling: Any,
) -> Text:
    """Write an answer, and weigh it by the probability that a fresh start would not do better.

    That is P = P(no) / (P(yes) + P(no)), of one token that the model itself would say next. It is a twist after each of
    ``checks`` tokens and a factor at the end. `AdaptiveBestOfN` draws answers until one has P ≥ threshold, and gives up
    those that are poor on their way: ``fk.AdaptiveBestOfN(16, threshold=0.95, prune={0: 0.5})`` lets the better half
    of a batch go on from the first check. If a draw is accepted with probability a, it makes (1 − (1 − a)^N) / a draws.
    Each question costs its tokens once more, as they are appended to the text that is judged, and to nothing else.

    Args:
        lm: the language model.
        text: what to go on from.
        checks: after how many tokens it is asked; increasing, and below ``max_tokens``.
        max_tokens: of the answer.
        judge: gives P otherwise, as a score (of kind probability) of the text, such as a verifier.
        question: what is asked; our words, as the paper's are not known to us.
        yes: the answer for a restart; its first token is looked at.
        no: the answer for this text.
        sampling: keywords of `Sampling`.

    Raises ValueError where the two answers begin with the same token, and for checks that do not increase.

    Source: Adaptive Inference-Time Compute: LLMs Can Predict if They Can Do Better, Even Mid-Generation (2024),
    arXiv:2410.02725.

    Guarantee: exact for the law that the program defines, p(text) · P(text). Under AdaptiveBestOfN heuristic: it stops
    at a threshold. The question is ours: not a replication.

    Engines: AdaptiveBestOfN; also SMC, BestOfN, BeamSearch, SuffixMH.

    Measured: Countdown with 4 numbers, 200 held-out problems, 3 seeds, ± 1 standard error, with the verifier as
    judge: drawing until P ≥ 0.8 solves 0.648 ± 0.028 with 162 tokens, all 16 answers 0.665 ± 0.027 with 496 (difference
    −0.017 ± 0.014). On a tape of 200 problems, 3 seeds: until P ≥ 0.95 it solves 0.682 ± 0.027 with 234 tokens, until
    0.8 0.675 ± 0.027 with 156, and all 16 answers 0.685 ± 0.028 with 480 (differences −0.003 ± 0.009, −0.010 ± 0.014):
    half of the tokens and less, at no loss seen. Self-evaluation and pruning are not shown here, for the model that
    ships does not judge itself.

    >>> import feynkac as fk
    >>> from feynkac.models.testing import ScriptedLM
    >>> def script(before):
    ...     if before.endswith("No)\\n"):  # the question
    ...         return {"No": 0.9, "Yes": 0.1} if "right" in before else {"No": 0.2, "Yes": 0.8}
    ...     return {"right": 0.4, "wrong": 0.6}
    >>> lm = ScriptedLM(script)
    >>> model = fk.programs.stay_or_restart(lm, lm.prompt("1+1="))
    >>> posterior = fk.infer(model, fk.AdaptiveBestOfN(16, threshold=0.8), seed=0)
    >>> str(posterior.best()), len(posterior) < 16
    ('right', True)
    """
    marks = [*checks, max_tokens]
    if any(b <= a for a, b in zip([0, *marks], marks)):
        raise ValueError(f"checks must increase from 1 to below max_tokens={max_tokens}, not {list(checks)}")
    start = len(text.tokens)
    for mark in marks:
        left = mark - (len(text.tokens) - start)
        text = await sample("text", lm.complete(text, max_tokens=left, **sampling))
        deterministic("output", text)
        over = text.finished or mark == max_tokens
        stay = judge(text).log() if judge is not None else log_stay(lm, text, question, yes, no)
        await (factor if over else twist)("stay", stay)
        if over:
            break
    return text


def log_stay(lm: LanguageModel, text: Text, question: str, yes: str, no: str) -> Score:
    """Return log P(no) / (P(yes) + P(no)) of the next token after a text and a question, as a log-weight."""
    asked = text.append(question)
    mask = np.zeros((2, lm.vocab_size), bool)
    for row, answer in zip(mask, (yes, no)):
        row[lm.encode(answer, asked)[0]] = True
    if (mask[0] & mask[1]).any():
        raise ValueError(f"the answers {yes!r} and {no!r} begin with the same token: nothing tells them apart")
    return lm.log_mass(asked, mask[1]) - lm.log_mass(asked, mask.any(0))
