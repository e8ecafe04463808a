"""Train a process reward model of Countdown that knows early: the chance of success of the reasoner.

    python training/countdown_early.py

Picks up from its last checkpoint. ``--states``, ``--whole``, ``--problems`` and ``--into`` make a small run for tests.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from countdown import CONFIG, WEIGHTS
from countdown_chances import dataset, ends
from countdown_data import CLOSE, GOAL, LINE, step, take
from loop import Settings, ship, train
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForTokenClassification

from feynkac.models.fetch.shelf import Shelf
from feynkac.models.tasks.countdown import LARGEST, LIMIT, SMALLEST_TARGET
from feynkac.models.tasks.shipped import FIRST, SPACED

WIDER: dict[str, Any] = {
    **CONFIG,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "head_dim": 32,
    "num_labels": 1,
}
"""The reasoner's settings, half as wide again."""
TABLES, HITS = 2, 3
"""After how many layers the heads read what pairs make, and what two pairs share."""
PAIRS = ((2, 3), (0, 3), (1, 3), (0, 1), (1, 2), (0, 2))
"""Of three numbers and the target (3): the pair that each of six tokens is asked about."""
AT = (-6, -4, -3, -2, -1, 0)
"""These tokens, from the end of a line with three numbers left: result, three numbers, bracket, end."""
SOURCES = ((0.75, 4, 1), (0.88, 5, 2), (0.96, 4, 2), (1.0, 5, 3))
"""States: up to which share, of how many numbers, after how many steps."""
NAME = "countdown_verifier_early"


def _table() -> Any:
    """Return which three numbers are a step, (a, b, c) → bool: one is the sum or the product of the others."""
    a, b = np.ogrid[: LIMIT + 1, : LIMIT + 1]
    found = np.zeros((LIMIT + 1,) * 3, bool)
    for c in (a + b, a * b):
        x, y = np.nonzero((a >= 1) & (b >= 1) & (c <= LIMIT))
        z = c[x, y]
        found[x, y, z] = found[x, z, y] = found[z, x, y] = True
    return found


STEP = _table()


@dataclass(frozen=True)
class Hints:
    """What hidden layers are asked at six tokens of a line with three numbers left.

    That three numbers are a step does not depend on their order. So a target is in reach of three numbers if the four
    fall into two pairs that make a step with the same fifth number.

    Attributes:
        makes: numbers that make a step with each of `PAIRS`, shape (n, 6, 101).
        goal: the target (n,), which the first three of the tokens are asked for too: they learn to look for it.
    """

    makes: Any
    goal: Any

    @classmethod
    def of(cls, state: Any, goal: Any) -> Hints:
        four = np.column_stack([state, goal])
        return cls(np.stack([STEP[four[:, i], four[:, j]] for i, j in PAIRS], 1), goal)

    @property
    def shares(self) -> Any:
        """What the two pairs of each of the three ways to make them have in common, shape (n, 3, 101)."""
        return self.makes[:, :3] & self.makes[:, 3:]


class Taught(nn.Module):
    """The network with heads on hidden layers, which are thrown away after training."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        size = network.config.hidden_size
        outputs = {"seeks": LIMIT + 1, "makes": LIMIT + 1, "other": LIMIT + 1, "shares": LIMIT + 1}
        self.heads = nn.ModuleDict({k: nn.Sequential(nn.RMSNorm(size), nn.Linear(size, n)) for k, n in outputs.items()})

    def loss(
        self, tokens: Any, ends: list[int], labels: Any, hints: tuple[list[int], Hints] | None, places: Any = None
    ) -> Any:
        """Return the loss at the ends of lines, and of the hints at some tokens.

        Half of the layers seek the target and list what pairs make; the next copies the list of the pair that is left,
        and finds what both lists share.
        """
        out = self.network.model(
            input_ids=torch.from_numpy(tokens),
            attention_mask=torch.ones(tokens.shape, dtype=torch.long),  # else gaps in places pass for separate texts
            position_ids=None if places is None else torch.from_numpy(places)[None],
            use_cache=False,
            output_hidden_states=True,
        )
        total = _bits(self.network.score(out.last_hidden_state[:, ends])[..., 0], labels)
        if hints is not None:
            at, told = hints
            early, late = out.hidden_states[TABLES], out.hidden_states[HITS]
            seeks = self.heads["seeks"](early[:, at[:3]]).float()
            total = total + cross_entropy(seeks.flatten(0, 1), torch.from_numpy(told.goal).repeat_interleave(3))
            total = total + 30 * _bits(self.heads["makes"](early[:, at]), told.makes)
            total = total + 10 * _bits(self.heads["other"](late[:, at[3:]]), told.makes[:, :3])
            total = total + 30 * _bits(self.heads["shares"](late[:, at[3:]]), told.shares)
        return total


def _bits(logits: Any, labels: Any) -> Any:
    return binary_cross_entropy_with_logits(logits.float(), torch.from_numpy(np.asarray(labels, np.float32)))


def waves(network: Any) -> None:
    """Let the embeddings of numbers begin as waves of the number and of its logarithm: sums and products are near."""
    weight = network.model.embed_tokens.weight
    number = torch.arange(LIMIT + 1.0)
    each = weight.shape[1] // 4
    turns = torch.logspace(0, -1.6, each) * torch.pi
    phases = torch.cat([number[:, None] * turns, (number + 0.5).log()[:, None] * turns * 8], 1)
    code = torch.cat([phases.cos(), phases.sin()], 1) * network.config.initializer_range * 2**0.5
    with torch.no_grad():
        for first in (FIRST, SPACED):
            weight[first : first + LIMIT + 1] = 0.3 * weight[first : first + LIMIT + 1] + code


def states(n: int, rng: Any) -> tuple[Any, Any, Any, Any]:
    """Return rows that end with the numbers left, (n, t), and the places of their tokens in a trace, goals and states.

    Between the target and the numbers all tokens are left out. Half of the goals are in reach.
    """
    u = rng.random()
    numbers, taken = next((numbers, taken) for upto, numbers, taken in SOURCES if u < upto)
    state = rng.integers(1, LARGEST + 1, (n, numbers))
    for _ in range(taken):
        state = take(state, *step(state, rng))
    goal = state
    while goal.shape[1] > 1:
        goal = take(goal, *step(goal, rng))
    goal = np.where(
        (rng.random(n) < 0.5) & (goal[:, 0] >= SMALLEST_TARGET), goal[:, 0], rng.integers(SMALLEST_TARGET, LIMIT + 1, n)
    )
    sign = {token: np.full((n, 1), token) for token in (GOAL, CLOSE, LINE)}
    row = [
        sign[GOAL],
        SPACED + goal[:, None],
        FIRST + state[:, -1:],
        FIRST + state[:, :1],
        SPACED + state[:, 1:],
        sign[CLOSE],
        sign[LINE],
    ]
    last = numbers + 2 + sum(8 + numbers - i for i in range(1, taken + 1))
    left = numbers - taken
    return np.concatenate(row, 1), np.r_[numbers, numbers + 1, last - left - 3, last - left - 1 : last + 1], goal, state


def in_reach(state: Any, goal: Any) -> Any:
    """Return whether goals (n,) are in reach of two or three numbers each."""
    if state.shape[1] == 2:
        return STEP[state[:, 0], state[:, 1], goal]
    return Hints.of(state, goal).shares.any((1, 2))


def first_loss(batch: int) -> Any:
    """Return the loss of what is in reach, of states alone."""

    def loss(taught: Any, generator: Any) -> Any:
        rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        tokens, places, goal, state = states(batch, rng)
        hints = ([2, 3, 4, 5, 6, 7], Hints.of(state, goal)) if state.shape[1] == 3 else None
        return taught.loss(tokens, [tokens.shape[1] - 1], in_reach(state, goal)[:, None], hints, places)

    return loss


def then_loss(data: dict[int, tuple[Any, Any]], batch: int, cut: float) -> Any:
    """Return the loss of the chances after the steps of answers; some batches are cut where three numbers are left.

    Four numbers come three times as often as five.
    """

    def loss(taught: Any, generator: Any) -> Any:
        rng = np.random.default_rng(int(torch.randint(2**62, (1,), generator=generator)))
        numbers, short = (4 if rng.random() < 0.75 else 5), rng.random() < cut
        places, rows = ends(numbers), 2 * batch if short else batch
        index = rng.integers(0, len(data[numbers][0]), rows)
        tokens, chances = (part[index].numpy() for part in data[numbers])
        last = places[numbers - 4]
        state, goal = tokens[:, last - 4 : last - 1] - [FIRST, SPACED, SPACED], tokens[:, numbers + 1] - SPACED
        if short:
            tokens, places = tokens[:, : last + 1], places[: numbers - 3]
        return taught.loss(tokens, places, chances[:, : len(places)], ([last + at for at in AT], Hints.of(state, goal)))

    return loss


def early(first: Settings, then: Settings, last: Settings, problems: int, into: Path = WEIGHTS) -> Path:
    """Train the process reward model that knows early, and write its weights."""
    torch.manual_seed(first.seed)
    network = LlamaForTokenClassification(LlamaConfig(**WIDER))
    waves(network)
    taught = Taught(network)
    model = LlamaForCausalLM(LlamaConfig(**CONFIG))
    model.load_state_dict(Shelf(into).weights("countdown_reasoner"))
    data = dataset(model.eval(), problems, first.seed)
    train(NAME, taught, first_loss(first.batch), first)
    train(NAME, taught, then_loss(data, then.batch, cut=0.5), then)
    averaged, record = train(NAME, taught, then_loss(data, last.batch, cut=0.0), last)
    answers = {numbers: len(rows) for numbers, (rows, _) in data.items()}
    record |= {
        "about": "the probability that countdown_reasoner, sampled on from the end of a step, succeeds",
        "data": "random numbers left and targets, labelled by whether they are in reach, made at each step; then "
        f"{answers[4]} answers of countdown_reasoner to training problems of 4 numbers and {answers[5]} of 5, with the "
        "exact probability of success after each step",
        "before": [asdict(first), asdict(then)],
        "config": WIDER,
    }
    return ship(NAME, averaged.network, record, into)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--states", type=int, default=800, help="steps on numbers left alone")
    parser.add_argument("--whole", type=int, default=600, help="steps on answers")
    parser.add_argument("--last", type=int, default=300, help="steps on answers that are not cut")
    parser.add_argument("--problems", type=int, default=10000)
    parser.add_argument("--into", type=Path, default=WEIGHTS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    first = Settings(asked.states, batch=128, rate=2e-3, warmup=20, average=0.99, save_every=50, bfloat16=True)
    then = replace(first, steps=asked.states + asked.whole, batch=48, rate=1.5e-3, cooldown=asked.whole)
    last = replace(then, steps=then.steps + asked.last, rate=1e-3, cooldown=asked.last)
    print(early(first, then, last, asked.problems, asked.into))
