"""Where the laws of image tokens come from: a language model, one token after the other, or a network by scales."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ...ppl.cost import charge
from ...ppl.errors import ContextOverflow
from ..language.host import Host, Tally, require
from ..language.texts.text import Text

Places = NDArray[Any]
"""What has been drawn so far, (n,) objects that a source makes and nobody else looks into."""


class Source(Protocol):
    """The laws of the tokens of an image under a condition, and under none for guidance.

    ``bursts[t]`` says how many tokens step t draws at a time: (1, 1, 1) is three one after the other, (9,) nine that
    are independent given all before. ``guided`` says whether there is a law under no condition, and ``ragged`` whether
    images of different steps, whose bursts then are the same, may share a call.
    """

    vocabulary: int
    bursts: tuple[tuple[int, ...], ...]
    guided: bool
    ragged: bool

    def begin(self, n: int, conditioned: bool) -> Places:
        """Return n empty images, under the condition or none."""

    def laws(self, places: Places, owners: NDArray[np.intp]) -> Any:
        """Return logits (n, k, K) of the next k tokens, from one call; row i is charged to particle ``owners[i]``."""

    def go(self, places: Places, tokens: NDArray[np.int64]) -> Places:
        """Return images with k more tokens each, (n, k)."""


class _Read(NamedTuple):
    node: Any
    drawn: int


class ByToken:
    """The tokens of a language model, a row of the image at a step.

    Args:
        lm: a model of transformers or another one that gives the law of the next token.
        prompt: the text that the image comes after.
        grid: rows and columns of tokens.
        alphabet: the model's tokens that stand for image tokens 0, 1, …; its law is conditioned on these.
        unconditional: the text that stands for no condition; None where there is no guidance.
        row_end: tokens that follow each row but the last, which are no choice (Emu3's ends of lines).

    What is remembered of each history (keys and values) is the language model's own affair, and follows particles.

    Raises Unsupported for a model without laws, ContextOverflow where the image does not fit, and ValueError for
    tokens that the model does not have.
    """

    def __init__(
        self,
        lm: Host,
        prompt: Text,
        grid: tuple[int, int],
        alphabet: Sequence[int],
        *,
        unconditional: Text | None = None,
        row_end: Sequence[int] = (),
    ) -> None:
        require(lm, "law", "ImageTokens")
        rows, columns = grid
        self.lm, self.grid = lm, (rows, columns)
        self.alphabet = np.asarray(alphabet, np.int64)
        known = (self.alphabet >= 0) & (self.alphabet < lm.vocab_size)
        if not known.all() or len(set(self.alphabet.tolist())) != len(self.alphabet) or len(known) < 2:
            raise ValueError(f"an alphabet is two or more different tokens, of the {lm.vocab_size} of {lm!r}")
        self.row_end = tuple(row_end)
        self.vocabulary = len(self.alphabet)
        self.bursts = ((1,) * columns,) * rows
        self._tops = [lm.attach(text).node for text in (unconditional, prompt) if text is not None]
        self.guided, self.ragged = unconditional is not None, True
        longest = rows * columns - 1 + (rows - 1) * len(self.row_end)
        for top in self._tops:
            if lm.context is not None and top is not None and top.length + longest > lm.context:
                raise ContextOverflow(
                    f"an image of {rows}×{columns} tokens and a prompt of {top.length} do not fit the context of "
                    f"{lm.context} of {lm!r}: use a shorter prompt or a smaller grid"
                )

    def __repr__(self) -> str:
        return f"{self.lm!r}, {self.grid[0]}×{self.grid[1]}"

    def begin(self, n: int, conditioned: bool) -> Places:
        """Return n empty images."""
        return _objects([_Read(self._tops[-1 if conditioned else 0], 0)] * n)

    def laws(self, places: Places, owners: NDArray[np.intp]) -> Any:
        """Return logits (n, 1, K) of the next token, from one call of the model."""
        found = torch.empty(len(places), self.vocabulary, dtype=torch.float64)
        alphabet = torch.from_numpy(self.alphabet)

        def note(rows: NDArray[np.intp], logits: Any) -> None:
            found[torch.from_numpy(rows)] = logits[:, alphabet.to(logits.device)].double().cpu()

        tally = Tally(int(owners.max()) + 1)
        self.lm.laws([place.node for place in places], owners, tally, note)
        charge(**tally.amounts)
        return found[:, None]

    def go(self, places: Places, tokens: NDArray[np.int64]) -> Places:
        """Return images with one more token each, and the end of a row where there is one."""
        ids, tree = self.alphabet[tokens[:, 0]].tolist(), self.lm.tree
        last = self.grid[0] * self.grid[1]
        gone = []
        for (node, drawn), token in zip(places, ids):
            end = self.row_end if (drawn + 1) % self.grid[1] == 0 and drawn + 1 < last else ()
            gone.append(_Read(tree.extend(node, (token, *end)), drawn + 1))
        return _objects(gone)


class _Seen(NamedTuple):
    tokens: NDArray[np.int64]
    memory: tuple[Any, ...]
    conditioned: bool


class ByScale:
    """The tokens of a network that draws an image by scales, coarse to fine: a step is a scale.

    Args:
        network: ``network(tokens, memory, condition)`` gives logits (n, k, K) of the k tokens of the next scale, which
            are independent given those before, and its memory: a tuple of tensors (n, …), such as keys and values. It
            gets the tokens (n, t) of all scales so far, what it gave as memory at the scale before (an empty tuple at
            first), and a batch (n, …) of conditions.
        sizes: k of each scale.
        vocabulary: K.
        condition: of the image, a tensor (…).
        unconditional: what stands for none, likewise; None where there is no guidance.

    Source: Tian et al. (2024), Visual autoregressive modeling, arXiv:2404.02905.
    """

    def __init__(
        self,
        network: Callable[..., tuple[Any, tuple[Any, ...]]],
        sizes: Sequence[int],
        vocabulary: int,
        *,
        condition: Any,
        unconditional: Any = None,
    ) -> None:
        if not sizes or min(sizes) < 1:
            raise ValueError(f"the scales have 1 token or more each, not {list(sizes)}")
        self.network, self.vocabulary = network, vocabulary
        self.bursts = tuple((size,) for size in sizes)
        self._conditions = (
            torch.as_tensor(unconditional if unconditional is not None else condition),
            torch.as_tensor(condition),
        )
        self.guided, self.ragged = unconditional is not None, False

    def __repr__(self) -> str:
        return f"{len(self.bursts)} scales"

    def begin(self, n: int, conditioned: bool) -> Places:
        """Return n empty images."""
        return _objects([_Seen(np.zeros(0, np.int64), (), conditioned)] * n)

    def laws(self, places: Places, owners: NDArray[np.intp]) -> Any:
        """Return logits (n, k, K) of the next scale, from one call; its memory is kept with the places."""
        tokens = torch.from_numpy(np.stack([place.tokens for place in places]))
        memory = tuple(torch.stack(rows) for rows in zip(*(place.memory for place in places)))
        condition = torch.stack([self._conditions[place.conditioned] for place in places])
        with torch.no_grad():
            logits, memory = self.network(tokens, memory, condition)
        charge(model_calls=1, nfe=np.bincount(owners))
        places[:] = _objects([place._replace(memory=rows) for place, rows in zip(places, _rows(memory, len(places)))])
        return logits.double().cpu()

    def go(self, places: Places, tokens: NDArray[np.int64]) -> Places:
        """Return images with one more scale each."""
        return _objects([p._replace(tokens=np.concatenate([p.tokens, row])) for p, row in zip(places, tokens)])


def _rows(memory: tuple[Any, ...], n: int) -> list[tuple[Any, ...]]:
    return list(zip(*memory)) if memory else [()] * n


def _objects(items: Sequence[Any]) -> Places:
    """Return an array (n,) of objects, tuples as they are."""
    made = np.empty(len(items), object)
    for i, item in enumerate(items):
        made[i] = item
    return made
