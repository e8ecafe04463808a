"""What generators of tokens share: which numbers are tokens, and the laws that a network's logits stand for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..ppl.errors import Unsupported
from .denoiser import Denoiser
from .generator import InvalidOutput
from .laws import Laws
from .steering import check_samples


def check_network(denoiser: Denoiser, what: str, temperature: float, greedy: str) -> None:
    """Raise ValueError for a network that predicts no logits, and for a temperature that is no positive number."""
    if denoiser.prediction != "logits":
        raise ValueError(f'{what} needs a network that predicts "logits", not {denoiser.prediction!r}')
    check_temperature(temperature, greedy)


def check_temperature(temperature: float, greedy: str) -> None:
    """Raise ValueError for a temperature that is no positive number, naming what takes the likeliest tokens."""
    if not 0 < temperature < np.inf:
        raise ValueError(
            f"temperature must be positive and finite, not {temperature}: for the likeliest tokens use {greedy}"
        )


def check_steering(steering: Any) -> None:
    """Raise Unsupported for steering by gradients or samples, where only masked tokens have them."""
    if getattr(steering, "gradient", False):
        raise Unsupported("tokens have no gradient: use Steering(reward) without one")
    check_samples(steering)


def tokens_at(uniforms: Any, size: int) -> Any:
    """Return tokens drawn uniformly from ``size``, from uniform numbers."""
    return (uniforms * size).long().clamp(max=size - 1)


def are_tokens(some: Any, vocabulary: int, least: int = 0) -> bool:
    """Whether all of some numbers are whole, and from ``least`` to the last token of a vocabulary."""
    found = np.asarray(some)
    if found.dtype.kind not in "iuf":
        return False
    return bool(((found >= least) & (found < vocabulary) & (found == np.floor(found))).all())


def check_given(given: Sequence[Any] | None, vocabulary: int, least: int = 0) -> None:
    """Raise ValueError, by particle, where forced tokens are none; an item that is None forces nothing."""
    for i, one in enumerate(() if given is None else given):
        if one is not None and not are_tokens(one, vocabulary, least):
            found = np.asarray(one).tolist()
            raise ValueError(f"particle {i} was given {found}: tokens are {least} to {vocabulary - 1}")


def check_logits(out: Any, tokens: Any, vocabulary: int, what: str = "logits") -> Any:
    """Return what a network says, in float32 at least. Raises InvalidOutput where it does not fit its tokens (n, L)."""
    if out.shape != (*tokens.shape, vocabulary):
        raise InvalidOutput(
            f"the network got tokens {tuple(tokens.shape)} and returned {tuple(out.shape)}, not the {what} of "
            f"{vocabulary} tokens at each position"
        )
    return out.to(torch.promote_types(out.dtype, torch.float32))


def log_law(logits: Any, owners: Any) -> Any:
    """Return the log of laws from their logits (n, L, V); raises InvalidOutput, by owner, for what is no law."""
    law = logits.log_softmax(-1)
    if bool(law[..., 0].isnan().any()):  # what is no law is NaN throughout
        raise _no_law(law.isnan(), owners)
    return law


def laws(logits: Any, temperature: float, mask: int) -> Laws:
    """Return laws from their logits (n, L, V); raises InvalidOutput, by particle, for what is no law.

    One look at the vocabulary tells both the likeliest token and whether there is a law: the largest logit is finite.
    """
    best = _unmasked(logits, mask)
    none = ~(_top(logits, best) / temperature).isfinite() | (best == mask)
    if bool(none.any()):
        raise _no_law(none, range(len(none)))
    return Laws(logits, best, temperature, mask)


def likeliest(logits: Any, owners: Any) -> Any:
    """Return the likeliest tokens (n, L) by logits (n, L, V); raises InvalidOutput, by owner, for what is no law."""
    best = _argmax(logits)
    none = ~_top(logits, best).isfinite()
    if bool(none.any()):
        raise _no_law(none, owners)
    return best


def _top(logits: Any, best: Any) -> Any:
    return logits.detach().gather(-1, best[..., None])[..., 0]


def _no_law(none: Any, owners: Any) -> InvalidOutput:
    bad = int(none.flatten(1).any(1).nonzero()[0, 0])
    return InvalidOutput(f"the network returned NaN or +inf for particle {owners[bad]}, or all tokens at -inf")


def _unmasked(logits: Any, mask: int) -> Any:
    """Return the largest (n, L) of logits (n, L, V) but for the mask, the first of equals; NaN is larger than all."""
    best = _argmax(logits)
    again = best == mask
    if bool(again.any()):
        others = logits.detach()[again]
        others[:, mask] = -torch.inf
        best[again] = _argmax(others)
    return best


def _argmax(logits: Any) -> Any:
    """On a CPU by NumPy, which is six times as fast at it as torch, and a large vocabulary shows."""
    if logits.device.type != "cpu":
        return logits.detach().argmax(-1)
    return torch.from_numpy(np.argmax(logits.detach().numpy(), -1))
