"""Adaptive parallel reasoning: a text that hands parts of its work to others, and reads only what they report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ....ppl.program import program
from ....ppl.values.reals import whole_number
from ....ppl.words import deterministic, gather, sample
from ...language.host import Host
from ...language.texts.text import Text
from ..asking import ask


def last_line(said: str) -> str:
    """Return the last line of what a child has written."""
    return said.rstrip().rpartition("\n")[2]


@program
async def threads(
    lm: Host,
    prompt: str | Text,
    *,
    spawn: str = "<spawn>",
    join: str = "<join>",
    between: str = "|",
    depth: int = 2,
    joins: int = 16,
    child: str = "{task}",
    message: Callable[[str], str] = last_line,
    report: str = "{messages}\n",
    max_tokens: int = 256,
    **law: Any,
) -> Text:
    """Write a text in which ``<spawn> task | task <join>`` starts children; each writes on its task, side by side.

    A child begins with its own task alone, may spawn in turn while ``depth`` is left, and reports its last line. The
    parent goes on after the reports, and never sees the rest of its children. So the longest of a family tells how
    long one waits, and the sum what is paid: "latency" and "tokens" are recorded, in tokens drawn.

    Args:
        lm: writes all texts.
        prompt: of the parent, or a text to go on from.
        spawn: after this string a line of tasks begins.
        join: ends the line of tasks.
        between: separates tasks.
        depth: how deep children may spawn; at 0 the tag is text like any other.
        joins: how often each text may come to ``join``, with or without a spawn before it. After that its tags are text
            like any other, and it is written to its end: so a model that spawns for ever ends, too.
        child: the prompt of a child.
        message: from all that a child has written to what it reports.
        report: what the parent reads of its children's messages, which ``between`` separates.
        max_tokens: most tokens of a draw.
        law: keywords of `Sampling`.

    Raises ValueError for a depth or joins below 0.

    Source: Learning Adaptive Parallel Reasoning with Language Models (2025), arXiv:2504.15466; ThreadWeaver (2025),
        arXiv:2512.07843, is the same with tags of its own, such as ``spawn="<Parallel>"``.
    Guarantee: exact for the law that the program defines.
    Engines: ImportanceSampling, SMC, BestOfN, BeamSearch, SuffixMH; a run is one step unless something in it is
        weighed.
    Not shown here: a model has to be trained to spawn. Latency and tokens are counted on scripts.

    >>> import feynkac as fk
    >>> from feynkac.models.testing import ScriptedLM
    >>> says = {"sum?": "I ask <spawn>1+1|2+2<join>\\n", "1+1": "2", "2+2": "4", "2|4": "6 in all"}
    >>> lm = ScriptedLM(lambda before: next(said for key, said in reversed(says.items()) if key in before))
    >>> run = fk.simulate(fk.programs.threads(lm, "sum?"), seed=0)
    >>> str(run.value).splitlines()
    ['I ask <spawn>1+1|2+2<join>2|4', '6 in all']
    """
    limits = whole_number("depth", depth, 0), whole_number("joins", joins, 0)
    text, latency, tokens = await _write(
        lm, ask(lm, prompt) if isinstance(prompt, str) else prompt, limits, (spawn, join, between, child, report),
        message, {"max_tokens": max_tokens, **law},
    )  # fmt: skip
    deterministic("latency", latency)
    deterministic("tokens", tokens)
    deterministic("output", text)
    return text


async def _write(
    lm: Host,
    text: Text,
    limits: tuple[int, int],
    tags: tuple[str, ...],
    message: Callable[[str], str],
    law: dict[str, Any],
) -> tuple[Text, int, int]:
    """Return a whole text, and how many tokens one waits for, and pays for."""
    (depth, joins), (spawn, join, between, child, report) = limits, tags
    left = joins if depth else 0
    latency = tokens = 0
    read = str(text).rfind(join) + 1  # tags in what is before, as in a report, are text like any other
    while True:
        before = len(text.tokens)
        kernel = lm.until(text, join, include_stop=True, **law) if left else lm.complete(text, **law)
        text = await sample("text", kernel)
        drawn = len(text.tokens) - before
        latency, tokens = latency + drawn, tokens + drawn
        _, tag, tasks = str(text)[read:].rpartition(spawn)
        if not left or text.finished or not drawn or not str(text).endswith(join):
            return text, latency, tokens
        left -= 1
        if not tag:  # a join without a spawn is text like any other
            read = len(str(text))
            continue
        asked = [ask(lm, child.format(task=task.strip())) for task in tasks.removesuffix(join).split(between)]
        children = (_write(lm, one, (depth - 1, joins), tags, message, law) for one in asked)
        found = await gather(*children, name="children")
        text = text.append(report.format(messages=between.join(message(str(one)) for one, _, _ in found)))
        read = len(str(text))
        latency, tokens = latency + max(wait for _, wait, _ in found), tokens + sum(paid for _, _, paid in found)
