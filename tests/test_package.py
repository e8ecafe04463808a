"""The package as a whole: what it costs to import, what it declares, and who imports whom."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import json
import os
import subprocess
import sys
import tomllib
import types
from pathlib import Path
from typing import Any

import pytest

import feynkac

ROOT = Path(__file__).parents[1]
LAZY = ("constraints", "diffusion", "models", "rewards", "tasks")
"""Modules whose names are imported when they are first used."""
HEAVY = {
    "torch",
    "transformers",
    "diffusers",
    "jax",
    "numpyro",
    "ray",
    "scipy",
    "matplotlib",
    "rich",
    "pandas",
    "xarray",
}
LIMIT = 0.3
"""Processor seconds that ``import feynkac`` may take, numpy included."""

IMPORT = """
import json, sys, time
began = time.process_time()
import feynkac
for name in ("constraints", "diffusion", "models", "rewards", "tasks"):
    dir(getattr(feynkac, name))
seconds = time.process_time() - began
print(json.dumps([seconds, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def import_afresh(folder: Path) -> tuple[float, set[str]]:
    """Seconds and top-level modules of ``import feynkac`` in a new process, away from the checkout."""
    done = subprocess.run([sys.executable, "-c", IMPORT], cwd=folder, capture_output=True, text=True, check=True)
    seconds, modules = json.loads(done.stdout)
    return seconds, set(modules)


def test_import_is_light(tmp_path: Path) -> None:
    _, modules = import_afresh(tmp_path)
    assert not HEAVY & modules


ALONE = """
import feynkac as fk

@fk.program
async def walk(steps):
    async def step(x, t):
        x = await fk.sample("x", fk.dist.Normal(x, 1.0))
        await fk.observe("y", fk.dist.Normal(x, 0.5), 1.0)
        return x, x
    x, _ = await fk.scan(step, 0.0, range(steps))
    if x > 0 and await fk.sample("b", fk.dist.Bernoulli(0.5)):
        await fk.gather(fk.factor("f", 0.1), fk.twist("t", 0.0))
    return x

engines = [
    fk.SMC(8), fk.ImportanceSampling(8), fk.ParticleFilter(8), fk.BestOfN(8), fk.SelfConsistency(4), fk.BeamSearch(4),
    fk.DVTS(4), fk.Rebase(4), fk.MCTS(8), fk.AStar(4), fk.TreeSampling(8), fk.SuffixMH(4), fk.ParticleGibbs(4, 3),
    fk.MCMC(fk.Sweep(fk.SuffixMH(1), fk.RandomWalk()), draws=3, warmup=3),
    fk.SMC(8, move=fk.SuffixMH(1)), fk.SMC(8, move=fk.RandomWalk()),
]
for engine in engines:
    posterior = fk.infer(walk(3), engine, seed=0)
    posterior.save("posterior.npz")
    repr(fk.Posterior.load("posterior.npz"))
    posterior._repr_html_()
    fk.infer([walk(2), walk(3)], engine, seed=0, journal="run.fkj")
print("all of them")
"""


def test_numpy_is_enough_for_programs_and_engines(tmp_path: Path) -> None:
    """In a process that finds no other library."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    numpy = Path(sys.modules["numpy"].__file__ or "").parent
    (shelf / "feynkac").symlink_to(Path(feynkac.__file__).parent)
    for folder in (numpy, numpy.with_name("numpy.libs")):
        if folder.exists():
            (shelf / folder.name).symlink_to(folder)
    found = {**os.environ, "PYTHONPATH": str(shelf)}
    command = [sys.executable, "-S", "-c", ALONE]
    done = subprocess.run(command, cwd=tmp_path, env=found, capture_output=True, text=True, timeout=120)
    assert done.stdout == "all of them\n", done.stderr


def test_engines_wait_until_they_are_named(tmp_path: Path) -> None:
    """One is imported without the others."""
    code = "import sys, feynkac as fk; fk.SMC; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    modules = done.stdout.split()
    assert "feynkac.inference.particles.smc" in modules
    assert not [m for m in modules if m.startswith(("feynkac.inference.mcmc.", "feynkac.inference.search."))]


def test_import_is_quick(tmp_path: Path) -> None:
    """The best of several, since other work on the machine can only slow it down."""
    best = float("inf")
    for _ in range(10):
        best = min(best, import_afresh(tmp_path)[0])
        if best < LIMIT:
            return
    pytest.fail(f"import feynkac took {best:.2f} s at best; python -X importtime -c 'import feynkac' tells why")


def test_version_is_that_of_the_distribution() -> None:
    assert feynkac.__version__ == importlib.metadata.version("feynkac")


def test_types_are_declared() -> None:
    assert importlib.resources.files("feynkac").joinpath("py.typed").is_file()


def test_every_package_is_distributed() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    library = [path for top in ROOT.glob("*/__init__.py") for path in top.parent.rglob("__init__.py")]
    found = {".".join(("feynkac", *path.parent.relative_to(ROOT).parts)) for path in library}
    assert set(listed) == {"feynkac"} | found


def test_imports_keep_to_the_layers() -> None:
    command = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports())"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_public_names_exist() -> None:
    assert len(set(feynkac.__all__)) == len(feynkac.__all__) > 0
    assert all(hasattr(feynkac, name) for name in feynkac.__all__)


@pytest.mark.parametrize("name", LAZY)
def test_tab_completion_shows_the_names_and_nothing_else(name: str) -> None:
    module = getattr(feynkac, name)
    assert dir(module) == sorted(module.__all__)
    assert set(getattr(module, "_HOME", ())) <= set(dir(module))
    pytest.importorskip("torch")
    assert all(getattr(module, shown) is not None for shown in dir(module))


@pytest.mark.parametrize("name", feynkac.__all__)
def test_public_names_are_documented(name: str) -> None:
    thing: Any = getattr(feynkac, name)
    if not isinstance(thing, type | types.ModuleType) and not callable(thing):
        return  # a constant or an alias, documented where it is defined
    doc = thing.__doc__ or ""
    assert doc.strip(), f"fk.{name} has no docstring"
    assert not doc.startswith(f"{name}("), f"fk.{name} has only the docstring that a dataclass makes up"
