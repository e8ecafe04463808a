"""What the benchmarks measure by: distances, best-of-N, records that survive a stop; and that the scripts load."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

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
