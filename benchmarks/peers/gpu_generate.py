"""N texts after a prompt by ``generate`` of transformers, with the log-probabilities of some as they are drawn."""

from __future__ import annotations

import torch
from card import measured
from letters import prompt_of
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor, LogitsProcessorList
from worker import serve

JUDGED = 4


class Sums(LogitsProcessor):
    """Sums the log-probabilities of the tokens drawn in the first rows."""

    def __init__(self) -> None:
        self.total, self.laws = 0.0, None

    def __call__(self, input_ids, scores):
        self.take(input_ids)
        self.laws = scores[:JUDGED].float().log_softmax(-1)
        return scores

    def take(self, ids) -> None:
        if self.laws is not None:
            self.total = self.total + self.laws.gather(1, ids[:JUDGED, -1:])[:, 0].double()


def prepare(*, model, n, tokens, prompt, dtype, device):
    tokenizer = AutoTokenizer.from_pretrained(model)
    lm = AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).to(device).eval()
    lm.generation_config.eos_token_id = None
    ids = torch.tensor([prompt_of(tokenizer, prompt)], device=device)

    def run(seed: int, tokens: int = tokens) -> dict:
        torch.manual_seed(seed)
        sums = Sums()
        made, cost = measured(
            device,
            lambda: lm.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                top_k=0,
                top_p=1.0,
                num_return_sequences=n,
                max_new_tokens=tokens,
                logits_processor=LogitsProcessorList([sums]),
            ),
        )
        sums.take(made)
        return cost | {
            "prompt": ids[0].tolist(),
            "texts": made[:JUDGED, ids.shape[1] :].tolist(),
            "log_probs": sums.total.tolist(),
        }

    return run


if __name__ == "__main__":
    serve(prepare)
