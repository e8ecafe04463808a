"""Masked diffusion as a generator: texts, or any tokens, from nothing but masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from ...ppl.cost import rows
from ...ppl.errors import InvalidWeight, Unsupported
from ...ppl.keys import Keys
from ...ppl.model import Advance
from ...ppl.values.reals import whole_number
from ..denoiser import Denoiser, predict
from ..generator import Floats, Generator, Moved, impose
from ..latents import Latents, replace_fields
from ..laws import Laws
from ..tokens import are_tokens, check_given, check_logits, check_network, laws
from .proposals import Continuations, check_draws, guessed, hinted, log_guesses, sloped, sloping
from .rules import UNIFORMS, InOrder, Rule
from .site import Site


class MaskedDiffusion(Generator):
    """A masked-diffusion model, which reveals the tokens of a sequence in any order.

    Feynman–Kac mapping: x_0 is all masks but for the prompt, M_t the step of ``rule`` with its exact probability, G_t
    what ``steering`` makes of a reward; without one, G = 1. Sahoo et al. (2024), arXiv:2406.07524 (MDLM); Nie et
    al. (2025), arXiv:2502.09992 (LLaDA). The network runs once for each particle and step, and only while there are
    masks.

    Args:
        denoiser: predicts "logits" (n, L, V) of the tokens at all positions from tokens (n, L), the share of positions
            that is masked (n,), and the condition; see `Network`. They are kept, not copied: a network may not write
            to them later.
        length: L.
        rule: which positions a step reveals: `InOrder` (the default, which is exact for an exact network), `Ancestral`,
            `AtRandom` or `Confident`.
        vocabulary: V, tokens that the network knows, the mask among them.
        mask: the token that stands for a masked position, which is never drawn; the last one by default.
        template: (L,) tokens to begin with, the mask where one is to be found: a prompt, or text with gaps.
        block: positions that are free are revealed in blocks of so many, from left to right, each by the rule
            (Arriola et al. 2025, arXiv:2503.09573); None: in one.
        temperature: of the network's laws, at which tokens are drawn.
        steering: what weighs particles by a reward of the estimate (masks filled by the likeliest tokens), or of
            samples; see `feynkac.diffusion.Steering`. With ``gradient`` its reward reads one-hot tokens (n, L, V), not
            decoded, and tokens are drawn from ν ∝ μ·exp(∇ log ψ_t), the gradient by one-hot x_t (Chu et al. 2025,
            arXiv:2505.22524), through the network where that is ``soft`` (see `Network`).
        twist: log ψ (n,) of tokens (n, L) that may have masks, what is still to come: it guides resampling, and leaves
            the target as it is; such as a `feynkac.LinearTwist` of features. 0 is taken for what has finished.
        optimal: how many texts a step may lead to, at most, to try them all and propose in proportion to M·G·ψ: the
            weight is then the same whichever is drawn. Each try is a run of the network and of the reward.
        keep: where masks are put on again (`renoise`, as by `feynkac.PathSearch`), tokens stay of which the network was
            surer than that, by the μ_l(v) with which they were revealed (Prism, arXiv:2602.01842); None: none stays.
        condition: a batch of one condition, or of as many as there are particles; or None.
        decode: from tokens (n, L) to what `values` returns and rewards see, a batch or a list, such as a tokenizer's
            ``batch_decode``.
        device: where particles are.

    Which positions come next is as without a proposal: M is that of the rule with μ, the proposal that of the rule with
    ν, `Confident`'s in its closed form too.

    The choice recorded at each step is the tokens after it, (L,), with ``Steering(samples=k)`` and below them the
    samples of the data that were drawn there, (1 + k, L). Values are arrays of tokens, or what ``decode`` makes of
    them; of particles on their way, the estimate.

    Raises ValueError for a template of another length or without a mask, for a network that predicts no logits, for
    settings out of range and, in a run, for forced choices that are no tokens; TypeError for sizes that are no whole
    numbers; InvalidWeight, in a run, for a twist that is not finite; Unsupported for ``optimal`` where a step may lead
    to more texts, masks again, or draws samples, and for proposals of what draws nothing.

    >>> import feynkac as fk
    >>> def network(tokens, share):  # two tokens and a mask: the second is most often the first
    ...     logits, first = torch.zeros(*tokens.shape, 3), tokens[:, 0]
    ...     logits[first < 2, 1, first[first < 2]] = 2.0
    ...     return logits
    >>> denoiser = fk.diffusion.Network(network, "logits")
    >>> model = fk.diffusion.MaskedDiffusion(denoiser, 2, fk.diffusion.InOrder("left"), vocabulary=3)
    >>> posterior = fk.infer(model, fk.ImportanceSampling(1000), seed=0)
    >>> bool(abs(posterior.expect(lambda x: x[0] == x[1]) - 1 / (1 + np.exp(-2))) < 0.05)
    True
    """

    def __init__(
        self,
        denoiser: Denoiser,
        length: int,
        rule: Rule | None = None,
        *,
        vocabulary: int,
        mask: int | None = None,
        template: Any = None,
        block: int | None = None,
        temperature: float = 1.0,
        steering: Any = None,
        twist: Callable[[Any], Any] | None = None,
        optimal: int | None = None,
        keep: float | None = None,
        condition: Any = None,
        decode: Any = None,
        device: str = "cpu",
    ) -> None:
        whole_number("length", length, 1)
        whole_number("vocabulary", vocabulary, 2)
        super().__init__((length,), condition=condition, decode=decode, dtype=torch.long, device=device)
        check_network(denoiser, "masked diffusion", temperature, "Confident(…, greedy=True)")
        mask = vocabulary - 1 if mask is None else mask
        if not are_tokens(mask, vocabulary):
            raise ValueError(f"the mask is one of {vocabulary} tokens, from 0 on, not {mask}")
        begin = np.full(length, mask) if template is None else np.asarray(template)
        if begin.shape != (length,) or not (begin == mask).any():
            raise ValueError(f"a template is {length} tokens with a mask ({mask}) among them, not {begin.tolist()}")
        if not are_tokens(begin, vocabulary):
            raise ValueError(f"the template {begin.tolist()} has tokens that are none of the {vocabulary}")
        self.denoiser = denoiser
        self.rule: Rule = rule or InOrder()
        self.vocabulary, self.mask = vocabulary, mask
        self.template = self.tensor(begin)
        self.temperature = temperature
        self.steering = steering
        free = int((begin == mask).sum())
        self.block = free if block is None else whole_number("block", block, 0)
        if not 1 <= self.block <= free:
            raise ValueError(f"a block has 1 to {free} positions, as many as are masked, not {block}")
        self.blocks = -(-free // self.block)
        order = torch.cumsum(self.template == mask, 0) - 1
        self._block_of = torch.where(self.template == mask, order // self.block, -1)
        if keep is not None and not 0.0 <= keep <= 1.0:
            raise ValueError(f"keep is a probability, or None, not {keep}")
        self.twist, self.optimal, self.keep = twist, optimal, keep
        self.samples: int = getattr(steering, "samples", 0)
        self.auxiliary = self.samples > 0
        self._continuations = self._proposal()

    def _proposal(self) -> Continuations | None:
        """Return what optimal proposals choose from, or None. Raises Unsupported for proposals that cannot be."""
        gradient = getattr(self.steering, "gradient", False)
        if gradient:
            check_draws(self.rule)
        if self.optimal is None:
            return None
        whole_number("optimal", self.optimal, 1)
        if gradient or self.samples:
            raise Unsupported("optimal proposals are by rewards of estimates: use Steering without gradient, samples")
        return Continuations(self.rule, self.block, self.vocabulary - 1, self.optimal)

    def __repr__(self) -> str:
        steered = f", {self.steering!r}" if self.steering is not None else ""
        parts = f" in {self.blocks} blocks" if self.blocks > 1 else ""
        return f"MaskedDiffusion({self.shape[0]} positions{parts}, {self.rule!r}{steered})"

    @property
    def form(self) -> Any:
        """What models of a product have in common."""
        tokens = (*self.template.tolist(), self.vocabulary, self.mask)
        return tokens, self.block, self.rule, self.temperature

    @property
    def words(self) -> Any:
        """Which tokens (V, bool) are words: all but the mask."""
        return torch.arange(self.vocabulary, device=self.device) != self.mask

    @property
    def unit(self) -> int:
        """How many steps a block takes."""
        return self.rule.steps(self.block)

    @property
    def steps(self) -> int:
        """How many steps a generation takes after its start."""
        return self.blocks * self.unit

    # What a generator is asked by its base

    def initial(self, keys: Keys) -> Any:
        """Return the template for each key, (n, L)."""
        return self.template.repeat(len(keys), 1)

    def initial_log_prob(self, x: Any) -> Floats:
        """Return 0 where particles are the template, else −inf, (n,)."""
        return np.where((x == self.template).all(1).cpu().numpy(), 0.0, -np.inf)

    @property
    def recorded(self) -> tuple[int, ...]:
        """The shape of what a step records: tokens, and samples of the data below them where there are any."""
        return (1 + self.samples, *self.shape) if self.samples else self.shape

    def record(self, latents: Latents) -> Any:
        """Return what a step records."""
        return torch.cat([latents.x[:, None], latents.fields["guesses"]], 1) if self.samples else latents.x

    def noise(self, keys: Keys) -> Any:
        """Draw uniform numbers for a step, (n, 2, L), and below them those for samples of the data."""
        return self.uniforms(keys, UNIFORMS + self.samples, *self.shape)

    def enter(self, keys: Keys, given: Any) -> tuple[Floats, Any, Latents]:
        """Return where particles begin, and log M_0 and log G_0 (n,) of it."""
        if not self.samples:
            return super().enter(keys, given)
        x = self.initial(keys)
        impose(x, _tokens(given))
        log_potential, latents = self.begin(hinted(self.unmoved(x), self.noise(keys), given))
        return self.initial_log_prob(x) + log_guesses(latents, self.mask).cpu().numpy(), log_potential, latents

    def move(self, latents: Latents, noise: Any, given: Any) -> Moved:
        """Reveal tokens of unfinished particles."""
        if self._continuations is not None:
            return self._continuations.move(self, latents, noise, given)
        site = self.site(latents)
        proposed = sloped(site, latents.fields["gradient"]) if "gradient" in latents.fields else site
        x = self.rule.draw(proposed, noise)
        impose(x, _tokens(given) if self.samples else given)
        log_proposal = log_prob = self.rule.log_prob(proposed, x).cpu()
        if proposed is not site:
            log_prob = self.rule.log_prob(site, x).cpu()
        there = self.moved(latents, x)
        log_potential, there = self.arrive(latents, hinted(there, noise, given) if self.samples else there)
        samples = log_guesses(there, self.mask).cpu() if self.samples else torch.zeros(())
        log_prob, log_proposal = (one + samples for one in (log_prob, log_proposal))
        return Moved(x, log_prob.numpy(), log_proposal.numpy(), log_potential, there.fields)

    def unmoved(self, x: Any) -> Latents:
        """Return particles at ``x`` (n, L) that have made no step."""
        latents = super().unmoved(x)
        return latents if self.keep is None else replace_fields(latents, sure=torch.zeros(x.shape, device=x.device))

    def moved(self, latents: Latents, x: Any) -> Latents:
        """Return particles that have made a step to ``x`` (n, L), with how sure the network was of what is new."""
        there = Latents(x, latents.step + 1, latents.steps, latents.condition)
        if self.keep is None:
            return there
        new, sure = x != latents.x, latents.fields["sure"].clone()
        sure[new] = latents.fields["log_mu"][new].gather(-1, x[new][:, None])[:, 0].exp().to(sure.dtype)
        return replace_fields(there, sure=sure)

    def look(self, latents: Latents) -> Latents:
        """Return particles with the log-laws of their tokens, and the estimate: the likeliest tokens for masks."""
        return self.looked(latents, self.log_laws(latents))

    def looked(self, latents: Latents, log_mu: Laws) -> Latents:
        """Return particles with these log-laws, the estimate, samples of the data, and the twist."""
        filled = torch.where(latents.x == self.mask, log_mu.likeliest, latents.x)
        latents = replace_fields(latents, log_mu=log_mu, estimate=filled)
        if self.samples:
            latents = guessed(latents, self.mask)
        return latents if self.twist is None else replace_fields(latents, twist=self._level(latents))

    def _level(self, latents: Latents) -> Any:
        """Return log ψ (n,) of particles, 0 of those that have finished."""
        assert self.twist is not None
        level, going = torch.zeros(len(latents), dtype=torch.float64), np.flatnonzero(~latents.done)
        if len(going):
            found = torch.as_tensor(self.twist(latents.x[going]), dtype=torch.float64).detach().cpu()
            if found.shape != going.shape or not bool(torch.isfinite(found).all()):
                raise InvalidWeight(f"a twist gives a finite number for each of {len(going)} texts, not {found!r:.200}")
            level[going] = found
        return level

    def sloping(self, latents: Latents) -> tuple[Any, Any, Latents]:
        """Return one-hot tokens (n, L, V), data as a function of them, and particles, looked at; see `proposals`."""
        return sloping(self, latents)

    def renoise(self, state: Latents, keys: Keys, depth: int) -> Advance[Latents]:
        """Take particles back to an earlier depth, by masking positions again as they were there.

        By the forward process of `Ancestral`; by other rules so many positions as there were, which ones being drawn
        (the last ones where the order is from the left). The prompt stays, and with ``keep`` what the network was sure
        of. It is no step of the model, so that it has
        no density; it is weighed as a step is. Raises ValueError for a depth that is not before that of every particle.
        """
        self.check_back(state, depth, "masks take")
        block, to = divmod(depth, self.unit)
        now = np.where(state.step // self.unit > block, self.unit, state.step % self.unit)
        masked = state.x == self.mask
        here = self._block_of == block
        site = Site(state.x, state.fields["log_mu"], here & masked, here & ~masked, now, self.block, self.mask)
        noise = self.noise(keys)
        again = self.rule.hidden(site, to, noise) | (self._block_of > block)
        there = Latents(state.x, np.full(len(state), depth), state.steps, state.condition)
        if self.keep is not None:
            there = replace_fields(there, sure=state.fields["sure"])
            again &= state.fields["sure"] <= self.keep
        x = torch.where(again, self.mask, state.x)
        there = replace(there, x=x)
        return self.back(state, hinted(there, noise, None) if self.samples else there)

    def _given(self, given: Sequence[Any] | None, n: int) -> tuple[Any, Any]:
        check_given(given, self.vocabulary)
        return super()._given(given, n)

    # The network

    def site(self, latents: Latents) -> Site:
        """Return what a step of particles begins with."""
        here = torch.as_tensor(latents.step // self.unit, device=self.device)[:, None] == self._block_of
        masked = latents.x == self.mask
        at = latents.step % self.unit
        return Site(latents.x, latents.fields["log_mu"], here & masked, here & ~masked, at, self.block, self.mask)

    def log_laws(self, latents: Latents, denoiser: Denoiser | None = None, shown: Any = None) -> Laws:
        """Return log μ (n, L, V) of each particle, from one call of the network for all that have masks.

        ``denoiser`` is the model's own by default, ``shown`` what it is shown for the tokens.

        Raises InvalidOutput where the network returns another shape, or numbers that are no logits.
        """
        masked = latents.x == self.mask
        going = np.flatnonzero(masked.any(1).cpu().numpy() & ~latents.done)
        part = latents.select(going)
        share = (part.x == self.mask).double().mean(1).float()
        with rows(going.tolist()):
            mine = part.x if shown is None else shown[torch.as_tensor(going, device=shown.device)]
            out = self._predicted(denoiser or self.denoiser, part, mine, share)
        if len(going) == len(latents):
            return laws(out, self.temperature, self.mask)
        whole = out.new_zeros(len(latents), *out.shape[1:])
        whole[torch.as_tensor(going, device=whole.device)] = out
        return laws(whole, self.temperature, self.mask)

    def _predicted(self, denoiser: Denoiser, part: Latents, shown: Any, share: Any) -> Any:
        if not len(part):
            return torch.zeros(0, *self.shape, self.vocabulary, device=self.device)
        return check_logits(predict(denoiser, shown, share, part.condition), part.x, self.vocabulary)


def _tokens(given: Any) -> Any:
    """Return forced tokens and their rows, without samples of the data."""
    return None if given is None or not len(given[1]) else (given[0][:, 0], given[1])
