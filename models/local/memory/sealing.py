"""What the histories of a wave begin with and each holds a copy of, or would have to: worth a trunk, or not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .cache import Row, Trunk, chain, standing
from .histories import History
from .jobs import Job

Alike = Callable[[int, int], bool]
Element = tuple[History, int]


@dataclass(eq=False)
class Seal:
    """A trunk to be made of positions that rows of several jobs begin with.

    Attributes:
        job: one of the jobs; its row holds the positions from ``start`` on.
        start: where the row is read from.
        end: where the trunk ends.
        below: the trunk (or the one to be made before) that it stands on.
        base: where it begins: at ``start``, or where the first of ``joined`` does.
        joined: shorter trunks that nobody else in the wave stands on, to be copied into it, the lowest first, each with
            the position up to which it is needed: so there are never many to attend to.
        whole: whether the row's slab holds nothing else, so that its tensors are taken over.
        made: the trunk, once it is made.
    """

    job: Job
    start: int
    end: int
    below: Trunk | Seal | None
    base: int
    joined: list[tuple[Trunk, int]] = field(default_factory=list)
    whole: bool = False
    made: Trunk | None = None


@dataclass(frozen=True)
class Stand:
    """Where a job stands: on the first ``base`` positions of a trunk, or of one to be made."""

    trunk: Trunk | Seal | None
    base: int

    @property
    def made(self) -> Trunk | None:
        """The trunk, which is made by now."""
        return self.trunk.made if isinstance(self.trunk, Seal) else self.trunk


def grounds(jobs: Sequence[Job], alike: Alike) -> tuple[list[Stand], list[list[Element]]]:
    """Return where each job stands already, and its path in the token tree from there to its base."""
    found = [_ground(job, alike) for job in jobs]
    return [stand for stand, _ in found], [path for _, path in found]


def beginnings(
    jobs: Sequence[Job], stands: list[Stand], paths: Sequence[Sequence[Element]], least: int, saved: int
) -> list[Seal]:
    """Find what to make trunks of; ``stands`` are changed to those that the jobs will have.

    A trunk is worth it from ``least`` positions on, and where it spares ``saved`` of what all hold together. It may be
    of one job alone, whose row would be much longer than all others, and a slab is as wide as its longest row.
    """
    before = list(stands)
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, (stand, path) in enumerate(zip(stands, paths)):
        if path:
            groups[id(stand.trunk), stand.base].append(i)
    seals = []
    todo = [(group, 0) for group in groups.values()]
    while todo:
        group, depth = todo.pop()
        if len(group) < 2:
            continue
        first, end = paths[group[0]], depth
        while all(len(paths[i]) > end and paths[i][end] == first[end] for i in group):
            end += 1
        stand = stands[group[0]]
        length = first[end - 1][1] - stand.base if end > depth else 0
        if length >= least and (len(group) - 1) * length >= saved:
            seals.append(_seal(jobs, stands, before, group, stand.base + length))
        branches: dict[Element, list[int]] = defaultdict(list)
        for i in group:
            if len(paths[i]) > end:
                branches[paths[i][end]].append(i)
        todo += [(branch, end) for branch in branches.values()]
    own = [job.base - stand.base if path else 0 for job, stand, path in zip(jobs, stands, paths)]
    lone = _stragglers(own, least, saved)
    return seals + [_seal(jobs, stands, before, [i], jobs[i].base) for i in lone]


def _seal(jobs: Sequence[Job], stands: list[Stand], before: Sequence[Stand], users: Sequence[int], end: int) -> Seal:
    job, stand = jobs[users[0]], stands[users[0]]
    row = job.place
    assert isinstance(row, Row)
    seal = Seal(job, stand.base, end, stand.trunk, stand.base)
    _join(seal, before, len(users))
    alone = sum(other.place is row for other in jobs) == len(users)
    seal.whole = not seal.joined and alone and row.fills(seal.start, seal.end)
    for i in users:
        stands[i] = Stand(seal, end)
    return seal


def _stragglers(lengths: Sequence[int], least: int, saved: int) -> list[int]:
    """Return which rows to make trunks of as they are so much longer than the rest: an eighth of all at most."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    few = most = 0
    for k in range(1, len(order) // 8 + 1):
        shortest, next_one = lengths[order[k - 1]], lengths[order[k]]
        if shortest < least:
            break
        spared = (lengths[order[0]] - next_one) * len(order) - sum(lengths[i] for i in order[:k]) - k * saved
        if spared > most:
            few, most = k, spared
    return order[:few]


def _ground(job: Job, alike: Alike) -> tuple[Stand, list[Element]]:
    place = job.place
    if not isinstance(place, Row):
        return Stand(place, job.base), []
    path: list[Element] = []
    node = job.holder
    while node is not None and node.length > place.base:
        above, at = node.above, node.row
        if node.length <= job.base and isinstance(at, Trunk) and at.alive and alike(at.length, place.length):
            trunk = standing(at, node.length)
            assert isinstance(trunk, Trunk)
            return Stand(trunk, node.length), path[::-1]
        if above is None or above.length < job.base:
            path.append((node, min(node.length, job.base)))
        node = above
    return Stand(place.trunk, place.base), path[::-1]


def _join(seal: Seal, stands: Sequence[Stand], users: int) -> None:
    """Let a trunk take in those below it that are no longer than it and that all who stand on them leave for it."""
    trunk, end = seal.below, seal.start
    while isinstance(trunk, Trunk) and end - trunk.base <= seal.end - end:
        below = trunk
        if users < sum(any(other is below for other, _ in _chain(stand)) for stand in stands):
            return
        seal.joined.insert(0, (trunk, end))
        seal.base = end = trunk.base
        seal.below = trunk = trunk.trunk


def _chain(stand: Stand) -> list[tuple[Trunk, int]]:
    assert not isinstance(stand.trunk, Seal)
    return list(chain(stand.trunk, stand.base))
