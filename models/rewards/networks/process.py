"""Process reward models: a probability for each step of an answer, and one number for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ....ppl.memory import Memory
from ...language.host import Host
from ...language.texts.encoding import Codec, ending_space
from ...local.weights.loading import load
from ..base import as_input
from ..judges.answers import Answers
from ..stepwise import Aggregate, ProcessReward, Render, Steps
from .encoding import Encoding
from .heads import Reader


class StepTokenPRM(ProcessReward):
    """A causal language model that says after each step whether it is good, by its next token.

    A step's score is P(good) / (P(good) + P(bad)) after the question and the steps so far, as in Math-Shepherd (Wang
    et al. 2024, arXiv:2312.08935). Steps that were scored are remembered, and a new one is forwarded alone: what came
    before it stands in the KV cache that particles share.

    Args:
        lm: the model.
        good: the token that means a good step: the first that the tokenizer gives to it alone.
        bad: the token that means a bad one.
        tag: ends each step.
        aggregate: see `ProcessReward`.
        between: stands between steps.
        render: from the question and the steps so far to what the model reads, a string or chat messages, where
            "{question} {step} {tag}{between}{step} {tag}…" is not it.
        cache: results remembered.

    >>> from feynkac.models.testing import tiny_lm
    >>> prm = StepTokenPRM(tiny_lm(), tag="?", aggregate="min")
    >>> prm("Who?", ["The sea.", "The hill."]), len(prm.details([("Who?", ["The sea.", "The hill."])])[0])
    (<probability score of prm>, 2)
    """

    def __init__(
        self,
        lm: Host,
        *,
        good: str = "+",
        bad: str = "-",
        tag: str = "ки",
        aggregate: Aggregate = "last",
        between: str = "\n",
        render: Render | None = None,
        name: str = "prm",
        cache: int = 10_000,
    ) -> None:
        super().__init__(name, aggregate, between, cache)
        self.lm = lm
        self._answers = Answers(lm, [[good], [bad]], name, alone=True)
        self._known = Memory[float](cache)
        self._render = render or (lambda question, steps: f"{question} " + between.join(f"{s} {tag}" for s in steps))

    def version(self) -> int:
        """Return a number that is another one whenever the model has been seen to change."""
        return self.lm.version()

    def detail_batch(self, inputs: Sequence[Any]) -> list[Steps]:
        """Score the steps of some answers: the first unknown one of each together, then the second, and so on."""
        version = self.version()
        known = ((prefix, self._known.get(prefix, version)) for key in inputs for prefix in _prefixes(key))
        scores = {prefix: score for prefix, score in known if score is not None}
        queues = [[prefix for prefix in _prefixes(key) if prefix not in scores] for key in inputs]
        for turn in range(max(map(len, queues))):
            fresh = list(dict.fromkeys(queue[turn] for queue in queues if turn < len(queue)))
            law = self._answers.law([as_input(self.name, self._render(*prefix)) for prefix in fresh], add=turn > 0)
            for prefix, good in zip(fresh, law[:, 0].tolist()):
                scores[prefix] = good
                self._known.put(prefix, good, version)
        return [tuple(scores[prefix] for prefix in _prefixes(key)) for key in inputs]


class ValueHeadPRM(ProcessReward):
    """A model with a head on every token, read at the last token of each step.

    The head has one output (its sigmoid is the score) or two labels (their softmax). So this fits token
    classifiers, models with separator tokens such as Qwen2.5-Math-PRM (Zhang et al. 2025, arXiv:2501.07301; separator
    "<extra_0>"), and value heads on a language model (see `linear_head`). Each answer goes through the model whole;
    those of a wave are one padded batch.

    Args:
        model: its output has ``logits`` (n, t, labels), or is the tuple that begins with them.
        tokenizer: its tokenizer.
        separator: put after each step.
        label: of two labels the one that means good.
        aggregate: see `ProcessReward`.
        render: from the question, and no steps, to what comes before the first step: a string, or chat messages
            that go through the tokenizer's template. By default the question and a line break.
        max_batch: most answers in a pass.
        max_length: most tokens of an answer; by default what the model says. A longer one is a ContextOverflow.
        cache: results remembered.

    >>> from transformers import LlamaConfig, LlamaForTokenClassification
    >>> from feynkac.models.testing import tiny_tokenizer
    >>> config = LlamaConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
    ...     intermediate_size=16, num_labels=2, pad_token_id=1)
    >>> prm = ValueHeadPRM(LlamaForTokenClassification(config), tiny_tokenizer(), aggregate="prod")
    >>> prm("Who?", ["The sea.", "The hill."]), len(prm.details([("Who?", ["The sea.", "The hill."])])[0])
    (<probability score of prm>, 2)
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        separator: str = "\n",
        label: int = 1,
        aggregate: Aggregate = "last",
        between: str = "\n",
        render: Render | None = None,
        max_batch: int = 32,
        max_length: int | None = None,
        name: str = "prm",
        cache: int = 10_000,
    ) -> None:
        super().__init__(name, aggregate, between, cache)
        if label not in (0, 1):
            raise ValueError(f"label must be 0 or 1, not {label!r}")
        self.label = label
        self.separator = separator
        self._render = render or (lambda question, steps: f"{question}\n")
        self._reader = Reader(model, tokenizer, name, max_batch, max_length, None)
        self._codec = Codec(tokenizer, len(tokenizer), f"reward {name!r}", unknown=True)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        *,
        device: str | None = None,
        dtype: Any = None,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> ValueHeadPRM:
        """Load a token classifier, or (with ``trust_remote_code``) a model with code of its own, and its tokenizer.

        ``device`` is a GPU where there is one; ``dtype`` is float32 on a CPU, else the model's own. Other keywords
        are those of the class.
        """
        from transformers import AutoModel, AutoModelForTokenClassification

        auto = AutoModel if trust_remote_code else AutoModelForTokenClassification
        model, tokenizer = load(auto, name_or_path, device=device, dtype=dtype, trust_remote_code=trust_remote_code)
        return cls(model, tokenizer, **options)

    def version(self) -> int:
        """Return a number that is another one whenever the model has been seen to change."""
        return self._reader.live.version()

    def detail_batch(self, inputs: Sequence[Any]) -> list[Steps]:
        """Score the steps of some answers."""
        made = [self._pieces(*key) for key in inputs]
        ends = [end for _, end in made]

        def read(output: Any, rows: Sequence[int]) -> list[Steps]:
            logits = (output.logits if hasattr(output, "logits") else output[0]).float()
            return [self._good(logits[place, ends[i]]) for place, i in enumerate(rows)]

        return self._reader.run([encoding for encoding, _ in made], read)

    def _pieces(self, question: str, steps: tuple[str, ...]) -> tuple[Encoding, list[int]]:
        """Return the tokens of question and steps, each encoded after those before it, and where each step ends."""
        encoder, head = self._reader.encoder, as_input(self.name, self._render(question, ()))
        if isinstance(head, str):
            before = head
            tokens = list(encoder.tokenizer(head).input_ids)
        else:
            before = encoder.chat(head, add_generation_prompt=True)
            tokens = list(self._codec.encode(before))
        ends = []
        for step in steps:
            added = step + self.separator
            tokens += self._codec.follow(tokens, added, lost=ending_space(before))
            ends.append(len(tokens) - 1)
            before = added
        return self._reader.encoder.fit({"input_ids": tokens}, (question, steps)), ends

    def _good(self, logits: Any) -> Steps:
        """Return the scores of the steps of one answer from the logits (steps, labels) at their ends."""
        if logits.shape[-1] == 1:
            return tuple(logits.sigmoid()[:, 0].tolist())
        if logits.shape[-1] == 2:
            return tuple(logits.softmax(-1)[:, self.label].tolist())
        raise ValueError(
            f"reward {self.name!r} needs a head with one output or two labels on every token, but "
            f"{type(self._reader.model).__name__} has {logits.shape[-1]}"
        )


def linear_head(model: Any, path: str, *, weight: str | None = None, bias: str | None = None) -> Any:
    """Put a linear head from a safetensors file on a language model, for `ValueHeadPRM`.

    Args:
        model: a model of transformers with a ``last_hidden_state``, of width d: load it with ``AutoModel``.
        path: a safetensors file that holds a weight (1, d) or (2, d), and maybe a bias.
        weight: the key of the weight; may be left out where the file holds one of that shape.
        bias: the key of the bias; by default the weight's with "weight" replaced, where there is one.

    Raises ValueError where the file does not hold what is asked for.
    """
    from .linear import LinearHead, read_head

    return LinearHead(model, *read_head(path, model.config.hidden_size, weight, bias))


def _prefixes(key: tuple[str, tuple[str, ...]]) -> list[tuple[str, tuple[str, ...]]]:
    question, steps = key
    return [(question, steps[:i]) for i in range(1, len(steps) + 1)]
