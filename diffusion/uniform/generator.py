"""Diffusion over tokens whose noise is uniform, as a generator: texts, or any tokens, from random ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ...ppl.cost import rows
from ...ppl.errors import Unsupported
from ...ppl.keys import Keys
from ...ppl.model import Advance
from ...ppl.values.reals import whole_number
from ..denoiser import Denoiser, predict
from ..generator import Floats, Generator, Moved, impose
from ..latents import Latents
from ..masked.rules import UNIFORMS
from ..masked.site import Site
from ..tokens import (
    are_tokens,
    check_given,
    check_logits,
    check_network,
    check_steering,
    likeliest,
    log_law,
    tokens_at,
)
from .rules import Rule

FREE = -1
"""What stands in a template where a token is to be found."""


class UniformDiffusion(Generator):
    """A diffusion model over tokens whose noise is uniform: no mask, but random tokens that become right ones.

    Feynman–Kac mapping: x_0 is uniform at all positions but those of the template, log M_0 = −L·log K; M_t the step of
    ``rule`` with its exact probability, G_t what ``steering`` makes of a reward; without one, G = 1. Austin et
    al. (2021), arXiv:2107.03006. The network runs once for each particle and step.

    Args:
        denoiser: predicts "logits" (n, L, K) of the clean tokens at all positions from tokens (n, L), the share of the
            block's steps that is left (n,), and the condition; see `Network`. One with a ``canvas`` (see
            `CanvasNetwork`) sees the blocks one by one, and hears what it said before.
        length: L.
        rule: what a step does: `DiscreteDDIM`, `EntropyBound` or `BlockRefinement`.
        vocabulary: K.
        template: (L,) tokens to begin with, −1 where one is to be found: a prompt, or text with gaps.
        block: positions are written in blocks of so many, from left to right, each by the rule; those that have nothing
            free are left out. It divides L; None: the network's canvas, or one block.
        temperature: of the network's laws, at which tokens are drawn.
        end: tokens that end a text: values and rewards have ``pad`` after the first of them, and so have all blocks
            after its own, for which the network is not asked.
        pad: the token there, and in the estimate of canvases that are not begun; None: that of the network, or 0.
        steering: what weighs particles by a reward of the estimate (the likeliest tokens, and those that are
            committed); see `feynkac.diffusion.Steering`. No gradients.
        condition: a batch of one condition, or of as many as there are particles; or None.
        decode: from tokens (n, L) to what `values` returns and rewards see, a batch or a list, such as a tokenizer's
            ``batch_decode``.
        device: where particles are.

    The choice recorded at each step is the tokens after it; with `BlockRefinement` those that are not committed are
    −1 − token. Values are arrays of tokens, or what ``decode`` makes of them; of particles on their way, the estimate.

    `anneal`, `product`, `guide` and `tilt` refuse it: with the same network they take `JumpDiffusion(Ratios(…), …)`.

    Raises ValueError for a template of another length or without a gap, for a network that predicts no logits, for
    settings out of range and, in a run, for forced choices that are no tokens; TypeError for sizes that are no whole
    numbers; Unsupported for steering by gradients, and for a condition of a network with a canvas.

    >>> import feynkac as fk
    >>> def network(tokens, share):  # knows that both tokens are 2, whatever is there
    ...     logits = torch.zeros(*tokens.shape, 3)
    ...     logits[..., 2] = 2.0
    ...     return logits
    >>> denoiser = fk.diffusion.Network(network, "logits")
    >>> model = fk.diffusion.UniformDiffusion(denoiser, 2, fk.diffusion.DiscreteDDIM(4), vocabulary=3)
    >>> posterior = fk.infer(model, fk.ImportanceSampling(1000), seed=0)
    >>> bool(abs(posterior.expect(lambda x: x[0] == 2) - 1 / (1 + 2 * np.exp(-2))) < 0.05)
    True
    """

    def __init__(
        self,
        denoiser: Denoiser,
        length: int,
        rule: Rule,
        *,
        vocabulary: int,
        template: Any = None,
        block: int | None = None,
        temperature: float = 1.0,
        end: Sequence[int] = (),
        pad: int | None = None,
        steering: Any = None,
        condition: Any = None,
        decode: Any = None,
        device: str = "cpu",
    ) -> None:
        whole_number("length", length, 1)
        whole_number("vocabulary", vocabulary, 2)
        super().__init__((length,), condition=condition, decode=decode, dtype=torch.long, device=device)
        check_network(denoiser, "diffusion of tokens", temperature, "BlockRefinement(…, greedy=True)")
        check_steering(steering)
        self.denoiser = denoiser
        self.rule = rule
        self.vocabulary = vocabulary
        self.temperature = temperature
        self.steering = steering
        self.canvas: int | None = getattr(denoiser, "canvas", None)
        self.remembers = self.canvas is not None
        if self.canvas is not None and condition is not None:
            raise Unsupported("a network with a canvas has its prompt itself: give it that, and the model no condition")
        self._set_positions(length, template, block)
        self._set_end(end, getattr(denoiser, "pad", 0) if pad is None else pad)
        if not rule.renoises:
            self.renoise = None  # type: ignore[method-assign, assignment]

    def _set_positions(self, length: int, template: Any, block: int | None) -> None:
        begin = np.full(length, FREE) if template is None else np.asarray(template)
        if begin.shape != (length,) or not (begin == FREE).any():
            raise ValueError(f"a template is {length} tokens, {FREE} where one is to be found, not {begin.tolist()}")
        if not are_tokens(begin, self.vocabulary, FREE):
            raise ValueError(f"the template {begin.tolist()} has tokens that are none of the {self.vocabulary}")
        self.template = self.tensor(begin)
        self.block = whole_number("block", (self.canvas or length) if block is None else block, 1)
        if length % self.block or (self.canvas or self.block) != self.block:
            canvas = f", and that of the network is {self.canvas}" if self.canvas else ""
            raise ValueError(f"a block must divide the {length} positions{canvas}: {self.block} does not fit")
        windows = torch.arange(length, device=self.device).reshape(-1, self.block)
        self._free = self.template == FREE
        some = self._free[windows].any(1)
        self._positions = windows[some]
        self.blocks = len(self._positions)
        self._block_of = torch.where(some, some.cumsum(0) - 1, -1).repeat_interleave(self.block)

    def _set_end(self, end: Sequence[int], pad: int) -> None:
        if not are_tokens(list(end), self.vocabulary):
            raise ValueError(f"the tokens that end a text, {list(end)}, are none of the {self.vocabulary}")
        if not are_tokens(pad, self.vocabulary):
            raise ValueError(f"what comes after the end is one of {self.vocabulary} tokens, not pad={pad}")
        self._end, self.pad = self.tensor(list(end)), pad

    def __repr__(self) -> str:
        steered = f", {self.steering!r}" if self.steering is not None else ""
        parts = f" in {self.blocks} blocks" if self.blocks > 1 else ""
        return f"UniformDiffusion({self.shape[0]} positions{parts}, {self.rule!r}{steered})"

    @property
    def steps(self) -> int:
        """How many steps a generation takes after its start."""
        return self.blocks * self.rule.count

    # What a generator is asked by its base

    def initial(self, keys: Keys) -> Any:
        """Draw the tokens that each particle begins with, (n, L)."""
        return torch.where(self._free, self._drawn(self.uniforms(keys, *self.shape)), self.template)

    def initial_log_prob(self, x: Any) -> Floats:
        """Return −log K for each position that is free (n,), −inf where the template is not met."""
        marked = (x < 0) if self.rule.commits else (x >= 0)
        fits = torch.where(self._free, marked, x == self.template).all(1).cpu().numpy()
        return np.where(fits, -float(self._free.sum()) * math.log(self.vocabulary), -np.inf)

    def noise(self, keys: Keys) -> Any:
        """Draw uniform numbers for a step, (n, `UNIFORMS`, block)."""
        return self.uniforms(keys, UNIFORMS, self.block)

    def move(self, latents: Latents, noise: Any, given: Any) -> Moved:
        """Change the block that unfinished particles are at."""
        block = self._block(latents)
        at, site, ended = self._positions[block], self.site(latents), self._ended(latents)[:, None]
        here = torch.where(ended & self._free[at], self.pad, self.rule.draw(site, noise))
        x = latents.x.scatter(1, at, here)
        impose(x, given)
        there = x.gather(1, at)
        closed = torch.where(self._block_of == block[:, None], ~self._free, True) & (x != latents.x)
        fits = ~closed.any(1) & torch.where(site.revealed, there == site.x, True).all(1)
        padded = torch.where(self._free[at], there == self.pad, True).all(1)
        log_prob = torch.where(ended[:, 0], torch.where(padded, 0.0, -math.inf), self.rule.log_prob(site, there))
        log_prob = torch.where(fits, log_prob, -math.inf).cpu().numpy()
        fields = {"heard": latents.fields.get("said", latents.fields["log_mu"])} if self.canvas else {}
        log_potential, after = self.arrive(
            latents, Latents(x, latents.step + 1, latents.steps, latents.condition, fields)
        )
        return Moved(x, log_prob, log_prob, log_potential, after.fields)

    def look(self, latents: Latents) -> Latents:
        """Return particles with the log-laws of the tokens of their block, and the estimate: the likeliest tokens."""
        block, x = self._block(latents), latents.x
        out, guess = self._predicted(latents, block)
        made = latents.step % self.rule.count
        said = out / torch.as_tensor(self.rule.temperature(made), dtype=out.dtype, device=out.device)[:, None, None]
        law = log_law(said, np.arange(len(latents)))
        log_mu = law if self.temperature == 1.0 else log_law(said / self.temperature, np.arange(len(latents)))
        unsaid = (x < 0) if self.rule.commits else self._free & (self._block_of >= block[:, None])
        unsaid = unsaid & torch.as_tensor(~latents.done, device=x.device)[:, None]
        estimate = torch.where(unsaid, guess, plain(x))
        fields = {name: kept for name, kept in latents.fields.items() if name != "heard"}
        fields |= {"log_mu": log_mu, "estimate": self._cut(estimate)}
        if self.canvas and log_mu is not law:
            fields["said"] = law
        return Latents(x, latents.step, latents.steps, latents.condition, fields)

    def values(self, state: Latents) -> list[Any]:
        """Return the tokens of each particle, or what ``decode`` makes of them; of one on its way, the estimate."""
        tokens = self._cut(plain(state.x))
        return super().values(Latents(tokens, state.step, state.steps, state.condition, state.fields))

    def renoise(self, state: Latents, keys: Keys, depth: int) -> Advance[Latents]:
        """Take particles back to an earlier depth, by making tokens random again as they were there.

        By the forward process of `DiscreteDDIM`; with `BlockRefinement` as many stay committed as are owed there, and
        which ones is drawn. The template stays. A network with a canvas hears nothing of what it said. It is no step
        of the model, so that it has no density; it is weighed as a step is. Raises ValueError for a depth that is not
        before that of every particle. Models with `EntropyBound` have no such method.
        """
        self.check_back(state, depth)
        block, to = divmod(depth, self.rule.count)
        now = np.where(state.step // self.rule.count > block, self.rule.count, state.step % self.rule.count)
        at, n = self._positions[block], len(state)
        drawn = self.uniforms(keys, UNIFORMS * self.block + self.shape[0])
        fresh = self._drawn(drawn[:, UNIFORMS * self.block :])
        uniforms = drawn[:, : UNIFORMS * self.block].reshape(n, UNIFORMS, self.block)
        here = state.x[:, at]
        revealed = self._free[at] & (here >= 0)
        site = Site(here, None, self._free[at] & ~revealed, revealed, now, self.block, FREE)
        x = torch.where(self._free & (self._block_of > block), fresh, state.x)
        x[:, at] = torch.where(self._free[at], self.rule.noised(site, to, uniforms, fresh[:, at]), here)
        return self.back(state, Latents(x, np.full(n, depth), state.steps, state.condition))

    def _given(self, given: Sequence[Any] | None, n: int) -> tuple[Any, Any]:
        check_given(given, self.vocabulary, -self.vocabulary if self.rule.commits else 0)
        return super()._given(given, n)

    def _drawn(self, uniforms: Any) -> Any:
        """Return tokens that are noise, from uniform numbers."""
        drawn = tokens_at(uniforms, self.vocabulary)
        return ~drawn if self.rule.commits else drawn

    # The network

    def site(self, latents: Latents) -> Site:
        """Return what a step of particles begins with, at the positions of their blocks."""
        at = self._positions[self._block(latents)]
        here, free = latents.x.gather(1, at), self._free[at]
        revealed = free & (here >= 0) if self.rule.commits else torch.zeros_like(free)
        tokens, made = plain(here), latents.step % self.rule.count
        return Site(tokens, latents.fields["log_mu"], free & ~revealed, revealed, made, self.block, FREE)

    def _block(self, latents: Latents) -> Any:
        """Return the block (n,) that each particle is at; of a finished one the last."""
        return torch.as_tensor(np.minimum(latents.step // self.rule.count, self.blocks - 1), device=self.device)

    def _ended(self, latents: Latents) -> Any:
        """Return whether a text (n,) has ended in a block before that of its particle."""
        if not len(self._end):
            return torch.zeros(len(latents), dtype=torch.bool, device=self.device)
        before = self._free & (self._block_of < self._block(latents)[:, None])
        return (torch.isin(latents.x, self._end) & before).any(1)

    def _cut(self, tokens: Any) -> Any:
        """Return tokens (n, L) with ``pad`` after the first that ends a text."""
        ends = torch.isin(tokens, self._end) & self._free
        return torch.where((ends.cumsum(1) > ends.long()) & self._free, self.pad, tokens)

    def _predicted(self, latents: Latents, block: Any) -> tuple[Any, Any]:
        """Return logits (n, block, K) of the blocks of particles, and the likeliest tokens everywhere (n, L).

        One call of the network for all that have not finished; zeros for the others.
        """
        going = np.flatnonzero(~latents.done & ~self._ended(latents).cpu().numpy())
        part = latents.select(going)
        index = torch.as_tensor(going, device=self.device)
        tokens, at = plain(part.x), self._positions[block[index]]
        share = torch.as_tensor(1 - part.step % self.rule.count / self.rule.count, device=self.device).float()
        x, condition = tokens, part.condition
        guess = plain(latents.x)
        if self.canvas:
            x, condition = tokens.gather(1, at), self._question(part, tokens, at)
            guess = torch.full_like(guess, self.pad)
        if not len(going):
            return torch.zeros(len(latents), self.block, self.vocabulary, device=self.device), guess
        with rows(going.tolist()):
            out = check_logits(predict(self.denoiser, x, share, condition), x, self.vocabulary)
        best = likeliest(out, going)
        guess[index] = guess[index].scatter(1, at, best) if self.canvas else best
        if not self.canvas:
            out = out.gather(1, at[..., None].expand(-1, -1, self.vocabulary))
        whole = out.new_zeros(len(latents), *out.shape[1:])
        whole[index] = out
        return whole, guess

    def _question(self, part: Latents, tokens: Any, at: Any) -> dict[str, Any]:
        """Return what a network with a canvas is told beside it: the whole text, where it is, what was said before."""
        heard = part.fields.get("heard")
        first = torch.as_tensor(part.step % self.rule.count == 0, device=self.device)
        if heard is None:
            heard, first = torch.zeros(len(part), 1, 1, device=self.device), torch.ones_like(first)
        return {"text": tokens, "start": at[:, 0], "heard": heard, "hears": ~first}


def plain(x: Any) -> Any:
    """Return tokens, of those that are not committed too."""
    return torch.where(x < 0, ~x, x)
