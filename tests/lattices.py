"""Ising lattices whose laws are known in full, for tests of jump processes."""

import itertools

import numpy as np

import feynkac as fk


def lattice(side, field=0.0):
    """Return the states of a periodic lattice as spins (2^N, N), and their energies −Σ ss′ − h·Σ s, two bonds each."""
    spins = np.array(list(itertools.product((-1, 1), repeat=side * side)))
    grid = spins.reshape(-1, side, side)
    bonds = (grid * (np.roll(grid, 1, 1) + np.roll(grid, 1, 2))).sum((1, 2))
    return spins, -bonds - field * grid.sum((1, 2))


def law(energy, beta):
    """Return the probabilities at an inverse temperature."""
    weight = np.exp(-beta * (energy - energy.min()))
    return weight / weight.sum()


def table(p):
    """Return the exact networks of a law of spins (2^N,)."""
    return fk.diffusion.TokenTable(p.reshape((2,) * int(np.log2(len(p)))))
