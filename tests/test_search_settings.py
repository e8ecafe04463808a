"""Settings of searches: what is out of range, or of a wrong kind, is refused by name when an engine is made."""

from __future__ import annotations

import numpy as np
import pytest

import feynkac as fk


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fk.BeamSearch(0), "particles must be a positive integer"),
        (lambda: fk.BeamSearch(4, width=0), "width must be a positive integer"),
        (lambda: fk.BeamSearch(4, lookahead=-1), "lookahead is a number of steps"),
        (lambda: fk.BeamSearch(4, score="mean"), 'score must be "last", "product" or "min", not \'mean\''),
        (lambda: fk.BeamSearch(4, temperature=0.0), "temperature must be positive and finite"),
        (lambda: fk.BeamSearch(4, all_dead="no"), "all_dead must be"),
        (lambda: fk.DVTS(5, width=2), "particles must be a multiple of the width 2, not 5"),
        (lambda: fk.Rebase(4, balance=0.0), "balance must be positive"),
        (lambda: fk.Rebase(4, chains=0), "chains must be a positive integer"),
        (lambda: fk.AStar(0), "expansions must be a positive integer"),
        (lambda: fk.AStar(4, results=0), "results must be a positive integer"),
        (lambda: fk.AStar(4, cost="up"), 'cost must be "rises", "falls"'),
        (lambda: fk.AStar(4, heuristic=1.0), "heuristic must be a function"),
        (lambda: fk.MCTS(0), "simulations must be a positive integer"),
        (lambda: fk.MCTS(4, rule="ucb"), 'rule must be "uct" or "puct"'),
        (lambda: fk.MCTS(4, value="mean"), 'value must be "score" or "rollout"'),
        (lambda: fk.MCTS(4, explore=-1.0), "explore must be finite and not negative"),
        # What is no number, or no collection.
        (lambda: fk.MCTS(4, explore="1"), "explore must be finite and not negative, not '1'"),
        (lambda: fk.BeamSearch(True), "particles must be a positive integer, not True"),
        (lambda: fk.BeamSearch(4, temperature="1"), "temperature must be positive and finite, or None .* not '1'"),
        (lambda: fk.BeamSearch(4, temperature=True), "temperature must be positive and finite, or None .* not True"),
        (lambda: fk.Rebase(4, balance="1"), "balance must be positive and finite, not '1'"),
        (lambda: fk.NoiseSearch(4, cosine=None), "cosine must be between -1 and 1, not None"),
        (lambda: fk.TreeSampling("8"), "rollouts must be a positive integer, not '8'"),
        (lambda: fk.TreeSampling(8, width=None), "width must be positive, not None"),
        (lambda: fk.TreeSampling(8, growth="1"), r"growth is a fraction, in \[0, 1\], not '1'"),
        (lambda: fk.TreeSampling(8, branch_at=3), r"branch_at holds depths from 0 up, such as \(4,\), .* not 3"),
        (lambda: fk.TreeSearch(8, explore="1"), "explore must not be negative, not '1'"),
        (lambda: fk.TreeOfFrames(2, 2), r"branching is how many children nodes get, .* such as \(8, 2\), not 2"),
        (lambda: fk.TreeOfFrames(None, 2), "branching is how many children nodes get, .*, not None"),
        (lambda: fk.TreeOfFrames("22", 2), "every entry of branching must be a positive integer, not '2'"),
        (lambda: fk.TreeOfFrames((2,), 2, judged=3), r"judged holds depths from 0 up, such as \(4,\), .* not 3"),
        (lambda: fk.TreeOfFrames((2,), 2, judged=("a",)), r"judged holds depths .* not \('a',\)"),
    ],
)
def test_settings_are_checked_when_they_are_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_collections_of_any_kind_are_taken():
    assert fk.TreeOfFrames(np.array([4, 2]), 2, judged={1, 0}) == fk.TreeOfFrames((4, 2), 2, judged=[0, 1])
    assert fk.TreeSampling(8, branch_at=range(3)).branch_at == range(3)
