"""Tiny tokenizers of the kinds that are in use, made in a moment, and random language models that have them."""

import json
from functools import cache

from random_models import random_weights
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from feynkac.models.local.transformers_lm import TransformersLM

CORPUS = (
    "Once upon a time there was a river, and the river ran to the sea. The sea said: who are you?\n"
    "I am the rain that fell on the hill! The hill was green in the spring and white in the winter.\n"
    "Yes, said the sea. No, said the hill. Is it so? It is so. yes yes no no\n"
)
SPECIAL = ["<bos>", "<eos>", "<unk>", "<user>"]
LETTERS = [chr(i) for i in range(33, 127)]
LLAMA = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)


def byte_level(prefix=False, normalizer=None):
    """As of GPT-2, RoBERTa (with a space first) and Qwen (composed characters)."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    train(raw, trainers.BpeTrainer, vocab_size=330, initial_alphabet=alphabet)
    if normalizer is not None:
        raw.normalizer = normalizer
    return raw


def byte_fallback():
    """The model and decoder of SentencePiece's BPE, with a token for each byte."""
    raw = Tokenizer(models.BPE())
    raw.normalizer = normalizers.Replace(" ", "▁")
    raw.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    train(raw, trainers.BpeTrainer, vocab_size=260, initial_alphabet=[*LETTERS, "▁"])
    made = json.loads(raw.to_str())["model"]
    vocab = made["vocab"] | {f"<0x{byte:02X}>": len(made["vocab"]) + byte for byte in range(256)}
    merges = [tuple(merge) for merge in made["merges"]]
    raw = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    raw.add_special_tokens(SPECIAL)
    raw.decoder = LLAMA
    return raw


def legacy():
    """As of Llama-2: a space before each part between special tokens, even before a space."""
    raw = byte_fallback()
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return raw


def metaspace(scheme):
    """As of later ones: a space before the first part, or each, that does not begin with one."""
    raw = byte_fallback()
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    return raw


def unigram():
    """As of T5: white space is one space, and none at the end."""
    raw = Tokenizer(models.Unigram())
    one_space = normalizers.Replace(Regex(r"\s+"), " ")
    raw.normalizer = normalizers.Sequence([normalizers.NFKC(), one_space, normalizers.Strip(False, True)])
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    raw.decoder = decoders.Metaspace(prepend_scheme="always")
    train(raw, trainers.UnigramTrainer, vocab_size=200, unk_token="<unk>", initial_alphabet=LETTERS)
    return raw


def word_piece():
    """As of BERT, uncased."""
    raw = Tokenizer(models.WordPiece(unk_token="<unk>"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=True)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece(cleanup=False)
    train(raw, trainers.WordPieceTrainer, vocab_size=400, initial_alphabet=LETTERS)
    return raw


def train(raw, trainer, **options):
    letters = "".join(f"{a} x{a} " for a in LETTERS)  # each alone, and inside a word
    raw.train_from_iterator([CORPUS, letters], trainer(special_tokens=SPECIAL, show_progress=False, **options))


MAKERS = {
    "byte-level": byte_level,
    "byte-level, space first": lambda: byte_level(prefix=True),
    "byte-level, composed": lambda: byte_level(normalizer=normalizers.NFC()),
    "llama": legacy,
    "metaspace, first": lambda: metaspace("first"),
    "metaspace, always": lambda: metaspace("always"),
    "unigram": unigram,
    "word piece": word_piece,
}
EXACT = ["byte-level", "byte-level, space first", "llama", "metaspace, first", "metaspace, always"]
"""Kinds that keep every character of a string."""


@cache
def tokenizer(kind, begin=True, end=False):
    """A tokenizer that puts a begin token before a string, and an end token after it."""
    from transformers import PreTrainedTokenizerFast

    raw = MAKERS[kind]()
    around = "<bos> " * begin + "$A" + " <eos>" * end
    ids = [(name, raw.token_to_id(name)) for name in ("<bos>", "<eos>")]
    raw.post_processor = processors.TemplateProcessing(single=around, special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", extra_special_tokens=["<user>"]
    )


@cache
def lm_of(kind, begin=True, end=False, size=0, **options):
    """A random Llama that has one of the tokenizers; ``size`` is that of its vocabulary."""
    from transformers import LlamaConfig, LlamaForCausalLM

    own = tokenizer(kind, begin, end)
    config = LlamaConfig(
        vocab_size=size or len(own), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return TransformersLM(random_weights(lambda: LlamaForCausalLM(config), 0), own, name=f"{kind}-{size}", **options)
