"""A model that changes while it is in use: nothing is taken from what it was. Threads that share one."""

import numpy as np
import peft
import pytest
import torch
import transformers as hf
from random_models import draw, fresh_log_prob, random_weights

import feynkac as fk
from feynkac.models.local.weights.live import Live
from feynkac.models.rewards import Classifier, Embedding, Grader, Judge, StepTokenPRM, ValueHeadPRM
from feynkac.models.testing import tiny_lm, tiny_tokenizer
from feynkac.ppl.score import evaluate

# Of peft, which asks transformers by an older name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

SMALL = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
LAYERS = ["q_proj", "v_proj", "down_proj"]


def llama():
    return random_weights(lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL)))


def with_adapters():
    """A Llama with two adapters, of which "one" is on. Neither is the identity."""
    model = peft.get_peft_model(llama(), peft.LoraConfig(r=4, target_modules=LAYERS), adapter_name="one")
    model.add_adapter("two", peft.LoraConfig(r=4, target_modules=LAYERS, lora_alpha=16))
    with torch.no_grad():
        for i, (name, weight) in enumerate(model.named_parameters()):
            if "lora_" in name:
                weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(i)) * 0.3)
    model.set_adapter("one")
    return model


def add_layer(model):
    model.base_model.model.model.layers[0].mlp.down_proj = torch.nn.Linear(64, 64)


def step_of(optimizer, **settings):
    def change(model):
        for weight in model.parameters():
            weight.requires_grad_(True)
            weight.grad = torch.ones_like(weight)
        optimizer(model.parameters(), lr=0.01, **settings).step()
        model.zero_grad()

    return change


def load_other(**settings):
    def change(model):
        model.load_state_dict({name: weight + 0.05 for name, weight in model.state_dict().items()}, **settings)

    return change


def disable(model):
    model.base_model.disable_adapter_layers()


def scale(model):
    for module in model.modules():
        if hasattr(module, "scale_layer"):
            module.scale_layer(3.0)


def steer(model):
    model.base_model.model.model.layers[0].register_forward_hook(lambda module, args, out: out + 0.5)


def poke(model):
    with torch.no_grad():
        model.base_model.model.model.norm.weight[3] += 5.0


def there_and_back(model):
    model.bfloat16()
    model.float()


CHANGES = {
    "set_adapter": lambda model: model.set_adapter("two"),
    "disable_adapter": disable,
    "scaling": scale,
    "merged, then unmerged": lambda model: (model.merge_adapter(), model.unmerge_adapter()),
    "merged": lambda model: model.merge_adapter(),
    "SGD": step_of(torch.optim.SGD),
    "AdamW": step_of(torch.optim.AdamW),
    "fused AdamW": step_of(torch.optim.AdamW, fused=True),
    "load_state_dict": load_other(),
    "load_state_dict, assigned": load_other(assign=True),
    "in place": poke,
    "bfloat16": lambda model: model.bfloat16(),
    "float64": lambda model: model.double(),
    "bfloat16 and back": there_and_back,
    "a layer replaced": add_layer,
    "a hook": steer,
}

SAME = ("merged", "merged, then unmerged", "float64")


def looked_up(lm, rewards, text):
    """What a model says of a text, and rewards on it, each of which remembers something."""
    judge, grader, prm = rewards
    scores = [lm.score(text), lm.score(text, " the sea"), lm.log_mass(text, np.arange(300) < 40)]
    others = [judge("Thank you."), grader("Thank you."), prm("Who?", ["The sea.", "The hill."])]
    law = fk.constraints.Language(lm, lm.prompt("Once"))
    return [*evaluate([*scores, *others]), float(lm.next_log_probs(text)[7]), law.prefix(lm.encode(" the sea"))]


def rewards_on(lm):
    return Judge(lm, "Polite? {text}"), Grader(lm, "How polite is this, from 1 to 5? {text}"), StepTokenPRM(lm, tag="?")


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_of_the_model_is_noticed(name):
    model = with_adapters()
    inner = model.get_base_model()
    lm = tiny_lm(model=inner, name="it")
    rewards = rewards_on(lm)
    text = draw([lm.tokens(lm.prompt("Once upon a time there was"), 6)], 3)[0]
    assert not text.finished
    recorded, before = text.log_prob, looked_up(lm, rewards, text)
    assert looked_up(lm, rewards, text) == before
    CHANGES[name](model)
    after = looked_up(lm, rewards, text)
    fresh = tiny_lm(model=inner, packed=False, name="it")
    right = looked_up(fresh, rewards_on(fresh), fresh.attach(text.detach()))
    assert np.allclose(after, right, atol=(close := 0.05 if name == "bfloat16" else 1e-4), rtol=0)
    if name in SAME:
        assert np.allclose(after, before, atol=1e-4)
    else:
        assert np.abs(np.subtract(after, before)).max() > 1e-2, "the change is none to this model"
    assert text.log_prob == recorded
    for longer in draw([lm.tokens(text, 4)] * 3):  # goes on from a text of before by the model as it is now
        last = len(text.prompt_tokens) + len(text.tokens)
        assert longer.log_prob - recorded == pytest.approx(fresh_log_prob(lm, longer, last), abs=close)


def test_a_model_that_is_not_changed_is_not_forgotten():
    model = with_adapters()
    lm = tiny_lm(model=model.get_base_model())
    text = draw([lm.tokens(lm.prompt("Once upon a time"), 4)])[0]
    version, before = lm.version(), lm.forwarded
    model.set_adapter("one")
    other = tiny_lm(1)
    torch.optim.SGD(other.model.parameters(), lr=0.1).step()
    draw([lm.tokens(text, 1)])
    assert lm.version() == version
    assert lm.forwarded == before + 1


def test_what_cannot_be_seen_is_forgotten_on_demand():
    lm = tiny_lm(model=llama())
    judge = Judge(lm, "Polite? {text}")
    text = draw([lm.tokens(lm.prompt("Once upon a time"), 4)])[0]

    def said():
        return [*evaluate([lm.score(text), judge("Thank you.")]), float(lm.next_log_probs(text)[7])]

    before = said()
    for layer in lm.model.model.layers:
        layer.mlp.down_proj.weight.data.mul_(-1.0)
    assert said() == before
    lm.refresh()
    after = said()
    fresh = tiny_lm(model=lm.model, name=lm.identity)
    text = fresh.attach(text.detach())
    lm, judge = fresh, Judge(fresh, "Polite? {text}")
    assert np.allclose(after, said(), atol=1e-4)
    assert abs(after[0] - before[0]) > 0.1


def test_weights_without_a_version_are_watched_by_their_place():
    with torch.inference_mode():
        layer = torch.nn.Linear(4, 4)
    live = Live(layer)
    assert live.version() == live.version() == 0
    layer.weight.data = torch.ones(4, 4)
    assert live.version() == 1
    live.refresh()
    assert (live.version(), live.version()) == (2, 2)


def classifier():
    config = hf.LlamaConfig(**SMALL, num_labels=2, pad_token_id=1, attention_dropout=0.5)
    return random_weights(lambda: hf.LlamaForSequenceClassification(config))


REWARDS = {
    "classifier": lambda: Classifier(classifier(), tiny_tokenizer(), label=1),
    "embedding": lambda: Embedding(classifier().model, tiny_tokenizer(), ["the sea", "a hill"]),
    "value head": lambda: ValueHeadPRM(
        random_weights(lambda: hf.LlamaForTokenClassification(hf.LlamaConfig(**SMALL, num_labels=2, pad_token_id=1))),
        tiny_tokenizer(),
    ),
}


@pytest.mark.parametrize("name", REWARDS)
def test_rewards_notice_that_their_model_changed(name):
    reward = REWARDS[name]()
    model = reward._reader.model
    args = [("Who?", ["The sea.", "The hill."])] if name == "value head" else [("Thank you.",), ("Who are you?",)]

    def said(reward):
        return evaluate([reward(*each) for each in args])

    before = said(reward)
    with torch.no_grad():
        for module in model.modules():
            if type(module).__name__ == "LlamaMLP":
                module.down_proj.weight.mul_(-1.0)
    after = said(reward)
    twin = REWARDS[name]()
    twin._reader.model.load_state_dict(model.state_dict())
    assert after == pytest.approx(said(twin), abs=1e-6)
    assert np.abs(np.subtract(after, before)).max() > 1e-3


@pytest.mark.parametrize("kind", ["lm", "classifier"])
def test_passes_are_in_eval_mode_and_the_mode_is_put_back(kind):
    if kind == "lm":
        lm = tiny_lm(model=hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL, attention_dropout=0.9)))
        model = lm.model

        def said():
            lm.refresh()
            return [evaluate([lm.score(lm.prompt("Once"), " upon a time")])[0]]
    else:
        reward = REWARDS["classifier"]()
        model = reward._reader.model

        def said():
            reward._reader.live.refresh()
            return evaluate([reward("Thank you.")])

    before = said()
    model.train()
    model.get_input_embeddings().eval()  # as one does with a part that is not to be trained
    assert said() == before
    assert model.training
    assert model.model.layers[0].self_attn.training
    assert not model.get_input_embeddings().training


def test_the_mode_is_put_back_after_an_error():
    lm = tiny_lm()
    lm.model.train()
    modes = []

    def breaks():
        with lm.forwarder.hold():
            modes.append(lm.model.training)
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        breaks()
    assert modes == [False]
    assert lm.model.training


def test_weights_are_packed_again_for_a_change_and_not_for_a_run(monkeypatch):
    packed = []
    monkeypatch.setattr("feynkac.models.local.passes.forward.repack", packed.append)
    lm = tiny_lm()

    @fk.program
    async def program():
        return await fk.sample("tokens", lm.tokens(lm.prompt("Once"), 2))

    for seed in range(3):
        fk.infer(program(), fk.SMC(2), seed=seed)
    assert not packed
    lm.refresh()
    fk.infer(program(), fk.SMC(2), seed=0)
    assert len(packed) == 1
