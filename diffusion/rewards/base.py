"""Rewards of images, clips and other tensors: batched, counted, differentiable or not."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...ppl.cost import charge, rows
from ...ppl.errors import AmbiguousScore, InvalidWeight, Unsupported
from ...ppl.score import ScoreError, evaluate


class TensorReward:
    """A function of a batch (n, …) to n numbers, as a reward. Made by `as_reward`."""

    def __init__(self, fn: Any) -> None:
        self._fn = fn
        self.differentiable: bool = getattr(fn, "differentiable", True)
        self.name: str = getattr(fn, "name", getattr(fn, "__name__", type(fn).__name__))

    def __call__(self, data: Any, latents: Any, owners: NDArray[np.intp]) -> Any:
        """Return the rewards (n,) of data (n, …), float64; row i belongs to particle ``owners[i]``.

        Raises InvalidWeight where one is NaN or +inf, naming the particle.
        """
        with rows(owners.tolist()):
            charge(reward_calls=np.ones(len(data), np.int64))
            try:
                found = self._fn(data)
            except (RuntimeError, TypeError) as error:  # what torch raises where NumPy asks for such a tensor
                if getattr(data, "requires_grad", False) and "numpy" in str(error):
                    raise _without_gradient(self.name) from error
                raise
        found = torch.as_tensor(found, dtype=torch.float64).cpu()
        if found.shape != (len(data),):
            raise InvalidWeight(f"reward {self.name!r} got {len(data)} samples and returned shape {tuple(found.shape)}")
        bad = found.isnan() | (found == torch.inf)
        if bool(bad.any()):
            i = int(bad.nonzero()[0, 0])
            raise InvalidWeight(f"reward {self.name!r} returned {float(found[i])} for particle {owners[i]}")
        return found


class ScoredReward:
    """A `feynkac.reward` of one array, as a reward of a batch: typed, not differentiable.

    Raises AmbiguousScore for one whose numbers are probabilities.
    """

    differentiable = False

    def __init__(self, reward: Any) -> None:
        self._reward = reward
        self.name: str = getattr(reward, "name", type(reward).__name__)
        if getattr(reward, "kind", "real") == "probability":
            raise AmbiguousScore(
                f"reward {self.name!r} gives probabilities, and log-weights are made of r: let it return log p, with "
                'kind="log_weight"'
            )

    def __call__(self, data: Any, latents: Any, owners: NDArray[np.intp]) -> Any:
        """Return the rewards (n,), float64. Raises InvalidWeight for NaN and +inf, naming the particle."""
        with rows(owners.tolist()):
            items = data.detach().cpu().numpy() if isinstance(data, torch.Tensor) else data
            scores = [self._reward(one) for one in items]
            try:
                return torch.tensor(evaluate(scores), dtype=torch.float64)
            except ScoreError as error:
                raise InvalidWeight(f"particle {owners[error.index]}: {error}") from error


def as_reward(reward: Any) -> TensorReward | ScoredReward:
    """Return a reward of batches, of a function of a batch or a `feynkac.reward`; raises TypeError for neither."""
    if isinstance(reward, TensorReward | ScoredReward):
        return reward
    if not callable(reward):
        raise TypeError(f"a reward is a function of a batch (n, …) to (n,), or a feynkac.reward, not {reward!r:.200}")
    return ScoredReward(reward) if hasattr(reward, "score_batch") else TensorReward(reward)


def check_gradient(reward: Any, asker: str) -> None:
    """Raise Unsupported where a gradient is asked of a reward that is known to have none.

    Of a function that says nothing of it (it has no attribute ``differentiable``), `slope` finds out.
    """
    found = as_reward(reward)
    if not found.differentiable:
        raise _without_gradient(found.name, asker)


def _without_gradient(name: str, asker: str = "what steers by it") -> Unsupported:
    return Unsupported(
        f"reward {name!r} cannot be differentiated, and {asker} needs its gradient: compute it by torch, from the "
        "batch that it is given, or use it where none is needed, as in Steering(reward)"
    )


def slope(value: Any, x: Any, reward: Any, going: NDArray[np.bool_]) -> Any:
    """Return the gradient (n, …) of rewards (n,) by x (n, …), 0 for particles that are not ``going`` (n,) on.

    Raises Unsupported where torch has no way from one to the other, and InvalidWeight where the gradient is not finite.
    """
    name = getattr(reward, "name", type(reward).__name__)
    if not value.requires_grad:
        raise _without_gradient(name)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    needed = torch.as_tensor(going, device=x.device).reshape(-1, *[1] * (x.dim() - 1))
    gradient = torch.where(needed, gradient, 0.0)  # at finished data it may be anything
    bad = (~torch.isfinite(gradient.flatten(1))).any(1)
    if bool(bad.any()):
        raise InvalidWeight(
            f"reward {name!r} has a gradient that is not finite for particle {int(bad.nonzero()[0, 0])}"
        )
    return gradient
