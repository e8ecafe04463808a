"""Constrained writing with a small language model: best-of-N against SMC, at the same budget of tokens.

    make demo

SmolLM2-135M is to write one sentence that holds three given words and nowhere the letter "a". Hardly one sample in a
thousand does. A step of the program is two tokens: a factor kills a particle at the first "a", so that its place goes
to one that lives, and a twist (a guide that steers resampling, and not the target) counts the words so far. The factor
at the end is the rest of what is asked for: every word missing costs e⁴, and a text that is not one proper sentence
costs e⁶. Both engines run the same program on all prompts at once. In best-of-N a dead particle stops and spends no
more tokens, so it gets many more particles for about as many tokens; both numbers are printed.
"""

from __future__ import annotations

import argparse
import math
import re
import time
from pathlib import Path

import feynkac as fk

LETTER = "a"
TASKS = [
    ("dog", "river", "bridge"),
    ("sister", "window", "song"),
    ("doctor", "snow", "violin"),
    ("ship", "storm", "letter"),
    ("child", "kite", "hill"),
    ("monk", "fire", "bell"),
]


def found(words: tuple[str, ...], text: str) -> int:
    """Return how many of the words are in the text, as whole words."""
    return sum(re.search(rf"\b{word}\b", text, re.IGNORECASE) is not None for word in words)


def ended(text: str) -> bool:
    """Whether the text has come to the end of a sentence or a line."""
    return re.search(r"[.!?](\s|$)|\n", text) is not None


def proper(words: tuple[str, ...], text: str) -> bool:
    """Whether the text is one sentence on one line, ended, and no mere list of the words."""
    text = text.strip()
    if not text:
        return False
    ends = re.findall(r"[.!?](?:\s|$)", text)
    return len(ends) == 1 and text[-1] in ".!?" and "\n" not in text and len(text.split()) >= 3 * len(words)


def passes(words: tuple[str, ...], text: str | None) -> bool:
    """The strict check: a proper sentence with all the words, and without the letter."""
    return bool(text) and LETTER not in text.lower() and proper(words, text) and found(words, text) == len(words)


@fk.program
async def sentence(lm, words, steps=20):
    """Write a sentence with the given words, and without the letter."""
    request = f"Write one sentence that contains the words: {', '.join(words)}."
    text = lm.prompt([{"role": "user", "content": request}])
    for _ in range(steps):
        text = await fk.sample("tokens", lm.tokens(text, 2))
        fk.deterministic("output", str(text))
        await fk.factor("letter", -math.inf if LETTER in str(text).lower() else 0.0)
        if text.finished or ended(str(text)):
            break
        await fk.twist("words so far", 2.0 * found(words, str(text)))
    form = 0.0 if proper(words, str(text)) else -6.0
    await fk.factor("sentence", form - 4.0 * (len(words) - found(words, str(text))))
    return str(text)


def interval(k: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's 95% interval for k successes of n."""
    middle = (k + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
    return middle - half, middle + half


def measure(lm, engine, seeds: int):
    """Run an engine on all tasks for several seeds; return the posteriors with their tasks, and the seconds."""
    start, results = time.perf_counter(), []
    for seed in range(seeds):
        models = [sentence(lm, words) for words in TASKS]
        results += list(zip(TASKS, fk.infer(models, engine, seed=seed, progress=True)))
    return results, time.perf_counter() - start


def draw(path: Path, rows: list[dict]) -> None:
    """Draw the share of problems solved, and of particles that pass, for each engine."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    fig, axes = plt.subplots(1, 2, figsize=(8.2, 2.9), layout="constrained", width_ratios=(1, 1.25))
    names = [row["name"] for row in rows]
    bars = (("problems solved", "solved", "interval"), ("single particles that pass the check", "particles", None))
    for ax, (title, key, errors) in zip(axes, bars):
        shares = [row[key] for row in rows]
        error = None
        if errors:
            error = [
                [s - row[errors][0] for s, row in zip(shares, rows)],
                [row[errors][1] - s for s, row in zip(shares, rows)],
            ]
        ax.barh(names, shares, xerr=error, color=["#9aa5b1", "#2f6fb0"], height=0.55, ecolor="#444", capsize=3)
        for i, (share, row) in enumerate(zip(shares, rows)):
            end = row[errors][1] if errors else share
            ax.text(end + 0.02, i, f"{share:.0%}" if errors else f"{share:.1%}", va="center", fontweight="bold")
        ax.set_title(title, fontsize=10, loc="left")
        ax.set_xlim(0, 1 if errors else max(0.3, 1.3 * max(shares)))
        ax.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0, decimals=0))
        ax.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5))
        ax.invert_yaxis()
        ax.spines[["top", "right"]].set_visible(False)
    fig.suptitle('One sentence with three given words and no letter "a" (SmolLM2-135M), equal tokens', fontsize=10.5)
    fig.savefig(path, dpi=150)


def main() -> None:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2", help="a name on the hub, a folder, or smollm2")
    parser.add_argument("--particles", type=int, default=16, help="particles of SMC")
    parser.add_argument("--best-of", type=int, default=144, help="particles of best-of-N: as many tokens as SMC")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("out"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    sampling = fk.models.Sampling(temperature=0.7)
    lm = fk.models.TransformersLM.from_pretrained(args.model, sampling=sampling)
    print(f"{args.model}: {len(TASKS)} prompts × {args.seeds} seeds\n")
    rows = []
    for name, engine in (
        (f"best of {args.best_of}", fk.BestOfN(args.best_of, all_dead="zero")),
        (f"SMC, {args.particles} particles", fk.SMC(args.particles, all_dead="zero")),
    ):
        results, seconds = measure(lm, engine, args.seeds)
        solved = [passes(words, posterior.best()) for words, posterior in results]
        particles = [passes(words, value) for words, posterior in results for value in posterior.values]
        rows.append(
            {
                "name": name,
                "solved": sum(solved) / len(solved),
                "interval": interval(sum(solved), len(solved)),
                "particles": sum(particles) / len(particles),
                "tokens": sum(posterior.cost.tokens_out for _, posterior in results),
                "seconds": seconds,
                "results": results,
            }
        )
    print(f"{'':20s}{'solved':>8s}  {'95% interval':14s}{'particles that pass':>20s}{'tokens':>9s}{'seconds':>9s}")
    for row in rows:
        low, high = row["interval"]
        print(
            f"{row['name']:20s}{row['solved']:8.0%}  {f'{low:.0%} – {high:.0%}':14s}{row['particles']:20.1%}"
            f"{row['tokens']:9,d}{row['seconds']:9.1f}"
        )
    solved = [(words, p) for words, p in rows[1]["results"] if passes(words, p.best())]
    words, posterior = max(solved or rows[1]["results"][:1], key=lambda item: item[1].log_evidence)
    if solved:
        weight = posterior.probabilities.max()
        print(f"\nFor {', '.join(words)} (weight {weight:.2f}, log evidence {posterior.log_evidence:.2f}):")
        print(f"  {posterior.best().strip()}")
    saved = args.out / "posterior.fk"
    posterior.save(saved)
    figure = args.out / "demo.png"
    draw(figure, rows)
    print(f"\nThe figure is in {figure}, one posterior in {saved} (fk.Posterior.load reads it).")


if __name__ == "__main__":
    main()
