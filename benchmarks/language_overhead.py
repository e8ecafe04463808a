"""What the language itself costs: CPU time per particle and site, with a kernel that does no work.

    python benchmarks/language_overhead.py

N particles run programs of S sites under SMC. Without forks and with ``fk.scan`` the cost per site is constant; a
plain program that forks at every step replays its trace, which costs time in proportion to its length.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

import feynkac as fk


class Free:
    """A kernel that costs nothing."""

    batch_key = "free"
    fingerprint = None

    def sample_batch(self, requests, keys):
        zeros = np.zeros(len(requests))
        return fk.Draws(zeros, zeros)


FREE = Free()


@fk.program
async def draws(sites):
    for _ in range(sites):
        await fk.sample("x", FREE)


@fk.program
async def weighed(sites):
    for _ in range(sites // 2):
        await fk.sample("x", FREE)
        await fk.factor("G", 0.0)


async def step(carry, x):
    await fk.sample("x", FREE)
    await fk.factor("G", 0.0)
    return carry, None


@fk.program
async def scanned(sites):
    await fk.scan(step, 0.0, range(sites // 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--particles", type=int, default=1000)
    parser.add_argument("--sites", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    n, sites = args.particles, args.sites
    often = fk.SMC(n, ess_threshold=1.0, resampling="multinomial")
    cases = [
        ("samples only, no forks", draws, fk.SMC(n)),
        ("sample and factor in turn, no forks", weighed, fk.SMC(n)),
        ("sample and factor in fk.scan, no forks", scanned, fk.SMC(n)),
        ("sample and factor in fk.scan, resampled at every step", scanned, often),
        ("sample and factor in turn, resampled at every step (replay)", weighed, often),
    ]
    print(f"N = {n}, {sites} sites, CPU µs per particle and site: median (min) of {args.repeats}")
    for name, program, engine in cases:
        spent = []
        for seed in range(args.repeats):
            start = time.process_time()
            fk.infer(program(sites), engine, seed=seed)
            spent.append((time.process_time() - start) / (n * sites) * 1e6)
        print(f"  {name:62s} {np.median(spent):6.1f} ({min(spent):.1f})")


if __name__ == "__main__":
    main()
