"""Retrieval in rounds: a model asks follow-up questions, gets documents for each, and answers in the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ....ppl.program import program
from ....ppl.values.reals import whole_number
from ....ppl.words import call, deterministic, sample
from ...language.host import Host
from ...language.texts.text import Text
from ..asking import ask
from ..weighing import Reward, weigh


@program
async def iterative_rag(
    lm: Host,
    retrieve: Callable[[str, int], Sequence[str]],
    question: str,
    *,
    docs: int = 5,
    shots: Sequence[str] = (),
    steps: int = 5,
    follow: str = "Follow up: ",
    found: str = "Intermediate answer: ",
    final: str = "So the final answer is: ",
    reward: Reward | None = None,
    max_tokens: int = 64,
    **sampling: Any,
) -> str:
    """Answer a question from documents, which are looked up for it and for the follow-up questions that it takes.

    The model reads the examples, all documents so far, the question, and what it has written, line by line. A line that
    begins with ``follow`` is looked up and answered in the next line; any other line ends it. After the follow-ups that
    ``steps`` allows, ``final`` is put before the answer. With ``steps=1`` there are none: that is DRAG, and more is
    IterDRAG. Documents, examples and steps all cost tokens: `fk.scaling.Allocation` finds what a budget should go to.

    Feynman–Kac mapping: M draws a line at a time, and looks up (a call, which is recorded); G is the reward of the
    answer, if there is one. It costs 2·(steps − 1) + 1 short lines at most; each round re-reads its documents.

    Args:
        lm: the language model.
        retrieve: the best documents for a query, and how many: a function, or one marked by `fk.batched`.
        question: as a string.
        docs: documents for each query.
        shots: solved examples, each as the model is to write them.
        steps: rounds, the final answer's included.
        follow: begins a follow-up question.
        found: is put before its answer.
        final: begins, or is put before, the final answer.
        reward: weighs the answer: a probability, or a log-weight (a number is one).
        max_tokens: of a line.
        sampling: keywords of `Sampling`.

    Returns the answer. Raises ValueError for ``docs`` or ``steps`` out of range.

    Source: Inference Scaling for Long-Context Retrieval Augmented Generation (2024), arXiv:2410.04343. Its prompts are
        not these, and its lines are constrained, while ours are not: not a replication.
    Guarantee: exact for the law that the program defines.
    Engines: all; its steps have no weights of their own, so that beams and trees need a ``twist`` or factor added.
    Not shown here: no retrieval task comes with the library.

    >>> import feynkac as fk
    >>> from feynkac.models.testing import ScriptedLM
    >>> def script(before):
    ...     if "Follow up" not in before:
    ...         return "Follow up: Who ran to the sea?"
    ...     who = "the rain" if "The rain ran" in before else "nobody"
    ...     return {f"Intermediate answer: {who}": 0.5, f"So the final answer is: {who}": 0.5}
    >>> library = {"Whose river is it?": ["The sea is wide."], "Who ran to the sea?": ["The rain ran to the sea."]}
    >>> model = iterative_rag(ScriptedLM(script), lambda query, k: library[query][:k], "Whose river is it?", steps=2)
    >>> fk.simulate(model, seed=0).value
    'the rain'
    """
    whole_number("docs", docs, 0)
    known = dict.fromkeys(await call("documents", retrieve, question, docs))  # each once, in the order found
    written = ""

    async def line(name: str, begin: str) -> str:
        start = ask(lm, "".join(f"{part}\n" for part in (*shots, *known, question))).append(written + begin)
        text: Text = await sample(name, lm.until(start, "\n", max_tokens=max_tokens, **sampling))
        return str(text)[len(written) :].strip()

    for _ in range(whole_number("steps", steps) - 1):
        said = await line("step", "")
        if not said.startswith(follow):
            break
        for doc in await call("documents", retrieve, said.removeprefix(follow).strip(), docs):
            known.setdefault(doc)
        written += f"{said}\n"
        written += await line("found", found) + "\n"
    else:
        said = await line("answer", final)
    answer: str = deterministic("output", said.removeprefix(final.strip()).strip())
    await weigh(reward, answer)
    return answer
