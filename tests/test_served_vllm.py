"""vLLM in this process: what it is asked, and what is made of its answers. It itself is in ``test_real_vllm.py``."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("httpx2")
from served import served

import feynkac as fk
from feynkac.models.testing import FakeServer, tiny_tokenizer
from feynkac.ppl.errors import Unsupported
from walks import keys_of


class ClientError(Exception):
    """What vLLM raises for a request that it does not take."""


class LLM:
    """``vllm.LLM`` as far as it is used, over the fake model; ``made`` holds those that there are."""

    made: list[LLM] = []  # noqa: RUF012 (a list for all is meant)

    def __init__(self, folder, **settings):
        self.folder, self.settings = folder, settings
        self.server = FakeServer(context=settings.get("max_model_len", 512))
        self.asked, self.aborted, self.trouble = [], [], None
        config = SimpleNamespace(max_model_len=self.server.context, get_vocab_size=lambda: 300)
        states = SimpleNamespace(request_states={"7": None})
        self.llm_engine = SimpleNamespace(model_config=config, abort_request=self.abort, output_processor=states)
        LLM.made.append(self)

    def abort(self, ids, internal):
        self.aborted.append(ids)

    def get_tokenizer(self):
        return tiny_tokenizer()

    def generate(self, prompts, settings, use_tqdm):
        self.asked.append(settings)
        if self.trouble is not None:
            raise self.trouble
        return [self.answer(prompt["prompt_token_ids"], each) for prompt, each in zip(prompts, settings, strict=True)]

    def answer(self, ids, settings):
        scored = settings.pop("prompt_logprobs", None) is not None
        asked = {"model": "fake", "prompt": ids, "return_token_ids": True, "return_tokens_as_token_ids": True}
        asked |= settings
        asked |= {"echo": True, "max_tokens": 0, "logprobs": 0} if scored else {"logprobs": settings["logprobs"] or 0}
        status, said = self.server.answer("/v1/completions", asked)
        if status != 200:
            raise ClientError(str(said))
        [choice] = said["choices"]
        told = [
            None if at is None else {int(name[9:]): SimpleNamespace(logprob=number) for name, number in at.items()}
            for at in choice["logprobs"]["top_logprobs"]
        ]
        made = SimpleNamespace(
            token_ids=choice["token_ids"],
            logprobs=told,
            finish_reason=choice["finish_reason"],
            stop_reason=choice["stop_reason"],
        )
        return SimpleNamespace(prompt_token_ids=ids, outputs=[made], prompt_logprobs=told, num_cached_tokens=1)


@pytest.fixture
def vllm(monkeypatch, tmp_path):
    """Returns what makes a model on a stand-in for vLLM."""
    tiny_tokenizer().save_pretrained(tmp_path)
    names = {"vllm": {"LLM": LLM, "SamplingParams": dict}, "vllm.exceptions": {"VLLMClientError": ClientError}}
    names["vllm.platforms"] = {"current_platform": SimpleNamespace(is_cpu=lambda: True)}
    for name, holds in names.items():
        module = ModuleType(name)
        vars(module).update(holds)
        monkeypatch.setitem(sys.modules, name, module)
    return lambda **options: fk.models.VLLM(tmp_path, **options)


@fk.program
async def lines(lm):
    text = lm.prompt("Once upon")
    for _ in range(3):
        text = await fk.sample("line", lm.until(text, ["e", "s", "t", "a"], max_tokens=8, temperature=0.8))
        await fk.factor("few n", -0.5 * str(text).count("n"))
    return text


def test_it_writes_what_a_server_of_the_same_model_does(vllm):
    lm, (there, _) = vllm(), served()
    assert lm.can == there.can == {"seed", "log_prob", "log_prob_warped", "score", "few", "mask"}
    here, elsewhere = (fk.infer(lines(model), fk.SMC(6), seed=0) for model in (lm, there))
    assert here.log_evidence == elsewhere.log_evidence
    assert [text.tokens for text in here.values] == [text.tokens for text in elsewhere.values]
    assert here.cost.model_calls == elsewhere.cost.model_calls == 3  # a wave is one call
    assert here.cost.tokens_out == elsewhere.cost.tokens_out
    assert here.cost.tokens_in == elsewhere.cost.tokens_in - 18  # of each prompt it remembers a token
    mask = np.arange(300) % 7 == 3
    weighed = []
    for model in (lm, there):
        text = model.prompt("Once upon")
        masked = model.next_token(text, mask=mask)
        weighed += [masked.sample_batch([masked] * 3, keys_of(3, 1)).log_prob.tolist()]
        weighed += [fk.infer(asking(model, text, mask), fk.SMC(1), seed=0).log_evidence]
    assert weighed[:2] == weighed[2:]


@fk.program
async def asking(lm, text, mask):
    await fk.factor("mass", lm.log_mass(text, mask))
    await fk.factor("score", lm.score(text, " a time"))


def test_vllm_is_told_all_of_the_law_and_what_keeps_it_honest(vllm):
    lm = vllm(max_model_len=64, gpu_memory_utilization=0.5)
    engine = LLM.made[-1]
    assert (lm.context, lm.vocab_size, engine.settings["gpu_memory_utilization"]) == (64, 300, 0.5)
    expected = {
        "logprobs_mode": "processed_logprobs",
        "enable_prefix_caching": True,
        "enable_chunked_prefill": False,
        "dtype": "float32",
    }
    assert expected.items() <= engine.settings.items()
    engine.asked.clear()
    step = lm.tokens(lm.prompt("Once"), 3, temperature=0.5, top_p=0.9)
    keys = keys_of(2, 3)
    step.sample_batch([step] * 2, keys)
    law = {"temperature": 0.5, "top_p": 0.9, "top_k": -1, "min_p": 0.0, "max_tokens": 3}
    [asked] = engine.asked
    assert all(law.items() <= each.items() for each in asked)
    assert [each["seed"] for each in asked] == (keys >> np.uint64(2)).tolist()
    assert vllm(logprobs_mode="raw_logprobs").transport._llm.settings["logprobs_mode"] == "raw_logprobs"


def test_what_was_under_way_is_not_answered_later(vllm):
    lm = vllm()
    step, engine = lm.tokens(lm.prompt("Once"), 3), LLM.made[-1]
    for trouble, raised in ((KeyboardInterrupt(), KeyboardInterrupt), (ClientError("no"), Unsupported)):
        engine.trouble, engine.aborted = trouble, []
        with pytest.raises(raised):
            step.sample_batch([step], keys_of(1, 0))
        assert engine.aborted == [["7"]]


def test_without_vllm_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match=r"needs vLLM.*pip install vllm.*ServerLM"):
        fk.models.VLLM("nowhere")
