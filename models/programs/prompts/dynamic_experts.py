"""Dynamic Experts Search: how many experts a token goes through is searched over, beside what is said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ....ppl.distributions.dist import Categorical
from ....ppl.program import program
from ....ppl.values.reals import whole_number
from ....ppl.words import deterministic, factor, sample, twist
from ...language.host import Host
from ...language.texts.text import Text
from ..weighing import Reward, log_weight, weigh


@program
async def dynamic_experts(
    lms: Mapping[int, Host],
    prm: Reward | None,
    problem: str,
    *,
    steps: int = 10,
    reward: Reward | None = None,
    stop: str = "\n",
    max_tokens: int = 256,
    **sampling: Any,
) -> Text:
    """Write an answer step by step with one of some variants of a model, drawn once and kept.

    The variants differ in how many experts a token goes through, ``{k: lm.variant(experts=k) for k in range(4, 12)}``.
    Which one is a latent site "experts", uniform, and children inherit it: so a search prunes both answers and numbers
    of experts. What else `variant` does (layers, adapters) can be searched over likewise.

    Feynman–Kac mapping: the state is (k, text). M draws k, then a step at a time from the model of k. The process
    reward is a twist after each step, which guides, and a factor at the end, which weighs: so the law is the models'
    times the probability that the process reward gives to the whole answer. It costs what its steps cost with k
    experts each.

    Args:
        lms: the models by their number of experts.
        prm: a process reward of problem and text, as ``reward``, of weights above 0; None for no guide.
        problem: the prompt.
        steps: most steps; the last goes on to the end of the text.
        reward: weighs the answer further: a probability, or a log-weight (a number is one).
        stop: ends a step.
        max_tokens: of a step.
        sampling: keywords of `Sampling`.

    Returns the answer; its k is ``trace["experts"].value``. Raises ValueError for no models, and steps below 1.

    Source: Dynamic Experts Search (2025), arXiv:2509.22572.
    Guarantee: exact for the law that the program defines.
    Engines: BeamSearch is the paper's (it starts with as many of each k, which are drawn here); all others run.
    Not shown here: the gain, which needs a trained mixture of experts; the mechanics run on a random one.

    >>> import feynkac as fk
    >>> from feynkac.models.testing import ScriptedLM
    >>> lms = {4: ScriptedLM(lambda before: "vague"), 6: ScriptedLM(lambda before: {"sharp": 0.5, "vague": 0.5})}
    >>> prm = fk.reward(lambda problem, text: 0.9 if str(text) == "sharp" else 0.1, kind="probability")
    >>> best = fk.infer(dynamic_experts(lms, prm, "Q: "), fk.BeamSearch(4, width=4), seed=0)
    >>> str(best.best())
    'sharp'
    """
    if not lms:
        raise ValueError("dynamic_experts needs a model at least")
    whole_number("steps", steps)
    k = await sample("experts", Categorical(logits=np.zeros(len(lms)), values=tuple(lms)))
    law = {"max_tokens": max_tokens, **sampling}
    text: Text = lms[k].prompt(problem)
    for left in reversed(range(steps)):
        step = lms[k].until(text, stop, **law) if left else lms[k].complete(text, **law)
        text = deterministic("output", await sample("step", step))
        if text.finished:
            break
        if prm is not None and left:
            await twist("prm", log_weight(prm(problem, text)))
    if prm is not None:
        await factor("prm", log_weight(prm(problem, text)))
    await weigh(reward, text)
    return text
