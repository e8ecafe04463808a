"""A step of a process that jumps at each position on its own."""

from __future__ import annotations

from typing import Any

import torch

from ..generator import impose
from ..masked.rules import invert
from ..products import normalised


def jump(law: Any, x: Any, open_: Any, uniforms: Any, given: Any) -> tuple[Any, Any]:
    """Draw tokens where positions are open, and return all tokens (n, L) with their log-probability (n,).

    Args:
        law: (n, L, V) log-laws of the token after the step, not normalised. Where one has no token, what was there
            stays, with log-probability −inf.
        x: (n, L) tokens before it.
        open_: (n, L) which of them may change.
        uniforms: (n, L) uniform numbers.
        given: forced tokens and their rows, or None.
    """
    law = normalised(law, -torch.inf)
    drawn, able = x.clone(), open_ & (law > -torch.inf).any(-1)
    drawn[able] = invert(law[able], uniforms[able])
    impose(drawn, given)
    stays = torch.where(drawn == x, 0.0, -torch.inf).double()
    return drawn, torch.where(open_, law.gather(-1, drawn[..., None])[..., 0], stays).sum(-1)


def weigh(law: Any, open_: Any, log_prob: Any, gain: Any, x: Any, change: Any) -> Any:
    """Return the log-weight (n,) of a step: all that its laws sum to, and what its rewards come to.

    Args:
        law: see `jump`.
        open_: see `jump`.
        log_prob: (n,) of the step; what cannot come about has no weight.
        gain: (n, L, V) what tokens were thought to add to the rewards.
        x: (n, L) tokens after the step.
        change: (n,) what the step added to the rewards.
    """
    promised = torch.where(open_, gain.gather(-1, x[..., None])[..., 0], 0.0).sum(-1)
    total = torch.where(open_, law.logsumexp(-1), 0.0).sum(-1)
    return torch.where(log_prob > -torch.inf, total + change - promised, -torch.inf)
