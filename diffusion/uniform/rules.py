"""Rules of diffusion with uniform noise: what a step does to tokens that may all be wrong, and with what probability.

No token stands for noise: what is not yet said is a token drawn uniformly from all K. μ_l(v) is the network's law of
the clean token at position l, given all tokens as they are. Every rule can be drawn from and has its exact probability.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ...ppl.values.reals import whole_number
from ..masked.site import Site, best, chosen, log_surest, put, surest
from ..tokens import tokens_at


class Rule(Protocol):
    """How a step of uniform diffusion is drawn, and its probability.

    A rule that ``commits`` tokens tells them from noise: what is not committed is held as −1 − token. One that
    ``renoises`` says how particles go back. In a `Site` for these rules ``x`` has tokens only, ``open`` is what may
    change, and ``revealed`` what is committed.
    """

    count: int
    commits: ClassVar[bool]
    renoises: ClassVar[bool]

    def temperature(self, at: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the temperatures (n,) of the network's laws after so many steps of a block."""

    def draw(self, site: Site, uniforms: Any) -> Any:
        """Return the tokens (n, L) after a step, from uniform numbers (n, `UNIFORMS`, L)."""

    def log_prob(self, site: Site, x: Any) -> Any:
        """Return the log-probability (n,), float64, that a step leads to ``x`` (n, L) at positions that are open."""

    def noised(self, site: Site, to: int, uniforms: Any, fresh: Any) -> Any:
        """Return tokens (n, L) where ``to`` steps of the block lead, ``fresh`` ones in place of those that are lost."""


@dataclass(frozen=True)
class _Steps:
    """What rules have in common that take ``count`` steps for a block."""

    count: int

    def __post_init__(self) -> None:
        whole_number("count", self.count, 1)

    def temperature(self, at: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return 1 for each particle, (n,)."""
        return np.ones(len(at))


@dataclass(frozen=True)
class DiscreteDDIM(_Steps):
    """The reverse of uniform noise: every position on its own, by the posterior of what it was before.

    At step i of T a token is clean with probability α_t = i/T, else uniform, and is to be so with α_s = (i + 1)/T.
    With a = α_t/α_s and x0 drawn from μ, of which the sum is taken,

        P(s) = Σ_{x0} μ(x0)·[a·1(s = x_t) + (1−a)/K]·[α_s·1(s = x0) + (1−α_s)/K] / [α_t·1(x_t = x0) + (1−α_t)/K]

    Austin et al. (2021), arXiv:2107.03006 (D3PM); in diffusers `DiscreteDDIMScheduler`. Positions are drawn
    independently of each other, so that the law of T steps is not the data's, even for the exact μ, but goes to it as
    1/T.

    Args:
        count: T, steps of a block.

    Raises ValueError for fewer than one step.
    """

    commits: ClassVar[bool] = False
    renoises: ClassVar[bool] = True

    def draw(self, site: Site, uniforms: Any) -> Any:
        """Return the tokens (n, L) after a step: of x0 drawn from μ, the token that is there, or any."""
        size = site.log_mu.shape[-1]
        before, after = self._alphas(site)
        stay, clean = before / after, put(site, site.open, uniforms[:, 1])
        there = after * ((1 - stay) / size + stay * (clean == site.x))
        here, noise = ((1 - after) / size * share for share in (stay, 1 - stay))
        place = uniforms[:, 0] * (there + here + noise)
        anew = tokens_at((place - there - here) / noise.clamp(min=1e-300), size)
        x = torch.where(place < there, clean, torch.where(place < there + here, site.x, anew))
        return torch.where(site.open, x, site.x)

    def log_prob(self, site: Site, x: Any) -> Any:
        """Return the log-probability (n,) of the tokens after a step."""
        size = site.log_mu.shape[-1]
        before, after = self._alphas(site)
        mu, was = chosen(site, x).exp(), chosen(site, site.x).exp()
        stay, same, other = before / after, 1 / (before + (1 - before) / size), size / (1 - before)
        total = same * was + other * (1 - was).clamp(min=0.0)  # Σ μ(x0) / P(x_t | x0)
        kept = after * mu * torch.where(x == site.x, same, other) + (1 - after) / size * total
        each = (((1 - stay) / size + stay * (x == site.x)) * kept).log()
        return torch.where(site.open, each, 0.0).sum(-1)

    def _alphas(self, site: Site) -> tuple[Any, Any]:
        """Return the shares of clean tokens before and after a step, (n, 1) each."""
        before, after = (torch.as_tensor((site.at + n) / self.count, device=site.x.device)[:, None] for n in (0, 1))
        return before, after

    def noised(self, site: Site, to: int, uniforms: Any, fresh: Any) -> Any:
        """Return tokens (n, L) by the forward process: each is kept with probability α_to/α."""
        kept = torch.as_tensor(to / np.maximum(site.at, 1), device=site.x.device)[:, None]
        return torch.where(uniforms[:, 0] < kept, site.x, fresh)


@dataclass(frozen=True)
class EntropyBound(_Steps):
    """Tokens are drawn where the network is surest, as far as a bound goes; all others are drawn uniformly.

    Positions are taken from the least entropy on, as long as the entropies of those before add up to no more than the
    bound: what is drawn together then is nearly independent. Ben-Hamu et al. (2025), arXiv:2505.24857. Which they
    are depends on the network's laws alone, so that log P = Σ_{taken} log μ_l(v_l) − (others)·log K. Nothing is
    committed: what is taken at one step may be noise at the next.

    The laws have the temperature ``coldest`` + (``hottest`` − ``coldest``)·(N − i)/N at step i of N. In diffusers it is
    `EntropyBoundScheduler`; with ``settle`` it is what transformers does for DiffusionGemma.

    Args:
        count: N, steps of a block.
        bound: of the entropies, in nats.
        hottest: temperature of the first step.
        coldest: temperature that the last steps come near to.
        settle: whether the last step takes the likeliest token at every position. Else those that are not taken are
            noise in the end.

    Raises ValueError for a setting out of range.
    """

    bound: float = 0.1
    hottest: float = 0.8
    coldest: float = 0.4
    settle: bool = True
    commits: ClassVar[bool] = False
    renoises: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.bound >= 0:
            raise ValueError(f"bound must be 0 or more nats, not {self.bound}")
        if not 0 < self.coldest <= self.hottest < math.inf:
            raise ValueError(f"temperatures must be positive and fall, not {self.hottest} to {self.coldest}")

    def temperature(self, at: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the temperatures (n,) after so many steps."""
        found: NDArray[np.float64] = self.coldest + (self.hottest - self.coldest) * (self.count - at) / self.count
        return found

    def taken(self, site: Site) -> Any:
        """Return the positions (n, L) where tokens are drawn from the network's laws."""
        entropy = torch.special.entr(site.log_mu.exp()).sum(-1)
        order = torch.where(site.open, entropy, math.inf).argsort(dim=-1, stable=True)
        ranked = torch.where(site.open, entropy, 0.0).gather(-1, order)
        within = ranked.cumsum(-1) - ranked <= self.bound
        return site.open & torch.zeros_like(site.open).scatter(-1, order, within)

    def draw(self, site: Site, uniforms: Any) -> Any:
        """Return the tokens (n, L) after a step."""
        taken = self.taken(site)
        x = torch.where(taken, put(site, taken, uniforms[:, 1]), tokens_at(uniforms[:, 0], site.log_mu.shape[-1]))
        return torch.where(site.open, torch.where(self._last(site), site.log_mu.argmax(-1), x), site.x)

    def log_prob(self, site: Site, x: Any) -> Any:
        """Return the log-probability (n,) of the tokens after a step."""
        each = torch.where(self.taken(site), chosen(site, x), -math.log(site.log_mu.shape[-1]))
        settled = torch.where(x == site.log_mu.argmax(-1), 0.0, -math.inf)
        return torch.where(site.open, torch.where(self._last(site), settled, each), 0.0).sum(-1)

    def _last(self, site: Site) -> Any:
        """Return whether the likeliest tokens are taken, (n, 1)."""
        return torch.as_tensor(self.settle & (site.at == self.count - 1), device=site.x.device)[:, None]

    def noised(self, site: Site, to: int, uniforms: Any, fresh: Any) -> Any:
        """Raise NotImplementedError: what its tokens are at a step is the law of no forward process."""
        raise NotImplementedError("the steps of EntropyBound undo no forward process")


@dataclass(frozen=True)
class BlockRefinement(_Steps):
    """The surest of drawn tokens are committed, and stay; all others are drawn uniformly, step after step.

    At step i of N, of a block of B free positions, ⌈(i + 1)·B/N⌉ are to be committed in all. A token is drawn from μ
    at each of the others, and those with the largest μ_l(c_l) are committed, as many as are owed, and all above the
    threshold. With A what is committed, F_j as in `Confident`,

        P = Π_{l in A} μ_l(v_l) · Π_{j not in A} F_j / K, j not committed

    It is what diffusers' `BlockRefinementScheduler` does without a mask. Which tokens are committed is no matter of the
    tokens alone: particles hold those that are not as −1 − token, and so do recorded choices.

    Args:
        count: N, steps of a block.
        threshold: None: only as many are committed as are owed.
        greedy: whether candidates are the likeliest tokens, not drawn ones (temperature 0).

    Raises ValueError for a setting out of range.
    """

    threshold: float | None = 0.95
    greedy: bool = False
    commits: ClassVar[bool] = True
    renoises: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold is not None and not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f"threshold must be between 0 and 1, or None, not {self.threshold}")

    def draw(self, site: Site, uniforms: Any) -> Any:
        """Return the tokens (n, L) after a step."""
        size = site.log_mu.shape[-1]
        full = site.log_mu.argmax(-1) if self.greedy else put(site, site.open, uniforms[:, 1])
        kept = surest(site, full, self._owed(site), self._bound)
        return torch.where(kept, full, torch.where(site.open, ~tokens_at(uniforms[:, 0], size), site.x))

    def log_prob(self, site: Site, x: Any) -> Any:
        """Return the log-probability (n,) of the tokens after a step."""
        kept, size = site.open & (x >= 0), site.log_mu.shape[-1]
        noise = (site.open & ~kept).sum(-1).double() * math.log(size)
        if not self.greedy:
            return log_surest(site, kept, torch.where(kept, x, site.x), self._owed(site), self._bound) - noise
        full = site.log_mu.argmax(-1)
        same = torch.where(site.open, kept == surest(site, full, self._owed(site), self._bound), True)
        there = (same & ~(kept & (x != full))).all(-1)
        return torch.where(there, -noise, -math.inf)

    def noised(self, site: Site, to: int, uniforms: Any, fresh: Any) -> Any:
        """Return tokens (n, L) of which as many are committed as are owed after ``to`` steps, and any of them."""
        target = torch.as_tensor(self._target(site, np.full(len(site.at), to)), device=site.x.device)
        return torch.where(best(uniforms[:, 0], site.revealed, target), site.x, fresh)

    @property
    def _bound(self) -> float:
        """Return the log of the threshold."""
        if self.threshold is None:
            return math.inf
        return math.log(self.threshold) if self.threshold > 0 else -math.inf

    def _target(self, site: Site, made: NDArray[np.int64]) -> Any:
        """Return how many positions are to be committed after so many steps, (n,)."""
        width = (site.open | site.revealed).sum(-1)
        return -(-torch.as_tensor(made, device=width.device) * width // self.count)

    def _owed(self, site: Site) -> Any:
        """Return how many positions a step commits at least, (n,)."""
        return (self._target(site, site.at + 1) - site.revealed.sum(-1)).clamp(min=0)
