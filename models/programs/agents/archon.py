"""Archon: layers of calls to language models, each of which sees what the one before it left."""

from __future__ import annotations

from collections.abc import Sequence

from ....ppl.program import program
from ....ppl.words import deterministic
from ..weighing import Reward, weigh
from .layers import Draft, Layer

PARTS = ("layers.py",)
"""What the card counts as lines of Archon, too."""


@program
async def archon(layers: Sequence[Layer], question: str, *, reward: Reward | None = None) -> str:
    """Answer a question by layers of generators, rankers, critics, fusers, verifiers and unit tests.

    Each layer is a function of the question and of what the layer before left; the first candidate that the last one
    leaves is the answer. Calls within a layer share batches. What the layers choose (a rank, a verdict) is part of the
    law; with ``reward`` the answer weighs, and engines choose among whole runs.

    Args:
        layers: made by `generate`, `rank`, `critique`, `fuse`, `verify` and `unit_test` of ``agents.layers``.
        question: what is asked.
        reward: weighs the answer, given the question and it: a probability, or a log-weight (a number is one).

    Raises ValueError where a layer leaves no candidate, as where the first one does not generate.

    Source: Archon: An Architecture Search Framework for Inference-Time Techniques (2024), arXiv:2409.15254.
    Guarantee: exact for the law that the program defines; its prompts are ours: not a replication.
    Engines: ImportanceSampling, SMC, BestOfN, BeamSearch, SuffixMH; a run is one step, so that trees have nowhere to
        branch.
    Measured: a search over its layers on Countdown with 4 numbers, on a tape of the reasoner: generate n answers, then
        up to three rounds that keep the best by the verifier and write new ones from their first lines; 25 trials on
        100 problems at 500 tokens or less, the best on 100 others, 3 seeds, ± 1 standard error. Two searches by
        `fk.tuning.bayes` and one of two at random chose no round, which is best-of-13 or 14 (0.673 ± 0.039 solved). The
        other chose a round, and solves 0.620 ± 0.038 where best-of-12 at as many tokens has 0.667 ± 0.039 (difference
        −0.047 ± 0.020: it loses). Gains by large models that differ are not shown here.

    >>> import feynkac as fk
    >>> from feynkac.models.testing import ScriptedLM
    >>> from feynkac.models.programs.agents.layers import generate, rank
    >>> lm = ScriptedLM(lambda before: "[2] [1]" if "Rank" in before else {"four": 0.5, "five": 0.5})
    >>> model = fk.programs.archon([generate(lm, 2), rank(lm, keep=1)], "2+2?")
    >>> fk.simulate(model, seed=0).value in ("four", "five")
    True
    """
    draft = Draft()
    for layer in layers:
        draft = await layer(question, draft)
        if not draft.candidates:
            raise ValueError("a layer of archon left no candidate: begin with one that generates")
        deterministic("output", draft.candidates[0])
    if not draft.candidates:
        raise ValueError("archon needs a layer that generates")
    await weigh(reward, question, draft.candidates[0])
    return draft.candidates[0]
