"""That the benchmarks of language models run what they say: on a tiny model, what is forwarded, held and drawn."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

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


def test_with_ample_memory_no_position_is_forwarded_twice():
    pressure = importlib.import_module("long_prompts").pressure
    for _, *ratios in pressure(3, 80, [30, 40], [120]):
        assert ratios == ["1.00"] * 3


@pytest.mark.parametrize("name", ["raw", "generate", "feynkac"])
def test_token_smc_estimates_an_evidence(name, folder):
    run = importlib.import_module(f"text_{name}").prepare(model=folder, n=4, tokens=3)
    assert -0.5 * 3 * 20 < run(0)["log_z"] <= 0.0
