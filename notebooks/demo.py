"""Constrained writing with a small language model, of three kinds: best-of-N, beam search and SMC at equal cost.

    make demo
    python notebooks/demo.py --turns 4 --resume --out out/more     # four times as many; goes on where it was stopped

SmolLM2-135M (T = 0.7) is to write, with words drawn from a list,

- "words": a sentence that holds six words. Whether a beginning is good shows slowly, word by word;
- "letter": a sentence that holds a word, and nowhere a letter. A beginning that breaks this is known at once;
- "endings": two lines of verse that end with two words, in this order. That is known line by line.

What counts is a check, which is exact (`passes`). The programs weigh by nothing else: a text that cannot pass any more
has weight zero, so that their target is the model's own law given that the text passes, and a twist (it steers
resampling, not the target) counts the words of a sentence so far. A step is two tokens of a sentence, or a line.

These rules were written down before the first run on the problems, and all three families are shown, whoever wins:

- Problems: 12 of each family in a turn. Words come from one half of NOUNS by a generator whose seed is the turn, the
  letter from the eight most frequent ones. For tuning (``--tuning``) the words are those of the other half.
- Sizes: the least (from 3 words, 1 word, 2 lines) at which fewer than 1 in 10 single samples pass on the tuning
  problems. No engine was looked at for that. They were 12% of 96 at five words, 6% at six; 3%; 1%.
- Cost: sampled tokens. SMC has 16 particles; the sizes of the others are such that they sample as many on the tuning
  problems. Where it is not so in the end, to a tenth, the table says so.
- Verdict on a family: "SMC pays" where the 95% interval of its share solved less that of best-of-N, paired by problem,
  lies above 0; "SMC does not pay" where it lies below; else "not settled". It is that of four turns
  (`docs/claims/constrained_writing.md`); one turn, as here, settles what is large.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
from dataclasses import dataclass
from pathlib import Path

import feynkac as fk
from feynkac.inference.comparison.intervals import difference_interval, mean_interval

NOUNS = re.findall(
    r"\w+",
    """
apple bell bird boat book bread bridge candle castle cat child city clock cloud coat corn door dream farm fire fish
flower forest friend garden glass gold hill horse house island key king kite lake lamp leaf letter moon mountain
music night ocean piano rain river road rope sea ship shoe snow song spoon star stone storm street sugar summer
table tower train tree wall water wheel wind window winter wolf wood
""",
)
LETTERS = "aeinorst"
SIZES = {"words": 6, "letter": 1, "endings": 2}
BEST_OF = {"words": 11, "letter": 56, "endings": 22}
BEAMS = {"words": (9, 3), "letter": (16, 4), "endings": (16, 4)}
PARTICLES, SHORTEST = 16, 6


@dataclass(frozen=True)
class Task:
    """What to write: the words to be used, for "letter" the letter to be avoided."""

    family: str
    words: tuple[str, ...]
    letter: str = ""

    @property
    def request(self) -> str:
        """What the model is asked for."""
        *others, last = self.words
        if self.family == "words":
            return f"Write one sentence that contains the words {', '.join(others)} and {last}."
        if self.family == "letter":
            return f'Write one sentence with the word "{last}" and without the letter "{self.letter}".'
        lines = f'The first line ends with the word "{others[0]}" and the second line ends with the word "{last}".'
        return f"Write a poem of two lines. {lines}"


def problems(family: str, turn: int, count: int = 12, tuning: bool = False) -> list[Task]:
    """Draw the problems of a family in a turn; the first of more are those of fewer."""
    rng, tasks = random.Random(f"{family} {turn}"), []
    for _ in range(count):
        words = tuple(rng.sample(NOUNS[1::2] if tuning else NOUNS[::2], SIZES[family]))
        letter = rng.choice([x for x in LETTERS if x not in words[0]]) if family == "letter" else ""
        tasks.append(Task(family, words, letter))
    return tasks


def found(words: tuple[str, ...], text: str) -> int:
    """Return how many of the words are in the text, as whole words."""
    return sum(re.search(rf"\b{word}\b", text, re.IGNORECASE) is not None for word in words)


def allowed(task: Task, text: str) -> bool:
    """Whether a sentence has nothing in it that is forbidden: the letter, or words that are only quoted."""
    return '"' not in text and not (task.letter and task.letter in text.lower())


def ends(text: str) -> int:
    """Return how many sentences and lines come to their end in the text."""
    return len(re.findall(r"[.!?](?:\s|$)|\n", text.strip()))


def endings(text: str) -> tuple[str, ...]:
    """Return the last word of each line."""
    lines = [re.findall(r"[\w'-]+", line.lower()) for line in text.strip().splitlines()]
    return tuple(line[-1] if line else "" for line in lines)


def passes(task: Task, text: str | None) -> bool:
    """The strict check: long enough for no mere list, and what the family asks for."""
    text = (text or "").strip()
    if len(text.split()) < max(SHORTEST, 2 * len(task.words)):
        return False
    if task.family == "endings":
        return endings(text) == task.words
    one = ends(text) == 1 and text[-1] in ".!?"
    return one and allowed(task, text) and found(task.words, text) == len(task.words)


def log(true: bool) -> float:
    """Return the log-weight of what must be so."""
    return 0.0 if true else -math.inf


@fk.program
async def sentence(lm, task, steps=20):
    """Write a sentence that holds the words, and not the letter."""
    text = lm.prompt([{"role": "user", "content": task.request}])
    for _ in range(steps):
        text = await fk.sample("tokens", lm.tokens(text, 2))
        if text.finished or ends(str(text)):
            break
        missing = len(task.words) - found(task.words, str(text))
        # One step of both. A text that has passed has no guide any more, which is level 0: the others are below it.
        await fk.gather(fk.factor("allowed", log(allowed(task, str(text)))), fk.twist("missing", -2.0 * missing))
    await fk.factor("passes", log(passes(task, str(text))))
    return str(text)


@fk.program
async def verse(lm, task):
    """Write lines that end with the words."""
    text = lm.prompt([{"role": "user", "content": task.request}])
    for lines in range(1, len(task.words) + 1):
        text = await fk.sample("line", lm.line(text, max_tokens=24))
        await fk.factor("endings", log(endings(str(text)) == task.words[:lines]))
        if text.finished:
            break
    await fk.factor("passes", log(passes(task, str(text))))
    return str(text)


def measure(lm, family: str, turn: int, tasks: list[Task], shown: dict[str, tuple[Task, str]]) -> list[dict]:
    """Run each engine on the problems of a turn; return a record of each trial, and note a text that passes."""

    def check(task: Task):
        def metric(posterior: fk.Posterior) -> float:
            text = posterior.best()
            if passes(task, text):
                shown[family] = task, text.strip()
            return float(passes(task, text))

        return metric

    n, (beams, width) = BEST_OF[family], BEAMS[family]
    engines = {
        f"best of {n}": fk.BestOfN(n),
        f"beam search, {beams}": fk.BeamSearch(beams, width, score="product"),
        f"SMC, {PARTICLES}": fk.SMC(PARTICLES),
    }
    models = [(verse if family == "endings" else sentence)(lm, task) for task in tasks]
    metrics = [check(task) for task in tasks]
    made = fk.compare(models, engines, metric=metrics, seeds=[turn], failure=0.0, bounds=(0.0, 1.0))
    if made.stopped:
        raise KeyboardInterrupt
    columns = ("engine", "model", "seed", "quality", "tokens_out", "cpu_seconds")
    return [{"family": family} | {name: trial[name] for name in columns} for trial in made.to_dicts()]


def summary(trials: list[dict]) -> list[dict]:
    """Return a row for each family and engine: its share solved, what it gains on best-of-N, and what it spent."""
    rows = []
    for family in SIZES:
        made: dict[str, list[dict]] = {}
        for trial in trials:
            if trial["family"] == family:
                made.setdefault(trial["engine"], []).append(trial)
        first, *_, smc = made.values()  # the trials of each engine are those of the same problems, in the same order
        for engine, mine in made.items():
            gains = [trial["quality"] - other["quality"] for trial, other in zip(mine, first)]
            tokens = sum(trial["tokens_out"] for trial in mine)
            rows.append(
                {
                    "family": family,
                    "engine": engine,
                    "share": mean_interval([trial["quality"] for trial in mine], range(len(mine)), binary=True),
                    "gain": None if mine is first else difference_interval(gains, range(len(mine)), binary=True),
                    "tokens": tokens / len(mine),
                    "cost": tokens / sum(trial["tokens_out"] for trial in smc),
                }
            )
    return rows


def verdict(gain) -> str:
    """Say what the interval of SMC's gain on best-of-N says."""
    return "SMC pays" if gain.low > 0 else "SMC does not pay" if gain.high < 0 else "not settled"


def unequal(row: dict) -> bool:
    """Whether an engine spent more or less than SMC by a tenth."""
    return abs(row["cost"] - 1) > 0.1


def report(rows: list[dict]) -> None:
    """Print the table, and the verdicts."""
    print(f"\n{'':9s}{'':18s}{'solved':>7s}  {'95% interval':14s}{'less best of N':26s}{'tokens a problem':>16s}")
    for row in rows:
        share, gain = row["share"], row["gain"]
        uneven = f"  not equal: {row['cost']:.2f} of SMC" if unequal(row) else ""
        less = "" if gain is None else f"{gain.mean:+.0%} ({gain.low:+.0%} to {gain.high:+.0%})"
        print(
            f"{row['family']:9s}{row['engine']:18s}{share.mean:7.0%}  {f'{share.low:.0%} – {share.high:.0%}':14s}"
            f"{less:26s}{row['tokens']:16,.0f}{uneven}"
        )
    for row in rows:
        if row["engine"].startswith("SMC"):
            print(f"{row['family']}: {verdict(row['gain'])}")


def draw(path: Path, rows: list[dict], count: int) -> None:
    """Draw the share of problems solved for each family and engine."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    titles = {
        "words": f"one sentence that\nholds {SIZES['words']} drawn words",
        "letter": "one sentence with a drawn\nword, without a drawn letter",
        "endings": "two lines that end\nwith two drawn words",
    }
    fig, axes = plt.subplots(1, 3, figsize=(9.2, 2.7), layout="constrained", sharex=True)
    for ax, (family, title) in zip(axes, titles.items()):
        mine = [row for row in rows if row["family"] == family]
        for i, row in enumerate(mine):
            share, is_smc = row["share"], row["engine"].startswith("SMC")
            error = [[share.mean - share.low], [share.high - share.mean]]
            ax.barh(
                i,
                share.mean,
                xerr=error,
                color="#2f6fb0" if is_smc else "#b4bdc7",
                height=0.6,
                ecolor="#444",
                capsize=3,
            )
            ax.text(share.high + 0.03, i, f"{share.mean:.0%}", va="center", fontweight="bold")
        spent = [f"\n({row['cost']:.1f}× the tokens)" if unequal(row) else "" for row in mine]
        ax.set_yticks(range(len(mine)), [row["engine"] + more for row, more in zip(mine, spent)])
        ax.set_title(title, fontsize=10, loc="left")
        ax.set_xlabel(verdict(mine[-1]["gain"]), fontsize=10, loc="left", fontweight="bold")
        ax.set_xlim(0, 1.15)
        ax.set_xticks([0, 0.5, 1], ["0", "50%", "100%"])
        ax.invert_yaxis()
        ax.spines[["top", "right"]].set_visible(False)
    fig.suptitle(f"Share of {count} problems solved at the tokens of SMC (SmolLM2-135M), 95% intervals", fontsize=10.5)
    fig.savefig(path, dpi=130)


def main() -> None:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2", help="a name on the hub, a folder, or smollm2")
    parser.add_argument("--turns", type=int, default=1, help="how often to draw problems")
    parser.add_argument("--problems", type=int, default=12, help="of each family in a turn")
    parser.add_argument("--tuning", action="store_true", help="take the problems that sizes were tuned on")
    parser.add_argument("--resume", action="store_true", help="go on from the trials that are in the folder")
    parser.add_argument("--out", type=Path, default=Path("out"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    kept, figure = args.out / "demo.jsonl", args.out / "demo.png"
    trials = [json.loads(line) for line in kept.read_text().splitlines()] if args.resume and kept.exists() else []
    lm = fk.models.TransformersLM.from_pretrained(args.model, sampling=fk.models.Sampling(temperature=0.7))
    print(f"{args.model}: {len(SIZES)} families of {args.turns * args.problems} problems")
    shown: dict[str, tuple[Task, str]] = {}
    for turn in range(args.turns):
        for family in SIZES:
            if not any((trial["family"], trial["seed"]) == (family, turn) for trial in trials):
                tasks = problems(family, turn, args.problems, args.tuning)
                trials += measure(lm, family, turn, tasks, shown)
                kept.write_text("".join(json.dumps(trial) + "\n" for trial in trials))
    rows = summary(trials)
    report(rows)
    for task, text in shown.values():
        print(f"\n{task.request}\n  {text.replace(chr(10), ' / ')}")
    draw(figure, rows, args.turns * args.problems)
    print(f"\nThe figure is in {figure}.")


if __name__ == "__main__":
    main()
