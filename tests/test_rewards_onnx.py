"""ONNX models as rewards, on a tiny graph built here."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import feynkac as fk
from feynkac.ppl.cost import Ledger, recording
from feynkac.ppl.score import evaluate

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("transformers")

from transformers import PreTrainedTokenizerFast  # noqa: E402

from feynkac.models.rewards import OnnxReward  # noqa: E402
from feynkac.models.testing import tiny_tokenizer  # noqa: E402

TEXTS = ["Once upon a time", "x", "The sea said: who are you?"]


def graph(nodes, inputs, outputs, constants=()):
    from onnx import TensorProto, helper, numpy_helper

    def info(pairs):
        return [helper.make_tensor_value_info(name, getattr(TensorProto, kind), shape) for name, kind, shape in pairs]

    initial = [numpy_helper.from_array(array, name) for name, array in constants]
    made = helper.make_graph([helper.make_node(*node) for node in nodes], "tiny", info(inputs), info(outputs), initial)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


TABLE = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)


def tagger():
    """Logits of three tags for each token, read from a table and scaled by the attention mask."""
    nodes = [
        (("Gather"), ["table", "input_ids"], ["looked"]),
        (("Cast"), ["attention_mask"], ["mask"]),
        (("Unsqueeze"), ["mask", "axis"], ["column"]),
        (("Mul"), ["looked", "column"], ["logits"]),
    ]
    tokens = [(name, "INT64", ["n", "t"]) for name in ("input_ids", "attention_mask")]
    outputs = [("looked", "FLOAT", ["n", "t", 3]), ("logits", "FLOAT", ["n", "t", 3])]
    return _cast(nodes, tokens, outputs, [("table", TABLE), ("axis", np.array([2]))])


def _cast(nodes, inputs, outputs, constants):
    from onnx import TensorProto, helper, load_from_string

    model = load_from_string(graph([n for n in nodes if n[0] != "Cast"], inputs, outputs, constants))
    cast = helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT)
    model.graph.node.insert(0, cast)
    return model.SerializeToString()


def squares():
    """The sum of squares of two numbers, shape (n, 1)."""
    nodes = [("Mul", ["x", "x"], ["squared"]), ("MatMul", ["squared", "ones"], ["total"])]
    return graph(
        nodes, [("x", "FLOAT", ["n", 2])], [("total", "FLOAT", ["n", 1])], [("ones", np.ones((2, 1), np.float32))]
    )


def keep(logits, ids):
    """Σ log P(tag 0), a position for each token."""
    assert logits.shape == (len(ids), 3)
    return (logits - np.logaddexp.reduce(logits, -1, keepdims=True))[:, 0].sum()


def by_hand(text):
    return keep(TABLE[tiny_tokenizer()(text).input_ids], tiny_tokenizer()(text).input_ids)


@pytest.mark.parametrize("max_batch", [64, 1])
@pytest.mark.parametrize("output", ["logits", 1])
def test_padded_batches_equal_inputs_one_by_one(max_batch, output):
    reward = OnnxReward(
        tagger(), tiny_tokenizer(), output=output, reduce=keep, kind="log_weight", max_batch=max_batch, name="tags"
    )
    with recording(Ledger()) as ledger:
        values = evaluate([reward(text) for text in [*TEXTS, *TEXTS]])
    assert values == pytest.approx([by_hand(text) for text in TEXTS] * 2, abs=1e-5)
    cost = ledger.total()
    lengths = [len(tiny_tokenizer()(text).input_ids) for text in TEXTS]
    assert (cost.model_calls, cost.tokens_in, cost.reward_calls) == (3 if max_batch == 1 else 1, sum(lengths), 3)
    assert repr(reward("x")) == "<log_weight score of tags>"


def test_a_graph_that_reads_the_last_token_is_not_given_padding_for_it():
    nodes = [("Slice", ["input_ids", "from", "to", "axis"], ["last"]), ("Gather", ["table", "last"], ["value"])]
    constants = [("from", np.array([-1])), ("to", np.array([2**40])), ("axis", np.array([1])), ("table", TABLE[:, 0])]
    last = graph(nodes, [("input_ids", "INT64", ["n", "t"])], [("value", "FLOAT", ["n", 1])], constants)
    texts = [*TEXTS, "y", "The sea.<eos>"]
    for pad in (None, "<eos>"):
        own = PreTrainedTokenizerFast(
            tokenizer_object=tiny_tokenizer().backend_tokenizer, eos_token="<eos>", pad_token=pad
        )
        reward = OnnxReward(last, own, name="last")
        with recording(Ledger()) as ledger:
            values = evaluate([reward(text) for text in texts])
        assert values == pytest.approx([TABLE[own(text).input_ids[-1], 0] for text in texts])
        assert ledger.total().model_calls <= len(texts) - 1  # "x" and "y" share one


def test_a_function_may_make_the_inputs_from_anything():
    reward = OnnxReward(squares(), lambda pairs: {"x": np.array(pairs, np.float32)}, name="squares")
    assert evaluate([reward(3.0, 4.0), reward((1.0, 2.0))]) == [25.0, 5.0]
    with pytest.raises(ValueError, match="'squares': the model needs x, and was given y"):
        evaluate([OnnxReward(squares(), lambda pairs: {"y": 1}, name="squares")(1.0, 2.0)])


def test_models_are_read_from_files(tmp_path):
    (tmp_path / "sum.onnx").write_bytes(squares())
    reward = OnnxReward(tmp_path / "sum.onnx", lambda pairs: {"x": np.array(pairs, np.float32)})
    assert reward.name == "sum"
    assert evaluate([reward(0.0, 2.0)]) == [4.0]
    with pytest.raises(FileNotFoundError, match=r"there is no ONNX model at .*absent\.onnx"):
        OnnxReward(str(tmp_path / "absent.onnx"), tiny_tokenizer())


def test_wrong_outputs_and_inputs_are_clear_errors(monkeypatch):
    with pytest.raises(ValueError, match="'onnx': the model has no output 'probs'; there are: looked, logits"):
        OnnxReward(tagger(), tiny_tokenizer(), output="probs")
    with pytest.raises(ValueError, match="has no output 2"):
        OnnxReward(tagger(), tiny_tokenizer(), output=2)
    with pytest.raises(ValueError, match=r"'looked' has shape \(1, 3\) for one input; say with reduce"):
        evaluate([OnnxReward(tagger(), tiny_tokenizer())("x")])
    with pytest.raises(TypeError, match="inputs is a tokenizer or a function, not 3"):
        OnnxReward(tagger(), 3)
    with pytest.raises(fk.errors.InvalidWeight, match=r"'onnx' returned nan for \('x'\)"):
        evaluate([OnnxReward(tagger(), tiny_tokenizer(), reduce=lambda logits, ids: np.nan)("x")])
    with pytest.raises(fk.errors.ContextOverflow, match="reads 2 tokens"):
        evaluate([OnnxReward(tagger(), tiny_tokenizer(), reduce=keep, max_length=2)(TEXTS[0])])
    short = OnnxReward(tagger(), tiny_tokenizer(), output=1, reduce=keep, max_length=2, truncate="right")
    ids = tiny_tokenizer()(TEXTS[0]).input_ids[:2]
    assert evaluate([short(TEXTS[0])]) == pytest.approx([keep(TABLE[ids], ids)], abs=1e-5)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"pip install 'feynkac\[onnx\]'"):
        OnnxReward(tagger(), tiny_tokenizer())
