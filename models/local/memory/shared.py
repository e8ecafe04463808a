"""What histories of one wave begin with and nobody has forwarded yet: found here, to be forwarded once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .histories import Histories, History
from .jobs import Job

_WORTH = 16
"""Fewest tokens for which prompts are forwarded in two parts."""


@dataclass(frozen=True)
class Plan:
    """What to forward before the jobs of a wave.

    Attributes:
        stems: beginnings that several prompts share, each with a job that needs it.
        trunks: histories that several jobs go on from, each with a job that needs it.
        first: jobs that others go on from.
    """

    stems: Sequence[tuple[History, History]] = ()
    trunks: Sequence[tuple[History, History]] = ()
    first: frozenset[History] = frozenset()


def plan(tree: Histories, jobs: Sequence[Job], starts: Mapping[History, int], keeps: Callable[[int], bool]) -> Plan:
    """Find what jobs share whose prompts are not kept. A job needs logits from position ``starts[node]`` on."""
    fresh: dict[History, list[Job]] = defaultdict(list)
    for job in jobs:
        if job.base < job.node.top.length and keeps(job.node.length):
            fresh[job.node.top].append(job)
    if not fresh:
        return Plan()
    nodes = {job.node for job in jobs}
    trunks, first = [], set()
    for group in fresh.values():
        if len(group) > 1:
            trunk = _common([job.node for job in group])
            if trunk in nodes:
                first.add(trunk)
            else:
                trunk = trunk.ancestor(min(starts[job.node] for job in group))
                trunks.append((trunk, group[0].node))
    prompts = [root for root, group in fresh.items() if not root.source]
    return Plan(_stems(tree, prompts, fresh), trunks, frozenset(first))


def _common(nodes: Sequence[History]) -> History:
    """Return the longest history that all of some histories of one prompt begin with."""
    shared = nodes[0]
    for node in nodes:
        while shared is not node:
            if shared.length < node.length:
                node = node.ancestor(node.length - 1)
            else:
                shared = shared.ancestor(shared.length - 1)
    return shared


def _stems(
    tree: Histories, roots: Sequence[History], fresh: Mapping[History, Sequence[Job]]
) -> list[tuple[History, History]]:
    """Give prompts that share their beginning a stem: one that is there already, or a new one."""
    free = []
    for root in roots:
        if root.stem is None:
            fits = [stem for stem in tree.stems if root.prompt[: stem.length] == stem.prompt != root.prompt]
            root.stem = max(fits, key=lambda stem: stem.length, default=None)
        if root.stem is None:
            free.append(root)
    free.sort(key=lambda root: root.prompt)
    while free:
        head = free.pop(0)
        group, shared = [head], 0
        for other in free:  # in order of their tokens, so that they have less and less in common with the first
            common = min(_agree(head.prompt, other.prompt), head.length - 1, other.length - 1)
            if common < max(_WORTH, shared // 2):
                break
            group.append(other)
            shared = common
        del free[: len(group) - 1]
        if len(group) > 1:
            stem = tree.root(head.prompt[:shared])
            tree.stems.add(stem)
            for root in group:
                root.stem = stem
    wanted: dict[History, History] = {}
    for root in roots:
        if root.stem is not None:
            wanted.setdefault(root.stem, fresh[root][0].node)
    return list(wanted.items())


def _agree(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two prompts have in common at the beginning."""
    count = 0
    for a, b in zip(one, other):
        if a != b:
            break
        count += 1
    return count
