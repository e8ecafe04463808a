"""Token-level SMC after a long prompt with feynkac."""

from __future__ import annotations

from letters import Positions, distinct, prompt_of
from text_feynkac import few_es
from worker import cpu_seconds, serve

import feynkac as fk
from feynkac.models import TransformersLM


def prepare(*, model, n, tokens, prompt):
    lm = TransformersLM.from_pretrained(model)
    lm.eos = frozenset()
    positions = Positions(lm.model)
    start = lm.prompt(prompt_of(lm.tokenizer, prompt))
    engine = fk.SMC(n, resampling="multinomial")

    def run(seed: int, tokens: int = tokens) -> dict:
        with fk.afresh():
            positions.forwarded, cpu = 0, cpu_seconds()
            lm.next_log_probs(start)
            before = cpu_seconds() - cpu
            session, store = fk.steps(few_es(lm, start, tokens), engine, seed=seed), lm.forwarder.store
            held = max(store.bytes for _ in session)
            posterior = session.posterior
            return {
                "log_z": posterior.log_evidence,
                "before": before,
                "forwarded": positions.forwarded,
                "held": held / store.position_bytes,
                "distinct": distinct(prompt, [text.tokens for text in posterior.values]),
            }

    return run


if __name__ == "__main__":
    serve(prepare)
