"""How much a model may keep: a share of what its device has free; and what happens where a pass runs out of memory."""

import gc
from weakref import WeakSet

import numpy as np
import pytest
import torch
import transformers as hf
from random_models import KINDS, draw, fresh_log_prob, lm_of, random_weights

import feynkac as fk
from feynkac.models import TransformersLM
from feynkac.models.local.memory import allowance
from feynkac.models.local.memory import shortage as memory
from feynkac.models.testing import tiny_lm
from feynkac.ppl.cost import Ledger, recording
from feynkac.ppl.score import evaluate

GIB = 1 << 30


# The share of what is free


@pytest.mark.parametrize(
    ("device", "free", "promised", "expected"),
    [
        ("cuda", 64, 0, 0.75 * 62),
        ("cuda", 64, 42, 0.75 * 20),
        ("cuda", 64, 62, 62 / 8),
        ("cuda", 2, 0, 0.75),
        ("cuda", 0, 0, 0),
        ("cpu", 64, 0, 2),
        ("cpu", 64, 1000, 2),
        ("cpu", 1, 0, 0.375),
        ("cpu", None, 0, 2),
        ("cuda", None, 0, 2),
    ],
)
def test_a_share_leaves_a_reserve_and_what_others_were_promised(device, free, promised, expected, monkeypatch):
    monkeypatch.setattr(memory, "free", lambda device: None if free is None else free * GIB)
    assert memory.share(device, promised * GIB) == expected * GIB


@pytest.fixture
def card(monkeypatch):
    """A device of 34 GiB, of which models fill what the test says."""
    used = {"GiB": 0}
    gc.collect()
    monkeypatch.setattr(allowance, "_shared", WeakSet())
    monkeypatch.setattr(allowance, "share", lambda device, promised: memory.share("cuda", promised))
    monkeypatch.setattr(memory, "free", lambda device: (34 - used["GiB"]) * GIB)
    return used


def test_the_limit_is_decided_when_it_is_first_needed_and_stays(card):
    lm, given = lm_of("llama"), lm_of("llama", cache_bytes=5)
    card["GiB"] = 16
    draw([lm.tokens(lm.prompt("Once"), 2)])
    assert lm.cache_info().limit == 12 * GIB
    card["GiB"] = 0
    draw([lm.tokens(lm.prompt("Twice"), 2)])
    assert lm.cache_info().limit == 12 * GIB
    assert given.cache_info().limit == 5
    assert lm.forwarder.store.limit + lm.forwarder.kept.limit == 12 * GIB


def test_models_of_one_device_do_not_each_take_all(card):
    first, second, third = (lm_of("llama") for _ in range(3))
    assert first.cache_info().limit == 24 * GIB
    assert second.cache_info().limit == 6 * GIB  # three quarters of the 8 that are neither reserved nor promised
    card["GiB"] = 24  # the first has filled what it was allowed
    first.forwarder.allowance._held = lambda: 24 * GIB
    assert third.cache_info().limit == 1.5 * GIB  # of 8 free now, 6 are the second's
    del first, second
    gc.collect()
    card["GiB"] = 0
    assert lm_of("llama").cache_info().limit == 0.75 * 30.5 * GIB


def test_a_model_that_moves_gets_a_limit_anew(card):
    lm = lm_of("llama")
    assert lm.cache_info().limit == 24 * GIB
    card["GiB"] = 30
    lm.model.to(torch.float64)
    assert lm.cache_info().limit == 1.5 * GIB


@pytest.mark.parametrize("kind", KINDS)
def test_the_default_limit_on_a_cpu(kind, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 64 * GIB)
    lm = lm_of(kind)
    assert lm.cache_info().limit == 2 * GIB
    draw([lm.tokens(lm.prompt("Once"), 3)] * 3)
    info = lm.cache_info()
    assert (info.limit, info.recomputed, info.shortages) == (2 * GIB, 0, 0)


@pytest.mark.parametrize(("value", "error"), [("2GB", TypeError), (2e9, TypeError), (-1, ValueError)])
def test_a_limit_is_a_whole_number(value, error):
    with pytest.raises(error, match="cache_bytes must be"):
        tiny_lm(cache_bytes=value)


def machine(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return memory.available(root)


MEMINFO = {"proc/meminfo": "MemTotal:  1000 kB\nMemAvailable:    800 kB\n"}
TWO = {"proc/self/cgroup": "0::/a/b\n"}
ONE = {"proc/self/cgroup": "9:name=systemd:/x\n4:cpu,memory:/a\n0::/x\n"}
V1 = "sys/fs/cgroup/memory"


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        (MEMINFO, 800 * 1024),
        ({**MEMINFO, **TWO, "sys/fs/cgroup/a/b/memory.max": "max\n"}, 800 * 1024),
        (
            {**MEMINFO, **TWO, "sys/fs/cgroup/a/memory.max": "5000\n", "sys/fs/cgroup/a/memory.current": "4000\n"},
            1000,
        ),
        (
            {**TWO, "sys/fs/cgroup/a/b/memory.max": "5000\n", "sys/fs/cgroup/a/b/memory.current": "4000\n",
             "sys/fs/cgroup/a/b/memory.stat": "anon 1\ninactive_file 700\n",
             "sys/fs/cgroup/memory.max": "99\n", "sys/fs/cgroup/memory.current": "100\n"},
            0,
        ),
        (
            {**MEMINFO, **ONE, f"{V1}/memory.limit_in_bytes": "3000\n", f"{V1}/memory.usage_in_bytes": "2000\n",
             f"{V1}/memory.stat": "total_inactive_file 500\n"},
            1500,
        ),
    ],
)  # fmt: skip
def test_what_a_machine_and_its_control_groups_have_left(files, expected, tmp_path):
    assert machine(tmp_path, files) == expected


def test_what_a_gpu_has_free(monkeypatch):
    class Properties:
        is_integrated = False

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (7 * GIB, 24 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 5 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 4 * GIB)
    monkeypatch.setattr(memory, "available", lambda: 3 * GIB)
    assert memory.free("cuda") == 8 * GIB
    monkeypatch.setattr(Properties, "is_integrated", True)
    assert memory.free("cuda") == 3 * GIB
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 12 * GIB)
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 4 * GIB)
    assert memory.free("mps") == 4 * GIB
    assert memory.free("meta") is None


# Out of memory

SHORT = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("MPS backend out of memory (MPS allocated: 17.9 GB, other allocations: 384.00 KB)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] data. DefaultCPUAllocator: not enough memory: you tried"),
    MemoryError(),
]


class Shortage:
    """Raises in a late module of the model at chosen passes; counts the passes and the positions that came through."""

    def __init__(self, lm, at, error=SHORT[0]):
        self.calls = self.positions = 0
        self.most = 0
        self._at, self._error = at, error
        modules = list(lm.model.modules())
        lm.model.register_forward_pre_hook(self._begin, with_kwargs=True)
        modules[-2].register_forward_pre_hook(self._fail)
        lm.model.register_forward_hook(self._end, with_kwargs=True)

    def _begin(self, module, args, given):
        self.calls += 1
        self.shape = tuple(given["input_ids" if "decoder_input_ids" not in given else "decoder_input_ids"].shape)

    def _fail(self, *_):
        if self._at(self):
            raise self._error

    def _end(self, *_):
        self.most = max(self.most, self.shape[0])


def wander(lm, n=8, rounds=5):
    texts = [lm.prompt(("Once upon a time there was", "The sea")[i % 2]) for i in range(n)]
    rng = np.random.default_rng(0)
    for t in range(rounds):
        texts = draw([lm.tokens(x, 1 + (t * i) % 3) for i, x in enumerate(texts)], t)
        texts = [texts[(i + 2 * int(rng.integers(3))) % n] for i in range(n)]
    return texts


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("at", [{1}, {2, 3}, {4, 6, 9, 12, 15}], ids=str)
def test_a_pass_that_runs_out_of_memory_is_made_in_halves_and_nothing_is_lost(kind, at):
    plenty = wander(lm_of(kind))
    lm = lm_of(kind)
    seen = Shortage(lm, lambda seen: seen.calls in at)
    with recording(Ledger()) as ledger:
        texts = wander(lm)
    assert texts == plenty
    np.testing.assert_allclose([x.log_prob for x in texts], [x.log_prob for x in plenty], atol=1e-4)
    info, cost = lm.cache_info(), ledger.total()
    assert info.shortages == len([call for call in at if call <= seen.calls]) > 0
    assert (cost.tokens_in, cost.tokens_recomputed) == (lm.forwarded, info.recomputed)
    assert cost.model_calls == seen.calls
    assert info.limit < 2 * GIB


@pytest.mark.parametrize("error", SHORT, ids=lambda error: type(error).__name__)
def test_the_words_of_all_devices_are_known(error):
    lm = lm_of("llama")
    Shortage(lm, lambda seen: seen.calls == 3, error)
    texts = wander(lm)
    assert lm.cache_info().shortages == 1
    assert max(abs(text.log_prob - fresh_log_prob(lm, text)) for text in texts) < 1e-4


def test_other_errors_are_not_taken_for_it():
    lm = lm_of("llama")
    Shortage(lm, lambda seen: seen.calls == 3, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        wander(lm)


def test_it_does_not_happen_at_each_pass():
    """A device with memory for four rows at once: it is learned once, not in every pass."""
    lm = lm_of("llama")
    seen = Shortage(lm, lambda seen: seen.shape[0] > 4)
    texts = [lm.prompt("Once")] * 16
    for t in range(20):
        texts = draw([lm.tokens(x, 2) for x in texts], t)
    assert seen.most == 4
    assert lm.cache_info().shortages <= 4


@pytest.mark.slow
def test_a_device_that_holds_little_lowers_the_limit_until_it_fits(monkeypatch):
    """Memory for so many bytes of keys and values: the limit, far above, comes down below, and stays there."""
    lm = lm_of("llama", cache_bytes=1 << 20, context=2048)
    monkeypatch.setattr(memory, "free", lambda device: max(0, 200_000 - lm.forwarder.info().bytes))
    seen = Shortage(lm, lambda seen: lm.forwarder.info().bytes > 200_000)
    texts = [lm.prompt("Once")] * 8
    for t in range(40):
        texts = draw([lm.tokens(x, 3) for x in texts], t)
    info = lm.cache_info()
    assert 50_000 < info.limit < 200_000
    assert 0 < info.shortages <= 4 < seen.calls
    assert max(abs(text.log_prob - fresh_log_prob(lm, text)) for text in texts) < 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_that_does_not_fit_alone_is_named(kind):
    lm = lm_of(kind)
    seen = Shortage(lm, lambda seen: seen.failing)
    seen.failing = False
    texts = wander(lm)
    seen.failing = True
    with pytest.raises(fk.errors.OutOfMemory, match=r"a text of \d+ tokens does not fit into .* cpu.*bfloat"):
        draw([lm.tokens(text, 2) for text in texts])
    seen.failing = False
    again = draw([lm.tokens(text, 2) for text in texts], 1)
    lm.refresh()
    np.testing.assert_allclose([x.log_prob for x in draw([lm.tokens(text, 2) for text in texts], 1)],
                               [x.log_prob for x in again], atol=1e-4)  # fmt: skip


def test_scores_survive_it_too():
    lm = lm_of("llama")
    texts = wander(lm)
    truth = [fresh_log_prob(lm, text) for text in texts]
    lm.refresh()
    Shortage(lm, lambda seen: seen.calls in (1, 3))
    np.testing.assert_allclose(evaluate([lm.score(text) for text in texts]), truth, atol=1e-4)
    assert lm.cache_info().shortages == 2


def test_a_model_too_large_to_be_tried_is_not_called_unsupported():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = random_weights(lambda: hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=300, **sizes)))

    def fail(*_):
        raise SHORT[1]

    handle = model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="MPS backend out of memory"):
        tiny_lm(model=model)
    handle.remove()
    assert isinstance(tiny_lm(model=model), TransformersLM)


# What a posterior says


@fk.program
async def said(lm, prompt, tokens):
    text = lm.prompt(prompt)
    for _ in range(tokens):
        text = await fk.sample("token", lm.next_token(text))
        await fk.factor("likes", float(text.tokens[-1] % 3))
    return text


def warned(posterior):
    return [warning for warning in posterior.warnings if "cache_bytes" in warning]


@pytest.mark.parametrize("kind", KINDS)
def test_a_posterior_says_how_much_was_computed_again_and_what_to_change(kind):
    roomy, tight = lm_of(kind), lm_of(kind, cache_bytes=20_000)
    engine = fk.SMC(6)
    plenty = fk.infer(said(roomy, "Once upon a time there was", 8), engine, seed=0)
    assert plenty.cost.tokens_recomputed == 0
    assert not warned(plenty)
    posterior = fk.infer(said(tight, "Once upon a time there was", 8), engine, seed=0)
    assert [x.tokens for x in posterior.values] == [x.tokens for x in plenty.values]
    cost = posterior.cost
    assert cost.tokens_in == tight.forwarded
    assert cost.tokens_recomputed == tight.cache_info().recomputed > 0
    if kind == "t5":  # the token that a decoder begins with is forwarded with the prompt and with what follows it
        assert cost.tokens_recomputed <= cost.tokens_in - plenty.cost.tokens_in + 48
    else:
        assert cost.tokens_recomputed == cost.tokens_in - plenty.cost.tokens_in
    (warning,) = warned(posterior)
    assert warning.startswith(f"{cost.tokens_recomputed / cost.tokens_in:.0%} of the token positions")


def test_it_is_counted_by_run_and_not_by_model():
    """A run after a starved one on the same model, and problems side by side, each say what they themselves lost."""
    lm = lm_of("llama", cache_bytes=40_000)
    long, short = said(lm, "Once upon a time there was", 24), said(lm, "The sea", 2)
    assert warned(fk.infer(long, fk.SMC(8), seed=0))
    assert not warned(fk.infer(short, fk.SMC(2), seed=0))
    both = fk.infer([short, long], fk.SMC(8), seed=0)
    assert sum(posterior.cost.tokens_in for posterior in both) > 0
    assert warned(both[1])
    assert both[0].cost.tokens_recomputed < both[1].cost.tokens_recomputed


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_new_run_forgets_was_not_lost_for_want_of_memory(kind):
    lm = lm_of(kind)
    text = lm.prompt("Once upon a time there was a river, and the river ran to the sea.")

    @fk.program
    async def go():
        return await fk.sample("token", lm.next_token(text))

    for seed in range(3):
        posterior = fk.infer(go(), fk.SMC(2), seed=seed)
        assert posterior.cost.tokens_in >= len(text.prompt_tokens)
        assert posterior.cost.tokens_recomputed == 0
    lm.refresh()
    draw([lm.next_token(text)])
    assert lm.cache_info().recomputed == 0
