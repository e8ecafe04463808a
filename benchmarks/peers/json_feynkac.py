"""JSON under a schema with feynkac: a token at a time, by masks or by rejection, and `fk.SMC`."""

from __future__ import annotations

import numpy as np
from schema import PROMPT, SCHEMA, summary
from worker import serve

import feynkac as fk
from feynkac.models import TransformersLM


@fk.program
async def answer(lm: TransformersLM, grammar, sampler: str, tokens: int):
    constrained = fk.constraints.constrained
    text = lm.prompt(PROMPT)
    for _ in range(tokens - 1):
        if text.finished:
            break
        text = await fk.sample("token", constrained(lm.next_token(text), grammar, sampler=sampler))
        await fk.factor("step", 0.0)
    return await fk.sample("end", constrained(lm.complete(text, max_tokens=1), grammar, sampler=sampler))


def prepare(*, model, n, tokens, sampler):
    lm = TransformersLM.from_pretrained(model)
    engine = fk.SMC(n, resampling="multinomial", all_dead="zero")

    def run(seed: int, tokens: int = tokens) -> dict:
        grammar = fk.constraints.json_schema(lm, SCHEMA)  # made anew, so that no run knows the masks of another
        lm.forwarder.clear()
        found = fk.infer(answer(lm, grammar, sampler, tokens), engine, seed=seed)
        strings = [str(text) for text in found.values]
        return summary(strings, np.exp(found.log_weights).tolist(), found.log_evidence, found.cost.tokens_out)

    return run


if __name__ == "__main__":
    serve(prepare)
