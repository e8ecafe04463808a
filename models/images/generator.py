"""Images as tokens, as a Feynman–Kac model: a row or a scale a step, guided as usual or exactly, judged on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...ppl import keys as _keys
from ...ppl.cost import charge, rows
from ...ppl.errors import InvalidWeight, Unsupported
from ...ppl.keys import Keys
from ...ppl.model import Advance, Floats, Index
from ...ppl.score import evaluate
from ..language.drawing.laws import invert
from .picture import Picture
from .sources import Places, Source


@dataclass(frozen=True)
class Canvas:
    """A batch of n images on their way.

    Attributes:
        tokens: (n, L), −1 where nothing is drawn yet.
        depth: (n,) steps made.
        steps: of a whole image.
        places: (n, 1), or (n, 2) with those under no condition, what the source knows of each.
        reward: (n,) of the image so far, 0 at first.
    """

    tokens: NDArray[np.int64]
    depth: NDArray[np.int64]
    steps: int
    places: Places
    reward: Floats

    @property
    def done(self) -> NDArray[np.bool_]:
        """Whether each image is whole."""
        whole: NDArray[np.bool_] = self.depth == self.steps
        return whole

    def __len__(self) -> int:
        return len(self.tokens)

    def select(self, index: Index) -> Canvas:
        """Keep, duplicate or reorder images."""
        return replace(
            self, tokens=self.tokens[index], depth=self.depth[index], places=self.places[index],
            reward=self.reward[index],
        )  # fmt: skip


class ImageTokens:
    """An image model that draws tokens: every engine runs it, or refuses by name.

    Feynman–Kac mapping: x_0 is nothing, M_t draws the tokens of a row or a scale with their exact probability, G_t is
    exp of what the step adds to ``scale`` times the reward of the image so far, so that the product of all is that of
    the whole image.

    **Guidance** by s moves the law p_c under the condition away from p_u, under none. ``way="usual"`` draws each token
    from p_c^(1+s)·p_u^(−s), renormalised: the model is what that gives (Ho and Salimans 2022, arXiv:2207.12598, by
    tokens). With ``way="exact"`` the same is drawn, and G_t has the sum S = Σ_v p_c^(1+s)·p_u^(−s) of each token as a
    factor: the target is the product p_c(x)^(1+s)·p_u(x)^(−s) of whole images, and Ẑ is unbiased for its sum. Both laws
    come from one doubled batch. γ of guidance is 1 + s.

    Args:
        source: where the laws come from: `ByToken` or `ByScale`.
        decode: from tokens (n, L), or those so far, to n images: a VQ decoder, for one; None: values are the tokens.
        blank: the token that stands for what is not drawn yet; None: ``decode`` gets the tokens so far alone.
        guidance: s, 0 for none.
        way: "usual" or "exact".
        temperature: of both laws.
        reward: a function of a batch of images to n log-weights, or a `feynkac.reward` of one image, asked after each
            step; −inf ends an image there and then.
        scale: what rewards are multiplied by.

    The choice recorded at each step is its tokens. Values are arrays with ``tokens`` beside (`Picture`); of images on
    their way, what there is.

    Raises ValueError for settings out of range and for guidance without a law under no condition; in a run,
    InvalidWeight where p_u has no probability of what p_c allows or nothing has some under both, and for rewards that
    are NaN or +inf, and ValueError for forced choices that are no tokens of the step.

    >>> import feynkac as fk
    >>> posterior = fk.infer(fk.models.digit_tokens(3), fk.ImportanceSampling(2), seed=0)
    >>> posterior.values[0].shape, posterior.values[0].tokens.shape
    ((14, 14), (49,))
    """

    def __init__(
        self,
        source: Source,
        *,
        decode: Callable[[Any], Any] | None = None,
        blank: int | None = 0,
        guidance: float = 0.0,
        way: str = "usual",
        temperature: float = 1.0,
        reward: Any = None,
        scale: float = 1.0,
    ) -> None:
        if way not in ("usual", "exact"):
            raise ValueError(f'way must be "usual" or "exact", not {way!r}')
        if not math.isfinite(guidance) or not math.isfinite(scale) or not 0.0 < temperature < math.inf:
            raise ValueError(
                f"guidance and scale must be finite and temperature positive, not {guidance}, {scale}, {temperature}"
            )
        if guidance and not source.guided:
            raise ValueError("guidance needs the law under no condition: give the source its unconditional=")
        if reward is not None and not callable(reward):
            raise TypeError(f"a reward is a function of a batch of images, or a feynkac.reward, not {reward!r:.200}")
        self.source, self.decode, self.blank = source, decode, blank
        self.guidance, self.way, self.temperature = float(guidance), way, float(temperature)
        self.reward, self.scale = reward, float(scale)
        self._ends = np.cumsum([0, *map(sum, source.bursts)])

    def __repr__(self) -> str:
        guided = f", guidance={self.guidance:g} ({self.way})" if self.guidance else ""
        return f"ImageTokens({self.source!r}{guided})"

    @property
    def steps(self) -> int:
        """How many steps an image takes after its start."""
        return len(self.source.bursts)

    # The contract

    def start(self, keys: Keys, given: Sequence[Any] | None = None) -> Advance[Canvas]:
        """Begin with nothing."""
        n, zeros = len(keys), np.zeros(len(keys))
        for i, one in enumerate(given or ()):
            if one is not None and np.size(one):
                raise ValueError(f"particle {i} was given {np.size(one)} tokens at its start, where there are none")
        ways = (True, False) if self.guidance else (True,)
        places = np.stack([self.source.begin(n, way) for way in ways], 1)
        canvas = Canvas(np.full((n, self._ends[-1]), -1), np.zeros(n, np.int64), self.steps, places, zeros)
        return self._advance(canvas, [np.zeros(0, np.int64)] * n, zeros, zeros)

    def advance(self, state: Canvas, keys: Keys, given: Sequence[Any] | None = None) -> Advance[Canvas]:
        """Draw a row or a scale of each image that is not whole."""
        n = len(state)
        tokens, places, reward = state.tokens.copy(), state.places.copy(), state.reward.copy()
        log_prob, log_potential = np.zeros(n), np.zeros(n)
        choices = [np.zeros(0, np.int64)] * n
        for part in self._together(state):
            forced = None if given is None else [given[i] for i in part.tolist()]
            drawn, places[part], log_prob[part], log_s = self._draw(state.select(part), part, keys[part], forced)
            if self.way == "exact":
                log_potential[part] = log_s
            for i, row in zip(part.tolist(), drawn):
                begin, end = self._ends[state.depth[i]], self._ends[state.depth[i] + 1]
                tokens[i, begin:end] = choices[i] = row
        there = Canvas(tokens, state.depth + ~state.done, self.steps, places, reward)
        going = np.flatnonzero(~state.done)
        if self.reward is not None and len(going):
            reward[going] = self._rewards(there, going)
            before, now = state.reward[going], reward[going]
            with np.errstate(invalid="ignore"):
                log_potential[going] += np.where(np.isneginf(before) | np.isneginf(now), -np.inf, now - before)
        return self._advance(there, choices, log_prob, log_potential)

    def select(self, state: Canvas, index: Index) -> Canvas:
        """Keep, duplicate or reorder images, with all that is known of them."""
        return state.select(np.asarray(index))

    def concat(self, states: Sequence[Canvas]) -> Canvas:
        """Join batches of images."""
        joined = (
            np.concatenate([getattr(s, name) for s in states]) for name in ("tokens", "depth", "places", "reward")
        )
        tokens, depth, places, reward = joined
        return Canvas(tokens, depth, self.steps, places, reward)

    def values(self, state: Canvas) -> list[Any]:
        """Return each image, an array with its tokens beside; of those on their way, what there is."""
        return self._images(state, np.arange(len(state)))

    def _advance(self, canvas: Canvas, choices: list[Any], log_prob: Floats, log_potential: Floats) -> Advance[Canvas]:
        n = len(canvas)
        done, scored = canvas.done, np.ones(n, bool)
        return Advance(canvas, choices, log_prob, log_prob, log_potential, np.zeros(n), done, scored)

    # Steps

    def _together(self, state: Canvas) -> list[NDArray[np.intp]]:
        """Return the images that go on, in parts that share calls."""
        going = np.flatnonzero(~state.done)
        if self.source.ragged:
            return [going] if len(going) else []
        return [going[state.depth[going] == step] for step in np.unique(state.depth[going])]

    def _draw(
        self, part: Canvas, owners: NDArray[np.intp], keys: Keys, given: Sequence[Any] | None
    ) -> tuple[NDArray[np.int64], Places, Floats, Floats]:
        """Return the tokens (n, k) of a step, where they lead, their log-probabilities and Σ log S, each (n,)."""
        n, ways = part.places.shape
        bursts = self.source.bursts[part.depth[0]]
        forced, row_of = self._given(given, sum(bursts), owners)
        uniforms = _keys.uniform(keys, sum(bursts))
        tokens = np.zeros((n, sum(bursts)), np.int64)
        log_prob, log_s = np.zeros(n), np.zeros(n)
        places, begin = part.places.T.ravel().copy(), 0
        with rows(owners.tolist()):
            for count in bursts:
                burst = slice(begin, begin := begin + count)
                law, mass = self._law(self.source.laws(places, np.tile(np.arange(n), ways)), n, count, owners)
                here = _inverted(law, torch.from_numpy(uniforms[:, burst]))
                here[row_of] = forced[:, burst]
                tokens[:, burst] = here
                log_prob += law.gather(-1, torch.from_numpy(here)[..., None])[..., 0].sum(-1).numpy()
                log_s += mass.sum(-1).numpy()
                places = self.source.go(places, np.tile(here, (ways, 1)))
            charge(tokens_out=np.full(n, sum(bursts)))
        return tokens, places.reshape(ways, n).T, log_prob, log_s

    def _law(self, logits: Any, n: int, count: int, owners: NDArray[np.intp]) -> tuple[Any, Any]:
        """Return the log-law (n, k, K) of what comes next, and log S (n, k)."""
        log_mu, size = (logits / self.temperature).log_softmax(-1), self.source.vocabulary
        if logits.shape[1:] != (count, size) or bool(log_mu.isnan().any()):
            raise ValueError(
                f"{self!r}: laws must be logits of {count} of {size} tokens, none of them NaN or +inf, and not all −inf"
            )
        if not self.guidance:
            return log_mu, log_mu.new_zeros(log_mu.shape[:2])
        mix, nothing = torch.zeros_like(log_mu[:n]), torch.zeros_like(log_mu[:n], dtype=torch.bool)
        for mu, power in ((log_mu[:n], 1.0 + self.guidance), (log_mu[n:], -self.guidance)):
            mix = mix + power * mu if power else mix
            nothing |= (mu == -torch.inf) & (power > 0)
        mix = torch.where(nothing, -torch.inf, mix)  # zero to any power stays zero
        if bool((mix == torch.inf).any()):
            i, _, token = (mix == torch.inf).nonzero()[0].tolist()
            raise InvalidWeight(
                f"particle {owners[i]}: image token {token} has no probability under one of condition and none, "
                "and some under the other: a negative power of zero has no sum"
            )
        mass = mix.logsumexp(-1)
        if bool((mass == -torch.inf).any()):
            raise InvalidWeight(
                f"particle {owners[(mass == -torch.inf).nonzero()[0, 0]]}: no image token has some probability both "
                "under the condition and under none, so that there is nothing to draw"
            )
        return mix - mass[..., None], mass

    def _given(
        self, given: Sequence[Any] | None, count: int, owners: NDArray[np.intp]
    ) -> tuple[NDArray[np.int64], list[int]]:
        """Return forced tokens (m, k), and their rows."""
        forced = [i for i, one in enumerate(given or ()) if one is not None]
        if not forced:
            return np.zeros((0, count), np.int64), []
        assert given is not None
        tokens = [np.asarray(given[i]) for i in forced]
        for i, one in zip(forced, tokens):
            whole = one.shape == (count,) and one.dtype.kind in "iu"
            if not whole or not ((one >= 0) & (one < self.source.vocabulary)).all():
                raise ValueError(
                    f"particle {owners[i]} was given what is no step of {count} tokens from 0 to "
                    f"{self.source.vocabulary - 1}: {one!r:.200}"
                )
        return np.stack(tokens).astype(np.int64), forced

    # Images

    def _images(self, state: Canvas, index: Index) -> list[Any]:
        if self.decode is None:
            return [row.copy() for row in state.tokens[index]]
        found: list[Any] = [None] * len(index)
        for count in np.unique(state.depth[index]).tolist():  # so that images with as many tokens are decoded together
            which = np.flatnonzero(state.depth[index] == count)
            tokens = state.tokens[index[which]]
            full = tokens[:, : self._ends[count]] if self.blank is None else np.where(tokens < 0, self.blank, tokens)
            with torch.no_grad():
                images = self.decode(torch.from_numpy(full))
            if len(images) != len(which):
                raise ValueError(f"decode got {len(which)} images and returned {len(images)}: it makes one of each")
            for i, image, row in zip(which.tolist(), images, tokens):
                array = image.detach().cpu().numpy() if isinstance(image, torch.Tensor) else image
                found[i] = Picture.of(array, row)
        return found

    def _rewards(self, state: Canvas, going: NDArray[np.intp]) -> Floats:
        """Return the scaled rewards of images that have just moved."""
        images = self._images(state, going)
        with rows(going.tolist()):
            if hasattr(self.reward, "score_batch"):
                if getattr(self.reward, "kind", "real") == "probability":
                    raise Unsupported(f"{self.reward!r} gives probabilities: let it return log p, of kind log_weight")
                found = evaluate([self.reward(image) for image in images])
            else:
                charge(reward_calls=np.ones(len(images), np.int64))
                found = self.reward(np.stack(images))
        numbers: Floats = torch.as_tensor(found, dtype=torch.float64).numpy()
        if numbers.shape != (len(going),) or not (numbers < np.inf).all():
            raise InvalidWeight(
                f"the reward of {len(going)} images must be as many numbers below infinity, not {numbers!r:.200}"
            )
        impossible = np.isneginf(numbers) & (self.scale >= 0)
        with np.errstate(invalid="ignore"):
            return np.where(impossible, -np.inf, self.scale * numbers)  # at scale 0, too


def _inverted(law: Any, uniforms: Any) -> NDArray[np.int64]:
    """Draw tokens (n, k) from log-laws (n, k, K) that sum to 1, by one uniform each; none of probability zero."""
    below = law.exp().cumsum(-1).flatten(0, 1)
    found: NDArray[np.int64] = invert(below, uniforms.reshape(-1, 1) * below[:, -1:]).reshape(law.shape[:2]).numpy()
    return found
