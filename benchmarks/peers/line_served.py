"""Step-level SMC with feynkac over a vLLM server of the model. CPU time and memory are of both."""

from __future__ import annotations

from line_feynkac import poem
from vllm_server import Running
from worker import cpu_seconds, peak_gib, serve

import feynkac as fk


def prepare(*, model, n, lines, port, session):
    server = Running(port, session)
    lm = fk.models.ServerLM(server.url, model)
    engine = fk.SMC(n, ess_threshold=1.0, resampling="multinomial")

    def run(seed: int, lines: int = lines) -> dict:
        tokens, own, theirs = server.generated(), cpu_seconds(), server.cpu_seconds()
        posterior = fk.infer(poem(lm, lines), engine, seed=seed)
        own, theirs = cpu_seconds() - own, server.cpu_seconds() - theirs
        return {
            "cpu": own + theirs,
            "client": own,
            "rss": peak_gib() + server.peak_gib(),
            "tokens": server.generated() - tokens,
            "letters": posterior.expect(lambda value: value.count("e")),
        }

    return run


if __name__ == "__main__":
    serve(prepare)
