"""Engines and settings chosen by trying them: bandits and Bayesian optimisation.

    import feynkac as fk

    found = fk.tune(models, fk.SMC, {"particles": (2, 64), "ess_threshold": (0.1, 1.0)}, objective, trials=30, seed=0)
    found.best, found.held_out              # settings, and their score on problems that no trial has seen
    fk.tuning.bayes({"max_batch": [1, 4, 16, 64]}, throughput, trials=8, seed=0)
    fk.tuning.play(models, [fk.SMC(8), fk.BestOfN(8)], reward, seed=0)      # an engine for each problem

`tune` and `bayes` need Optuna: ``pip install 'feynkac[tune]'``.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from ...ppl.cards import Card
from ...ppl.cards import index as _index
from ...ppl.lazy import find

if TYPE_CHECKING:
    from .arms import Played, play
    from .bandits import UCB, Policy, Pull, TsallisINF
    from .bayesian import Bayes, bayes
    from .likelihood import Corrected, LearnedLikelihood
    from .search import HeldOut, Trial, Tuned, grid
    from .settings import tune
    from .surrogates import Surrogate, expected_improvement, gp, network

_HOME = {
    "Bayes": "bayesian",
    "Corrected": "likelihood",
    "HeldOut": "search",
    "LearnedLikelihood": "likelihood",
    "Played": "arms",
    "Policy": "bandits",
    "Pull": "bandits",
    "Surrogate": "surrogates",
    "Trial": "search",
    "TsallisINF": "bandits",
    "Tuned": "search",
    "UCB": "bandits",
    "bayes": "bayesian",
    "expected_improvement": "surrogates",
    "gp": "surrogates",
    "grid": "search",
    "network": "surrogates",
    "play": "arms",
    "tune": "settings",
}

__all__ = [
    "UCB",
    "Bayes",
    "Corrected",
    "HeldOut",
    "LearnedLikelihood",
    "Played",
    "Policy",
    "Pull",
    "Surrogate",
    "Trial",
    "TsallisINF",
    "Tuned",
    "bayes",
    "expected_improvement",
    "gp",
    "grid",
    "index",
    "network",
    "play",
    "tune",
]


def index() -> tuple[Card, ...]:
    """Return the index cards of what is here: paper, promise, engines, and what was measured, see `Card`."""
    return _index(sys.modules[__name__], "fk.tuning")


def __getattr__(name: str) -> Any:
    return find(__name__, _HOME, name, "tune")


def __dir__() -> list[str]:
    return list(__all__)
