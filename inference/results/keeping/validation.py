"""Whether a posterior that was read from a file is one that a run can have made."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np

from ....ppl.cost import UNITS, Cost
from ....ppl.sites import Site
from ...base.chain import Chain
from ...base.engine import Guarantee, Ranking
from ...base.search_tree import ARRAYS, SearchTree
from ...base.step import Step

_KINDS = ("sample", "call", "observe", "factor", "twist", "deterministic", "do")
_UNSEEN = 64
"""Most visits of a path, besides those of its sites, that leave no site."""
_FLOATS = ("value", "log_weight", "log_mass", "log_potential")


def check_posterior(fields: dict[str, Any]) -> None:
    """Raise ValueError for fields of a posterior that do not go together. It gives chains of a tree their steps."""
    _one_of("guarantee", fields["guarantee"], get_args(Guarantee))
    _one_of("ranking", fields["ranking"], get_args(Ranking))
    for name in ("engine", "model"):
        _holds(type(fields[name]) is str, f"{name} is no text")
    _holds(type(fields["seed"]) is int, "seed is no integer")
    _holds(fields["stopped"] is None or type(fields["stopped"]) is str, "stopped is no text")
    _check_cost(fields["cost"])
    _holds(len(fields["chains"]) > 0, "it has no chain")
    for c, chain in enumerate(fields["chains"]):
        _check_chain(chain, f"chain {c}")
    total = sum(len(chain.log_weights) for chain in fields["chains"])
    _holds(len(fields["values"]) == total, f"it has {len(fields['values'])} values for {total} particles")


def _check_chain(chain: Chain, where: str) -> None:
    n = len(chain.log_weights)
    _log_weights(chain.log_weights, n, f"the log-weights of {where}")
    _array(chain.complete, "b", n, f"complete of {where}")
    evidence = chain.log_evidence
    _holds(evidence is None or (_number(evidence) and evidence != math.inf), f"the evidence of {where} is none")
    _holds(type(chain.serial) is bool, f"serial of {where} is not True or False")
    _holds(chain.answers is None or (type(chain.answers) is tuple and len(chain.answers) == n), f"votes of {where}")
    numbers = type(chain.info) is dict and all(
        _number(x) or (name == "compiled" and type(x) is str) for name, x in chain.info.items()
    )
    _holds(numbers, f"info of {where} is no numbers")
    _holds(all(type(name) is str and name.isidentifier() for name in chain.info), f"info of {where} has no names")
    for name, array in chain.stats.items():
        _holds(name.isidentifier(), f"stats of {where} have no names")
        _array(array, "fiub", n, f"{name} of {where}")
    if chain.tree is not None:
        _check_tree(chain.tree, n, where)
        object.__setattr__(chain, "steps", chain.tree.steps)
    before = None
    for t, step in enumerate(chain.stages):
        _check_step(step, before, f"stage {t} of {where}")
        before = len(step.done)
    _holds(not chain.stages or before == n, f"the stages of {where} end with {before} particles")
    before = None
    for t, step in enumerate(chain.steps):
        _check_step(step, before, f"step {t} of {where}")
        before = len(step.done)
    _holds(before == n if chain.steps else n == 0 or chain.tree is not None, f"{where} ends with {before} particles")
    _check_paths(chain, where)


def _check_cost(cost: Cost) -> None:
    _holds(all(type(getattr(cost, unit)) is int and getattr(cost, unit) >= 0 for unit in UNITS), "a cost is no count")
    _holds(_number(cost.seconds) and 0.0 <= cost.seconds < math.inf, "its seconds are no time")


def _check_step(step: Step, before: int | None, where: str) -> None:
    n = len(step.done)
    _array(step.ancestors, "iu", n, f"the ancestors of {where}")
    most = n if before is None else before
    _holds(not n or 0 <= step.ancestors.min() <= step.ancestors.max() < most, f"an ancestor of {where} is not there")
    _log_weights(step.log_weights, n, f"the log-weights of {where}")
    _log_weights(step.log_potential, n, f"the potentials of {where}")
    _array(step.log_twist, "f", n, f"the twists of {where}")
    _holds(bool(np.isfinite(step.log_twist).all()), f"a twist of {where} is not finite")
    _array(step.done, "b", n, f"done of {where}")
    _holds(len(step.choices) == n, f"{where} has {len(step.choices)} choices for {n} particles")
    _holds(type(step.depth) is int and type(step.resampled) is bool, f"depth or resampled of {where}")
    _holds(_number(step.ess) and 0.0 <= step.ess <= n * (1 + 1e-6), f"the ESS of {where} is {step.ess!r} of {n}")
    _holds(_number(step.entropy) and 0.0 <= step.entropy < math.inf, f"the entropy of {where} is {step.entropy!r}")
    _holds(_number(step.log_evidence) and step.log_evidence != math.inf, f"the evidence of {where} is none")
    _holds(_number(step.temperature) and step.temperature > 0.0, f"the temperature of {where} is {step.temperature!r}")
    if step.cost is not None:
        _check_cost(step.cost)
    rate = step.acceptance
    _holds(_number(rate) and (math.isnan(rate) or 0.0 <= rate <= 1.0), f"the acceptance of {where} is {rate!r}")
    known = step.scheme is None or (type(step.scheme) is str and re.fullmatch(r"[a-z_ ]{1,40}", step.scheme))
    _holds(bool(known), f"the scheme of {where} is none")


def _check_tree(tree: SearchTree, n: int, where: str) -> None:
    m = len(tree.parent)
    for name in ARRAYS:
        kind = "b" if name == "done" else "f" if name in _FLOATS else "iu"
        _array(getattr(tree, name), kind, n if name == "particles" else m, f"{name} of the tree of {where}")
    _holds(m > 0 and tree.parent[0] == -1 and tree.depth[0] == -1, f"the tree of {where} has no root")
    rows = np.arange(1, m)
    _holds(bool(((tree.parent[1:] >= 0) & (tree.parent[1:] < rows)).all()), f"a parent in {where} is not there")
    _holds(bool((tree.depth[1:] == tree.depth[tree.parent[1:]] + 1).all()), f"a depth in {where} is wrong")
    _holds(bool((tree.visits >= 0).all()), f"a node of {where} has fewer visits than none")
    _holds(not n or 0 <= tree.particles.min() <= tree.particles.max() < m, f"a particle of {where} is not there")
    for name in _FLOATS:
        values = getattr(tree, name)
        _holds(not (np.isnan(values) | np.isposinf(values)).any(), f"{name} of the tree of {where} is no number")
    _holds(len(tree.choices) == m, f"the tree of {where} has {len(tree.choices)} choices for {m} nodes")


def _check_paths(chain: Chain, where: str) -> None:
    """Check that the sites of each particle, from its start to its end, are those of one run: each name counts up.

    Some visits leave no site of that name: what an intervention fixes is not drawn, and a gather has a name, too.
    """
    seen: list[dict[str | None, int]] = []  # the visits of each name, and under None how many sites there are
    for t, step in enumerate(chain.steps):
        if hasattr(step.choices, "dtype"):  # an array, of a model that is no program
            return
        parents = step.ancestors.tolist()
        shared = set() if t == 0 else {a for a, k in zip(*np.unique(step.ancestors, return_counts=True)) if k > 1}
        now: list[dict[str | None, int]] = []
        for i, chosen in enumerate(step.choices):
            counts = {None: 0} if t == 0 else seen[parents[i]]
            if t and parents[i] in shared:
                counts = dict(counts)
            for site in _sites(chosen, f"step {t} of {where}"):
                if not counts.get(site.name, 0) <= site.visit <= counts[None] + _UNSEEN:
                    raise ValueError(f"{site.address!r:.80} in step {t} of {where} belongs to another")
                counts[site.name] = site.visit + 1
                counts[None] += 1
            now.append(counts)
        seen = now


def _sites(chosen: Any, where: str) -> Sequence[Site]:
    if not isinstance(chosen, tuple) or not any(isinstance(site, Site) for site in chosen):
        return ()
    types = {(*map(type, (s.name, s.visit, s.log_prob, s.log_proposal, s.hidden)), s.kind) for s in chosen}
    for name, visit, log_prob, log_proposal, hidden, kind in types:
        numbers = {log_prob, log_proposal} <= {int, float}
        _holds(numbers and (name, visit, hidden) == (str, int, bool) and kind in _KINDS, f"a site of {where} is none")
    return chosen


def _array(array: Any, kinds: str, n: int, what: str) -> None:
    good = isinstance(array, np.ndarray) and array.dtype.kind in kinds and array.shape == (n,)
    _holds(good, f"{what} are not {n} of their kind")


def _log_weights(array: Any, n: int, what: str) -> None:
    _array(array, "f", n, what)
    _holds(not (np.isnan(array) | np.isposinf(array)).any(), f"{what} are NaN or +inf")


def _number(value: Any) -> bool:
    return type(value) in (int, float)


def _one_of(name: str, value: Any, known: Sequence[str]) -> None:
    _holds(type(value) is str and value in known, f"{name} is {value!r:.40}, and not one of {', '.join(known)}")


def _holds(good: bool, problem: str) -> None:
    if not good:
        raise ValueError(problem)
