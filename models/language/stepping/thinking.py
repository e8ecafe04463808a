"""Budget forcing: a thought that may neither end too early nor go on too long."""

from __future__ import annotations

from typing import Any

from ....ppl.program import program
from ....ppl.values.reals import whole_number
from ....ppl.words import sample
from ..host import Host
from ..texts.text import Text


@program
async def think(
    lm: Host,
    text: Text,
    *,
    end: str = "</think>",
    wait: str = "Wait",
    ignore: int = 1,
    max_tokens: int = 1024,
    **sampling: Any,
) -> Text:
    """Let a model think for a while: budget forcing, as a program to be awaited inside another one.

    The text goes on until the model ends its thought, by the delimiter or an end token. The first ``ignore`` times
    that is taken off and ``wait`` is put in its place, so that the model thinks again; the last time the thought ends.
    After ``max_tokens`` sampled tokens in all it is ended in any case. The delimiter is appended, and the answer may
    follow: ``text = await fk.sample("answer", lm.complete(text))``.

    It is a part of the model, not of an engine: each segment is a site "thought", drawn from ``lm.until``, so that it
    runs under every engine (`BestOfN`, `SMC`, searches) and is replayed and traced like any other. The
    tokens taken off keep their log-probability, as they were drawn. There is no step end inside: a thought is one step,
    or a part of one.

    Args:
        lm: the language model, such as a `TransformersLM`.
        text: what to go on from, such as ``lm.prompt(question).append("<think>")``.
        end: the delimiter: a string, or a special token as it is spelled, which is not displayed.
        wait: what is put in its place.
        ignore: how often.
        max_tokens: of all segments together; what is appended does not count.
        sampling: keywords of `Sampling`.

    Returns the text with the delimiter at its end; without it where the model's context is full. Raises ValueError for
    ``ignore`` or ``max_tokens`` out of range.

    Source: Muennighoff et al. (2025), arXiv:2501.19393.

    >>> import feynkac as fk
    >>> from feynkac.models.testing import tiny_lm
    >>> lm = tiny_lm()
    >>> run = fk.simulate(fk.models.think(lm, lm.prompt("Who?"), end="e", wait=" Wait", max_tokens=40), seed=0)
    >>> str(run.value).count(" Wait"), str(run.value)[-1]
    (1, 'e')
    """
    ignore, left = whole_number("ignore", ignore, 0), whole_number("max_tokens", max_tokens)
    while True:
        after: Text = await sample("thought", lm.until(text, end, max_tokens=left, **sampling))
        left -= len(after.tokens) - len(text.tokens)
        if after.finish_reason == "context":
            return after
        ended = after.finish_reason == "eos" or after.shown is not None
        text, rest = _without_end(text, after)
        if not ended or not ignore or left <= 0:
            return text.append(rest + end)
        text, ignore = text.append(rest + wait), ignore - 1


def _without_end(before: Text, after: Text) -> tuple[Text, str]:
    """Take off the tokens that hold the stop string that a step ended at, if it did.

    Returns the text, and the string that these tokens hold before the stop string.
    """
    if after.shown is None:
        return after, ""  # an end token is taken off when something is appended
    string, text = str(after), after
    for kept in range(len(after.tokens) - 1, len(before.tokens) - 1, -1):
        text = after.cut(to=kept)
        if len(text.reading.string) <= len(string):
            break
    return text, string[len(text.reading.string) :]
