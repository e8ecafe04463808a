"""Bootstrap filter by hand in NumPy, as short and as fast as it gets: it keeps log Ẑ alone."""

from __future__ import annotations

import math

import numpy as np
from worker import serve


def prepare(*, y, n, rho, sigma_x, sigma_y):
    def run(seed: int) -> dict:
        rng = np.random.default_rng(seed)
        x = rng.standard_normal(n) * (sigma_x / math.sqrt(1 - rho * rho))
        log_w, log_z = np.zeros(n), 0.0
        constant = math.log(sigma_y) + 0.5 * math.log(2 * math.pi)
        for t, observed in enumerate(y):
            if t:
                x = rho * x + sigma_x * rng.standard_normal(n)
            log_w = log_w - 0.5 * ((observed - x) / sigma_y) ** 2 - constant
            peak = log_w.max()
            w = np.exp(log_w - peak)
            total = w.sum()
            if total * total < 0.5 * n * (w @ w) and t < len(y) - 1:
                log_z += peak + math.log(total / n)
                edges = w.cumsum() / total
                edges[-1] = 1.0
                x = x[np.searchsorted(edges, (np.arange(n) + rng.random()) / n, side="right")]
                log_w = np.zeros(n)
        peak = log_w.max()
        return {"log_z": log_z + peak + math.log(np.exp(log_w - peak).mean())}

    return run


if __name__ == "__main__":
    serve(prepare)
