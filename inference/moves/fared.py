"""How a step of walkers fared, and the library that makes steps in JAX."""

from __future__ import annotations

from typing import Any, NamedTuple


class Fared(NamedTuple):
    """How a step of n walkers fared; of one walker in JAX.

    Attributes:
        chance: (n,) the probability with which it was accepted.
        diverging: (n,) whether its numbers ran away.
        energy: (n,) Hamiltonian of where it went, NaN of kernels that have none.
        evaluations: (n,) of the density (or its gradient).
    """

    chance: Any
    diverging: Any
    energy: Any
    evaluations: Any

    def summed(self) -> Fared:
        """Sum up the moves of each draw: from (count, moves, n) to (count, n)."""
        return Fared(self.chance.mean(1), self.diverging.any(1), self.energy[:, -1], self.evaluations.sum(1))


def library() -> Any:
    """Return BlackJAX. Raises ImportError with what to install."""
    try:
        import blackjax
    except ImportError as error:
        raise ImportError("moves on densities of JAX need BlackJAX: pip install feynkac[jax]") from error
    return blackjax
