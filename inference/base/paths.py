"""Paths: runs as linked steps, so that each can be taken up again at any step of it.

States are immutable, so a path keeps the states that it went through, and a new path may leave an old one anywhere
without a call to the model for what they share. So are made conditional SMC, resample–move and the moves of Markov
chains, all on the contract alone.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np

from ...ppl import keys as _keys
from ...ppl.errors import InvalidWeight, Unsupported
from ...ppl.keys import Keys
from ...ppl.model import Advance, FeynmanKac, Floats
from ...ppl.sites import Site
from .chain import detach_choices
from .engine import Growing, Guarantee, Move, Report, Start, weaker
from .search_tree import SearchTree
from .step import Step
from .weights import spread

T = TypeVar("T")
K = TypeVar("K", bound="MarkovKernel")
Asking: TypeAlias = Generator[Start | Move, Advance[Any], T]
"""A part of an engine's run that asks for steps, and returns a T."""


@dataclass(frozen=True, eq=False, slots=True)
class Path:
    """A run, finished or not: its last step, and the path before it.

    Attributes:
        before: the path without the last step; None where there is but one.
        state: a batch of particles as they were after the step, and ``row`` its place in it.
        choices: of the last step.
        length: steps made.
        done: whether it has finished, or died.
        scored: whether ``log_prob`` covers every choice of the path.
        log_increment: log G + log p − log q of the last step.
        log_prob: log p of the whole path; so are ``log_proposal`` (log q), ``log_potential`` and ``log_weight``.
        log_twist: the guide's level now.
        draws: how many of its steps drew something; the others only weighed what there was.
    """

    before: Path | None
    state: Any
    row: int
    choices: Any
    length: int
    done: bool
    scored: bool
    log_increment: float
    log_prob: float
    log_proposal: float
    log_potential: float
    log_weight: float
    log_twist: float
    draws: int

    def cut(self, length: int) -> Path | None:
        """Return the path's first ``length`` steps; None for none."""
        path: Path | None = self
        while path is not None and path.length > length:
            path = path.before
        return path

    def until_draw(self, number: int) -> Path | None:
        """Return the path up to before the step of its draw of a number, from 0; None where that is the first step."""
        path = self
        while path.before is not None and path.before.draws > number:
            path = path.before
        return path.before

    def steps(self) -> list[Path]:
        """Return the path after each of its steps, from the first."""
        out: list[Path] = []
        path: Path | None = self
        while path is not None:
            out.append(path)
            path = path.before
        return out[::-1]


class MarkovKernel(Protocol):
    """A Markov kernel on paths that leaves the target invariant, or a tempered form of it.

    It may learn from a population (see `tune`), and may say what it never moves (see `check_reach`). One that asks a
    model for no density says so by an attribute ``by_density = False``: programs may then be compiled under it.
    """

    def move(
        self, model: FeynmanKac[Any], paths: Sequence[Path], keys: Keys, horizon: int | None, inverse: Floats
    ) -> Asking[tuple[list[Path], float]]:
        """Move n paths, each independently.

        Args:
            model: theirs.
            paths: n paths, finished, or of ``horizon`` steps.
            keys: (n,)
            horizon: steps at which paths are cut; None: they run to their ends. The target is that of SMC at this step.
            inverse: (n,) inverse temperatures: the target of each is p·G^inverse.

        Returns:
            The n paths after the move, and the share of proposals that were accepted.
        """


def adapts(kernel: Any) -> bool:
    """Whether a kernel learns from the populations that it moves, so that an engine's evidence is only consistent."""
    return callable(getattr(kernel, "tuned", None)) and bool(getattr(kernel, "adaptive", True))


def promise(kernel: Any, alone: Guarantee = "unbiased") -> Guarantee:
    """Return what an engine promises that moves by a kernel, of what it promises ``alone``.

    A kernel that learns makes evidence consistent at best. One that does not leave its target invariant has an
    attribute ``limit``, the most that is left.
    """
    least = weaker(alone, getattr(kernel, "limit", "unbiased"))
    return weaker(least, "consistent") if adapts(kernel) else least


def tune(
    kernel: K,
    model: FeynmanKac[Any],
    paths: Sequence[Path],
    log_weights: Floats,
    horizon: int | None,
    inverse: Floats,
    acceptance: float | None,
) -> K:
    """Return a kernel as it has learned from the weighted population that it is about to move, if it does learn.

    Args:
        kernel: a Markov kernel. It learns by a method ``tuned`` with the other arguments, which returns a kernel.
        model: see `MarkovKernel`; so are ``paths``, ``horizon`` and ``inverse``.
        paths: n of them, as they are weighted.
        log_weights: (n,) by which they have the target that the kernel is to leave invariant.
        horizon: see above.
        inverse: (n,)
        acceptance: what the kernel's last use returned; None before the first.
    """
    if not adapts(kernel):
        return kernel
    learned: K = kernel.tuned(model, paths, log_weights, horizon, inverse, acceptance)  # type: ignore[attr-defined]
    return learned


def check_kernel(name: str, kernel: Any) -> None:
    """Raise ValueError unless a setting is a Markov kernel of the model's own target, not of a power of it."""
    wrong = isinstance(kernel, type) or not callable(getattr(kernel, "move", None))
    if wrong or getattr(kernel, "power", 1.0) != 1.0:
        raise ValueError(
            f"{name} must be a Markov kernel of the model's own target, such as SuffixMH(1), not {kernel!r}"
        )


def check_reach(engine: str, kernel: Any, model: FeynmanKac[Any], path: Path) -> None:
    """Raise `Unsupported` where a kernel alone cannot lead a chain everywhere: a choice that it never moves.

    A kernel says so by ``left(model, path)``, the address of such a choice or None.
    """
    left = getattr(kernel, "left", None)
    site = None if left is None else left(model, path)
    if site is not None:
        raise Unsupported(
            f"{engine} would never change site {site!r}, which {kernel!r:.100} leaves as it is: use "
            f"Sweep(SuffixMH(1), {type(kernel).__name__}(…)), or move a population by SMC(n, move=…)"
        )


def extend(
    model: FeynmanKac[Any], paths: Sequence[Path | None], keys: Keys, given: Sequence[Any] | None = None
) -> Asking[list[Path]]:
    """Make one step of each path, in shared batches; None starts one, and those that are done stay as they are."""
    out = list(paths)
    fresh = np.array([i for i, path in enumerate(paths) if path is None], np.intp)
    going = np.array([i for i, path in enumerate(paths) if path is not None and not path.done], np.intp)
    for rows in (fresh, going):
        if not len(rows):
            continue
        forced = None if given is None else [given[i] for i in rows.tolist()]
        before = [paths[i] for i in rows.tolist()]
        if rows is fresh:
            advance = yield Start(keys[rows], forced)
        else:
            advance = yield Move(gather(model, [path for path in before if path is not None]), keys[rows], forced)
        for i, path in zip(rows.tolist(), _adopt(before, advance)):
            out[i] = path
    return [path for path in out if path is not None]  # which is all of them


def run_on(
    model: FeynmanKac[Any], paths: Sequence[Path | None], keys: Keys, horizon: int | None = None
) -> Asking[list[Path]]:
    """Run paths to their ends, or to ``horizon`` steps; None starts one."""
    out, most, wave = list(paths), math.inf if horizon is None else horizon, 0
    while True:
        going = [i for i, path in enumerate(out) if path is None or (not path.done and path.length < most)]
        if not going:
            return [path for path in out if path is not None]  # which is all of them
        made = yield from extend(model, [out[i] for i in going], _keys.fold(keys[going], wave))
        for i, path in zip(going, made):
            out[i] = path
        wave += 1


def linked(steps: Sequence[Advance[Any]]) -> list[Path]:
    """Return the paths of n runs, of which there are all steps."""
    paths: list[Path] | None = None
    for step in steps:
        paths = _adopt(paths or [None] * len(step.choices), step)
    return paths or []


def _adopt(before: Sequence[Path | None], advance: Advance[Any]) -> list[Path]:
    """Link the rows of an advance to the paths that they came from."""
    increments = np.asarray(advance.log_increment, float)
    if not (increments < np.inf).all():
        i = int(np.flatnonzero(~(increments < np.inf))[0])
        raise InvalidWeight(f"the log-weight of particle {i} of its wave is {increments[i]}; it must be below +inf")
    columns = (increments, advance.log_prob, advance.log_proposal, advance.log_potential, advance.log_twist)
    numbers = np.array(columns, np.float64).T.tolist()
    flags = zip(np.asarray(advance.done, bool).tolist(), np.asarray(advance.scored, bool).tolist())
    out = []
    for row, (path, (increment, log_p, log_q, log_g, twist), (done, scored)) in enumerate(zip(before, numbers, flags)):
        was = (0, True, 0.0, 0.0, 0.0, 0.0, 0) if path is None else _totals(path)
        choices = advance.choices[row]
        dead = increment == -math.inf
        out.append(
            Path(
                before=path,
                state=advance.state,
                row=row,
                choices=choices,
                length=was[0] + 1,
                done=done or dead,
                scored=was[1] and scored,
                log_increment=increment,
                log_prob=was[2] + log_p,
                log_proposal=was[3] + log_q,
                log_potential=was[4] + log_g,
                log_weight=was[5] + increment,
                log_twist=0.0 if dead else twist,
                draws=was[6] + drew(choices),
            )
        )
    return out


def _totals(path: Path) -> tuple[int, bool, float, float, float, float, int]:
    return (
        path.length, path.scored, path.log_prob, path.log_proposal, path.log_potential, path.log_weight, path.draws
    )  # fmt: skip


def gather(model: FeynmanKac[Any], paths: Sequence[Path]) -> Any:
    """Return the state of n paths, as one batch in their order."""
    batches: dict[int, tuple[Any, list[int], list[int]]] = {}
    for i, path in enumerate(paths):
        _, rows, places = batches.setdefault(id(path.state), (path.state, [], []))
        rows.append(path.row)
        places.append(i)
    parts = [
        state if rows == list(range(len(state))) else model.select(state, np.array(rows, np.intp))
        for state, rows, _ in batches.values()
    ]
    if len(parts) == 1:
        return parts[0]
    order = np.concatenate([places for _, _, places in batches.values()])
    joined = model.concat(parts)
    return joined if (order[1:] > order[:-1]).all() else model.select(joined, np.argsort(order))


def record(paths: Sequence[Path], log_weights: Floats) -> SearchTree:
    """Return n paths as a tree, which is how posteriors keep them: what they share is there once, but for the leaves.

    The mass of a node is the mean weight of the paths that go through it, with those that do not at 0.
    """
    numbers: dict[int, int] = {}
    nodes: list[Path] = []
    leaves = []
    for path in paths:
        fresh, x = [], path.before
        while x is not None and id(x) not in numbers:
            fresh.append(x)
            x = x.before
        for x in reversed(fresh):
            nodes.append(x)
            numbers[id(x)] = len(nodes)
        nodes.append(path)
        leaves.append(len(nodes))
    parent = np.array([-1, *(0 if x.before is None else numbers[id(x.before)] for x in nodes)])
    particles = np.array(leaves)
    peak = float(np.max(log_weights, initial=-np.inf))
    mass, visits = np.zeros(len(parent)), np.bincount(particles, minlength=len(parent))
    np.add.at(mass, particles, np.exp(log_weights - peak) / len(paths) if peak > -np.inf else 0.0)
    for i in range(len(nodes), 0, -1):  # parents come before their children
        mass[parent[i]] += mass[i]
        visits[parent[i]] += visits[i]
    with np.errstate(divide="ignore"):
        log_mass = np.log(mass) + (peak if peak > -np.inf else 0.0)
    return SearchTree(
        parent=parent,
        depth=np.array([-1, *(x.length - 1 for x in nodes)]),
        visits=visits,
        value=np.zeros(len(parent)),
        log_weight=np.array([0.0, *(x.log_weight for x in nodes)]),
        log_mass=log_mass,
        log_potential=np.array([0.0, *map(_last_potential, nodes)]),
        done=np.array([False, *(x.done for x in nodes)]),
        choices=[(), *detach_choices([x.choices for x in nodes])],
        particles=particles,
    )


def _last_potential(path: Path) -> float:
    before = 0.0 if path.before is None else path.before.log_potential
    return path.log_potential - before if path.log_potential > -math.inf else -math.inf


def growing(
    model: FeynmanKac[Any],
    step: Step,
    paths: Sequence[Path],
    log_weights: Floats | None,
    log_evidence: float | None,
    info: Mapping[str, float] = MappingProxyType({}),
    serial: bool = False,
    stats: Mapping[str, Sequence[float]] = MappingProxyType({}),
    stages: tuple[Step, ...] = (),
) -> Growing:
    """Return a report of the paths that are in a list now, to be made when asked for, though the list may grow.

    Without weights, those alive weigh the same. They are ``serial`` where they are the draws of one Markov chain, and
    have ``stats`` then: see `Report`; these lists may grow, too. They have ``stages`` where they are tempered.
    """
    count = len(paths)

    def report() -> Report:
        kept = list(paths[:count])
        weights = even(kept) if log_weights is None else log_weights
        state, tree = gather(model, kept), record(kept, weights)
        told = {name: np.array(numbers[:count]) for name, numbers in stats.items() if len(numbers) >= count}
        more: dict[str, Any] = {"info": info, "serial": serial, "stats": told, "stages": stages}
        return Report(state, weights, None, log_evidence, tree=tree, **more)

    finished = count if step.done.all() else sum(path.done for path in paths)  # a chain's draws are whole runs
    return Growing(report, step, finished)


def even(paths: Sequence[Path]) -> Floats:
    """Return log-weights (n,): 0 for a path of positive weight, else −inf."""
    return np.array([0.0 if path.log_weight > -math.inf else -math.inf for path in paths])


def drew(choices: Any) -> bool:
    """Whether a step drew anything; what is no record of sites may have."""
    if not isinstance(choices, tuple) or not all(isinstance(site, Site) for site in choices):
        return True
    return any(site.kind in ("sample", "call") for site in choices)


def origins(paths: Sequence[Path]) -> list[int]:
    """Return for each path the number of the last step that drew in it: equal for copies that have not parted."""
    out = []
    for path in paths:
        at = path
        while at.before is not None and at.before.draws == at.draws:
            at = at.before
        out.append(id(at))
    return out


def describe_paths(number: int, paths: Sequence[Path], log_weights: Floats | None = None) -> Step:
    """Sum up a population of paths, for those who watch a run. Without weights, those alive weigh the same."""
    if log_weights is None:
        log_weights = even(paths)
    twist = np.array([path.log_twist for path in paths])
    found, plain = spread(log_weights + twist), spread(log_weights)
    return Step(
        depth=number,
        ess=found.ess,
        entropy=found.entropy,
        log_evidence=plain.log_mean,
        resampled=False,
        ancestors=np.arange(len(paths)),
        log_weights=log_weights,
        log_potential=np.array([_last_potential(path) for path in paths]),
        log_twist=twist,
        done=np.array([path.done for path in paths], bool),
        choices=[path.choices for path in paths],
    )
