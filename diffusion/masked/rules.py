"""Rules of masked diffusion: which masked positions a step reveals, and with what probability.

Every rule can be drawn from and has its exact probability, so that whatever runs over a generator (weights, forced
choices, other proposals) needs no more. μ_l(v) is the network's law of the token at position l, given what is revealed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from ...ppl.values.reals import whole_number
from .site import Site, best, chosen, log_surest, put, shares, surest

Order = Literal["uniform", "left", "probability", "entropy", "margin"]
UNIFORMS = 2
"""Uniform numbers that a rule may use for each position of a step."""


class Rule(Protocol):
    """How a step of masked diffusion is drawn, and its probability."""

    def steps(self, width: int) -> int:
        """Return how many steps a block of so many positions takes."""

    def sizes(self, width: int) -> Sequence[int]:
        """Return the numbers of positions that a step may reveal in a block of so many."""

    def draw(self, site: Site, uniforms: Any) -> Any:
        """Return the tokens (n, L) after a step, from uniform numbers (n, `UNIFORMS`, L)."""

    def log_prob(self, site: Site, x: Any) -> Any:
        """Return the log-probability (n,), float64, that a step leads to ``x`` (n, L); −inf where it cannot."""

    def hidden(self, site: Site, to: int, uniforms: Any) -> Any:
        """Draw which revealed positions (n, L) of the block are masked again, to be where ``to`` of its steps lead."""


@dataclass(frozen=True)
class Ancestral:
    """The reverse of masking: every position on its own, as the schedule says.

    From the share α_t of tokens that are kept to α_s > α_t, a masked position is revealed with probability
    u = (α_s − α_t)/(1 − α_t), as a token drawn from μ_l:

        log M = Σ_{revealed} [log u + log μ_l(v_l)] + Σ_{still masked} log(1 − u)

    Sahoo et al. (2024), arXiv:2406.07524. Positions that are revealed in one step are drawn independently of each
    other, so that the law of T steps is not the data's, even for the exact μ, but goes to it as 1/T.

    Args:
        count: T, steps of a block.
        schedule: of α, "linear" or "cosine", α = 1 − cos(π·i/2T).
        remask: η of ReMDM, Wang et al. (2025), arXiv:2503.00307: a revealed token is masked again with probability
            σ = η·min(1, (1 − α_s)/α_t), and masked ones are revealed the more often, so that the shares are as before.

    Raises ValueError for a setting out of range.

    >>> Ancestral(4).alpha.tolist()
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """

    count: int
    schedule: Literal["linear", "cosine"] = "linear"
    remask: float = 0.0

    def __post_init__(self) -> None:
        whole_number("count", self.count, 1)
        if self.schedule not in ("linear", "cosine"):
            raise ValueError(f"schedule must be linear or cosine, not {self.schedule!r}")
        if not 0.0 <= self.remask <= 1.0:
            raise ValueError(f"remask must be between 0 and 1, not {self.remask}")

    @property
    def alpha(self) -> NDArray[np.float64]:
        """The share of tokens that are kept after each step, (T + 1,)."""
        share = np.arange(self.count + 1) / self.count
        return share if self.schedule == "linear" else np.append(1 - np.cos(np.pi / 2 * share[:-1]), 1.0)

    def steps(self, width: int) -> int:
        """Return T."""
        return self.count

    def sizes(self, width: int) -> Sequence[int]:
        """Return any number."""
        return range(width + 1)

    def draw(self, site: Site, uniforms: Any) -> Any:
        """Return the tokens (n, L) after a step."""
        reveal, again = self.chances(site)
        chance = uniforms[:, 0]
        shown = site.open & (chance < reveal)
        x = put(site, shown, uniforms[:, 1])
        return torch.where(site.revealed & (chance < again), site.mask, x)

    def log_prob(self, site: Site, x: Any) -> Any:
        """Return the log-probability (n,) of the tokens after a step."""
        reveal, again = self.chances(site)
        masked = x == site.mask
        shown = chosen(site, x, site.open & ~masked)
        of_open = torch.where(masked, torch.log1p(-reveal), torch.log(reveal) + shown)
        of_revealed = torch.where(masked, torch.log(again), torch.log1p(-again))
        allowed = site.open | (x == site.x) | (site.revealed & masked)
        each = torch.where(site.open, of_open, torch.where(site.revealed, of_revealed, 0.0))
        return torch.where(allowed, each, -math.inf).sum(-1)

    def hidden(self, site: Site, to: int, uniforms: Any) -> Any:
        """Draw which revealed positions (n, L) are masked again: each with probability 1 − α_to/α."""
        kept = torch.as_tensor(self.alpha[to] / self.alpha[site.at], device=site.x.device)[:, None]
        return site.revealed & (uniforms[:, 0] >= kept)

    def chances(self, site: Site) -> tuple[Any, Any]:
        """Return how probably a masked position is revealed, and a revealed one masked, (n, 1) each."""
        before, after = self.alpha[site.at], self.alpha[site.at + 1]
        again = self.remask * np.minimum(1.0, (1 - after) / np.maximum(before, 1e-300))
        reveal = np.where(after == 1, 1.0, (after - (1 - again) * before) / np.where(after == 1, 1.0, 1 - before))
        reveal = np.minimum(reveal, 1.0)  # which rounding can pass, and log(1 − u) is then NaN
        return tuple(torch.as_tensor(p, device=site.x.device)[:, None] for p in (reveal, again))


@dataclass(frozen=True)
class InOrder:
    """One position a step, chosen without a look at the token that is drawn for it: exact for an exact network.

    Where μ is the conditional law of the data, the law of the result is the data's, whatever the order. It is the
    default wherever exactness is claimed.

    Args:
        order: "uniform" (any masked position, with equal probability, which counts in log M), "left" (the first), or
            that of the largest "probability" max_v μ_l(v), the least "entropy", the largest "margin" between the best
            two tokens. Ties go to the first.

    Raises ValueError for another order.
    """

    order: Order = "uniform"

    def __post_init__(self) -> None:
        if self.order not in get_args(Order):
            raise ValueError(f"order must be one of {', '.join(get_args(Order))}, not {self.order!r}")

    def steps(self, width: int) -> int:
        """Return the number of positions."""
        return width

    def sizes(self, width: int) -> Sequence[int]:
        """Return one, and none for a block that is short."""
        return (0, 1)

    def draw(self, site: Site, uniforms: Any) -> Any:
        """Return the tokens (n, L) after a step."""
        return put(site, self.place(site, uniforms), uniforms[:, 1])

    def log_prob(self, site: Site, x: Any) -> Any:
        """Return the log-probability (n,) of the tokens after a step."""
        changed = x != site.x
        return self.log_place(site, changed) + chosen(site, x, changed).sum(-1)

    def place(self, site: Site, uniforms: Any) -> Any:
        """Return the position that comes next, as one of (n, L)."""
        return best(uniforms[:, 0] if self.order == "uniform" else self._score(site), site.open, 1)

    def log_place(self, site: Site, place: Any) -> Any:
        """Return the log-probability (n,) that some positions (n, L) come next."""
        if self.order == "uniform":
            count = site.open.sum(-1)
            there, log_p = (place.sum(-1) == count.clamp(max=1)), -count.clamp(min=1).double().log()
        else:
            there, log_p = (place == best(self._score(site), site.open, 1)).all(-1), torch.zeros(len(place)).double()
        return torch.where(there & ~(place & ~site.open).any(-1), log_p.to(place.device), -math.inf)

    def hidden(self, site: Site, to: int, uniforms: Any) -> Any:
        """Draw which revealed positions (n, L) are masked again: all but ``to``, the first or any."""
        score = _from_left(site) if self.order == "left" else uniforms[:, 0]
        return site.revealed & ~best(score, site.revealed, to)

    def _score(self, site: Site) -> Any:
        if self.order == "left":
            return _from_left(site)
        log_mu = site.log_mu[...]
        if self.order == "probability":
            return log_mu.amax(-1).double()
        if self.order == "entropy":
            return torch.special.entr(log_mu.exp()).sum(-1).neg().double()
        top = log_mu.topk(2, -1).values.exp()
        return (top[..., 0] - top[..., 1]).double()


@dataclass(frozen=True)
class _ByShares:
    """What rules have in common of which each step reveals an equal share of a block; ``count`` is the steps."""

    count: int

    def __post_init__(self) -> None:
        whole_number("count", self.count, 1)

    def steps(self, width: int) -> int:
        """Return how many steps a block takes, at most."""
        return self.count

    def sizes(self, width: int) -> Sequence[int]:
        """Return an equal share, one more where that does not come out, and what may be left for the last ones."""
        return range(min(width, -(-width // self.count)) + 1)

    def hidden(self, site: Site, to: int, uniforms: Any) -> Any:
        """Draw which revealed positions (n, L) are masked again: any, but as many as ``to`` steps reveal."""
        left = site.width // self.count * to + min(to, site.width % self.count)
        return site.revealed & ~best(uniforms[:, 0], site.revealed, left)


@dataclass(frozen=True)
class AtRandom(_ByShares):
    """The same number of positions at each step, whichever they are: log M = Σ log μ_l(v_l) − log C(masked, k).

    Args:
        count: steps of a block; each reveals an equal share, the first ones one more where that does not come out.

    Raises ValueError for fewer than one step.
    """

    def draw(self, site: Site, uniforms: Any) -> Any:
        """Return the tokens (n, L) after a step."""
        return put(site, best(uniforms[:, 0], site.open, shares(self.count, site)), uniforms[:, 1])

    def log_prob(self, site: Site, x: Any) -> Any:
        """Return the log-probability (n,) of the tokens after a step."""
        changed, k, masks = x != site.x, shares(self.count, site), site.open.sum(-1)
        ways = _log_factorial(masks) - _log_factorial(k) - _log_factorial(masks - k)
        log_p = chosen(site, x, changed).sum(-1) - ways
        there = (changed.sum(-1) == k) & ~(changed & ~site.open).any(-1)
        return torch.where(there, log_p, -math.inf)


@dataclass(frozen=True)
class Confident(_ByShares):
    """A token is drawn for every masked position, and those are kept of which the network is surest.

    LLaDA, Nie et al. (2025), arXiv:2502.09992: the k positions with the largest μ_l(c_l) of their candidates c_l, and
    all above a threshold τ. Candidates are drawn independently, so that the step has a probability. With A what is
    kept, v its tokens and m the least of their μ_l(v_l),

        M = Π_{l in A} μ_l(v_l) · Π_{j not in A} F_j, j masked

    F_j = P(μ_j(c_j) ≤ τ) where all of A is above τ, and P(μ_j(c_j) < m) where A has k positions and m ≤ τ. Ties go to
    the first positions. The choice looks at the tokens, so that the law of the result is far from the data's, even for
    the exact μ; it is the model's all the same, and weights make good for it.

    Args:
        count: steps of a block; each keeps an equal share, the first ones one more where that does not come out.
        threshold: τ; None: only the k surest are kept.
        greedy: whether candidates are the likeliest tokens, not drawn ones: the step is then certain.

    Raises ValueError for a setting out of range.
    """

    threshold: float | None = None
    greedy: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold is not None and not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f"threshold must be between 0 and 1, or None, not {self.threshold}")

    @property
    def _bound(self) -> float:
        """Return log τ."""
        if self.threshold is None:
            return math.inf
        return math.log(self.threshold) if self.threshold > 0 else -math.inf

    def sizes(self, width: int) -> Sequence[int]:
        """Return an equal share; with a threshold, any number."""
        return super().sizes(width) if self.threshold is None else range(width + 1)

    def draw(self, site: Site, uniforms: Any) -> Any:
        """Return the tokens (n, L) after a step."""
        site = replace(site, log_mu=site.log_mu[...])  # all are looked at
        if self.greedy:
            full = torch.where(site.open, site.log_mu.argmax(-1), site.x)
        else:
            full = put(site, site.open, uniforms[:, 1])
        return torch.where(surest(site, full, shares(self.count, site), self._bound), full, site.x)

    def log_prob(self, site: Site, x: Any) -> Any:
        """Return the log-probability (n,) of the tokens after a step."""
        if self.greedy:
            return torch.where((x == self.draw(site, None)).all(-1), 0.0, -math.inf).double()
        return log_surest(site, x != site.x, x, shares(self.count, site), self._bound)


def _from_left(site: Site) -> Any:
    length = site.x.shape[1]
    return -torch.arange(length, device=site.x.device).expand(len(site.x), length).double()


def _log_factorial(n: Any) -> Any:
    return torch.lgamma(n.double() + 1)
