"""What generators of tokens share: which numbers are tokens, and the laws that a network's logits stand for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from .generator import InvalidOutput


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


def check_logits(out: Any, tokens: Any, vocabulary: int) -> Any:
    """Return a network's logits, in float32 at least. Raises InvalidOutput where they do not fit its tokens (n, L)."""
    if out.shape != (*tokens.shape, vocabulary):
        raise InvalidOutput(
            f"the network got tokens {tuple(tokens.shape)} and returned {tuple(out.shape)}, not the logits of "
            f"{vocabulary} tokens at each position"
        )
    return out.to(torch.promote_types(out.dtype, torch.float32))


def log_law(logits: Any, owners: Any) -> Any:
    """Return the log of laws from their logits (n, L, V); raises InvalidOutput, by owner, for what is no law."""
    law = logits.log_softmax(-1)
    if bool(law[..., 0].isnan().any()):  # what is no law is NaN throughout
        bad = int(law.isnan().flatten(1).any(1).nonzero()[0, 0])
        raise InvalidOutput(f"the network returned NaN or +inf for particle {owners[bad]}, or all tokens at -inf")
    return law


def likeliest(law: Any) -> Any:
    """Return the likeliest tokens (n, L) of laws (n, L, V), the first of equals.

    On a CPU by NumPy, which is six times as fast at it as torch, and a large vocabulary shows.
    """
    if law.device.type != "cpu":
        return law.argmax(-1)
    return torch.from_numpy(np.argmax(law.detach().numpy(), -1))
