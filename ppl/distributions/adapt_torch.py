"""``torch.distributions`` as kernels. All arithmetic is in float64 on the CPU.

Families that stack are drawn and scored together, in a few microseconds for each particle; but torch takes 50 µs and
more to make one, each time that a program does, so in a loop make it once, where its parameters are constant, or take
``fk.dist`` or NumPyro. What does not stack (mixtures, transforms) is drawn and scored one by one: another 500 µs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any

import numpy as np

from .. import keys as _keys
from ..keys import Keys
from ..model import Draws, Floats
from . import batching as _b
from .adapted import Adapted, arrays, constrained, listed, whole
from .batching import Bounds

_seeding = Lock()

STACKED: dict[str, tuple[str, ...]] = {
    "Bernoulli": ("probs",),
    "Beta": ("concentration1", "concentration0"),
    "Binomial": ("total_count", "probs"),
    "Categorical": ("probs",),
    "Cauchy": ("loc", "scale"),
    "Dirichlet": ("concentration",),
    "Exponential": ("rate",),
    "Gamma": ("concentration", "rate"),
    "Geometric": ("probs",),
    "Gumbel": ("loc", "scale"),
    "HalfCauchy": ("scale",),
    "HalfNormal": ("scale",),
    "Laplace": ("loc", "scale"),
    "LogNormal": ("loc", "scale"),
    "MultivariateNormal": ("loc", "scale_tril"),
    "NegativeBinomial": ("total_count", "probs"),
    "Normal": ("loc", "scale"),
    "Poisson": ("rate",),
    "StudentT": ("df", "loc", "scale"),
    "Uniform": ("low", "high"),
}
"""Families whose parameters stack, and the names under which their constructors take them."""


def adapt(dist: Any) -> Adapted | None:
    """Wrap a distribution; ``Independent`` is what every kernel is, and comes off."""
    from torch.distributions import Distribution, Independent

    if not isinstance(dist, Distribution):
        return None
    base = dist
    while type(base) is Independent:
        base = base.base_dist
    cls = type(base)
    names = STACKED.get(cls.__name__) if cls.__module__.startswith("torch.distributions") else None
    return Single(base) if names is None else Stacked(base, names)


class Torch(Adapted):
    """What both kinds of adapters of PyTorch's distributions share."""

    __slots__ = ()

    def fits(self, value: Any) -> bool:
        """Whether a value has the shape of a draw, and is whole where draws are."""
        return _b.has_form(value, self.dist.batch_shape + self.dist.event_shape, _discrete(self.dist))

    def _candidates(self) -> list[Any] | None:
        if self.dist.batch_shape or not self.dist.has_enumerate_support:
            return None
        return listed(self.dist.enumerate_support(expand=False).detach().cpu())


class Stacked(Torch):
    """A family that stacks: drawn by inversion or a linear map where there is one, else seeded as a batch."""

    __slots__ = ("names",)

    def __init__(self, dist: Any, names: tuple[str, ...]) -> None:
        # Given logits stay logits: probabilities would round the smallest to 0.
        if names[-1] == "probs" and "probs" not in vars(dist):
            names = (*names[:-1], "logits")
        self.names = names
        shapes = tuple(tuple(getattr(dist, name).shape) for name in names)
        super().__init__(dist, ("torch", type(dist), names, shapes))

    def _parameters(self) -> Sequence[Any]:
        return arrays([getattr(self.dist, name) for name in self.names])

    def _stack(self, requests: Sequence[Any]) -> Any:
        import torch

        given = {name: [getattr(r.dist, name).detach().cpu() for r in requests] for name in self.names}
        columns = {name: torch.stack(items).double() for name, items in given.items()}
        return type(self.dist)(**columns, validate_args=False)

    def sample_batch(self, requests: Sequence[Any], keys: Keys) -> Draws:
        """Draw one value for each of n requests: values (n, *event)."""
        import torch

        with torch.no_grad():
            stacked = self._stack(requests)
            values = self._draw(stacked, keys)
            if stacked.support.is_discrete:
                values = values.long()
            return Draws(_b.frozen(values.numpy()), _b.total(self._density(stacked, values)))

    def _draw(self, stacked: Any, keys: Keys) -> Any:
        import torch

        family = type(stacked).__name__
        if family == "MultivariateNormal":
            z = torch.from_numpy(_b.normals(keys, tuple(stacked.loc.shape)))
            return stacked.loc + (stacked.scale_tril @ z[..., None])[..., 0]
        u = _b.uniforms(keys, tuple(stacked.batch_shape))
        if family == "Categorical":
            return torch.from_numpy(_b.invert(stacked.probs.numpy(), u))
        if family == "Bernoulli":
            return torch.from_numpy(u < stacked.probs.numpy())
        try:
            return stacked.icdf(torch.from_numpy(u))
        except NotImplementedError:
            with _seeded():
                torch.manual_seed(_keys.as_seed(keys))
                return stacked.sample()

    def log_prob_batch(self, requests: Sequence[Any], values: Sequence[Any]) -> Floats:
        """Return log p of each value, shape (n,)."""
        return _b.total(self.log_prob_terms(requests, values))

    def log_prob_terms(self, requests: Sequence[Any], values: Sequence[Any]) -> Floats:
        """Return log p of each component of each value, (n, *batch)."""
        import torch

        with torch.no_grad():
            stacked = self._stack(requests)
            x = torch.from_numpy(_b.numbers(type(self.dist).__name__, "the value", arrays(values)))
            event = tuple(stacked.batch_shape + stacked.event_shape)
            if x.shape != event:
                shape = tuple(x.shape[1:])
                raise ValueError(f"{type(self.dist).__name__}: a value of shape {shape} for draws of {event[1:]}")
            return self._density(stacked, x)

    def _density(self, stacked: Any, x: Any) -> Floats:
        terms: Floats = log_terms(stacked, self.names, x).numpy()
        return terms

    def double(self) -> Stacked:
        """Return it in float64, and unvalidated, with its parameters on their graph."""
        given = {name: getattr(self.dist, name).double() for name in self.names}
        return Stacked(type(self.dist)(**given, validate_args=False), self.names)

    def bounds(self) -> Bounds | None:
        """Return where the draws lie, or None where bounds alone do not say."""
        if type(self.dist).__name__ == "Categorical":
            return None
        return constrained(self.dist.support, tuple(self.dist.batch_shape + self.dist.event_shape))


def log_terms(dist: Any, names: Sequence[str], x: Any) -> Any:
    """Return log p of each component of a value under a family that stacks, given by these parameters: a tensor."""
    import torch

    x = x.double()
    possible = dist.support.check(x)
    if type(dist).__name__ == "Categorical":
        # PyTorch's own would give a category of probability 0 the log of the smallest float.
        logs = dist.probs.log() if tuple(names) == ("probs",) else dist.logits
        logs = logs.gather(-1, torch.where(possible, x, 0).long()[..., None])[..., 0]
    elif type(dist).__name__ == "Bernoulli" and tuple(names) == ("probs",):
        logs = torch.where(x == 1, dist.probs.log(), torch.log1p(-dist.probs))
    else:
        logs = dist.log_prob(x)
    return torch.where(possible, logs, -torch.inf)


class Single(Torch):
    """Any other distribution (mixtures, transforms, the user's own): drawn and scored one by one."""

    __slots__ = ()

    def __init__(self, dist: Any) -> None:
        super().__init__(dist, ("torch", type(dist), tuple(dist.batch_shape + dist.event_shape)))

    def _parameters(self) -> Sequence[Any]:
        return arrays(_parts(self.dist))

    def sample_batch(self, requests: Sequence[Any], keys: Keys) -> Draws:
        """Draw with PyTorch's generator, seeded by each key in turn: values (n, *event)."""
        import torch

        drawn = []
        with torch.no_grad(), _seeded():
            for i, request in enumerate(requests):
                torch.manual_seed(_keys.as_seed(keys[i : i + 1]))
                drawn.append(request.dist.sample().cpu())
            logs = [_score(r.dist, x) for r, x in zip(requests, drawn)]
        values = torch.stack(drawn).numpy()
        return Draws(_b.frozen(whole(values) if _discrete(self.dist) else values), np.array(logs))

    def log_prob_batch(self, requests: Sequence[Any], values: Sequence[Any]) -> Floats:
        """Return log p of each value, shape (n,)."""
        import torch

        with torch.no_grad():
            return np.array([_score(r.dist, np.array(v)) for r, v in zip(requests, arrays(values))])

    def bounds(self) -> Bounds | None:
        """Return where the draws lie, or None where bounds alone do not say."""
        try:
            found = constrained(self.dist.support, tuple(self.dist.batch_shape + self.dist.event_shape))
        except NotImplementedError:
            return None
        return None if found is None or found.discrete else found


@contextmanager
def _seeded() -> Iterator[None]:
    """Leave PyTorch's generators as they were. They are one for all threads, which take turns."""
    import torch

    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with _seeding, torch.random.fork_rng(devices=devices):
        yield


def _parts(dist: Any) -> Iterator[Any]:
    """Walk the tensors and numbers that a distribution, its bases and its transforms hold."""
    from torch import Tensor
    from torch.distributions import Distribution, Transform

    for name, item in sorted(vars(dist).items()):
        for part in item if isinstance(item, list | tuple) else [item]:
            if isinstance(part, Distribution | Transform) and name != "_inv":
                yield from _parts(part)
            elif isinstance(part, Tensor | int | float):
                yield part


def _score(dist: Any, x: Any) -> float:
    import torch

    tensors = (part for part in _parts(dist) if isinstance(part, torch.Tensor) and part.is_floating_point())
    x = torch.as_tensor(x).to(next(tensors, torch.empty(0)))
    if x.shape != dist.batch_shape + dist.event_shape:
        shape = tuple(dist.batch_shape + dist.event_shape)
        raise ValueError(f"{type(dist).__name__}: a value of shape {tuple(x.shape)} for draws of {shape}")
    try:
        if not bool(dist.support.check(x).all()):
            return -np.inf
    except NotImplementedError:
        pass
    return float(dist.log_prob(x).double().sum())


def _discrete(dist: Any) -> bool:
    try:
        return bool(dist.support.is_discrete)
    except NotImplementedError:
        return False
