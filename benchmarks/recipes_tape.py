"""What some published methods do on 200 problems of Countdown, by the cassette that ships: minutes, and no model.

    python benchmarks/recipes_tape.py                      # every row
    python benchmarks/recipes_tape.py archon relax         # some
    python benchmarks/recipes_tape.py --short              # a few problems: whether it runs

The reasoner, its verifier and the problems (four numbers, held out) are those of
``benchmarks/cassettes/countdown_4.npz`` (`fk.tasks.Tape`; lines below a probability of 0.003 are left out). Settings
are chosen on the first half of the problems, and all figures are of the second half, three seeds, unless a row says
otherwise. ± is one standard error over problems, each the mean of its seeds; differences are paired. What was decided
before the first run: a method *gains* where its difference from the rival at as many tokens is above 1.96 standard
errors, *loses* where it is below −1.96, and else shows no difference.

archon      `fk.programs.archon` of layers generate(n), then ``rounds`` times: keep the best ``keep`` by the verifier,
            and write ``again`` new answers from the first line of each; then keep one. 25 trials of `bayes` on the
            first half, and 25 at random, each of two seeds; score: share solved, less (tokens − 500)/500 where there
            are more than 500. The best of each search on the second half against best-of-N of at least as many
            tokens, which is archon without rounds.
bandit      `UCB` and `TsallisINF` over four engines, all 200 problems in 200 orders, three seeds; rival: the best
            engine.
settings    12 trials of `bayes` against 12 at random over n in 1 to 32 and the engine (best-of-n, SMC, a beam of n),
            by the share of the first half solved less 0.01 n, each of six seeds; the same score on the second half,
            the difference over seeds.
relax       `TsallisINF` over SMC(N), N = 1, 4, 16, 64: loss is the tokens until a problem is solved by fresh runs, at
            most 2,000, all 200 problems in 200 orders, three seeds; rival: the best fixed N in hindsight.
restart     `AdaptiveBestOfN(16)` until the verifier says 0.8 or 0.95, all 200 problems; rival: best-of-16.
backtrack   `fk.programs.backtrack` of 24 lines, width and ``accept`` chosen on the first half by the share solved;
            rival: `AdaptiveBestOfN(8)` that stops at the same score.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from common.tasks import TASKS, cassette

import feynkac as fk
from feynkac import tuning
from feynkac.models.programs.agents.layers import Draft, Layer, generate
from feynkac.ppl.cost import charge
from feynkac.ppl.keys import fold, uniform
from feynkac.ppl.memory import afresh
from feynkac.ppl.model import Draws
from feynkac.ppl.words import call, gather, sample

BUDGET = 500
"""Tokens a problem, of an architecture."""
CAP = 2000
"""Most tokens until a problem is solved."""


class Bench:
    """The tape, its problems, and how much is run."""

    def __init__(self, short: bool = False) -> None:
        self.tape = fk.tasks.Tape.load(cassette("countdown_4"))
        self.problems = TASKS["countdown_4"].problems(len(self.tape.prompts), "test")[: 12 if short else None]
        self.seeds, self.orders, self.trials = (1, 5, 5) if short else (3, 200, 25)
        half = len(self.problems) // 2
        self.used, self.others = self.problems[:half], self.problems[half:]
        self.prm = self.tape.verifier("old", clip=1e-9)

    def run(self, make: Callable[[Any], Any], engine: Any, problems: Sequence[Any], seed: int) -> np.ndarray:
        """Return whether each problem was solved, and by how many tokens, (problems, 2)."""
        with afresh():
            found = fk.infer([make(problem) for problem in problems], engine, seed=seed)
        return np.array([(p.solved(q.best("reward")), q.cost.tokens_out) for p, q in zip(problems, found)], float)

    def seen(self, make: Callable[[Any], Any], engine: Any, problems: Sequence[Any]) -> np.ndarray:
        """Return the means over seeds of `run`, (problems, 2)."""
        return np.mean([self.run(make, engine, problems, seed) for seed in range(1, self.seeds + 1)], axis=0)

    def solve(self, problem: Any, weigh: Any = "telescope") -> Any:
        return fk.tasks.solve(self.tape, self.prm, problem, weigh)


def mean(values: Any) -> str:
    """Return a mean and its standard error."""
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1) / np.sqrt(len(values)):.3f}"


def say(name: str, row: np.ndarray, than: np.ndarray | None = None) -> None:
    """Print how many problems a row solved, and the difference from another."""
    paired = "" if than is None else f", difference {mean(row[:, 0] - than[:, 0])}"
    print(f"  {name:58s} {mean(row[:, 0])} with {row[:, 1].mean():.0f} tokens{paired}", flush=True)


@dataclass(frozen=True)
class Whole:
    """A request for a whole answer: a kernel over places of a tape."""

    lm: Answers
    place: int
    expensive: ClassVar[bool] = True

    @property
    def batch_key(self) -> Any:
        return (Whole, id(self.lm))

    @property
    def fingerprint(self) -> Any:
        return self.place

    def sample_batch(self, requests: Sequence[Whole], keys: Any) -> Draws:
        tape = self.lm.tape
        places = np.array([request.place for request in requests])
        tokens, log_prob = np.zeros(len(places), np.int64), np.zeros(len(places))
        for depth in itertools.count():
            going = np.flatnonzero(tape.count[places] > 0)
            if not len(going):
                break
            places[going] = tape.drawn(places[going], uniform(fold(keys[going], depth), 1)[:, 0])
            tokens[going] += tape.tokens[places[going]]
            log_prob[going] += tape.log_prob[places[going]]
        charge(model_calls=int(tokens.max(initial=0)), tokens_out=tokens)
        return Draws([tape.text(place) for place in places.tolist()], log_prob)


class Answers:
    """Stands in for a language model that writes whole answers, for layers of Archon: strings that it knows again."""

    chats = False

    def __init__(self, tape: fk.tasks.Tape) -> None:
        self.tape = tape

    def prompt(self, question: str) -> Any:
        return self.tape.prompt(question)

    def complete(self, text: Any) -> Whole:
        return Whole(self, text.place)

    def find(self, question: str, answer: str, lines: int | None = None) -> Any:
        """Return the text of an answer to a question, or of its first lines."""
        tape, place = self.tape, self.prompt(question).place
        for line in answer.split("\n")[:lines] if answer else []:
            after = range(int(tape.first[place]), int(tape.first[place] + tape.count[place]))
            place = next(p for p in after if tape.lines[tape.line_of[p]].strip() == line.strip())
        return tape.text(place)


def keep(lm: Answers, prm: Any, best: int) -> Layer:
    """Return a layer that keeps the best candidates by a reward: a ranker that is no language model."""

    async def score(question: str, answer: str) -> float:
        return await call("score", prm, question, lm.find(question, answer)) if answer else 0.0

    async def layer(question: str, draft: Draft) -> Draft:
        scores = await gather(*(score(question, answer) for answer in draft.candidates), name="scores")
        order = sorted(range(len(scores)), key=lambda i: -scores[i])[:best]
        return Draft(tuple(draft.candidates[i] for i in order))

    return layer


def again(lm: Answers, samples: int) -> Layer:
    """Return a layer that adds answers which go on from the first line of each candidate."""

    async def layer(question: str, draft: Draft) -> Draft:
        begun = [lm.find(question, answer, 1) for answer in draft.candidates for _ in range(samples)]
        found = await gather(*(sample("again", lm.complete(text)) for text in begun), name="again")
        return Draft(tuple(dict.fromkeys([*draft.candidates, *map(str, found)])))

    return layer


def archon(bench: Bench) -> None:
    lm = Answers(bench.tape)
    space = {"n": (1, 32), "rounds": (0, 3), "keep": (1, 4), "again": (1, 8)}

    def built(at: dict[str, Any]) -> Callable[[Any], Any]:
        refine = [keep(lm, bench.prm, at["keep"]), again(lm, at["again"])] * at["rounds"]
        layers = [generate(lm, at["n"]), *refine, keep(lm, bench.prm, 1)]
        return lambda problem: fk.programs.archon(layers, problem.prompt)

    def score(at: dict[str, Any]) -> float:
        solved, tokens = bench.run(built(at), fk.ImportanceSampling(1), bench.used, 0).mean(0)
        return float(solved - max(tokens - BUDGET, 0) / BUDGET)

    plain = built({"n": 1, "rounds": 0, "keep": 1, "again": 1})
    each = bench.run(plain, fk.ImportanceSampling(1), bench.used, 0)[:, 1].mean()
    for name, starts in (("by bayes", 4), ("at random", bench.trials)):
        for seed in range(2):
            found = tuning.bayes(space, score, bench.trials, seed=seed, starts=starts, progress=False)
            row = bench.seen(built(found.best), fk.ImportanceSampling(1), bench.others)
            n = int(np.ceil(row[:, 1].mean() / each))
            rival = bench.seen(built(found.best | {"n": n, "rounds": 0}), fk.ImportanceSampling(1), bench.others)
            say(f"best of {n}", rival)
            say(f"{name} {found.best}, seen {found.score:.3f}", row, rival)


def played(bench: Bench, policy: Any, table: np.ndarray, reward: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what a bandit got of a table (problems, arms), by problem over orders, and its shares of the arms."""
    got, shares = np.zeros(len(table)), np.zeros(table.shape[1])
    for order in range(bench.orders):
        rng, pulls = np.random.default_rng(order), []
        for i in rng.permutation(len(table)).tolist():
            chances = policy.chances(pulls)
            arm = int(rng.choice(len(chances), p=chances))
            pulls.append(tuning.Pull(arm, float(chances[arm]), float(reward[i, arm])))
            got[i] += table[i, arm] / bench.orders
            shares[arm] += 1 / len(table) / bench.orders
    return got, shares


def compared(bench: Bench, names: Sequence[str], tables: list[Any], rewards: list[Any], sign: int) -> None:
    """Print each arm, and the bandits against the best arm; a table is (problems, arms) of a seed."""
    arms = np.mean(tables, axis=0)
    for name, column in zip(names, arms.T):
        print(f"  {name:12s} {mean(column)}")
    best = int(np.argmax(sign * arms.mean(0)))
    policies = {"uniform": None, "UCB": tuning.UCB(len(names)), "Tsallis-INF": tuning.TsallisINF(len(names))}
    for name, policy in policies.items():
        if policy is None:
            got, shares = arms.mean(1), np.full(len(names), 1 / len(names))
        else:
            runs = [played(bench, policy, *both) for both in zip(tables, rewards)]
            got, shares = np.mean([run[0] for run in runs], 0), np.mean([run[1] for run in runs], 0)
        print(f"  {name:12s} {mean(got)}, against {names[best]} {mean(got - arms[:, best])}, shares {shares.round(2)}")


def bandit(bench: Bench) -> None:
    engines = {"best of 8": fk.BestOfN(8), "SMC(8)": fk.SMC(8), "beam 4x2": fk.BeamSearch(4, 2), "one draw": fk.SMC(1)}
    tables = [
        np.stack([bench.run(bench.solve, engine, bench.problems, seed)[:, 0] for engine in engines.values()], axis=1)
        for seed in range(bench.seeds)
    ]
    compared(bench, list(engines), tables, tables, 1)


def settings(bench: Bench) -> None:
    engines = {"best": fk.BestOfN, "SMC": fk.SMC, "beam": fk.BeamSearch}
    space = {"n": (1, 32), "engine": list(engines)}

    def score(at: dict[str, Any], problems: Sequence[Any], seed: int) -> float:
        row = bench.run(bench.solve, engines[at["engine"]](at["n"]), problems, seed)
        return float(row[:, 0].mean() - 0.01 * at["n"])

    held: dict[str, list[float]] = {"bayes": [], "random": []}
    for name, starts in (("bayes", 4), ("random", 12)):
        for seed in range(2 * bench.seeds):
            found = tuning.bayes(
                space, lambda at: score(at, bench.used, 0), 12, seed=seed, starts=starts, progress=False
            )
            held[name].append(np.mean([score(found.best, bench.others, s) for s in range(1, bench.seeds + 1)]))
            print(f"  {name} {found.best}, seen {found.score:.3f}, held out {held[name][-1]:.3f}", flush=True)
        print(f"  {name} held out {mean(held[name])}")
    print(f"  difference {mean(np.subtract(held['bayes'], held['random']))}", flush=True)


def until_solved(bench: Bench, engine: Any, seed: int) -> np.ndarray:
    """Return the tokens of fresh runs until each problem is solved, at most `CAP`, (problems,)."""
    tokens, going = np.zeros(len(bench.problems)), np.arange(len(bench.problems))
    for attempt in itertools.count():
        row = bench.run(bench.solve, engine, [bench.problems[i] for i in going], int(1000 * (seed + 1) + attempt))
        tokens[going] += row[:, 1]
        going = going[(row[:, 0] == 0) & (tokens[going] < CAP)]
        if not len(going):
            return np.minimum(tokens, CAP)


def relax(bench: Bench) -> None:
    sizes = 1, 4, 16, 64
    tables = [np.stack([until_solved(bench, fk.SMC(n), seed) for n in sizes], axis=1) for seed in range(bench.seeds)]
    compared(bench, [f"SMC({n})" for n in sizes], tables, [1 - table / CAP for table in tables], -1)


def restart(bench: Bench) -> None:
    def final(problem: Any) -> Any:
        return bench.solve(problem, "final")

    rival = bench.seen(final, fk.BestOfN(16, all_dead="zero"), bench.problems)
    say("best of 16", rival)
    for threshold in (0.8, 0.95):
        engine = fk.AdaptiveBestOfN(16, threshold=threshold, all_dead="zero")
        say(f"until {threshold}", bench.seen(final, engine, bench.problems), rival)


def backtrack(bench: Bench) -> None:
    def grade(question: str, text: Any) -> Any:
        return bench.prm(question, text)

    def built(width: int | None, accept: float) -> Callable[[Any], Any]:
        return lambda problem: fk.programs.backtrack(bench.tape, grade, problem, lines=24, width=width, accept=accept)

    one = fk.ImportanceSampling(1)
    scores = {
        at: bench.run(built(*at), one, bench.used, 0)[:, 0].mean()
        for at in itertools.product((1, 2, 3, 4, 6, None), (0.8, 0.9, 0.95))
    }
    width, accept = max(scores, key=lambda at: scores[at])
    stops = fk.AdaptiveBestOfN(8, threshold=accept, all_dead="zero")
    rival = bench.seen(lambda problem: bench.solve(problem, "final"), stops, bench.others)
    say(f"best of 8, until {accept}", rival)
    row = bench.seen(built(width, accept), one, bench.others)
    say(f"backtracking, width {width}, accept {accept}, seen {scores[width, accept]:.3f}", row, rival)


ROWS = {row.__name__: row for row in (archon, bandit, settings, relax, restart, backtrack)}


def main(argv: Sequence[str] | None = None) -> None:
    """Print the rows that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", choices=[*ROWS, []], default=[])
    parser.add_argument("--short", action="store_true")
    given = parser.parse_args(argv)
    bench = Bench(given.short)
    for name in given.rows or ROWS:
        print(f"{name}:", flush=True)
        ROWS[name](bench)


if __name__ == "__main__":
    main()
