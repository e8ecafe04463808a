"""Medprompt: similar solved questions as examples, reasons before the answer, and choices in random order."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ....ppl.distributions.dist import Permutation
from ....ppl.program import program
from ....ppl.values.reals import whole_number
from ....ppl.words import deterministic, sample
from ...language.host import Host
from ..asking import ask

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def words(texts: Sequence[str]) -> list[list[float]]:
    """Return the counts (n, W) of the words of some texts: the plainest embedding, to be replaced by a better one."""
    counts = [Counter(re.findall(r"\w+", text.lower())) for text in texts]
    known = sorted(set().union(*counts))
    return [[float(count[word]) for word in known] for count in counts]


def nearest(
    question: str, shots: Sequence[tuple[str, str]], k: int, embed: Callable[[Sequence[str]], Any]
) -> list[int]:
    """Return the numbers of the k shots whose questions are most similar by cosine, the most similar one last."""
    if not shots or not k:
        return []
    vectors = np.asarray(embed([question, *(asked for asked, _ in shots)]), float)
    lengths = np.linalg.norm(vectors, axis=1)
    cosines = vectors[1:] @ vectors[0] / np.maximum(lengths[1:] * lengths[0], 1e-12)
    order: list[int] = np.argsort(-cosines, kind="stable")[:k].tolist()
    return order[::-1]


@program
async def medprompt(
    lm: Host,
    question: str,
    choices: Sequence[str],
    shots: Sequence[tuple[str, str]] = (),
    *,
    k: int = 5,
    embed: Callable[[Sequence[str]], Any] = words,
    shuffle: bool = True,
    prompt: str = "{question}\n{choices}\n",
    answer: str = r"\b([A-Z])\b",
    max_tokens: int = 256,
    **sampling: Any,
) -> str | None:
    """Answer a question of several choices after similar examples, with the choices in an order of their own.

    A model may prefer a letter or a place whatever stands there. So each run shows the choices in a random order, and
    runs vote on what was chosen, not on the letter: ``fk.infer(medprompt(…), fk.SelfConsistency(5))``.

    Feynman–Kac mapping: M draws the order of the choices (a site "order"), then the reasons and the answer; G is 1. It
    costs an answer a particle; the examples are found anew by each, which needs no model unless ``embed`` is one.

    Args:
        lm: the language model.
        question: as a string.
        choices: 26 at most; shown as ``A. …``, ``B. …``.
        shots: solved questions as (question, solution) pairs. Solutions should show reasons, and end as answers should.
        k: how many of them to show: those whose questions are most similar, the most similar one last.
        embed: vectors (n, d) of n strings, such as the ``embed`` of `fk.rewards.Embedding`; words counted by default.
        shuffle: whether the order is random.
        prompt: of the question, a template of ``{question}`` and ``{choices}``; shots are shown as they are.
        answer: a regular expression; the first group of its last match that is a letter shown.
        max_tokens: of reasons and answer.
        sampling: keywords of `Sampling`.

    Returns the choice, or None where no letter of a choice was named, which abstains from a vote. Raises ValueError for
    no choices, more than 26, or k that is negative.

    Source: Can Generalist Foundation Models Outcompete Special-Purpose Tuning? (2023), arXiv:2311.16452. Its prompts
        are not these: not a replication.
    Guarantee: exact for the law that the program defines. The vote of several runs is heuristic.
    Engines: SelfConsistency(5) is the paper's; all others run, and without a reward weigh all runs alike.
    Measured: SmolLM2 of 135M, 12 questions of three choices, 16 answers each: right in place A, B, C .365, .198, .078
        (± .053, .034, .026; .35 unreadable); shuffled .229 ± .022, votes of five .340 ± .039. It prefers a place, and
        is at chance all the same: shuffling takes off the preference, and adds no knowledge.

    >>> import feynkac as fk
    >>> from feynkac.models.testing import ScriptedLM
    >>> lm = ScriptedLM(lambda before: next(line[0] for line in before.splitlines()[::-1] if "sea" in line))
    >>> shots = [("Where do hills end?", "Below. A"), ("Where do rivers end?", "They run down. B")]
    >>> model = medprompt(lm, "Where does the river end?", ["in the hill", "in the sea", "in the sky"], shots, k=1)
    >>> fk.infer(model, fk.SelfConsistency(5), seed=0).vote()
    {'in the sea': 1.0}
    """
    if not 1 <= len(choices) <= len(LETTERS):
        raise ValueError(f"medprompt shows 1 to {len(LETTERS)} choices, not {len(choices)}")
    near = nearest(question, shots, whole_number("k", k, 0), embed)
    order = await sample("order", Permutation(len(choices))) if shuffle else range(len(choices))
    shown = "\n".join(f"{letter}. {choices[i]}" for letter, i in zip(LETTERS, order))
    examples = "".join(f"{shots[i][0]}\n{shots[i][1]}\n\n" for i in near)
    asked = examples + prompt.format(question=question, choices=shown)
    text = await sample("answer", lm.complete(ask(lm, asked), max_tokens=max_tokens, **sampling))
    named = (match.group(1) for match in re.finditer(answer, str(text)))
    found = [letter for letter in named if letter in list(LETTERS[: len(choices)])]
    chosen = choices[order[LETTERS.index(found[-1])]] if found else None
    return deterministic("output", chosen)  # type: ignore[no-any-return]
