"""Draw how reliable the process reward models of Countdown are, step by step, and print their table.

    python training/countdown_reliability.py

On answers of the reasoner to held-out problems: each verifier's score beside the share that succeeds, and how well it
tells one that will succeed from one that will not (the area under the ROC curve), beside what the solver knows (whether
the target is in reach) and the exact probability of success. Writes ``docs/claims/verifier.png``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from countdown_chances import chances
from countdown_measure import answers

import feynkac as fk
from feynkac.inference.scaling.measures import auc
from feynkac.models.tasks.shipped import tokenizer

PICTURE = Path(__file__).resolve().parent.parent / "docs" / "claims" / "verifier.png"
LOOKS = {"overconfident": ("tab:red", "o"), "early": ("tab:blue", "s")}


def judged(count: int, each: int, numbers: int) -> tuple[dict[str, Any], Any]:
    """Return, by judge, scores (n, steps) of answers that have all steps, and which of them succeed (n,)."""
    problems = fk.tasks.problems(count, seed=0, numbers=numbers)
    found = [(p, text) for p, text in answers(fk.tasks.reasoner(), problems, each) if len(text.steps) == p.steps]
    scores = {
        which: np.array(fk.tasks.verifier(which).details([(p.prompt, text) for p, text in found])) for which in LOOKS
    }
    prefixes = [[(p, "\n".join(text.steps[: step + 1])) for step in range(p.steps)] for p, text in found]
    scores["in reach"] = np.array([[float(p.solvable(text)) for p, text in row] for row in prefixes])
    rows = [tokenizer()(p.prompt + "\n".join(text.steps) + "\n").input_ids for p, text in found]
    marks = chances(fk.tasks.reasoner().model, rows)
    scores["chance"] = np.array([[chance for _, chance in row] for row in marks])
    return scores, np.array([p.solved(text) for p, text in found])


def reliability(scores: Any, good: Any, bins: int = 8) -> tuple[Any, Any]:
    """Return the mean score and the share of successes of as many equally large groups, by score."""
    groups = np.array_split(np.argsort(scores), bins)
    return np.array([scores[g].mean() for g in groups]), np.array([good[g].mean() for g in groups])


def draw(scores: dict[str, Any], good: Any, path: Path) -> None:
    """Draw the reliability of both verifiers after each step, and write the areas into the panels."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    steps = len(scores["early"][0])
    figure, panels = pyplot.subplots(1, steps, figsize=(3.1 * steps, 3.3), sharey=True, layout="constrained")
    for step, panel in enumerate(panels):
        panel.plot([0, 1], [0, 1], color="0.7", lw=1)
        for which, (colour, mark) in LOOKS.items():
            x, y = reliability(scores[which][:, step], good)
            panel.plot(x, y, color=colour, marker=mark, ms=4, lw=1.5)
        told = [f"{name}: {auc(scores[name][:, step], good):.2f}" for name in (*LOOKS, "in reach", "chance")]
        for line, (text, colour) in enumerate(zip(["AUC", *told], ["0.2", "tab:red", "tab:blue", "0.4", "0.4"])):
            panel.text(0.04, 0.95 - 0.075 * line, text, color=colour, transform=panel.transAxes, va="top", fontsize=9)
        panel.set(title=f"after step {step + 1}", xlabel="score", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    panels[0].set_ylabel("share that succeeds")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", type=int, default=500)
    parser.add_argument("--answers", type=int, default=4, help="to each problem")
    parser.add_argument("--into", type=Path, default=PICTURE)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    for numbers in (4, 5):
        scores, good = judged(asked.problems, asked.answers, numbers)
        if numbers == 4:
            draw(scores, good, asked.into)
        for name, column in scores.items():
            areas = [round(auc(step, good), 3) for step in column.T]
            print(numbers, name, "AUC", areas, "mean", column.mean(0).round(3).tolist(), "of", round(good.mean(), 3))


if __name__ == "__main__":
    main()
