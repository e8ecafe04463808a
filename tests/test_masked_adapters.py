"""Masked language models of transformers generate as the scheduler of diffusers does, in law."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
diffusers = pytest.importorskip("diffusers")

from random_models import random_weights  # noqa: E402
from scipy import stats  # noqa: E402

import feynkac as fk  # noqa: E402
from feynkac.diffusion import Confident, InOrder, MaskedDiffusion, TokenNetwork  # noqa: E402

MASK = 5
CONFIG = {
    "vocab_size": 6, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 16,
}  # fmt: skip


@pytest.fixture(scope="module")
def bert():
    make = transformers.BertForMaskedLM
    return random_weights(lambda: make(transformers.BertConfig(**CONFIG))).eval().requires_grad_(False)


@pytest.mark.parametrize(("steps", "threshold", "temperature"), [(2, 0.95, 1.0), (4, 0.4, 1.0), (3, 0.3, 0.7)])
def test_a_step_has_the_law_of_the_scheduler(bert, steps, threshold, temperature):
    n, template = 20_000, [MASK, 2, MASK, MASK, MASK]
    rule = Confident(steps, threshold)
    made = MaskedDiffusion(TokenNetwork(bert), 5, rule, vocabulary=6, template=template, temperature=temperature)
    start = made.start(fk.keys.fold(fk.keys.root(0), np.arange(1))).state
    scheduler = diffusers.BlockRefinementScheduler(block_length=4, num_inference_steps=steps, threshold=threshold)
    scheduler.set_timesteps(steps)
    logits = bert(input_ids=torch.tensor([template])).logits.double()
    logits[..., MASK] = -torch.inf  # which the scheduler may draw
    found = scheduler.step(
        logits.expand(n, -1, -1), 0, torch.tensor([template]).expand(n, -1).clone(), mask_token_id=MASK,
        temperature=temperature, sampling_method="multinomial", generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    after, count = np.unique(found.prev_sample.numpy(), axis=0, return_counts=True)
    index = np.zeros(len(after), int)
    log_prob = made.advance(made.select(start, index), np.zeros(len(after), np.uint64), list(after)).log_prob
    expected = np.exp(log_prob) * n
    assert expected.sum() > 0.98 * n
    often = expected > 5
    seen, expected = (np.append(some[often], n - some[often].sum()) for some in (count, expected))
    assert stats.chi2.sf(((seen - expected) ** 2 / expected).sum(), len(seen) - 1) > 1e-5


def test_logits_that_predict_the_next_token_are_shifted(bert):
    tokens = torch.tensor([[1, MASK, 3, MASK]])
    plain, shifted = (TokenNetwork(bert, shift=shift)(tokens, None, None) for shift in (False, True))
    assert torch.equal(shifted[:, 1:], plain[:, :-1])


def test_conditions_are_what_else_the_model_takes(bert):
    seen = torch.tensor([[1, 1, 1, 0]])
    made = MaskedDiffusion(
        TokenNetwork(bert),
        4,
        InOrder("left"),
        vocabulary=6,
        template=[1, MASK, MASK, 2],
        condition={"attention_mask": seen},
    )
    state = made.start(fk.keys.fold(fk.keys.root(0), np.arange(3))).state
    expected = bert(input_ids=torch.tensor([[1, MASK, MASK, 2]]), attention_mask=seen).logits
    expected[..., MASK] = -torch.inf
    assert torch.allclose(state.fields["log_mu"][...], expected.log_softmax(-1), atol=1e-5)


def test_models_are_loaded_as_transformers_does(bert, tmp_path):
    bert.save_pretrained(tmp_path)
    tokens = torch.tensor([[1, MASK, 3, MASK]])
    again = TokenNetwork.from_pretrained(str(tmp_path), device="cpu")
    assert torch.allclose(again(tokens, None, None), TokenNetwork(bert)(tokens, None, None), atol=1e-6)
