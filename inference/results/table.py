"""A table of what a posterior holds: one row for each site and each part of the values."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...ppl.model import Floats, Index
from ...ppl.sites import address
from ..drawing.pixels import described
from ..drawing.sheet import Sheet
from ..drawing.views import number, plain
from .columns.columns import column, columns
from .columns.latents import variables
from .trust.autocorrelation import chain_ess, rhat
from .trust.markov import layout, scalars

_LARGE = 64
"""Numbers of an array above which it has one row, and not one for each."""


@dataclass(frozen=True)
class Row:
    """What a posterior says of one site, or of one number in it.

    Attributes:
        name: of the site, with its visit where that is not the first, and the place in an array: ``"x"``, ``"x[1]"``,
            ``"x[1].0"``.
        mean: under the weights, as all others here; NaN for what is no number.
        sd: standard deviation.
        low: the 5% quantile.
        median: the 50% quantile.
        high: the 95% quantile.
        ess: effective sample size of its draws: by weight, where particles that share a draw count as one; of Markov
            chains by autocorrelation.
        rhat: R̂ of several Markov chains; NaN elsewhere.
        present: the share of the weight that has it; the numbers are of that share.
        top: of what is no number, the most probable value and its probability.
    """

    name: str
    mean: float
    sd: float
    low: float
    median: float
    high: float
    ess: float
    rhat: float
    present: float
    top: str = ""


@dataclass(frozen=True, repr=False)
class Table:
    """The rows of `Posterior.table`, shown as a table. ``table["x"]`` is a row; ``note`` says what they are not."""

    rows: tuple[Row, ...]
    note: str = ""

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> Row:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"there is no row {name!r}; there are {', '.join(row.name for row in self.rows)}")

    def to_dataframe(self) -> Any:
        """Return it as a pandas DataFrame, indexed by name. Raises ImportError without pandas."""
        frame = _pandas().DataFrame([asdict(row) for row in self.rows])
        return frame.set_index("name") if len(frame) else frame

    def _sheet(self) -> Sheet:
        shown = [head for head, show in _COLUMNS if head not in _OPTIONAL or any(show(row) for row in self.rows)]
        chosen = [(head, show) for head, show in _COLUMNS if head in shown]
        rows = [[show(row) for _, show in chosen] for row in self.rows]
        return Sheet([head for head, _ in chosen], rows, [self.note] if self.note else [])

    def __repr__(self) -> str:
        return self._sheet().text()

    def __rich__(self) -> Any:
        return self._sheet().rich()

    def _repr_html_(self) -> str:
        return self._sheet().html()


def _shown(value: float) -> str:
    return "" if math.isnan(value) else number(value)


_COLUMNS: tuple[tuple[str, Any], ...] = (
    ("", lambda row: row.name),
    ("mean", lambda row: _shown(row.mean)),
    ("sd", lambda row: _shown(row.sd)),
    ("5%", lambda row: _shown(row.low)),
    ("50%", lambda row: _shown(row.median)),
    ("95%", lambda row: _shown(row.high)),
    ("ESS", lambda row: "" if math.isnan(row.ess) else f"{row.ess:.1f}"),
    ("R-hat", lambda row: "" if math.isnan(row.rhat) else f"{row.rhat:.2f}"),
    ("present", lambda row: "" if row.present > 1 - 1e-9 else f"{row.present:.1%}"),
    ("most probable", lambda row: row.top),
)
_OPTIONAL = ("R-hat", "present", "most probable")


class Entry(NamedTuple):
    """One number, or one thing that is none, of each particle: its column (n,), and which share a draw of it (n,).

    Of arrays that are ``large`` it says what they are.
    """

    name: str
    column: NDArray[Any]
    origins: Index
    large: bool = False


def make_table(posterior: Any, sites: bool = True) -> Table:
    """Return the table of a posterior; see `Posterior.table`."""
    weights = np.where(posterior.complete, posterior.probabilities, 0.0)
    if not weights.sum() > 0:
        raise ValueError("no particle ran to its end, so there is nothing to sum up; raise the budget")
    heuristic = posterior.guarantee == "heuristic"
    note = "the weights select and are no posterior probabilities (heuristic)" if heuristic else ""
    rows = layout(posterior) if posterior.serial else None
    return Table(tuple(_row(entry, weights / weights.sum(), rows) for entry in entries(posterior, sites)), note)


def entries(posterior: Any, sites: bool) -> Iterator[Entry]:
    """Yield what a row of the table is about: the parts of the values, and with ``sites`` what was drawn."""
    whole = _origins(posterior)
    for name, variable in variables(posterior, sites).items():
        visits = np.moveaxis(variable.array, 1, 0) if variable.visited else variable.array[None]
        for visit, array in enumerate(visits):
            origins = variable.origins[visit] if variable.origins else whole
            yield from _numbers(address(name, visit), array, origins)


def _numbers(name: str, array: NDArray[Any], origins: Index) -> Iterator[Entry]:
    """Yield the numbers of an array (n, …), or itself where they are too many."""
    places = list(np.ndindex(array.shape[1:]))
    if len(places) > _LARGE:
        yield Entry(name, np.array([described(one) or "array" for one in array]), origins, large=True)
        return
    for place in places:
        yield Entry(".".join([name, *map(str, place)]), array[(slice(None), *place)], origins)


def _origins(posterior: Any) -> Index:
    """Return which particles are copies of each other, (n,): equal numbers for equal runs."""
    out, first = [], 0
    for chain in posterior.chains:
        starts = first + np.cumsum([0, *(len(step.done) for step in chain.steps)])
        first = int(starts[-1]) + (0 if chain.steps else len(chain.log_weights))
        index = np.arange(len(chain.log_weights))
        found, rows = index + (starts[-2] if chain.steps else starts[0]), index.copy()
        for t in range(len(chain.steps) - 1, 0, -1):
            parents = chain.steps[t].ancestors[index[rows]]
            ended = np.asarray(chain.steps[t - 1].done)[parents]  # so that it is a copy of its parent
            rows, parents = rows[ended], parents[ended]
            index[rows], found[rows] = parents, starts[t - 1] + parents
        out.append(found)
    return np.concatenate(out)


def _row(entry: Entry, weights: Floats, rows: Index | None) -> Row:
    numeric = entry.column.dtype.kind in "biuf"
    x = entry.column.astype(np.float64) if numeric else None
    there = ~np.isnan(x) if x is not None else entry.column != ""
    present = float(weights[there].sum())
    if not present > 0:
        return Row(entry.name, *(math.nan,) * 7, present=0.0)
    if entry.large:
        return Row(entry.name, *(math.nan,) * 7, present=present, top=str(entry.column[there][0]))
    w = np.where(there, weights, 0.0) / present
    size, gap = _quality(entry, w, rows)
    if x is None:
        words, place = np.unique(entry.column, return_inverse=True)
        mass = np.bincount(place, w)
        top = f"{plain(str(words[mass.argmax()]))!r} ({mass.max():.1%})"
        return Row(entry.name, *(math.nan,) * 5, ess=size, rhat=gap, present=present, top=top)
    used = np.flatnonzero(w)
    x, w = x[used], w[used]
    with np.errstate(over="ignore", invalid="ignore"):  # of infinite numbers
        mean = float(w @ x) if x.min() < x.max() else float(x[0])  # the same everywhere: no rounding
        sd = math.sqrt(float(w @ (x - mean) ** 2))
    low, median, high = _quantiles(x, w, (0.05, 0.5, 0.95))
    return Row(entry.name, mean, sd, low, median, high, size, gap, present)


def _quality(entry: Entry, weights: Floats, rows: Index | None) -> tuple[float, float]:
    """Return the effective sample size of a column, and R̂ where there are several Markov chains."""
    if rows is not None:
        numbers = entry.column
        if numbers.dtype.kind not in "biuf":  # what is no number, by whether it is the commonest
            _, place, counts = np.unique(numbers, return_inverse=True, return_counts=True)
            numbers = place == counts.argmax()
        (series,) = scalars(numbers, rows)
        return chain_ess(series), rhat(series)
    shares = np.bincount(np.unique(entry.origins, return_inverse=True)[1], weights)
    return 1.0 / float(shares @ shares), math.nan


def _quantiles(x: Floats, weights: Floats, levels: tuple[float, ...]) -> list[float]:
    """Return the least numbers that have at least such shares of the weight up to them."""
    order = np.argsort(x, kind="stable")
    mass = np.cumsum(weights[order])
    return [float(x[order[min(int(np.searchsorted(mass, q * mass[-1] - 1e-12)), len(x) - 1)]]) for q in levels]


def draws_of(posterior: Any, name: str) -> NDArray[Any]:
    """Return the draws of a site, or of a part of the values, in every particle; see `Posterior.__getitem__`."""
    if not isinstance(name, str):
        raise TypeError(f"posterior[…] takes the name of a site, not {name!r:.40}; for the particles see values")
    drawn = posterior.site(name)
    if any(value is not None for value in drawn):
        found = column(drawn)
        if found.dtype.kind != "U" or all(value is None or isinstance(value, str) for value in drawn):
            return found
        out = np.empty(len(drawn), object)
        out[:] = drawn
        return out
    parts = columns(posterior.values)
    if name in parts:
        return parts[name]
    known = ", ".join([*dict.fromkeys([*variables(posterior), *parts])][:20])
    raise KeyError(f"no particle has a site {name!r}, and no value a part of this name; there are {known or 'none'}")


def dataframe(posterior: Any, sites: bool = True) -> Any:
    """Return a row for each particle; see `Posterior.to_dataframe`."""
    pandas = _pandas()
    sizes = [len(chain.log_weights) for chain in posterior.chains]
    data: dict[str, Any] = {
        "chain": np.repeat(np.arange(len(sizes)), sizes),
        "draw": np.concatenate([np.arange(size) for size in sizes]),
        "log_weight": posterior.log_weights,
        "log_potential": posterior.log_potential,
        "complete": posterior.complete,
    }
    for entry in entries(posterior, sites):
        data[entry.name if entry.name not in data else f"{entry.name}_"] = entry.column
    return pandas.DataFrame(data)


def _pandas() -> Any:
    try:
        return importlib.import_module("pandas")
    except ImportError as error:
        raise ImportError("a DataFrame needs pandas: pip install pandas") from error
