"""The engines of the reasoning benchmark, and how one of them is run on a block of problems."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import feynkac as fk
from feynkac.ppl.memory import afresh

YARDSTICK = "best-of-N"
TWIST = "twist"


@dataclass(frozen=True)
class Contestant:
    """An engine (of a size and a number of steps), how its program is weighed, and the sizes that it is run at."""

    engine: Callable[[int, int], Any]
    weigh: str
    sizes: tuple[int, ...]


ALL, MOST, SOME, FEW = (2, 4, 8, 16, 32, 64, 128), (2, 4, 8, 16, 32, 64), (4, 8, 16, 32), (8, 32)
CONTESTANTS = {
    "particle filter": Contestant(lambda n, steps: fk.ParticleFilter(n), "odds", ALL),
    "beam": Contestant(lambda n, steps: fk.BeamSearch(n, width=min(4, n)), "product", ALL),
    "A*, N children": Contestant(lambda n, steps: fk.AStar(64, width=n), "product", ALL),
    "systematic filter": Contestant(lambda n, steps: fk.SMC(n, ess_threshold=1.0), "odds", ALL),
    "look-ahead SMC": Contestant(lambda n, steps: fk.LookAheadSMC(n), "odds", SOME),
    "telescoping": Contestant(lambda n, steps: fk.SMC(n, ess_threshold=1.0), "telescope", MOST),
    "learned twist": Contestant(lambda n, steps: fk.SMC(n, ess_threshold=1.0), TWIST, SOME),
    "entropic": Contestant(lambda n, steps: fk.EntropicParticleFilter(n, steps), "odds", MOST),
    "entropic, looks ahead": Contestant(
        lambda n, steps: fk.EntropicParticleFilter(n, steps, look_ahead=True), "odds", SOME
    ),
    "beam, looks ahead": Contestant(lambda n, steps: fk.BeamSearch(n, width=4, lookahead=1), "product", SOME),
    "REBASE": Contestant(lambda n, steps: fk.Rebase(n), "product", FEW),
    "DVTS": Contestant(lambda n, steps: fk.DVTS(n, width=4), "product", FEW),
    "MCTS": Contestant(lambda n, steps: fk.MCTS(max(1, n // steps), width=4), "product", FEW),
}
HEADLINES = tuple(CONTESTANTS)[:7]
"""Those that a replay of the verdicts runs."""
FAMILIES = {
    "Particle filters": ("particle filter", "systematic filter", "entropic", "telescoping"),
    "Beams and trees": ("beam", "REBASE", "DVTS", "MCTS"),
    "A* and votes": ("A*, N children", "weighted vote", "majority vote"),
    "Looking ahead": ("look-ahead SMC", "entropic, looks ahead", "beam, looks ahead", "learned twist"),
}


@fk.program
async def guided(lm: Any, prm: Any, problem: Any, twist: fk.LinearTwist) -> Any:
    """The target of "telescope", p · r_T; what guides is a learned twist of 1 and log-odds r_t, by step."""
    text = lm.prompt(problem.prompt)
    for t in range(problem.steps):
        text = await fk.sample("step", lm.line(text, max_tokens=40))
        fk.deterministic("output", text)
        over = text.finished or t == problem.steps - 1
        if over and not str(text).strip():
            await fk.factor("blank", -math.inf)
        elif over:
            await fk.factor("prm", prm(problem.prompt, text).log())
        elif str(text).strip():
            r = float(np.clip(await fk.call("r", prm, problem.prompt, text), 1e-6, 1 - 1e-6))
            phi = np.zeros((problem.steps - 1, 2))
            phi[t] = 1.0, math.log(r / (1 - r))
            await fk.twist("later", twist(fk.deterministic("phi", tuple(phi.ravel().tolist()))))
        if over:
            break
    return text


def learned(lm: Any, prm: Any, problems: list[Any], rounds: int = 3, particles: int = 64) -> fk.LinearTwist:
    """Learn a twist on some problems, which are not those that it is tried on."""
    twist = fk.LinearTwist()
    for seed in range(rounds):
        models = [guided(lm, prm, problem, twist) for problem in problems]
        found = fk.infer(models, fk.SMC(particles, ess_threshold=1.0, all_dead="zero"), seed=seed)
        twist = fk.LinearTwist.fit([p for p in found if p.log_evidence > -math.inf], "phi")
    return twist


def trial(
    contestant: Contestant, n: int, problems: list[Any], seed: int, lm: Any, prm: Any, twist: fk.LinearTwist | None
) -> dict[str, Any]:
    """Run an engine on a block of problems. Returns a list for each column, with an entry for each problem."""
    if contestant.weigh == TWIST:
        models = [guided(lm, prm, problem, twist) for problem in problems]
    else:
        models = [fk.tasks.solve(lm, prm, problem, contestant.weigh) for problem in problems]
    began = time.process_time()
    with afresh():
        found = fk.infer(models, contestant.engine(n, problems[0].steps), seed=seed)
    by = "weight" if contestant.weigh in ("odds", "product") else "reward"
    return {
        "solved": [int(problem.solved(p.best(by))) for problem, p in zip(problems, found)],
        "tokens": [p.cost.tokens_out for p in found],
        "reward_calls": [p.cost.reward_calls for p in found],
        "cpu_seconds": round(time.process_time() - began, 2),
    }
