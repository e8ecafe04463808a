"""What a step of masked diffusion begins with, and how tokens and positions are chosen there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


@dataclass(frozen=True)
class Site:
    """What a step begins with, for n particles of L positions.

    Attributes:
        x: (n, L) tokens.
        log_mu: (n, L, V) log-law of the token at each position, −inf for the mask itself: a tensor or `Laws`, which are
            computed where they are asked for.
        open: (n, L) whether a position is masked and may be revealed now.
        revealed: (n, L) whether it was revealed in the present block and is no part of the prompt.
        at: (n,) steps made in the present block.
        width: positions of a block.
        mask: the token that is no token.
        log_nu: (n, L, V) the laws that tokens are drawn from, where those are proposals; which positions come next, and
            of which tokens the network is sure, is told by ``log_mu`` all the same. None: they are the network's.
    """

    x: Any
    log_mu: Any
    open: Any
    revealed: Any
    at: NDArray[np.int64]
    width: int
    mask: int
    log_nu: Any = None

    @property
    def drawn(self) -> Any:
        """The laws (n, L, V) that tokens are drawn from."""
        return self.log_mu if self.log_nu is None else self.log_nu

    def select(self, index: Any) -> Site:
        """Return what steps of particles by index begin with."""
        log_nu = None if self.log_nu is None else self.log_nu[index]
        at = self.at[index.cpu().numpy()]
        return Site(
            self.x[index], self.log_mu[index], self.open[index], self.revealed[index], at, self.width, self.mask, log_nu
        )


def chosen(site: Site, x: Any, among: Any = None) -> Any:
    """Return the log-probability (n, L), float64, with which a position's token is x_l; −inf for what is no token.

    ``among`` (n, L) are the positions that matter, None: all; it is 0 at others.
    """
    if among is None:
        return _at(site.drawn[...], x)
    log_p = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    log_p[among] = _at(site.drawn[among], x[among])
    return log_p


def _at(log_law: Any, x: Any) -> Any:
    size = log_law.shape[-1]
    found = log_law.gather(-1, x.clamp(0, size - 1)[..., None])[..., 0].double()
    return torch.where((x >= 0) & (x < size), found, -math.inf)


def put(site: Site, shown: Any, uniforms: Any) -> Any:
    """Return the tokens (n, L) with one drawn at each position that is ``shown`` (n, L)."""
    x = site.x.clone()
    x[shown] = invert(site.drawn[shown], uniforms[shown])
    return x


def invert(log_law: Any, uniforms: Any) -> Any:
    """Return the tokens (m,) at which distribution functions (m, V) pass uniform numbers (m,)."""
    total = log_law.double().exp().cumsum(-1)
    end = total[:, -1:]
    target = torch.minimum(uniforms[:, None] * end, torch.nextafter(end, torch.zeros_like(end)))
    return torch.searchsorted(total, target, right=True)[:, 0]


def best(score: Any, among: Any, k: Any) -> Any:
    """Return which k (n,) positions have the largest score (n, L) among some (n, L); ties go to the first."""
    order = torch.where(among, score, -math.inf).argsort(dim=-1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(
        -1, order, torch.arange(order.shape[1], device=order.device).expand_as(order)
    )
    return among & (rank < torch.as_tensor(k, device=order.device).reshape(-1, 1))


def surest(site: Site, full: Any, k: Any, bound: float) -> Any:
    """Return which open positions are kept (n, L): k (n,) with the largest μ_l of their tokens, and all above a bound.

    ``bound`` is the log of the threshold.
    """
    sure = _at(site.log_mu[...], full)
    return best(sure, site.open, k) | (site.open & (sure > bound))


def log_surest(site: Site, kept: Any, x: Any, k: Any, bound: float) -> Any:
    """Return the log-probability (n,) that of tokens drawn for all open positions those that are ``kept`` are these.

    See `Confident` for the formula, and `surest` for the draw.
    """
    sure = _at(site.log_mu[...], x)
    size, least = kept.sum(-1), torch.where(kept, sure, math.inf).amin(-1)
    above = (least > bound) | (size == 0)
    place = torch.arange(x.shape[1], device=x.device)
    last = torch.where(kept & (sure == least[:, None]), place, -1).amax(-1)
    most = torch.where(above, bound, least)[:, None]
    tied = above[:, None] | (place > last[:, None])
    log_mu = site.log_mu[...].double()
    under = (log_mu < most[..., None]) | (tied[..., None] & (log_mu == most[..., None]))
    log_f = torch.where(under, site.drawn[...].double(), -math.inf).logsumexp(-1)
    each = torch.where(kept, chosen(site, x), torch.where(site.open, log_f, 0.0))
    there = ((size == k) | ((size > k) & above)) & ~(kept & ~site.open).any(-1)
    return torch.where(there, each.sum(-1), -math.inf)


def shares(count: int, site: Site) -> Any:
    """Return how many positions a step of ``count`` reveals, (n,): an equal share of the block, as far as there are."""
    k = site.width // count + (site.at < site.width % count)
    return torch.minimum(torch.as_tensor(k, device=site.x.device), site.open.sum(-1))
