"""Does it pay? Particle filtering, A*, looking ahead and learned twists, put to a fair test on problems with steps.

    python benchmarks/reasoning.py --cassette benchmarks/cassettes/countdown_4.npz    # the headlines: a minute
    python benchmarks/reasoning.py                           # 200 problems, 5 seeds, 2 to 128 particles: an hour
    python benchmarks/reasoning.py --task countdown_5 --verifier value
    python benchmarks/reasoning.py --model --engines "particle filter" --sizes 8 32 --seeds 1  # the models themselves
    python benchmarks/reasoning.py --record                  # make the cassette anew: the models, half an hour

**Tasks**: 200 held-out problems each (seed 0) of Countdown (`fk.tasks.problems`) with four numbers, then five, and of
Sudoku of 4 by 4 (`fk.tasks.sudokus`) with six clues, then five; 5 seeds of each engine at N = 2, 4, … 128. Engines run
on a tape (`fk.tasks.Tape`: the law of the reasoner's lines, but for lines of a probability below a cutoff), so that
best-of-N is exact and nobody needs the models; ``--model`` runs the models themselves on some cells, and both are
compared, paired by problem.

**Verifiers**: "old" and, where a cassette has it, "early", which are trained models (the old one tells little after a
first step); "value", the exact probability that the reasoner succeeds from here, kept within 0.001 and 0.999; "reach",
0.99 where the target is still in reach (the grid can still be filled), else 0.01; "overconfident", the old one with its
log-odds times 4. Sudoku has no trained one: it is the task whose verifier, "reach", is exact and cheap after each step,
and "reach" decides.

**Nothing is chosen after seeing its result.** Settings are the engines' own, beams have 4 children a node; A*'s width
(N children) was chosen on problems of another seed; twists are learned on 40 problems of the split "train". All
intervals are 95%, over problems (each is a cluster with the mean of its seeds), and differences are paired by problem.

**Claims, and the rule of each verdict**, written before the first full run, for each verifier; the trained ones decide:

1.  Particle filtering scales 4 to 16 times better than search (Puri et al. 2025, arXiv:2502.01618). At N it *stands*
    where the particle filter with N particles solves no fewer problems than the rival at 4N (the lower end of the
    difference is above −0.02) and more than the rival at N (the lower end is above 0: else more samples were just
    of no use to anybody). It "holds" if it stands at N = 2, 4, 8, 16 and 32, "holds from N" if at N and all above, and
    else "fails". Rivals: best-of-N, and beam search.
2.  A*-decoding needs a third of the tokens and 30% fewer calls of the verifier (arXiv:2505.13672). For the accuracy
    that the particle filter has at N, the costs of both are read off their curves (a line in the log of the cost, the
    first crossing); the interval of the ratio is a bootstrap over problems. It stands at N where the ratio of tokens
    is at most 1/3, that of calls at most 0.7, and the upper ends of both are below 1; N = 4, 8, 16, 32, words as above.
3.  Looking ahead, or a learned twist, betters filters (Giannone et al. 2025, arXiv:2510.05825, for look-ahead; Snell
    et al. 2024, arXiv:2408.03314, for beams; Zhao et al. 2024, arXiv:2404.17546, for twists). The accuracy at N = 4, 8,
    16, 32 less that of the plain engine at as many tokens (read off its curve as above): it "holds" if the mean over
    these N has its lower end above 0, "holds from N" if each does from N on, and else "fails". Pairs: look-ahead SMC
    and SMC, entropic filters, beams, and the telescoping filter whose guide is the verifier as it is, or a learned
    twist.

Results are kept in a file, line by line: a run that was stopped goes on, and one with more engines, seeds or sizes adds
to it. Beside it stand the table (`…_table.json`), the verdicts (`….txt`) and the picture (`….png`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from common.cells import cells, gathered
from common.contestants import ALL, CONTESTANTS, FAMILIES, HEADLINES, TWIST, YARDSTICK, learned, trial
from common.leaves import pooled
from common.multiples import by_family, multiples
from common.records import Records
from common.tasks import TASKS, VERIFIERS, cassette, with_exact
from common.verdicts import report

import feynkac as fk

LEARNERS = 40
"""Problems of the split "train" that twists are learned on."""


def record(task: str, count: int) -> None:
    """Make a task's cassette anew, and learn its twists on a tape of problems that are not held out."""
    made = TASKS[task]
    problems, others = made.problems(count, "test"), made.problems(LEARNERS, "train")
    path = cassette(task)
    path.parent.mkdir(exist_ok=True)
    made.record(task, problems).save(path)
    tape = with_exact(made.record(f"{task}_train", others), others)
    names = [name for name in VERIFIERS if name in tape.scores]
    twists = {name: np.round(learned(tape, tape.verifier(name), others).weights, 6).tolist() for name in names}
    path.with_suffix(".json").write_text(json.dumps(twists, indent=1) + "\n", encoding="utf-8")


def grid(options: argparse.Namespace, path: Path, problems: list[Any], lm: Any, prm: Any, twist: Any) -> Records:
    """Run what is not yet in the file."""
    records = Records(path, ("engine", "particles", "seed", "block"))
    for seed in range(options.seeds):
        for name in options.engines:
            contestant = CONTESTANTS[name]
            if contestant.weigh == TWIST and twist is None:
                continue
            for n in (n for n in contestant.sizes if n in options.sizes):
                for begin in range(0, len(problems), options.block):
                    row = {"engine": name, "particles": n, "seed": seed, "block": begin}
                    if row not in records:
                        some = problems[begin : begin + options.block]
                        records.add(row | trial(contestant, n, some, 1000 * seed + begin, lm, prm, twist))
        print(f"{path.stem}: seed {seed} done", flush=True)
    return records


def settle(options: argparse.Namespace, verifier: str, tape: Any, problems: list[Any], twist: Any) -> None:
    """Run the grid with a verifier, and write table, verdicts and picture."""
    few = "" if len(problems) == len(tape.prompts) else f"_{len(problems)}"
    name = f"reasoning_{options.task}_{verifier}{few}{'_model' if options.model else ''}"
    path = Path(options.folder) / f"{name}.jsonl"
    lm, prm = tape, tape.verifier(verifier)
    if options.model:
        lm, prm = TASKS[options.task].reasoner(), TASKS[options.task].verifiers[verifier]()
    made = cells(grid(options, path, problems, lm, prm, twist).rows)
    if not options.model:
        said, votes = TASKS[options.task].said, options.cassette is None
        made += pooled(tape, len(problems), verifier, said, options.sizes, votes)
    found = gathered(made)
    table = [cell.summary() for engine in found.values() for cell in engine]
    path.with_name(f"{name}_table.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    print(f"\n{options.task}, verifier {verifier!r}, {len(problems)} problems")
    print(f"{'engine':25} {'N':>4} {'solved':>7} {'95% interval':>15} {'tokens':>8} {'calls':>7}")
    for row in table:
        interval = f"{row['low']:.3f}–{row['high']:.3f}"
        print(
            f"{row['engine']:25} {row['particles']:4} {row['accuracy']:7.3f} {interval:>15} "
            f"{row['tokens']:8.0f} {row['reward_calls']:7.1f}"
        )
    if not options.model:
        verdicts = report(found)
        path.with_suffix(".txt").write_text(verdicts + "\n", encoding="utf-8")
        print(f"\n{verdicts}", flush=True)
        title = f"{TASKS[options.task].title}, verifier: {verifier}. Grey: {YARDSTICK}. Bands: 95%"
        multiples(by_family(table, FAMILIES), YARDSTICK, title, path.with_suffix(".png"))


def parsed(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=list(TASKS), default="countdown_4")
    parser.add_argument("--verifier", nargs="+", choices=VERIFIERS, help="all that the cassette has")
    parser.add_argument("--cassette", type=Path, help="replay the headlines from a cassette: one seed")
    parser.add_argument("--record", action="store_true", help="make the cassette anew, and learn twists")
    parser.add_argument("--model", action="store_true", help="run the models themselves in place of the tape")
    parser.add_argument("--short", action="store_true", help="20 problems, 1 seed, up to 16 particles")
    parser.add_argument("--problems", type=int)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--sizes", type=int, nargs="+", choices=ALL)
    parser.add_argument("--engines", nargs="+", choices=list(CONTESTANTS))
    parser.add_argument("--block", type=int, default=50, help="problems that share batches")
    parser.add_argument("--folder", default="out/benchmarks")
    options = parser.parse_args(given)
    few = options.short or options.cassette is not None
    options.seeds = options.seeds or (1 if few else 5)
    options.sizes = tuple(options.sizes or (n for n in ALL if n <= 16 or not options.short))
    options.engines = options.engines or (list(HEADLINES) if few else list(CONTESTANTS))
    return options


def main(given: list[str] | None = None) -> None:
    options = parsed(given)
    if options.record:
        record(options.task, options.problems or 200)
        return
    path = options.cassette or cassette(options.task)
    tape = fk.tasks.Tape.load(path)
    count = options.problems or (20 if options.short else len(tape.prompts))
    problems = TASKS[options.task].problems(count, "test")
    tape = with_exact(tape, problems)
    beside = path.with_suffix(".json")
    twists = json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else {}
    for verifier in options.verifier or [name for name in VERIFIERS if name in tape.scores]:
        twist = fk.LinearTwist(tuple(twists[verifier])) if verifier in twists else None
        settle(options, verifier, tape, problems, twist)


if __name__ == "__main__":
    main()
