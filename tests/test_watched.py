"""Watching a run: the texts of its particles as they grow, and the run itself as it would be."""

from __future__ import annotations

import re
import signal
import sys
import types
from itertools import pairwise

import pytest

import feynkac as fk


@fk.program
async def spell(steps=4):
    text = ""
    for _ in range(steps):
        letter = await fk.sample("letter", fk.dist.Categorical([0.5, 0.3, 0.2], values=["a", "b\n", "<x>"]))
        text += letter
        await fk.factor("G", 2.0 if letter == "a" else 0.0)
    return text


def watched(engine, **options):
    shown = []
    posterior = fk.watch(fk.steps(spell(), engine, seed=3), write=shown.append, **options)
    return posterior, shown


@pytest.mark.parametrize(
    "engine", [fk.SMC(6, chains=2), fk.BestOfN(5), fk.BeamSearch(3), fk.TreeSampling(12), fk.SuffixMH(8)], ids=repr
)
def test_a_watched_run_is_the_run_that_it_would_be_and_ends_with_its_texts(engine):
    posterior, shown = watched(engine)
    plain = fk.infer(spell(), engine, seed=3)
    assert posterior.values == plain.values
    assert posterior.log_weights.tolist() == plain.log_weights.tolist()
    assert "finished" in shown[-1].splitlines()[0]
    assert all(before != after for before, after in pairwise(shown))
    totals = {}
    for value, weight in zip(plain.values, plain.probabilities):
        totals[value] = totals.get(value, 0.0) + weight
    best = max(totals.values())
    weight, text = re.fullmatch(r"  (\d\.\d{3})  (.*)", shown[-1].splitlines()[1]).groups()
    assert float(weight) == pytest.approx(best, abs=6e-4)
    assert totals[text.replace("⏎", "\n")] == pytest.approx(best)


def test_texts_grow_with_the_steps_and_are_shown_by_their_end(capsys):
    fk.watch(fk.steps(spell(6), fk.SMC(1), seed=1), lines=1, width=4)
    texts = re.findall(r"1\.000  (.*)", capsys.readouterr().out)
    full = fk.infer(spell(6), fk.SMC(1), seed=1).values[0].replace("\n", "⏎")
    assert len(texts) == 6
    assert texts[-1] == "…" + full[-3:]
    assert full.startswith(texts[0])
    assert len(watched(fk.SMC(4), every=3)[1]) == 2
    with pytest.raises(ValueError, match="lines, width and every are positive"):
        watched(fk.SMC(4), lines=0)


def test_a_notebook_has_one_display_that_changes(monkeypatch, capsys):
    opened, changed = [], []
    handle = types.SimpleNamespace(update=changed.append)
    module = types.ModuleType("IPython")
    module.get_ipython = lambda: types.SimpleNamespace(kernel=None)
    module.display = types.ModuleType("IPython.display")
    module.display.display = lambda first, display_id: opened.append(first) or handle
    monkeypatch.setitem(sys.modules, "IPython", module)
    monkeypatch.setitem(sys.modules, "IPython.display", module.display)
    fk.watch(fk.steps(spell(), fk.SMC(5), seed=0))
    assert (len(opened), len(changed)) == (1, 3)
    pages = [one._repr_html_() for one in opened + changed]
    assert not any("<x>" in page for page in pages)
    assert any("&lt;x&gt;" in page for page in pages)
    assert capsys.readouterr() == ("", "")


def test_ctrl_c_ends_a_watched_run_and_keeps_what_there_is():
    def interrupt(_):
        signal.raise_signal(signal.SIGINT)

    posterior = fk.watch(fk.steps(spell(), fk.SMC(5), seed=0), write=interrupt)
    assert posterior.stopped == "interrupted"
    assert 0 < len(posterior.steps) < 4
