"""The notebooks and the demonstration, run as a user runs them, on the real model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import feynkac as fk

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"

pytestmark = pytest.mark.real


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_run_from_end_to_end(path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(path, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "outputs are not committed"
    nbclient.NotebookClient(notebook, timeout=900, kernel_name="python3").execute()
    texts = [output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("log evidence" in text for text in texts)


def test_the_demonstration_writes_its_table_its_figure_and_a_posterior(tmp_path):
    small = ["--particles", "4", "--best-of", "5", "--seeds", "1", "--out", str(tmp_path)]
    command = [sys.executable, str(NOTEBOOKS / "demo.py"), *small]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=900).stdout
    assert "best of 5" in printed
    assert "SMC, 4 particles" in printed
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    posterior = fk.Posterior.load(tmp_path / "posterior.fk")
    assert len(posterior) == 4
    assert posterior.cost.tokens_out > 0
