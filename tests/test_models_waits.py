"""How often a model's device is waited for: once a token, whatever is drawn, and what is sent there goes at once.

On a CPU nothing is waited for, so the places are counted where a program would wait for a GPU: where numbers, or shapes
that depend on numbers, come back from tensors.
"""

from contextlib import contextmanager

import numpy as np
import pytest

import feynkac as fk

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from zoo import build  # noqa: E402

from feynkac.models.constraints import walk  # noqa: E402
from feynkac.models.language.drawing import laws  # noqa: E402
from feynkac.models.local.weights.staging import packed, send  # noqa: E402
from feynkac.models.testing import tiny_lm  # noqa: E402
from feynkac.ppl import keys  # noqa: E402
from feynkac.ppl.score import evaluate  # noqa: E402

READS = {"_local_scalar_dense", "item", "nonzero", "masked_select", "_unique2", "unique_dim", "bincount", "equal"}


class Watch(TorchDispatchMode):
    """Notes each operation that would wait for a GPU, with what a tensor is asked for by `numpy` and the like."""

    def __init__(self):
        super().__init__()
        self.reads = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in READS or by_mask:
            self.reads.append(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def watching(monkeypatch):
    """Count reads within the block; nothing is at hand there, as on a GPU."""
    watch = Watch()
    with monkeypatch.context() as patch, watch:
        patch.setattr(laws, "_at_hand", lambda device: False)
        for name in ("cpu", "tolist", "__bool__", "__int__", "__float__", "__index__"):
            plain = getattr(torch.Tensor, name)

            def noted(self, *args, plain=plain, name=name, **kwargs):
                watch.reads.append(name)
                return plain(self, *args, **kwargs)

            patch.setattr(torch.Tensor, name, noted)
        yield watch


class Largest(TorchDispatchMode):
    """Notes the most rows of any tensor over the vocabulary."""

    def __init__(self, size):
        super().__init__()
        self.size, self.rows = size, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for out in result if isinstance(result, tuple | list) else [result]:
            if isinstance(out, torch.Tensor) and out.dim() and out.shape[-1] == self.size and 0 not in out.stride():
                self.rows = max(self.rows, out.numel() // self.size)
        return result


def keyring(n):
    return keys.fold(keys.root(3), np.arange(n))


def draws(lm, steps, monkeypatch):
    calls = lm.forwarder._calls
    with watching(monkeypatch) as watch:
        steps[0].sample_batch(steps, keyring(len(steps)))
    return watch.reads, lm.forwarder._calls - calls


@pytest.mark.parametrize(
    "law", [{}, {"temperature": 0.7, "top_p": 0.9}, {"top_k": 400, "top_p": 0.9}, {"min_p": 0.1}, {"temperature": 0}]
)
def test_a_token_of_a_wave_is_read_once(monkeypatch, law):
    lm = tiny_lm()
    steps = [lm.tokens(lm.prompt("Once upon a time"), 6, **law) for _ in range(5)]
    reads, passes = draws(lm, steps, monkeypatch)
    assert passes >= 6
    assert reads == ["cpu"] * 6


def test_waves_of_many_laws_masks_and_passes_are_read_once(monkeypatch):
    lm = tiny_lm(max_batch=3)
    text = lm.prompt("Once upon")
    masks = [np.arange(lm.vocab_size) % k > 0 for k in (2, 3)]
    steps = [
        *[lm.tokens(text, 4, temperature=1 + k) for k in range(3)],
        *[lm.next_token(text, mask=mask, top_p=0.9) for mask in masks],
        *[lm.tokens(lm.prompt("The river"), 4)] * 4,
    ]
    reads, passes = draws(lm, steps, monkeypatch)
    assert passes > 4
    assert reads == ["cpu"] * 4


@pytest.mark.parametrize(("name", "kind", "before"), [("llama", "causal", 0), ("bart", "encoder–decoder", 3)])
def test_ragged_waves_are_read_once(monkeypatch, name, kind, before):
    """An encoder may ask something of its own while it reads the three prompts: never between the tokens."""
    lm = tiny_lm(model=build(name, kind))
    lm.eos = frozenset()
    steps = [lm.tokens(lm.prompt(prompt), 5, top_p=0.8) for prompt in ("Once", "The river ran to", "Why, it is so")]
    reads, passes = draws(lm, steps, monkeypatch)
    assert passes >= 5
    assert reads[before:] == ["cpu"] * 5


def test_forks_on_a_trunk_are_read_once(monkeypatch):
    lm = tiny_lm()
    lm.eos = frozenset()
    prompts = [lm.prompt("Once upon a time there was a river " * n) for n in (12, 13)]
    first = [lm.next_token(prompt) for prompt in prompts * 3]
    texts = first[0].sample_batch(first, keyring(6)).values
    for chosen in ([0, 0, 1, 1, 1, 4], [2, 3, 3, 3, 3, 3]):
        steps = [lm.tokens(texts[i], 2) for i in chosen]
        with watching(monkeypatch) as watch:
            texts = steps[0].sample_batch(steps, keyring(6)).values
        assert watch.reads == ["cpu"] * 2
    assert lm.cache_info().trunks


def test_given_tokens_are_read_once(monkeypatch):
    lm = tiny_lm()
    texts = [lm.prompt(prompt).append(" and so on") for prompt in ("Once", "Once upon a time", "The end")]
    with watching(monkeypatch) as watch:
        evaluate([lm.score(text) for text in texts])
    assert watch.reads == ["cpu"]


def test_no_law_is_held_for_a_whole_wave(monkeypatch):
    """Of 60 histories, in passes of 8, no more than those of a pass are in work, whatever is asked."""
    lm = tiny_lm(max_batch=8)
    monkeypatch.setattr(walk, "_LAWS", 8 * lm.vocab_size)
    start = lm.prompt("Once upon a time")
    grow = lm.tokens(start, 4)
    texts = grow.sample_batch([grow] * 60, keyring(60)).values
    mask = np.arange(lm.vocab_size) % 3 > 0
    grammar = fk.constraints.Where(lm, lambda string: True)
    steps = [lm.tokens(text, 2, top_p=0.9) for text in texts]
    masked = [lm.next_token(text, mask=mask, temperature=0.7) for text in texts]
    constrained = [fk.constraints.constrained(lm.tokens(text, 2), grammar) for text in texts]
    longest = max(text.node.length for text in texts)
    for most, ask in (
        (8, lambda: steps[0].sample_batch(steps, keyring(60))),
        (8, lambda: masked[0].sample_batch(masked, keyring(60))),
        (8, lambda: constrained[0].sample_batch(constrained, keyring(60))),
        (8, lambda: evaluate([lm.log_mass(text, mask, temperature=0.7) for text in texts])),
        (8 * longest, lambda: evaluate([lm.score(text) for text in texts])),
    ):
        lm.forwarder.clear()
        with Largest(lm.vocab_size) as largest:
            ask()
        assert 0 < largest.rows <= most


def test_what_is_sent_together_arrives_as_it_was():
    arrays = [
        np.arange(6, dtype=np.int64).reshape(2, 3),
        np.linspace(0, 1, 5),
        np.array([[True, False, True]]),
        np.zeros((0, 4), np.int64),
        np.arange(3, dtype=np.int64),
    ]
    for sent in (send(torch.device("cpu"), *arrays), packed(torch.device("cpu"), arrays)):
        for tensor, array in zip(sent, arrays):
            assert tensor.shape == array.shape
            assert (tensor.numpy() == array).all()
            assert tensor.numpy().dtype == array.dtype
    there = packed(torch.device("meta"), arrays)
    assert [tensor.shape for tensor in there] == [array.shape for array in arrays]
    assert len({tensor.untyped_storage()._cdata for tensor in packed(torch.device("cpu"), arrays)}) == 1


def test_log_probs_of_a_model_in_bfloat16_are_not_rounded_to_it():
    """The logits are of the model's type, and the law made of them is not: sums of tokens agree far below its step."""
    lm = tiny_lm(model=tiny_lm().model.to(torch.bfloat16))
    lm.eos = frozenset()
    seen = []
    lm.model.lm_head.register_forward_hook(lambda module, inputs, logits: seen.append(logits[0]))
    start = lm.prompt("Once upon")
    step = lm.tokens(start, 1)
    drawn = step.sample_batch([step] * 8, keyring(8))
    law = seen.pop()[-1]
    assert law.dtype == torch.bfloat16
    exact = law.double().log_softmax(-1)
    for text, log_prob in zip(drawn.values, drawn.log_prob):
        assert log_prob == pytest.approx(exact[text.node.tokens()[-1]].item(), abs=1e-6)
    [found] = evaluate([lm.score(start, " there was a king")])
    ids = torch.tensor(lm.prompt("Once upon there was a king").node.tokens()[len(start.node.tokens()) :])
    laws = torch.cat([law[None], *seen])[: len(ids)].double().log_softmax(-1)
    assert found == pytest.approx(laws.gather(1, ids[:, None]).sum().item(), abs=1e-5)
