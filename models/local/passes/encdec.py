"""Forward passes of encoder–decoder models: prompts are encoded once, responses decoded over kept keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import Cache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from ....ppl.errors import Unsupported
from ..memory.histories import Histories, History
from ..memory.jobs import Job
from ..memory.kept import CacheInfo, Kept, Wave
from ..weights.wrappers import core
from .attention import AttentionForwarder

Layers = list[tuple[Any, Any]]
Place = tuple[Layers, int]


class EncoderDecoderForwarder(AttentionForwarder):
    """Runs a model that reads the prompt in an encoder and writes the response in a decoder.

    A history is the decoder's: its root is ``start``, and what the encoder reads is the root's ``source``. The
    keys and values that the decoder's cross-attention needs of a prompt are computed once and shared by all its
    histories: of ``limit`` bytes a quarter is for them, a sixteenth for logits, the rest for the decoder's own.

    Raises `Unsupported` for a model whose steps give other logits than a pass over the whole.
    """

    positions_name = "decoder_position_ids"

    def __init__(
        self, model: Any, tree: Histories, limit: int | None, max_batch: int, vocab_size: int, longest: int | None,
        start: tuple[int, ...], longest_prompt: int | None,
    ) -> None:  # fmt: skip
        self._start = start
        self._longest_prompt = longest_prompt
        self._encoded = Kept(0)
        self._width = 0
        self._source_bytes = 0
        super().__init__(model, tree, limit, max_batch, vocab_size, longest)

    def allot(self, limit: int) -> None:
        """Share a number of bytes out among what is held, and drop what is beyond."""
        self._encoded.limit = limit // 4
        self._encoded.make_room(0)
        super().allot(limit - limit // 4)

    def info(self) -> CacheInfo:
        """Return what is held in memory."""
        return super().info().beside(self._encoded)

    def clear(self) -> None:
        """Drop all that is held in memory."""
        super().clear()
        self._encoded.clear()

    def forget(self) -> None:
        """Count from zero."""
        super().forget()
        self._encoded.peak = self._encoded.evictions = 0

    def attempt(self, jobs: list[Job], width: int, every: bool) -> Any:
        """Forward jobs together; logits (n, k, V), or None where they or their prompts do not fit into memory."""
        users = {job.node.top: job.node for job in reversed(jobs)}
        missing = [root for root in users if _place(root) is None]
        for length in {len(root.source) for root in missing}:
            if not self._encode([root for root in missing if len(root.source) == length], users):
                return None
        return super().attempt(jobs, width, every)

    def bare(self, job: Job, every: bool) -> Any:
        """Forward one whole history and its prompt, and keep nothing; logits (1, k, V)."""
        source = job.node.top.source
        self._read(job.node.top, job.node, len(source))
        ids = self.tensor(np.array([job.node.tokens()], np.int64))
        given = self.tensor(np.array([source], np.int64))
        logits = self.invoke(input_ids=given, decoder_input_ids=ids, use_cache=False).logits
        return (logits if every else logits[:, -1:]).float()

    def _encode(self, roots: list[History], users: dict[History, History]) -> bool:
        """Encode prompts of one length and keep what the decoder needs of them. Returns whether it fits."""
        needed = {id(root.state[0]) for root in users if root.state is not None}
        size = len(roots) * len(roots[0].source) * self._source_bytes
        if not self._encoded.make_room(size, lambda wave: id(wave) in needed):
            return False
        sources = self.tensor(np.array([root.source for root in roots], np.int64))
        start = self.tensor(np.array([root.prompt for root in roots], np.int64))
        out = self.invoke(input_ids=sources, decoder_input_ids=start, use_cache=True)
        cache = out.past_key_values
        if not isinstance(cache, EncoderDecoderCache):
            raise Unsupported(f"{type(core(self.model)).__name__} does not return the keys and values of its prompt")
        run = [layer for layer in cache.cross_attention_cache.layers if layer.keys is not None]  # others were left out
        layers = [(layer.keys, layer.values) for layer in run]
        self._width = out.encoder_last_hidden_state.shape[-1]
        wave = Wave(None, layers, sum(keys.nbytes + values.nbytes for keys, values in layers))
        self._source_bytes = wave.bytes // sources.numel()
        self._encoded.keep(wave)
        for row, root in enumerate(roots):
            root.state = wave, row
            self._read(root, users[root], len(root.source) + len(root.prompt))
        return _place(roots[0]) is not None

    def _read(self, root: History, user: History, positions: int) -> None:
        """Count what was forwarded to read a prompt."""
        before = root.forwarded == self.mark(Job(root, 0, None, None))
        self.owe(user, positions, positions if before else 0)

    def _call(self, jobs: Sequence[Job], ids: Any, mask: Any, cache: Any, inputs: dict[str, Any]) -> Any:
        places = [place for job in jobs if (place := _place(job.node.top)) is not None]
        for root in {job.node.top for job in jobs}:
            if root.state is not None:
                self._encoded.touch(root.state[0])
        lengths = np.array([len(job.node.top.source) for job in jobs])
        longest = int(lengths.max())
        padded = self.tensor((np.arange(longest) < lengths[:, None]).astype(np.int64))
        # Only the shape of this is used: the keys and values made of it are in the cache.
        hidden = torch.zeros((), dtype=core(self.model).dtype, device=core(self.model).device)
        return self.invoke(
            decoder_input_ids=ids,
            decoder_attention_mask=mask,
            encoder_outputs=_Encoded(last_hidden_state=hidden.expand(len(jobs), longest, self._width)),
            attention_mask=padded if (lengths < longest).any() else None,
            past_key_values=EncoderDecoderCache(cache, _Crossed(places, longest)),
            use_cache=True,
            **inputs,
        ).logits

    def roots(self, tree: Histories, tokens: NDArray[np.int64]) -> list[History]:
        """Return two beginnings for a trial, whose prompts differ in length."""
        known = tokens[tokens < core(self.model).get_input_embeddings().num_embeddings]
        lengths = (min(n, self._longest_prompt or n) for n in (5, 7))
        return [tree.root(self._start, tuple(known[-n:].tolist())) for n in lengths]


@dataclass
class _Encoded(BaseModelOutput):  # type: ignore[misc]
    """What an encoder gave, with a place for what a router of experts said, as some models look for it."""

    router_logits: Any = None


class _Crossed(Cache):  # type: ignore[misc]
    """The cross-attention keys and values of a batch, each row those of its prompt."""

    def __init__(self, places: Sequence[Place], longest: int) -> None:
        layers = len(places[0][0])
        super().__init__(layers=[_CrossedLayer(places, longest, index) for index in range(layers)])
        self._longest = longest

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the tokens of the longest prompt."""
        return self._longest


class _CrossedLayer:
    """One layer's part, put together when it is asked for, so that one layer at a time takes memory."""

    def __init__(self, places: Sequence[Place], longest: int, index: int) -> None:
        self._places = places
        self._longest = longest
        self._index = index

    @property
    def keys(self) -> Any:
        """Keys (n, heads, longest, dim)."""
        return self._batch(0)

    @property
    def values(self) -> Any:
        """Values (n, heads, longest, dim)."""
        return self._batch(1)

    def _batch(self, part: int) -> Any:
        n = len(self._places)
        rows = [(layers[self._index][part], row) for layers, row in self._places]
        lead, row = rows[0]
        if all(tensor is lead and other == row for tensor, other in rows):
            return lead[row : row + 1].expand(n, *lead.shape[1:])
        batch = lead.new_zeros((n, lead.shape[1], self._longest, lead.shape[3]))
        for i, (tensor, row) in enumerate(rows):
            batch[i, :, : tensor.shape[2]] = tensor[row]
        return batch


def _place(root: History) -> Place | None:
    if root.state is None:
        return None
    wave, row = root.state
    return None if wave.state is None else (wave.state, row)
