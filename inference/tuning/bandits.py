"""Bandits: which of several arms (engines, budgets, prompts) to pull next, from what the pulls so far have earned."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..base.checks import is_real, positive


class Pull(NamedTuple):
    """One pull: which arm, the chance that it had of being pulled, and what it earned (None: not known yet)."""

    arm: int
    chance: float
    reward: float | None = None


class Policy(Protocol):
    """What chooses arms. It is a value: all that it knows are the pulls so far."""

    @property
    def arms(self) -> int:
        """How many arms there are."""

    def chances(self, pulls: Sequence[Pull]) -> NDArray[np.float64]:
        """Return the chances (arms,) with which each is to be pulled next."""


@dataclass(frozen=True)
class UCB:
    """Pull the arm of largest upper confidence bound: mean + √(2 ln t / n) + bonuses.

    There were t pulls in all, n of them of the arm. Each arm is pulled once first, in order; ties go to the first.
    Rewards should be within [0, 1]: the width of the bound takes that for granted. A pull whose reward is not known yet
    counts in n and t, not in the mean.

    Args:
        arms: how many.
        bonus: a function of the pulls so far that gives (arms,) numbers to add: a prior belief in an arm, diversity,
            recovery after failures. None adds nothing, which is UCB1.

    Raises ValueError for less than one arm, and for bonuses of another number.

    Source: Finite-time Analysis of the Multiarmed Bandit Problem (2002), doi:10.1023/A:1013689704352; with bonuses to
        select among engines: PlanGEN (2025), arXiv:2502.16111, whose own bonuses are not given: yours go in.
    Guarantee: regret of O(log t) without bonuses, for rewards in [0, 1] that are independent; with bonuses heuristic.
    Engines: any; see `play`.
    Measured: see `play`.

    >>> ucb, means, pulls = UCB(2), (1.0, 0.0), []
    >>> for _ in range(20):
    ...     arm = int(ucb.chances(pulls).argmax())
    ...     pulls.append(Pull(arm, 1.0, means[arm]))
    >>> [pull.arm for pull in pulls].count(0)
    17
    """

    arms: int
    bonus: Callable[[Sequence[Pull]], ArrayLike] | None = None

    def __post_init__(self) -> None:
        positive("arms", self.arms)

    def chances(self, pulls: Sequence[Pull]) -> NDArray[np.float64]:
        """See `Policy`: 1 for the arm of largest bound."""
        counts = np.bincount([pull.arm for pull in pulls], minlength=self.arms)
        if np.any(counts == 0):
            return _sure(self.arms, int(np.argmin(counts > 0)))
        extra = np.zeros(self.arms) if self.bonus is None else np.asarray(self.bonus(pulls), float)
        if extra.shape != (self.arms,):
            raise ValueError(f"bonus gives a number for each of the {self.arms} arms, not shape {extra.shape}")
        bound = means(pulls, self.arms, unknown=0.0) + np.sqrt(2 * math.log(len(pulls)) / counts) + extra
        return _sure(self.arms, int(bound.argmax()))


@dataclass(frozen=True)
class TsallisINF:
    """Pull at random by follow-the-regularised-leader with Tsallis entropy: p_i = 4 / (η (L_i − x))², Σ p_i = 1.

    L_i are the losses 1 − reward so far, each divided by the chance of its pull, and η = 2/√t before the t-th pull. It
    needs no means that stand still: problems may come in any order, also one that an adversary has chosen. For a cost
    give a reward such as 1 − tokens/most.

    Args:
        arms: how many: a grid of budgets, say.
        rate: η; None is 2/√t.

    Raises ValueError for rewards outside [0, 1].

    Source: Tsallis-INF: An Optimal Algorithm for Stochastic and Adversarial Bandits (2021), arXiv:1807.07623; over a
        grid of a solver's settings: Learning to Relax (2024), arXiv:2310.02246.
    Guarantee: regret of O(√(arms·t)) against the best arm in hindsight, in any order of rewards.
    Engines: any; see `play`.
    Measured: .538 ± .025 solved where UCB has .533 ± .025, in the experiment of `play`: no difference to speak of.
        Over SMC(N), N = 1, 4, 16, 64, with the tokens until a problem is solved (2,000 at most) as loss: 581 ± 37
        where UCB has 603 ± 36 and uniform choice 930 ± 28, and 129 ± 11 more than the best fixed N, which is 1: it
        learns, and pays for it.

    >>> [round(p, 6) for p in TsallisINF.solve([0, 1, 2], 1.0).tolist()]
    [0.534814, 0.286762, 0.178424]
    """

    arms: int
    rate: float | None = None

    def __post_init__(self) -> None:
        positive("arms", self.arms)
        if self.rate is not None and not (is_real(self.rate) and self.rate > 0):
            raise ValueError(f"rate is positive, or None for 2/√t, not {self.rate!r}")

    def chances(self, pulls: Sequence[Pull]) -> NDArray[np.float64]:
        """See `Policy`."""
        losses = np.zeros(self.arms)
        for arm, chance, reward in pulls:
            if reward is not None:
                if not 0 <= reward <= 1:
                    raise ValueError(f"TsallisINF needs rewards from 0 to 1, not {reward!r}: scale them")
                losses[arm] += (1 - reward) / chance
        return self.solve(losses, 2 / math.sqrt(len(pulls) + 1) if self.rate is None else self.rate)

    @staticmethod
    def solve(losses: ArrayLike, rate: float) -> NDArray[np.float64]:
        """Return the chances (arms,) for losses (arms,) and η: x by Newton's method, least loss at 0."""
        least = np.asarray(losses, float) - np.min(np.asarray(losses, float))
        x = -2 / rate  # the best arm alone has the chance 1: the sum, convex in x, is at least 1
        for _ in range(100):
            terms = 4 / (rate * (least - x)) ** 2
            step = (float(terms.sum()) - 1) / float(2 * np.sum(terms / (least - x)))
            x -= step
            if abs(step) < 1e-14 * abs(x):
                break
        chances = 4 / (rate * (least - x)) ** 2
        result: NDArray[np.float64] = chances / chances.sum()
        return result


def means(pulls: Sequence[Pull], arms: int, unknown: float = math.nan) -> NDArray[np.float64]:
    """Return the mean reward (arms,) of each arm, where it is known."""
    known = [(pull.arm, pull.reward) for pull in pulls if pull.reward is not None]
    counts = np.bincount([arm for arm, _ in known], minlength=arms)
    sums = np.bincount([arm for arm, _ in known], [reward for _, reward in known], minlength=arms)
    result: NDArray[np.float64] = np.where(counts > 0, sums / np.maximum(counts, 1), unknown)
    return result


def _sure(arms: int, arm: int) -> NDArray[np.float64]:
    chances = np.zeros(arms)
    chances[arm] = 1.0
    return chances
