"""A language model behind a server, as a source of kernels and scores."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from ..language.drawing.sampling import Sampling
from .client import Client, client_of
from .completions import Completions
from .served_lm import ServedLM
from .tokenizers import find_tokenizer


class ServerLM(ServedLM):
    """A language model behind a server that speaks OpenAI's ``/v1/completions`` as vLLM does.

    Programs, steps, rewards and engines are those of a model that runs here. What needs the whole law of the next token
    or hidden states (constraints, `read`) is refused by name. Token ids go in and out, never strings; each draw is a
    request with a seed of its own; the requests of a wave go out together.

    The server is tried out first, by some requests of a few tokens, for servers take fields that they do not know and
    say nothing. ``lm.can`` says what it does, and ``lm.lacks`` what it does not, with the flag to set. Where it
    tells the log-probabilities of draws before temperature and cuts, as vLLM does by default, those of draws under
    other laws are not known: such steps run, and engines that need their log-probabilities say so.

    Args:
        url: of the server, such as ``"http://localhost:8000"``, or a `Client`, which has limits and time-outs.
        model: what the server calls the model; not needed where it serves one.
        tokenizer: the model's own: a folder, a name on the hub, or a tokenizer of transformers. By default it is looked
            for by the model's name, and by what the server loaded it from.
        sampling: the default law of the next token; every step may override it.
        eos: the tokens that end a text; by default those of the tokenizer and of the model's generation_config.
        vocab_size: how many tokens the model has, where these are more than the tokenizer's.
        context: most tokens of a text; needed where the server does not say.
        score_warped: whether given tokens may be scored under other laws than the model's own, by a request for each.
        tolerance: how far two log-probabilities of one token may lie apart that were computed in two ways, in nats. In
            float32 it is 1e-4; in 16 bits some hundredths.
        api_key: what lets us in; by default that of the environment, see `Client`. It is neither shown nor saved.

    Raises ServerError where the server cannot be reached or has no such model, UnusableAnswer where it does not say
    token ids or draws the same under all seeds, TokenizerMismatch for a tokenizer that is not the server's,
    FeynkacError where none is found, Unsupported for a ``sampling`` that it has not, and ValueError for an ``api_key``
    beside a `Client`, which has its own.

    >>> import feynkac as fk
    >>> from feynkac.models.testing import FakeServer, tiny_tokenizer
    >>> with FakeServer() as server:
    ...     lm = fk.models.ServerLM(server.url, tokenizer=tiny_tokenizer())
    ...     text = fk.simulate(fk.models.think(lm, lm.prompt("Once"), max_tokens=8), seed=0).value
    >>> text.full.startswith("Once"), sorted(lm.lacks)
    (True, [])
    """

    def __init__(
        self,
        url: str | Client,
        model: str | None = None,
        *,
        tokenizer: Any = None,
        sampling: Sampling | None = None,
        eos: Sequence[int] | None = None,
        vocab_size: int | None = None,
        context: int | None = None,
        score_warped: bool = False,
        tolerance: float = 0.05,
        api_key: str | None = None,
    ) -> None:
        client = client_of(url, api_key)
        transport = Completions(client, model)
        found, ends = find_tokenizer(tokenizer, (transport.identity, transport.root), f"the model at {client.url}")
        if eos is None and ends is not None:
            eos = [*ends, found.eos_token_id]
        super().__init__(
            transport, found, sampling=sampling, eos=eos, vocab_size=vocab_size, context=context,
            score_warped=score_warped, tolerance=tolerance,
        )  # fmt: skip
        transport.seeded = "seed" in self.can
        self._again = partial(
            ServerLM, client, transport.identity, tokenizer=found, sampling=sampling, eos=sorted(self.eos),
            vocab_size=vocab_size, context=context, score_warped=score_warped, tolerance=tolerance,
        )  # fmt: skip

    def __copy__(self) -> ServerLM:
        return self

    def __deepcopy__(self, _: Any) -> ServerLM:
        return self

    def __reduce__(self) -> Any:
        """A copy in another process meets the server itself, and looks for the key in its own environment."""
        return self._again, ()
