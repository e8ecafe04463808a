"""Does rejection repair what resampling costs? One drawn answer, a perfect verifier, and T steps.

    python benchmarks/rejection.py --short     # seconds
    python benchmarks/rejection.py             # 20 minutes on one core
    python benchmarks/rejection.py --plot docs/claims/rejection.png

The claim (Golowich et al. 2026, arXiv:2603.07887): even with the exact value as its guide, SMC needs about √T
particles for one answer to have nearly the target's law, and rejecting single steps repairs that. The chain: T fair
coins, a head worth 3/2 and a tail 1/2, so that the exact value after t coins is the product so far, and the target is
T coins with P(head) = 3/4. Each step is resampled on its advantage, 3/2 or 1/2. What is measured is the number of
heads of one answer drawn by weight: how far its mean is from the truth, in standard deviations of the target
("shift"), with its 99% interval over runs; and the children (draws of a coin) that a run took.

The rule of the verdict, for each part:

1. "√T": by the closed form (``distance``), the particles that SMC with multinomial resampling at each step needs for
   a total variation of .1 grow by a factor between 1.8 and 2.2 for each fourfold T, from T = 16 on.
2. "one answer": holds if at T = 16, 64 and 256 the interval of `RejectionSMC(1, ceiling=1.5)` holds 0, trusted or
   not, and at T = 64 and 256 that of `SMC` at as many children or more does not, for the scheme of the paper
   (multinomial, at each step) and for that of the library (systematic, ESS ≤ n/2).
3. "expectations": `RejectionSMC(4, ceiling=1.5)` has a smaller mean squared error of the posterior's mean number of
   heads than `SMC(12)`, which takes as many children, at T = 64: holds if the interval of the difference over runs is
   below 0, fails if it is above.
4. "a verifier that errs": the value is multiplied by e^ε after an odd number of heads and e^−ε after an even one; T =
   64, ε = 0, .05, .1, .2, .4. Rejection that trusts it holds up to the last ε at which |shift| is below that of `SMC`
   with as many children (both schemes), by the 99% interval of the difference of the two.
5. "Countdown", on the cassette of held-out problems of four numbers, the first 100: the answer of the largest score, of
   `RejectionSMC` (n = 1 to 8, ceiling 2, start .2, about the reasoner's share of successes) against `SMC` (n = 1 to
   64) and best-of-N (closed form from 128 answers), verifiers "success" (exact) and "old" (which ships), 1 seed.
   Others' accuracy at equal tokens is interpolated in log tokens, problem by problem. Holds at an n where the 95%
   interval of the difference over problems is above 0 against both, fails where it is below 0 against either.

There are 400 runs of a chain, and 100 at T = 256. Nothing was tuned: the ceiling of 1 to 4 is the largest advantage
there is.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common.records import Records, asked

import feynkac as fk
from feynkac.inference.base.selection import best_of

HEAD, TAIL, P = 1.5, 0.5, 0.75
CASSETTE = Path(__file__).parent / "cassettes" / "countdown_4.npz"
EXPECTATIONS = ("rejection of 4", "SMC(12)")
Z = 2.576


@dataclass(frozen=True)
class Coins:
    """n runs of a chain of coins: how many were thrown, and how many of them were heads."""

    thrown: np.ndarray
    heads: np.ndarray
    steps: int

    @property
    def depth(self) -> np.ndarray:
        return self.thrown - 1

    @property
    def done(self) -> np.ndarray:
        return self.thrown == self.steps

    def __len__(self) -> int:
        return len(self.heads)


@dataclass(frozen=True)
class Chain:
    """T coins, guided by their exact value times e^±ε; their last weight makes good for the guide."""

    steps: int
    error: float = 0.0

    def start(self, keys: Any, given: Any = None) -> Any:
        none = np.zeros(len(keys), int)
        return self.advance(Coins(none, none, self.steps), keys)

    def advance(self, state: Coins, keys: Any, given: Any = None) -> Any:
        n = len(state)
        head = fk.keys.uniform(keys) < 0.5
        after = Coins(state.thrown + 1, state.heads + head, self.steps)
        value = after.heads * math.log(HEAD) + (after.thrown - after.heads) * math.log(TAIL)
        guide = value + self.error * np.where(after.heads % 2, 1.0, -1.0)
        log_p = np.full(n, math.log(0.5))
        fk.ppl.cost.charge(nfe=np.ones(n, int))
        potential, twist = np.where(after.done, value, 0.0), np.where(after.done, 0.0, guide)
        return fk.Advance(after, [()] * n, log_p, log_p, potential, twist, after.done, np.ones(n, bool))

    def select(self, state: Coins, index: Any) -> Coins:
        return Coins(state.thrown[index], state.heads[index], self.steps)

    def concat(self, states: Any) -> Coins:
        thrown, heads = (np.concatenate([getattr(s, name) for s in states]) for name in ("thrown", "heads"))
        return Coins(thrown, heads, self.steps)

    def values(self, state: Coins) -> list[int]:
        return [int(h) for h in state.heads]


def drawn(n: int) -> float:
    """Return P(head) of a step of an answer drawn by SMC with n particles, multinomial resampling at each step."""
    others = np.arange(n)
    choose = np.array([math.lgamma(n) - math.lgamma(k + 1) - math.lgamma(n - k) for k in others])
    law = np.exp(choose - (n - 1) * math.log(2))
    return float(0.5 * HEAD * np.sum(law * n / (HEAD + HEAD * others + TAIL * (n - 1 - others))))


def distance(n: int, steps: int) -> float:
    """Return the total variation between the law of that answer and the target: both are coins, and heads suffice."""
    k = np.arange(steps + 1)
    choose = np.array([math.lgamma(steps + 1) - math.lgamma(i + 1) - math.lgamma(steps - i + 1) for i in k])
    laws = [np.exp(choose + k * math.log(p) + (steps - k) * math.log(1 - p)) for p in (drawn(n), P)]
    return float(0.5 * np.abs(laws[0] - laws[1]).sum())


def needed(steps: int, most: float = 0.1) -> int:
    """Return the fewest particles whose answer is within a total variation of ``most`` of the target."""
    low, high = 1, 2
    while distance(high, steps) > most:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if distance(middle, steps) > most else (low, middle)
    return high


def paper(n: int) -> Any:
    """SMC as the closed form has it."""
    return fk.SMC(n, ess_threshold=1.0, resampling="multinomial")


def contestants(error: float) -> dict[str, Any]:
    """Return the engines by name; those of SMC take at least as many children as the rejection of their line."""
    c = HEAD * math.exp(2 * error)
    n, twice = math.ceil(c), math.ceil(2 * c)
    return {
        "rejection, trusted": fk.RejectionSMC(1, ceiling=c, trust=True, start=math.exp(-error), trials=512),
        "rejection": fk.RejectionSMC(1, ceiling=c, start=math.exp(-error), trials=512),
        "SMC, as trusted": fk.SMC(n),
        "SMC, multinomial, as trusted": paper(n),
        "SMC": fk.SMC(twice),
        "SMC, multinomial": paper(twice),
        "rejection of 4": fk.RejectionSMC(4, ceiling=c, start=math.exp(-error)),
        "SMC(12)": fk.SMC(12),
    }


def coins(records: Records, runs: int, sizes: tuple[int, ...], errors: tuple[float, ...]) -> None:
    """Run parts 2 to 4: how far the mean number of heads of each run is from the truth, in standard deviations."""
    for steps, error in [(t, 0.0) for t in sizes] + [(sizes[-2], e) for e in errors]:
        for name, engine in contestants(error).items():
            row = {"part": "coins", "engine": name, "steps": steps, "error": error}
            spared = (name in EXPECTATIONS and steps > sizes[-2]) or (error > 0 and "trusted" not in name)
            if row in records or spared:
                continue
            found = fk.infer([Chain(steps, error)] * (runs // 4 if steps > 64 else runs), engine, seed=1)
            gaps = [(p.expect(float) - P * steps) / math.sqrt(steps * P * (1 - P)) for p in found]
            children = float(np.mean([p.cost.nfe for p in found])) / steps
            records.add(row | {"gaps": np.round(gaps, 4).tolist(), "children": children})
            print(f"T={steps}, ε={error}: {name}", flush=True)


def countdown(records: Records, count: int, seeds: int, most: int) -> None:
    """Run part 5: whether the answer of the largest score is right, and what it took, for each problem."""
    problems, tape = fk.tasks.problems(count, seed=0, numbers=4), fk.tasks.Tape.load(CASSETTE)
    for scores in ("success", "old"):
        prm = tape.verifier(scores, clip=1e-3)
        pool = fk.infer([fk.tasks.solve(tape, prm, p, "final") for p in problems], fk.ImportanceSampling(128), seed=0)
        right = [[p.solved(text) for text in found.values] for p, found in zip(problems, pool)]
        models = [fk.tasks.solve(tape, prm, p) for p in problems]
        for n in (n for n in (1, 2, 4, 8, 16, 32, 64, 128) if n <= most):
            row = {"part": "countdown", "steps": n, "error": scores}
            if row | {"engine": "best-of-N"} not in records:
                won = [best_of(found.log_weights, good, n) for found, good in zip(pool, right)]
                tokens = [found.cost.tokens_out / 128 * n for found in pool]
                records.add(row | {"engine": "best-of-N", "right": won, "tokens": tokens})
            rejection = fk.RejectionSMC(n, ceiling=2.0, start=0.2, all_dead="zero")
            for name, engine in (("SMC", fk.SMC(n, all_dead="zero")), ("rejection", rejection)):
                if row | {"engine": name} in records or (name == "rejection" and n > most // 8):
                    continue
                runs = [fk.infer(models, engine, seed=seed) for seed in range(seeds)]
                won = np.mean([[p.solved(q.best("reward")) for p, q in zip(problems, run)] for run in runs], 0)
                tokens = np.mean([[q.cost.tokens_out for q in run] for run in runs], 0)
                records.add(row | {"engine": name, "right": won.tolist(), "tokens": tokens.tolist()})
                print(f"Countdown, {scores}: {name}, {n}", flush=True)


def interval(values: Any, z: float = Z) -> tuple[float, float, float]:
    """Return the mean of independent values, and its interval."""
    values = np.asarray(values, float)
    error = z * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean()), float(values.mean() - error), float(values.mean() + error)


def shown(records: Records, short: bool) -> None:
    """Print the parts, each with what its verdict goes by."""
    sizes = (16, 64, 256) if short else (16, 64, 256, 1024, 4096)
    wanted = [needed(t) for t in sizes]
    print("1. particles for a total variation of .1:", dict(zip(sizes, wanted)))
    print("   growth:", [round(b / a, 2) for a, b in itertools.pairwise(wanted)])
    print("2-4. shift of one answer, 99% interval, mean squared error of the posterior's mean, children a step")
    for row in records.rows:
        if row["part"] == "coins":
            mean, low, high = interval(row["gaps"])
            square = np.mean(np.square(row["gaps"]))
            where = f"T={row['steps']:4} ε={row['error']:4} {row['engine']:30}"
            print(f"   {where} {mean:+.3f} [{low:+.3f}, {high:+.3f}]  {square:6.3f}  {row['children']:.2f}")
    for row in records.rows:
        if row["part"] == "coins" and row["engine"] == "rejection, trusted":
            for name in ("SMC, as trusted", "SMC, multinomial, as trusted"):
                mine, other = (interval(x["gaps"]) for x in (row, _of(records, name, row["steps"], row["error"])))
                gap, error = abs(mine[0]) - abs(other[0]), math.hypot(mine[2] - mine[0], other[2] - other[0])
                print(f"   T={row['steps']:4} ε={row['error']:4} |shift| less that of {name}: {gap:+.3f} ± {error:.3f}")
    for row in records.rows:
        if row["part"] == "coins" and row["engine"] == "rejection of 4":
            other = _of(records, "SMC(12)", row["steps"], row["error"])
            one, two = (np.square(x["gaps"]) for x in (row, other))
            mean, error = one.mean() - two.mean(), Z * math.hypot(one.std(), two.std()) / math.sqrt(len(one))
            where = f"T={row['steps']:4} ε={row['error']:4}"
            print(f"   {where} squared error less that of SMC(12): {mean:+.3f} ± {error:.3f}")
    print("5. Countdown: accuracy at tokens, and less that of others at equal tokens, 95% intervals")
    for row in records.rows:
        if row["part"] == "countdown" and row["engine"] == "rejection":
            right, tokens = np.mean(row["right"]), np.mean(row["tokens"])
            line = f"   {row['error']:8} n={row['steps']:2}: {right:.3f} at {tokens:.0f}"
            for name in ("SMC", "best-of-N"):
                mean, low, high = interval(np.array(row["right"]) - at_tokens(records, name, row), 1.96)
                line += f"; less {name} {mean:+.3f} [{low:+.3f}, {high:+.3f}]"
            print(line)


def _of(records: Records, engine: str, steps: int, error: Any) -> dict[str, Any]:
    return next(r for r in records.rows if (r["engine"], r["steps"], r["error"]) == (engine, steps, error))


def at_tokens(records: Records, name: str, row: dict[str, Any]) -> Any:
    """Return another engine's accuracy on each problem at the tokens, on average over problems, of a row."""
    others = [r for r in records.rows if r["engine"] == name and r.get("error") == row["error"]]
    others.sort(key=lambda r: r["steps"])
    spent = np.log([np.mean(r["tokens"]) for r in others])
    place = np.interp(math.log(np.mean(row["tokens"])), spent, np.arange(len(others)))
    low = min(int(place), len(others) - 2)
    one, two = (np.array(others[i]["right"]) for i in (low, low + 1))
    return one + (place - low) * (two - one)


def plot(records: Records, path: str) -> None:
    """Draw the shift of one answer against T, with an exact verifier."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6.4, 3.4), constrained_layout=True)
    names = {
        "SMC, multinomial": ("SMC(3), multinomial", "tab:orange"),
        "SMC": ("SMC(3)", "tab:red"),
        "rejection": ("RejectionSMC(1), 3 children a step", "tab:blue"),
    }
    for name, (told, colour) in names.items():
        rows = [r for r in records.rows if r["part"] == "coins" and r["engine"] == name and r["error"] == 0.0]
        found = [interval(row["gaps"]) for row in rows]
        x, y = [row["steps"] for row in rows], [mean for mean, _, _ in found]
        axis.errorbar(x, y, [high - mean for mean, _, high in found], color=colour, marker="o", markersize=4)
        shift = (0, -14) if name == "rejection" else (8, 0)
        ha = "right" if name == "rejection" else "left"
        axis.annotate(told, (x[-1], y[-1]), shift, textcoords="offset points", color=colour, va="center", ha=ha)
    axis.axhline(0, color="grey", linewidth=0.8)
    axis.set(xscale="log", xlim=(12, 1100), xlabel="steps T", ylabel="heads of one answer − truth (SD)")
    axis.set_xticks([16, 64, 256], ["16", "64", "256"])
    axis.minorticks_off()
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark."""
    arguments, records = asked(__doc__, "rejection", ("part", "engine", "steps", "error"), argv)
    if arguments.short:
        coins(records, 8, (8, 16), ())
        countdown(records, 2, 1, 8)
    else:
        coins(records, 400, (16, 64, 256), (0.05, 0.1, 0.2, 0.4))
        countdown(records, 100, 1, 64)
    shown(records, arguments.short)
    if arguments.plot:
        plot(records, arguments.plot)


if __name__ == "__main__":
    main()
