"""NUTS by feynkac, NumPyro and BlackJAX at equal settings: effective draws per second, in one run.

    python benchmarks/samplers.py

Tasks: eight schools (non-centred, 10 numbers) and a logistic regression (25 numbers, 1,000 observations), float64, on
the CPU; 4 chains one after the other, 1,000 draws of warm-up (step size and diagonal mass matrix by windows, acceptance
.8) and 1,000 that are kept. "first" is a run with all that is compiled in it, "again" the next one, on another seed; in
CPU seconds. ESS is the least over all numbers, rank-normalised, of the run before it. feynkac has two rows: a NumPyro
model by `from_numpyro`, and a program; both keep whole posteriors of runs that are made again from the numbers.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import arviz_stats
import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

import feynkac as fk

EFFECTS = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
ERRORS = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
RNG = np.random.default_rng(0)
X = RNG.normal(size=(1000, 25)).astype(np.float32)  # as JAX has it where it is not told otherwise
Y = (RNG.uniform(size=1000) < 1 / (1 + np.exp(-X @ RNG.normal(size=25) * 0.5))).astype(int)


def schools() -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    z = numpyro.sample("z", dist.Normal(np.zeros(8), 1.0).to_event(1))
    numpyro.sample("y", dist.Normal(mu + tau * z, ERRORS).to_event(1), obs=EFFECTS)


@fk.program
async def schools_program() -> Any:
    mu = await fk.sample("mu", dist.Normal(0.0, 5.0))
    tau = await fk.sample("tau", dist.HalfCauchy(5.0))
    z = await fk.sample("z", dist.Normal(np.zeros(8), 1.0).to_event(1))
    await fk.observe("y", dist.Normal(mu + tau * z, ERRORS).to_event(1), EFFECTS)
    return {"mu": mu, "tau": tau, "z": z}


def logistic() -> None:
    b = numpyro.sample("b", dist.Normal(np.zeros(25), 1.0).to_event(1))
    numpyro.sample("y", dist.Bernoulli(logits=jnp.dot(X, b)).to_event(1), obs=Y)


@fk.program
async def logistic_program() -> Any:
    b = await fk.sample("b", dist.Normal(np.zeros(25), 1.0).to_event(1))
    await fk.observe("y", dist.Bernoulli(logits=jnp.dot(X, b)).to_event(1), Y)
    return {"b": b}


def by_feynkac(model: Any, draws: int) -> Callable[[int], np.ndarray]:
    def run(seed: int) -> np.ndarray:
        posterior = fk.infer(model, fk.MCMC(fk.NUTS(), draws=draws, warmup=draws), seed=seed)
        rows = [np.concatenate([np.ravel(part) for part in value.values()]) for value in posterior.values]
        return np.array(rows, float).reshape(4, draws, -1)

    return run


def by_numpyro(model: Any, draws: int) -> Callable[[int], np.ndarray]:
    def run(seed: int) -> np.ndarray:
        with jax.enable_x64(True):
            kernel = numpyro.infer.NUTS(model)
            chains = numpyro.infer.MCMC(
                kernel, num_warmup=draws, num_samples=draws, num_chains=4, chain_method="sequential", progress_bar=False
            )
            chains.run(jax.random.PRNGKey(seed))
            found = chains.get_samples(group_by_chain=True)
            return np.concatenate([np.asarray(part).reshape(4, draws, -1) for part in found.values()], -1)

    return run


def by_blackjax(model: Any, draws: int) -> Callable[[int], np.ndarray]:
    with jax.enable_x64(True):
        start = numpyro.infer.util.initialize_model(jax.random.PRNGKey(0), model)

        def log_density(position: Any) -> Any:
            return -start.potential_fn(position)

        def chain(key: Any) -> Any:
            warm, key = jax.random.split(key)
            (state, found), _ = blackjax.window_adaptation(
                blackjax.nuts, log_density, adaptation_info_fn=lambda *told: None
            ).run(warm, start.param_info.z, num_steps=draws)
            step = blackjax.nuts(log_density, **found).step

            def one(state: Any, key: Any) -> Any:
                state, _ = step(key, state)
                return state, state.position

            return jax.lax.scan(one, state, jax.random.split(key, draws))[1]

        compiled = jax.jit(chain)

    def run(seed: int) -> np.ndarray:
        with jax.enable_x64(True):
            keys = jax.random.split(jax.random.PRNGKey(seed), 4)
            found = [jax.device_get(compiled(key)) for key in keys]
        return np.stack([np.concatenate([np.reshape(p, (draws, -1)) for p in one.values()], -1) for one in found])

    return run


def ess(draws: np.ndarray) -> float:
    """The least effective sample size of draws (chains, draws, numbers)."""
    return min(float(arviz_stats.ess(draws[..., j])) for j in range(draws.shape[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3, help="runs after the first, of which the median counts")
    args = parser.parse_args()
    tasks = {
        "eight schools": (schools, schools_program()),
        "logistic regression": (logistic, logistic_program()),
    }
    for task, (model, program) in tasks.items():
        samplers = {
            "feynkac, from_numpyro": by_feynkac(fk.from_numpyro(model), args.draws),
            "feynkac, a program": by_feynkac(program, args.draws),
            "BlackJAX": by_blackjax(model, args.draws),
            "NumPyro": by_numpyro(model, args.draws),
        }
        print(f"{task}: 4 chains of {args.draws} + {args.draws}")
        print(f"{'':24}{'first s':>10}{'again s':>10}{'ESS':>8}{'ESS/s first':>14}{'ESS/s again':>14}")
        seconds: dict[str, list[float]] = {name: [] for name in samplers}
        sizes: dict[str, list[float]] = {name: [] for name in samplers}
        for turn in range(args.repeats + 1):
            for name, run in samplers.items():
                begun = time.process_time()
                draws = run(turn)
                seconds[name].append(time.process_time() - begun)
                sizes[name].append(ess(draws))
        for name in samplers:
            first, again, size = seconds[name][0], float(np.median(seconds[name][1:])), float(np.median(sizes[name]))
            print(f"{name:24}{first:10.2f}{again:10.2f}{size:8.0f}{size / first:14.0f}{size / again:14.0f}")


if __name__ == "__main__":
    main()
