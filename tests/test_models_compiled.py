"""Layers compiled by torch: the same draws for all lengths and batches, few compilations, refusals by name."""

import shutil

import numpy as np
import pytest

torch = pytest.importorskip("torch")
hf = pytest.importorskip("transformers")

from zoo import build  # noqa: E402

from feynkac.models import TransformersLM  # noqa: E402
from feynkac.models.local.passes import compiled  # noqa: E402
from feynkac.models.testing import tiny_lm  # noqa: E402
from feynkac.ppl import keys  # noqa: E402
from feynkac.ppl.errors import Unsupported  # noqa: E402


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):  # or what is too much would run as it was
        yield
    torch.compiler.reset()


def deep(layers=10):
    """A Llama of more layers than torch compiles one function for."""
    config = tiny_lm().model.config.to_dict() | {"num_hidden_layers": layers}
    torch.manual_seed(0)
    return hf.LlamaForCausalLM(hf.LlamaConfig(**config)).eval()


def walk(lm):
    """Log-probabilities of draws from texts of unequal lengths, in batches of several sizes, forked."""
    lm.eos = frozenset()
    found = []
    for n in (1, 5):
        texts = [lm.prompt(prompt) for prompt in ("Once", "The river ran to the sea")] * n
        for t in range(3):
            steps = [lm.tokens(text, 1 + t) for text in texts]
            texts = steps[0].sample_batch(steps, keys.fold(keys.root(t), np.arange(len(steps)))).values
            texts = [texts[i] for i in np.arange(len(texts)) // 2 * 2]
        found += [text.log_prob for text in texts]
    return np.array(found)


@pytest.mark.slow
def test_compiled_layers_draw_the_same_and_are_compiled_once_for_all():
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    model = deep()
    plain = walk(tiny_lm(model=model))
    torch._dynamo.register_backend(counting, name="counting")
    lm = tiny_lm(model=model, compile="counting")
    assert walk(lm) == pytest.approx(plain, abs=1e-4)
    ready = len(graphs)
    assert 0 < ready < 100  # for all ten layers, in passes of many shapes
    lm.forwarder.clear()
    longer = [lm.tokens(lm.prompt("Once upon a time there was a river"), 9)] * 7
    longer[0].sample_batch(longer, keys.fold(keys.root(9), np.arange(7)))
    assert len(graphs) == ready


def test_a_model_that_cannot_be_compiled_is_refused_by_name():
    with pytest.raises(Unsupported, match=r"MambaForCausalLM cannot be compiled.*leave compile out"):
        tiny_lm(model=build("mamba"), compile="eager")
    with pytest.raises(Unsupported, match="nowhere"):
        tiny_lm(compile="nowhere")


@pytest.mark.slow
def test_a_model_whose_layers_give_other_logits_is_refused_and_runs_as_before():
    model = deep(2)
    plain = walk(tiny_lm(model=model))

    def wrong(graph, inputs):
        def run(*args):
            return [out * 1.5 if out.is_floating_point() else out for out in graph.forward(*args)]

        return run

    torch._dynamo.register_backend(wrong, name="wrong")
    with pytest.raises(Unsupported, match=r"LlamaForCausalLM cannot be compiled by 'wrong'.*other logits.*compile out"):
        tiny_lm(model=model, compile="wrong")
    assert model not in compiled.COMPILED
    assert walk(tiny_lm(model=model)).tolist() == plain.tolist()


@pytest.mark.slow
def test_a_loaded_model_is_compiled(tmp_path):
    lm = tiny_lm()
    lm.model.save_pretrained(tmp_path)
    lm.tokenizer.save_pretrained(tmp_path)
    loaded = TransformersLM.from_pretrained(str(tmp_path), device="cpu", compile="eager")
    assert walk(loaded) == pytest.approx(walk(lm), abs=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_layers_compiled_to_code_draw_the_same():
    model = deep(3)
    plain = walk(tiny_lm(model=model))
    assert walk(tiny_lm(model=model, compile=True)) == pytest.approx(plain, abs=1e-4)
