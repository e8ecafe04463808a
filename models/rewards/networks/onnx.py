"""Models in the ONNX format, run by onnxruntime."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....ppl.cost import charge
from ....ppl.score import Kind
from ..base import Template, TextReward
from .encoding import Encoder, Truncate, chunks, pad

Array = NDArray[Any]


class OnnxReward(TextReward):
    """A number that an ONNX model gives, as a reward.

    A grammar tagger, for one, gives each token of a sentence a law over corrections; the log-probability that it
    would leave every token alone is a reward:

        def unchanged(logits, ids):
            return (logits - np.logaddexp.reduce(logits, -1, keepdims=True))[1:-1, keep].sum()

        grammar = fk.rewards.OnnxReward("tagger.onnx", tokenizer, reduce=unchanged, kind="log_weight")

    Args:
        model: a path, the model as bytes, or an ``InferenceSession``.
        inputs: a tokenizer of transformers, whose ``input_ids``, ``attention_mask`` and ``token_type_ids`` go to the
            model's inputs of these names; or a function from the list of a batch's inputs to a dict of arrays. A graph
            that gives a number to the whole may take its last token for the last that is no padding: where the
            tokenizer has no padding token, or its end token is that, only texts of one length share a pass then.
        output: the output read, by name or index.
        reduce: from an input's own part of the output to a number: called with that array, padding cut off along a
            tokens' axis, and with its token ids where there is a tokenizer. By default the output must be one number.
        kind: of the number.
        template: makes the input of the arguments. A function of your own as ``inputs`` may get anything hashable.
        max_batch: most inputs in a pass.
        max_length: most tokens of an input; by default what the tokenizer says.
        truncate: "left" or "right" cuts that end of a longer input off; None makes it a ContextOverflow.
        providers: where onnxruntime computes.
        cache: results remembered.

    Raises ImportError without onnxruntime, FileNotFoundError for a model that is not there, ValueError for an output
    or input that the model does not have.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes | Any,
        inputs: Any,
        *,
        output: str | int = 0,
        reduce: Callable[..., float] | None = None,
        kind: Kind = "real",
        template: Template = None,
        max_batch: int = 64,
        max_length: int | None = None,
        truncate: Truncate = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        name: str | None = None,
        cache: int = 10_000,
    ) -> None:
        self._session = _session(model, providers)
        path = model if isinstance(model, str | os.PathLike) else "onnx"
        super().__init__(name or Path(path).stem, kind, template, cache)
        self._output = _name(output, [each.name for each in self._session.get_outputs()], self.name)
        self._wanted = [each.name for each in self._session.get_inputs()]
        self._reduce = reduce
        self._encoder: Encoder | None = None
        self._pads = True
        if hasattr(inputs, "model_input_names"):
            self._encoder = Encoder(inputs, self.name, self._wanted, max_length, truncate)
            pad_token, end = inputs.pad_token_id, inputs.eos_token_id
            self._pad = 0 if pad_token is None or pad_token == end else int(pad_token)
            by_token = len(self._shape(self._output) or ()) > 2
            self._pads = by_token or self._pad == pad_token
        elif not callable(inputs):
            raise TypeError(f"reward {self.name!r}: inputs is a tokenizer or a function, not {inputs!r}")
        self._inputs = inputs
        self._max_batch = max_batch

    def prepare(self, *args: Any, **named: Any) -> Any:
        """Return the input: for a tokenizer a string, pair or chat; for a function what the template makes."""
        if self._encoder is None and self.template is None:
            return args[0] if len(args) == 1 and not named else (*args, *named.values())
        return super().prepare(*args, **named)

    def score_batch(self, inputs: Sequence[tuple[Any, ...]]) -> list[float]:
        """Return the number of each input."""
        items = [key for (key,) in inputs]
        encodings = None if self._encoder is None else [self._encoder.encode(item) for item in items]
        lengths = [1] * len(items) if encodings is None else [len(encoding["input_ids"]) for encoding in encodings]
        numbers = [0.0] * len(items)
        passes = 0
        for chunk in self._chunks(lengths):
            feeds = (
                self._inputs([items[i] for i in chunk])
                if encodings is None
                else pad([encodings[i] for i in chunk], self._pad)
            )
            rows = self._run(feeds, len(chunk))
            for i, row in zip(chunk, rows):
                numbers[i] = self._number(row, None if encodings is None else encodings[i]["input_ids"])
            passes += 1
        charge(model_calls=passes, tokens_in=0 if encodings is None else lengths)
        return numbers

    def _shape(self, output: str) -> Any:
        return next(each.shape for each in self._session.get_outputs() if each.name == output)

    def _chunks(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Cut rows into batches, of one length each where they must not be padded."""
        alike: dict[int, list[int]] = defaultdict(list)
        for i, length in enumerate(lengths):
            alike[0 if self._pads else length].append(i)
        for group in alike.values():
            for chunk in chunks([lengths[i] for i in group], self._max_batch):
                yield [group[k] for k in chunk]

    def _run(self, feeds: Mapping[str, Array], n: int) -> Array:
        missing = [name for name in self._wanted if name not in feeds]
        if missing:
            raise ValueError(
                f"reward {self.name!r}: the model needs {', '.join(missing)}, and was given {', '.join(feeds)}"
            )
        output: Array = np.asarray(self._session.run([self._output], {key: feeds[key] for key in self._wanted})[0])
        if output.ndim == 0 or len(output) != n:
            raise ValueError(f"reward {self.name!r}: output {self._output!r} of {n} inputs has shape {output.shape}")
        return output

    def _number(self, row: Array, ids: list[int] | None) -> float:
        if self._reduce is None:
            if row.size != 1:
                raise ValueError(
                    f"reward {self.name!r}: output {self._output!r} has shape {row.shape} for one input; say with "
                    "reduce how it becomes a number"
                )
            return float(row.reshape(()))
        if ids is None:
            return self._reduce(row)
        return self._reduce(row[: len(ids)] if row.ndim > 1 else row, ids)


def _session(model: Any, providers: Sequence[str]) -> Any:
    if hasattr(model, "get_inputs"):
        return model
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("ONNX models need onnxruntime: pip install 'feynkac[onnx]'") from error
    if not isinstance(model, bytes):
        model = os.fspath(model)
        if not os.path.isfile(model):
            raise FileNotFoundError(f"there is no ONNX model at {model}")
    return onnxruntime.InferenceSession(model, providers=list(providers))


def _name(output: str | int, names: Sequence[str], reward: str) -> str:
    if isinstance(output, int) and 0 <= output < len(names):
        return names[output]
    if output in names:
        return str(output)
    raise ValueError(f"reward {reward!r}: the model has no output {output!r}; there are: {', '.join(names)}")
