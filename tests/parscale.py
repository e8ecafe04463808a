"""A small model of parallel streams (ParScale), with random weights: P learned prefixes, one set of weights, one head.

Chen et al. (2025), arXiv:2505.10475: each stream has keys and values of its own before the text, and the streams'
last states are mixed by weights that are computed from all of them. The published code keeps P rows in the cache for
each text; here the streams are heads, so that a row of the cache is a text.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast


class StreamsConfig(PretrainedConfig):
    model_type = "feynkac_streams"

    def __init__(
        self, vocab_size=300, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, streams=3, prefix=2,
        max_position_embeddings=64, rows=False, **kwargs,
    ):  # fmt: skip
        super().__init__(**kwargs)
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        self.num_hidden_layers, self.num_attention_heads = num_hidden_layers, num_attention_heads
        self.streams, self.prefix, self.max_position_embeddings = streams, prefix, max_position_embeddings
        self.rows = rows


class Layer(nn.Module):
    """Attention of every stream over its own prefix and its own past, and a network after it."""

    def __init__(self, config, index):
        super().__init__()
        size = config.hidden_size
        self.config, self.index = config, index
        self.before, self.after = nn.LayerNorm(size), nn.LayerNorm(size)
        self.qkv, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.feed = nn.Sequential(nn.Linear(size, 2 * size), nn.SiLU(), nn.Linear(2 * size, size))
        heads, width = config.num_attention_heads, size // config.num_attention_heads
        self.prefix = nn.Parameter(torch.zeros(2, config.streams, heads, config.prefix, width))

    def forward(self, x, seen, cache):
        n, p, k, size = x.shape  # texts, streams, tokens, width
        heads = self.config.num_attention_heads
        q, keys, values = (
            part.reshape(n, p, k, heads, -1).transpose(2, 3) for part in self.qkv(self.before(x)).chunk(3, -1)
        )
        if cache is not None:
            kept = (n * p, heads) if self.config.rows else (n, p * heads)
            pair = cache.update(*(new.reshape(*kept, k, -1) for new in (keys, values)), self.index)
            keys, values = (old.reshape(n, p, heads, -1, q.shape[-1]) for old in pair)
        keys, values = (
            torch.cat([own.expand(n, -1, -1, -1, -1), rest], 3) for own, rest in zip(self.prefix, (keys, values))
        )
        mixed = nn.functional.scaled_dot_product_attention(q, keys, values, attn_mask=seen)
        x = x + self.out(mixed.transpose(2, 3).reshape(n, p, k, size))
        return x + self.feed(self.after(x))


class StreamsForCausalLM(PreTrainedModel):
    """P streams of one text, mixed before the head."""

    config_class = StreamsConfig

    def __init__(self, config):
        super().__init__(config)
        size = config.hidden_size
        self.words = nn.Embedding(config.vocab_size, size)
        self.places = nn.Embedding(config.max_position_embeddings, size)
        self.layers = nn.ModuleList([Layer(config, i) for i in range(config.num_hidden_layers)])
        self.weigh = nn.Sequential(nn.Linear(config.streams * size, size), nn.SiLU(), nn.Linear(size, config.streams))
        self.head = nn.Linear(size, config.vocab_size)
        self.post_init()

    def streams(self, input_ids, attention_mask=None, position_ids=None, past_key_values=None):
        """Return the last states (n, P, k, size) of the streams."""
        n, k = input_ids.shape
        columns = past_key_values.get_mask_sizes(k, 0)[0] if past_key_values is not None else k
        seen = torch.arange(columns) <= torch.arange(columns - k, columns)[:, None]
        seen = seen[None] if attention_mask is None else seen & attention_mask[:, None, -columns:].bool()
        seen = torch.cat([torch.ones(*seen.shape[:-1], self.config.prefix, dtype=torch.bool), seen], -1)
        if position_ids is None:
            before = 0 if past_key_values is None else past_key_values.get_seq_length()
            position_ids = torch.arange(before, before + k).expand(n, k)
        x = (self.words(input_ids) + self.places(position_ids))[:, None].expand(-1, self.config.streams, -1, -1)
        for layer in self.layers:
            x = layer(x, seen[:, None, None], past_key_values)
        return x

    def forward(self, input_ids, attention_mask=None, position_ids=None, past_key_values=None, use_cache=None):
        x = self.streams(input_ids, attention_mask, position_ids, past_key_values)
        weights = self.weigh(x.transpose(1, 2).flatten(2)).softmax(-1)  # (n, k, P)
        logits = self.head(torch.einsum("nkp,npks->nks", weights, x))
        return CausalLMOutputWithPast(logits=logits, past_key_values=past_key_values)
