"""Train the reasoner of Countdown, and then its process reward model.

    python training/countdown.py reasoner
    python training/countdown.py verifier

Each picks up from its last checkpoint. ``--steps`` and ``--into`` make a small run for tests.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from countdown_data import LINE, Noise, exact, traces
from countdown_rollouts import labelled
from data import folder
from loop import Settings, ship, train
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForTokenClassification

from feynkac.models.fetch.shelf import Shelf

WEIGHTS = Path(__file__).resolve().parent.parent / "models" / "tasks" / "weights"
LENGTH = {2: 15, 3: 26, 4: 38, 5: 51}
"""Tokens of a trace, by how many numbers it begins with."""
ASTRAY = Noise(slip=0.7, miscount=0.06)
"""In the traces that the verifier begins with."""
BLOCK = 500
"""Problems that are rolled out together."""
CONFIG: dict[str, Any] = {
    "vocab_size": 216,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "initializer_range": 0.05,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}


@dataclass(frozen=True)
class Phase:
    """A part of the reasoner's training.

    Attributes:
        until: its last step.
        sizes: how often a batch has so many numbers; of 5 where ``tails``, of which the first steps are left out.
        noise: in its traces.
    """

    until: int
    sizes: dict[int, float]
    tails: bool
    noise: Noise


PHASES = (
    Phase(1200, {4: 0.25, 5: 0.75}, False, Noise(slip=0.2, miscount=0.01)),
    Phase(2400, {2: 0.25, 3: 0.25, 4: 0.2, 5: 0.3}, True, Noise(slip=0.05, miscount=0.005)),
)
"""First the form and the arithmetic, then, with shorter problems too, the way to the target."""


def reasoner_loss(batch: int, phase: Phase) -> Any:
    """Return the loss: cross-entropy of what follows the prompt, of fresh traces at each step.

    ``batch`` is how many traces of 5 numbers make a batch; of shorter ones there are more.
    """

    def loss(network: Any, generator: Any) -> Any:
        rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        numbers = int(rng.choice(list(phase.sizes), p=list(phase.sizes.values())))
        rows, skip = (batch * LENGTH[5] // LENGTH[numbers], 5 - numbers) if phase.tails else (batch, 0)
        tokens = torch.from_numpy(traces(rows, numbers + skip, phase.noise, rng, skip))
        logits = network(input_ids=tokens[:, :-1], use_cache=False).logits
        head = int((tokens[0] == LINE).nonzero()[0])
        return cross_entropy(logits[:, head:].flatten(0, 1), tokens[:, head + 1 :].flatten())

    return loss


def reasoner(settings: Settings, phases: tuple[Phase, ...], into: Path = WEIGHTS) -> Path:
    """Train the reasoner and write its weights; the rate falls in the last phase."""
    torch.manual_seed(settings.seed)
    network = LlamaForCausalLM(LlamaConfig(**CONFIG))
    for phase in phases:
        cooldown = settings.cooldown if phase is phases[-1] else 0
        now = replace(settings, steps=phase.until, cooldown=cooldown)
        averaged, record = train("countdown_reasoner", network, reasoner_loss(settings.batch, phase), now)
    record |= {
        "about": "writes steps of Countdown with 4 or 5 numbers",
        "data": "random legal traces of training problems, made at each step",
        "phases": [asdict(phase) for phase in phases],
        "config": CONFIG,
    }
    return ship("countdown_reasoner", averaged, record, into)


def dataset(model: Any, problems: int, rollouts: int, seed: int) -> tuple[Any, Any]:
    """Return rows of tokens (n, length) and labels of their steps (n, length): 1, 0, or −1 where there is none.

    Kept beside the checkpoints, since it takes a while.
    """
    path = folder() / f"countdown_rollouts_{problems}_{rollouts}_{seed}.pt"
    if not path.exists():
        rows = []
        for block, numbers in enumerate([5, 5, 5, 4] * -(-problems // (4 * BLOCK))):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + block)
            tokens = traces(BLOCK, numbers, Noise(0.0, 0.0), np.random.default_rng([seed, block]))
            head = int((tokens[0] == LINE).nonzero()[0][0]) + 1
            rows += labelled(model, torch.from_numpy(tokens[:, :head]), rollouts, generator)
            print(f"rollouts: {len(rows)} problems", flush=True)
        length = max(len(row) for row, _ in rows)
        tokens, labels = torch.zeros(len(rows), length, dtype=torch.long), torch.full((len(rows), length), -1)
        for i, (row, marks) in enumerate(rows):
            tokens[i, : len(row)] = torch.tensor(row)
            for end, good in marks:
                labels[i, end] = int(good)
        torch.save((tokens, labels), path)
    found: tuple[Any, Any] = torch.load(path, weights_only=True)
    return found


def exact_loss(batch: int) -> Any:
    """Return the loss of fresh traces, many with noise: a step is good if the target can still be reached."""

    def loss(network: Any, generator: Any) -> Any:
        rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        numbers = 4 if rng.random() < 0.25 else 5
        tokens = traces(batch, numbers, ASTRAY, rng)
        ends, good = exact(tokens, numbers)
        logits = network(input_ids=torch.from_numpy(tokens), use_cache=False).logits[:, ends, 0]
        return binary_cross_entropy_with_logits(logits, torch.from_numpy(good).float())

    return loss


def rollout_loss(tokens: Any, labels: Any, batch: int) -> Any:
    """Return the loss: cross-entropy of the labels at the ends of steps."""

    def loss(network: Any, generator: Any) -> Any:
        index = torch.randint(len(tokens), (batch,), generator=generator)
        length = int((tokens[index] > 0).sum(1).max())  # later steps never see padding, which is on the right
        logits = network(input_ids=tokens[index, :length], use_cache=False).logits[..., 0]
        marks = labels[index, :length]
        return binary_cross_entropy_with_logits(logits[marks >= 0], marks[marks >= 0].float())

    return loss


def verifier(first: Settings, then: Settings, problems: int, rollouts: int = 4, into: Path = WEIGHTS) -> Path:
    """Train the process reward model, from the reasoner's weights, and write its own."""
    torch.manual_seed(first.seed)
    model = LlamaForCausalLM(LlamaConfig(**CONFIG))
    model.load_state_dict(Shelf(into).weights("countdown_reasoner"))
    tokens, labels = dataset(model.eval(), problems, rollouts, first.seed)
    config = {**CONFIG, "num_labels": 1}
    network = LlamaForTokenClassification(LlamaConfig(**config))
    network.model.load_state_dict(model.model.state_dict())
    train("countdown_verifier", network, exact_loss(first.batch), first)
    network, record = train("countdown_verifier", network, rollout_loss(tokens, labels, then.batch), then)
    record |= {
        "about": f"whether at least one of {rollouts} rollouts of countdown_reasoner from the end of a step succeeds",
        "data": "traces of training problems with noise, labelled by the solver, made at each step; then "
        f"{len(tokens)} answers of countdown_reasoner to training problems, {rollouts} rollouts from each step",
        "before": {**asdict(first), "noise": asdict(ASTRAY)},
        "config": config,
    }
    return ship("countdown_verifier", network, record, into)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["reasoner", "verifier"])
    parser.add_argument("--steps", type=int)
    parser.add_argument("--problems", type=int, default=6000, help="of the verifier's rollouts")
    parser.add_argument("--into", type=Path, default=WEIGHTS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.what == "reasoner":
        phases = PHASES if asked.steps is None else (replace(PHASES[-1], until=asked.steps),)
        print(reasoner(Settings(phases[-1].until, rate=2e-3, warmup=200, cooldown=1000), phases, asked.into))
    else:
        steps = asked.steps or 1800
        first = Settings(steps, rate=1e-3, cooldown=steps // 2)
        then = Settings(steps + 120, rate=2e-4, cooldown=120)
        print(verifier(first, then, asked.problems, into=asked.into))
