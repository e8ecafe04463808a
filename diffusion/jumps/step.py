"""A step of a process that jumps at each position on its own."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ..generator import impose
from ..masked.site import invert


class Jump(NamedTuple):
    """Tokens (n, L) after a step, its log-probability (n,), and the log of what its laws sum to (n,)."""

    x: Any
    log_prob: Any
    log_sum: Any

    def log_weight(self, gain: Any, open_: Any, change: Any) -> Any:
        """Return the log-weight (n,) of the step in a product; none for what cannot come about.

        Args:
            gain: (n, L, V) what tokens were thought to add to the rewards, which is part of the laws.
            open_: (n, L) where tokens may have changed.
            change: (n,) what the step added to them.
        """
        promised = torch.where(open_, gain.gather(-1, self.x[..., None])[..., 0], 0.0).sum(-1)
        return torch.where(self.log_prob > -torch.inf, self.log_sum + change - promised, -torch.inf)


def jump(law: Any, x: Any, open_: Any, uniforms: Any, given: Any) -> Jump:
    """Draw tokens where positions are open.

    Args:
        law: (n, L, V) log-laws of the token after the step, not normalised. Where one has no token, what was there
            stays, with log-probability −inf.
        x: (n, L) tokens before it.
        open_: (n, L) which of them may change.
        uniforms: (n, L) uniform numbers.
        given: forced tokens and their rows, or None.
    """
    total = law.logsumexp(-1)
    drawn, able = x.clone(), open_ & (total > -torch.inf)
    drawn[able] = invert((law - total[..., None])[able], uniforms[able])
    impose(drawn, given)
    goes = torch.where(able, law.gather(-1, drawn[..., None])[..., 0] - total, -torch.inf)
    stays = torch.where(drawn == x, 0.0, -torch.inf)
    log_prob = torch.where(open_, goes, stays).sum(-1)
    return Jump(drawn, log_prob, torch.where(open_, total, 0.0).sum(-1))
