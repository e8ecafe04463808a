"""Tree search (DTS*) against best-of-N at equal reward: how many denoiser evaluations each needs.

    python benchmarks/tree_search.py                     # mixtures with an exact denoiser: about a CPU minute
    python benchmarks/tree_search.py --task digits       # the shipped digits: about 5 CPU minutes
    python benchmarks/tree_search.py --tuning            # what the settings were chosen on, as are the defaults here

Mixture: 40 normals in 6 dimensions, drawn from a seed, and a reward −½‖x − a‖² for a point a off one of its rarest
components. Digits: a class by the classifier's log-probability, and 40 times the ink on it, or minus that (a class
alone is soon at its most). The settings (α = 0.5, exploration 0.3, "max", and branching after 40, 50, 60, 70 and 80% of
the steps) were chosen on the mixtures of seeds 7, 1 and 2, and on how much rewards vary after each step of a 3 with
much ink; what is shown are others. --growth 0.8 --branch-at 0.2 0.4 0.6 0.8 is nearer to the paper.

Best-of-N is measured once, on a pool of runs, which gives its expected reward for every N without bias; tree search is
run with several seeds at each budget. "times" is what best-of-N needs for the same mean reward over what tree search
used; where the whole pool is not enough, it says more than. "from" is the same for a reward one standard error lower.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from common.best_of_n import needed

import feynkac as fk
from feynkac.diffusion import Diffusion, Mixture, Schedule, Steering


@dataclass(frozen=True)
class Instance:
    """A model without a reward, and a reward."""

    name: str
    model: Callable[[Any], Diffusion]
    reward: Callable[[Any], Any]


def mixture(seed: int, steps: int) -> Instance:
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(40, 6)) * 3
    weights = rng.dirichlet(np.full(40, 0.6))
    data, schedule = Mixture(weights, means, np.full(40, 0.3)), Schedule.vp(steps)
    aim = torch.as_tensor(means[int(np.argsort(weights)[4])] + 0.3)

    def model(steering: Any) -> Diffusion:
        return Diffusion(data.denoiser(schedule), schedule, (6,), steering=steering, dtype=torch.float64)

    return Instance(f"mixture {seed}", model, lambda x: -0.5 * (x - aim).square().sum(1))


def digits(digit: int, ink: float, steps: int) -> Instance:
    log_prob = fk.diffusion.digit_classifier().log_prob(digit)

    def reward(x: Any) -> Any:
        return log_prob(x) + ink * (x.clamp(-1, 1).mean((1, 2, 3)) + 1) / 2

    kind = "much" if ink > 0 else "little"
    return Instance(f"{digit}, {kind} ink", lambda steering: fk.diffusion.digits(steps, steering=steering), reward)


def instances(task: str, tuning: bool, steps: int) -> list[Instance]:
    if task == "mixture":
        return [mixture(seed, steps) for seed in ((7, 1, 2) if tuning else (11, 12, 13, 14))]
    chosen = [(3, 40.0)] if tuning else [(7, 40.0), (0, -40.0), (5, 40.0)]
    return [digits(digit, ink, steps) for digit, ink in chosen]


def rewards(instance: Instance, runs: list[Any]) -> np.ndarray:
    with torch.no_grad():
        return torch.cat([instance.reward(part) for part in torch.tensor(np.stack(runs)).split(500)]).double().numpy()


def times(pool: np.ndarray, reward: float, steps: int, nfe: float) -> str:
    n = needed(pool, reward)
    return f"{n * steps / nfe:.1f}" if np.isfinite(n) else f"> {len(pool) * steps / nfe:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=["mixture", "digits"], default="mixture")
    parser.add_argument("--tuning", action="store_true", help="the instances that the settings were chosen on")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pool", type=int, help="runs of best-of-N; 20,000 for mixtures, 1,000 for digits")
    parser.add_argument("--rollouts", type=int, nargs="+", default=[50, 100, 200])
    parser.add_argument("--seeds", type=int, help="8 for mixtures, 3 for digits")
    parser.add_argument("--explore", type=float, default=0.3)
    parser.add_argument("--growth", type=float, default=0.5)
    parser.add_argument("--width", type=float, default=2.0)
    parser.add_argument("--backup", choices=["soft", "max"], default="max")
    parser.add_argument("--branch-at", type=float, nargs="+", default=[0.4, 0.5, 0.6, 0.7, 0.8], help="of the steps")
    args = parser.parse_args()
    torch.set_num_threads(1)
    size, seeds = (20_000, 8) if args.task == "mixture" else (1000, 3)
    size, seeds = args.pool or size, args.seeds or seeds
    branch_at = tuple(round(part * args.steps) for part in args.branch_at)
    print(f"{args.task}, {args.steps} steps, pool of {size:,} runs, {seeds} seeds, branching at {branch_at}")
    print(f"{'':16} {'rollouts':>8} {'NFE':>7} {'reward':>8} {'±':>6} {'times':>7} {'from':>7} {'s':>5}", flush=True)
    runs: list[Any] = []
    for instance in instances(args.task, args.tuning, args.steps):
        if not runs or args.task == "mixture":  # digits share one prior
            runs = list(fk.infer(instance.model(None), fk.ImportanceSampling(size), seed=0).values)
        pool = rewards(instance, runs)
        model = instance.model(Steering(instance.reward, every=args.steps))
        for rollouts in args.rollouts:
            engine = fk.TreeSearch(
                rollouts, args.explore, args.backup, args.width, args.growth, branch_at=branch_at, batch=8, record=False
            )
            began = time.perf_counter()
            found = [fk.infer(model, engine, seed=seed) for seed in range(seeds)]
            reward = np.array([float(p.log_potential[p.probabilities > 0].max()) for p in found])
            nfe, error = np.mean([p.cost.nfe for p in found]), reward.std(ddof=1) / np.sqrt(seeds)
            more, least = (times(pool, at, args.steps, nfe) for at in (reward.mean(), reward.mean() - error))
            seconds = (time.perf_counter() - began) / seeds
            print(
                f"{instance.name:16} {rollouts:8} {nfe:7,.0f} {reward.mean():8.2f} {error:6.2f} {more:>7} {least:>7} "
                f"{seconds:5.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
