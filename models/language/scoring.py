"""Given tokens under the model: teacher-forced log-probabilities, and the mass of a mask, as lazy scores."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...ppl.batching import groups
from ...ppl.cost import charge
from ...ppl.memory import Memory
from ...ppl.score import Kind
from .host import Forwarded, Host, Tally
from .laws import log_mass, log_normalise, log_prob_of, warp
from .sampling import Sampling
from .text import Text
from .tree import Node

Floats = NDArray[np.float64]
_CHUNK = 1024


class Mask:
    """A set of tokens: a boolean per token of the vocabulary. Equal masks allow the same tokens."""

    __slots__ = ("_digest", "_tensor", "allowed")

    def __init__(self, allowed: NDArray[np.bool_]) -> None:
        self.allowed = allowed
        self._digest = hash(np.packbits(allowed).tobytes())
        self._tensor: Any = None

    def __hash__(self) -> int:
        return self._digest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mask) and self._digest == other._digest and np.array_equal(self.allowed, other.allowed)

    def __repr__(self) -> str:
        return f"<mask of {int(self.allowed.sum())} tokens>"

    def on(self, device: Any) -> Any:
        """Return the mask as a tensor (V,) on a device."""
        if self._tensor is None or self._tensor.device != device:
            self._tensor = torch.from_numpy(self.allowed).to(device)
        return self._tensor


def as_mask(mask: Any, size: int) -> Mask:
    """Return a mask of a boolean array or tensor (V,). A shorter one is false beyond its end.

    Raises ValueError for another shape or type.
    """
    if isinstance(mask, Mask):
        return mask
    given = mask.detach().cpu().numpy() if isinstance(mask, torch.Tensor) else np.asarray(mask)
    if given.dtype != np.bool_ or given.ndim != 1 or len(given) > size:
        raise ValueError(f"a mask must be booleans of shape ({size},), not {given.dtype} of shape {given.shape}")
    return Mask(np.pad(given, (0, size - len(given))))


def forced(
    lm: Host,
    nodes: Sequence[Node],
    starts: Sequence[int],
    laws: Sequence[tuple[Sampling, Mask | None]],
    owners: Sequence[int],
    tally: Tally,
) -> Floats:
    """Return the log-probability (n,) of the tokens of each history from position ``starts[i]`` to its end.

    The first of them may be known from the logits kept at the history before it; the rest go through the model
    in chunks, shortest prefix first, each building on the last.
    """
    total = np.zeros(len(nodes))
    going = [i for i, node in enumerate(nodes) if node.length > starts[i]]
    if going:
        before = [nodes[i].ancestor(starts[i]) for i in going]
        given = np.array([nodes[i].tokens(starts[i])[0] for i in going], np.int64)
        total[going] = _following(lm, before, given, [laws[i] for i in going], [owners[i] for i in going], tally)
    at = list(starts)
    while True:
        # Requests that need the same positions of the same history share them.
        wanted: dict[Node, list[int]] = defaultdict(list)
        for i, node in enumerate(nodes):
            if at[i] < node.length - 1:
                reach = lm.forwarder.stretch(at[i], min(node.length - 1, at[i] + _CHUNK))
                wanted[node.ancestor(reach)].append(i)
        if not wanted:
            return total

        def add(jobs: Sequence[Forwarded], logits: Any, wanted: dict[Node, list[int]] = wanted) -> None:
            for row, job in enumerate(jobs):
                users = wanted[job.node]
                tally.tokens_in[owners[users[0]]] += job.cost
                for i in users:
                    count = job.node.length - at[i]
                    given = np.array(nodes[i].tokens(at[i] + 1)[:count], np.int64)
                    sampling, mask = laws[i]
                    allowed = None if mask is None else mask.on(logits.device).expand(count, -1)
                    total[i] += log_prob_of(warp(logits[row, -count:], sampling, allowed), given).sum()

        ends = list(wanted)
        with torch.inference_mode():
            tally.calls += lm.forwarder.all_logits(ends, [min(at[i] for i in wanted[end]) for end in ends], add)
        for end, users in wanted.items():
            for i in users:
                at[i] = end.length


def _following(
    lm: Host,
    nodes: Sequence[Node],
    given: NDArray[np.int64],
    laws: Sequence[tuple[Sampling, Mask | None]],
    owners: Sequence[int],
    tally: Tally,
) -> Floats:
    """Return the log-probability (n,) of a given token (n,) after each history."""
    result = np.zeros(len(nodes))
    with torch.inference_mode():
        logits = lm.forwarder.next_logits(nodes, np.array(owners, np.intp), tally)
        for law in set(laws):
            rows = [i for i, other in enumerate(laws) if other == law]
            part = logits[torch.tensor(rows, device=logits.device)]
            allowed = None if law[1] is None else law[1].on(logits.device).expand(len(rows), -1)
            result[rows] = log_prob_of(warp(part, law[0], allowed), given[rows])
    return result


def next_laws(lm: Host, items: Sequence[tuple[Text, Sampling]]) -> list[Floats]:
    """Return the log-probabilities (V,) of the token that follows each text, under a law of its own, in one pass."""
    tally = Tally(len(items))
    nodes = [node for text, _ in items if (node := lm.attach(text).node) is not None]
    found: list[Floats] = [np.empty(0)] * len(items)
    with torch.inference_mode():
        logits = lm.forwarder.next_logits(nodes, np.arange(len(nodes)), tally)
        for rows in groups(law for _, law in items):
            part = log_normalise(warp(logits[torch.from_numpy(rows).to(logits.device)], items[rows[0]][1]))
            for row, log_probs in zip(rows.tolist(), part.double().cpu().numpy()):
                found[row] = log_probs
    charge(model_calls=tally.calls, tokens_in=tally.tokens_in)
    return found


class OfModel:
    """What the scorers of a language model share."""

    kind: Kind = "log_weight"

    def __init__(self, lm: Host) -> None:
        self.lm = lm
        self.memory = Memory[float](10_000)

    def version(self) -> Hashable:
        """Return what tells the model as it is now from what it was."""
        return self.lm.version()


class Likelihood(OfModel):
    """Scores log p of the tokens of a text from a position on, under the model's own law."""

    @property
    def name(self) -> str:
        """Name in messages."""
        return f"log p of {self.lm.identity}"

    def score_batch(self, inputs: Sequence[tuple[Any, ...]]) -> list[float]:
        """Return log p for each (text, start)."""
        tally = Tally(len(inputs))
        texts = [self.lm.attach(text) for text, _ in inputs]
        nodes = [text.node for text in texts if text.node is not None]
        law = (Sampling(), None)
        starts = [start for _, start in inputs]
        result: list[float] = forced(self.lm, nodes, starts, [law] * len(nodes), range(len(nodes)), tally).tolist()
        charge(model_calls=tally.calls, tokens_in=tally.tokens_in)
        return result


class Mass(OfModel):
    """Scores the log of the mass that a law gives to a mask at the next token."""

    @property
    def name(self) -> str:
        """Name in messages."""
        return f"mask mass of {self.lm.identity}"

    def score_batch(self, inputs: Sequence[tuple[Any, ...]]) -> list[float]:
        """Return the log-mass for each (text, mask, law)."""
        result = np.zeros(len(inputs))
        going = [i for i, (text, *_) in enumerate(inputs) if not text.finished]
        if going:
            tally = Tally(len(inputs))
            nodes = [node for i in going if (node := self.lm.attach(inputs[i][0]).node) is not None]
            with torch.inference_mode():
                logits = self.lm.forwarder.next_logits(nodes, np.array(going, np.intp), tally)
                for law in {inputs[i][2] for i in going}:
                    rows = [row for row, i in enumerate(going) if inputs[i][2] == law]
                    masks = torch.stack([inputs[going[row]][1].on(logits.device) for row in rows])
                    of_law = logits[torch.tensor(rows, device=logits.device)]
                    result[[going[row] for row in rows]] = _log_mass(of_law, masks, law)
            charge(model_calls=tally.calls, tokens_in=tally.tokens_in)
        numbers: list[float] = result.tolist()
        return numbers


def _log_mass(logits: Any, masks: Any, sampling: Sampling) -> Floats:
    if sampling.temperature == 0:
        # In the limit of temperature 0 the masked draw takes the best token allowed, which has mass 1 or 0.
        inside = (warp(logits, sampling) > -math.inf).logical_and(masks).any(-1)
        return np.where(inside.cpu().numpy(), 0.0, -math.inf)
    return log_mass(warp(logits, sampling), masks)
