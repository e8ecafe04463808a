"""Steering against best-of-N, on the masked diffusions that ship: the reward reached at equal calls of the network.

    python benchmarks/masked_digits.py --short     # seconds
    python benchmarks/masked_digits.py             # some 3 CPU minutes
    python benchmarks/masked_digits.py --show --plot docs/claims/masked_steering.png

The claim (FK steering, Singhal et al. 2025, arXiv:2501.06848, for masked diffusion too): particles that are resampled
by the reward of their estimates on the way reach a larger reward than as many runs of which the best is taken.

Two models and five rewards r. Strings of six letters, from left to right, so that the law of the network is known by
counting 4,096 strings:

    many d       r = how many letters are d, λ = 2
    pairs of d   r = how many of the three pairs (first, last), (second, last but one), … are d twice, λ = 3: estimates
                 say little of it until the second half is there

Digits of 14×14 pixels of any class, seven pixels a step (`AtRandom(28)`):

    four         r = log-probability of a 4 by the shipped classifier, λ = 1
    light        r = mean light, from 0 to 1 (about .12 ± .04 without steering), λ = 60
    mirror       r = −mean difference between the image and its mirror image (about −.14 ± .04), λ = 60

Both sides get N = 4, 16, 64 runs of as many calls: `SMC(N)` with the difference potential of λ·r at each step, the
library's settings; and `BestOfN(N)` of runs without steering. The answer is the best of the N by r. Nothing
was tuned: λ was set so that e^λr moves the mean by two to three standard deviations.

For digits, best-of-N has 12 pools of 64 runs, of each its expected best of N (without bias); steering 12 seeds. For
strings best-of-N is exact, from the enumeration, and steering has 100 seeds.

The rule of the verdict: at each N, steering is *ahead* if the 95% interval of the difference in mean r of the answer is
above 0, *behind* if it is below, else level. On a task the claim holds where steering is ahead at all three N; holds
from (up to) N where it is ahead from (up to) there and at no other N; else fails. It holds for the shipped models if it
holds on all five tasks.

Beside the verdict: the exact mean of r under the target p·e^λr for strings, and the posterior's mean by steering and by
importance sampling of as many runs; and, for digits, how sure another classifier, which nothing was steered by, is that
the answer is a digit at all (the largest of its ten probabilities), and for "four" that it is a 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from common.best_of_n import expected
from common.records import Records, asked
from peers.race import table

import feynkac as fk
from feynkac.diffusion import AtRandom, InOrder, Steering

SIZES = (4, 16, 64)
STEPS, FOUR = 28, 4


@dataclass(frozen=True)
class Task:
    """A reward r of a batch, the λ that it is steered by, and a shipped model."""

    reward: Callable[[Any], Any]
    scale: float
    model: Callable[..., Any]
    known: bool = False
    """Whether the law of the model can be counted up."""


def strings(steering: Any = None) -> Any:
    return fk.diffusion.strings(InOrder("left"), steering=steering)


def digits(steering: Any = None) -> Any:
    return fk.diffusion.digits_masked(AtRandom(STEPS), steering=steering)


def many(texts: list[str]) -> list[float]:
    return [float(text.count("d")) for text in texts]


def pairs(texts: list[str]) -> list[float]:
    return [float(sum(text[i] == text[5 - i] == "d" for i in range(3))) for text in texts]


def four(images: Any) -> Any:
    return fk.diffusion.digit_classifier().log_prob(FOUR)(images)


def light(images: Any) -> Any:
    return (images.flatten(1).mean(1) + 1.0) / 2.0


def mirror(images: Any) -> Any:
    return -(images - images.flip(-1)).abs().flatten(1).mean(1) / 2.0


TASKS = {
    "many d": Task(many, 2.0, strings, known=True),
    "pairs of d": Task(pairs, 3.0, strings, known=True),
    "four": Task(four, 1.0, digits),
    "light": Task(light, 60.0, digits),
    "mirror": Task(mirror, 60.0, digits),
}


@lru_cache
def law() -> tuple[list[str], np.ndarray]:
    """Return all strings and their probabilities under the shipped network, forced letter by letter."""
    model, (tokens, _) = strings(), fk.diffusion.string_law()
    keys = fk.keys.fold(fk.keys.root(0), np.arange(len(tokens)))
    step = model.start(keys)
    log_prob = np.zeros(len(tokens))
    for known in range(1, tokens.shape[1] + 1):
        given = np.where(np.arange(tokens.shape[1]) < known, tokens, model.mask)
        step = model.advance(step.state, keys, list(given))
        log_prob += step.log_prob
    return model.values(step.state), np.exp(log_prob)


def best_of_law(task: Task, n: int) -> float:
    """Return the exact mean reward of the best of n strings."""
    texts, p = law()
    reward = np.array(task.reward(texts))
    levels = np.unique(reward)
    below = np.array([p[reward <= level].sum() for level in levels]) ** n
    return float(levels @ np.diff(below, prepend=0.0))


def rewards(task: Task, values: list[Any]) -> np.ndarray:
    """Return r (n,) of the values of a posterior."""
    batch = values if isinstance(values[0], str) else torch.tensor(np.stack(values))
    with torch.no_grad():
        return np.asarray(task.reward(batch), float)


def judged(value: Any) -> dict[str, float]:
    """Return how sure the other classifier is that an answer is a digit, and that it is a 4."""
    with torch.no_grad():
        p = fk.diffusion.digit_judge()(torch.tensor(value)[None]).softmax(-1)[0]
    return {"digit": float(p.max()), "four": float(p[FOUR])}


def steered(task: Task, n: int, seed: int) -> dict[str, Any]:
    """Run SMC once: the reward of the best answer, what it was judged, the posterior's mean, calls of the network."""
    model = task.model(Steering(task.reward, task.scale))
    posterior = fk.infer(model, fk.SMC(n), seed=seed)
    reward = rewards(task, posterior.values)
    found = {"best": float(reward.max()), "mean": float(posterior.probabilities @ reward), "nfe": posterior.cost.nfe}
    return found | ({} if task.known else judged(posterior.values[int(reward.argmax())]))


def pool(seed: int, runs: int) -> tuple[list[Any], float]:
    """Return the digits of a pool of runs without steering, and the calls of each."""
    posterior = fk.infer(digits(), fk.ImportanceSampling(runs), seed=10_000 + seed)
    return posterior.values, posterior.cost.nfe / runs


def unsteered(task: Task, n: int, values: list[Any], each: float) -> dict[str, Any]:
    """Return what the best of n of a pool is worth, and how the best of the first n is judged."""
    reward = rewards(task, values)
    first = values[int(reward[:n].argmax())]
    return {"best": expected(reward, n), "nfe": round(n * each), **judged(first)}


def importance(task: Task, n: int, seed: int) -> dict[str, Any]:
    """Return the posterior's mean by weighing n runs at their end."""
    model = task.model(Steering(task.reward, task.scale, every=10**6))
    posterior = fk.infer(model, fk.ImportanceSampling(n), seed=seed)
    return {"mean": float(posterior.probabilities @ rewards(task, posterior.values)), "nfe": posterior.cost.nfe}


def run(records: Records, sizes: tuple[int, ...], of_strings: int, of_digits: int) -> None:
    """Run what is not on record."""
    for seed in range(max(of_strings, of_digits)):
        drawn: tuple[list[Any], float] | None = None
        for name, task in TASKS.items():
            if seed >= (of_strings if task.known else of_digits):
                continue
            for n in sizes:
                row = {"task": name, "N": n, "seed": seed}
                if row | {"side": "steered"} not in records:
                    records.add(row | {"side": "steered"} | steered(task, n, seed))
                other = "importance" if task.known else "best of N"
                if row | {"side": other} in records:
                    continue
                if task.known:
                    records.add(row | {"side": other} | importance(task, n, seed))
                else:
                    drawn = drawn or pool(seed, max(sizes))
                    records.add(row | {"side": other} | unsteered(task, n, *drawn))
        if seed < of_digits:
            print(f"seed {seed}", flush=True)


def values_of(records: Records, name: str, n: int, side: str, what: str) -> np.ndarray:
    return np.array([r[what] for r in records.rows if (r["task"], r["N"], r["side"]) == (name, n, side)])


def compared(records: Records, name: str, n: int) -> tuple[float, float, float, float]:
    """Return the mean reward of the answer, steered and best of N, the difference's half-width, and calls' ratio."""
    mine, calls = (values_of(records, name, n, "steered", what) for what in ("best", "nfe"))
    if TASKS[name].known:
        other, error, theirs = best_of_law(TASKS[name], n), 0.0, values_of(records, name, n, "importance", "nfe")
    else:
        pools, theirs = (values_of(records, name, n, "best of N", what) for what in ("best", "nfe"))
        other, error = float(pools.mean()), pools.std(ddof=1) / math.sqrt(len(pools))
    width = 1.96 * math.hypot(mine.std(ddof=1) / math.sqrt(len(mine)), error)
    return float(mine.mean()), other, width, float(calls.mean() / theirs.mean())


def verdict(ahead: list[bool], sizes: list[int]) -> str:
    """Return the verdict on a task, from whether steering is ahead at each N."""
    if all(ahead):
        return "holds"
    first, last = ahead.index(True) if any(ahead) else 0, sum(ahead)
    if any(ahead) and all(ahead[first:]):
        return f"holds from N = {sizes[first]}"
    if any(ahead) and all(ahead[:last]):
        return f"holds up to N = {sizes[last - 1]}"
    return "fails"


def shown(records: Records) -> None:
    """Print the tables and the verdicts."""
    sizes, lines, said = sorted({row["N"] for row in records.rows}), [], {}
    for name, task in TASKS.items():
        ahead = []
        for n in sizes:
            mine, other, width, calls = compared(records, name, n)
            ahead.append(mine - other > width)
            word = "ahead" if ahead[-1] else "behind" if mine - other < -width else "level"
            row = [name, str(n), f"{mine:.3f}", f"{other:.3f}", f"{mine - other:+.3f} ± {width:.3f}", word]
            sides = ("steered", "importance") if task.known else ("steered", "best of N")
            what = "mean" if task.known else "four" if name == "four" else "digit"
            aside = [f"{values_of(records, name, n, side, what).mean():.3f}" for side in sides]
            lines.append([*row, f"{calls:.2f}", *aside])
        said[name] = verdict(ahead, sizes)
    table(["", "N", "steered", "best of N", "difference", "", "calls ×", "aside", "other"], lines)
    print("aside: for strings the posterior's mean (other: by weighed runs), for digits what another classifier says")
    texts, p = law()
    for name, task in TASKS.items():
        if task.known:
            reward = np.array(task.reward(texts))
            weight = p * np.exp(task.scale * reward)
            print(f"{name}: exact mean of the target {weight @ reward / weight.sum():.3f}")
    for name, word in said.items():
        print(f"{name}: {word}")
    print("the claim", "holds" if set(said.values()) == {"holds"} else "does not hold on all tasks")


def plot(records: Records, path: str) -> None:
    """Draw the reward of the answer against calls of the network, a panel for each task."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    sizes = sorted({row["N"] for row in records.rows})
    figure, axes = plt.subplots(1, len(TASKS), figsize=(12, 2.8), layout="constrained")
    for axis, (name, task) in zip(axes, TASKS.items()):
        steps = 6 if task.known else STEPS
        found = np.array([compared(records, name, n)[:3] for n in sizes])
        calls = steps * np.array(sizes)
        axis.errorbar(calls, found[:, 0], found[:, 2], color="tab:blue", marker="o", markersize=4, label="SMC, steered")
        axis.plot(calls, found[:, 1], color="tab:orange", marker="s", markersize=4, label="best of N")
        axis.set(xscale="log", title=name, xlabel="calls of the network")
        axis.set_xticks(calls, [f"{call:,}" for call in calls])
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("reward of the answer")
    axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=100)


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark."""
    arguments, records = asked(__doc__, "masked_digits", ("task", "N", "seed", "side"), argv, show=True)
    torch.set_num_threads(1)
    if not arguments.show:
        run(records, *(((2, 4), 4, 2) if arguments.short else (SIZES, 100, 12)))
    shown(records)
    if arguments.plot:
        plot(records, arguments.plot)


if __name__ == "__main__":
    main()
