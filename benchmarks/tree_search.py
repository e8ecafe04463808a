"""Tree search (DTS*) against best-of-N at equal reward: how many denoiser evaluations each needs.

    python benchmarks/tree_search.py              # a mixture with an exact denoiser, about a minute
    python benchmarks/tree_search.py --task digits --steps 20 --pool 1000 --rollouts 50 100 200 --seeds 3

Mixture: 40 normals in 6 dimensions, drawn from a seed, and a reward −λ‖x − a‖² for a point a off its rarest component.
Best-of-N is measured once, on a pool of runs, which gives its expected reward for every N without bias; tree search is
run with several seeds at each budget. "times" is what best-of-N needs for the same mean reward over what tree search
used; where the whole pool is not enough, it says more than. Digits is the same on the library's own model of digits:
a 3 by its classifier, with as much ink as possible (the log-probability of a class alone is soon at its most).
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

import feynkac as fk
from feynkac.diffusion import Diffusion, Mixture, Schedule, Steering


def mixture_model(steps: int) -> Diffusion:
    rng = np.random.default_rng(7)
    means = rng.normal(size=(40, 6)) * 3
    weights = rng.dirichlet(np.full(40, 0.6))
    data, schedule = Mixture(weights, means, np.full(40, 0.3)), Schedule.vp(steps)
    aim = torch.as_tensor(means[int(np.argsort(weights)[4])] + 0.3)
    reward = Steering(lambda x: -0.5 * (x - aim).square().sum(1), every=steps)
    return Diffusion(data.denoiser(schedule), schedule, (6,), steering=reward, dtype=torch.float64)


def digits_model(steps: int) -> Diffusion:
    log_prob = fk.diffusion.digit_classifier().log_prob(3)
    reward = Steering(lambda x: log_prob(x) + 40.0 * (x.clamp(-1, 1).mean((1, 2, 3)) + 1) / 2, every=steps)
    return fk.diffusion.digits(steps, steering=reward)


TASKS = {"mixture": mixture_model, "digits": digits_model}


def needed(pool: np.ndarray, reward: float) -> float:
    """Return the N whose best-of-N has an expected reward of at least this; infinity beyond the pool."""
    low, high = 1, len(pool)
    if expected(pool, high) < reward:
        return float("inf")
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if expected(pool, middle) < reward else (low, middle)
    return low


def expected(pool: np.ndarray, n: int) -> float:
    return fk.inference.base.selection.best_of(pool, pool, n)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=list(TASKS), default="mixture")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--pool", type=int, default=20_000, help="runs of best-of-N")
    parser.add_argument("--rollouts", type=int, nargs="+", default=[50, 100, 200, 400, 800])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--explore", type=float, default=1.0)
    parser.add_argument("--growth", type=float, default=0.5)
    parser.add_argument("--width", type=float, default=2.0)
    parser.add_argument("--backup", choices=["soft", "max"], default="max")
    args = parser.parse_args()
    model = TASKS[args.task](args.steps)
    began = time.perf_counter()
    pool = fk.infer(model, fk.ImportanceSampling(args.pool), seed=0).log_potential
    print(f"{args.task}, {args.steps} steps; pool of {args.pool:,} runs in {time.perf_counter() - began:.0f} s")
    print(f"{'rollouts':>8} {'NFE':>8} {'reward':>8} {'±':>6} {'best-of-N NFE':>14} {'times':>7} {'s':>6}")
    branch_at = tuple(range(args.steps // 5, args.steps, args.steps // 5))
    for rollouts in args.rollouts:
        engine = fk.TreeSearch(
            rollouts, args.explore, args.backup, args.width, args.growth, branch_at=branch_at, batch=8, record=False
        )
        began = time.perf_counter()
        found = [fk.infer(model, engine, seed=seed) for seed in range(args.seeds)]
        rewards = np.array([float(p.log_potential[p.probabilities > 0].max()) for p in found])
        nfe, same = np.mean([p.cost.nfe for p in found]), needed(pool, rewards.mean()) * args.steps
        enough = np.isfinite(same)
        shown = f"{same:14,.0f}" if enough else f"> {args.pool * args.steps:12,}"
        times = f"{same / nfe:7.1f}" if enough else f"> {args.pool * args.steps / nfe:5.1f}"
        error = rewards.std(ddof=1) / np.sqrt(len(rewards))
        seconds = (time.perf_counter() - began) / args.seeds
        print(f"{rollouts:8} {nfe:8,.0f} {rewards.mean():8.3f} {error:6.3f} {shown} {times} {seconds:6.1f}")


if __name__ == "__main__":
    main()
