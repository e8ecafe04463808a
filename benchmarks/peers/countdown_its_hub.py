"""Countdown with its_hub: its algorithms over the reasoner and the verifier, both by plain transformers.

Each call of the language model is one batched ``generate`` with a KV cache, and each of the verifier one padded batch.
its_hub hands over texts, so that every step is encoded anew from its first token. Two notes on its settings:
``StepGeneration(max_steps)`` makes one step more, and its beam search keeps ``beam_width`` paths, each with
``budget / beam_width`` children, and begins with only so many.
"""

from __future__ import annotations

import random

import numpy as np
import torch
from its_hub.api import (
    AbstractLanguageModel,
    AbstractOrchestrator,
    AbstractOutcomeRewardModel,
    AbstractProcessRewardModel,
)
from its_hub.core.algorithms.beam_search import BeamSearch
from its_hub.core.algorithms.bon import BestOfN
from its_hub.core.algorithms.particle_gibbs import EntropicParticleFiltering, ParticleFiltering
from its_hub.core.lms.step_generation import StepGeneration
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    StoppingCriteria,
    StoppingCriteriaList,
)
from worker import cpu_seconds, serve

ENDED = "<eos>"


class Reasoner(AbstractLanguageModel):
    """Writes a line, or with ``stop=None`` all that are left, for each conversation of a batch."""

    def __init__(self, folder, temperature, lines, max_tokens):
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.line_end = self.tokenizer.convert_tokens_to_ids("\n")
        self.temperature, self.lines, self.max_tokens = temperature, lines, max_tokens
        self.tokens = 0

    async def agenerate(self, messages, stop=None, **kwargs):
        texts = ["".join(message.content for message in conversation) for conversation in messages]
        given = self.tokenizer(texts, padding=True, return_tensors="pt")
        start, lines = given.input_ids.shape[1], 1 if stop == "\n" else self.lines
        with torch.inference_mode():
            made = self.model.generate(
                input_ids=given.input_ids,
                attention_mask=given.attention_mask,
                do_sample=True,
                temperature=self.temperature,
                top_k=0,
                max_new_tokens=self.max_tokens * lines,
                eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=self.tokenizer.pad_token_id,
                stopping_criteria=StoppingCriteriaList([AfterLines(start, self.line_end, lines)]),
            )[:, start:]
        self.tokens += int((made != self.tokenizer.pad_token_id).sum())
        return [
            {"role": "assistant", "content": text.replace("<pad>", "")} for text in self.tokenizer.batch_decode(made)
        ]


class AfterLines(StoppingCriteria):
    """Ends each row once it has some line ends."""

    def __init__(self, start, line_end, lines):
        self.start, self.line_end, self.lines = start, line_end, lines

    def __call__(self, input_ids, scores, **kwargs):
        return (input_ids[:, self.start :] == self.line_end).sum(1) >= self.lines


class Batched(AbstractOrchestrator):
    """Hands all conversations of best-of-N over as one batch, where its_hub's own makes a request of each."""

    async def agenerate(self, lm, messages_lst, stop=None, **kwargs):
        return await lm.agenerate(messages_lst, stop)


class Verifier(AbstractProcessRewardModel, AbstractOutcomeRewardModel):
    """The score of a text's last step; 0 for a text without one."""

    def __init__(self, folder):
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="right")
        self.model = AutoModelForTokenClassification.from_pretrained(folder, dtype=torch.float32).eval()
        self.calls = 0

    def score(self, prompt, steps):
        self.calls += len(steps)
        texts = ["".join(f"{line}\n" for line in text.replace(ENDED, "").splitlines() if line) for text in steps]
        given = self.tokenizer([prompt + text for text in texts], padding=True, return_tensors="pt")
        with torch.inference_mode():
            logits = self.model(input_ids=given.input_ids, attention_mask=given.attention_mask).logits[..., 0]
        last = given.attention_mask.sum(1) - 1
        scores = logits[torch.arange(len(texts)), last].sigmoid().tolist()
        return [score if text else 0.0 for score, text in zip(scores, texts)]

    async def ascore(self, conversations, steps=None, **kwargs):
        if steps is not None:  # as a process reward model: a prompt, and texts
            return self.score(conversations, steps)
        return self.score(conversations[0][0].content, [chat[-1].content for chat in conversations])


def algorithms(prm, n, lines, temperature):
    """Return its algorithms, by the name that ours have."""
    steps = StepGeneration(lines - 1, "\n", ENDED, temperature=temperature, include_stop_str_in_output=True)
    return {
        "particle filter": ParticleFiltering(steps, prm),
        "entropic": EntropicParticleFiltering(steps, prm),
        "beam": BeamSearch(steps, prm, beam_width=n // 4),
        "best-of-N": BestOfN(prm, Batched()),
    }


def prepare(*, reasoner, verifier, prompts, n, lines, block, temperature, max_tokens):
    lm, prm = Reasoner(reasoner, temperature, lines, max_tokens), Verifier(verifier)
    contestants = algorithms(prm, n, lines, temperature)

    def run(turn: int, block: int = block) -> dict:
        made, first = {}, turn * block % len(prompts)
        for name, algorithm in contestants.items():
            random.seed(turn)
            np.random.seed(turn)  # noqa: NPY002  its_hub draws from it
            torch.manual_seed(turn)
            lm.tokens = prm.calls = 0
            cpu = cpu_seconds()
            found = [algorithm.infer(lm, prompt, n)["content"] for prompt in prompts[first : first + block]]
            answers = [text.replace(ENDED, "") for text in found]
            made[name] = {"cpu": cpu_seconds() - cpu, "tokens": lm.tokens, "calls": prm.calls, "answers": answers}
        return {"made": made}

    return run


if __name__ == "__main__":
    serve(prepare)
