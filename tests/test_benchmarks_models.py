"""That the benchmarks of language models run what they say: on a tiny model, what is forwarded, held and drawn."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from feynkac.models.testing import tiny_lm

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS / "peers"))
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("tiny")
    lm = tiny_lm(context=128)
    lm.model.save_pretrained(found)
    lm.tokenizer.save_pretrained(found)
    return str(found)


@pytest.mark.parametrize("name", ["raw", "generate", "feynkac"])
def test_a_long_prompt_goes_through_the_model_once(name, folder):
    n, prompt, tokens = 4, 50, 6
    run = importlib.import_module(f"long_{name}").prepare(model=folder, n=n, tokens=tokens, prompt=prompt)
    for made in (run(0), run(1)):
        assert math.isfinite(made["log_z"])
        assert prompt + tokens < made["distinct"] <= prompt + n * tokens
        assert made["held"] >= made["distinct"] - n
        if name == "feynkac":  # twins are forwarded once
            assert made["forwarded"] <= prompt + n * (tokens - 1)
        else:
            assert made["forwarded"] == prompt + n * (tokens - 1) + (n - 1) * (name == "generate")


@pytest.mark.slow
def test_with_ample_memory_no_position_is_forwarded_twice():
    pressure = importlib.import_module("long_prompts").pressure
    for _, *ratios in pressure(3, 80, [30, 40], [120]):
        assert ratios == ["1.00"] * 3


@pytest.mark.parametrize("name", ["raw", "generate", "feynkac"])
def test_token_smc_estimates_an_evidence(name, folder):
    run = importlib.import_module(f"text_{name}").prepare(model=folder, n=4, tokens=3)
    assert -0.5 * 3 * 20 < run(0)["log_z"] <= 0.0


class Inline:
    """A contestant in this process."""

    ready: ClassVar = {}

    def __init__(self, script, settings):
        settings.pop("warm_up")
        self.run = importlib.import_module(script.removesuffix(".py")).prepare(**settings)

    def close(self):
        pass


def test_contestants_on_a_card_are_timed_and_judged(folder, capsys):
    gpu = importlib.import_module("gpu")
    options = [
        "--particles",
        "5",
        "--prompt",
        "9",
        "--tokens",
        "6",
        "--repeats",
        "1",
        "--device",
        "cpu",
        "--no-compile",
    ]
    args = gpu.parse([*options, "--only", "feynkac, steps", "feynkac, SMC", "generate"])
    rows = gpu.compare(folder, lambda name: Inline(gpu.CONTESTANTS[name][0], gpu.settings_of(name, folder, args)), args)
    assert [row["name"] for row in rows] == args.only
    # 2 laws at |z| < 4.75, of fixed seeds.
    assert all(row["off by"] < 1e-4 and row.get("law", 0.0) < 4.75 for row in rows)
    assert all(row["tokens/s"] > 0.0 and row["GiB"] > 0.0 for row in rows)
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert said["rows"] == rows
    assert said["dtype"] == "float32"
    assert said["card"].startswith("no GPU")
    assert said["transformers"]


def test_a_wrong_text_and_a_wrong_law_are_seen():
    gpu = importlib.import_module("gpu")
    lm = tiny_lm()
    made = {"prompt": [[3, 4, 5]], "texts": [[[6, 7]]], "log_probs": [[gpu.whole(lm.model, [3, 4, 5], [6, 7])[0]]]}
    assert gpu.judge(lm.model, made) == {"off by": 0.0}
    made["log_probs"][-1][0] += 0.25
    assert gpu.judge(lm.model, made)["off by"] == pytest.approx(0.25)
    law = np.array([0.5, 0.3, 0.15, 0.05])
    draws = np.random.default_rng(0).choice(4, 2048, p=law)
    assert gpu.misfit(draws, law) < 4.75  # of a fixed seed: 1e-4 beforehand, as χ² of 3 has a long tail
    assert gpu.misfit(draws, law**0.8 / (law**0.8).sum()) > 10.0


@pytest.mark.slow
def test_one_command_compares_on_the_device_that_there_is():
    options = ["--tiny", "--particles", "4", "--prompt", "9", "--tokens", "5", "--repeats", "1"]
    made = subprocess.run(
        [sys.executable, BENCHMARKS / "gpu.py", *options], capture_output=True, text=True, check=True, timeout=300
    )
    assert {row["name"] for row in json.loads(made.stdout.splitlines()[-1])["rows"]} >= {"feynkac, SMC", "generate"}
