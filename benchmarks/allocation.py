"""Compute-optimal allocation: how many tokens a budget shared out over problems saves at equal accuracy, on Countdown.

    python benchmarks/allocation.py --short        # seconds: 8 problems of three numbers, on tapes made here
    python benchmarks/allocation.py                # 200 held-out problems of four numbers, 120 of five: an hour

Claim (Snell et al. 2024, arXiv:2408.03314): with test-time compute shared out by the difficulty of problems, as a
verifier's scores of a few answers tell it, 4 times less compute is needed than by best-of-N, for equal accuracy.

What is run. Four numbers: 200 problems, held out, and 200 for training, on tapes (`fk.tasks.Tape`) of the shipped
reasoner (lines of probability 0.01 or more) and verifier. Five numbers, whose tapes would be too wide: 120 and 120, on
256 answers to each, drawn from the reasoner itself and drawn from again with replacement. The first look is
``BestOfN(4)``; engines are ``BestOfN(4 … 256)``, and on tapes ``SMC(8 … 64)``, guided by the verifier. Budgets are
worth 6, 8, 12, 16, 24, 32, 64 and 128 answers to each problem; 3 seeds; the policy is learned from 3 runs of each
engine on each of the training problems, and from nothing else.

    uniform             best-of-N, the same N for all: exact, from the law of answers
    policy              `fk.allocate` with what was learned of BestOfN
    policy, SMC too     the same with what was learned of BestOfN and SMC; four numbers alone
    verifier            `fk.allocate` by the verifier alone
    stop at .9          the same N for all, but no more answers once one has a score of .9: exact
    oracle              the best N for each problem when its law is known (no look): exact
    oracle, stopping    the same, and it stops at the first right answer: exact, the bound of all that draw answers

Rule of the verdict, for each way of the list: at the accuracy of uniform best-of-8, -32 and -128, the factor is the
tokens of uniform over those of the way (accuracy interpolated in log tokens between budgets; 0 where the largest budget
does not reach it), with the 95% interval of a paired bootstrap over held-out problems (2,000 draws, budgets as they
were spent). The claim **holds** for a way where the interval is at or above 4 at all three, **holds from** N where it
is at N and beyond, **fails** where it is below 4 at all three, and else is **undecided**. The verdict on the claim as
it was made is that on "policy" (four numbers), and five numbers are told beside it.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from common.records import Records

import feynkac as fk
from feynkac import scaling

SIZES = (4, 8, 16, 32, 64, 128, 256)
FILTERS = (8, 16, 32, 64)
BUDGETS = (6, 8, 12, 16, 24, 32, 64, 128)
LEVELS = (8, 32, 128)
FINE = tuple(sorted({math.ceil(2 ** (i / 4)) for i in range(41)}))
"""N of the exact curves, up to 1024."""
CUTOFF, POOL, ENOUGH, CLIP = 0.01, 256, 0.9, 1e-6
BLOCK = 20
DRAWS = 2000
WAYS = ("policy", "policy, SMC too", "verifier")
Floats = np.ndarray


@dataclass(frozen=True)
class Answers:
    """The law of the answers to one problem: probabilities (n,), the verifier's scores, right or wrong, tokens."""

    mass: Floats
    score: Floats
    right: Floats
    tokens: Floats

    @property
    def cost(self) -> float:
        """Tokens of an answer, on average."""
        return float(self.mass @ self.tokens)

    @cached_property
    def groups(self) -> tuple[Floats, Floats, Floats]:
        """Scores from the lowest up, the probability of each, and how often an answer of it is right."""
        scores, which = np.unique(self.score, return_inverse=True)
        mass = np.bincount(which, self.mass)
        return scores, mass, np.bincount(which, self.mass * self.right) / mass

    def best_of(self, n: int) -> float:
        """Return how often the best-scored of n answers is right."""
        _, mass, right = self.groups
        below = np.concatenate([[0.0], np.minimum(np.cumsum(mass), 1.0)])
        return float(np.diff(below**n) @ right)

    def stopping(self, n: int) -> tuple[float, float]:
        """Return the same where no more are drawn once a score is `ENOUGH`, and how many are drawn."""
        scores, mass, right = self.groups
        good = scores >= ENOUGH
        a = float(mass[good].sum())
        if not a:
            return self.best_of(n), float(n)
        below = np.concatenate([[0.0], np.minimum(np.cumsum(mass), 1.0)]) ** n
        missed = float(np.diff(below)[~good] @ right[~good])
        found = 1.0 - (1.0 - a) ** n
        return missed + found * float(mass[good] @ right[good]) / a, found / a

    @property
    def p(self) -> float:
        """The probability that an answer is right."""
        return float(self.mass @ self.right)


@fk.program
async def from_pool(answers: Answers, row: int) -> Any:
    """Draw one of the answers that were drawn before. Returns the number of the problem, and whether it is right."""
    i = await fk.sample("answer", fk.dist.DiscreteUniform(0, len(answers.mass) - 1))
    await fk.call("pay", lambda: fk.charge(tokens_out=int(answers.tokens[i])))
    await fk.factor("verifier", math.log(answers.score[i]))
    return row, bool(answers.right[i])


@dataclass(frozen=True)
class Task:
    """Problems, as models; the law of their answers; and which value of which problem is right."""

    models: list[Any]
    laws: list[Answers]
    right: Callable[[Any, int], bool]


def taped(numbers: int, count: int, split: str, folder: Path) -> Task:
    """Return problems on tapes, which are made where they are not yet there."""
    problems = fk.tasks.problems(count, seed=0, numbers=numbers, split=split)
    models, laws = [], []
    for begin in range(0, count, BLOCK):
        path = folder / f"tape_{numbers}_{split}_{begin}.npz"
        some = problems[begin : begin + BLOCK]
        if not path.exists():
            lm, prm = fk.tasks.reasoner(max_batch=512), fk.tasks.verifier()
            made = fk.tasks.Tape.record(lm, some, name=f"{numbers} {split} {begin}", cutoff=CUTOFF)
            made.scored(shipped=prm).save(path)
        tape = fk.tasks.Tape.load(path)
        verifier = tape.verifier("shipped", clip=CLIP)
        models += [fk.tasks.solve(tape, verifier, problem) for problem in some]
        laws += answers_of(tape, len(some))
    return Task(models, laws, lambda text, i: problems[i].solved(text))


def answers_of(tape: Any, count: int) -> list[Answers]:
    """Return the law of whole answers to the first problems of a tape."""
    n = len(tape.parent)
    mass, tokens, root = np.ones(n), np.zeros(n), np.arange(n)
    for i in range(len(tape.prompts), n):  # parents come first
        up = tape.parent[i]
        mass[i], tokens[i], root[i] = mass[up] * math.exp(tape.log_prob[i]), tokens[up] + tape.tokens[i], root[up]
    ends = tape.count == 0
    score = np.clip(tape.scores["shipped"], CLIP, 1 - CLIP)
    rows = [np.flatnonzero(ends & (root == problem)) for problem in range(count)]
    return [Answers(mass[some], score[some], tape.solved[some].astype(float), tokens[some]) for some in rows]


def pooled(numbers: int, count: int, split: str, folder: Path) -> Task:
    """Return problems as pools of answers, which are drawn where they are not yet there."""
    problems = fk.tasks.problems(count, seed=0, numbers=numbers, split=split)
    laws = []
    for begin in range(0, count, BLOCK):
        path = folder / f"pool_{numbers}_{split}_{begin}.npz"
        if not path.exists():
            lm, prm = fk.tasks.reasoner(max_batch=256), fk.tasks.verifier()
            some = problems[begin : begin + BLOCK]
            models = [fk.tasks.solve(lm, prm, problem, "final") for problem in some]
            found = fk.infer(models, fk.ImportanceSampling(POOL, all_dead="zero"), seed=begin)
            right = [[problem.solved(value) for value in p.values] for problem, p in zip(some, found)]
            tokens = [[len(value.tokens) for value in p.values] for p in found]
            np.savez_compressed(path, score=[np.exp(p.log_weights) for p in found], right=right, tokens=tokens)
        with np.load(path) as file:
            for score, right, tokens in zip(file["score"], file["right"], file["tokens"]):
                clipped = np.clip(score, CLIP, 1 - CLIP)
                laws.append(Answers(np.full(len(score), 1 / len(score)), clipped, right.astype(float), tokens))
    return Task([from_pool(law, i) for i, law in enumerate(laws)], laws, lambda value, i: value[1])


def engines(way: str) -> list[Any]:
    """Return the options of a way to share out."""
    filters = [fk.SMC(n, ess_threshold=1.0, all_dead="zero") for n in FILTERS] if "SMC" in way else []
    return [fk.BestOfN(n) for n in SIZES] + filters


def learned(way: str, task: Task, runs: int) -> scaling.ComputeOptimal:
    """Return the policy that training problems teach."""
    rows = [
        row
        for seed in range(runs)
        for row in scaling.records(task.models, engines(way), task.right, first_look=fk.BestOfN(4), seed=1000 + seed)
    ]
    return scaling.ComputeOptimal.fit(rows)


def spent(task: Task, way: str, policy: scaling.ComputeOptimal | None, answers: int, seed: int) -> dict[str, list[Any]]:
    """Share out a budget worth so many answers to each problem. Returns which were solved, and their tokens."""
    budget = fk.Budget(tokens=math.floor(answers * sum(law.cost for law in task.laws)))
    posteriors, plan = fk.allocate(
        task.models, engines(way), budget, policy=policy, first_look=fk.BestOfN(4), seed=seed
    )
    solved = [int(task.right(posterior.best(), i)) for i, posterior in enumerate(posteriors)]
    sizes = [share.size if share.engine == "BestOfN" else -share.size for share in plan.shares]
    return {"solved": solved, "tokens": [share.cost for share in plan.shares], "sizes": sizes}


def run(numbers: int, arguments: argparse.Namespace) -> tuple[Task, Records]:
    """Make what is not yet in the file."""
    folder = Path(arguments.folder)
    folder.mkdir(parents=True, exist_ok=True)
    make = pooled if numbers == 5 else taped
    held_out, training = (make(numbers, arguments.count(numbers), split, folder) for split in ("test", "train"))
    name = f"spent_{numbers}_{arguments.count(numbers)}.jsonl"
    records = Records(folder / name, ("way", "answers", "seed"))
    for way in (WAYS[0], WAYS[2]) if numbers == 5 else WAYS:
        rows = [(n, seed) for n in BUDGETS for seed in range(arguments.seeds)]
        todo = [(n, s) for n, s in rows if {"way": way, "answers": n, "seed": s} not in records]
        policy = learned(way, training, arguments.seeds) if todo and way != "verifier" else None
        for n, seed in todo:
            made = spent(held_out, way, policy, n, seed)
            records.add({"way": way, "answers": n, "seed": seed} | made)
        print(f"{numbers} numbers: {way}", flush=True)
    return held_out, records


Curve = tuple[Floats, Floats]
"""Tokens and accuracy (budgets, problems)."""


def exact(task: Task) -> dict[str, Curve]:
    """Return the curves that need no run."""
    cost = np.array([law.cost for law in task.laws])
    best = np.array([[law.best_of(n) for law in task.laws] for n in FINE])
    stops = np.array([[law.stopping(n) for law in task.laws] for n in FINE])
    p = np.array([law.p for law in task.laws])
    tries = np.array(FINE)[:, None]
    found = 1.0 - (1.0 - p) ** tries
    drawn = np.where(p > 0, found / np.where(p > 0, p, 1.0), tries)
    uniform = cost * tries
    return {
        "uniform": (uniform, best),
        "stop at .9": (stops[:, :, 1] * cost, stops[:, :, 0]),
        "oracle": shared(best, uniform, cost.sum()),
        "oracle, stopping": shared(found, drawn * cost, cost.sum()),
    }


def shared(worth: Floats, price: Floats, one: float) -> Curve:
    """Return the best shares of budgets, of curves (sizes, problems) that are known; ``one`` is an answer for each."""
    none = np.zeros((1, worth.shape[1]))
    worth, price = np.concatenate([none, worth]), np.concatenate([none, price])
    rows = np.arange(worth.shape[1])
    chosen = [scaling.spend(worth.T, price.T, one * n) for n in (0.25, 0.5, 1, 1.5, 2, 3, 4, *BUDGETS)]
    return np.array([price[c, rows] for c in chosen]), np.array([worth[c, rows] for c in chosen])


def measured(rows: Sequence[dict[str, Any]]) -> dict[str, Curve]:
    """Return the curves of what was run, each problem's mean over seeds."""
    out = {}
    for way in dict.fromkeys(row["way"] for row in rows):
        found = [
            [np.mean([row[key] for row in rows if (row["way"], row["answers"]) == (way, n)], 0) for n in BUDGETS]
            for key in ("tokens", "solved")
        ]
        out[way] = (np.array(found[0]), np.array(found[1]))
    return out


def needed(curve: Curve, accuracy: float, some: Any) -> float:
    """Return the tokens of a problem at which a curve's mean over some problems reaches an accuracy, or infinity."""
    tokens, solved = (part[:, some].mean(1) for part in curve)
    best = np.maximum.accumulate(solved)
    if best[-1] < accuracy:
        return math.inf
    i = int(np.argmax(best >= accuracy))
    if i == 0:
        return float(tokens[0])
    share = (accuracy - best[i - 1]) / (best[i] - best[i - 1])
    return float(np.exp(np.log(tokens[i - 1]) + share * np.log(tokens[i] / tokens[i - 1])))


def factors(curves: dict[str, Curve], draws: int = DRAWS) -> dict[str, list[tuple[float, float, float]]]:
    """Return by way, at each of `LEVELS`, by what factor it needs fewer tokens than uniform, with its interval."""
    problems = curves["uniform"][0].shape[1]
    rng = np.random.default_rng(0)
    samples = [np.arange(problems), *rng.integers(problems, size=(draws, problems))]
    out: dict[str, list[tuple[float, float, float]]] = {}
    for way in (name for name in curves if name != "uniform"):
        for level in LEVELS:
            at = FINE.index(level)
            found = [
                curves["uniform"][0][at, some].mean() / needed(curves[way], curves["uniform"][1][at, some].mean(), some)
                for some in samples
            ]
            low, high = np.quantile(found[1:], [0.025, 0.975])
            out.setdefault(way, []).append((float(found[0]), float(low), float(high)))
    return out


def verdict(found: Sequence[tuple[float, float, float]]) -> str:
    """Return what the rule says."""
    holds = [low >= 4 for _, low, _ in found]
    if all(high < 4 for _, _, high in found):
        return "fails"
    since = next((i for i in range(len(holds)) if all(holds[i:])), None)
    return "undecided" if since is None else "holds" if since == 0 else f"holds from {LEVELS[since]}"


def told(curves: dict[str, Curve], numbers: int) -> None:
    """Print the table of the page."""
    names = ", ".join(f"best-of-{n}: {curves['uniform'][1][FINE.index(n)].mean():.3f}" for n in LEVELS)
    print(f"{numbers} numbers, {curves['uniform'][0].shape[1]} problems; uniform {names}")
    for way, found in factors(curves).items():
        cells = "  ".join(f"{mean:5.2f} [{low:.2f}, {high:.2f}]" for mean, low, high in found)
        print(f"{way:18} {cells}  {verdict(found)}")


def draw(by_numbers: dict[int, dict[str, Curve]], path: Path) -> None:
    """Draw accuracy against tokens, a panel for each number of numbers, with the ways named at their lines."""
    from matplotlib.figure import Figure

    styles = {
        "uniform": ("black", "-"), "policy": ("#0072b2", "-"), "policy, SMC too": ("#56b4e9", "-"),
        "verifier": ("#d55e00", "-"), "stop at .9": ("#009e73", "-"), "oracle": ("0.5", "--"),
        "oracle, stopping": ("0.5", ":"),
    }  # fmt: skip
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    for axes, (numbers, curves) in zip(np.ravel(figure.subplots(1, len(by_numbers))), by_numbers.items()):
        ends = []
        cost = curves["uniform"][0][0].mean()
        for way, (tokens, solved) in curves.items():
            x, y = tokens.mean(1), solved.mean(1)
            keep = (x >= cost * 0.9) & (x <= cost * 140)
            axes.plot(x[keep], y[keep], styles[way][1], color=styles[way][0], lw=1.6)
            ends.append((float(y[keep][-1]), float(x[keep][-1]), way))
        last, gap = -math.inf, 0.035 * (axes.get_ylim()[1] - axes.get_ylim()[0]) * 1.4
        for y, x, way in sorted(ends):
            last = max(y, last + gap)
            axes.annotate(way, (x, y), (cost * 165, last), color=styles[way][0], va="center", fontsize=8,
                          arrowprops={"arrowstyle": "-", "color": styles[way][0], "lw": 0.5})  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlim(cost * 0.9, cost * 900)
        axes.set_title(f"{numbers} numbers", fontsize=10)
        axes.set_xlabel("tokens sampled for a problem")
        axes.grid(alpha=0.25)
    figure.axes[0].set_ylabel("share of problems solved")
    figure.savefig(path, dpi=110)


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="8 problems of three numbers, 1 seed")
    parser.add_argument("--numbers", type=int, nargs="+", choices=(3, 4, 5), default=None)
    parser.add_argument("--seeds", type=int, default=None)
    parser.add_argument("--problems", type=int, default=None)
    parser.add_argument("--folder", default="out/benchmarks/allocation")
    parser.add_argument("--picture", type=Path, default=None)
    arguments = parser.parse_args(given)
    arguments.seeds = arguments.seeds or (1 if arguments.short else 3)
    usual = {3: 8, 4: 20, 5: 20} if arguments.short else {3: 200, 4: 200, 5: 120}
    arguments.count = lambda numbers: arguments.problems or usual[numbers]
    by_numbers = {}
    for numbers in arguments.numbers or ([3] if arguments.short else [4, 5]):
        task, records = run(numbers, arguments)
        by_numbers[numbers] = exact(task) | measured(records.rows)
        told(by_numbers[numbers], numbers)
    draw(by_numbers, arguments.picture or Path(arguments.folder) / "allocation.png")


if __name__ == "__main__":
    main()
