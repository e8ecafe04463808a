"""Train the reasoner of Sudoku, and measure it on held-out problems.

    python training/sudoku.py

It is to be right often enough to be worth sampling and wrong often enough that engines differ. So, by a rule that knows
of no engine, it is trained for as many fifties of steps as it takes until one sample each solves a fifth of 500
*training* problems of 6 clues (seed 1), and for 3000 at most. It picks up from its last checkpoint. ``--steps`` (at
most so many), ``--problems`` and ``--into`` make a small run for tests.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from countdown_measure import answers, measure_reasoner
from loop import Settings, ship, train
from sudoku_data import HEAD, traces
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

import feynkac as fk
from feynkac.models.language.drawing.sampling import Sampling
from feynkac.models.tasks.shipped import TEMPERATURE, tokenizer

WEIGHTS = Path(__file__).resolve().parent.parent / "models" / "tasks" / "weights"
CONFIG: dict[str, Any] = {
    "vocab_size": 14,
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
    "initializer_range": 0.05,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
CLUES, SLIP = (5, 6, 7, 8), 0.2
"""How many clues the problems of a batch have, one of these; and the share of traces that leave the way."""
ENOUGH = 0.2
"""The share of training problems that ends the training."""


def loss_of(batch: int) -> Any:
    """Return the loss: cross-entropy of what follows the prompt, of fresh traces at each step."""

    def loss(network: Any, generator: Any) -> Any:
        rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        tokens = torch.from_numpy(traces(batch, int(rng.choice(CLUES)), SLIP, rng))
        logits = network(input_ids=tokens[:, :-1], use_cache=False).logits[:, HEAD - 1 :]
        return cross_entropy(logits.flatten(0, 1), tokens[:, HEAD:].flatten())

    return loss


def accuracy(network: Any, problems: list[Any]) -> float:
    """Return the share of problems that a sample each solves."""
    lm = fk.models.TransformersLM(network, tokenizer("sudoku"), sampling=Sampling(TEMPERATURE))
    return float(np.mean([problem.solved(text) for problem, text in answers(lm, problems, 1)]))


def reasoner(settings: Settings, problems: int, into: Path = WEIGHTS) -> Path:
    """Train the reasoner until it is good enough, or for all steps of the settings, and write its weights."""
    torch.manual_seed(settings.seed)
    network, history = LlamaForCausalLM(LlamaConfig(**CONFIG)), {}
    known = fk.tasks.sudokus(problems, seed=1, split="train")
    for until in range(settings.save_every, settings.steps + 1, settings.save_every):
        averaged, record = train("sudoku_reasoner", network, loss_of(settings.batch), replace(settings, steps=until))
        history[until] = accuracy(averaged, known)
        print(f"solves {history[until]:.3f} of {problems} training problems", flush=True)
        if history[until] >= ENOUGH:
            break
    record |= {
        "about": "writes rows of Sudoku of 4 by 4 with 5 to 8 clues",
        "data": "solutions of random training problems, made at each step; some rows leave them",
        "clues": CLUES,
        "slip": SLIP,
        "accuracy_on_training_problems_by_step": history,
        "config": CONFIG,
    }
    return ship("sudoku_reasoner", averaged, record, into)


def measure(path: Path, problems: int, each: int = 4) -> None:
    """Add to the record what was found on held-out problems."""
    lm, told = fk.tasks.reasoner("sudoku"), {}
    for clues in (5, 6, 7, 8):
        held_out = fk.tasks.sudokus(problems, seed=0, clues=clues)
        told[f"{clues}_clues"] = measure_reasoner(answers(lm, held_out, each))
    record = {**json.loads(path.read_text(encoding="utf-8")), "measured": told}
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--problems", type=int, default=500)
    parser.add_argument("--into", type=Path, default=WEIGHTS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    made = reasoner(Settings(asked.steps, batch=128, rate=2e-3, save_every=50), asked.problems, asked.into)
    measure(made.with_suffix(".json"), asked.problems)
