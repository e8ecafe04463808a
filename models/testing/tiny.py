"""A tiny random language model, made offline in a moment, to test programs with."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..local.transformers_lm import TransformersLM

_CORPUS = (
    "Once upon a time there was a river, and the river ran to the sea. The sea said: who are you?\n"
    "I am the rain that fell on the hill! The hill was green in the spring and white in the winter.\n"
    "Yes, said the sea. No, said the hill. Is it so? It is so.\n"
)
_TEMPLATE = (
    "{% for m in messages %}<user>{{ m['role'] }}: {{ m['content'] }}"
    "{% if not loop.last or add_generation_prompt %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
BOS, EOS, USER = "<bos>", "<eos>", "<user>"


@cache
def tiny_tokenizer(vocab_size: int = 300) -> Any:
    """Return a byte-level BPE tokenizer with begin and end tokens and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        [_CORPUS],
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[BOS, EOS, USER],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=[USER],
        chat_template=_TEMPLATE,
    )


def tiny_lm(
    seed: int = 0, *, context: int = 512, scale: float = 1.0, model: Any = None, **options: Any
) -> TransformersLM:
    """Return a random two-layer Llama (hidden 32, about 300 tokens) with a byte-level BPE tokenizer.

    Args:
        seed: of the weights. The global generator of torch is left as it was.
        context: longest history in tokens.
        scale: multiplies the logits: the larger, the more peaked the law.
        model: another model to be given the tokenizer, instead of the Llama.
        options: go to `TransformersLM`.

    >>> lm = tiny_lm()
    >>> lm.vocab_size, lm.prompt("Once").finished
    (300, False)
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from ..local.transformers_lm import TransformersLM

    tokenizer = tiny_tokenizer()
    if model is None:
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=context,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = LlamaForCausalLM(config)
            # Weights as initialised give a nearly uniform law; these differ enough for a test to notice.
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    torch.nn.init.normal_(parameter, std=0.3)
            model.lm_head.weight.data.mul_(scale)
    options.setdefault("name", f"tiny-{type(model).__name__}-{seed}")
    return TransformersLM(model, tokenizer, **options)
