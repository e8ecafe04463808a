"""Countdown with feynkac: our engines on the problems of `countdown_its_hub`, one problem after the other."""

from __future__ import annotations

from worker import cpu_seconds, serve

import feynkac as fk
from feynkac.ppl.memory import afresh


def contestants(n, lines):
    """Return engines with how their programs are weighed, by name; see `its_hub` for what stands against which."""
    return {
        "particle filter": (fk.ParticleFilter(n, compat="its_hub"), "odds"),
        "entropic": (fk.EntropicParticleFilter(n, lines - 1, exact=False), "odds"),
        "beam": (fk.BeamSearch(n, width=4), "product"),
        "best-of-N": (fk.BestOfN(n, all_dead="zero"), "final"),
        "particle filter, odds": (fk.ParticleFilter(n), "odds"),
        "particle filter, telescoping": (fk.SMC(n, ess_threshold=1.0), "telescope"),
        "entropic, exact": (fk.EntropicParticleFilter(n, lines - 1), "odds"),
    }


def prepare(*, problems, n, lines, block, max_tokens):
    lm, prm = fk.tasks.reasoner(), fk.tasks.verifier()
    asked = [fk.tasks.Countdown(tuple(numbers), target) for numbers, target in problems]

    def run(turn: int, block: int = block) -> dict:
        made, first = {}, turn * block % len(asked)
        for name, (engine, weigh) in contestants(n, lines).items():
            some = asked[first : first + block]
            by = "reward" if weigh == "telescope" else "weight"
            models = [fk.tasks.solve(lm, prm, problem, weigh, max_tokens=max_tokens) for problem in some]
            made[name] = solve([[model] for model in models], engine, turn, by)
            if name == "particle filter":
                made[f"{name}, side by side"] = solve([models], engine, turn, by)
        return {"made": made}

    return run


def solve(groups, engine, turn, by):
    """Run an engine on groups of problems. Those of a group share their batches; no two groups share a result."""
    posteriors, cpu = [], cpu_seconds()
    for i, models in enumerate(groups):
        with afresh():
            posteriors += fk.infer(models, engine, seed=1000 * turn + i)
    return {
        "cpu": cpu_seconds() - cpu,
        "tokens": sum(posterior.cost.tokens_out for posterior in posteriors),
        "calls": sum(posterior.cost.reward_calls for posterior in posteriors),
        "answers": [str(posterior.best(by)) for posterior in posteriors],
    }


if __name__ == "__main__":
    serve(prepare)
