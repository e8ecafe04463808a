"""Sequence classifiers and reward models of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from ....ppl.score import Kind
from ...local.weights.loading import load
from ..base import Template, TextReward
from .encoding import Truncate
from .heads import Reader

Head = Literal["softmax", "sigmoid", "regression"]


class Classifier(TextReward):
    """The probability of a label, or the output of a reward model, as a reward.

    Args:
        model: an ``AutoModelForSequenceClassification``.
        tokenizer: its tokenizer.
        label: the label scored, by name or index; may be left out where there is one.
        head: what the model's outputs are: "softmax" (labels exclude each other) and "sigmoid" (they do not) give a
            probability, "regression" the output itself, of kind real. By default what the model's ``problem_type``
            says; else a model of one label is a regression, and others are a softmax.
        template: makes the input of the arguments (see `feynkac.rewards`): a string, a pair such as question and
            answer, or chat messages for the tokenizer's chat template. By default one argument is a string and
            two are a pair.
        max_batch: most inputs in a pass.
        max_length: most tokens of an input; by default what the model says.
        truncate: "left" or "right" cuts that end of a longer input off; None makes it a ContextOverflow.
        cache: results remembered.

    Raises ValueError for a label that is not there.

    >>> from transformers import BertConfig, BertForSequenceClassification
    >>> from feynkac.models.testing import tiny_tokenizer
    >>> from feynkac.ppl.score import evaluate
    >>> config = BertConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
    ...     intermediate_size=16, id2label={0: "calm", 1: "angry"}, label2id={"calm": 0, "angry": 1})
    >>> angry = Classifier(BertForSequenceClassification(config), tiny_tokenizer(), label="angry")
    >>> angry("Who are you?"), 0 < evaluate([angry("Who are you?")])[0] < 1
    (<probability score of angry>, True)
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        label: str | int | None = None,
        head: Head | None = None,
        template: Template = None,
        max_batch: int = 64,
        max_length: int | None = None,
        truncate: Truncate = None,
        name: str | None = None,
        cache: int = 10_000,
    ) -> None:
        self.head: Head = head or _head(model.config)
        if self.head not in ("softmax", "sigmoid", "regression"):
            raise ValueError(f"head must be 'softmax', 'sigmoid' or 'regression', not {head!r}")
        kind: Kind = "real" if self.head == "regression" else "probability"
        self.label = _index(model.config, label, name or "classifier")
        super().__init__(name or (label if isinstance(label, str) else "classifier"), kind, template, cache)
        if self.head == "softmax" and model.config.num_labels == 1:
            raise ValueError(f"reward {self.name!r}: a softmax of one label is always 1; say head='sigmoid'")
        self._reader = Reader(model, tokenizer, self.name, max_batch, max_length, truncate)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        *,
        label: str | int | None = None,
        device: str | None = None,
        dtype: Any = None,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> Classifier:
        """Load a model and its tokenizer from a local folder or the hub.

        ``device`` is a GPU where there is one; ``dtype`` is float32 on a CPU, else the model's own. Other keywords
        are those of the class. Raises FeynkacError where there is no such model, or it has no classifier.
        """
        from transformers import AutoModelForSequenceClassification

        model, tokenizer = load(
            AutoModelForSequenceClassification,
            name_or_path,
            device=device,
            dtype=dtype,
            trust_remote_code=trust_remote_code,
        )
        return cls(model, tokenizer, label=label, **options)

    def version(self) -> int:
        """Return a number that is another one whenever the model has been seen to change."""
        return self._reader.live.version()

    @property
    def journal_key(self) -> Any:
        """What tells it from other rewards in a journal: the model, its tokenizer, and what is read of it."""
        return (self.kind, self.head, self.label, self._reader.journal_key)

    def score_batch(self, inputs: Sequence[tuple[Any, ...]]) -> list[float]:
        """Return the probability of the label, or the output, for each input."""
        return self._reader.run([self._reader.encoder.encode(key) for (key,) in inputs], self._read)

    def _read(self, output: Any, rows: Sequence[int]) -> list[float]:
        logits = output.logits.float()
        if self.head == "softmax":
            logits = logits.softmax(-1)
        elif self.head == "sigmoid":
            logits = logits.sigmoid()
        numbers: list[float] = logits[:, self.label].tolist()
        return numbers


def _head(config: Any) -> Head:
    known: dict[str | None, Head] = {
        "regression": "regression",
        "multi_label_classification": "sigmoid",
        "single_label_classification": "softmax",
    }
    return known.get(config.problem_type) or ("regression" if config.num_labels == 1 else "softmax")


def _index(config: Any, label: str | int | None, name: str) -> int:
    names = {int(index): str(word) for index, word in config.id2label.items()}
    if label is None and len(names) == 1:
        return 0
    if isinstance(label, int) and not isinstance(label, bool) and label in names:
        return label
    found = [index for index, word in names.items() if word == label]
    if len(found) != 1:
        what = "needs a label" if label is None else f"has no label {label!r}"
        raise ValueError(f"reward {name!r} {what}; there are: {', '.join(f'{i} {w!r}' for i, w in names.items())}")
    return found[0]
