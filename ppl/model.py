"""The contract: what a Feynman–Kac model offers, and all that an engine may see.

A Feynman–Kac model is a start M_0, transitions M_t(x_t | x_{t−1}) and potentials G_t ≥ 0, with the target

    π(x_{0:T}) = (1/Z) · M_0(x_0) G_0(x_0) · Π_t M_t(x_t | x_{t−1}) G_t(x_{t−1}, x_t).

Programs (`program`), language models and diffusion models build one; engines approximate π and Z through
`FeynmanKac` alone. See Del Moral (2004), doi:10.1007/978-1-4684-9393-4.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidWeight
from .keys import Keys
from .sites import Site, Tentative
from .values.reals import reals

Floats = NDArray[np.float64]
Index = NDArray[np.intp]


class State(Protocol):
    """A batch of immutable particles. It holds no random state, and advancing it never changes it."""

    @property
    def depth(self) -> NDArray[np.int64]:
        """Steps made by each particle, shape (n,)."""

    @property
    def done(self) -> NDArray[np.bool_]:
        """Whether each particle has finished (or died), shape (n,)."""

    def __len__(self) -> int: ...


S = TypeVar("S")


@dataclass(frozen=True)
class Advance(Generic[S]):
    """One step of a batch of n particles, with the parts of its weight kept apart.

    Attributes:
        state: the particles after the step.
        choices: what each particle chose in the step, to be given back through ``given``.
        log_prob: (n,) log p of the choices.
        log_proposal: (n,) log q of the choices; equals ``log_prob`` where nothing else was proposed.
        log_potential: (n,) log G_t; −inf kills the particle.
        log_twist: (n,) the level of the guide, finite, 0 once done.
        done: (n,) whether each particle has finished.
        scored: (n,) whether ``log_prob`` covers every choice (False where a model has no log-probs).
    """

    state: S
    choices: Sequence[Any]
    log_prob: Floats
    log_proposal: Floats
    log_potential: Floats
    log_twist: Floats
    done: NDArray[np.bool_]
    scored: NDArray[np.bool_]

    def __post_init__(self) -> None:
        """Raise InvalidWeight, by name, for weights that are no real numbers."""
        for name in ("log_prob", "log_proposal", "log_potential", "log_twist"):
            numbers = getattr(self, name)
            try:
                found = reals(numbers)
            except TypeError as error:
                raise InvalidWeight(f"a model's {name} must be an array of numbers; in it is {error}") from error
            if found is not numbers:
                object.__setattr__(self, name, found)

    @property
    def log_increment(self) -> Floats:
        """The importance increment log G + log p − log q, shape (n,); −inf for a dead particle."""
        if self.log_prob is self.log_proposal:
            return self.log_potential
        with np.errstate(invalid="ignore"):
            ratio = np.where(self.log_prob == self.log_proposal, 0.0, self.log_prob - self.log_proposal)
        return np.where(np.isneginf(self.log_potential), -np.inf, self.log_potential + ratio)


def retry(choices: Any) -> Any:
    """Return what forces a step's choices on another past, where they may not fit; arrays stay as they are."""
    sites = isinstance(choices, tuple) and all(isinstance(site, Site) for site in choices)
    return Tentative(choices) if sites else choices


class FeynmanKac(Protocol[S]):
    """A Feynman–Kac model over batches of particles. Engines see only this.

    ``start`` and ``advance`` take one key per particle and make one batched call to each underlying model.
    ``given`` forces recorded choices (an item of ``Advance.choices``, or None where the particle is free) and
    scores them. An engine may try them on another past, where they have density zero if they do not fit: then that
    particle dies, with log_prob −inf, and the others of the batch go on. Choices of sites are marked as `Tentative`
    for it (see `retry`); given plainly, they must be met, else `ImpossibleChoice` is raised. A particle that is done
    passes through ``advance`` unchanged, with all its terms 0.

    A model may have an attribute ``guarantee``: "discretised" says that its target is reached as its steps get smaller,
    and the posterior of an engine promises no more than that. And one ``auxiliary``: True says that some choices only
    help to weigh the others, so that engines which raise probabilities to a power refuse it.
    """

    def start(self, keys: Keys, given: Sequence[Any] | None = None) -> Advance[S]:
        """Draw x_0 for each key and weigh it: M_0 and G_0."""

    def advance(self, state: S, keys: Keys, given: Sequence[Any] | None = None) -> Advance[S]:
        """Move each particle one step: M_t and G_t."""

    def select(self, state: S, index: Index) -> S:
        """Keep, duplicate or reorder particles: the fork. ``index`` may repeat and have any length."""

    def concat(self, states: Sequence[S]) -> S:
        """Join batches of particles."""

    def values(self, state: S) -> list[Any]:
        """Return each particle's value: what it returned, or its last ``"output"``."""


class Draws(NamedTuple):
    """What a kernel drew: n values, and their log-probabilities (n,) or None where it cannot say.

    A log-probability of −inf says that the request had no possible outcome: the particle dies there.

    A kernel that draws from a law q of its own, not from its p, gives log q as ``log_proposal``. Then p need not be
    normalised, and q may be random, as long as the draw is properly weighted: E[p(x)/q · 1{x}] = p(x).
    """

    values: Sequence[Any] | NDArray[Any]
    log_prob: Floats | None
    log_proposal: Floats | None = None


@runtime_checkable
class Kernel(Protocol):
    """Something that can be drawn from in batches: a distribution, an LLM step, a denoising step.

    Requests whose ``batch_key`` are equal are served by one call to ``sample_batch`` of any of them. A request
    may also offer ``support()`` (all its values, where they are few), ``covers(other)`` (whether it can reach all
    that ``other`` can; needed of a proposal that restricts its own support), ``fits(value)`` (whether a value has the
    shape and kind of its draws; one that has not is never drawn), and ``observing(value)`` (the request and the value
    that are meant where it is observed at a value of another kind, such as a string for a text). One whose draws have a
    ``log_proposal`` has ``log_proposal_batch(requests, values)``, too, for values that are forced.
    ``journalled = True`` says that its draws are kept in journals, by itself or by what it calls. With
    ``expensive = True`` its calls wait until no particle has anything lighter to do, so that as many as possible share
    them.
    """

    @property
    def batch_key(self) -> Hashable:
        """Requests with the same key share a call."""

    @property
    def fingerprint(self) -> Hashable:
        """A cheap summary of the request, compared when a program is replayed."""

    def sample_batch(self, requests: Sequence[Any], keys: Keys) -> Draws:
        """Draw one value for each request, each from its own key."""

    def log_prob_batch(self, requests: Sequence[Any], values: Sequence[Any]) -> Floats:
        """Return log p of each value under its request, shape (n,). Optional."""
