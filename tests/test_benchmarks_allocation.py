"""The allocation benchmark: what it reads off laws and curves is exact, its rule is as stated, its short form runs."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.mark.parametrize("scores", [(0.95, 0.1, 0.4), (0.95, 0.92, 0.1), (0.5, 0.1, 0.2), (0.99, 0.95, 0.91)])
def test_stopping_at_a_score_is_its_enumeration(scores):
    import allocation

    law = allocation.Leaves(np.array([0.2, 0.3, 0.5]), np.array(scores), np.array([1.0, 0.0, 1.0]), np.ones(3), None)
    right = drawn = 0.0
    for answers in itertools.product(range(3), repeat=3):
        stop = next((j + 1 for j, a in enumerate(answers) if scores[a] >= allocation.ENOUGH), 3)
        best = max(answers[:stop], key=lambda a: scores[a])
        mass = math.prod(law.mass[list(answers)])
        right, drawn = right + mass * law.solved[best], drawn + mass * stop
    assert allocation.stopping(law, 3) == pytest.approx((right, drawn))


def test_tokens_for_an_accuracy_are_read_off_between_budgets():
    import allocation

    tokens, solved = np.array([[10.0], [100.0], [1000.0]]), np.array([[0.2], [0.4], [0.3]])
    assert allocation.needed((tokens, solved), 0.3, [0]) == pytest.approx(math.sqrt(1000.0))
    assert allocation.needed((tokens, solved), 0.1, [0]) == 10.0
    assert allocation.needed((tokens, solved), 0.5, [0]) == math.inf


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        ([(4, 9), (5, 9), (4.1, 9)], "holds"),
        ([(1, 3), (3, 5), (4, 9)], "holds from 128"),
        ([(1, 2), (2, 3), (1, 3.9)], "fails"),
        ([(4, 5), (1, 5), (1, 3)], "undecided"),
    ],
)
def test_the_verdict_is_as_it_is_written(ends, words):
    import allocation

    assert allocation.verdict([(sum(pair) / 2, *pair) for pair in ends]) == words


def test_a_way_that_is_uniform_itself_saves_nothing_and_one_at_half_the_price_saves_half():
    import allocation

    rng = np.random.default_rng(0)
    tokens = np.array(allocation.FINE)[:, None] * np.full((1, 30), 20.0)
    solved = 1 - (1 - rng.beta(0.5, 2.0, 30)) ** np.array(allocation.FINE)[:, None]
    curves = {"uniform": (tokens, solved), "same": (tokens, solved), "cheap": (tokens / 2, solved)}
    found = allocation.factors(curves, draws=50)
    assert np.allclose(found["same"], 1.0)
    assert np.allclose(found["cheap"], 2.0)


@pytest.mark.slow
def test_the_short_form_runs_and_goes_on_where_it_stopped(tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    import allocation

    monkeypatch.setattr(allocation, "DRAWS", 100)
    allocation.main(["--short", "--folder", str(tmp_path)])
    first = (tmp_path / "spent_countdown_4_20.jsonl").read_text()
    assert "verifier" in capsys.readouterr().out
    allocation.main(["--short", "--folder", str(tmp_path)])
    assert (tmp_path / "spent_countdown_4_20.jsonl").read_text() == first
    assert (tmp_path / "allocation.png").stat().st_size > 10_000
