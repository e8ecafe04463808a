"""NUTS and tempered SMC by feynkac, beside NumPyro and BlackJAX at equal settings, in one run.

    python benchmarks/samplers.py

NUTS: effective draws per second. Tasks: eight schools (10 numbers), non-centred, and centred, where the funnel makes
chains diverge, so that their effective draws are to be read beside the number of divergent transitions; and a logistic
regression (25 numbers, 1,000 observations). Float64, on the CPU; 4 chains one after the other, 1,000 draws of warm-up
(step size and diagonal mass matrix by windows, acceptance .8) and 1,000 that are kept. "first" is a run with all that
is compiled in it, "again" the next ones, on other seeds; in CPU seconds. ESS is the least over all numbers,
rank-normalised; of the runs the median. feynkac has two rows: a NumPyro model by `from_numpyro`, and a program; both
keep whole posteriors of runs that are made again from the numbers.

Tempered SMC: the error of log Z at equal evaluations of the density. The target is two correlated Gaussians, .3 and
.7, as a likelihood under a standard normal prior in 4 numbers, whose Z is known. Both have 500 particles and make
five HMC trajectories of five leapfrogs of one fixed step at each stage; the ESS that a stage leaves sets how many
there are: BlackJAX's is .5, and ours such that it evaluates the likelihood about as often (ours has no stage at λ =
0, and one at λ = 1, for the draws). The likelihood counts, in a few runs: with those of weights, of the search for a
temperature, and (ours) of making the runs again from their numbers. What is left of a difference is made up by the
square root, as variances fall by the number of particles ("at equal"). "seconds" are CPU seconds of runs that do not
count, after the first.
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


def centred() -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    theta = numpyro.sample("theta", dist.Normal(mu * np.ones(8), tau).to_event(1))
    numpyro.sample("y", dist.Normal(theta, ERRORS).to_event(1), obs=EFFECTS)


@fk.program
async def centred_program() -> Any:
    mu = await fk.sample("mu", dist.Normal(0.0, 5.0))
    tau = await fk.sample("tau", dist.HalfCauchy(5.0))
    theta = await fk.sample("theta", dist.Normal(mu * np.ones(8), tau).to_event(1))
    await fk.observe("y", dist.Normal(theta, ERRORS).to_event(1), EFFECTS)
    return {"mu": mu, "tau": tau, "theta": theta}


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


def by_feynkac(model: Any, draws: int) -> Callable[[int], tuple[np.ndarray, int]]:
    def run(seed: int) -> tuple[np.ndarray, int]:
        posterior = fk.infer(model, fk.MCMC(fk.NUTS(), draws=draws, warmup=draws), seed=seed)
        rows = [np.concatenate([np.ravel(part) for part in value.values()]) for value in posterior.values]
        diverging = sum(int(chain.stats["diverging"].sum()) for chain in posterior.chains)
        return np.array(rows, float).reshape(4, draws, -1), diverging

    return run


def by_numpyro(model: Any, draws: int) -> Callable[[int], tuple[np.ndarray, int]]:
    def run(seed: int) -> tuple[np.ndarray, int]:
        with jax.enable_x64(True):
            kernel = numpyro.infer.NUTS(model)
            chains = numpyro.infer.MCMC(
                kernel, num_warmup=draws, num_samples=draws, num_chains=4, chain_method="sequential", progress_bar=False
            )
            chains.run(jax.random.PRNGKey(seed))
            found = chains.get_samples(group_by_chain=True)
            diverging = int(chains.get_extra_fields()["diverging"].sum())
            return np.concatenate([np.asarray(part).reshape(4, draws, -1) for part in found.values()], -1), diverging

    return run


def by_blackjax(model: Any, draws: int) -> Callable[[int], tuple[np.ndarray, int]]:
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
                state, info = step(key, state)
                return state, (state.position, info.is_divergent)

            return jax.lax.scan(one, state, jax.random.split(key, draws))[1]

        compiled = jax.jit(chain)

    def run(seed: int) -> tuple[np.ndarray, int]:
        with jax.enable_x64(True):
            keys = jax.random.split(jax.random.PRNGKey(seed), 4)
            found = [jax.device_get(compiled(key)) for key in keys]
        rows = [np.concatenate([np.reshape(p, (draws, -1)) for p in one.values()], -1) for one, _ in found]
        return np.stack(rows), sum(int(diverging.sum()) for _, diverging in found)

    return run


def ess(draws: np.ndarray) -> float:
    """The least effective sample size of draws (chains, draws, numbers)."""
    return min(float(arviz_stats.ess(draws[..., j])) for j in range(draws.shape[-1]))


def nuts(draws: int, repeats: int) -> None:
    tasks = {
        "eight schools": (schools, schools_program()),
        "eight schools, centred": (centred, centred_program()),
        "logistic regression": (logistic, logistic_program()),
    }
    for task, (model, program) in tasks.items():
        samplers = {
            "feynkac, from_numpyro": by_feynkac(fk.from_numpyro(model), draws),
            "feynkac, a program": by_feynkac(program, draws),
            "BlackJAX": by_blackjax(model, draws),
            "NumPyro": by_numpyro(model, draws),
        }
        print(f"NUTS, {task}: 4 chains of {draws} + {draws}")
        print(f"{'':24}{'first s':>10}{'again s':>10}{'ESS':>8}{'diverging':>11}{'ESS/s first':>14}{'ESS/s again':>14}")
        runs: dict[str, list[tuple[float, float, int]]] = {name: [] for name in samplers}
        for turn in range(repeats + 1):
            for name, run in samplers.items():
                begun = time.process_time()
                found, diverging = run(turn)
                runs[name].append((time.process_time() - begun, ess(found), diverging))
        for name, made in runs.items():
            first, again = made[0][0], float(np.median([seconds for seconds, _, _ in made[1:]]))
            size, diverging = (float(np.median([one[j] for one in made])) for j in (1, 2))
            cells = f"{first:10.2f}{again:10.2f}{size:8.0f}{diverging:11.0f}{size / first:14.0f}{size / again:14.0f}"
            print(f"{name:24}{cells}", flush=True)


# -- tempered SMC ---------------------------------------------------------------------------------------------------

D, PARTICLES, MOVES, LEAPFROGS, STEP = 4, 500, 5, 5, 0.2
OUR_ESS, COUNTED_RUNS = 0.66, 3
SHARES = np.array([0.3, 0.7])
CENTRES = np.array([[1.5, 1.0, -0.5, 0.5], [-1.0, -1.5, 0.5, 0.0]])
COVARIANCE = 0.1 * (np.eye(D) + 0.8 * (np.ones((D, D)) - np.eye(D)))


class Counted:
    """The log-likelihood of two Gaussians, which counts how many points it is evaluated at."""

    def __init__(self, counts: bool) -> None:
        self.counts, self.evaluations = counts, 0

    def _count(self, x: Any) -> np.ndarray:
        self.evaluations += np.size(x)
        return np.zeros(np.shape(x), np.float32)

    def __call__(self, z: Any) -> Any:
        if self.counts:
            nothing = jax.ShapeDtypeStruct((), np.float32)
            z = z + jax.pure_callback(self._count, nothing, jax.lax.stop_gradient(z[0]), vmap_method="broadcast_all")
        law = dist.MultivariateNormal(jnp.asarray(CENTRES), covariance_matrix=jnp.asarray(COVARIANCE))
        return jax.nn.logsumexp(law.log_prob(z) + np.log(SHARES))


def exact_log_z() -> float:
    total = np.eye(D) + COVARIANCE
    away = np.einsum("ki,ij,kj->k", CENTRES, np.linalg.inv(total), CENTRES)
    logs = -0.5 * (away + np.linalg.slogdet(2 * np.pi * total)[1])
    return float(np.log(SHARES @ np.exp(logs)))


def tempered_by_feynkac(likelihood: Counted, share: float, step: float | None = STEP) -> Callable[[int], float]:
    def model() -> None:
        z = numpyro.sample("z", dist.Normal(np.zeros(D), 1.0).to_event(1))
        numpyro.factor("data", likelihood(z))

    kernel = fk.HMC(moves=MOVES, step=step, leapfrogs=LEAPFROGS, jitter=0.0)
    bound, engine = fk.from_numpyro(model), fk.TemperedSMC(PARTICLES, kernel, moves=1, ess=share)
    return lambda seed: fk.infer(bound, engine, seed=seed).log_evidence


def tempered_by_blackjax(likelihood: Counted, share: float) -> Callable[[int], float]:
    with jax.enable_x64(True):
        smc = blackjax.adaptive_tempered_smc(
            lambda z: dist.Normal(0.0, 1.0).log_prob(z).sum(),
            likelihood,
            blackjax.hmc.build_kernel(),
            blackjax.hmc.init,
            blackjax.smc.extend_params(
                {
                    "step_size": jnp.asarray(STEP),
                    "inverse_mass_matrix": jnp.ones(D),
                    "num_integration_steps": jnp.asarray(LEAPFROGS),
                }
            ),
            blackjax.smc.resampling.systematic,
            target_ess=share,
            num_mcmc_steps=MOVES,
        )
        step = jax.jit(smc.step)

    def run(seed: int) -> float:
        with jax.enable_x64(True):
            first, key = jax.random.split(jax.random.PRNGKey(seed))
            state, log_z = smc.init(jax.random.normal(first, (PARTICLES, D))), 0.0
            while state.tempering_param < 1:
                key, now = jax.random.split(key)
                state, info = step(now, state)
                log_z += float(info.log_likelihood_increment)
            return log_z

    return run


def tempered(seeds: int) -> None:
    exact = exact_log_z()
    makers: dict[str, Callable[[Counted], Callable[[int], float]]] = {
        "BlackJAX": lambda likelihood: tempered_by_blackjax(likelihood, 0.5),
        "feynkac": lambda likelihood: tempered_by_feynkac(likelihood, OUR_ESS),
        "feynkac, learned step": lambda likelihood: tempered_by_feynkac(likelihood, OUR_ESS, None),
    }
    evaluations, runs = {}, {}
    for name, maker in makers.items():
        counted = Counted(True)
        run = maker(counted)
        for seed in range(COUNTED_RUNS):
            run(seed)
        evaluations[name] = counted.evaluations / COUNTED_RUNS
        runs[name] = maker(Counted(False))
        runs[name](seeds)  # compiles
    errors: dict[str, list[float]] = {name: [] for name in makers}
    seconds: dict[str, list[float]] = {name: [] for name in makers}
    for seed in range(seeds):
        for name, run in runs.items():
            begun = time.process_time()
            errors[name].append(run(seed) - exact)
            seconds[name].append(time.process_time() - begun)
    print(f"tempered SMC: {PARTICLES} particles, {seeds} seeds; log Z = {exact:.3f} exactly")
    columns = f"{'evaluations':>13}{'at equal':>10}{'/ BlackJAX':>13}{'seconds':>9}"
    print(f"{'':24}{'RMSE of log Z':>17}{'bias':>17}{columns}")
    squares = {name: np.square(made) for name, made in errors.items()}
    rms = {name: float(np.sqrt(square.mean())) for name, square in squares.items()}
    unsure = {name: float(square.std() / square.mean() / np.sqrt(seeds) / 2) for name, square in squares.items()}
    for name, made in errors.items():
        equal = rms[name] * float(np.sqrt(evaluations[name] / evaluations["BlackJAX"]))
        ratio = equal / rms["BlackJAX"]
        error = ratio * np.hypot(unsure[name], unsure["BlackJAX"])
        cells = f"{f'{rms[name]:.3f} ± {rms[name] * unsure[name]:.3f}':>17}"
        cells += f"{f'{np.mean(made):+.3f} ± {np.std(made) / np.sqrt(seeds):.3f}':>17}{evaluations[name]:13,.0f}"
        cells += f"{equal:10.3f}{f'{ratio:.2f} ± {error:.2f}' if name != 'BlackJAX' else '1':>13}"
        print(f"{name:24}{cells}{np.median(seconds[name]):9.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3, help="runs after the first, of which the median counts")
    parser.add_argument("--seeds", type=int, default=60, help="of tempered SMC")
    parser.add_argument("--only", choices=["nuts", "tempered"])
    args = parser.parse_args()
    if args.only != "tempered":
        nuts(args.draws, args.repeats)
    if args.only != "nuts":
        tempered(args.seeds)


if __name__ == "__main__":
    main()
