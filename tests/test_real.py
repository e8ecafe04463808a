"""The real language model: exact log-probs under forks, and a law that a program really has."""

from __future__ import annotations

import math

import numpy as np
import pytest

import feynkac as fk

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def lm():
    return fk.models.TransformersLM.from_pretrained("smollm2")


def full_log_probs(lm, tokens):
    """Log-probs of each token given those before it, by one fresh forward pass.

    With gradients, so that the linear layers take torch's own path and not that of packed weights.
    """
    logits = lm.model(torch.tensor([tokens])).logits[0].detach().double()
    return torch.log_softmax(logits, -1)


def test_log_probs_under_smc_equal_a_fresh_pass(lm):
    @fk.program
    async def few_es(n):
        text = lm.prompt("The weather report says that")
        for _ in range(n):
            seen = len(str(text))
            text = await fk.sample("token", lm.next_token(text))
            await fk.factor("no e", -1.0 * str(text)[seen:].count("e"))
        return text

    posterior = fk.infer(few_es(20), fk.SMC(8, resampling="multinomial"), seed=0)
    assert any(step.resampled for step in posterior.steps)
    for i, text in enumerate(posterior.values):
        start = len(text.prompt_tokens)
        fresh = full_log_probs(lm, text.prompt_tokens + text.tokens)
        exact = [float(fresh[start + j - 1, token]) for j, token in enumerate(text.tokens)]
        told = [site.log_prob for site in posterior.trace(i).values() if site.kind == "sample"]
        assert told == pytest.approx(exact, abs=1e-4)
        assert text.log_prob == pytest.approx(sum(exact), abs=1e-3)


def test_the_evidence_of_a_token_constraint_is_its_probability(lm):
    """P(next token holds an "a"), by SMC with N=16 over many runs, against the sum over the vocabulary."""
    prompt = "My favourite colour is"
    strings = [lm.tokenizer.decode([i]) for i in range(lm.vocab_size)]
    holds = np.array(["a" in string for string in strings])
    law = full_log_probs(lm, lm.prompt(prompt).prompt_tokens)[-1].exp().numpy()
    truth = float(law[holds].sum())

    @fk.program
    async def one():
        text = await fk.sample("token", lm.next_token(lm.prompt(prompt)))
        await fk.factor("a", 0.0 if holds[text.tokens[-1]] else -math.inf)

    runs = fk.infer([one()] * 400, fk.SMC(16, all_dead="zero"), seed=0)
    ratios = np.exp([p.log_evidence for p in runs]) / truth
    z = (ratios.mean() - 1) / (ratios.std(ddof=1) / math.sqrt(len(ratios)))
    assert abs(z) < 4.26  # false alarm: 2e-5


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # of peft
def test_an_adapter_that_changes_nothing_leaves_the_law(lm):
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(fk.models.fetch.resolve("smollm2"), dtype=torch.float32)
    adapted = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"]))
    tuned = fk.models.TransformersLM(adapted, lm.tokenizer)
    assert tuned.forwarder.ragged
    prompts = ["The weather report says that", "Yes", "A river is a large stream of water, which"]
    keys = fk.keys.fold(fk.keys.root(0), np.arange(6))
    step = [tuned.tokens(tuned.prompt(prompts[i % 3]), 2 + i) for i in range(6)]
    texts = step[0].sample_batch(step, keys).values  # of many lengths, in company
    step = [tuned.tokens(text, 3) for text in texts]
    for text in step[0].sample_batch(step, keys).values:
        tokens, begun = text.prompt_tokens + text.tokens, len(text.prompt_tokens)
        log_p = full_log_probs(lm, tokens)
        truth = sum(log_p[i - 1, tokens[i]].item() for i in range(begun, len(tokens)))
        assert text.log_prob == pytest.approx(truth, abs=1e-3)
