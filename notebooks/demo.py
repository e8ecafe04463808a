"""Constrained writing with a small language model: best-of-N against SMC, at the same budget of tokens.

    make demo

SmolLM2-135M is to write one sentence that holds seven given words. One sample in dozens does. A step of the program is
three tokens; a twist (a guide that steers resampling, and not the target) counts the words so far; the factors at the
end are what is asked for: every word missing costs e⁴, and a text that is not one proper sentence costs e⁶. Both
engines run the same program, on all prompts at once. Sentences that SMC keeps are longer, so best-of-N gets more
particles, for about the same number of sampled tokens; both numbers are printed.
"""

from __future__ import annotations

import argparse
import math
import re
import time
from pathlib import Path

import feynkac as fk

TASKS = [
    ("river", "lantern", "song", "stone", "bridge", "child", "rain"),
    ("dog", "umbrella", "train", "cake", "station", "hat", "morning"),
    ("teacher", "apple", "chalk", "garden", "window", "letter", "summer"),
    ("doctor", "road", "violin", "snow", "house", "lamp", "friend"),
    ("ship", "captain", "coffee", "storm", "star", "coat", "harbour"),
    ("farmer", "barn", "sheep", "bell", "winter", "field", "dream"),
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
    ends = re.findall(r"[.!?](?:\s|$)", text)
    return len(ends) == 1 and text[-1] in ".!?" and "\n" not in text and len(text.split()) >= 3 * len(words)


def passes(words: tuple[str, ...], text: str | None) -> bool:
    """The strict check: a proper sentence with all the words."""
    return text is not None and proper(words, text) and found(words, text) == len(words)


@fk.program
async def sentence(lm, words, steps=20):
    """Write a sentence with the given words."""
    request = f"Write one sentence that contains the words: {', '.join(words)}."
    text = lm.prompt([{"role": "user", "content": request}])
    for _ in range(steps):
        text = await fk.sample("tokens", lm.tokens(text, 3))
        fk.deterministic("output", str(text))
        if text.finished or ended(str(text)):
            break
        await fk.twist("words so far", 2.0 * found(words, str(text)))
    await fk.factor("words", -4.0 * (len(words) - found(words, str(text))))
    await fk.factor("form", 0.0 if proper(words, str(text)) else -6.0)
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
        for i, share in enumerate(shares):
            ax.text(0.012, i, f"{share:.0%}", va="center", color="white", fontweight="bold")
        ax.set_title(title, fontsize=10, loc="left")
        ax.set_xlim(0, 1)
        ax.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
        ax.invert_yaxis()
        ax.spines[["top", "right"]].set_visible(False)
    fig.suptitle(
        "One sentence with seven given words; SmolLM2-135M, one program, about as many tokens for each", fontsize=10.5
    )
    fig.savefig(path, dpi=150)


def main() -> None:
    """Run the demonstration."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2", help="a name on the hub, a folder, or smollm2")
    parser.add_argument("--particles", type=int, default=16, help="particles of SMC")
    parser.add_argument("--best-of", type=int, default=27, help="particles of best-of-N: as many tokens as SMC")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("out"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    sampling = fk.models.Sampling(temperature=0.7)
    lm = fk.models.TransformersLM.from_pretrained(args.model, sampling=sampling)
    print(f"{args.model}: {len(TASKS)} prompts × {args.seeds} seeds\n")
    rows = []
    for name, engine in (
        (f"best of {args.best_of}", fk.BestOfN(args.best_of)),
        (f"SMC, {args.particles} particles", fk.SMC(args.particles)),
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
    good = [(posterior.probabilities.max(), words, posterior) for words, posterior in rows[1]["results"]
            if passes(words, posterior.best())]  # fmt: skip
    if good:
        weight, words, posterior = max(good, key=lambda item: item[0])
        print(f"\nFor {', '.join(words)} (weight {weight:.2f}, log evidence {posterior.log_evidence:.2f}):")
        print(f"  {posterior.best().strip()}")
    saved = args.out / "posterior.fk"
    (good[0][2] if good else rows[1]["results"][0][1]).save(saved)
    figure = args.out / "demo.png"
    draw(figure, rows)
    print(f"\nThe figure is in {figure}, one posterior in {saved} (fk.Posterior.load reads it).")


if __name__ == "__main__":
    main()
