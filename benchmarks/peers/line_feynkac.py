"""Step-level SMC with feynkac: a program of lines, and `fk.SMC` that resamples at every step, as its_hub does."""

from __future__ import annotations

from lines import MAX_TOKENS, PROMPT, log_odds
from worker import serve

import feynkac as fk
from feynkac.models import TransformersLM


@fk.program
async def poem(lm: TransformersLM, lines: int):
    text = lm.prompt([{"role": "user", "content": PROMPT}])
    for _ in range(lines):
        text = await fk.sample("line", lm.until(text, "\n", max_tokens=MAX_TOKENS, include_stop=True))
        line = text.steps[-1]
        if not line.endswith("\n"):  # cut short, or ended: its_hub goes on with a new line then, so we do
            text = text.append("\n")
        await fk.factor("few e", log_odds(line))
    return str(text)


def prepare(*, model, n, lines):
    lm = TransformersLM.from_pretrained(model)
    engine = fk.SMC(n, ess_threshold=1.0, resampling="multinomial")

    def run(seed: int, lines: int = lines) -> dict:
        posterior = fk.infer(poem(lm, lines), engine, seed=seed)
        return {"tokens": posterior.cost.tokens_out, "letters": posterior.expect(lambda value: value.count("e"))}

    return run


if __name__ == "__main__":
    serve(prepare)
