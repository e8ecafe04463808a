"""Does Diffusion Tree Sampling pay? Distance to the posterior against evaluations of the network, up to 10⁶ of them.

    python benchmarks/trees.py            # goes on where it stopped; what has been run stands in docs/claims/trees.md
    python benchmarks/trees.py --short    # seconds: one task, one seed, 1,000 evaluations
    python benchmarks/trees.py --show     # table, verdicts and figure of what there is

The claim (Jain et al. 2025, arXiv:2506.20701): on MNIST, single digits and even or odd ones, tree sampling matches the
best of the other methods with a tenth of their evaluations, of which these have up to 10⁶.

The prior is the small digit diffusion that ships (`fk.diffusion.digits_small`) in 20 steps of DDIM with η = 1; the
reward r(x) is read from its latents x by their classifier. The posterior is p(x)·exp(r(x)):

    "4"         r = log p(4 | x)
    "even"      r = log p(0, 2, 4, 6 or 8 | x)
    "4 or 9"    r = 2·(log p(4 | x) + log p(9 | x)): digits that can be read as both, at most 1% of the prior

Engines, each with the settings of its paper but where it says otherwise:

    importance      runs of the prior, weighed at their end
    FK              `SMC` with the difference potential at every step (Singhal et al. 2025, arXiv:2501.06848)
    TDS             `SMC` that proposes by the reward's gradient (Wu et al. 2023, arXiv:2306.17775)
    DAS             TDS, tempered by λ_i = min(1.03^i − 1, 1), resampled by SSP (Kim et al. 2025, arXiv:2501.05803)
    tree            `TreeSampling`, C = 2, α = 0.8, branching before the first step and after 20, 40, 60 and 80% of them
    published tree  the same tree, grown by the paper's own descent, ∝ exp(v̂) of the children (the engine's visits are
                    blind to what was found, for v̂ to have no bias; see `TreeSampling`)
    steered tree    `TreeSampling` with the potentials of FK at every second step, by which it divides its visits, and
                    branching after 40, 50, 60, 70 and 80% of the steps, where samples part (see `tree_search.py`)

All trees grow in 40 waves or more (of 8 to 256 rollouts). NFE counts evaluations of the network for
one image each; where a gradient is taken through the network, the way back counts as one more. TDS and DAS are run
beyond 10⁵ only where one of them is within three times the distance of the best other at 10⁵.

The distance is the squared MMD with KID's cubic kernel, in the features of `digit_judge` (which no engine has seen; of
mean square 1 over the prior), to exact posterior samples: a pool of 80,000 runs of the prior, each weighed by the
probability exp(r − max r) with which rejection sampling would keep it. It is without bias in the number of samples on
both sides. Of a population, the heaviest with 1 − 10⁻⁴ of the weight are judged.

**Rule of the verdict**, for each task. The top is the largest budget that importance, FK and the trees ran with all
seeds; the best other is the one of importance, FK, TDS and DAS with the least mean distance over the seeds there. A
tree's saving is the top over the cost at which its mean distance first comes down to that of the best other at the top
(between budgets by a straight line in log-log; beyond the top by 1/NFE, the law of both). Its interval: 90%, of 2,000
bootstraps of the seeds, the same seeds for both. The claim *holds* for a tree where the whole interval is at 10 or more
on all three tasks, *fails* where on some task the whole of it is below 10, and is *open* otherwise.

No setting was tuned. The saving over the best of FK, TDS and DAS, which are the others that the paper has, is shown
beside; that was added when the first results of one seed had been seen, and no verdict stands on it.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from common.kernel_distance import Sample, distance
from common.records import Records
from peers.race import table

import feynkac as fk
from feynkac.diffusion import Steering
from feynkac.inference.search.growth import Fork, Growth
from feynkac.inference.search.tree_sampling import grow

ROOT = Path(__file__).resolve().parent.parent
STEPS, WAVES, BLOCK, TEMPER, REFERENCE, KEPT = 20, 40, 1000, 0.03, 80_000, 1.0 - 1e-4
TASKS = {"4": ([[4]], 1.0), "even": ([[0, 2, 4, 6, 8]], 1.0), "4 or 9": ([[4], [9]], 2.0)}
BUDGETS = (1000, 10_000, 100_000, 1_000_000)
OTHERS, TREES = ("importance", "FK", "TDS", "DAS"), ("tree", "published tree", "steered tree")
PARTS, LATE = (0.2, 0.4, 0.6, 0.8), (0.4, 0.5, 0.6, 0.7, 0.8)


@dataclass(frozen=True)
class Published(fk.TreeSampling):
    """`TreeSampling` that descends as published: to a child with probability ∝ exp(edge + v̂)."""

    guarantee: ClassVar[Any] = "heuristic"

    def run(self, model: Any, key: Any) -> Any:
        coins = np.random.default_rng(int(key[0]))
        tree = Growth(key, self.width, self.growth, frozenset(self.branch_at or ()), record=self.record)

        yield from grow(model, tree, self, lambda fork, visits: by_value(fork, coins.random()), self._weigh)


def by_value(fork: Fork, coin: float) -> int:
    """Choose a child with probability ∝ exp(edge + v̂), by a coin in [0, 1)."""
    reach = np.frombuffer(fork.reach)
    mass = np.exp(reach - reach.max()).cumsum()
    return int(np.searchsorted(mass, mass[-1] * coin, side="right"))


class Bench:
    """What all runs share: the networks, pools of runs of the prior, and the truth."""

    def __init__(self, folder: Path, reference: int = REFERENCE) -> None:
        self.folder, self.reference = folder, reference
        self.network, self.judge = fk.diffusion.latent_digits(), fk.diffusion.digit_judge()
        folder.mkdir(parents=True, exist_ok=True)

    def reward(self, task: str) -> Any:
        groups = TASKS[task][0]
        return lambda x: sum(self.network.classes.log_prob(group)(x) for group in groups)

    def model(self, task: str, **settings: Any) -> Any:
        scale = TASKS[task][1]
        steering = Steering(self.reward(task), scale, **settings)
        return fk.diffusion.digits_small(STEPS, steering=steering, draw=False)

    def features(self, latents: np.ndarray) -> np.ndarray:
        """Return what the judge sees (n, 64) in the drawings of latents."""
        with torch.no_grad():
            parts = torch.as_tensor(latents).split(256)
            return np.concatenate([self.judge.features(self.network.decode(part)).numpy() for part in parts])

    @cached_property
    def scale(self) -> float:
        """The root mean square of the features of the prior."""
        return float(np.sqrt(np.square(self.features(self.pool(999, BLOCK))).mean()))

    def pool(self, seed: int, runs: int) -> np.ndarray:
        """Return runs of the prior, latents (runs, 32)."""
        return np.concatenate([self._block(seed, i) for i in range(-(-runs // BLOCK))])[:runs]

    def _block(self, seed: int, i: int) -> np.ndarray:
        path = self.folder / f"trees_prior_{seed}_{i}.npy"
        if not path.exists():
            prior = fk.diffusion.digits_small(STEPS, draw=False)
            made = np.stack(fk.infer(prior, fk.ImportanceSampling(BLOCK), seed=1000 * seed + i).values)
            part = path.with_suffix(f".{os.getpid()}.npy")  # several tasks may run side by side
            np.save(part, made)
            part.rename(path)
        return np.load(path)

    def weights(self, task: str, latents: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            reward = TASKS[task][1] * self.reward(task)(torch.as_tensor(latents)).double().numpy()
        return np.exp(reward - reward.max())

    def sample(self, latents: np.ndarray, weights: np.ndarray) -> Sample:
        """Return the features of the heaviest runs."""
        weights = weights / weights.sum()
        order = np.argsort(-weights)
        heavy = order[: int(np.searchsorted(weights[order].cumsum(), KEPT)) + 1]
        return Sample(self.features(latents[heavy]) / self.scale, weights[heavy] / weights[heavy].sum())

    def truth(self, task: str) -> Sample:
        pool = self.pool(999, self.reference)
        weights = self.weights(task, pool)
        sample = self.sample(pool, weights)
        print(f"{task}: rejection keeps {weights.mean():.3%} of the prior, worth {1 / (sample.weights**2).sum():,.0f}")
        return sample


@dataclass(frozen=True)
class Found:
    """A population that an engine found with ``nfe`` evaluations, meant for ``budget``."""

    budget: int
    nfe: int
    latents: np.ndarray
    weights: np.ndarray


def from_pool(bench: Bench, task: str, name: str, seed: int, budgets: list[int]) -> Iterator[Found]:
    for budget in budgets:
        latents = bench.pool(seed, budget // STEPS)
        yield Found(budget, len(latents) * STEPS, latents, bench.weights(task, latents))


def from_particles(bench: Bench, task: str, name: str, seed: int, budgets: list[int]) -> Iterator[Found]:
    temper = (lambda share: min((1.0 + TEMPER) ** (share * STEPS) - 1.0, 1.0)) if name == "DAS" else None
    each = 1 if name == "FK" else 2
    model = bench.model(task, gradient=name != "FK", temper=temper)
    for budget in budgets:
        engine = fk.SMC(budget // STEPS // each, resampling="ssp" if name == "DAS" else "systematic")
        yield found(budget, each, fk.infer(model, engine, seed=seed))


def from_tree(bench: Bench, task: str, name: str, seed: int, budgets: list[int]) -> Iterator[Found]:
    steered = name == "steered tree"
    model = bench.model(task, every=2 if steered else STEPS)
    make = Published if name == "published tree" else fk.TreeSampling
    branch_at = [round(part * STEPS) for part in (LATE if steered else PARTS)]
    for budget in budgets:
        wave = int(np.clip(budget // STEPS // WAVES, 8, 256))
        run = fk.steps(model, make(budget, branch_at=branch_at, batch=wave, record=False), seed=seed)
        # The last wave is the one that ends nearest to the budget.
        next(step for step in run if run.ledger.total().nfe + wave * STEPS // 2 >= budget)
        yield found(budget, 1, run.posterior)


def found(budget: int, each: int, posterior: Any) -> Found:
    return Found(budget, each * posterior.cost.nfe, np.stack(posterior.values), posterior.probabilities)


MAKE = {
    "importance": from_pool,
    **dict.fromkeys(OTHERS[1:], from_particles),
    **dict.fromkeys(TREES, from_tree),
}


def run(bench: Bench, records: Records, seeds: list[int], tasks: list[str], engines: list[str], top: int) -> None:
    """Make what is not on record, seed by seed."""
    truths = {task: bench.truth(task) for task in tasks}
    for seed in seeds:
        for task in tasks:
            for engine in engines:
                budgets = [budget for budget in BUDGETS if budget <= top and worth(records.rows, task, engine, budget)]
                key = {"task": task, "engine": engine, "seed": seed}
                wanted = [budget for budget in budgets if {**key, "budget": budget} not in records]
                began = time.process_time()
                for one in MAKE[engine](bench, task, engine, seed, wanted) if wanted else ():
                    sample = bench.sample(one.latents, one.weights)
                    row = {"nfe": one.nfe, "distance": distance(sample, truths[task])}
                    row |= {"ess": 1.0 / float((sample.weights**2).sum()), "cpu_seconds": time.process_time() - began}
                    records.add({**key, "budget": one.budget, **row})
                    told = ", ".join(f"{name} {value:,.5g}" for name, value in row.items())
                    print(f"{task}, {engine}, seed {seed}: {told}", flush=True)


def worth(rows: list[dict[str, Any]], task: str, engine: str, budget: int) -> bool:
    """Whether the head's rule lets an engine have a budget."""
    if engine not in ("TDS", "DAS") or budget <= 100_000:
        return True
    at = {name: mean(rows, task, name, 100_000) for name in OTHERS}
    return min(at["TDS"], at["DAS"]) <= 3.0 * min(at["importance"], at["FK"])


def pick(rows: list[dict[str, Any]], task: str, engine: str, budget: int) -> dict[int, dict[str, Any]]:
    return {r["seed"]: r for r in rows if (r["task"], r["engine"], r["budget"]) == (task, engine, budget)}


def mean(rows: list[dict[str, Any]], task: str, engine: str, budget: int) -> float:
    found = [row["distance"] for row in pick(rows, task, engine, budget).values()]
    return float(np.mean(found)) if found else np.inf


@dataclass(frozen=True)
class Saving:
    """How many times fewer evaluations a tree needs than the best other at the top, and its 90% interval."""

    best: str
    top: int
    times: float
    low: float
    high: float


def saving(rows: list[dict[str, Any]], task: str, tree: str, others: tuple[str, ...] = OTHERS) -> Saving | None:
    """Return what the head's rule gives, or None where nothing can be compared."""
    engines = [name for name in (*OTHERS, tree) if any(r["engine"] == name and r["task"] == task for r in rows)]
    needed = [name for name in engines if name not in ("TDS", "DAS")]
    seeds = {row["seed"] for row in rows if row["task"] == task}
    full = [b for b in BUDGETS if all(set(pick(rows, task, name, b)) == seeds for name in needed)]
    if tree not in engines or len(needed) < 2 or not full:
        return None
    top = full[-1]
    at_top = {name: mean(rows, task, name, top) for name in engines if name in others}
    best, order = min(at_top, key=lambda name: at_top[name]), sorted(seeds)
    curves = {
        name: np.array([[pick(rows, task, name, b)[seed]["distance"] for seed in order] for b in full])
        for name in (best, tree)
    }
    cost = np.array([np.mean([r["nfe"] for r in pick(rows, task, tree, b).values()]) for b in full])
    draws = np.random.default_rng(0).integers(len(order), size=(2000, len(order)))
    times = [
        float(top / crossing(cost, curves[tree][:, i].mean(1), curves[best][-1, i].mean()))
        for i in [np.arange(len(order)), *draws]
    ]
    return Saving(best, top, times[0], *np.quantile(times[1:], [0.05, 0.95]).tolist())


def crossing(cost: np.ndarray, far: np.ndarray, goal: float) -> float:
    """Return the cost at which a falling curve first comes down to the goal."""
    far, goal = np.maximum(far, 1e-9), max(goal, 1e-9)
    if not (far <= goal).any():
        return float(cost[-1] * far[-1] / goal)
    i = int(np.argmax(far <= goal))
    if i == 0:
        return float(cost[0])
    share = np.log(far[i - 1] / goal) / np.log(far[i - 1] / far[i])
    return float(cost[i - 1] * (cost[i] / cost[i - 1]) ** share)


def verdict(savings: list[Saving | None]) -> str:
    if any(one is None for one in savings):
        return "open"
    known = [one for one in savings if one is not None]
    if all(one.low >= 10.0 for one in known):
        return "holds"
    return "fails" if any(one.high < 10.0 for one in known) else "open"


def show(records: Records, figure: Path) -> None:
    rows, lines = records.rows, []
    for task in TASKS:
        for engine in (*OTHERS, *TREES):
            cells = []
            for budget in BUDGETS:
                some = [row["distance"] for row in pick(rows, task, engine, budget).values()]
                spread = f" ± {np.std(some, ddof=1) / np.sqrt(len(some)):.2g}" if len(some) > 1 else " (1 seed)"
                cells.append(f"{np.mean(some):.2g}{spread}" if some else "")
            lines.append([task, engine, *cells])
    table(["task", "engine", *(f"{budget:,}" for budget in BUDGETS)], lines)
    for tree in TREES:
        savings = [saving(rows, task, tree) for task in TASKS]
        published = [saving(rows, task, tree, OTHERS[1:]) for task in TASKS]
        for task, one in [*zip(TASKS, savings), *zip(TASKS, published)]:
            if one:
                times = f"{one.times:.2g} [{one.low:.2g}, {one.high:.2g}]"
                print(f"{task}: saving of {tree} over {one.best} with {one.top:,}: {times}")
        print(f"{tree}: {verdict(savings)}")
    draw(rows, figure)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    tasks = [task for task in TASKS if any(row["task"] == task for row in rows)]
    size = (3.6 * len(tasks), 3.8)
    figure, axes = plt.subplots(1, len(tasks), figsize=size, sharex=True, squeeze=False, layout="constrained")
    colours = {"importance": "black", "published tree": "#c1121f", "steered tree": "#d97706", "tree": "#7a3b9c"}
    for axis, task in zip(axes[0], tasks):
        ends = []
        for engine in (*OTHERS, *TREES):
            points = [(budget, mean(rows, task, engine, budget)) for budget in BUDGETS]
            points = [(x, y) for x, y in points if np.isfinite(y) and y > 0]
            if points:
                colour = colours.get(engine, "#52606d")
                axis.plot(*zip(*points), "o-", color=colour, ms=3, lw=2.0 if engine in TREES else 1.0)
                ends.append((points[-1], engine, colour))
        axis.set(xscale="log", yscale="log", title=task, xlabel="evaluations of the network")
        axis.set_xlim(700, BUDGETS[-1] * 40)
        axis.set_xticks(BUDGETS, ["10³", "10⁴", "10⁵", "10⁶"])
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
        label(axis, ends)
    axes[0][0].set_ylabel("squared MMD to the posterior")
    figure.savefig(path, dpi=110)
    plt.close(figure)
    print(f"figure: {path}")


def label(axis: Any, ends: list[tuple[tuple[float, float], str, str]]) -> None:
    """Write each curve's name to the right, at the height of its end, or as near as other names let it."""
    ends = sorted(ends, key=lambda end: end[0][1])
    low, high = np.log10(axis.get_ylim())
    heights, gap = np.log10([y for (_, y), _, _ in ends]), 0.065 * (high - low)
    for _ in range(200):  # those that are too near push each other away
        for i in range(len(heights) - 1):
            push = max(0.0, gap - (heights[i + 1] - heights[i])) / 2.0
            heights[i], heights[i + 1] = heights[i] - push, heights[i + 1] + push
    axis.set_ylim(10 ** min(low, heights[0] - gap), 10 ** max(high, heights[-1] + gap))
    for (point, engine, colour), height in zip(ends, heights):
        line = {"arrowstyle": "-", "color": colour, "lw": 0.4, "alpha": 0.6}
        there = (BUDGETS[-1] * 1.8, 10**height)
        mark = axis.annotate(engine, point, there, color=colour, va="center", fontsize=8, arrowprops=line)
        mark.set_in_layout(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--engines", nargs="+", choices=(*OTHERS, *TREES), default=[*OTHERS, *TREES])
    parser.add_argument("--top", type=int, default=BUDGETS[-1], help="the largest budget")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "benchmarks")
    parser.add_argument("--short", action="store_true", help="one task, one seed, 1,000 evaluations, a small reference")
    parser.add_argument("--show", action="store_true", help="only show what there is")
    args = parser.parse_args()
    torch.set_num_threads(1)
    name = "trees_short" if args.short else "trees"
    records = Records(args.folder / f"{name}.jsonl", ("task", "engine", "seed", "budget"))
    if args.short:
        run(Bench(args.folder, BLOCK), records, [0], ["even"], [*OTHERS, *TREES], BUDGETS[0])
    elif not args.show:
        run(Bench(args.folder), records, args.seeds, args.tasks, args.engines, args.top)
    show(records, args.folder / f"{name}.png")


if __name__ == "__main__":
    main()
