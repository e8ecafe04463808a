"""The tasks of reasoning-gym as problems with rewards: over a hundred generators, each with its own checker.

reasoning-gym (Stojanovski et al. 2025, arXiv:2505.24760; Apache-2.0) is an extra: ``pip install 'feynkac[tasks]'``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ...ppl.score import Reward, Score

_TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


def tagged(text: str) -> str:
    """Return what stands between the last ``<answer>`` and ``</answer>``, or the whole text where there are none.

    >>> tagged("So <answer> 4 </answer>."), tagged(" 4\\n")
    ('4', '4')
    """
    found = _TAGGED.findall(text)
    return str(found[-1] if found else text).strip()


@dataclass(frozen=True, eq=False)
class Exercise:
    """A problem of a data set of reasoning-gym, made by `gym`.

    Attributes:
        name: of the data set.
        prompt: the question, as the data set asks it.
        expected: an answer that is right; others may be too. Empty where the data set gives none.
        metadata: what the data set tells of the problem.
        steps: most lines of an answer, for `solve`.
    """

    name: str
    prompt: str
    expected: str
    metadata: dict[str, Any] = field(repr=False)
    steps: int = field(repr=False)
    _check: Callable[[str], float] = field(repr=False)
    _reward: Reward = field(repr=False)

    def score(self, text: Any) -> float:
        """Return the checker's number for a text, from 0 to 1; many data sets give partial credit.

        The checker runs here and now, and some let SymPy evaluate the answer: for models that you do not trust, call
        it in another process by `feynkac.rewards.Checker`. An answer at which it raises is worth 0.
        """
        try:
            return float(self._check(str(text)))
        except Exception:  # of any kind: checkers parse what a model wrote, and few of them expect all of it
            return 0.0

    def solved(self, text: Any) -> bool:
        """Return whether a text has the full score."""
        return self.score(text) == 1.0

    def reward(self, text: Any) -> Score:
        """Return the checker's number for a text as a score, a probability."""
        return self._reward(self, text)


def gym(
    name: str,
    *,
    seed: int = 0,
    size: int = 50,
    steps: int = 16,
    extract: Callable[[str], str] = tagged,
    **config: Any,
) -> list[Exercise]:
    """Return problems of a data set of reasoning-gym.

    Args:
        name: of the data set, such as "countdown" or "chain_sum"; ``reasoning_gym.factory.DATASETS`` lists them.
        seed: same seed, same problems.
        size: how many.
        steps: most lines of an answer, for `solve`.
        extract: from a text to the answer in it; see `tagged`.
        config: settings of the data set, such as ``min_numbers=3``.

    Raises ImportError without reasoning-gym, ValueError for a data set that it does not have, TypeError for a setting
    that the data set does not have.

    >>> problem = gym("chain_sum", seed=1, size=3)[0]
    >>> problem.prompt, problem.score(problem.expected), problem.score("no idea")
    ('State the final answer to the following arithmetic problem: 4 - 1 - 7 =', 1.0, 0.0)
    """
    try:
        from reasoning_gym.factory import DATASETS, create_dataset
    except ImportError as error:
        raise ImportError("these tasks are those of reasoning-gym: pip install 'feynkac[tasks]'") from error
    if name not in DATASETS:
        raise ValueError(f"reasoning-gym has no data set {name!r}; it has: {', '.join(sorted(DATASETS))}")
    data = create_dataset(name, seed=seed, size=size, **config)
    reward = Reward(lambda exercise, text: exercise.score(text), "probability", name=name)

    def exercise(entry: dict[str, Any]) -> Exercise:
        def check(text: str) -> float:
            return float(data.score_answer(extract(text), entry))

        expected = "" if entry["answer"] is None else str(entry["answer"])
        return Exercise(name, entry["question"], expected, entry["metadata"], steps, check, reward)

    return [exercise(data[i]) for i in range(size)]
