"""Searches over settings: Optuna's studies, run so that they can be repeated, cut short and taken up."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ...ppl import keys as _keys
from ...ppl.lazy import needing
from ..base.checks import is_real, positive
from ..base.engine import Engine
from ..base.progress import Progress

Settings = dict[str, Any]
Space = Mapping[str, Any] | Callable[[Any], Settings]
"""Names with what each may be, or a function of Optuna's trial that returns settings; see `bayes`."""


class Trial(NamedTuple):
    """Settings that were tried, and their score; larger is better."""

    settings: Settings
    score: float


class HeldOut(NamedTuple):
    """The mean score of the best settings on problems that no trial saw, its standard error, and how many."""

    mean: float
    se: float
    problems: int


@dataclass(frozen=True)
class Tuned:
    """What a search has found. Iterate over its ``trials``.

    Attributes:
        best: the settings of the best trial.
        score: theirs, as the search saw it: the largest of many noisy numbers, so too good on average.
        trials: all that were made whole, in order.
        study: Optuna's study, for its own plots and importances; settings that are no numbers, strings, booleans or
            None stand there by their repr.
        engine: the engine with the best settings, where `tune` made it, else None.
        held_out: the score of the best settings on other problems, where `tune` kept some, else None.
        stopped: "interrupted" where Ctrl-C ended the search, else None.
    """

    best: Settings
    score: float
    trials: tuple[Trial, ...]
    study: Any = field(repr=False)
    engine: Engine | None = None
    held_out: HeldOut | None = None
    stopped: str | None = None

    def __iter__(self) -> Iterator[Trial]:
        return iter(self.trials)

    def __len__(self) -> int:
        return len(self.trials)

    def plot(self, *, figsize: tuple[float, float] | None = None) -> Any:
        """Draw the scores in order, and the best so far; return the figure. Needs matplotlib."""
        from .plot_trials import plot_trials

        return plot_trials(self, figsize)


def search(
    space: Space,
    score: Callable[[Settings], float],
    trials: int,
    *,
    seed: int,
    sampler: Any = None,
    save: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
    tries: Sequence[Settings] = (),
) -> Tuned:
    """Ask for settings, score them, tell; until there are so many trials. See `bayes`."""
    with needing("fk.tune", "tune"):
        import optuna
    positive("trials", trials)
    if isinstance(space, Mapping):
        options = {name: _Option.of(name, option) for name, option in space.items()}
    key, stopped = _keys.root(seed), None

    def suggest(trial: Any) -> Settings:
        if not isinstance(space, Mapping):
            return space(trial)
        return {name: option.suggest(trial, name) for name, option in options.items()}

    def left(done: list[Any]) -> list[Settings]:
        every = [{name: options[name].label(value) for name, value in one.items()} for one in tries]
        return [labels for labels in every if all(trial.params != labels for trial in done)]

    with _quiet(optuna):
        study = _study(optuna, save)
        _claim(study, int(seed), space, save)

        def standing() -> tuple[int, int, str]:
            done = whole(study)
            best = f", best {study.best_value:.4g}" if done else ""
            return len(done), trials, f"{len(done)} of {trials} trials{best}"

        try:
            with Progress(standing, progress) as bar:
                while (number := len(done := whole(study))) < trials:
                    for labels in left(done)[:1]:
                        study.enqueue_trial(labels)
                    study.sampler = _sampler(optuna, sampler, _keys.as_seed(_keys.fold(key, number)) % 2**32)
                    _try(optuna, study, suggest, score)
                    bar.update()
        except KeyboardInterrupt:
            if not whole(study):
                raise
            stopped = "interrupted"
        found = tuple(Trial(suggest(trial), trial.value) for trial in whole(study))
    best = max(found, key=lambda trial: trial.score)
    return Tuned(best.settings, best.score, found, study, stopped=stopped)


def grid(
    space: Mapping[str, Sequence[Any]],
    score: Callable[[Settings], float],
    *,
    seed: int = 0,
    save: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> Tuned:
    """Score every combination of settings, and take the best.

    Args:
        space: names with a list of what each may be, such as ``{"temperature": [0.1, 0.3, 0.5], "steps": [4, 8, 12]}``.
        score: gives the score of a dictionary of settings; larger is better.
        seed: of nothing: no setting is drawn.
        save: a file in which trials are kept, see `bayes`.
        progress: whether to show a progress line, as in `infer`.

    Raises ValueError for what is no list, and for a score that is no number.

    Source: Systematic Optimization of Open Source Large Language Models for Mathematical Reasoning (2025),
        arXiv:2509.07238.
    Guarantee: the largest score that was seen; with noise it is too good on average, as every maximum is.
    Engines: any, and anything that has settings.
    Not shown here: it costs the product of all lists; `bayes` is measured on a grid's worth of settings.

    >>> grid({"t": [0.1, 0.3, 0.5], "steps": [4, 8]}, lambda s: s["steps"] - 10 * abs(s["t"] - 0.3)).best
    {'t': 0.3, 'steps': 8}
    """
    for name, options in space.items():
        if not isinstance(options, list):
            raise ValueError(f"a grid needs a list of what {name} may be, not {options!r}")
    every = [dict(zip(space, values)) for values in itertools.product(*space.values())]
    return search(space, score, len(every), seed=seed, save=save, progress=progress, tries=every)


@dataclass(frozen=True)
class _Option:
    """What a setting may be, for Optuna; and the values behind the labels that it knows."""

    distribution: Any
    values: dict[Any, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, option: Any) -> _Option:
        """Read a range (two numbers; whole ones stay whole), a list, or a distribution of Optuna's."""
        from optuna import distributions as d

        if isinstance(option, d.BaseDistribution):
            return cls(option)
        if isinstance(option, tuple) and len(option) == 2 and all(map(is_real, option)) and option[0] <= option[1]:
            whole = all(isinstance(end, int) for end in option)
            return cls(d.IntDistribution(*option) if whole else d.FloatDistribution(*option))
        if isinstance(option, list) and option:
            labels = [one if one is None or isinstance(one, bool | int | float | str) else repr(one) for one in option]
            if len(set(map(repr, labels))) < len(labels):
                raise ValueError(f"two options of {name} are the same, or look the same: {labels}")
            return cls(d.CategoricalDistribution(labels), dict(zip(map(repr, labels), option)))
        raise ValueError(f"{name} is a range (low, high), a list of options, or Optuna's distribution, not {option!r}")

    def label(self, value: Any) -> Any:
        """Return what Optuna knows an option of a list as."""
        return next(c for c in self.distribution.choices if self.values[repr(c)] is value)

    def suggest(self, trial: Any, name: str) -> Any:
        """Return the value that a trial has here, or gets."""
        d = self.distribution
        match type(d).__name__:
            case "IntDistribution":
                return trial.suggest_int(name, d.low, d.high, step=d.step, log=d.log)
            case "FloatDistribution":
                return trial.suggest_float(name, d.low, d.high, step=d.step, log=d.log)
        label = trial.suggest_categorical(name, d.choices)
        return self.values.get(repr(label), label)


def _try(optuna: Any, study: Any, suggest: Callable[[Any], Settings], score: Callable[[Settings], float]) -> None:
    """Make one trial; one that ends in an error or in Ctrl-C is told so, and does not count."""
    trial = study.ask()
    try:
        settings = suggest(trial)
        try:
            value = score(settings)
        except Exception as error:
            error.add_note(f"feynkac: while trying the settings {settings}")
            raise
        if not is_real(value) or not math.isfinite(value):
            raise ValueError(f"the score of {settings} must be a finite number, not {value!r}")
    except BaseException:
        study.tell(trial, state=optuna.trial.TrialState.FAIL)
        raise
    study.tell(trial, float(value))


def _study(optuna: Any, save: str | os.PathLike[str] | None) -> Any:
    if save is None:
        return optuna.create_study(direction="maximize")
    from optuna.storages.journal import JournalFileBackend

    storage = optuna.storages.JournalStorage(JournalFileBackend(os.fspath(save)))
    return optuna.create_study(storage=storage, study_name="feynkac", direction="maximize", load_if_exists=True)


def _claim(study: Any, seed: int, space: Space, save: Any) -> None:
    """Note what a study is of; raise ValueError where a file holds another one, with which it would be mixed."""
    told = repr(sorted((name, repr(option)) for name, option in space.items())) if isinstance(space, Mapping) else ""
    mark = [seed, told]
    if (before := study.user_attrs.get("feynkac")) is None:
        study.set_user_attr("feynkac", mark)
    elif list(before) != mark:
        seen, options = before
        raise ValueError(f"{save} holds the trials of another search (seed {seen}, space {options}): name a new file")


def whole(study: Any) -> list[Any]:
    """Return the trials of a study that were made whole, in order."""
    from optuna.trial import TrialState

    found: list[Any] = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return found


def _sampler(optuna: Any, sampler: Any, seed: int) -> Any:
    """Return who draws the next settings. A new one for each trial: so it needs no memory, and can be taken up."""
    if isinstance(sampler, optuna.samplers.BaseSampler):
        return sampler
    return (optuna.samplers.TPESampler if sampler is None else sampler)(seed=seed)


@contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Within the block Optuna logs warnings only."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
