"""What programs read of a model: laws, how sure they are, hidden states; from the pass that is made anyway."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from random_models import draw  # noqa: E402
from whole_steps import WholeSteps  # noqa: E402
from zoo import build  # noqa: E402

import feynkac as fk  # noqa: E402
from feynkac.models.testing import tiny_lm  # noqa: E402
from feynkac.ppl.errors import Unsupported  # noqa: E402


def whole(lm, text):
    """The hidden states of a text's last token, by layer, by one pass over the text alone."""
    start = lm._writer.start
    with torch.no_grad():
        if start is None:
            ids = torch.tensor([text.prompt_tokens + text.tokens])
            states = lm.model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
        else:
            states = lm.model(
                input_ids=torch.tensor([text.prompt_tokens]), decoder_input_ids=torch.tensor([start + text.tokens]),
                use_cache=False, output_hidden_states=True,
            ).decoder_hidden_states  # fmt: skip
    return [layer[0, -1].numpy() for layer in states]


class Table(WholeSteps):
    """The chain, which gives its law, too: a, b and the end, with other odds after a than after b."""

    offers = frozenset({"law"})

    def __init__(self):
        super().__init__()
        self.law[:] = -np.inf
        a, b, end = 60, 61, next(iter(self.eos))
        with np.errstate(divide="ignore"):
            self.law[:, [a, b, end]] = np.log([0.5, 0.3, 0.2])
            self.law[a, [a, b, end]] = np.log([0.2, 0.5, 0.3])

    def laws(self, nodes, owners, tally, sink):
        self.requests.append(len(nodes))
        for last in reversed(range(len(nodes))):  # some at a time, and not in order
            sink(np.array([last]), torch.tensor(self.law[nodes[last].tokens()[-1]], dtype=torch.float32)[None])


def test_numbers_that_sum_up_a_law_are_those_of_its_definition():
    lm = Table()
    text = lm.prompt("Once")
    assert lm.read(text, "entropy") == pytest.approx(1.029653, abs=1e-6)
    assert lm.read(text, "top") == pytest.approx(0.5, abs=1e-7)
    assert lm.read(text, "margin") == pytest.approx(0.2, abs=1e-7)
    assert lm.read(text, "top", temperature=0) == 1.0
    assert lm.read(text, "entropy", top_k=1) == 0.0
    np.testing.assert_array_equal(lm.read(text), lm.next_log_probs(text))

    @fk.program
    async def three():
        first = lm.prompt("Once")
        a = first.append(lm.decode([60]))
        return await fk.gather(*(fk.call(f"{i}", lm.read(x, "margin")) for i, x in enumerate((first, a, first))))

    assert fk.simulate(three(), seed=0).value == pytest.approx((0.2, 0.2, 0.2), abs=1e-6)


FAMILIES = [
    ("llama", "causal"), ("gpt2", "causal"), ("bert", "causal"), ("mamba", "causal"), ("rwkv", "causal"),
    ("jamba", "causal"), ("t5", "encoder–decoder"), ("bart", "encoder–decoder"),
]  # fmt: skip


@pytest.mark.parametrize(("family", "role"), FAMILIES)
@pytest.mark.parametrize("cache_bytes", [1 << 30, 1])
def test_hidden_states_are_those_of_a_whole_pass(family, role, cache_bytes):
    lm = tiny_lm(model=build(family, role), cache_bytes=cache_bytes)
    lm.eos = frozenset()
    texts = [lm.prompt(prompt) for prompt in ("Once", "The sea said", "Who said")] * 2
    for t, forks in enumerate(([5, 0, 0, 4, 1], [3, 3, 0, 2, 1])):  # rows change places, and some part
        texts = draw([lm.tokens(text, 1 + (t + i) % 2) for i, text in enumerate(texts)], t)
        texts = [texts[i] for i in forks]
        truth = [whole(lm, text) for text in texts]
        layers = [-1, 0, 1, -1, lm.depth - 1] if t else [-1] * 5

        @fk.program
        async def read(texts=tuple(texts), layers=tuple(layers)):
            calls = (fk.call(f"{i}", lm.read(x, "hidden", k)) for i, (x, k) in enumerate(zip(texts, layers)))
            return await fk.gather(*calls)

        for state, states, layer in zip(fk.simulate(read(), seed=0).value, truth, layers):
            np.testing.assert_allclose(state, states[layer], atol=1e-5 * max(1.0, np.abs(states[layer]).max()))
    assert len(truth[0]) == lm.depth


@fk.program
async def looks(lm, steps, what):
    text = lm.prompt("Once upon a time")
    seen = []
    for _ in range(steps):
        for one in what:
            seen.append(await fk.call(one, lm.read(text, one)))
        text = await fk.sample("token", lm.next_token(text))
        await fk.factor("likes", 0.3 * (text.tokens[-1] % 3))
    return text, seen


@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_reads_take_no_pass_of_their_own(family):
    costs = {}
    for what in ((), ("hidden",), ("entropy", "hidden", "law"), ("hidden", "margin")):
        for n in (4, 16):
            lm = tiny_lm(model=build(family))
            lm.eos = frozenset()  # after a finished text no step follows, which could use the pass
            posterior = fk.infer(looks(lm, 5, what), fk.SMC(n), seed=0)
            costs[what, n] = posterior.cost
            assert posterior.cost.tokens_in == lm.forwarded
            assert [x for x, _ in posterior.values] == [
                x for x, _ in fk.infer(looks(lm, 5, ()), fk.SMC(n), seed=0).values
            ]
    for (what, n), cost in costs.items():
        assert cost.tokens_in == costs[(), n].tokens_in, (what, n)
        assert cost.model_calls == costs[(), 4].model_calls == 5
        assert cost.tokens_recomputed == 0


def test_a_layer_of_what_was_forwarded_costs_its_position_once():
    lm = tiny_lm()
    text = lm.prompt("Once upon a time")
    lm.read(text, "entropy")
    lm.read(text, "hidden")
    assert lm.forwarded == text.node.length
    lm.read(text, "hidden", 1)
    lm.read(text, "hidden", 1)
    assert lm.forwarded == text.node.length + 1
    longer = text.append(" there")  # from now on the layer is taken in every small pass
    assert lm.read(longer, "entropy") == pytest.approx(lm.read(longer, "entropy", temperature=1.0))
    np.testing.assert_allclose(lm.read(longer, "hidden", 1), whole(lm, longer)[1], atol=1e-5)
    assert lm.forwarded == longer.node.length + 1
    assert lm.cache_info().recomputed == 0


def test_reading_is_no_change_of_the_model_and_changes_are_noticed():
    lm = tiny_lm()
    text = lm.prompt("Once")
    version, head = lm.version(), dict(vars(lm.model.lm_head))
    before = lm.read(text, "hidden", 1)
    before[:] = 0.0  # a copy
    before = lm.read(text, "hidden", 1)
    assert lm.version() == version
    assert vars(lm.model.lm_head) == head
    with torch.no_grad():
        lm.model.model.layers[0].mlp.down_proj.weight.mul_(2.0)
    after = lm.read(text, "hidden", 1)
    assert np.abs(after - before).max() > 0.01
    np.testing.assert_allclose(after, whole(lm, text)[1], atol=1e-5)
    handle = lm.model.lm_head.register_forward_hook(lambda *_: None)
    assert lm.version() > version + 1
    handle.remove()


class Deaf(torch.nn.Module):
    """A model that says nothing of its hidden states."""

    def __init__(self, model):
        super().__init__()
        self.inner = model

    def forward(self, output_hidden_states=None, **inputs):
        return self.inner(**inputs)


def test_what_cannot_be_read_is_refused_by_name():
    lm = tiny_lm()
    text = lm.prompt("Once")
    with pytest.raises(ValueError, match="'law', 'hidden', 'entropy', 'top', 'margin', not 'hiden'"):
        lm.read(text, "hiden")
    for layer in (3, -4):
        with pytest.raises(ValueError, match=f"tiny-LlamaForCausalLM-0.*layers -3 to 2, and {layer}"):
            lm.read(text, "hidden", layer)
    with pytest.raises(TypeError, match="a layer is a whole number"):
        lm.read(text, "hidden", 0.5)
    with pytest.raises(TypeError, match="not drawn: leave out temperature"):
        lm.read(text, "hidden", temperature=0.5)
    with pytest.raises(TypeError, match="a layer belongs to \"hidden\", not to 'law'"):
        lm.read(text, "law", 1)
    with pytest.raises(Unsupported, match=r"needs hidden states, which .*whole-steps-0.* does not.*TransformersLM"):
        WholeSteps().read(WholeSteps().prompt("Once"), "hidden")
    deaf = tiny_lm(model=Deaf(lm.model))
    with pytest.raises(Unsupported, match="LlamaForCausalLM gives no hidden states when it is asked for them"):
        deaf.read(deaf.prompt("Once"), "hidden")
    assert deaf.read(deaf.prompt("Once"), "entropy") == pytest.approx(lm.read(text, "entropy"), abs=1e-6)
