"""A mixture of 40 normals in the plane, annealed, with and without Feynman–Kac correction, beside the paper's figures.

    python benchmarks/correctors.py --short      # a minute: 2,000 particles, 500 steps, 1 seed
    python benchmarks/correctors.py              # half an hour: 10,000 particles, 1,000 steps, 5 seeds

The mixture is q: 40 components with equal weights, means uniform in [−40, 40]² and standard deviation 1.31, after
Midgley et al. (2023), arXiv:2208.01893; its scores are exact. The target is q^β, normalised, which is a mixture in
closed form again (β = 3). Each row samples it by `anneal` at a ζ: "weighted" by SMC that resamples systematically at
every step, "unweighted" by the same steps without weights, that is, by mixed scores alone. ζ = 1 is the paper's target
score, ζ = 1/√β its tempered noise; larger ones are not in it. The ve schedule is geometric from σ = 100 down to 0.01.

MMD (its square, as an unbiased estimate, of the kernels exp(−‖x − y‖²/2h²) averaged over h = 1, 2, 5, 10, 20, 40), TV
(of histograms of all particles, 100 × 100 cells over [−50, 50]²), W1 and W2 (exact, by assignment) are against samples
of the target; MMD, W1 and W2 on 2,000 points of each. The first row is an independent sample of the target: what these
figures are at best. The paper's are those of Skreta et al. (2025), arXiv:2503.02819, Table A1 (10,000 samples, 1,000
steps, 5 runs). Its draw of the mixture, its schedule and its kernel differ from ours, so that ratios compare, and
figures only roughly.
"""

from __future__ import annotations

import argparse
import math
import time

import numpy as np
import torch
from peers.race import table
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

import feynkac as fk
from feynkac.diffusion import Diffusion, Mixture, Schedule, anneal
from feynkac.diffusion.correctors import zeta_for

PAPER = {  # MMD, TV, W1, W2
    ("target score", False): (0.020, 0.487, 11.30, 15.67),
    ("target score", True): (0.007, 0.372, 6.26, 11.27),
    ("tempered noise", False): (0.058, 0.638, 16.05, 19.63),
    ("tempered noise", True): (0.027, 0.512, 9.97, 14.05),
}
NAMES = ("MMD", "TV", "W1", "W2")


def forty(seed: int) -> Mixture:
    means = np.random.default_rng(seed).uniform(-40.0, 40.0, (40, 2))
    return Mixture(np.ones(40), means, np.full(40, 1.3133**2))


def geometric(steps: int) -> Schedule:
    sigma = np.append(np.geomspace(100.0, 0.01, steps), 0.0)
    return Schedule(np.ones(steps + 1), sigma, sigma)


def kernel(distance: np.ndarray) -> np.ndarray:
    return np.mean([np.exp(-0.5 * (distance / h) ** 2) for h in (1, 2, 5, 10, 20, 40)], 0)


def distances(x: np.ndarray, y: np.ndarray, points: int) -> list[float]:
    """MMD², TV, W1 and W2 between two samples."""
    edges = np.linspace(-50.0, 50.0, 101)
    counts = [np.histogram2d(*one.T, bins=(edges, edges))[0] / len(one) for one in (x, y)]
    x, y = x[:points], y[:points]
    within = [kernel(cdist(one, one)) for one in (x, y)]
    off = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in within]
    apart = cdist(x, y)
    paired = apart[linear_sum_assignment(apart)]
    w1, w2 = paired.mean(), np.sqrt((apart**2)[linear_sum_assignment(apart**2)].mean())
    return [off[0] + off[1] - 2.0 * kernel(apart).mean(), 0.5 * np.abs(counts[0] - counts[1]).sum(), w1, w2]


def draw(mixture: Mixture, args: argparse.Namespace, zeta: float, weighted: bool, seed: int) -> np.ndarray:
    schedule = geometric(args.steps)
    model = Diffusion(mixture.denoiser(schedule), schedule, (2,), dtype=torch.float64)
    engine = fk.SMC(args.particles, ess_threshold=1.0) if weighted else fk.ImportanceSampling(args.particles)
    posterior = fk.infer(anneal(model, args.beta, zeta=zeta), engine, seed=seed)
    values = np.stack(posterior.values)
    rng = np.random.default_rng(seed)
    if weighted:
        return values[rng.choice(len(values), len(values), p=posterior.probabilities)]
    return values[rng.permutation(len(values))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--particles", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--points", type=int, default=2000)
    parser.add_argument("--beta", type=int, default=3)
    parser.add_argument("--mixture", type=int, default=0, help="seed of the means")
    parser.add_argument("--short", action="store_true", help="2,000 particles, 500 steps, 1 seed, 1,000 points")
    args = parser.parse_args()
    if args.short:
        args.particles, args.steps, args.seeds, args.points = 2000, 500, 1, 1000
    mixture = forty(args.mixture)
    target = Mixture.product([mixture], [args.beta])
    truth = [target.sample(args.particles, seed=100 + seed) for seed in range(args.seeds)]
    print(f"beta = {args.beta}, {args.particles} particles, {args.steps} steps, {args.seeds} seeds", flush=True)

    rows, found = [], {}
    floor = [distances(target.sample(args.particles, seed=200 + s), truth[s], args.points) for s in range(args.seeds)]
    rows.append(["the target itself", *cells(floor), "", ""])
    zetas = {"tempered noise": zeta_for(args.beta, 0.5), "target score": zeta_for(args.beta, 0.0)}
    for name, zeta in {**zetas, "ζ = 2": 2.0, "ζ = 3": 3.0}.items():
        for weighted in (False, True):
            start, made = time.process_time(), []
            for seed in range(args.seeds):
                made.append(distances(draw(mixture, args, zeta, weighted, seed), truth[seed], args.points))
            found[name, weighted] = np.mean(made, 0)
            paper = PAPER.get((name, weighted))
            told = ", ".join(f"{value:g}" for value in paper) if paper else ""
            label = f"{name}{', weighted' if weighted else ''}"
            rows.append([label, *cells(made), told, f"{time.process_time() - start:.0f}"])
            print(f"  {label}: " + ", ".join(rows[-1][1:5]), flush=True)
    table(["", *NAMES, "paper: MMD, TV, W1, W2", "CPU s"], rows)
    for name in {name: None for name, _ in found}:
        theirs = PAPER[name, False][0] / PAPER[name, True][0] if (name, True) in PAPER else math.nan
        ours = found[name, False][0] / found[name, True][0]
        best = found["target score", False][0] / found[name, True][0]
        told = f"; paper: {theirs:.1f}" if theirs == theirs else ""
        print(f"{name}: MMD {ours:.1f} times lower with correction{told}; {best:.1f} below target score without")


def cells(made: list[list[float]]) -> list[str]:
    """Mean ± standard deviation over the seeds, if there are several."""
    told = []
    for digits, column in zip((4, 4, 2, 2), np.transpose(made)):
        spread = f" ± {np.std(column, ddof=1):.{digits}f}" if len(column) > 1 else ""
        told.append(f"{np.mean(column):.{digits}f}{spread}")
    return told


if __name__ == "__main__":
    main()
