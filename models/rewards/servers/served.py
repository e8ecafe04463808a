"""Rewards behind a server: a classifier, a scorer of pairs, a pooled reward, and similarity by embeddings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ....ppl.score import Kind
from ...served.client import Client
from ..base import Input, Template, TextReward, as_input
from .endpoint import Endpoint

Task = Literal["classify", "score", "pooling", "embed"]
_PATHS: dict[Task, str] = {
    "classify": "/classify",
    "score": "/v1/score",
    "pooling": "/pooling",
    "embed": "/v1/embeddings",
}
_SUM = 1e-3
"""How far the probabilities of a server's arithmetic may be from a sum of 1."""


class Served(TextReward):
    """A number that a server gives for a text, or for a pair: a reward as those are that run here.

    The inputs of a wave go in one request, as a list. What the server is to do, ``task``, is one of

        classify   the probability of a label, by a sequence classifier or a reward model (``/classify``)
        score      how well the second string of a pair goes with the first (``/v1/score``)
        pooling    the number that a reward model gives to the whole input (``/pooling``)
        embed      the cosine similarity to references (``/v1/embeddings``)

    as vLLM has them, started by ``--runner pooling``. Process reward models are `ServedPRM`.

    Args:
        url: of the server, or a `Client`.
        task: what it is to do.
        kind: "probability" takes the server's probabilities; "real" its logits (``use_activation=false``), which do not
            saturate, and similarities.
        label: which of several numbers, by index. Needed where there are several.
        references: a text, or several, for "embed".
        reduce: "max" or "mean" over references.
        model: what the server calls the model; None where it has only one.
        template: makes the input of the arguments.
        api_key: what lets us in; by default that of the environment, see `Client`.
        max_batch: most inputs in a request.
        cache: results remembered.

    Raises ValueError for settings that do not go together. A score raises ServerError where the server cannot be
    reached, UnusableAnswer where what it says is no such number, and ContextOverflow for an input that is too long.

    >>> from feynkac.models.testing import FakeServer
    >>> from feynkac.ppl.score import evaluate
    >>> with FakeServer() as server:
    ...     kind = Served(server.url, "classify", label=1)
    ...     kind("Thank you."), 0 < evaluate([kind("Thank you.")])[0] < 1
    (<probability score of classify>, True)
    """

    def __init__(
        self,
        url: str | Client,
        task: Task,
        *,
        kind: Kind | None = None,
        label: int | None = None,
        references: str | Sequence[str] | None = None,
        reduce: Literal["max", "mean"] = "max",
        model: str | None = None,
        template: Template = None,
        api_key: str | None = None,
        max_batch: int = 1024,
        name: str | None = None,
        cache: int = 10_000,
    ) -> None:
        name = name or task
        if task not in _PATHS:
            raise ValueError(f"reward {name!r}: task must be one of {', '.join(get_args(Task))}, not {task!r}")
        embeds = task == "embed"
        kind = kind or ("real" if embeds else "probability")
        if kind not in (("real",) if embeds else ("probability", "real")):
            raise ValueError(f"reward {name!r}: {task} gives {'real' if embeds else 'probability or real'}, not {kind}")
        if embeds != (references is not None) or (embeds and label is not None):
            raise ValueError(f"reward {name!r}: references= belong to 'embed', and label= to other tasks")
        if reduce not in ("max", "mean"):
            raise ValueError(f"reduce must be 'max' or 'mean', not {reduce!r}")
        super().__init__(name, kind, template, cache)
        self.task, self.label, self.reduce = task, label, reduce
        fixed = {"encoding_format": "float"} if embeds else {"use_activation": kind == "probability"}
        self._endpoint = Endpoint(
            url, _PATHS[task], name, model=model, api_key=api_key, max_batch=max_batch, fixed=fixed
        )
        self._given = [references] if isinstance(references, str) else list(references or ())
        self._embedded: NDArray[np.float64] | None = None
        if embeds and not self._given:
            raise ValueError(f"reward {name!r} needs at least one reference")

    def prepare(self, *args: Any, **named: Any) -> Input:
        """Return what is scored: a pair of strings for "score", else a string. Raises TypeError for anything else."""
        made: Input = super().prepare(*args, **named)
        pair = not isinstance(made, str) and len(made) == 2 and all(isinstance(part, str) for part in made)
        if pair != (self.task == "score") or not (pair or isinstance(made, str)):
            wanted = "a pair of strings" if self.task == "score" else "a string or a text"
            raise TypeError(f"reward {self.name!r} reads {wanted}: give a template that makes one")
        return made

    @property
    def journal_key(self) -> Any:
        """What tells it from other rewards in a journal: the server, its model, and what is read of it."""
        return (self.kind, self.task, self.label, self.reduce, self._given, self._endpoint.journal_key)

    def score_batch(self, inputs: Sequence[tuple[Any, ...]]) -> list[float]:
        """Return one number for each input."""
        keys = [key for (key,) in inputs]
        if self.task == "embed":
            return self._similar(keys)
        if self.task == "score":
            items = self._endpoint.ask(text_1=[key[0] for key in keys], text_2=[key[1] for key in keys])
            return [self._one([number]) for item in items for number in self._numbers(item.get("score"))[:1]]
        field = "probs" if self.task == "classify" else "data"
        items = self._endpoint.ask(input=keys)
        return [self._one(self._numbers(item.get(field))) for item in items]

    def _numbers(self, given: Any) -> list[float]:
        return self._endpoint.numbers(given, "what it gave")

    def _one(self, numbers: list[float]) -> float:
        """Return the number that counts, where it is what it was asked to be."""
        bounded = all(0.0 <= number <= 1.0 for number in numbers)
        if self.kind == "probability" and not bounded:
            self._endpoint.unusable(f"{numbers} are no probabilities; take its logits by kind='real'")
        if self.kind == "real" and bounded and len(numbers) > 1 and math.isclose(sum(numbers), 1.0, abs_tol=_SUM):
            self._endpoint.unusable(
                f"{numbers} are probabilities, though logits were asked for (use_activation=false), which it does not "
                "know: take kind='probability', or a newer server"
            )
        if self.label is None and len(numbers) > 1:
            raise ValueError(f"reward {self.name!r} has {len(numbers)} numbers for an input: say which by label=")
        place = self.label or 0
        if not -len(numbers) <= place < len(numbers):
            raise ValueError(f"reward {self.name!r} has {len(numbers)} numbers for an input, and no label {self.label}")
        return numbers[place]

    @property
    def references(self) -> NDArray[np.float64]:
        """Unit vectors of the references, (m, d); asked for once."""
        if self._embedded is None:
            self._embedded = self._embed([as_input(self.name, reference) for reference in self._given])
        return self._embedded

    def _embed(self, items: Sequence[Any]) -> NDArray[np.float64]:
        vectors = [self._numbers(item.get("embedding")) for item in self._endpoint.ask(input=items)]
        if len({*map(len, vectors)}) > 1 or not all(map(any, vectors)):
            self._endpoint.unusable("its vectors are of different lengths, or zero")
        found = np.array(vectors)
        units: NDArray[np.float64] = found / np.linalg.norm(found, axis=1, keepdims=True)
        return units

    def _similar(self, keys: Sequence[Any]) -> list[float]:
        cosines = (self._embed(keys) @ self.references.T).clip(-1.0, 1.0)
        numbers: list[float] = (cosines.max(1) if self.reduce == "max" else cosines.mean(1)).tolist()
        return numbers
