"""What `compare` found: trials, and a table of engines with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, Literal

from ...ppl.cost import UNITS
from ..base.student import NOTHING, Interval
from ..drawing.sheet import Sheet
from ..drawing.views import number
from .intervals import difference_interval, mean_interval
from .trials import Row, Trial, TrialRun

Over = Literal["problems", "seeds"]


@dataclass(frozen=True, repr=False)
class Comparison:
    """Engines side by side on the same problems and seeds. Made by `compare`.

    Shown as a table: quality with its 95% interval, the difference to the reference with its own, and the mean cost
    of a run over all problems.

    Attributes:
        trials: one for each engine, problem and seed.
        runs: one for each engine and seed.
        engines: the labels, in order.
        reference: label of the engine that the others are compared with.
        over: what the intervals generalise to: other ``"problems"`` like these, or other ``"seeds"`` on these.
        stopped: "interrupted" where Ctrl-C ended it, or None.
        bounds: the least and the largest quality there can be, within which the intervals stay; or None.
    """

    trials: tuple[Trial, ...]
    runs: tuple[TrialRun, ...]
    engines: tuple[str, ...]
    reference: str
    over: Over
    stopped: str | None = None
    bounds: tuple[float, float] | None = None

    def table(self) -> tuple[Row, ...]:
        """Return one row for each engine that has made a run, in order.

        Failures are left out of means, unless `compare` was told what they count as; differences take the problems and
        seeds on which neither failed.
        """
        return self._rows

    @cached_property
    def _rows(self) -> tuple[Row, ...]:
        return tuple(self._row(engine) for engine in self.engines if any(r.engine == engine for r in self.runs))

    @cached_property
    def _binary(self) -> bool:
        return all(trial.quality in (0.0, 1.0) for trial in self.trials if not math.isnan(trial.quality))

    def _row(self, engine: str) -> Row:
        trials = [trial for trial in self.trials if trial.engine == engine]
        runs = [run for run in self.runs if run.engine == engine]
        good = [trial for trial in trials if trial.error is None]
        scored = self._scored(engine)
        quality = mean_interval(list(scored.values()), [self._cluster(key) for key in scored], self._binary)
        if self.bounds is not None:
            quality = quality.within(*self.bounds)
        spent = {unit: _mean(getattr(run.cost, unit) for run in runs) for unit in (*UNITS, "seconds")}
        return Row(
            engine=engine,
            quality=quality,
            difference=None if engine == self.reference else self._difference(scored),
            log_evidence=_mean(t.log_evidence for t in good if not math.isnan(t.log_evidence)),
            ess=_mean(trial.ess for trial in good),
            cpu_seconds=_mean(run.cpu_seconds for run in runs),
            trials=len(trials),
            failures=len(trials) - len(good),
            stopped=sum(run.stopped is not None for run in runs),
            **spent,
        )

    def _scored(self, engine: str) -> dict[tuple[int, int], float]:
        """Return the quality by problem and seed, where there is one."""
        return {
            (trial.model, trial.seed): trial.quality
            for trial in self.trials
            if trial.engine == engine and not math.isnan(trial.quality)
        }

    def _cluster(self, key: tuple[int, int]) -> Any:
        return key[0] if self.over == "problems" else key

    def _difference(self, scored: dict[tuple[int, int], float]) -> Interval:
        reference = self._scored(self.reference)
        pairs = [key for key in scored if key in reference]
        gaps = [scored[key] - reference[key] for key in pairs]
        found = difference_interval(gaps, [self._cluster(key) for key in pairs], self._binary) if pairs else NOTHING
        if self.bounds is None:
            return found
        return found.within(self.bounds[0] - self.bounds[1], self.bounds[1] - self.bounds[0])

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return one flat dictionary for each trial: ``pandas.DataFrame(comparison.to_dicts())``."""
        flat = []
        for trial in self.trials:
            each = {f.name: getattr(trial, f.name) for f in fields(trial) if f.name != "cost"}
            run = next(run for run in self.runs if (run.engine, run.seed) == (trial.engine, trial.seed))
            flat.append({**each, **asdict(trial.cost), "cpu_seconds": run.cpu_seconds})
        return flat

    def plot(self, x: str = "tokens_out", *, ax: Any = None, figsize: tuple[float, float] | None = None) -> Any:
        """Draw quality against the cost ``x`` of a run, with 95% intervals and the Pareto front; return the figure.

        ``x`` is a column of costs: "tokens_in", "tokens_out", "model_calls", "reward_calls", "requests", "nfe",
        "seconds" or "cpu_seconds"; ValueError for any other. Needs matplotlib (``pip install feynkac[plots]``).
        """
        from .plot_comparison import pareto

        return pareto(self.table(), x, ax, figsize)

    # -- showing ------------------------------------------------------------------------------------------------

    def _sheet(self) -> Sheet:
        """Return the table without the columns that have nothing to say."""
        rows = self.table()
        shown = [(name, [cell(row) for row in rows]) for name, cell in _COLUMNS]
        kept = [(name, cells) for name, cells in shown if any(cell not in ("", "0") for cell in cells)]
        return Sheet([name for name, _ in kept], list(zip(*(cells for _, cells in kept))), self._notes())

    def _notes(self) -> list[str]:
        problems = len({trial.model for trial in self.trials})
        seeds = len({trial.seed for trial in self.trials})
        to = "other problems like these" if self.over == "problems" else "other seeds"
        notes = [
            f"{problems} problem{'s' * (problems != 1)} × {seeds} seed{'s' * (seeds != 1)}; 95% intervals, for {to}; "
            f"difference to {self.reference}; costs of a run over all problems"
        ]
        if self.stopped:
            notes.append(f"stopped: {self.stopped}")
        cut = sum(trial.prefix for trial in self.trials)
        if cut:
            notes.append(f"log Ẑ leaves out {cut} trial{'s' * (cut != 1)} cut short, which have that of a prefix alone")
        errors: dict[str, int] = {}
        for trial in self.trials:
            if trial.error is not None:
                told = f"{trial.engine}: {trial.error}"
                errors[told] = errors.get(told, 0) + 1
        return notes + [f"failed {count}×: {told}" for told, count in list(errors.items())[:5]]

    def __repr__(self) -> str:
        return self._sheet().text()

    def __rich__(self) -> Any:
        return self._sheet().rich()

    def _repr_html_(self) -> str:
        return self._sheet().html()


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed) if listed else math.nan


def _interval(interval: Interval | None, sign: str = "") -> str:
    if interval is None or math.isnan(interval.mean):
        return "" if interval is None else "–"
    mean = f"{interval.mean:{sign}.3g}"
    if math.isnan(interval.low):
        return mean.replace("-", "−")
    return f"{mean} [{interval.low:{sign}.3g}, {interval.high:{sign}.3g}]".replace("-", "−")


def _amount(name: str) -> Callable[[Row], str]:
    return lambda row: f"{round(getattr(row, name)):,}"


_COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("engine", lambda row: row.engine),
    ("quality", lambda row: _interval(row.quality)),
    ("difference", lambda row: _interval(row.difference, "+")),
    ("log Ẑ", lambda row: "–" if math.isnan(row.log_evidence) else number(row.log_evidence)),
    ("ESS", lambda row: "–" if math.isnan(row.ess) else f"{row.ess:.1f}"),
    ("tokens in", _amount("tokens_in")),
    ("tokens out", _amount("tokens_out")),
    ("model calls", _amount("model_calls")),
    ("reward calls", _amount("reward_calls")),
    ("requests", _amount("requests")),
    ("NFE", _amount("nfe")),
    ("s", lambda row: f"{row.seconds:.3g}"),
    ("CPU s", lambda row: f"{row.cpu_seconds:.3g}"),
    ("failed", lambda row: f"{row.failures} of {row.trials}" if row.failures else ""),
    ("cut short", lambda row: str(row.stopped) if row.stopped else ""),
)
