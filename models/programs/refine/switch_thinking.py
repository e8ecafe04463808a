"""EconProver's switch: hard questions are thought about, easy ones are answered at once."""

from __future__ import annotations

from typing import Any

from ....ppl.program import program
from ....ppl.words import call, deterministic, sample
from ...language.model import LanguageModel
from ...language.texts.text import Text
from ..weighing import Reward
from .shared import Judge, steer


@program
async def switch_thinking(
    lm: LanguageModel,
    question: str,
    gate: Judge,
    *,
    above: float = 0.5,
    short: str = "",
    long: str = "<think>\n",
    short_tokens: int = 256,
    long_tokens: int = 2048,
    reward: Reward | None = None,
    **sampling: Any,
) -> Text:
    """Answer at once, or after a thought where a gate says that the question needs one.

    What it costs is counted in tokens, not in answers: a thought is many times as long as an answer.

    Args:
        lm: the language model.
        question: the prompt.
        gate: from the question to the probability (or True) that it needs a thought: a classifier, or whether short
            answers agree.
        above: thinks at this or more.
        short: how an answer begins that comes at once.
        long: how one begins that is thought about.
        short_tokens: most tokens of the one.
        long_tokens: most tokens of the other.
        reward: weighs the answer; a probability, or a log-weight (a number is one).
        sampling: keywords of `Sampling`.

    Source: EconProver: Towards More Economical Test-Time Scaling for Automated Theorem Proving (2025),
    arXiv:2509.12603.

    Guarantee: exact for the law that the program defines, of which the gate is a part. The paper trains the switch into
    the model; the gate is ours: not a replication.

    Engines: ImportanceSampling, BestOfN, SelfConsistency, SuffixMH; an answer is one step, so that particle filters and
    trees have nothing to steer by.

    Not shown here: no model that ships thinks in two ways.

    >>> import feynkac as fk
    >>> from feynkac.models.testing import ScriptedLM
    >>> lm = ScriptedLM(lambda before: "hard</think>42")
    >>> model = fk.programs.switch_thinking(lm, "Prove it.", lambda question: "Prove" in question, long="")
    >>> str(fk.simulate(model, seed=0).value)
    'hard</think>42'
    """
    thinks = await call("gate", gate, question) >= above
    begin = long if thinks else short
    text: Text = lm.prompt(question).append(begin) if begin else lm.prompt(question)
    text = await sample("answer", lm.complete(text, max_tokens=long_tokens if thinks else short_tokens, **sampling))
    deterministic("output", text)
    await steer(reward, question, text, True)
    return text
