"""Laws over a few tokens that are known in full, as the networks that would know them: for tests, and to learn from."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .denoiser import Network


class TokenTable:
    """A law over L tokens as a table, and the exact networks of it; what `Mixture` is to Gaussian noise.

    Args:
        law: (K, …, K), a probability for each of the K^L sequences; it is normalised.

    Raises ValueError for a table whose sides differ, or that is no law.

    >>> table = TokenTable([[0.1, 0.2], [0.3, 0.4]])
    >>> network = table.conditionals()  # tokens 0 and 1, and the mask 2
    >>> network(torch.tensor([[2, 1]]), torch.tensor([0.5]), None).exp()[0, 0].tolist()  # up to a factor
    [0.2, 0.4, 0.0]
    """

    def __init__(self, law: Any) -> None:
        table = np.asarray(law, float)
        if not table.ndim or set(table.shape) != {len(table)} or not (table >= 0).all() or not 0 < table.sum() < np.inf:
            raise ValueError(f"a law is an array of weights, as long on all sides: {table.shape} with {table.sum():g}")
        self.law = table / table.sum()

    def __repr__(self) -> str:
        return f"TokenTable({self.law.ndim} tokens of {len(self.law)})"

    def conditionals(self) -> Network:
        """Return the network of masked diffusion: logits of tokens, given those that are no mask (token K).

        It keeps (K + 1)^L numbers.
        """
        table = self.law
        for axis in range(table.ndim):
            table = np.concatenate([table, table.sum(axis, keepdims=True)], axis)

        def network(x: Any, share: Any) -> Any:
            logits = _beside(table, x)
            logits[..., -1] = -torch.inf
            return logits

        return Network(network, "logits")

    def ratios(self) -> Network:
        """Return the network of a jump process: log-ratios at noise σ."""

        def network(x: Any, sigma: Any) -> Any:
            found = torch.empty(*x.shape, len(self.law), dtype=torch.float64)
            for level in sigma.unique():
                at = sigma == level
                near = _beside(self.noised(float(level)), x[at])
                found[at] = near - near.gather(-1, x[at][..., None])
            return found

        return Network(network, "log_ratios")

    def noised(self, sigma: float) -> Any:
        """Return the law (K, …, K) at noise σ, where a token is as it was with probability e^{−σ}, and else any."""
        kept, table = np.exp(-sigma), self.law
        for axis in range(table.ndim):
            table = kept * table + (1.0 - kept) * table.mean(axis, keepdims=True)
        return table


def _beside(table: Any, x: Any) -> Any:
    """Return the log of a table at tokens (n, L) with each token at each position, (n, L, V)."""
    size, length = len(table), table.ndim
    strides = torch.as_tensor(size ** np.arange(length)[::-1].copy())
    code = (x * strides).sum(-1)[:, None] - x * strides
    there = code[..., None] + strides[:, None] * torch.arange(size)
    return torch.as_tensor(table).flatten()[there].log()
