"""Toys for constrained generation: a language model over three letters, and its law by enumeration."""

from __future__ import annotations

import itertools
import math
import re
from functools import cache

import numpy as np
from random_models import random_weights

import feynkac as fk
from feynkac.models.constraints import Language, Vocabulary, constrained
from feynkac.models.constraints.potential import Potential
from feynkac.models.local.transformers_lm import TransformersLM

LETTERS = "abc"
PATTERN = "(ab|b)?c?|cab+c"  # after three tokens "abc" may end, and "cab" may not
LONGEST = 3
PROMPT = "ab"


@cache
def letters_tokenizer(letters=LETTERS):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {"<eos>": 0, **{letter: i + 1 for i, letter in enumerate(letters)}}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<eos>")


@cache
def letters_lm(seed=0, letters=LETTERS, context=32, padding=0):
    """A random Llama over single letters, an end and some ids that stand for nothing; its law is not symmetric."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = letters_tokenizer(letters)
    config = LlamaConfig(
        vocab_size=len(letters) + 1 + padding, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=context, eos_token_id=0,
        bos_token_id=None,
    )  # fmt: skip
    model = random_weights(lambda: LlamaForCausalLM(config), seed, std=0.5)
    model.lm_head.weight.data.mul_(0.4)
    return TransformersLM(model, tokenizer, name=f"letters-{letters}-{seed}")


def strings(longest, letters=LETTERS):
    return ["".join(s) for n in range(longest + 1) for s in itertools.product(letters, repeat=n)]


@cache
def prefix_prob(lm, prompt, string):
    """p(string) as a beginning, by the model's own next-token law."""
    if not string:
        return 1.0
    return prefix_prob(lm, prompt, string[:-1]) * next_probs(lm, prompt, string[:-1])[lm.encode(string[-1])[0]]


@cache
def next_probs(lm, prompt, string):
    text = lm.prompt(prompt)
    return np.exp(lm.next_log_probs(text.append(string) if string else text))


def whole_prob(lm, prompt, string):
    """p(string and then the end)."""
    return prefix_prob(lm, prompt, string) * next_probs(lm, prompt, string)[0]


def target(weights):
    """Z and the normalised law of positive weights."""
    z = sum(weights.values())
    return z, {value: w / z for value, w in weights.items() if w > 0}


# T2 of the tests of engines, over a = 0 and b = 1, as potentials.
T2_NEXT = {(): (0.5, 0.3, 0.2), (0,): (0.2, 0.5, 0.3), (1,): (0.5, 0.3, 0.2)}
BETA = 0.5


class Table(Potential):
    """The law of T2: probabilities of a, b and the end after each context."""

    def __init__(self, vocabulary=None):
        self.vocabulary = vocabulary or Vocabulary(2)
        self.first = self.vocabulary.size - 2  # ids of a and b come last

    def __repr__(self):
        return "Table"

    def _row(self, context):
        return T2_NEXT.get(tuple(x - self.first for x in context), (0.0, 0.0, 1.0))

    def prefix(self, context):
        p = 1.0
        for t, token in enumerate(context):
            p *= self._row(context[:t])[token - self.first] if token >= self.first else 0.0
        return math.log(p) if p > 0 else -math.inf

    def complete(self, context):
        before = self.prefix(context)
        p = self._row(context)[2] if before > -math.inf else 0.0
        return before + math.log(p) if p > 0 else -math.inf


class CountA(Potential):
    """exp(number of a's / β) at the end; ``along`` says what the prefix is worth on the way."""

    def __init__(self, vocabulary, along):
        self.vocabulary, self.along = vocabulary, along
        self.a = vocabulary.size - 2

    def __repr__(self):
        return "CountA"

    def prefix(self, context):
        return self.along(tuple(x - self.a for x in context)) if all(x >= self.a for x in context) else -math.inf

    def complete(self, context):
        return context.count(self.a) / BETA if all(x >= self.a for x in context) else -math.inf


def value(context):
    """log E[exp(r/β) | context] of T2: the optimal twist."""
    if len(context) > 1:
        return context.count(0) / BETA
    row = T2_NEXT[context]
    terms = [row[x] * math.exp(value((*context, x))) for x in (0, 1)]
    return math.log(sum(terms) + row[2] * math.exp(context.count(0) / BETA))


# -- texts of at most three letters under a pattern, a step at a time -------------------------------------------------


def regular(lm, also=lambda s: 1.0):
    """The exact target: whole texts of at most so many tokens, under the pattern."""
    return target({s: whole_prob(lm, PROMPT, s) * also(s) for s in strings(LONGEST) if re.fullmatch(PATTERN, s)})


@fk.program
async def in_one(lm, potential, sampler="mask"):
    step = lm.complete(lm.prompt(PROMPT), max_tokens=LONGEST)
    return str(await fk.sample("all", constrained(step, potential, sampler=sampler)))


@fk.program
async def by_token(lm, potential, sampler="mask"):
    text = lm.prompt(PROMPT)
    for _ in range(LONGEST - 1):
        text = await fk.sample("token", constrained(lm.next_token(text), potential, sampler=sampler))
        await fk.factor("step", 0.0)
    step = lm.complete(text, max_tokens=1)
    return str(await fk.sample("rest", constrained(step, potential, sampler=sampler)))


@fk.program
async def by_line(lm, potential, sampler="mask"):
    text = lm.prompt(PROMPT)
    line = lm.until(text, "b", max_tokens=LONGEST - 1, include_stop=True)
    text = await fk.sample("line", constrained(line, potential, sampler=sampler))
    await fk.factor("step", 0.0)
    step = lm.complete(text, max_tokens=LONGEST - len(text.tokens))
    return str(await fk.sample("rest", constrained(step, potential, sampler=sampler)))


def models():
    one, other = letters_lm(0), letters_lm(1)
    return one, other, Language(one, one.prompt(PROMPT)), Language(other, other.prompt("ca"))


def contexts(lm, words):
    return [tuple(lm.encode(word)) if word else () for word in words]
