"""The real vLLM, over HTTP and in a process of its own, against the same weights here.

It needs ``make .venv-peers/vllm/.installed`` (3.4 GB), which CI leaves out.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("httpx2")
pytest.importorskip("torch")
from in_vllm import draws, few_es

import feynkac as fk
from feynkac.models.fetch import resolve
from walks import keys_of

ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".venv-peers" / "vllm" / "bin" / "python"
LAWS = [{}, {"temperature": 0.7, "top_p": 0.9}, {"temperature": 0.5}, {"top_k": 5}]

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not PYTHON.exists(), reason="needs the environment of vLLM: make .venv-peers/vllm/.installed"),
]


@pytest.fixture(scope="module")
def here():
    return fk.models.TransformersLM.from_pretrained("smollm2")


@pytest.fixture(scope="module")
def there():
    sys.path.insert(0, str(ROOT / "benchmarks" / "peers"))
    try:
        from vllm_server import Server
    finally:
        sys.path.pop(0)
    server = Server(str(PYTHON), resolve("smollm2"))
    yield fk.models.ServerLM(server.url)
    server.close()


def test_it_can_do_all_that_a_server_may(there):
    assert there.can == {"seed", "log_prob", "log_prob_warped", "score", "few", "mask"}
    assert there.lacks == {}


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_draws_weigh_what_they_weigh_here_and_are_the_same_alone(law, here, there):
    steps = [there.tokens(there.prompt("Once upon a"), 12, **law)] * 8
    keys = keys_of(8, 1)
    drawn = steps[0].sample_batch(steps, keys)
    local = [here.tokens(here.prompt("Once upon a"), 12, **law)] * 8
    truth = local[0].log_prob_batch(local, [here.attach(text) for text in drawn.values])
    np.testing.assert_allclose(drawn.log_prob, truth, atol=1e-3)
    alone = steps[0].sample_batch(steps[:1], keys[5:6])
    assert alone.values[0].tokens == drawn.values[5].tokens
    assert len({text.tokens for text in drawn.values}) > 4


def test_given_tokens_masks_and_masses_weigh_what_they_weigh_here(here, there):
    @fk.program
    async def scored(lm):
        text = lm.prompt("Once upon a")
        await fk.factor("score", lm.score(text, " time there was a fox."))
        await fk.factor("mass", lm.log_mass(text, few))
        return await fk.sample("end", lm.tokens(text, 3), obs=" time there")

    words = [" time", " hill", " midnight", " Time", " day"]
    few = np.zeros(here.vocab_size, bool)
    few[[here.encode(word)[0] for word in words]] = True
    weights = [fk.infer(scored(lm), fk.SMC(1), seed=0).log_evidence for lm in (there, here)]
    assert weights[0] == pytest.approx(weights[1], abs=1e-3)
    steps = [there.next_token(there.prompt("Once upon a"), mask=few, temperature=1.5)] * 4
    drawn = steps[0].sample_batch(steps, keys_of(4, 2))
    local = [here.next_token(here.prompt("Once upon a"), mask=few, temperature=1.5)] * 4
    truth = local[0].log_prob_batch(local, [here.attach(text) for text in drawn.values])
    np.testing.assert_allclose(drawn.log_prob, truth, atol=1e-3)


def test_the_probability_of_a_set_of_tokens_is_that_of_the_model_here(here, there):
    """By SMC over HTTP, of two tokens that hold an "a", against the same program here."""

    @fk.program
    async def with_a(lm):
        text = lm.prompt("My favourite colour is")
        for _ in range(2):
            before = len(str(text))
            text = await fk.sample("token", lm.next_token(text))
            await fk.factor("a", 0.0 if "a" in str(text)[before:] else -1.0)
        return text

    estimates = {}
    for lm, runs in ((there, 24), (here, 96)):
        found = fk.infer([with_a(lm)] * runs, fk.SMC(8), seed=5)
        estimates[lm] = np.exp([posterior.log_evidence for posterior in found])
    errors = [values.std(ddof=1) / math.sqrt(len(values)) for values in estimates.values()]
    means = [values.mean() for values in estimates.values()]
    # |z| < 4.265 fails by chance with probability 2e-5; a forgotten factor, e, is more than 10 errors away.
    assert abs(means[0] - means[1]) < 4.265 * math.hypot(*errors)
    assert max(errors) < 0.08 * means[1]


def test_in_process_it_writes_what_the_server_does(there, tmp_path):
    """In vLLM's own environment, on a CPU, since it needs an older version of transformers."""
    (tmp_path / "feynkac").symlink_to(Path(fk.__file__).parent)
    script = Path(__file__).with_name("in_vllm.py")
    quiet = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    environment = os.environ | quiet | {"PYTHONPATH": str(tmp_path)}
    run = subprocess.run([PYTHON, script], env=environment, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr[-3000:]
    found = json.loads(run.stdout.splitlines()[-1])
    assert set(found["can"]) == there.can
    served = fk.infer(few_es(there), fk.SMC(8), seed=0)
    assert found["log_evidence"] == pytest.approx([served.log_evidence] * 2, abs=1e-3)
    assert [tuple(tokens) for tokens in found["texts"]] == [text.tokens for text in served.values]
    drawn = draws(there)
    assert [tuple(tokens) for tokens in found["drawn"]] == [text.tokens for text in drawn.values]
    np.testing.assert_allclose(found["log_probs"], drawn.log_prob, atol=1e-3)
