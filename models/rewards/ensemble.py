"""Several rewards as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...ppl.combine import How, check, combine
from ...ppl.score import Score


class Ensemble:
    """Several rewards of one kind, asked together and combined to one score.

    Each keeps its own cache and its own batches, and gets all arguments of the call. For scores that are at hand, use
    ``fk.combine``.

    Args:
        rewards: rewards, or functions from the arguments to a score.
        how: "mean", "min", "max" or "median"; for probabilities also "product" and "geometric".
        weights: of a mean.

    >>> import feynkac as fk
    >>> from feynkac.ppl.score import evaluate
    >>> @fk.reward(kind="probability")
    ... def short(text):
    ...     return 1.0 if len(text) < 5 else 0.25
    >>> @fk.reward(kind="probability")
    ... def calm(text):
    ...     return 0.1 if "!" in text else 0.9
    >>> both = Ensemble([short, calm], how="min")
    >>> both, evaluate([both("abc"), both("abc!")])
    (<min of short and calm>, [0.9, 0.1])
    """

    def __init__(
        self, rewards: Sequence[Callable[..., Score]], *, how: How = "mean", weights: Sequence[float] | None = None
    ) -> None:
        check(how, weights, len(rewards))
        self.rewards = tuple(rewards)
        self.how: How = how
        self.weights = weights

    def __call__(self, *args: Any, **named: Any) -> Score:
        """Return the combined score of one input, to be evaluated when awaited."""
        return combine([reward(*args, **named) for reward in self.rewards], self.how, weights=self.weights)

    def __repr__(self) -> str:
        return f"<{self.how} of {' and '.join(getattr(each, 'name', repr(each)) for each in self.rewards)}>"
