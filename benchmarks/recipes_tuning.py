"""What bandits and Bayesian optimisation do on the shipped Countdown reasoner: the figures of the cards of `fk.tuning`.

python benchmarks/recipes_tuning.py bandit | settings | throughput
"""

from __future__ import annotations

import sys
import time

import numpy as np

import feynkac as fk
from feynkac import tuning


def _right(posterior, problem):
    return float(problem.solved(posterior.best("reward")))


def _error(values):
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def bandit(count=100, orders=200):
    """UCB and Tsallis-INF over four engines of eight particles: the share solved, against each engine alone."""
    lm, prm, problems = fk.tasks.reasoner(), fk.tasks.verifier(), fk.tasks.problems(count, numbers=4)
    models = [fk.tasks.solve(lm, prm, problem) for problem in problems]
    engines = {"best of 8": fk.BestOfN(8), "SMC(8)": fk.SMC(8), "beam 4x2": fk.BeamSearch(4, 2), "one draw": fk.SMC(1)}
    table = np.array(
        [
            [_right(posterior, problem) for posterior, problem in zip(fk.infer(models, engine, seed=0), problems)]
            for engine in engines.values()
        ]
    ).T
    for name, column in zip(engines, table.T):
        print(f"{name:10} {column.mean():.3f} ± {_error(column):.3f}")
    print(f"uniform    {table.mean():.3f}")
    for name, policy in (("UCB", tuning.UCB(4)), ("Tsallis", tuning.TsallisINF(4))):
        earned, share = [], []
        for order in range(orders):
            rng, pulls = np.random.default_rng(order), []
            for row in table[rng.permutation(count)]:
                chances = policy.chances(pulls)
                arm = int(rng.choice(4, p=chances))
                pulls.append(tuning.Pull(arm, float(chances[arm]), row[arm]))
            earned.append(np.mean([pull.reward for pull in pulls]))
            share.append(np.bincount([pull.arm for pull in pulls], minlength=4) / count)
        print(
            f"{name:10} {np.mean(earned):.3f} ± {_error(earned):.3f} over {orders} orders, shares {np.mean(share, 0)}"
        )


def settings(count=40, trials=12, seeds=3):
    """Temperature and number of particles by `bayes`, and at random: share solved less .01 a particle."""
    lm, prm = fk.tasks.reasoner(), fk.tasks.verifier()
    used, others = fk.tasks.problems(count, numbers=4, split="train"), fk.tasks.problems(100, numbers=4)

    def score(at, problems, seed):
        models = [fk.tasks.solve(lm, prm, problem, temperature=at["temperature"]) for problem in problems]
        found = fk.infer(models, fk.BestOfN(at["n"]), seed=seed)
        return float(np.mean([_right(p, problem) for p, problem in zip(found, problems)])) - 0.01 * at["n"]

    space = {"n": (1, 16), "temperature": (0.3, 1.5)}
    for name, starts in (("bayes", 4), ("at random", trials)):
        seen, held = [], []
        for seed in range(seeds):
            found = tuning.bayes(space, lambda at: score(at, used, 0), trials, seed=seed, starts=starts)
            seen.append(found.score)
            held.append(score(found.best, others, 1))
            print(f"  {name} {found.best} seen {seen[-1]:.3f} held out {held[-1]:.3f}")
        print(
            f"{name:10} seen {np.mean(seen):.3f}, held out {np.mean(held):.3f} ± {_error(held):.3f} over {seeds} seeds"
        )


def throughput(count=24, trials=6):
    """max_batch of the reasoner by `bayes`: tokens a second."""
    problems = fk.tasks.problems(count, numbers=4)

    def score(at):
        lm = fk.tasks.reasoner(max_batch=at["max_batch"])
        models = [fk.tasks.solve(lm, None, problem) for problem in problems]
        started = time.perf_counter()
        found = fk.infer(models, fk.SMC(4), seed=0)
        return sum(p.cost.tokens_out for p in found) / (time.perf_counter() - started)

    found = tuning.bayes({"max_batch": [1, 4, 16, 64]}, score, trials, seed=0, noisy=True, progress=False)
    for at, rate in found:
        print(at, f"{rate:.0f} tokens/s")
    print("best", found.best)


def main() -> None:
    for name in sys.argv[1:]:
        {"bandit": bandit, "settings": settings, "throughput": throughput}[name]()


if __name__ == "__main__":
    main()
