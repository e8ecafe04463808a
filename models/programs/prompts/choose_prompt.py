"""A prompt chosen for each question: by a score beforehand, or by what its answers weigh."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ....ppl.distributions.dist import Categorical
from ....ppl.program import program
from ....ppl.words import call, deterministic, gather, sample
from ...language.host import Host
from ...language.texts.text import Text
from ..asking import ask
from ..weighing import Reward, weigh


@program
async def choose_prompt(
    lm: Host,
    question: str,
    prompts: Sequence[str],
    *,
    score: Callable[[str], Any] | None = None,
    reward: Reward | None = None,
    max_tokens: int = 256,
    **sampling: Any,
) -> Text:
    """Answer a question by one of some prompts, chosen for this question.

    With a score, the prompt that it likes best is taken before anything is written. Without one, the prompt is a latent
    site "prompt", uniform over the prompts: the weights of the answers choose. The share of a prompt is then its
    posterior probability, in proportion to Z_i, what the answers to it weigh on average.

    Feynman–Kac mapping: M draws the prompt and an answer to it; G is the reward of the answer. It costs an answer a
    particle, and a call of the score for each prompt.

    Args:
        lm: the language model.
        question: put in the place of ``{question}`` in each prompt.
        prompts: templates for ``str.format``, such as ``"{question}\\nThink step by step.\\n"``.
        score: of a filled prompt: a function to a number, or a reward.
        reward: weighs an answer: a probability, or a log-weight (a number is one).
        max_tokens: of the answer.
        sampling: keywords of `Sampling`.

    Returns the answer, a text whose prompt is the one that was chosen. Raises ValueError where there are no prompts.

    Source: Instance-adaptive Zero-shot Chain-of-Thought Prompting (2024), arXiv:2409.20441; adaptive prompting in
        general, Think Beyond Size (2024), arXiv:2410.08130. Their prompts and scores are not here: not a replication.
    Guarantee: exact for the law that the program defines; with a score, the choice is an argmax, and part of it.
    Engines: all; without a score and reward no engine has anything to choose by.
    Measured: SmolLM2-135M, five questions, three prompts, 24 answers each, weighed by its own verdict, P(Yes)⁴: the
        share of a prompt goes from 0.03 to 0.62 by question, and differs from its share of the draws by 0.09 on
        average, which is less than an ESS of 6 to 14 lets one see. So which prompt suits which question is not
        shown, nor what a score gains that knows the question.

    >>> import feynkac as fk
    >>> from feynkac.models.testing import ScriptedLM
    >>> lm = ScriptedLM(lambda before: {"5": 0.8, "4": 0.2} if "carefully" in before else {"5": 0.2, "4": 0.8})
    >>> prompts = "{question} =", "{question}, carefully: "
    >>> model = choose_prompt(lm, "2 + 3", prompts, reward=lambda text: 0.0 if str(text) == "5" else float("-inf"))
    >>> posterior = fk.infer(model, fk.SMC(1000), seed=0)
    >>> round(posterior.expect(lambda text: "carefully" in text.prompt), 1)
    0.8
    """
    filled = [prompt.format(question=question) for prompt in prompts]
    if not filled:
        raise ValueError("choose_prompt needs a prompt at least")
    if score is None:
        chosen = await sample("prompt", Categorical(logits=np.zeros(len(filled))))
    else:
        scores = await gather(*(call(f"score_{i}", score, prompt) for i, prompt in enumerate(filled)))
        chosen = int(np.argmax(scores))
    answer = lm.complete(ask(lm, filled[chosen]), max_tokens=max_tokens, **sampling)
    text: Text = deterministic("output", await sample("answer", answer))
    await weigh(reward, text)
    return text
