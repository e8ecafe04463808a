"""Step-level particle filtering with its_hub over a vLLM server of the same model. CPU time and memory are of both.

its_hub resamples at every step, the last one included, and makes ``max_steps + 1`` steps. An end token ends the line,
not the text. vLLM draws from a stream of its own, so that runs differ with the same seed.
"""

from __future__ import annotations

import random
import warnings

from its_hub.api import AbstractProcessRewardModel
from its_hub.core.algorithms.particle_gibbs import ParticleFiltering
from its_hub.core.lms.openai_lm import OpenAICompatibleLanguageModel
from its_hub.core.lms.step_generation import StepGeneration
from lines import MAX_TOKENS, PROMPT, probability
from vllm_server import Running
from worker import cpu_seconds, peak_gib, serve

warnings.filterwarnings("ignore", "agenerate", DeprecationWarning)


class FewEs(AbstractProcessRewardModel):
    """Scores the last line of each text."""

    def score(self, prompt_or_messages, steps):
        return [probability(text.rpartition("\n")[2]) for text in steps]

    async def ascore(self, prompt_or_messages, steps):
        return self.score(prompt_or_messages, steps)


def prepare(*, model, n, lines, port, session):
    server = Running(port, session)
    lm = OpenAICompatibleLanguageModel(f"{server.url}/v1", "none", model, max_completion_tokens=MAX_TOKENS)

    def run(seed: int, lines: int = lines) -> dict:
        random.seed(seed)
        algorithm = ParticleFiltering(StepGeneration(lines - 1, "\n", temperature=1.0), FewEs())
        tokens, own, theirs = server.generated(), cpu_seconds(), server.cpu_seconds()
        result = algorithm.infer(lm, PROMPT, budget=n, return_response_only=False)
        if result.steps_used_lst != [lines] * n:
            raise RuntimeError(f"its_hub made {result.steps_used_lst} steps, not {lines} each")
        own, theirs = cpu_seconds() - own, server.cpu_seconds() - theirs
        return {
            "cpu": own + theirs,
            "client": own,
            "rss": peak_gib() + server.peak_gib(),
            "tokens": server.generated() - tokens,
            "letters": sum(response["content"].count("e") for response in result.responses) / n,
        }

    return run


if __name__ == "__main__":
    serve(prepare)
