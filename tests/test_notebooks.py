"""The notebooks and the demonstration, run as a user runs them: on the real model, and the notebooks on a tiny one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
LOADED = 'fk.models.TransformersLM.from_pretrained("smollm2", '

OF_TEXT = ("01_first_program", "02_steering_text", "07_latents")
AS_THEY_ARE = ("03_images", "04_video", "05_reasoning", "08_servers")
"""The notebooks on models that ship with the library, which the long tests run at full size."""
SHORTER = {
    "09_refine_and_exit": [("problems(32", "problems(4"), ("(1, 2, 4, 8, 16)", "(1, 2, 4)")],
    "10_agents": [("N = 600", "N = 40")],
    "11_scaling": [("PROBLEMS, N = 40, 32", "PROBLEMS, N = 6, 16")],
    "12_discrete": [("N = 1000", "N = 40")],
}
"""Those that run quickly once a few numbers are smaller."""
OF_NUMBERS = "06_state_space"
"""The notebook that needs no model."""

each_of_text = pytest.mark.parametrize("path", [NOTEBOOKS / f"{name}.ipynb" for name in OF_TEXT], ids=OF_TEXT)


def executed(path, replace=()):
    """Return what the cells of a notebook print, once it has run from end to end."""
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    if "steering" in path.stem:
        pytest.importorskip("arviz_stats")
        pytest.importorskip("vaderSentiment")
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are not committed"
    for old, new in replace:
        assert sum(cell.source.count(old) for cell in notebook.cells) == 1, old
        for cell in notebook.cells:
            cell.source = cell.source.replace(old, new)
    nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3").execute()
    return "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))


def test_every_notebook_is_run():
    assert sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")) == sorted(
        [*OF_TEXT, *AS_THEY_ARE, *SHORTER, OF_NUMBERS]
    )


@pytest.mark.real
@each_of_text
def test_notebooks_run_from_end_to_end(path):
    assert "log evidence" in executed(path)


@pytest.mark.parametrize("name", OF_TEXT[:2])
def test_notebooks_run_on_a_tiny_model(name):
    """Quickly, so that a change of the library that breaks a cell is seen at once."""
    pytest.importorskip("torch")
    tiny = (LOADED, "__import__('feynkac.models.testing').models.testing.tiny_lm(")
    assert "log evidence" in executed(NOTEBOOKS / f"{name}.ipynb", [tiny])


@pytest.mark.parametrize("name", [*SHORTER, *(pytest.param(name, marks=pytest.mark.slow) for name in AS_THEY_ARE)])
def test_notebooks_run_on_the_shipped_models(name):
    for library in ("diffusers", "matplotlib", "PIL", "httpx2"):
        pytest.importorskip(library)
    assert "log evidence" in executed(NOTEBOOKS / f"{name}.ipynb", SHORTER.get(name, ()))


@pytest.mark.slow
def test_the_notebook_of_numbers_runs():
    for library in ("numpyro", "matplotlib", "arviz_plots"):
        pytest.importorskip(library)
    assert "errors" in executed(NOTEBOOKS / f"{OF_NUMBERS}.ipynb")  # it asserts that its two posteriors agree


@pytest.mark.real
def test_the_demonstration_writes_its_table_and_its_figure_and_goes_on_where_it_stopped(tmp_path):
    command = [sys.executable, str(NOTEBOOKS / "demo.py"), "--problems", "1", "--resume", "--out", str(tmp_path)]
    printed = [subprocess.run(command, capture_output=True, text=True, check=True, timeout=900).stdout for _ in "ab"]
    for family in ("words", "letter", "endings"):
        assert any(line.startswith(f"{family}: ") for line in printed[0].splitlines())
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    trials = [json.loads(line) for line in (tmp_path / "demo.jsonl").read_text().splitlines()]
    assert len(trials) == 9
    assert all(trial["tokens_out"] > 0 for trial in trials)
    table = [[line for line in text.splitlines() if "%" in line] for text in printed]
    assert table[0] == table[1]
