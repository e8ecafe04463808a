"""A bootstrap particle filter by feynkac, by hand in NumPy and JAX, and by four libraries, in CPU time, in one run.

    make peers
    python benchmarks/particle_filter.py

Task: x_t ~ N(0.9 x_{t−1}, 0.5²), y_t ~ N(x_t, 1), 500 steps, float64, systematic resampling at ESS < N/2. Each filter
runs in a process of its own (the code is in ``peers/filter_*.py``) and they take turns on the same data. CPU seconds
are medians over the turns, and so are the ratios to the first row, with their quartiles; "first s" is what the first
run took on the clock, with what was compiled. Z is known, from the Kalman filter: an estimate can be trusted where
the mean of Ẑ/Z is 1 within its error. The libraries are particles, BlackJAX, cuthbert and smcx, all from the package
index. All keep log Ẑ; ours (ancestors, weights and choices of each step), cuthbert and smcx also keep the whole
history. One key of JAX is for all particles where the code leaves that to the user (by hand, BlackJAX); cuthbert and
smcx give each its own. Of ours, "fused" is an async program whose scan is compiled and run as a whole, "by steps" the
same program with a callback, which sees each step, and "native" a model written in NumPy.
"""

from __future__ import annotations

import argparse

import numpy as np
from peers.race import Worker, mean_error, race, table

import feynkac as fk

RHO, SIGMA_X, SIGMA_Y = 0.9, 0.5, 1.0
FILTERS = {  # name: worker, environment, settings
    "lax.scan by hand": ("filter_scan.py", None, {}),
    "NumPy by hand": ("filter_numpy.py", None, {}),
    "feynkac, fused": ("filter_program.py", None, {}),
    "feynkac, by steps": ("filter_program.py", None, {"watched": True}),
    "feynkac, native": ("filter_feynkac.py", None, {}),
    "particles": ("filter_particles.py", "particles", {}),
    "BlackJAX": ("filter_blackjax.py", "blackjax", {}),
    "cuthbert": ("filter_cuthbert.py", "cuthbert", {}),
    "smcx": ("filter_smcx.py", "smcx", {}),
}


def observations(steps: int) -> np.ndarray:
    """Draw data from the model, shape (steps,)."""
    rng = np.random.default_rng(20)
    noise, x = rng.standard_normal((steps, 2)), np.empty(steps)
    x[0] = noise[0, 0] * SIGMA_X / np.sqrt(1 - RHO**2)
    for t in range(1, steps):
        x[t] = RHO * x[t - 1] + SIGMA_X * noise[t, 0]
    return x + SIGMA_Y * noise[:, 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--particles", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--only", nargs="+", choices=list(FILTERS), default=list(FILTERS))
    args = parser.parse_args()
    y = observations(args.steps)
    exact = fk.oracles.kalman(
        y,
        initial_mean=0.0,
        initial_cov=SIGMA_X**2 / (1 - RHO**2),
        transition=RHO,
        transition_cov=SIGMA_X**2,
        emission=1.0,
        emission_cov=SIGMA_Y**2,
    ).log_evidence
    print(f"{args.steps} steps, median of {args.repeats} turns; log Z = {exact:.2f} exactly")
    for n in args.particles:
        settings = {"y": y.tolist(), "n": n, "rho": RHO, "sigma_x": SIGMA_X, "sigma_y": SIGMA_Y}
        workers = {}
        for name in args.only:
            script, environment, own = FILTERS[name]
            workers[name] = Worker(script, environment, settings | own)
        results = race(workers, args.repeats)
        rows = []
        for name, made in results.items():
            spent, log_z = np.array(made["cpu"]), np.array(made["log_z"])
            low, middle, high = np.quantile(spent / results[args.only[0]]["cpu"], [0.25, 0.5, 0.75])
            cells = [f"{np.median(spent):.3f}", f"{middle:.2f} ({low:.2f}–{high:.2f})"]
            cells += [f"{made['first']:.1f}", f"{max(made['rss']):.2f}"]
            rows.append([f"N={n:,} {name}", *cells, mean_error(log_z), mean_error(np.exp(log_z - exact))])
        table(["", "CPU s", f"/ {args.only[0]}", "first s", "peak GiB", "log Z", "Ẑ/Z"], rows)


if __name__ == "__main__":
    main()
