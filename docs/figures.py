"""The figures of the README: a poem by SmolLM2, token by token, under factors that like some words.

python docs/figures.py
"""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

import feynkac as fk

LIKED = ("river", "stone", "light", "wind", "night")


@fk.program
async def poem(lm, tokens=24):
    """Write a poem; commas cost 1.5 nats, and the words that are liked earn one."""
    text = lm.prompt([{"role": "user", "content": "Write a short poem about a river at night."}])
    for _ in range(tokens):
        text = await fk.sample("token", lm.next_token(text))
        written = str(text).lower()
        await fk.factor("words", -1.5 if written.endswith(",") else 1.0 * written.endswith(LIKED))
        if text.finished:
            break
    return text


def save(figure, path: Path) -> None:
    """Write a figure in 64 colours, which is enough and small."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=115)
    with Image.open(buffer) as image:
        image.quantize(64, method=Image.Quantize.FASTOCTREE).save(path, optimize=True)
    print(path, f"{path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    """Run the poem once and draw it."""
    lm = fk.models.TransformersLM.from_pretrained("smollm2", sampling=fk.models.Sampling(temperature=0.8))
    posterior = fk.infer(poem(lm), fk.SMC(16, ess_threshold=0.7, chains=2), seed=0)
    folder = Path(__file__).parent
    save(fk.plots.genealogy(posterior), folder / "genealogy.png")
    save(fk.plots.overview(posterior), folder / "overview.png")


if __name__ == "__main__":
    main()
