"""The reasoning benchmark: what it reads off a tape is exact, its rules are as stated, its picture has no overlaps."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

import feynkac as fk
from feynkac.models.testing import ScriptedLM
from laws import Z_LIMIT, z_score

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
PROBLEM = fk.tasks.Countdown((2, 3, 4), 20)
SAID = {
    "": {"3+2=5 (4 5)\n": 0.6, "4-3=1 (2 1)\n": 0.4},
    "3+2=5 (4 5)\n": {"5*4=20 (20)": 0.3, "5+4=9 (9)": 0.7},
    "4-3=1 (2 1)\n": {"2*1=2 (2)": 0.8, "2+1=3 (3)": 0.2},
}


class Graded:
    """Scores that tell the answers apart, and one of which fools."""

    def details(self, inputs):
        last = {"5*4=20 (20)": 0.8, "5+4=9 (9)": 0.3, "2*1=2 (2)": 0.9, "2+1=3 (3)": 0.3}
        return [[last.get(step, 0.5) for step in str(text).splitlines()] for _, text in inputs]


@pytest.fixture(autouse=True)
def path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def tape():
    lm = ScriptedLM(lambda before: SAID[before.removeprefix(PROBLEM.prompt)])
    return fk.tasks.Tape.record(lm, [PROBLEM]).scored(old=Graded())


def test_best_of_n_of_a_tape_is_its_enumeration(tape):
    from common.leaves import leaves, pooled

    (answers,) = leaves(tape, 1, "old", lambda text: text[-4:])
    law = {0.8: (0.18, 1), 0.3: (0.42 + 0.08, 0), 0.9: (0.32, 0)}
    for n, cell in zip((1, 3), (c for c in pooled(tape, 1, "old", len, (1, 3), votes=False))):
        exact = sum(np.prod([law[s][0] for s in some]) * law[max(some)][1] for some in itertools.product(law, repeat=n))
        assert cell.solved[0] == pytest.approx(exact)
        assert cell.tokens[0] == pytest.approx(n * float(answers.mass @ answers.tokens))
    assert answers.mass.sum() == pytest.approx(1)
    assert cell.reward_calls[0] == pytest.approx(sum(1 - (1 - p) ** 3 for p in answers.mass))


def test_votes_of_a_tape_are_those_of_its_answers(tape):
    from common import leaves

    (answers,) = leaves.leaves(tape, 1, "old", lambda text: text.rsplit("(")[-1])
    found = [leaves._polls(answers, 3, np.random.default_rng(seed)) for seed in range(40)]
    claims = [(p, s, right) for p, s, right in zip(answers.mass, answers.score, answers.solved)]

    def wins(some, weight):
        votes = {}
        for i in some:
            votes[i] = votes.get(i, 0.0) + weight(claims[i])
        # The first claim of the tape wins a tie, as in the benchmark.
        return claims[max(sorted(votes, key=lambda i: answers.claim[i]), key=lambda i: round(votes[i], 9))][2]

    for column, weight in enumerate((lambda c: 1.0, lambda c: c[1])):
        exact = sum(
            np.prod([claims[i][0] for i in some]) * wins(some, weight)
            for some in itertools.product(range(len(claims)), repeat=3)
        )
        # 2 comparisons at |z| < 4.265: 4e-5.
        assert abs(z_score(np.array([each[column] for each in found]), exact)) < Z_LIMIT


def cell(engine, n, solved, tokens):
    from common.cells import Cell

    solved = np.asarray(solved, float)
    return Cell(engine, n, solved, np.full(len(solved), float(tokens)), np.full(len(solved), tokens / 10))


def test_costs_at_equal_accuracy_and_accuracies_at_equal_cost_are_read_off_the_log_cost_curve():
    from common.cells import at_cost, needed, ratio

    assert needed(np.array([1.0, 100.0]), np.array([0.2, 0.6]), 0.4) == pytest.approx(10)
    assert needed(np.array([1.0, 10.0, 100.0]), np.array([0.5, 0.4, 0.6]), 0.45) == 1.0  # the first crossing
    assert needed(np.array([1.0, 10.0]), np.array([0.2, 0.6]), 0.7) == np.inf
    curve = [cell("a", 2, [0, 1], 10), cell("a", 4, [1, 1], 1000)]
    assert at_cost(curve, "tokens", 100).tolist() == pytest.approx([0.5, 1])
    assert at_cost(curve, "tokens", 5000) is None
    rng = np.random.default_rng(0)
    base = rng.random(400)
    dear = [cell("b", n, base < level, 40 * n) for n, level in ((2, 0.3), (4, 0.5), (8, 0.7))]
    cheap = [cell("a", n, base < level, 10 * n) for n, level in ((2, 0.3), (4, 0.5), (8, 0.7))]
    found = ratio(cheap, dear, 4, "tokens")
    assert found == pytest.approx((0.25, 0.25, 0.25))
    apart = [cell("a", n, rng.random(400) < level, 10 * n) for n, level in ((2, 0.3), (4, 0.5), (8, 0.7))]
    middle, low, high = ratio(apart, dear, 4, "tokens")
    assert low < 0.25 < high
    assert low < middle < high


def test_verdicts_follow_their_rule():
    from common.cells import gathered
    from common.verdicts import a_star, looking, particle_filtering

    rng = np.random.default_rng(1)
    u = rng.random(300)
    sizes = (2, 4, 8, 16, 32, 64, 128)
    rising = {n: 0.1 * np.log2(n) for n in sizes}

    def grid(lead):
        """A filter that is as good at N as its rivals at N·lead."""
        own = [cell("particle filter", n, u < 0.1 * np.log2(n * lead), 30 * n) for n in sizes[:5]]
        rivals = [cell(name, n, u < rising[n], 30 * n) for name in ("best-of-N", "beam") for n in sizes]
        return own + rivals

    assert particle_filtering(gathered(grid(4)), "beam")["verdict"] == "holds"
    assert particle_filtering(gathered(grid(2)), "beam")["verdict"] == "fails"
    late = [c for c in grid(4) if c.engine != "particle filter" or c.particles > 4]
    late += [c for c in grid(1) if c.engine == "particle filter" and c.particles <= 4]
    assert particle_filtering(gathered(late), "beam")["verdict"] == "holds from N = 8"
    flat = [cell("particle filter", n, u < 0.5, 30 * n) for n in sizes[:5]]
    flat += [cell("beam", n, u < 0.5, 30 * n) for n in sizes]
    assert particle_filtering(gathered(flat), "beam")["verdict"] == "fails"  # no worse, but no better at N either

    searched = [cell("A*, N children", n, u < 0.1 * np.log2(n), 9 * n) for n in sizes]
    assert a_star(gathered(grid(1) + searched))["verdict"] == "holds"
    half = [cell("A*, N children", n, u < 0.1 * np.log2(n), 15 * n) for n in sizes]
    assert a_star(gathered(grid(1) + half))["verdict"].startswith("fails (cheaper at N = 4, 8, 16, 32")

    plain = [cell("systematic filter", n, u < 0.1 * np.log2(n), 30 * n) for n in sizes]
    better = [cell("look-ahead SMC", n, u < 0.1 * np.log2(2 * n) + 0.05, 60 * n) for n in sizes[1:5]]
    found = looking(gathered(plain + better), "look-ahead SMC")
    assert found["verdict"] == "holds"
    assert found["mean"][0] == pytest.approx(0.05, abs=0.02)
    same = [cell("look-ahead SMC", n, u < 0.1 * np.log2(n), 60 * n) for n in sizes[1:5]]
    assert looking(gathered(plain + same), "look-ahead SMC")["verdict"] == "fails: it costs accuracy"


def test_names_in_the_picture_do_not_touch():
    from common.multiples import spread

    heights = [0.0, 0.01, 0.5, 0.505, 0.51, 0.97, 0.99]
    placed = np.array(spread(heights, 0.06))
    assert (np.diff(placed) > 0.0599).all()
    assert placed.min() >= 0
    assert placed.max() <= 1
    assert abs(placed[3] - 0.505) < 1e-9


@pytest.mark.slow
def test_a_cassette_replays_the_headlines(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    import reasoning

    tape = BENCHMARKS / "cassettes" / "countdown_4.npz"
    options = ["--cassette", str(tape), "--problems", "3", "--sizes", "2", "8", "--verifier", "old"]
    reasoning.main([*options, "--folder", str(tmp_path)])
    said = capsys.readouterr().out
    assert "particle filter at N against best-of-N at 4N" in said
    table = json.loads((tmp_path / "reasoning_countdown_4_old_3_table.json").read_text())
    assert {row["engine"] for row in table} >= {"particle filter", "best-of-N", "A*, N children", "learned twist"}
    first = (tmp_path / "reasoning_countdown_4_old_3.jsonl").read_text()
    reasoning.main([*options, "--folder", str(tmp_path)])  # goes on where it stopped: at the end
    assert (tmp_path / "reasoning_countdown_4_old_3.jsonl").read_text() == first
