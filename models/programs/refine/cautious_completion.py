"""Completion that stops where it would be of no use, and leaves easy tokens to a cheaper model."""

from __future__ import annotations

from typing import Any

from ....ppl.program import program
from ....ppl.words import call, deterministic, sample
from ...language.model import LanguageModel
from ...language.texts.text import Text
from ..weighing import Reward
from .shared import Judge, steer


@program
async def cautious_completion(
    lm: LanguageModel,
    text: Text,
    *,
    stop_below: float,
    early: LanguageModel | None = None,
    exit_above: float = 0.9,
    sure: Judge | None = None,
    max_tokens: int = 64,
    reward: Reward | None = None,
    **sampling: Any,
) -> Text:
    """Complete a text a token at a time: before each, stop, take it from a few layers, or from all of them.

    The few layers go first, where there are some: a token of theirs is taken if their largest probability is at least
    ``exit_above``. Else the whole model is looked at, and the completion stops where its largest probability is below
    ``stop_below``. Reading the law costs nothing beyond the pass that draws the token.

    Args:
        lm: the language model.
        text: what to complete.
        stop_below: stops at less than this.
        early: the first layers as a model of their own: ``lm.variant(layers=20)``, made once, outside of programs.
        exit_above: takes their token at this or more.
        sure: a classifier of your own, from a text to the number that is compared with ``stop_below``, in place of the
            largest probability.
        max_tokens: most tokens.
        reward: weighs the completion, given the prompt and the text; a probability, or a log-weight (a number is one).
        sampling: keywords of `Sampling`.

    Source: When Neural Code Completion Models Size up the Situation: Attaining Cheaper and Faster Completion through
    Dynamic Model Inference (2024), arXiv:2401.09964.

    Guarantee: exact for the law that the program defines, of which stops and exits are a part. The paper trains a
    classifier; the largest probability is ours: not a replication.

    Engines: ImportanceSampling, BestOfN, SuffixMH; no weights on the way, so that SMC, BeamSearch and trees have
    nothing to steer by.

    Not shown here: whether what is kept is right more often needs a model of code; none ships.

    >>> import feynkac as fk
    >>> from feynkac.models.testing import ScriptedLM
    >>> lm = ScriptedLM(lambda before: {"return x": 0.5, "return y": 0.5})
    >>> model = fk.programs.cautious_completion(lm, lm.prompt("def f(x): "), stop_below=0.6)
    >>> str(fk.simulate(model, seed=0).value)
    'return '
    """
    for _ in range(max_tokens):
        chosen = lm
        if early is not None and await call("early", early.read(text, "top", **sampling)) >= exit_above:
            chosen = early
        else:
            looked = call("sure", sure, text) if sure is not None else call("sure", lm.read(text, "top", **sampling))
            if await looked < stop_below:
                break
        text = await sample("token", chosen.next_token(text, **sampling))
        deterministic("output", text)
        if text.finished:
            break
    await steer(reward, text.prompt, text, True)
    return text
