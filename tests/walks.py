"""What the tests of Markov chains share: the token program T2, and drivers of parts of engines."""

from __future__ import annotations

import numpy as np

import feynkac as fk
from feynkac.inference.base.engine import Start, pick
from feynkac.inference.base.paths import extend
from laws import T2_NEXT, z_score


@fk.program
async def tokens(beta=0.5, heat=1.0, weigh=True):
    """T2 with one step for each token, the end token included; ``heat`` is the temperature of a proposal."""
    text = ""
    while not text.endswith("$"):
        p = np.array(T2_NEXT.get(text, (0.0, 0.0, 1.0)))
        q = p ** (1 / heat) / (p ** (1 / heat)).sum()
        proposal = None if heat == 1.0 else fk.dist.Categorical(q, values=list("ab$"))
        text += await fk.sample("token", fk.dist.Categorical(p, values=list("ab$")), proposal=proposal)
        await fk.factor("reward", text.count("a") / beta if weigh and text.endswith("$") else 0.0)
    return text


def choices_of(text, name="token"):
    return [{f"{name}[{t}]" if t else name: letter} for t, letter in enumerate(text)]


def drive(model, parts):
    """Run parts of engines (generators that ask for steps) side by side, and return what they return."""
    parts = list(parts)
    results = [None] * len(parts)
    asked = {}

    def go(i, answer):
        try:
            request = parts[i].send(answer)
            while not hasattr(request, "keys"):  # a report
                request = parts[i].send(None)
            asked[i] = request
        except StopIteration as stop:
            results[i] = stop.value

    for i in range(len(parts)):
        go(i, None)
    while asked:
        batch = dict(asked)
        asked.clear()
        for starting in (True, False):
            mine = [(i, r) for i, r in batch.items() if isinstance(r, Start) is starting]
            if not mine:
                continue
            keys = np.concatenate([r.keys for _, r in mine])
            given = [g for _, r in mine for g in (r.given or [None] * len(r.keys))]
            if starting:
                advance = model.start(keys, given)
            else:
                advance = model.advance(model.concat([r.state for _, r in mine]), keys, given)
            end = 0
            for i, r in mine:
                rows = np.arange(end, end + len(r.keys))
                end += len(r.keys)
                go(i, pick(model, advance, rows))
    return results


def forced(model, runs, key=None):
    """Return the paths of runs that are given by their choices at each step."""

    def walk(steps):
        paths = [None]
        for choices in steps:
            paths = yield from extend(model, paths, fk.keys.fold(fk.keys.root(1), 0), [choices])
        return paths[0]

    return drive(model, [walk(steps) for steps in runs])


def value_of(model, path):
    return model.values(model.select(path.state, np.array([path.row])))[0]


def keys_of(n, *salt):
    return fk.keys.fold(fk.keys.root(2024), *salt, np.arange(n))


def stationary(kernel):
    """Return the law that a kernel (k, k) leaves as it is."""
    k = len(kernel)
    equations = np.vstack([kernel.T - np.eye(k), np.ones(k)])
    return np.linalg.lstsq(equations, np.r_[np.zeros(k), 1.0], rcond=None)[0]


def variation(p, q):
    return 0.5 * float(np.abs(np.asarray(p) - np.asarray(q)).sum())


def largest_z(counts, kernel):
    """The largest z-score of transition counts (k, k) against a kernel, by row; infinite for an impossible one."""
    worst = 0.0
    for row, law in zip(counts, kernel):
        n = row.sum()
        for count, p in zip(row, law):
            spread = np.sqrt(n * p * (1 - p))
            gap = abs(count - n * p)
            worst = max(worst, gap / spread if spread > 1e-9 else (np.inf if gap > 1e-6 else 0.0))
    return worst


def drift(before, after, outcomes):
    """The largest z-score of the change of an outcome's frequency, paired run by run."""
    return max(abs(z_score([(b == x) - 1.0 * (a == x) for a, b in zip(before, after)], 0.0)) for x in outcomes)
