"""What is met on the way through a program's code: sites, where they are, and the listener that answers them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ..distributions.terms import Terms
from ..effects import Scan
from ..errors import NotTraceable
from ..keys import tag
from ..sites import MISSING, address


class Loop(NamedTuple):
    """A scan that is being traced.

    Attributes:
        length: its iterations.
        index: the current one: a symbol.
        strides: how often each name is visited in an iteration, by the name it has in the first one.
        steps: steps of the program that an iteration makes.
    """

    length: int
    index: Any
    strides: dict[str, int]
    steps: int


class Spot(NamedTuple):
    """Where a site is, in numbers alone: for each iteration of the loops around it, its name, visit and step.

    Attributes:
        kind: "sample", "observe", "factor", "twist", "deterministic", "call" or "do".
        name: in the first iteration.
        visit: in the first iteration; so is ``step``, of the program.
        lengths: of the loops, from the outermost.
        strides: by how much each loop's iteration adds to the visit; so do ``steps`` to the step.
        names: by iteration, where the name is not the same in all (in a gather within a loop); else None.
        hidden: whether a ``block`` handler hides the site.
    """

    kind: str
    name: str
    visit: int
    step: int
    lengths: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()
    names: Any = None
    hidden: bool = False

    @property
    def slot(self) -> str:
        """The address in the first iteration, which tells a site from all others of the traced code."""
        return address(self.name, self.visit)

    def at(self, index: Sequence[int] = ()) -> tuple[str, int, int]:
        """Return name, visit and step in an iteration of the loops."""
        name = self.name if self.names is None else str(self.names[tuple(index)])
        return name, self.visit + dot(self.strides, index), self.step + dot(self.steps, index)


def dot(strides: Sequence[int], index: Sequence[Any]) -> Any:
    """Return by how much the iterations of some loops add up."""
    return sum(stride * i for stride, i in zip(strides, index))


class Met:
    """A site, as the driver meets it. ``value`` is what is observed, weighed or recorded; what it is of a sample, the
    listener says."""

    __slots__ = ("_law", "_proposal", "effect", "index", "spot", "terms", "value")

    def __init__(self, spot: Spot, index: tuple[Any, ...], effect: Any = None, value: Any = MISSING) -> None:
        self.spot = spot
        self.index = index
        self.effect = effect
        self.value = value
        self.terms: Terms = getattr(effect, "terms", None) or Terms()
        self._law: Any = None
        self._proposal: Any = None

    def __repr__(self) -> str:
        return f"{self.spot.kind} {self.slot!r}"

    @property
    def slot(self) -> str:
        """See `Spot.slot`."""
        return self.spot.slot

    @property
    def visit(self) -> Any:
        """The visit: a symbol in loops."""
        return self.spot.visit + dot(self.spot.strides, self.index)

    @property
    def step(self) -> Any:
        """The program's step that the site belongs to: a symbol in loops."""
        return self.spot.step + dot(self.spot.steps, self.index)

    @property
    def kernel(self) -> Any:
        """What the program wrote: a distribution, or a kernel."""
        return self.effect.kernel

    @property
    def law(self) -> Any:
        """Its law in JAX. Raises NotTraceable, naming the site, where there is none."""
        if self._law is None:
            self._law = self._in_jax(self.effect.kernel)
        return self._law

    @property
    def proposal(self) -> Any:
        """The law that it is drawn from, where the program gives one of its own, else None."""
        if self._proposal is None and self.effect.proposal is not None:
            self._proposal = self._in_jax(self.effect.proposal)
        return self._proposal

    def _in_jax(self, dist: Any) -> Any:
        from .laws import law_of

        return law_of(dist, f"site {self.slot!r}")

    @property
    def forced(self) -> Any:
        """The value that a handler forces, or MISSING."""
        return self.effect.forced

    def log_prob(self, value: Any) -> Any:
        """Return log p of a value, as it counts: scaled, and of an observation under its mask."""
        mask, scale = self.terms
        if self.spot.kind != "observe" or mask is True:
            return self.law.log_prob(value) if scale == 1.0 else scale * self.law.log_prob(value)
        if mask is False:
            return 0.0
        import jax.numpy as jnp

        terms = self.law.terms(jnp.where(mask, value, value[mask][0] if mask.any() else 0.0))
        if terms.shape != mask.shape:
            raise ValueError(f"{self!r}: a mask of shape {mask.shape} for components of shape {terms.shape}")
        return scale * jnp.sum(jnp.where(mask, terms, 0.0))

    def key(self, key: Any) -> Any:
        """Return the site's key of JAX, from that of the particle (or the run)."""
        import jax
        import jax.numpy as jnp

        if self.spot.names is None:
            word: Any = _word(self.spot.name)
        else:
            word = jnp.asarray(np.vectorize(_word, otypes=[np.uint32])(self.spot.names))[self.index]
        return jax.random.fold_in(jax.random.fold_in(key, word), self.visit)


def _word(name: str) -> np.uint32:
    return np.uint32(int(tag(name)) >> 32)


class Listener:
    """What answers sites and collects what they weigh. Base of all; by itself it refuses what it does not know."""

    checkpoint = False
    """Whether a scan's step is computed again for gradients, to keep one carry of each iteration and no more."""

    def sample(self, site: Met) -> Any:
        """Return the value of a latent."""
        raise NotImplementedError

    def observe(self, site: Met) -> None:
        """Take up an observation: of ``site.value``, with ``site.log_prob(site.value)``."""

    def factor(self, site: Met) -> None:
        """Take up a factor, of log-weight ``site.value``."""

    def twist(self, site: Met) -> None:
        """Take up a twist, of level ``site.value``."""

    def record(self, site: Met) -> None:
        """Take up a deterministic quantity, or an intervention (of kind "do"): ``site.value``."""

    def score(self, site: Met) -> Any:
        """Return the log-weight of a lazy score."""
        raise NotTraceable(f"{site!r}: a lazy score is computed by a model, which nothing can trace")

    def call(self, site: Met) -> Any:
        """Return the value of an `fk.call`."""
        raise NotTraceable(
            f"site {site.slot!r}: fk.call records what a function of Python returned; where JAX can trace it, call it "
            "without fk.call"
        )

    def other(self, site: Met) -> Any:
        """Return the answer to any other effect."""
        raise NotTraceable(f"site {site.slot!r}: fk.{site.effect.kind} cannot be traced")

    def opens(self, effect: Scan) -> None:
        """Take note of a scan, before anything of it is traced."""

    def scan(self, plan: Any) -> tuple[Any, Any]:
        """Return the last carry and the ys of a scan: by one `lax.scan`, see `loops.Plan`."""
        return plan.run(self)  # type: ignore[no-any-return]

    def probe(self) -> Listener:
        """Return the listener of the run that finds out what an iteration of a scan does."""
        return Probe()

    def enter(self, plan: Any) -> Any:
        """Return what differs by iteration (values to force, say): arrays with a leading axis of iterations."""
        return ()

    def iterate(self, extra: Any) -> Listener:
        """Return the listener of one iteration, from that iteration's part of `enter`."""
        raise NotTraceable(f"{type(self).__name__} cannot be used inside a scan")

    def outputs(self) -> Any:
        """Return what an iteration's listener collected, as arrays."""
        return ()

    def leave(self, plan: Any, inside: Any, stacked: Any) -> None:
        """Take up what all iterations collected: their stacked `outputs`; ``inside`` is the listener of the trace."""


class Probe(Listener):
    """Draws what it must, in an abstract run, and notes the sites."""

    def __init__(self) -> None:
        self.spots: list[Spot] = []

    def sample(self, site: Met) -> Any:
        """Return a value of the right shape."""
        import jax

        self._note(site)
        return site.law.draw(jax.random.key(0)) if site.forced is MISSING else site.forced

    def observe(self, site: Met) -> None:
        """Note it."""
        self._note(site)

    factor = twist = record = observe

    def _note(self, site: Met) -> None:
        if site.spot not in self.spots:  # a scan within the step may be traced several times
            self.spots.append(site.spot)

    def probe(self) -> Listener:
        """Return another of its kind, for scans within the step; the run of their iterations is noted here."""
        twin = copy.copy(self)
        twin.spots = []
        return twin

    def iterate(self, extra: Any) -> Listener:
        """Return itself."""
        return self
