"""What the benchmarks measure by: distances, best-of-N, records that survive a stop; and that the scripts load."""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import feynkac as fk
from laws import Z_LIMIT, z_score

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.mark.parametrize("script", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda script: script.stem)
def test_each_script_finds_what_it_imports(script, monkeypatch):
    for library in ("diffusers", "scipy", "torch"):
        pytest.importorskip(library)
    spec = importlib.util.spec_from_file_location(f"benchmark_{script.stem}", script)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    assert callable(module.main)


def normals(rng, n, shift=0.0):
    return rng.normal(size=(n, 3)) + shift


def test_the_distance_between_samples_of_one_law_is_zero_on_average():
    from common.kernel_distance import Sample, between

    rng = np.random.default_rng(0)
    same = [between(*(Sample.even(normals(rng, 8)) for _ in "ab")) for _ in range(400)]
    apart = [between(Sample.even(normals(rng, 8)), Sample.even(normals(rng, 8, 0.8))) for _ in range(400)]
    assert abs(z_score(np.array(same), 0.0)) < Z_LIMIT
    assert z_score(np.array(apart), 0.0) > Z_LIMIT


def test_the_distance_of_a_population_is_the_mean_over_draws_from_it():
    from common.kernel_distance import Sample, between, distance

    rng = np.random.default_rng(1)
    points, weights = normals(rng, 6), rng.dirichlet(np.ones(6))
    truth = Sample(normals(rng, 40), rng.dirichlet(np.ones(40)))
    drawn = [between(Sample.even(points[rng.choice(6, n, p=weights)]), truth) for n in (2, 5, 30) for _ in range(2000)]
    for made in np.split(np.array(drawn), 3):
        assert abs(z_score(made, distance(Sample(points, weights), truth))) < Z_LIMIT
    # One point with all the weight is farther than many.
    one, many = Sample(points[:1], np.ones(1)), Sample.even(normals(rng, 400))
    far = Sample.even(normals(rng, 400))
    assert distance(one, far) > 5 * abs(distance(many, far))


def test_best_of_n_from_a_pool_is_its_enumeration_and_what_a_reward_needs_is_the_first_n_that_has_it():
    from common.best_of_n import expected, needed

    pool = np.random.default_rng(2).exponential(size=9).round(1)
    worth = [np.mean([max(some) for some in itertools.combinations(pool, n)]) for n in range(1, 10)]
    assert [expected(pool, n) for n in range(1, 10)] == pytest.approx(worth)
    for n, reward in enumerate(worth, 1):
        assert needed(pool, reward - 1e-6) == n
    assert needed(pool, worth[-1] + 1e-6) == np.inf


def test_results_survive_a_stop(tmp_path):
    from common.records import Records

    file = tmp_path / "some" / "results.jsonl"
    records = Records(file, ("engine", "seed"))
    records.add({"engine": "a", "seed": 0, "found": 1.5})
    records.add({"engine": "a", "seed": 1, "found": 2.5})
    with file.open("a", encoding="utf-8") as cut:
        cut.write('{"engine": "b", "see')
    again = Records(file, ("engine", "seed"))
    assert [row["found"] for row in again.rows] == [1.5, 2.5]
    assert {"engine": "a", "seed": 1} in again
    assert {"engine": "b", "seed": 0} not in again
    again.add({"engine": "b", "seed": 0, "found": 3.5})
    assert Records(file, ("engine", "seed")).rows == again.rows
    with pytest.raises(ValueError, match="already"):
        again.add({"engine": "b", "seed": 0, "found": 4.5})


@pytest.mark.slow
def test_the_benchmark_of_trees_runs_every_engine_and_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch")
    import trees

    monkeypatch.setattr(sys, "argv", ["trees.py", "--short", "--folder", str(tmp_path)])
    trees.main()
    told = capsys.readouterr().out
    assert all(f"even, {name}, seed 0" in told for name in (*trees.OTHERS, *trees.TREES))
    assert all(f"{tree}: open" in told for tree in trees.TREES)
    trees.main()
    assert ", seed 0" not in capsys.readouterr().out
    assert len((tmp_path / "trees_short.jsonl").read_text().splitlines()) == 7


def distances(task, engine, times):
    """Rows of an engine that needs so many times fewer evaluations than 1/NFE, a little off by seed."""
    budgets = (1000, 10_000, 100_000)
    return [
        {"task": task, "engine": engine, "seed": s, "budget": b, "nfe": b, "distance": (1 + 0.01 * s) / times / b}
        for s in range(3)
        for b in budgets
    ]


def test_a_saving_is_the_ratio_of_evaluations_and_the_rule_needs_all_tasks():
    import trees

    rows = []
    for task, times in zip(trees.TASKS, (20.0, 14.0, 4.0)):
        rows += distances(task, "importance", 1.0) + distances(task, "FK", 0.7) + distances(task, "tree", times)
    found = [trees.saving(rows, task, "tree") for task in trees.TASKS]
    assert [one.times for one in found] == pytest.approx([20.0, 14.0, 4.0], rel=1e-6)
    assert [(one.best, one.top) for one in found] == [("importance", 100_000)] * 3
    assert all(one.low <= one.times <= one.high < 1.05 * one.times for one in found)
    assert [trees.verdict(found), trees.verdict(found[:2]), trees.verdict([*found[:2], None])] == [
        "fails",
        "holds",
        "open",
    ]
    # Where one seed of one engine is missing, the top is below; a tree that does worse needs more.
    fewer = [row for row in rows if (row["engine"], row["seed"], row["budget"]) != ("FK", 2, 100_000)]
    assert trees.saving(fewer, "4", "tree").top == 10_000
    worse = distances("4", "importance", 1.0) + distances("4", "FK", 0.7) + distances("4", "tree", 0.5)
    assert trees.saving(worse, "4", "tree").times == pytest.approx(0.5)


def test_the_published_descent_follows_the_values():
    import trees

    from feynkac.inference.search.growth import Fork

    fork = Fork()
    fork.reach.extend([0.0, -np.inf, np.log(2.0), np.log(0.5)])
    chosen = [trees.by_value(fork, coin) for coin in (np.arange(700) + 0.5) / 700]
    assert np.bincount(chosen).tolist() == [200, 0, 400, 100]


@pytest.mark.slow
def test_recipes_on_the_cassette_run_in_their_short_form(capsys):
    pytest.importorskip("optuna")
    import recipes_tape

    recipes_tape.main(["--short"])
    said = capsys.readouterr().out
    assert [line[:-1] for line in said.splitlines() if line.endswith(":") and line[0] != " "] == list(recipes_tape.ROWS)
    assert said.count("difference") == 4 + 1 + 2 + 1


def test_the_law_of_an_answer_by_smc_on_coins_is_the_closed_form():
    import rejection

    import feynkac as fk

    # 2 comparisons at |z| < 4.26: a correct engine fails with probability 4e-5.
    for n in (2, 5):
        found = fk.infer([rejection.Chain(5)] * 250, rejection.paper(n), seed=n)
        assert abs(z_score([p.expect(float) for p in found], 5 * rejection.drawn(n))) < Z_LIMIT
    assert rejection.drawn(1) == pytest.approx(0.5)
    assert rejection.drawn(2) == pytest.approx(0.5 * 0.5 + 0.5 * 0.75)
    assert rejection.distance(rejection.needed(16), 16) <= 0.1 < rejection.distance(rejection.needed(16) - 1, 16)


@pytest.mark.slow
def test_the_short_forms_of_rejection_and_of_diagnose_run(tmp_path, capsys):
    import diagnose
    import reasoning
    import rejection

    rejection.main(["--short", "--folder", str(tmp_path), "--plot", str(tmp_path / "rejection.png")])
    some = ["--problems", "20", "--sizes", "2", "4", "8", "--engines", "particle filter", "A*, N children"]
    reasoning.main(["--short", "--verifier", "value", "--folder", str(tmp_path), *some])
    diagnose.main(["--short", "--verifier", "value", "--folder", str(tmp_path), "--plot", str(tmp_path / "d.png")])
    said = capsys.readouterr().out
    assert "5. Countdown" in said
    assert "8 answers: " in said
    assert (tmp_path / "rejection.png").exists()
    assert (tmp_path / "d.png").exists()


@pytest.mark.slow
def test_the_short_forms_of_power_and_of_speculative_run(tmp_path, capsys):
    import power
    import speculative

    power.main(["--short", "--folder", str(tmp_path), "--plot", str(tmp_path / "power.png")])
    speculative.main(["--short", "--folder", str(tmp_path)])
    said = capsys.readouterr().out
    assert "2. Countdown" in said
    assert "rejection γ=3" in said
    assert (tmp_path / "power.png").exists()


def test_what_power_and_speculative_measure_by():
    """The share under p^α that the tape knows, and the law and passes of speculative decoding, against plain sums."""
    import power
    import speculative

    lm = fk.models.testing.ScriptedLM(lambda before: {"6/2=3": 0.5, "6-2=4": 0.3, "6+2=9": 0.2})
    tape = fk.tasks.Tape.record(lm, [fk.tasks.Countdown((2, 6), 3)])
    assert power.sharpened(tape)[0] == pytest.approx(0.5**4 / (0.5**4 + 0.3**4 + 0.2**4))
    assert power.exact(3).sum() == pytest.approx(1.0)
    halves = [np.array([0.6, 0.4, 0.0])] * 2
    assert power.distance(halves, np.array([0.5, 0.3, 0.2])) == pytest.approx(0.2)
    rows = [{"tokens": 10.0, "distance": 0.4}, {"tokens": 40.0, "distance": 0.2}]
    assert power.fewest(rows, 0.3) == pytest.approx(20.0)
    assert power.fewest(rows, 0.1) == -40.0
    rng, law = np.random.default_rng(0), speculative.law()
    numbers, passes = np.array([speculative.rejecting(3, rng) for _ in range(1500)]).T
    for place in np.argsort(law)[-3:]:
        assert abs(z_score(numbers == place, law[place])) < Z_LIMIT
    assert 2 <= passes.min() <= passes.max() <= 8


def test_steering_of_masked_models_is_judged_by_its_rule():
    pytest.importorskip("torch")
    import masked_digits

    texts, p = masked_digits.law()
    task = masked_digits.TASKS["many d"]
    assert p.sum() == pytest.approx(1.0)
    assert masked_digits.best_of_law(task, 1) == pytest.approx(p @ np.array(task.reward(texts)))
    assert masked_digits.best_of_law(task, 10_000) == pytest.approx(6.0, abs=0.01)
    sizes = [4, 16, 64]
    for ahead, said in (
        ([True, True, True], "holds"),
        ([False, True, True], "holds from N = 16"),
        ([True, True, False], "holds up to N = 16"),
        ([True, False, True], "fails"),
        ([False, True, False], "fails"),
        ([False, False, False], "fails"),
    ):
        assert masked_digits.verdict(ahead, sizes) == said


@pytest.mark.slow
def test_the_short_form_of_masked_digits_runs_and_goes_on_where_it_stopped(tmp_path, capsys):
    pytest.importorskip("torch")
    import masked_digits

    for _ in range(2):
        masked_digits.main(["--short", "--folder", str(tmp_path), "--plot", str(tmp_path / "p.png")])
    said = capsys.readouterr().out
    assert said.count("exact mean of the target 5.177") == 2
    assert (tmp_path / "p.png").exists()


@pytest.mark.slow
def test_the_short_form_of_image_tokens_runs(capsys):
    import image_tokens

    image_tokens.main(["--short"])
    line = json.loads(capsys.readouterr().out)
    assert line["s"] == 0.5
    assert line["affordable"] == (line["ess"] >= 0.2)
