"""Small laws over tokens whose conditionals are known exactly, for tests of masked diffusion."""

import itertools

import numpy as np
import torch

import feynkac as fk

V, L, M = 3, 3, 3
"""Three tokens, three positions, and the mask."""
STATES = np.array(list(itertools.product(range(V), repeat=L)))
X0, X1, X2 = STATES.T
P = (1 + (7 * X0 + 3 * X1 + 5 * X2 + 2 * X0 * X1 + 4 * X1 * X2) % 11) / 198
P2 = (1 + (2 * X0 + 7 * X1 + 4 * X2 + 5 * X0 * X2) % 7) / 114
F = X0 + X1 * X2
REWARD = 0.7 * (X0 == 1) + 0.5 * (STATES == 2).sum(1) - 0.4 * (X1 == 0)


def conditionals(law, x):
    """Return μ (L, V): the law of the token at each position, given those of ``x`` that are no masks."""
    fits = ((x == STATES) | (x == M)).all(1)
    mass = np.array([[law[fits & (STATES[:, i] == v)].sum() for v in range(V)] for i in range(L)])
    return mass / mass.sum(1, keepdims=True)


class Exact:
    """The network that knows a law: logits (n, L, V + 1) of tokens (n, L), a shift of them for each position."""

    def __init__(self, law=P):
        codes = itertools.product(range(V + 1), repeat=L)
        with np.errstate(divide="ignore"):
            table = [np.log(conditionals(law, np.array(code))) for code in codes]
        table = np.pad(np.array(table), ((0, 0), (0, 0), (0, 1)), constant_values=5.0)  # the mask is never drawn
        self.table = torch.tensor(table + np.arange(L)[:, None])
        self.calls = 0

    def __call__(self, x, share):
        self.calls += 1
        return self.table[(x * torch.tensor([16, 4, 1])).sum(1)]


def model(rule, law=P, **settings):
    """Return masked diffusion whose network is exact."""
    return fk.diffusion.MaskedDiffusion(
        fk.diffusion.Network(Exact(law), "logits"), L, rule, vocabulary=V + 1, **settings
    )


def law_of(made, *, weighed=False):
    """Return what is exact of a model by enumerating all its paths: the probability (27,) of each final state.

    With ``weighed`` each path counts by its weight, too, and the probabilities are not normalised.
    """
    states = np.array(list(itertools.product(range(V + 1), repeat=L)))
    start = made.start(fk.keys.fold(fk.keys.root(0), np.arange(1)))
    batch, mass = start.state, np.exp(np.array(start.log_increment)) if weighed else np.ones(1)
    for _ in range(made.steps):
        n = len(batch)
        index = np.repeat(np.arange(n), len(states))
        moved = made.advance(made.select(batch, index), np.zeros(len(index), np.uint64), [*states] * n)
        gain = moved.log_prob + (moved.log_increment if weighed else 0.0)
        total = mass[index] * np.exp(gain)
        kept = np.flatnonzero(total > 0)
        batch, mass = made.select(moved.state, kept), total[kept]
        if not weighed:  # paths that meet go on together
            _, first, inverse = np.unique(batch.x.numpy(), axis=0, return_index=True, return_inverse=True)
            mass = np.bincount(inverse.ravel(), mass)
            batch = made.select(batch, first)
    final = np.zeros(len(STATES))
    np.add.at(final, (batch.x.numpy() * [9, 3, 1]).sum(1), mass)
    return final


def distance(law, other=P):
    """Return the total variation between two laws."""
    return 0.5 * np.abs(law - other).sum()
