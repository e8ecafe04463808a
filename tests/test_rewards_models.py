"""Classifiers, embeddings and token heads of transformers, on tiny random models of each kind."""

from __future__ import annotations

import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

import feynkac as fk
from feynkac.ppl.cost import Ledger, recording
from feynkac.ppl.score import evaluate
from laws import check_unbiased

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from random_models import random_weights  # noqa: E402

from feynkac.models.rewards import Classifier, Embedding, ValueHeadPRM, linear_head  # noqa: E402
from feynkac.models.testing import tiny_tokenizer  # noqa: E402

TEXTS = [
    "Once upon a time",
    "x",
    "The sea said: who are you? I am the rain.",
    "No!",
    "Is it so? It is so, said the hill.",
]
SMALL = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
WORDS = {"id2label": {0: "calm", 1: "angry", 2: "sad"}, "label2id": {"calm": 0, "angry": 1, "sad": 2}}


def build(model_class, config_class, seed=0, **config):
    """A random model whose outputs differ enough for a test to notice."""
    return random_weights(lambda: model_class(config_class(**{**SMALL, **config})), seed, std=0.3)


def bert(**config):
    return build(transformers.BertForSequenceClassification, transformers.BertConfig, **{**WORDS, **config})


def llama(**config):
    return build(transformers.LlamaForSequenceClassification, transformers.LlamaConfig, **{"pad_token_id": 1, **config})


def distilbert(**config):
    sizes = {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "vocab_size": 300}
    return build(transformers.DistilBertForSequenceClassification, transformers.DistilBertConfig, **sizes, **config)


class Spy:
    """Sees what goes through a model."""

    def __init__(self, model):
        self.batches = []
        model.register_forward_pre_hook(self.see, with_kwargs=True)

    def see(self, module, args, kwargs):
        self.batches.append(kwargs["attention_mask"].sum(-1).tolist())

    @property
    def tokens(self):
        return sum(map(sum, self.batches))


def alone(model, *parts, **options):
    """The logits of one input, with no padding and none of our code."""
    encoded = tiny_tokenizer()(*parts, return_tensors="pt", **options)
    model.eval()
    with torch.no_grad():
        return model(input_ids=encoded.input_ids, attention_mask=encoded.attention_mask).logits[0]


# -- classifiers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [bert, distilbert, llama])
@pytest.mark.parametrize("max_batch", [64, 2, 1])
def test_batches_equal_inputs_one_by_one(make, max_batch):
    model = make(**WORDS)
    reward = Classifier(model, tiny_tokenizer(), label="angry", max_batch=max_batch)
    model.train()
    Classifier(model, tiny_tokenizer(), label="angry")
    values = evaluate([reward(text) for text in TEXTS])  # dropout is off by now
    truth = [alone(model, text).softmax(-1)[1].item() for text in TEXTS]
    assert np.ptp(truth) > 0.01
    assert values == pytest.approx(truth, abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "head", "kind", "law"),
    [
        ({**WORDS}, None, "probability", lambda logits: logits.softmax(-1)[1]),
        ({**WORDS, "problem_type": "multi_label_classification"}, None, "probability", lambda x: x[1].sigmoid()),
        ({**WORDS}, "sigmoid", "probability", lambda logits: logits[1].sigmoid()),
        ({**WORDS, "problem_type": "regression"}, None, "real", lambda logits: logits[1]),
        ({"num_labels": 1}, None, "real", lambda logits: logits[0]),
        ({"num_labels": 1}, "sigmoid", "probability", lambda logits: logits[0].sigmoid()),
    ],
)
def test_heads_say_what_kind_of_number_it_is(settings, head, kind, law):
    model = llama(**settings)
    reward = Classifier(model, tiny_tokenizer(), label=None if "num_labels" in settings else 1, head=head)
    assert reward.kind == kind
    assert evaluate([reward(TEXTS[2])]) == pytest.approx([law(alone(model, TEXTS[2])).item()], abs=1e-5)
    with pytest.raises(fk.errors.AmbiguousScore):
        reward("x") / 2 if kind == "probability" else reward("x").log()


def test_pairs_templates_texts_and_chats():
    from feynkac.models.testing import tiny_lm

    model, tokenizer = bert(), tiny_tokenizer()

    def score(reward, *args):
        return evaluate([reward(*args)])[0]

    plain = Classifier(model, tokenizer, label=0)
    pair = alone(model, "Who?", "The sea").softmax(-1)[0].item()
    assert score(plain, "Who?", "The sea") == pytest.approx(pair, abs=1e-5)
    text = tiny_lm().prompt("Once upon").append(" a time")
    assert score(plain, text) == pytest.approx(alone(model, " a time").softmax(-1)[0].item(), abs=1e-5)
    both = Classifier(model, tokenizer, label=0, template=lambda text: (text.prompt, str(text)))
    assert score(both, text) == score(plain, "Once upon", " a time")
    words = Classifier(model, tokenizer, label=0, template="{more}: {text}")
    assert evaluate([words(text, more="so")]) == [score(plain, "so:  a time")]
    messages = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "The sea"}]
    chat = Classifier(model, tokenizer, label=0, template=lambda text: messages)
    string = tokenizer.apply_chat_template(messages, tokenize=False)
    truth = alone(model, string, add_special_tokens=False).softmax(-1)[0].item()
    assert score(chat, "x") == pytest.approx(truth, abs=1e-5)


def test_token_types_tell_the_parts_of_a_pair_apart():
    model = bert()
    tokenizer = transformers.BertTokenizer(
        vocab={word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c"])}
    )
    reward = Classifier(model, tokenizer, label=0)
    encoded = tokenizer("a b", "c", return_tensors="pt")
    assert encoded.token_type_ids[0].tolist() == [0, 0, 0, 0, 1, 1]
    with torch.no_grad():
        truth = model(**encoded).logits.softmax(-1)[0, 0].item()
    assert evaluate([reward("a b", "c"), reward("a"), reward("a b c c c c", "b")])[0] == pytest.approx(truth, abs=1e-5)


def test_costs_are_what_the_model_saw_and_repeats_cost_nothing():
    model = bert()
    spy = Spy(model)
    reward = Classifier(model, tiny_tokenizer(), label="sad", max_batch=2)
    with recording(Ledger()) as ledger:
        first = evaluate([reward(text) for text in [*TEXTS, TEXTS[0]]])
        again = evaluate([reward(text) for text in [*TEXTS, TEXTS[0]]])
    assert first == again
    lengths = [len(tiny_tokenizer()(text).input_ids) for text in TEXTS]
    assert spy.batches == [sorted(lengths)[i : i + 2] for i in (0, 2, 4)]  # like lengths together
    cost = ledger.total()
    assert (cost.model_calls, cost.tokens_in, cost.reward_calls) == (3, spy.tokens, 5)


def test_tokens_go_to_the_problem_whose_input_they_are():
    reward = Classifier(bert(), tiny_tokenizer(), label="sad")

    @fk.program
    async def model(text):
        await fk.factor("G", reward(text).log())

    costs = [p.cost for p in fk.infer([model(text) for text in TEXTS], fk.SMC(2), seed=0)]
    assert [cost.tokens_in for cost in costs] == [len(tiny_tokenizer()(text).input_ids) for text in TEXTS]


@pytest.mark.parametrize("label", ["furious", 3, -1, True, None])
def test_a_wrong_label_names_those_that_there_are(label):
    with pytest.raises(ValueError, match=r"'classifier'.*label.*there are: 0 'calm', 1 'angry', 2 'sad'"):
        Classifier(bert(), tiny_tokenizer(), label=label)


def test_long_inputs_are_errors_unless_it_is_said_which_end_to_cut():
    model = bert(max_position_embeddings=12)
    long = "The sea said: who are you? I am the rain that fell"
    with pytest.raises(fk.errors.ContextOverflow, match=r"'angry' reads 12 tokens, and 'The sea.*truncate='left' or"):
        evaluate([Classifier(model, tiny_tokenizer(), label="angry")(long)])
    ids = tiny_tokenizer()(long).input_ids
    for side, kept in (("right", ids[:12]), ("left", ids[-12:])):
        reward = Classifier(model, tiny_tokenizer(), label="angry", truncate=side)
        with torch.no_grad():
            truth = model(input_ids=torch.tensor([kept])).logits.softmax(-1)[0, 1].item()
        assert evaluate([reward(long)]) == pytest.approx([truth], abs=1e-5)
    assert tiny_tokenizer().truncation_side == "right"
    assert tiny_tokenizer()(long).input_ids == ids
    with pytest.raises(ValueError, match="truncate must be"):
        Classifier(model, tiny_tokenizer(), label=0, truncate=True)


def test_bad_models_and_inputs_are_clear_errors():
    model = bert()
    reward = Classifier(model, tiny_tokenizer(), label="angry")
    with pytest.raises(ValueError, match="a lone surrogate, half a character, at 1"):
        evaluate([reward("x\ud83d")])
    with pytest.raises(ValueError, match=r"reward 'angry': '' has no tokens"):
        evaluate([reward("")])
    with pytest.raises(TypeError, match=r"'angry' reads a string.*not 3: give a template"):
        reward(3)
    with pytest.raises(ValueError, match="a softmax of one label is always 1"):
        Classifier(bert(id2label={0: "a"}), tiny_tokenizer(), head="softmax")
    with torch.no_grad():
        model.classifier.bias[0] = math.nan
    with pytest.raises(fk.errors.InvalidWeight, match="reward 'angry' returned nan for \\('x'\\)"):
        evaluate([reward("x")])


def gpt2(**config):
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 300}
    return random_weights(
        lambda: transformers.GPT2ForSequenceClassification(transformers.GPT2Config(**sizes, **config)), std=0.3
    )


def adapted(**config):
    """A classifier with an adapter of peft."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of peft, which asks transformers by an older name
        model = peft.get_peft_model(llama(**config), peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"]))
    return model.eval()


PADS = {"no padding token": (None, None), "padding is the end": (1, "<eos>"), "of the model alone": (1, None)}


@pytest.mark.parametrize("make", [llama, gpt2, adapted])
@pytest.mark.parametrize("pad", PADS)
@pytest.mark.parametrize("max_batch", [64, 1])
def test_the_last_token_is_found_whatever_padding_is(make, pad, max_batch):
    known, word = PADS[pad]
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer().backend_tokenizer, eos_token="<eos>", pad_token=word
    )
    model = make(**WORDS, pad_token_id=known, eos_token_id=1)
    texts = [*TEXTS, "The sea.<eos>", "Who are you, said the hill?<eos><eos>", "<eos>"]
    reward = Classifier(model, tokenizer, label=0, head="regression", max_batch=max_batch)
    values = evaluate([reward(text) for text in texts])
    inner = model.get_base_model() if make is adapted else model
    assert inner.config.pad_token_id == known
    assert tokenizer.pad_token == word
    head = model.score
    with torch.no_grad():
        for text, value in zip(texts, values):
            states = inner.base_model(torch.tensor([tokenizer(text).input_ids])).last_hidden_state
            assert value == pytest.approx(head(states)[0, -1, 0].item(), abs=1e-4)


@pytest.mark.parametrize("name", ["T5", "Bart"])
def test_a_model_that_counts_end_tokens_gets_none_as_padding(name):
    sizes = {"vocab_size": 300, "d_model": 32, "num_labels": 3, "eos_token_id": 1, "pad_token_id": 1}
    more = {
        "T5": {"d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 2},
        "Bart": {
            "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
            "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 64, "bos_token_id": 0,
        },
    }[name]  # fmt: skip
    config = getattr(transformers, f"{name}Config")(**sizes, **more)
    model = random_weights(lambda: getattr(transformers, f"{name}ForSequenceClassification")(config), std=0.3)
    texts = [text + "<eos>" for text in TEXTS]
    reward = Classifier(model, tiny_tokenizer(), label=0, head="regression")
    values = evaluate([reward(text) for text in texts])
    assert values == pytest.approx([alone(model, text)[0].item() for text in texts], abs=1e-4)


def test_saved_models_are_loaded_and_missing_weights_are_no_secret(tmp_path):
    model = bert()
    model.save_pretrained(tmp_path / "whole")
    model.bert.save_pretrained(tmp_path / "body")
    for folder in ("whole", "body"):
        own = transformers.PreTrainedTokenizerFast(
            tokenizer_object=tiny_tokenizer().backend_tokenizer, pad_token="<eos>"
        )
        own.save_pretrained(tmp_path / folder)
    reward = Classifier.from_pretrained(str(tmp_path / "whole"), label="sad", device="cpu")
    truth = alone(model, "x").softmax(-1)[2].item()
    assert evaluate([reward("x")]) == pytest.approx([truth], abs=1e-5)
    with pytest.raises(fk.errors.FeynkacError, match=r"has no weights for classifier\.bias, classifier\.weight, so"):
        Classifier.from_pretrained(str(tmp_path / "body"), label=0)
    with pytest.raises(fk.errors.FeynkacError, match=r"cannot be loaded: check the name"):
        Classifier.from_pretrained(str(tmp_path / "absent"), label=0)
    near = Embedding.from_pretrained(str(tmp_path / "body"), "x", device="cpu")
    assert evaluate([near("x")]) == pytest.approx([1.0], abs=1e-6)


def test_a_classifier_in_a_program_is_exact():
    reward = Classifier(bert(), tiny_tokenizer(), label="angry")

    @fk.program
    async def model():
        text = ""
        for _ in range(2):
            text += await fk.sample("word", fk.dist.Categorical([0.5, 0.3, 0.2], values=[" sea", " hill", " no!"]))
            await fk.factor("angry", reward(text).log())
        return text

    exact = fk.enumerate_program(model())
    assert max(exact.law().values()) > 0.2
    check_unbiased(model(), fk.SMC(4, ess_threshold=1.0), exact.law(), exact.log_evidence, runs=500)


# -- embeddings -------------------------------------------------------------------------------------------------


def body(**config):
    return build(transformers.BertModel, transformers.BertConfig, **config)


def vector(model, text, pool):
    with torch.no_grad():
        states = model(input_ids=torch.tensor([tiny_tokenizer()(text).input_ids])).last_hidden_state[0]
    v = {"mean": states.mean(0), "cls": states[0], "last": states[-1]}[pool]
    return (v / v.norm()).numpy()


@pytest.mark.parametrize("pool", ["mean", "cls", "last"])
@pytest.mark.parametrize("reduce", ["max", "mean"])
def test_similarity_is_the_cosine_of_pooled_states(pool, reduce):
    model = body()
    references = ["the river ran", "No!"]
    near = Embedding(model, tiny_tokenizer(), references, pool=pool, reduce=reduce, max_batch=2)
    cosines = np.array([[vector(model, t, pool) @ vector(model, r, pool) for r in references] for t in TEXTS])
    truth = cosines.max(1) if reduce == "max" else cosines.mean(1)
    assert evaluate([near(text) for text in TEXTS]) == pytest.approx(truth.tolist(), abs=1e-5)
    assert np.ptp(truth) > 0.05


def test_references_are_embedded_once():
    model = body()
    spy = Spy(model)
    near = Embedding(model, tiny_tokenizer(), ["a", "b"])
    assert len(spy.batches) == 1
    evaluate([near("x")])
    evaluate([near("y"), near("x")])
    assert [len(batch) for batch in spy.batches[1:]] == [1, 1]
    assert near.kind == "real"
    with pytest.raises(ValueError, match="at least one reference"):
        Embedding(model, tiny_tokenizer(), [])
    with pytest.raises(ValueError, match="pool must be"):
        Embedding(model, tiny_tokenizer(), "a", pool="max")


# -- heads on tokens --------------------------------------------------------------------------------------------

QUESTION = "Who are you?"
ANSWERS = [["I am the rain."], ["I am the rain.", "The hill was green!", "It is so."], ["No.", "Yes."]]


def token_head(labels, seed=0):
    config = {"num_labels": labels, "pad_token_id": 1, "classifier_dropout": 0.0}
    return build(transformers.LlamaForTokenClassification, transformers.LlamaConfig, seed, **config)


def by_hand(model, steps, separator="\n", head=f"{QUESTION}\n"):
    """The logits at the end of each step, from one pass of its own."""
    encode = lambda s: tiny_tokenizer()(s, add_special_tokens=False).input_ids  # noqa: E731
    tokens, ends = encode(head), []
    for step in steps:
        tokens = tokens + encode(step + separator)
        ends.append(len(tokens) - 1)
    with torch.no_grad():
        out = model(input_ids=torch.tensor([tokens]), attention_mask=torch.ones(1, len(tokens), dtype=torch.long))
    return (out.logits if hasattr(out, "logits") else out[0])[0, ends]


@pytest.mark.parametrize("labels", [1, 2])
def test_step_scores_are_read_at_the_ends_of_steps(labels):
    model = token_head(labels)
    prm = ValueHeadPRM(model, tiny_tokenizer(), separator="?", max_batch=2)
    found = prm.details([(QUESTION, steps) for steps in ANSWERS])
    for steps, scores in zip(ANSWERS, found):
        logits = by_hand(model, steps, "?")
        truth = logits[:, 0].sigmoid() if labels == 1 else logits.softmax(-1)[:, 1]
        assert scores == pytest.approx(truth.tolist(), abs=1e-5)
    if labels == 2:
        bad = ValueHeadPRM(model, tiny_tokenizer(), separator="?", label=0).details([(QUESTION, ANSWERS[0])])
        assert bad[0][0] == pytest.approx(1 - found[0][0], abs=1e-5)


@pytest.mark.parametrize(
    ("aggregate", "reduce"),
    [("last", lambda s: s[-1]), ("min", min), ("prod", math.prod), ("mean", lambda s: sum(s) / len(s))],
)
def test_aggregates(aggregate, reduce):
    prm = ValueHeadPRM(token_head(1), tiny_tokenizer(), aggregate=aggregate)
    steps = prm.details([(QUESTION, ANSWERS[1])])[0]
    assert len(set(steps)) == 3
    assert evaluate([prm(QUESTION, ANSWERS[1])]) == [pytest.approx(reduce(steps))]


def test_the_model_aggregate_is_one_score_for_the_whole_answer():
    model = token_head(1)
    prm = ValueHeadPRM(model, tiny_tokenizer(), aggregate="model", between=" ")
    whole = by_hand(model, [" ".join(ANSWERS[1])])[:, 0].sigmoid().tolist()
    assert prm.details([(QUESTION, ANSWERS[1])]) == [pytest.approx(tuple(whole), abs=1e-5)]
    assert evaluate([prm(QUESTION, ANSWERS[1])]) == pytest.approx(whole, abs=1e-5)


def test_texts_give_their_prompt_and_their_steps():
    from feynkac.models.testing import tiny_lm

    model = token_head(1)
    prm = ValueHeadPRM(model, tiny_tokenizer())
    text = tiny_lm().prompt(QUESTION).append(" I am the rain.\n").append("\n").append("It is so.")
    truth = by_hand(model, ["I am the rain.", "It is so."])[:, 0].sigmoid().tolist()
    assert prm.details([text]) == [pytest.approx(tuple(truth), abs=1e-5)]
    assert evaluate([prm("Who?", text)])[0] != evaluate([prm(text)])[0]
    with pytest.raises(ValueError, match=r"'prm': <Text ''> has no steps yet"):
        prm(tiny_lm().prompt("x"))
    for wrong in [("a question",), (QUESTION, "one string"), (QUESTION, [1]), ()]:
        with pytest.raises(TypeError, match="'prm' takes a text, or a question and"):
            prm(*wrong)


def test_numbers_and_details_come_from_one_computation():
    model = token_head(2)
    spy = Spy(model)
    prm = ValueHeadPRM(model, tiny_tokenizer(), aggregate="min")

    @fk.program
    async def model_(ask_first):
        n = await fk.sample("n", fk.dist.Categorical([0.5, 0.5]))
        steps = ANSWERS[1][: n + 1]
        if ask_first:
            scores = await fk.call("steps", prm.details, QUESTION, steps)
            await fk.factor("prm", prm(QUESTION, steps).log())
        else:
            await fk.factor("prm", prm(QUESTION, steps).log())
            scores = await fk.call("steps", prm.details, QUESTION, steps)
        return n, scores

    for ask_first in (True, False):
        spy.batches.clear()
        prm.memory, prm._details = type(prm.memory)(100), type(prm.memory)(100)
        posterior = fk.infer(model_(ask_first), fk.SMC(20, ess_threshold=0.0), seed=0)
        assert len(spy.batches) == 1  # one padded batch
        assert sorted(len(scores) for scores in dict(posterior.values).values()) == [1, 2]
        cost = posterior.cost
        assert (cost.reward_calls, cost.model_calls, cost.tokens_in) == (2, 1, spy.tokens)


def test_details_are_paid_by_the_problem_that_asks():
    prm = ValueHeadPRM(token_head(1), tiny_tokenizer())

    @fk.program
    async def model(steps, other):
        await fk.call("other", len, other) if other else await fk.call("steps", prm.details, QUESTION, steps)

    models = [model([], "x"), model(ANSWERS[0], ""), model([], "y"), model(ANSWERS[1], "")]
    costs = [posterior.cost for posterior in fk.infer(models, fk.SMC(3), seed=0)]
    encode = lambda s: len(tiny_tokenizer()(s).input_ids)  # noqa: E731
    tokens = [encode(f"{QUESTION}\n") + sum(encode(f"{step}\n") for step in steps) for steps in ANSWERS[:2]]
    assert [cost.tokens_in for cost in costs] == [0, tokens[0], 0, tokens[1]]
    assert [cost.reward_calls for cost in costs] == [0, 1, 0, 1]


def test_a_linear_head_from_a_file_on_a_language_model(tmp_path):
    from safetensors.torch import save_file

    model = build(transformers.LlamaModel, transformers.LlamaConfig, pad_token_id=1)
    weight, bias = torch.linspace(-1, 1, 32)[None], torch.tensor([0.3])
    file = str(tmp_path / "head.safetensors")
    save_file({"v_head.summary.weight": weight, "v_head.summary.bias": bias, "other": torch.zeros(3, 32)}, file)
    head = linear_head(model, file)
    prm = ValueHeadPRM(head, tiny_tokenizer())
    (scores,) = prm.details([(QUESTION, ANSWERS[1])])
    assert scores == pytest.approx(by_hand(head, ANSWERS[1])[:, 0].sigmoid().tolist(), abs=1e-5)
    ids = torch.tensor([tiny_tokenizer()(f"{QUESTION}\n").input_ids + tiny_tokenizer()(ANSWERS[0][0] + "\n").input_ids])
    with torch.no_grad():
        raw = model(input_ids=ids).last_hidden_state[0, -1] @ weight[0] + bias[0]
    assert prm.details([(QUESTION, ANSWERS[0])])[0][0] == pytest.approx(raw.sigmoid().item(), abs=1e-5)
    with pytest.raises(
        ValueError, match=r"'other' of .* is no weight of shape \(1, 32\) or \(2, 32\); name one of: v_head"
    ):
        linear_head(model, file, weight="other")
    with pytest.raises(ValueError, match="holds no bias 'other'"):
        linear_head(model, file, bias="other")


def test_bad_heads_and_nan_are_clear_errors():
    with pytest.raises(ValueError, match=r"'prm' needs a head with one output or two labels.*has 3"):
        evaluate([ValueHeadPRM(token_head(3), tiny_tokenizer())(QUESTION, ["a"])])
    with pytest.raises(ValueError, match="aggregate must be one of last, min"):
        ValueHeadPRM(token_head(1), tiny_tokenizer(), aggregate="max")
    long = ValueHeadPRM(token_head(1), tiny_tokenizer(), max_length=10)
    with pytest.raises(fk.errors.ContextOverflow, match=r"'prm' reads 10 tokens"):
        evaluate([long(QUESTION, ANSWERS[1])])
    model = token_head(1)

    def spoil(module, args, output):
        logits = output.logits.clone()
        logits[:, 12] = math.nan
        return SimpleNamespace(logits=logits)

    model.register_forward_hook(spoil)
    prm = ValueHeadPRM(model, tiny_tokenizer(), aggregate="min", render=lambda question, steps: "abcdefghijkl")
    start = len(tiny_tokenizer()("abcdefghijkl").input_ids)
    first = "x" * (12 - start)  # its line break is the thirteenth token
    for ask in (lambda: evaluate([prm(QUESTION, [first, "b"])]), lambda: prm.details([(QUESTION, [first, "b"])])):
        with pytest.raises(fk.errors.InvalidWeight, match="reward 'prm' returned nan for"):
            ask()
