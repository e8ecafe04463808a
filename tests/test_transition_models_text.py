"""Models of text that are no plain transformers: letters of DNA, several tokens a step, streams inside a model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
import transformers as hf
from parscale import StreamsConfig, StreamsForCausalLM
from random_models import draw, fresh_log_prob, random_weights
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import feynkac as fk
from feynkac.models.testing import tiny_lm
from feynkac.ppl import cost, keys
from feynkac.ppl.errors import CannotScore, Unsupported
from feynkac.ppl.model import Draws
from laws import check_unbiased


def streams(**settings):
    return random_weights(lambda: StreamsForCausalLM(StreamsConfig(**settings)), seed=1, std=0.5)


def test_streams_inside_a_model_are_kept_for_each_text():
    lm = tiny_lm(model=streams())
    lm.eos = frozenset()
    assert lm.forwarder.ragged
    texts = [lm.prompt(words) for words in ("Once", "The sea said", "Who said: the sea")] * 2
    rng = np.random.default_rng(0)
    for t in range(5):
        texts = draw([lm.tokens(text, 1 + (t + i) % 3) for i, text in enumerate(texts)], t)
        truth = [fresh_log_prob(lm, text) for text in texts]
        np.testing.assert_allclose([text.log_prob for text in texts], truth, atol=1e-4)
        texts = [texts[i] for i in rng.integers(0, 6, 6)]


def test_every_stream_reads_its_own_prefix_and_counts():
    model = streams()
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        last = model.streams(ids)[0]
        law = model(ids).logits
        assert min((last[i] - last[j]).abs().max() for i, j in ((0, 1), (0, 2), (1, 2))) > 0.1
        model.layers[1].prefix[:, 2] = 0.0
        assert (model(ids).logits - law).abs().max() > 0.01


def test_streams_as_rows_of_the_cache_are_refused_by_name():
    with pytest.raises(Unsupported, match="StreamsForCausalLM cannot be run as others of its kind"):
        tiny_lm(model=streams(rows=True))


def letters(alphabet):
    """A tokenizer of single letters."""
    raw = Tokenizer(models.BPE({word: i for i, word in enumerate(("<bos>", "<eos>", *alphabet))}, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    raw.add_special_tokens(["<bos>", "<eos>"])
    return hf.PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>")


def test_valid_sequences_weigh_what_a_whole_pass_gives_them():
    """A value s comes with probability q and weight p/q, p of a whole pass: the p/weight of all values sum to 1."""
    pytest.importorskip("llguidance")
    config = hf.xLSTMConfig(
        vocab_size=6, hidden_size=64, num_heads=2, num_hidden_layers=2, qk_dim_factor=1.0,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = random_weights(lambda: hf.xLSTMForCausalLM(config), seed=1, std=0.1)
    lm = fk.models.TransformersLM(model, letters("ACGT"), name="dna")
    valid = fk.constraints.regex(lm, "AC|CAG|ACG")

    @fk.program
    async def gene():
        text = lm.complete(lm.prompt("ACG"), max_tokens=6)
        return str(await fk.sample("gene", fk.constraints.constrained(text, valid)))

    weights = {one.values[0]: one.log_evidence for one in fk.infer([gene()] * 200, fk.ImportanceSampling(1), seed=0)}
    assert set(weights) == {"AC", "CAG", "ACG"}
    prompt = lm.prompt("ACG").prompt_tokens
    total = 0.0
    for sequence, weight in weights.items():
        ids = [*prompt, *("__ACGT".index(letter) for letter in sequence), 1]
        with torch.no_grad():
            law = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        total += np.exp(sum(law[i - 1, ids[i]].item() for i in range(len(prompt), len(ids))) - weight)
    assert total == pytest.approx(1.0, abs=1e-4)


class Smashing:
    """A model that reads each step as one position, and draws one or two letters from it, one after the other."""

    def __init__(self):
        self.law = np.random.default_rng(0).dirichlet(np.ones(3), (3, 3))  # of two letters and the end of a step


@dataclass(frozen=True)
class Smash:
    """A request for the next step; its values are tuples of letters."""

    model: Smashing
    before: tuple[tuple[int, ...], ...]

    @property
    def batch_key(self):
        return self.model, type(self)

    def support(self):
        return [(0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1)]

    def log_prob(self, value):
        law = self.model.law[sum(sum(step) + len(step) for step in self.before) % 3]
        first = law[2, :2] / law[2, :2].sum()  # a step has a letter
        after = law[value[0]]
        return np.log(first[value[0]]) + np.log(after[value[1] if len(value) > 1 else 2])

    def sample_batch(self, requests, ks):
        cost.charge(model_calls=1, tokens_in=np.ones(len(requests), int))
        values, logs = [], []
        for i, request in enumerate(requests):
            law = np.array([Smash.log_prob(request, value) for value in self.support()])
            at = int(np.searchsorted(np.exp(law).cumsum(), keys.uniform(ks[[i]], 1)[0, 0], side="right"))
            values.append(self.support()[at])
            logs.append(law[at])
        return Draws(values, np.array(logs))

    def log_prob_batch(self, requests, values):
        return np.array([request.log_prob(value) for request, value in zip(requests, values)])


@dataclass(frozen=True)
class Mute:
    """The same, by a model that does not say how probable its steps are."""

    model: Smashing
    before: tuple[tuple[int, ...], ...]
    batch_key = Smash.batch_key
    support = Smash.support

    def sample_batch(self, requests, ks):
        return Draws(Smash.sample_batch(self, requests, ks).values, None)


@fk.program
async def written(kind, model):
    before = ()
    for _ in range(3):
        before = (*before, await fk.sample("step", kind(model, before)))
        await fk.factor("G", 0.5 * sum(before[-1]))
    return before


def test_a_step_of_several_tokens_says_how_probable_it_is():
    requests = [Smash(Smashing(), ((1,), (0, 1))[:i]) for i in (0, 1, 2)] * 5
    draws = requests[0].sample_batch(requests, keys.fold(keys.root(0), np.arange(15)))
    np.testing.assert_allclose(draws.log_prob, requests[0].log_prob_batch(requests, draws.values))
    for request in requests[:3]:
        assert sum(np.exp(request.log_prob(value)) for value in request.support()) == pytest.approx(1.0)


@pytest.mark.parametrize("kind", [Smash, Mute])
def test_several_tokens_a_step_are_exact_for_their_law(kind):
    model = Smashing()
    exact = fk.enumerate_program(written(Smash, model))
    likely = dict(sorted(zip(exact.values, exact.probabilities), key=lambda pair: -pair[1])[:5])
    # 6 comparisons at |z| < 4.26: a correct engine fails this test with probability 6 × 2e-5 = 1.2e-4.
    check_unbiased(written(kind, model), fk.SMC(4, ess_threshold=1.0), likely, exact.log_evidence, runs=300)


def test_a_step_of_several_tokens_is_one_call_and_one_position():
    posterior = fk.infer(written(Smash, Smashing()), fk.SMC(4), seed=0)
    assert max(sum(map(len, value)) for value in posterior.values) > 3
    assert (posterior.cost.model_calls, posterior.cost.tokens_in) == (3, 12)


def test_steps_without_log_probabilities_are_refused_where_they_are_needed():
    model = written(Mute, Smashing())
    for engine in (fk.SuffixMH(2), fk.ParticleGibbs(3, 2), fk.BestOfN(2)):  # these need none
        fk.infer(model, engine, seed=0)
    with pytest.raises(Unsupported, match="needs log-probabilities"):
        fk.infer(model, fk.SuffixMH(2, power=2.0), seed=0)
    with pytest.raises(CannotScore, match=r"'step\[1\]': Mute has no log_prob_batch"):
        fk.infer(model, fk.ParticleGibbs(3, 2, ancestor_sampling=True), seed=0)
