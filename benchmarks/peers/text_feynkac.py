"""Token-level SMC with feynkac: a program, and `fk.SMC`."""

from __future__ import annotations

from letters import PENALTY, PROMPT
from worker import serve

import feynkac as fk
from feynkac.models import Text, TransformersLM


@fk.program
async def few_es(lm: TransformersLM, text: Text, tokens: int):
    for _ in range(tokens):
        seen = str(text)
        text = await fk.sample("token", lm.next_token(text))
        await fk.factor("no e", -PENALTY * str(text)[len(seen) :].count("e"))
    return text


def prepare(*, model, n, tokens):
    lm = TransformersLM.from_pretrained(model)
    lm.eos = frozenset()
    engine = fk.SMC(n, resampling="multinomial")

    def run(seed: int, tokens: int = tokens) -> dict:
        return {"log_z": fk.infer(few_es(lm, lm.prompt(PROMPT), tokens), engine, seed=seed).log_evidence}

    return run


if __name__ == "__main__":
    serve(prepare)
