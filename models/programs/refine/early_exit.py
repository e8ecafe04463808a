"""LYNX: at words such as "wait" a probe says whether the thought may end, by a conformal threshold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ....ppl.program import program
from ....ppl.words import call, deterministic, sample
from ...language.model import LanguageModel
from ...language.texts.text import Text
from ..weighing import Reward
from .shared import Judge, steer

CUES = ("hmm", "Hmm", "wait", "Wait", "alternatively", "Alternatively")


@program
async def early_exit(
    lm: LanguageModel,
    probe: Judge,
    text: Text,
    *,
    threshold: float | tuple[float, float],
    cues: Sequence[str] = CUES,
    end: str = "</think>\n\nFinal Answer: ",
    max_tokens: int = 1024,
    answer_tokens: int = 64,
    reward: Reward | None = None,
    **sampling: Any,
) -> Text:
    """Let a model think, and end its thought at the first cue at which a probe is sure enough.

    With p what the probe says at a cue, the conformal set holds "ready" if 1 − p ≤ q₁ and "not yet" if p ≤ q₀. The
    thought ends where the set is "ready" alone: then ``end`` is appended, and a greedy answer of a few tokens. A
    threshold from `fk.scaling.conformal` of exchangeable scores has marginal coverage of at least 1 − δ; one of ∞ never
    ends a thought. The probe is asked once a cue; it is free where it reads what the next step needs in any case
    (``lm.read(text, "hidden")``).

    Args:
        lm: the language model.
        probe: from the text up to the cue to the probability that an answer now would be right.
        text: what to go on from.
        threshold: q, or (q₀, q₁) of the classes "not yet" and "ready".
        cues: strings at which the probe is asked.
        end: what ends the thought.
        max_tokens: of the thought, if no exit comes.
        answer_tokens: of the answer after an exit; 0: the text is returned as it is at the cue.
        reward: weighs what is returned, given prompt and text; a probability, or a log-weight (a number is one).
        sampling: keywords of `Sampling`, of the thought.

    Source: LYNX: Learning Dynamic Exits for Confidence-Controlled Reasoning (2025), arXiv:2512.05325.

    Guarantee: exact for the law that the program defines, of which the exits are a part. The coverage is that of the
    probe's scores, at calibration; no probe is trained here.

    Engines: ImportanceSampling, BestOfN, SelfConsistency; a thought is one step, so that particle filters and trees
    have nothing to steer by, and SMC and BeamSearch are importance sampling.

    Measured: Countdown with 4 numbers, 100 held-out problems, one seed, ± 1 standard error, best of 8, where answers
    are ended that the verifier scores 0.1 or less: 0.660 ± 0.048 solved with 204 tokens, without exits 0.650 ±
    0.048 with 248 (difference +0.010 ± 0.010). Exits of finished thoughts by hidden states are not shown here.

    >>> import feynkac as fk
    >>> from feynkac.models.testing import ScriptedLM
    >>> lm = ScriptedLM(lambda before: "4" if before.endswith(": ") else "2+2 is 4. wait, is it? wait, yes.")
    >>> model = fk.programs.early_exit(
    ...     lm, lambda text: 0.95 if "is it" in str(text) else 0.5, lm.prompt("2+2?"), threshold=0.1
    ... )
    >>> str(fk.simulate(model, seed=0).value).partition("</think>")[0]
    '2+2 is 4. wait, is it? wait'
    """
    unsure, ready = threshold if isinstance(threshold, tuple) else (threshold, threshold)
    start = len(text.tokens)
    while (left := max_tokens - (len(text.tokens) - start)) > 0:
        text = await sample("thought", lm.until(text, cues, max_tokens=left, include_stop=True, **sampling))
        deterministic("output", text)
        if text.finished or text.shown is None:
            break
        p = await call("probe", probe, text)
        if 1.0 - p <= ready and not p <= unsure:
            if answer_tokens:
                text = await sample("answer", lm.complete(text.append(end), max_tokens=answer_tokens, temperature=0.0))
            break
    await steer(reward, text.prompt, text, True)
    return text
