"""Proposals for steps of masked diffusion: by a reward's gradient, by trying out what a step may lead to, by samples.

Whatever is proposed, M stays the law of the rule, so that weights make good for it.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch

from ...ppl.cost import rows
from ...ppl.errors import Unsupported
from ..generator import Moved
from ..latents import Latents, replace_fields
from .rules import UNIFORMS, Ancestral, Confident, Rule
from .site import Site, invert


class Proposing(Protocol):
    """What proposals ask of a model: masked diffusion as `MaskedDiffusion` has it."""

    denoiser: Any
    vocabulary: int
    mask: int

    @property
    def words(self) -> Any:
        """Which tokens (V, bool) are words."""

    def site(self, latents: Latents) -> Site:
        """Return what a step of particles looks at."""

    def log_laws(self, latents: Latents, denoiser: Any = None, shown: Any = None) -> Any:
        """Return the log-laws of tokens, of a network that is shown something for them."""

    def looked(self, latents: Latents, log_mu: Any) -> Latents:
        """Return particles with these log-laws."""

    def moved(self, latents: Latents, x: Any) -> Latents:
        """Return particles after a step to tokens."""

    def arrive(self, before: Latents, there: Latents) -> tuple[Any, Latents]:
        """Return log G (n,) of a step, and particles, looked at."""


_STAYS = -1
"""What stands for no token, in a table of what a step may lead to."""


# Samples of the data


def hinted(latents: Latents, noise: Any, given: Any) -> Latents:
    """Return particles with what samples of the data will be drawn from, and those that are forced."""
    draws = noise[:, UNIFORMS:]
    told = torch.full(draws.shape, _STAYS, device=draws.device)
    if given is not None and len(given[1]):
        told[given[1]] = given[0][:, 1:]
    return replace_fields(latents, draws=draws, told=told)


def guessed(latents: Latents, mask: int) -> Latents:
    """Return particles with samples of the data (n, k, L): a token for each mask, independently, from its law."""
    fields = dict(latents.fields)
    draws, told = fields.pop("draws"), fields.pop("told")
    log_mu = fields["log_mu"][...][:, None].expand(-1, draws.shape[1], -1, -1)
    x = latents.x[:, None].expand(draws.shape).clone()
    free = x == mask
    x[free] = invert(log_mu[free], draws[free])
    fields["guesses"] = torch.where(told == _STAYS, x, told)
    return Latents(latents.x, latents.step, latents.steps, latents.condition, fields)


def log_guesses(latents: Latents, mask: int) -> Any:
    """Return the log-probability (n,) of the samples of the data; −inf where a token that was there is another."""
    guesses, x = latents.fields["guesses"], latents.x[:, None]
    log_mu = latents.fields["log_mu"][...][:, None].expand(-1, guesses.shape[1], -1, -1)
    found = log_mu.gather(-1, guesses[..., None])[..., 0].double()
    return torch.where(x == mask, found, torch.where(guesses == x, 0.0, -math.inf)).sum((1, 2))


# By a gradient


def sloping(model: Proposing, latents: Latents) -> tuple[Any, Any, Latents]:
    """Return one-hot tokens (n, L, V), data as a function of them, and particles, looked at.

    Data are one-hot, too, (n·k, L, V): the revealed tokens, and for masks what stands in the estimate or in each of k
    samples. Where the network takes one-hot tokens (`Network`'s ``soft``) data depend on them through it as well: the
    tokens of the estimate or samples have the derivative of the network's probabilities (straight through).
    """
    hot = torch.nn.functional.one_hot(latents.x, model.vocabulary).float().requires_grad_(True)
    soft = getattr(model.denoiser, "soft", False)
    with torch.set_grad_enabled(soft):
        laws = model.log_laws(latents, shown=hot if soft else None)
        log_mu = laws[...]
    looked = model.looked(latents, laws.detach())
    filled = looked.fields["guesses"] if "guesses" in looked.fields else looked.fields["estimate"][:, None]
    hard = torch.nn.functional.one_hot(filled, model.vocabulary).to(hot.dtype)
    if soft:
        share = log_mu.exp()[:, None].to(hot.dtype)
        hard = hard + (share - share.detach())
    data = hot[:, None] * model.words + hot[:, None, :, model.mask, None] * hard
    return hot, data.flatten(0, 1), looked


def sloped(site: Site, gradient: Any) -> Site:
    """Return a step whose tokens are drawn from ν ∝ μ·exp(∇ log ψ)."""
    log_mu = site.log_mu[...]
    law = log_mu + gradient.to(log_mu.dtype)
    return replace(site, log_nu=torch.where((log_mu > -torch.inf).any(-1, keepdim=True), law.log_softmax(-1), law))


# The best


class Continuations:
    """All that a step may lead to, so that it can be proposed in proportion to what it is worth.

    Args:
        rule: of the steps.
        width: positions of a block.
        words: how many tokens there are without the mask.
        limit: how many continuations are tried at most.

    Raises Unsupported where there are more, and for rules that mask again or draw nothing.
    """

    def __init__(self, rule: Rule, width: int, words: int, limit: int) -> None:
        if isinstance(rule, Ancestral) and rule.remask > 0:
            raise Unsupported("optimal proposals reveal positions and mask none again: use Ancestral(remask=0)")
        check_draws(rule)
        sizes = rule.sizes(width)
        count = sum(math.comb(width, size) * words**size for size in sizes)
        if count > limit:
            raise Unsupported(
                f"a step of {rule!r} may lead to up to {count} texts from {width} masks and {words} tokens, and "
                f"optimal={limit} tries no more than that: reveal fewer positions in a step, use smaller blocks, "
                "or propose by the gradient"
            )
        self._rule = rule
        parts = []
        for size in sizes:
            tokens = np.array(list(itertools.product(range(words), repeat=size)), np.int64).reshape(words**size, size)
            for places in itertools.combinations(range(width), size):
                part = np.full((len(tokens), width), _STAYS)
                part[:, places] = tokens
                parts.append(part)
        self._table = torch.as_tensor(np.concatenate(parts))

    def of(self, site: Site) -> tuple[Any, Any, Any]:
        """Return what steps may lead to: tokens (m, L), whose each is (m,), and its log-probability (m,)."""
        table = self._table.to(site.x.device)
        table = table + (table >= site.mask)  # the words are all tokens but the mask
        place = site.open.int().argsort(dim=-1, descending=True, stable=True)[:, : table.shape[1]]
        fits = (table != _STAYS)[None] <= site.open.gather(1, place)[:, None]
        owner, which = fits.all(-1).nonzero(as_tuple=True)
        x = site.x[owner]
        x = x.scatter(1, place[owner], torch.where(table[which] == _STAYS, x.gather(1, place[owner]), table[which]))
        log_m = self._rule.log_prob(site.select(owner), x)
        real = log_m > -torch.inf
        return x[real], owner[real], log_m[real]

    def move(self, model: Proposing, latents: Latents, noise: Any, given: Any) -> Moved:
        """Move particles by q ∝ M·G·ψ, ψ the twist, whatever the potential: the weight is the sum, for all alike."""
        n, site = len(latents), model.site(latents)
        x, owner, log_m = self.of(site)
        forced = owner.new_zeros(0) if given is None else given[1]
        if len(forced):
            x, owner = torch.cat([x, given[0]]), torch.cat([owner, forced])
            log_m = torch.cat([log_m, self._rule.log_prob(site.select(forced), given[0])])
        owner, log_m, forced, free = owner.cpu(), log_m.cpu(), forced.cpu(), len(x) - len(forced)
        before = latents.select(owner.numpy())
        with rows(owner.tolist()):
            log_g, there = model.arrive(before, model.moved(before, x))
        log_g = torch.as_tensor(log_g, dtype=torch.float64)
        worth = log_m + log_g + there.fields.get("twist", torch.zeros(()))
        dead = _log_sums(worth[:free], owner[:free], n) == -torch.inf
        worth = torch.where(dead[owner], log_m, worth)  # by M alone where all weighs nothing
        total = _log_sums(worth[:free], owner[:free], n)
        chosen = _one_of_each(worth[:free], owner[:free], noise[:, 0, 0].cpu(), n)
        chosen[forced] = free + torch.arange(len(forced))
        there = there.select(chosen.numpy())
        log_q = (worth - total[owner])[chosen]
        return Moved(there.x, log_m[chosen].numpy(), log_q.numpy(), log_g[chosen], there.fields)


def check_draws(rule: Rule) -> None:
    """Raise Unsupported for a rule without draws, of which there is nothing to propose."""
    if isinstance(rule, Confident) and rule.greedy:
        raise Unsupported("Confident(greedy=True) draws nothing, so that nothing can be proposed: use greedy=False")


def _log_sums(log_terms: Any, owner: Any, n: int) -> Any:
    """Return the log of the sum (n,) of the terms (m,) of each of n."""
    most = torch.full((n,), -torch.inf, dtype=torch.float64).scatter_reduce(0, owner, log_terms, "amax")
    most = torch.where(most == -torch.inf, 0.0, most)
    return most + torch.zeros(n, dtype=torch.float64).scatter_add(0, owner, (log_terms - most[owner]).exp()).log()


def _one_of_each(log_terms: Any, owner: Any, uniforms: Any, n: int) -> Any:
    """Return a row (n,) of each of n, drawn in proportion to its term; rows are sorted by owner."""
    count = torch.bincount(owner, minlength=n)
    first = count.cumsum(0) - count
    padded = torch.full((n, int(count.max())), -torch.inf, dtype=torch.float64)
    padded[owner, torch.arange(len(owner)) - first[owner]] = log_terms
    return first + invert(padded.log_softmax(-1), uniforms)
