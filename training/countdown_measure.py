"""Measure the reasoner of Countdown and its process reward models, and add what was found to their records.

    python training/countdown_measure.py

On held-out problems: how many answers are solutions, and how many steps are right and leave the target in reach; and
for each step how well the model's score tells answers that will succeed from those that will not (the area under the
ROC curve), and how far it is above the share that does succeed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from countdown import WEIGHTS

import feynkac as fk
from feynkac.inference.scaling.measures import auc, calibration_error


def answers(lm: Any, problems: list[Any], each: int) -> list[tuple[Any, Any]]:
    """Return (problem, answer) of some answers of a language model to each of some problems."""
    found = []
    for begin in range(0, len(problems), 50):
        some = problems[begin : begin + 50]
        posteriors = fk.infer([fk.tasks.solve(lm, None, p) for p in some], fk.ImportanceSampling(each), seed=begin)
        found += [(p, text) for p, posterior in zip(some, posteriors) for text in posterior.values]
    return found


def share(true: Any) -> float:
    """Return the share of what is true, to 3 digits."""
    return round(float(np.mean(true)), 3)


def measure_reasoner(found: list[tuple[Any, Any]]) -> dict[str, Any]:
    """Return the share of solutions, and by step of answers without a fault, and of those that can still succeed."""
    steps = range(1, found[0][0].steps + 1)
    prefixes = {step: [(p, "\n".join(str(text).splitlines()[:step])) for p, text in found] for step in steps}
    return {
        "answers": len(found),
        "solved": share([p.solved(text) for p, text in found]),
        "right_by_step": [share([p.left(text) is not None for p, text in prefixes[step]]) for step in steps],
        "solvable_by_step": [share([p.solvable(text) for p, text in prefixes[step]]) for step in steps],
    }


def measure_verifier(found: list[tuple[Any, Any]], which: Any = "overconfident") -> dict[str, Any]:
    """Return what the scores of each step say of the verdict at the end."""
    found = [(p, text) for p, text in found if len(text.steps) == p.steps]
    scores = np.array(fk.tasks.verifier(which).details([(p.prompt, text) for p, text in found]))
    good = np.array([p.solved(text) for p, text in found])
    return {
        "answers": len(found),
        "succeed": share(good),
        "area_by_step": [round(auc(column, good), 3) for column in scores.T],
        "mean_score_by_step": [share(column) for column in scores.T],
        "calibration_error_by_step": [round(calibration_error(column, good), 3) for column in scores.T],
        "brier_by_step": [share((column - good) ** 2) for column in scores.T],
    }


MEASURES: dict[str, Callable[[list[tuple[Any, Any]]], dict[str, Any]]] = {
    "reasoner": measure_reasoner,
    "verifier": measure_verifier,
    "verifier_early": partial(measure_verifier, which="early"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=500)
    parser.add_argument("--answers", type=int, default=4, help="to each problem")
    parser.add_argument("--only", choices=list(MEASURES))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    told: dict[str, dict[str, Any]] = {name: {} for name in MEASURES if asked.only in (None, name)}
    for numbers in (4, 5):
        problems = fk.tasks.problems(asked.problems, seed=0, numbers=numbers)
        found = answers(fk.tasks.reasoner(), problems, asked.answers)
        for name, about in told.items():
            about[f"{numbers}_numbers"] = MEASURES[name](found)
    for name, about in told.items():
        path = WEIGHTS / f"countdown_{name}.json"
        record = {**json.loads(path.read_text(encoding="utf-8")), "measured": about}
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        print(name, json.dumps(about, indent=2), flush=True)


if __name__ == "__main__":
    main()
