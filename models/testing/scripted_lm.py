"""A language model that says what a script says, by the line: all that a program can be told is written down."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ...ppl.distributions.batching import groups
from ...ppl.keys import Keys, uniform
from ..language.drawing.laws import drawn, log_prob_of, read, tokens_of
from ..language.drawing.runs import Run
from ..language.drawing.sampling import Law, Sampling
from ..language.host import Floats, Sink, Tally
from ..language.model import LanguageModel
from ..language.texts.tree import Node, Tree
from .tiny import tiny_tokenizer

Script: TypeAlias = Callable[[str], "str | Mapping[str, float]"]
_BYTES = 259
"""A tokenizer of so many tokens has one for each byte, and its three special ones."""


class Said(Node):
    """A history, and the log-law (V,) of what comes next, once it was asked for."""

    __slots__ = ("law",)

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.law: Any = None


class ScriptedLM(LanguageModel):
    """A language model whose law is a script, to test programs with: whatever they can draw can be counted up.

    ``script(before)`` says how a line goes on after the text ``before``, which runs to the end of the prompt, or to
    the last newline of the response, whichever is later: a string, or strings with their probabilities. One that ends
    with a newline lets the text go on, another one ends it. Where the program appended something to the line, or the
    model has drawn a part of it, those strings remain that begin with it; where there is none, the text ends.

    A token is a byte. The law of each is the script's, so that steps, log-probabilities, temperatures, constraints,
    scores and `read` mean what they mean of any other model. Positions are counted as by a model that forgets
    nothing.

    Args:
        script: a function of a string alone, asked once for each.
        sampling: the default law of the next token, as of any model.
        context: longest history in bytes.

    Raises ValueError, when the script is asked, for probabilities that are negative or do not sum to 1, and for
    strings with a newline within.

    >>> import feynkac as fk
    >>> lm = ScriptedLM(lambda before: {"4": 0.9, "5": 0.1} if before.endswith("2+2=") else "?")
    >>> @fk.program
    ... async def answer(lm):
    ...     return str(await fk.sample("answer", lm.complete(lm.prompt("2+2="))))
    >>> posterior = fk.infer(answer(lm), fk.ImportanceSampling(1000), seed=0)
    >>> sorted(set(posterior.values)), round(float((np.array(posterior.values) == "5").mean()), 1)
    (['4', '5'], 0.1)
    """

    offers = frozenset({"law"})

    def __init__(self, script: Script, *, sampling: Sampling | None = None, context: int | None = None) -> None:
        tokenizer = tiny_tokenizer(_BYTES)
        self._script = script
        self._known: dict[str, tuple[tuple[tuple[int, ...], float], ...]] = {}
        (self._newline,) = tokenizer("\n", add_special_tokens=False).input_ids
        self._end = int(tokenizer.eos_token_id)
        super().__init__(
            tokenizer,
            Tree(Said),
            name=f"scripted-{getattr(script, '__name__', 'lm')}",
            vocab_size=len(tokenizer),
            eos=frozenset({self._end}),
            context=context,
            sampling=sampling,
        )

    def draw(self, runs: Sequence[Run], keys: Keys, tally: Tally) -> None:
        """Advance each run to the end of its step, a token of all of them at a time."""
        while active := [i for i, run in enumerate(runs) if not run.over]:
            logits = self._logits([runs[i].node for i in active], active, tally)
            for part in groups((runs[i].request.sampling, runs[i].request.mask is None, runs[i].count) for i in active):
                rows = [active[j] for j in part]
                asked = [runs[i].request for i in rows]
                chances = torch.from_numpy(uniform(keys[rows], 1, offset=runs[rows[0]].count)[:, 0])
                masks = [request.mask for request in asked if request.mask is not None]
                found = read(drawn(logits[part], chances, asked[0].sampling, masks or None))
                for i, token, log_prob in zip(rows, *map(np.ndarray.tolist, tokens_of(found))):
                    tally.tokens_out[i] += token >= 0
                    runs[i].advance(token, log_prob)

    def forced(
        self, nodes: Sequence[Node], starts: Sequence[int], laws: Sequence[Law], owners: Sequence[int], tally: Tally,
        *, onward: bool = False,
    ) -> Floats:  # fmt: skip
        """Return the log-probability (n,) of the tokens of histories from certain positions on, see `Host`."""
        result = np.zeros(len(nodes))
        for i, (node, start, (sampling, mask)) in enumerate(zip(nodes, starts, laws)):
            given = [node.ancestor(at) for at in range(start, node.length)]
            if not given:
                continue
            logits = self._logits(given, [owners[i]] * len(given), tally)
            tokens = torch.tensor(node.tokens(start))
            masks = None if mask is None else [mask] * len(given)
            result[i] = read(log_prob_of(logits, tokens, sampling, masks)).sum()
        return result

    def laws(self, nodes: Sequence[Node], owners: NDArray[np.intp], tally: Tally, sink: Sink) -> None:
        """Say the law of the next token after each history, see `Host`."""
        sink(np.arange(len(nodes)), self._logits(nodes, owners.tolist(), tally))

    def _logits(self, nodes: Sequence[Node], owners: Sequence[int], tally: Tally) -> Any:
        """Return the log-laws (n, V) after histories. What is new of each is forwarded, and charged to its owner."""
        tally.calls += 1
        for node, owner in zip(nodes, owners):
            assert isinstance(node, Said)
            if node.law is None:
                tally.forwarded(owner, self._unread(node), 0)
                node.law = self._said(node)
        return torch.stack([node.law for node in nodes if isinstance(node, Said)])

    def _unread(self, node: Said) -> int:
        """Return how many positions there are since the law of a prefix was asked for."""
        at: Any = node
        while at.parent is not None and at.law is None:
            at = at.parent
        return node.length - (at.length if at.law is not None else 0)

    def _said(self, node: Said) -> Any:
        response = node.response
        begin = len(response) - next((i for i, t in enumerate(reversed(response)) if t == self._newline), len(response))
        line = response[begin:]
        prompt = self.tokenizer.decode(node.top.prompt, skip_special_tokens=True)
        mass = np.zeros(self.vocab_size)
        for tokens, p in self._lines(prompt + self.decode_response(response[:begin])):
            if len(tokens) > len(line) and tokens[: len(line)] == line:
                mass[tokens[len(line)]] += p
        if not mass.any():
            mass[self._end] = 1.0
        with np.errstate(divide="ignore"):
            return torch.from_numpy(np.log(mass / mass.sum()))

    def _lines(self, before: str) -> tuple[tuple[tuple[int, ...], float], ...]:
        """Return the tokens of the lines that may follow, and their probabilities."""
        if before not in self._known:
            said = self._script(before)
            lines = {said: 1.0} if isinstance(said, str) else dict(said)
            if any(not p >= 0 for p in lines.values()) or not math.isclose(sum(lines.values()), 1.0, abs_tol=1e-9):
                raise ValueError(f"the script's probabilities after {before!r} are {lines}, which is no law")
            if any("\n" in line[:-1] for line in lines):
                raise ValueError(f"the script says more than a line at once after {before!r}: {list(lines)}")
            ends = {line: () if line.endswith("\n") else (self._end,) for line in lines}
            self._known[before] = tuple(((*self._bytes(line), *ends[line]), p) for line, p in lines.items() if p)
        return self._known[before]

    def _bytes(self, line: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(line, add_special_tokens=False).input_ids)
