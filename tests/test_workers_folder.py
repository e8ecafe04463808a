"""Posteriors in a folder: written as they come, read on demand, gone on with, and never mixed with those of others."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from test_workers import ALONE, ENGINE, MODELS, Fake, Trouble, facts, walk

import feynkac as fk
from feynkac.inference.workers.folder import Folder


def test_a_folder_holds_what_a_run_without_one_returns(tmp_path):
    found = fk.infer(MODELS, ENGINE, seed=3, save=tmp_path / "runs" / "walks")
    assert type(found) is fk.Posteriors
    assert (len(found), found.missing) == (11, ())
    assert list(map(facts, found)) == list(map(facts, ALONE))
    assert repr(found) == f"<11 of 11 posteriors in {tmp_path / 'runs' / 'walks'}>"
    again = fk.Posteriors(found.folder)
    assert facts(again[-1]) == facts(ALONE[10])
    assert [facts(p) for p in again[2:6:2]] == [facts(ALONE[2]), facts(ALONE[4])]
    assert facts(fk.Posterior.load(again.path(5))) == facts(ALONE[5])
    with pytest.raises(IndexError):
        again[11]


def test_the_same_line_goes_on_with_what_is_missing(tmp_path):
    seen: list[object] = []
    bad = [walk(2, 1.0, "raises") if i == 7 else model for i, model in enumerate(MODELS)]
    with pytest.raises(Trouble) as caught:
        fk.infer(bad, ENGINE, seed=3, save=tmp_path / "bad")
    assert caught.value.posterior.missing == (7,)
    assert caught.value.posterior[7].stopped == "error"
    with pytest.raises(FileNotFoundError, match="problem 7 of 11 has no posterior in"):
        fk.Posteriors(tmp_path / "bad")[7]
    cut = fk.infer(
        MODELS, ENGINE, seed=3, workers=Fake(2), save=tmp_path / "cut",
        callbacks=[lambda step: seen.append(step) or len(seen) == 25],
    )  # fmt: skip
    left = cut.missing
    assert 0 < len(left) < 11
    assert {cut[i].stopped for i in cut.missing} == {"callback"}
    assert all(cut[i].stopped is None for i in range(11) if i not in cut.missing)
    fake = Fake(4)
    whole = fk.infer(MODELS, ENGINE, seed=3, workers=fake, save=tmp_path / "cut")
    chunks = [one for one in fake.log if type(one) is tuple and one[0] != "opened"]
    assert tuple(unit for units in sorted(chunks) for unit in units) == left
    assert list(map(facts, whole)) == list(map(facts, ALONE))
    # Nothing is left to do, and nobody is woken.
    idle = Fake()
    assert fk.infer(MODELS, ENGINE, seed=3, workers=idle, save=tmp_path / "cut").missing == ()
    assert idle.log == []


def test_a_budget_is_an_end(tmp_path):
    budget = fk.Budget(seconds=0.0)
    found = fk.infer(MODELS[:4], ENGINE, seed=3, budget=budget, save=tmp_path / "a")
    assert [p.stopped for p in found] == [None, "seconds", "seconds", "seconds"]
    assert found.missing == ()


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    return fk.infer(MODELS, ENGINE, seed=3, save=tmp_path_factory.mktemp("runs") / "other").folder


@pytest.mark.parametrize(
    ("models", "engine", "seed", "budget", "words"),
    [
        (MODELS[:5], ENGINE, 3, None, "problems: 11, and not 5"),
        ([*MODELS[1:], MODELS[0]], ENGINE, 3, None, "models: "),
        (MODELS, fk.SMC(7), 3, None, r"engine: .SMC\(particles=6.*and not .SMC\(particles=7"),
        (MODELS, ENGINE, 4, None, "seed: 3, and not 4"),
        (MODELS, ENGINE, 3, fk.Budget(tokens=3), "budget: 'None', and not 'Budget"),
    ],
)
def test_a_folder_of_another_run_is_left_alone(models, engine, seed, budget, words, other):
    before = {path.name: path.read_bytes() for path in other.iterdir()}
    with pytest.raises(FileExistsError, match=f"holds another run .*{words}.*: give another folder, or delete it"):
        fk.infer(models, engine, seed=seed, budget=budget, save=other)
    assert before == {path.name: path.read_bytes() for path in other.iterdir()}


def test_engines_that_are_written_alike_are_told_apart(tmp_path):
    one, two = (fk.SelfConsistency(3, key) for key in (lambda value: value, lambda value: -value))
    fk.infer(MODELS[:2], one, seed=3, save=tmp_path / "a")
    assert fk.infer(MODELS[:2], one, seed=3, save=tmp_path / "a").missing == ()
    with pytest.raises(FileExistsError, match=r"another run \(engine: .* with other functions or arrays\)"):
        fk.infer(MODELS[:2], two, seed=3, save=tmp_path / "a")
    with pytest.raises(FileExistsError, match=r"another run \(models: of other code or arguments\)"):
        fk.infer([walk(2, 1.5), walk(2, 1.25)], one, seed=3, save=tmp_path / "a")


def test_what_is_no_folder_of_posteriors_is_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("…")
    with pytest.raises(FileExistsError, match="is there and holds no run of posteriors"):
        fk.infer(MODELS, ENGINE, seed=3, save=tmp_path / "mine")
    with pytest.raises(FileExistsError, match="is there and holds no run of posteriors"):
        fk.infer(MODELS, ENGINE, seed=3, save=tmp_path / "mine" / "thesis.tex")
    with pytest.raises(FileNotFoundError):
        fk.Posteriors(tmp_path / "nothing")
    with pytest.raises(ValueError, match=r"save= is a folder for the posteriors of many models; of one, call"):
        fk.infer(MODELS[0], ENGINE, seed=3, save=tmp_path / "one")
    assert not (tmp_path / "one").exists()
    (tmp_path / "mine" / "run.json").write_text("[]")
    with pytest.raises(fk.errors.UnreadablePosterior, match=r"run.json is not that of a run of posteriors"):
        fk.Posteriors(tmp_path / "mine")


def test_a_damaged_posterior_is_named_and_the_others_are_read(tmp_path):
    found = fk.infer(MODELS, ENGINE, seed=3, save=tmp_path / "run")
    found.path(4).write_bytes(found.path(4).read_bytes()[:-40])
    with pytest.raises(fk.errors.UnreadablePosterior, match=r"0000004\.fk"):
        found[4]
    assert facts(found[5]) == facts(ALONE[5])
    with pytest.raises(fk.errors.UnreadablePosterior, match="larger limit"):
        fk.Posteriors(tmp_path / "run", limit=10)[5]


def test_a_disk_that_is_full_ends_the_run_with_what_is_there(tmp_path, monkeypatch):
    written = []

    def full(self, unit, data, put=Folder.put):
        if len(written) == 4:
            raise OSError(28, "No space left on device")
        written.append(unit)
        put(self, unit, data)

    monkeypatch.setattr("feynkac.inference.workers.folder.Folder.put", full)
    with pytest.raises(OSError, match="No space left") as caught:
        fk.infer(MODELS, ENGINE, seed=3, workers=Fake(2), save=tmp_path / "run")
    assert len(caught.value.posterior.missing) == 7


def test_a_run_that_is_killed_goes_on(tmp_path):
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import feynkac as fk
from feynkac.inference.workers.folder import Folder
from test_workers import ENGINE, MODELS
seen = []
def kill(step):
    seen.append(step)
    if len(seen) == 25:
        os.kill(os.getpid(), signal.SIGKILL)
fk.infer(MODELS, ENGINE, seed=3, workers=fk.InProcess(2), save={str(tmp_path / "run")!r}, callbacks=[kill])
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    left = fk.Posteriors(tmp_path / "run").missing
    assert 0 < len(left) < 11
    found = fk.infer(MODELS, ENGINE, seed=3, workers=fk.InProcess(2), save=tmp_path / "run")
    assert list(map(facts, found)) == list(map(facts, ALONE))


def test_results_may_be_larger_than_memory(tmp_path):
    """The run, and reading, hold a chunk of posteriors at a time."""

    @fk.program
    async def wide(i):
        await fk.sample("x", fk.dist.Normal(0.0, 1.0))
        return np.random.default_rng(i).bytes(100_000).hex()

    engine, models = fk.SMC(1), [wide(i) for i in range(20)]
    # What is imported when it is first used, such as ArviZ's terms, is no result.
    fk.infer(models[:2], engine, seed=0, workers=fk.InProcess(2), save=tmp_path / "first")[0]
    tracemalloc.start()
    found = fk.infer(models, engine, seed=0, workers=fk.InProcess(2), save=tmp_path / "run")
    total = sum(len(p.values[0]) for p in found)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total == 20 * 200_000
    assert peak < total / 2
    head = json.loads((tmp_path / "run" / "run.json").read_text())
    assert head["problems"] == 20


def test_long_arguments_and_code_tell_runs_apart(tmp_path):
    @fk.program
    async def total(numbers, lift):
        return await fk.sample("x", fk.dist.Normal(float(numbers.sum()) + lift(0.0), 1.0))

    @fk.program
    async def other(numbers, lift):
        return await fk.sample("x", fk.dist.Normal(float(numbers.sum()) - lift(0.0), 1.0))

    other.__name__ = other.__qualname__ = "total"
    numbers = np.zeros(5000)
    fk.infer([total(numbers, abs)], fk.SMC(2), seed=0, save=tmp_path / "run")
    fk.infer([total(numbers.copy(), abs)], fk.SMC(2), seed=0, save=tmp_path / "run")
    changed = numbers.copy()
    changed[2500] = 1.0
    for model in (total(changed, abs), other(numbers, abs)):
        with pytest.raises(FileExistsError, match="holds another run"):
            fk.infer([model], fk.SMC(2), seed=0, save=tmp_path / "run")
