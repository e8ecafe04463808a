"""Masked diffusion as a generator: texts, or any tokens, from nothing but masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ...ppl import keys as _keys
from ...ppl.cost import rows
from ...ppl.errors import Unsupported
from ...ppl.keys import Keys
from ...ppl.model import Advance
from ...ppl.reals import whole_number
from ..denoiser import Denoiser, predict
from ..generator import Floats, Generator, Moved, impose
from ..latents import Latents, replace_fields
from ..tokens import are_tokens, check_given, check_logits, log_law
from .rules import UNIFORMS, InOrder, Rule, Site


class MaskedDiffusion(Generator):
    """A masked-diffusion model, which reveals the tokens of a sequence in any order.

    Feynman–Kac mapping: x_0 is all masks but for the prompt, M_t the step of ``rule`` with its exact probability, G_t
    what ``steering`` makes of a reward; without one, G = 1. Sahoo et al. (2024), arXiv:2406.07524 (MDLM); Nie et
    al. (2025), arXiv:2502.09992 (LLaDA). The network runs once for each particle and step, and only while there are
    masks.

    Args:
        denoiser: predicts "logits" (n, L, V) of the tokens at all positions from tokens (n, L), the share of positions
            that is masked (n,), and the condition; see `Network`.
        length: L.
        rule: which positions a step reveals: `InOrder` (the default, which is exact for an exact network), `Ancestral`,
            `AtRandom` or `Confident`.
        vocabulary: V, tokens that the network knows, the mask among them.
        mask: the token that stands for a masked position, which is never drawn; the last one by default.
        template: (L,) tokens to begin with, the mask where one is to be found: a prompt, or text with gaps.
        block: positions that are free are revealed in blocks of so many, from left to right, each by the rule
            (Arriola et al. 2025, arXiv:2503.09573); None: in one.
        temperature: of the network's laws, at which tokens are drawn.
        steering: what weighs particles by a reward of the estimate (masks filled by the likeliest tokens); see
            `feynkac.diffusion.Steering`. No gradients.
        condition: a batch of one condition, or of as many as there are particles; or None.
        decode: from tokens (n, L) to what `values` returns and rewards see, a batch or a list, such as a tokenizer's
            ``batch_decode``.
        device: where particles are.

    The choice recorded at each step is the tokens after it. Values are arrays of tokens, or what ``decode`` makes of
    them; of particles on their way, the estimate.

    Raises ValueError for a template of another length or without a mask, for a network that predicts no logits, for
    settings out of range and, in a run, for forced choices that are no tokens; TypeError for sizes that are no whole
    numbers; Unsupported for steering by gradients.

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
        condition: Any = None,
        decode: Any = None,
        device: str = "cpu",
    ) -> None:
        whole_number("length", length, 1)
        whole_number("vocabulary", vocabulary, 2)
        super().__init__((length,), condition=condition, decode=decode, dtype=torch.long, device=device)
        if denoiser.prediction != "logits":
            raise ValueError(f'masked diffusion needs a network that predicts "logits", not {denoiser.prediction!r}')
        if not 0 < temperature < np.inf:
            raise ValueError(
                f"temperature must be positive and finite, not {temperature}: for the likeliest tokens use "
                "Confident(…, greedy=True)"
            )
        mask = vocabulary - 1 if mask is None else mask
        if not are_tokens(mask, vocabulary):
            raise ValueError(f"the mask is one of {vocabulary} tokens, from 0 on, not {mask}")
        begin = np.full(length, mask) if template is None else np.asarray(template)
        if begin.shape != (length,) or not (begin == mask).any():
            raise ValueError(f"a template is {length} tokens with a mask ({mask}) among them, not {begin.tolist()}")
        if not are_tokens(begin, vocabulary):
            raise ValueError(f"the template {begin.tolist()} has tokens that are none of the {vocabulary}")
        if getattr(steering, "gradient", False):
            raise Unsupported("tokens have no gradient: use Steering(reward) without one")
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

    def noise(self, keys: Keys) -> Any:
        """Draw uniform numbers for a step, (n, 2, L)."""
        length = self.shape[0]
        drawn = _keys.uniform(keys, UNIFORMS * length).reshape(len(keys), UNIFORMS, length)
        return torch.as_tensor(drawn, device=self.device)

    def move(self, latents: Latents, noise: Any, given: Any) -> Moved:
        """Reveal tokens of unfinished particles."""
        site = self.site(latents)
        x = self.rule.draw(site, noise)
        impose(x, given)
        log_prob = self.rule.log_prob(site, x).cpu().numpy()
        there = Latents(x, latents.step + 1, latents.steps, latents.condition)
        log_potential, there = self.arrive(latents, there)
        return Moved(x, log_prob, log_prob, log_potential, there.fields)

    def look(self, latents: Latents) -> Latents:
        """Return particles with the log-laws of their tokens, and the estimate: the likeliest tokens for masks."""
        log_mu = self.log_laws(latents)
        masked = latents.x == self.mask
        return replace_fields(latents, log_mu=log_mu, estimate=torch.where(masked, log_mu.argmax(-1), latents.x))

    def renoise(self, state: Latents, keys: Keys, depth: int) -> Advance[Latents]:
        """Take particles back to an earlier depth, by masking positions again as they were there.

        By the forward process of `Ancestral`; by other rules so many positions as there were, which ones being drawn
        (the last ones where the order is from the left). The prompt stays. It is no step of the model, so that it has
        no density; it is weighed as a step is. Raises ValueError for a depth that is not before that of every particle.
        """
        if not 0 <= depth < int(state.step.min()):
            raise ValueError(f"masks take particles back, from depth {state.step.min()} to one before it, not {depth}")
        block, to = divmod(depth, self.unit)
        now = np.where(state.step // self.unit > block, self.unit, state.step % self.unit)
        masked = state.x == self.mask
        here = self._block_of == block
        site = Site(state.x, state.fields["log_mu"], here & masked, here & ~masked, now, self.block, self.mask)
        again = self.rule.hidden(site, to, self.noise(keys)) | (self._block_of > block)
        x = torch.where(again, self.mask, state.x)
        there = Latents(x, np.full(len(state), depth), state.steps, state.condition)
        with torch.no_grad():
            log_potential, there = self.arrive(state, there)
        return self._advance(there, np.zeros(len(state)), np.zeros(len(state)), log_potential)

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

    def log_laws(self, latents: Latents, denoiser: Denoiser | None = None) -> Any:
        """Return log μ (n, L, V) for each particle, from one call of the network for all that have masks.

        ``denoiser`` is the model's own by default.

        Raises InvalidOutput where the network returns another shape, or numbers that are no logits.
        """
        masked = latents.x == self.mask
        going = np.flatnonzero(masked.any(1).cpu().numpy() & ~latents.done)
        part = latents.select(going)
        share = (part.x == self.mask).double().mean(1).float()
        with rows(going.tolist()):
            out = self._predicted(denoiser or self.denoiser, part, share, going)
        whole = out.new_zeros(len(latents), *out.shape[1:])
        whole[torch.as_tensor(going, device=whole.device)] = out
        return whole

    def _predicted(self, denoiser: Denoiser, part: Latents, share: Any, owners: Any) -> Any:
        if not len(part):
            return torch.zeros(0, *self.shape, self.vocabulary, device=self.device)
        out = predict(denoiser, part.x, share, part.condition)
        out = check_logits(out, part.x, self.vocabulary) / self.temperature
        out[..., self.mask] = -torch.inf
        return log_law(out, owners)
