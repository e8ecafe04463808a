"""Checks of settings, whose errors name the setting and what it may be."""

from __future__ import annotations

import math
import numbers
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from ...ppl.cost import Budget
from ...ppl.errors import Unsupported
from ...ppl.sites import short


def positive(name: str, value: Any) -> None:
    """Raise ValueError unless a setting is a positive integer."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be a positive integer, not {value!r}")


def is_real(value: Any) -> bool:
    """Return whether a setting is a real number; True and False are none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def finite(name: str, value: Any) -> None:
    """Raise ValueError unless a setting is a finite real number."""
    if not is_real(value) or not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, not {value!r}")


def fraction(name: str, value: Any, of: str = "") -> None:
    """Raise ValueError unless a setting, a fraction ``of`` something, is from 0 to 1."""
    if not is_real(value) or not 0.0 <= value <= 1.0:
        raise ValueError(f"{name} is a fraction{of and f' of {of}'}, in [0, 1], not {value!r}")


def temperature_or_none(value: Any) -> None:
    """Raise ValueError unless a temperature of selection is positive and finite, or None."""
    if value is not None and not (is_real(value) and 0 < value < np.inf):
        raise ValueError(f"temperature must be positive and finite, or None for the best, not {value!r}")


def depths_or_none(name: str, value: Any) -> None:
    """Raise ValueError unless a setting is a collection of depths, or None.

    >>> depths_or_none("branch_at", (0, 4))
    >>> depths_or_none("branch_at", 4)
    Traceback (most recent call last):
    ValueError: branch_at holds depths from 0 up, such as (4,), or is None for all, not 4
    """
    fine = value is None or isinstance(value, Collection)
    if not fine or any(not isinstance(d, int | np.integer) or d < 0 for d in value or ()):
        raise ValueError(f"{name} holds depths from 0 up, such as (4,), or is None for all, not {value!r}")


def function_or_none(name: str, value: Any, of: str = "a value") -> None:
    """Raise ValueError unless a setting is a function, ``of`` something, or None."""
    if value is not None and not callable(value):
        raise ValueError(f"{name} must be a function of {of}, or None, not {value!r}")


def one_of(name: str, value: Any, options: Iterable[str]) -> None:
    """Raise ValueError unless a setting is one of some words.

    >>> one_of("rule", "uct", ("uct", "puct"))
    >>> one_of("rule", "best", ("uct", "puct"))
    Traceback (most recent call last):
    ValueError: rule must be "uct" or "puct", not 'best'
    """
    words = [f'"{option}"' for option in options]
    if not isinstance(value, str) or f'"{value}"' not in words:
        raise ValueError(f"{name} must be {', '.join(words[:-1])} or {words[-1]}, not {value!r}")


def check_power(who: str, model: Any) -> None:
    """Raise Unsupported for a power of a model whose log-probabilities are of auxiliary draws, too."""
    if getattr(model, "auxiliary", False):
        raise Unsupported(
            f"{who} raises probabilities to a power, and those of {model!r:.200} are of auxiliary draws, too, such as "
            "samples of the data, whose powers would change the target: use Steering(samples=0)"
        )


def check_run(who: str, models: Sequence[Any], engine: Any, budget: Any) -> None:
    """Raise TypeError unless these are Feynman–Kac models, an engine, and a budget or None."""
    for model in models:
        if isinstance(model, type) or not hasattr(model, "advance"):
            kind = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
            hint = "; call the program with its arguments first" if callable(model) else ""
            raise TypeError(f"{who} takes Feynman-Kac models, not {kind}{hint}")
    check_engine(who, engine)
    if budget is not None and not isinstance(budget, Budget):
        raise TypeError(f"budget says what it limits, such as fk.Budget(tokens=1000), and is not {short(budget, 60)}")


def each_engine(who: str, models: Sequence[Any], engine: Any, budget: Any, many: bool) -> list[Any]:
    """Return the engine of each model: the one for all, or of many models that of a list in its place.

    Raises TypeError as `check_run` does, and ValueError where there are not as many as models.
    """
    if not many or not isinstance(engine, list | tuple):
        check_run(who, models, engine, budget)
        return [engine] * len(models)
    if len(engine) != len(models):
        raise ValueError(f"{who} takes one engine, or as many as models, not {len(engine)} for {len(models)}")
    for model, one in zip(models, engine):
        check_run(who, [model], one, budget)
    return list(engine)


def check_engine(who: str, engine: Any) -> None:
    """Raise TypeError unless this is an engine with its settings."""
    if not isinstance(engine, type) and hasattr(engine, "run") and hasattr(engine, "chains"):
        return
    if isinstance(engine, type) and hasattr(engine, "run"):
        what = f"an engine with its settings, such as fk.{engine.__name__}(32), not the class alone"
    elif isinstance(engine, list | tuple | dict | set):
        what = f"one engine, such as fk.SMC(32), not a {type(engine).__name__} (fk.compare runs several)"
    else:
        what = f"an engine, such as fk.SMC(32), not {short(engine, 60)}"
    raise TypeError(f"{who} takes {what}")


def is_true(vote: Any) -> bool:
    """Whether a callback returned True itself: Python's, or that of NumPy, torch or JAX, alone or as one element."""
    if vote is True:
        return True
    kind = str(getattr(vote, "dtype", "")).removeprefix("torch.")
    return kind == "bool" and math.prod(vote.shape) == 1 and bool(vote)
