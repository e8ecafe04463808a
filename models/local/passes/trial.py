"""A trial of a model on a few tokens: what it gives piece by piece and in company must be what it gives at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ....ppl.errors import Unsupported
from ..memory.histories import Histories, History
from ..memory.jobs import Job
from ..memory.shortage import ran_out
from ..weights.wrappers import FAULTS, core
from .forward import Forwarder

_TOKENS = 10
"""Most tokens of a history that is tried."""
_FORK = 4
"""Where two of them part."""


def distance(got: Any, truth: Any) -> float:
    """Return how far log-probabilities (…, V) are from the truth, as a part of its spread: the largest of all rows."""
    got, truth = (logits.double().log_softmax(-1) for logits in (got, truth))
    spread = (truth - truth.mean(-1, keepdim=True)).norm(dim=-1)
    gap = (got - truth).norm(dim=-1) / spread
    return float(torch.where((got == truth).all(-1), 0.0, gap.nan_to_num(torch.inf)).max())


def rounding(model: Any) -> float:
    """Return the relative precision that a model computes in: that of the coarsest type among its parameters."""
    inner = core(model)
    types = {parameter.dtype for parameter in inner.parameters() if parameter.is_floating_point()}
    coarsest: float = max(torch.finfo(kind).eps for kind in types or {torch.float32})
    # Products of float32 may be made of shorter numbers, and quantised layers may round what goes into them.
    short = {"highest": 0.0, "high": 2**-10, "medium": 2**-7}[torch.get_float32_matmul_precision()]
    quantised = any("quant" in type(part).__module__ for part in inner.modules()) or bool(
        getattr(inner, "hf_quantizer", None)
    )
    return max(coarsest, short, 2**-7 if quantised else 0.0)


def most_by_rounding(model: Any) -> float:
    """Return the most distance that rounding may explain: what is wrong is off by more."""
    return min(0.1, 2**13 * rounding(model))


class Disagreement(Exception):
    """What a model gives piece by piece is not what it gives at once. Holds the reason."""


class Trial:
    """Three histories of a few tokens, two of which begin alike, and what whole passes give for them.

    The third has a padding token within it, if one is given.
    """

    def __init__(
        self,
        forwarder: Forwarder,
        roots: Callable[[Histories, Any], list[History]],
        longest: int | None,
        padding: int | None,
    ) -> None:
        self._forwarder = forwarder
        tree = Histories()
        random = np.random.default_rng(0)
        most = min(_TOKENS, longest or _TOKENS)
        one, other = roots(tree, random.permutation(ordinary(forwarder)))
        drawn = random.choice(ordinary(forwarder), (3, most)).tolist()
        a = tree.extend(one, drawn[0][one.length :])
        fork = a.ancestor(min(_FORK, most - 1))
        b = tree.extend(fork, drawn[1][fork.length :])
        if padding is not None:
            drawn[2][min(other.length, most - 1)] = padding
        c = tree.extend(other, drawn[2][other.length :])
        self._ends = a, b, c
        self._truth: dict[History, Any] = {}
        for end in self._ends:
            logits = forwarder.bare(Job(end, 0, None, None), True)[0]
            node: History | None = end
            while node is not None:
                self._truth.setdefault(node, logits)
                node = node.parent

    def fault(self) -> Exception | None:
        """Return what is wrong as the model is run now, if anything is."""
        try:
            self._run()
        except (Disagreement, *FAULTS) as fault:
            if ran_out(fault):
                raise
            return fault
        return None

    def _run(self) -> None:
        """Raise Disagreement where the histories, forwarded in pieces, do not get the logits of whole passes.

        What rounding explains is learned from a history that is alone: in company it must not be off by much more.
        """
        a, b, c = 0, 1, 2
        precision = rounding(self._forwarder.model)
        most = most_by_rounding(self._forwarder.model)
        what = "tokens alone, not before others (if the model reads on, set is_decoder=True)"
        alone = max(self._step(what, {a: 4}, most), self._step("a token after others", {a: 5}, most))
        allowed = min(0.1, max(min(0.03, 300 * precision), 4 * alone))
        self._step("texts that part", {a: 6, b: 6}, allowed)
        self._step("texts of unequal lengths", {a: 7, b: 7, c: 3}, allowed)
        self._step("texts that go on in place", {a: 8, c: 4}, allowed)
        self._step("a text that leaves others", {a: 9}, allowed)
        self._step("texts whose kept tokens move", {a: 10, c: 5}, allowed)
        self._step("all tokens of texts in one pass", {a: 10, b: 10, c: 8}, allowed, {a: 7, b: 5, c: 0})

    def _step(self, what: str, lengths: dict[int, int], allowed: float, first: dict[int, int] | None = None) -> float:
        nodes = [self._ends[i].ancestor(min(n, self._ends[i].length)) for i, n in lengths.items()]
        starts = [node.length - 1 for node in nodes]
        if first is not None:
            starts = [min(start, at) for start, at in zip(starts, first.values())]
        gaps = []

        def check(jobs: Sequence[Job], logits: Any) -> None:
            for job, row in zip(jobs, logits):
                gaps.append(self._check(what, job.node, row[-job.pending if first is not None else -1 :], allowed))

        self._forwarder.run(nodes, starts, check, 1, every=first is not None)
        return max(gaps)

    def _check(self, what: str, node: History, logits: Any, allowed: float) -> float:
        gap = distance(logits, self._truth[node][node.length - len(logits) : node.length])
        if not gap <= allowed:
            raise Disagreement(f"{what}: log-probabilities off by {gap:.2g} of their spread, rounding by {allowed:.1g}")
        return gap


@contextmanager
def trying(model: Any) -> Iterator[None]:
    """Run a trial: no gradients, random generators as they were afterwards, and a fault is a refusal by name."""
    inner = core(model)
    devices = [inner.device] if inner.device.type == "cuda" else []
    try:
        with torch.inference_mode(), torch.random.fork_rng(devices=devices):
            yield
    except Disagreement as error:
        raise Unsupported(
            f"{type(inner).__name__} gives other logits in pieces than at once, so its histories cannot be forked "
            f"without error: {error}"
        ) from error
    except FAULTS as error:
        if ran_out(error):
            raise
        raise Unsupported(f"{type(inner).__name__} cannot be run as others of its kind are: {error}") from error


def ordinary(forwarder: Forwarder) -> NDArray[np.int64]:
    """Return the tokens of a model that mean nothing but themselves, as far as its config tells."""
    every = np.arange(forwarder.vocab_size)
    found = np.setdiff1d(every, list(_special(core(forwarder.model).config.to_dict())))
    return found if len(found) > 1 else every


def _special(config: dict[str, Any]) -> Iterator[int]:
    """Tokens that a config names: they may mean an image, or padding."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _special(value)
        elif str(name).endswith(("token_id", "token_index")):
            yield from value if isinstance(value, list | tuple) else (value,) if isinstance(value, int) else ()
