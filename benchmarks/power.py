"""p^α by one pass of particles, or by a Markov chain: tokens to the same distance from it, and answers of Countdown.

    python benchmarks/power.py --short     # seconds
    python benchmarks/power.py             # five minutes on one core
    python benchmarks/power.py --plot docs/claims/power.png

The claim (Azizi et al. 2026, arXiv:2602.10273): `PowerSMC` reaches the sharpened law p^α, α = 4, with at least five
times fewer tokens than `PowerSampling` (Karan and Du 2025, arXiv:2510.14901).

The toy: 6 tokens of a vocabulary of 3, each drawn after the one before from a table (softmax of 1.25·N(0, 1), seed 0;
the first token likewise), so that p^4 is a table of 729 texts. Both engines draw from p, or from p at temperature 1/4
("cold"), with weights. What is measured is the law of one answer: of `PowerSMC` with n particles (one drawn by
weight) for n = 1, 2, 4, …, 64, and of a line of `PowerSampling` with blocks of 1, 2 or 6 tokens and 1, 2, 4, 8 or 16
moves after each. Its total variation from p^4 is estimated from 2000 answers, half of which say which texts are too
frequent, and the other half by how much, and the other way round; that errs by about ±.01, and downwards, the more
the larger it is. Tokens are those drawn for one answer. (Texts of 12 tokens were tried first, and left after three
settings of `PowerSMC`: 2000 answers do not show the distance of laws so spread.)

The rule of the verdict:

1. "toy": for each engine and a distance of .1, the fewest tokens over its settings and both proposals, on the lines
   through neighbouring n, or numbers of moves, in log tokens; where an engine never gets there, its largest number of
   tokens is a lower bound. Holds if `PowerSampling` takes five times the tokens of `PowerSMC`, or more, fails if fewer.
   The same for each proposal alone, and for .2 and .05, is told and not judged; so is CPU time.
2. "Countdown", on the cassette of held-out problems of four numbers, the first 100, at α = 4, where a step is a line,
   drawn from p: the share of right answers, one drawn by weight. `PowerSampling` as its paper has it, 10 moves after
   each line, against `PowerSMC` with the largest n that takes at most a fifth of its tokens. The exact share under p^4
   is known from the tape. Holds if the 95% interval over problems of the share of `PowerSMC` less that of
   `PowerSampling` is above 0 or holds 0; fails if it is below 0. 40 answers of each to a problem.
"""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common.records import Records, asked

import feynkac as fk

POWER, TOKENS, VOCABULARY = 4.0, 6, 3
CASSETTE = Path(__file__).parent / "cassettes" / "countdown_4.npz"
TARGETS = (0.2, 0.1, 0.05)


def table() -> tuple[np.ndarray, np.ndarray]:
    """Return log p of the first token (V,), and of a token after another (V, V)."""
    logits = 1.25 * np.random.default_rng(0).normal(size=(VOCABULARY + 1, VOCABULARY))
    logits -= np.logaddexp.reduce(logits, axis=1, keepdims=True)
    return logits[0], logits[1:]


def exact(tokens: int) -> np.ndarray:
    """Return p^α, normalised, of all texts in the order of their numbers to the base V."""
    first, after = table()
    log_p = first
    for _ in range(tokens - 1):
        last = np.arange(len(log_p)) % VOCABULARY
        log_p = (log_p[:, None] + after[last]).ravel()
    weights = np.exp(POWER * (log_p - log_p.max()))
    return weights / weights.sum()


@dataclass(frozen=True)
class Written:
    """n texts: their numbers, their last tokens, and how many tokens they have."""

    number: np.ndarray
    last: np.ndarray
    length: np.ndarray
    tokens: int

    @property
    def done(self) -> np.ndarray:
        return self.length == self.tokens

    def __len__(self) -> int:
        return len(self.number)


class Writer:
    """The toy as a model of arrays; ``cold`` draws each token at temperature 1/α. It counts what it draws."""

    def __init__(self, tokens: int, cold: bool) -> None:
        self.tokens = tokens
        first, after = table()
        self.p = np.vstack([after, first])  # the row V is that of the first token
        q = POWER * self.p if cold else self.p
        self.q = q - np.logaddexp.reduce(q, axis=1, keepdims=True)
        self.cumulative = np.cumsum(np.exp(self.q), axis=1)
        self.drawn = 0

    def start(self, keys: Any, given: Any = None) -> fk.Advance:
        n = len(keys)
        return self._step(Written(np.zeros(n, int), np.full(n, VOCABULARY), np.zeros(n, int), self.tokens), keys)

    def advance(self, state: Written, keys: Any, given: Any = None) -> fk.Advance:
        return self._step(state, keys)

    def _step(self, state: Written, keys: Any) -> fk.Advance:
        n = len(keys)
        self.drawn += n
        token = (fk.keys.uniform(keys)[:, None] > self.cumulative[state.last]).sum(1).clip(max=VOCABULARY - 1)
        after = Written(state.number * VOCABULARY + token, token, state.length + 1, self.tokens)
        log_p, log_q = self.p[state.last, token], self.q[state.last, token]
        choices = [(one,) for one in token.tolist()]
        return fk.Advance(after, choices, log_p, log_q, np.zeros(n), np.zeros(n), after.done, np.ones(n, bool))

    def select(self, state: Written, index: Any) -> Written:
        return Written(state.number[index], state.last[index], state.length[index], state.tokens)

    def concat(self, states: Any) -> Written:
        arrays = (np.concatenate([getattr(s, name) for s in states]) for name in ("number", "last", "length"))
        return Written(*arrays, states[0].tokens)

    def values(self, state: Written) -> list[int]:
        return state.number.tolist()


def distance(halves: list[np.ndarray], law: np.ndarray) -> float:
    """Estimate the total variation of a law from two estimates (V^T,) of it: one says where, the other how much."""
    found = []
    for where, mass in (halves, halves[::-1]):
        often = where > law
        found.append(mass[often].sum() - law[often].sum())
    return float(np.mean(found))


def settings(short: bool) -> list[tuple[str, bool, int, int]]:
    """Return engine, whether cold, block and size (particles, or moves)."""
    smc = [("PowerSMC", cold, 1, n) for cold in (False, True) for n in ((1, 8) if short else [2**k for k in range(7)])]
    blocks, moves = ((4,), (1, 2)) if short else ((1, 2, TOKENS), (1, 2, 4, 8, 16))
    mcmc = [("PowerSampling", *rest) for rest in itertools.product((False, True), blocks, moves)]
    return smc + mcmc


def toy(records: Records, tokens: int, answers: int, short: bool) -> None:
    """Measure the distance and the tokens of all settings."""
    law = exact(tokens)
    for name, cold, block, size in settings(short):
        row: dict[str, Any] = {"part": "toy", "engine": name, "cold": cold, "block": block, "size": size}
        if row in records:
            continue
        model, begun = Writer(tokens, cold), time.process_time()
        halves = [np.zeros(len(law)) for _ in range(2)]
        if name == "PowerSMC":
            engine: Any = fk.PowerSMC(size, power=POWER, ess_threshold=0.5)
            for i, posterior in enumerate(fk.infer([model] * answers, engine, seed=0)):
                np.add.at(halves[i % 2], list(posterior.values), posterior.probabilities)
        else:
            engine = fk.PowerSampling(answers, power=POWER, block=block, moves=size)
            values = np.array(fk.infer(model, engine, seed=0).values)
            for i in range(2):
                np.add.at(halves[i], values[i::2], 1.0)
        halves = [half / half.sum() for half in halves]
        seconds = (time.process_time() - begun) / answers
        records.add({**row, "distance": distance(halves, law), "tokens": model.drawn / answers, "seconds": seconds})


def fewest(rows: list[dict[str, Any]], target: float, what: str = "tokens") -> float:
    """Return the fewest tokens at which a curve of settings reaches a distance; −(the most tried) where none does."""
    rows = sorted(rows, key=lambda row: row["tokens"])
    for before, row in itertools.pairwise([None, *rows]):
        if row["distance"] <= target:
            if before is None:
                return float(row[what])
            share = (before["distance"] - target) / (before["distance"] - row["distance"])
            return math.exp((1 - share) * math.log(before[what]) + share * math.log(row[what]))
    return -float(rows[-1][what])


def best(records: Records, engine: str, target: float, cold: bool | None, what: str = "tokens") -> float:
    """Return the fewest tokens of an engine over its settings; negative: a lower bound, as none gets there."""
    rows = [r for r in records.rows if r["part"] == "toy" and r["engine"] == engine and cold in (None, r["cold"])]
    curves: dict[Any, list[dict[str, Any]]] = {}
    for row in rows:
        curves.setdefault((row["cold"], row["block"]), []).append(row)
    found = [fewest(curve, target, what) for curve in curves.values()]
    reached = [tokens for tokens in found if tokens > 0]
    return min(reached) if reached else min(found)


def sharpened(tape: fk.tasks.Tape) -> np.ndarray:
    """Return the share of right answers under p^α after each place, exactly."""
    mass, right = np.ones(len(tape.parent)), tape.solved.astype(float)
    for level in range(int(tape.level.max()), 0, -1):
        rows = np.flatnonzero(tape.level == level)
        parents, gain = tape.parent[rows], np.exp(POWER * tape.log_prob[rows])
        for value in (mass, right):
            value[np.unique(parents)] = 0.0
            np.add.at(value, parents, gain * value[rows])
    return right / mass


def countdown(records: Records, count: int, answers: int) -> None:
    """Measure the share of right answers, problem by problem, and the tokens of one answer."""
    problems, tape = fk.tasks.problems(count, seed=0, numbers=4), fk.tasks.Tape.load(CASSETTE)
    truth = sharpened(tape)[[tape.prompts.index(problem.prompt) for problem in problems]].tolist()
    runs: list[tuple[str, int]] = [("PowerSampling", 10), *(("PowerSMC", n) for n in (1, 2, 4, 6, 8, 12, 16))]
    for name, size in runs:
        row: dict[str, Any] = {"part": "countdown", "engine": name, "cold": False, "block": 1, "size": size}
        if row in records:
            continue
        right, tokens = [], []
        for problem in problems:
            model = fk.tasks.solve(tape, None, problem)
            if name == "PowerSMC":
                found = fk.infer([model] * answers, fk.PowerSMC(size, power=POWER), seed=0)
            else:
                found = [fk.infer(model, fk.PowerSampling(answers, power=POWER, moves=size), seed=0)]
            right.append(float(np.mean([posterior.expect(problem.solved) for posterior in found])))
            tokens.append(sum(posterior.cost.tokens_out for posterior in found) / answers)
        records.add({**row, "right": right, "tokens": float(np.mean(tokens)), "exact": truth})


def shown(records: Records) -> None:
    """Print the parts, each with what its verdict goes by."""
    print("1. toy: distance from p^4 of one answer, its tokens, CPU milliseconds")
    for row in (r for r in records.rows if r["part"] == "toy"):
        where = f"{row['engine']:13} {'cold' if row['cold'] else 'p':4} block {row['block']:2} size {row['size']:3}"
        print(f"   {where}: {row['distance']:.3f} {row['tokens']:8.1f} {1000 * row['seconds']:8.3f}")
    for target, (told, cold) in itertools.product(TARGETS, (("best", None), ("p", False), ("cold", True))):
        for what in ("tokens", "seconds"):
            one, other = (best(records, name, target, cold, what) for name in ("PowerSMC", "PowerSampling"))
            words = [f"{'' if x > 0 else 'more than '}{abs(x):.4g}" for x in (one, other)]
            ratio = f"{abs(other / one):.1f}×"
            print(f"   {told}, {what} to {target}: PowerSMC {words[0]}, PowerSampling {words[1]}: {ratio}")
    print("2. Countdown: share of right answers, tokens; exact share; PowerSMC less PowerSampling, 95% interval")
    rows = [r for r in records.rows if r["part"] == "countdown"]
    for row in rows:
        gap = np.array(row["right"]) - np.array(rows[0]["right"])
        error = 1.96 * gap.std(ddof=1) / math.sqrt(len(gap))
        told = f"{np.mean(row['right']):.3f} at {row['tokens']:6.1f} tokens, exact {np.mean(row['exact']):.3f}"
        print(f"   {row['engine']:13} {row['size']:2}: {told}; {gap.mean():+.3f} ± {error:.3f}")


def plot(records: Records, path: str) -> None:
    """Draw the distance against tokens: the lower edge of each engine's settings, by proposal."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6.4, 3.4), constrained_layout=True)
    for (name, colour), cold in itertools.product((("PowerSMC", "tab:blue"), ("PowerSampling", "tab:orange")), (0, 1)):
        rows = [r for r in records.rows if r["part"] == "toy" and r["engine"] == name and r["cold"] == bool(cold)]
        rows.sort(key=lambda row: row["tokens"])
        edge = np.minimum.accumulate([max(row["distance"], 1e-3) for row in rows])
        style = {"marker": "o" if cold else "s", "linestyle": "-" if cold else "--", "markersize": 4}
        label = f"{name}, {'cold' if cold else 'p'}"
        axis.plot([row["tokens"] for row in rows], edge, color=colour, label=label, **style)
    axis.set(xscale="log", yscale="log", xlabel="tokens drawn for one answer", ylabel="total variation from p⁴")
    axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark."""
    arguments, records = asked(__doc__, "power", ("part", "engine", "cold", "block", "size"), argv)
    toy(records, 4 if arguments.short else TOKENS, 40 if arguments.short else 2000, arguments.short)
    countdown(records, 2 if arguments.short else 100, 4 if arguments.short else 40)
    shown(records)
    if arguments.plot:
        plot(records, arguments.plot)


if __name__ == "__main__":
    main()
