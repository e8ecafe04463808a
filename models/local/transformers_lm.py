"""A language model from transformers, as a source of kernels and scores."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...ppl.keys import Keys
from ...ppl.values.canonical import digest, weights
from ...ppl.values.reals import whole_number
from ..language.drawing.laws import parts
from ..language.drawing.runs import Run
from ..language.drawing.sampling import Law, Sampling
from ..language.host import Floats, Offer, Sink, Tally
from ..language.model import LanguageModel
from ..language.texts.tree import Node
from .families import choose, contexts, text_config
from .hogwild.workers import LocalWorkers
from .memory.histories import Histories, histories
from .memory.kept import CacheInfo
from .passes.compiled import compile_layers
from .passes.drawing import draw_steps
from .passes.forcing import forced
from .passes.hidden import depth, hidden
from .weights.loading import load
from .weights.packed import pack
from .weights.staging import send
from .weights.varied import Varied
from .weights.wrappers import core

_made = count()


class TransformersLM(LanguageModel):
    """A language model with its tokenizer. Its steps are kernels for ``fk.sample``.

    Args:
        model: a model of transformers that says a next token: causal with attention, with a recurrent state
            (Mamba, RWKV, xLSTM, hybrids), or an encoder–decoder (T5, BART), whose encoder reads the prompt.
        tokenizer: its tokenizer.
        sampling: the default law of the next token; every step may override it.
        cache_bytes: most bytes of keys, values, states and logits to hold between passes; None: as many as the model's
            device allows when they are first needed (see below). What does not fit is computed again when needed;
            `cache_info` says how much that was, and which limit it is.
        max_batch: most histories in one forward pass.
        packed: whether float32 linear layers on a CPU use a second, faster copy of their weights; None: up to
            2 GiB of them (see `pack`).
        compile: whether the model's layers are compiled by torch (see `torch.compile`), by a backend, "inductor" where
            it is True; a model that cannot be, or that gives other logits then, is refused. The layers are those of
            ``model`` itself, and stay compiled.
        name: tells texts of this model from those of others; its path by default.

    With ``cache_bytes=None`` the limit is three quarters of the memory that is free on the device, beside the weights
    and a reserve of 2 GiB for what a pass needs (half of it, where less than 4 GiB are free), and less what other
    models there were allowed so and have not filled: of several models on one device the first that is used gets most,
    and a later one at least an eighth of what is really free. On a CPU it is 2 GiB at most, less where the machine or
    the control group of the process has less.

    A pass that runs out of the device's memory is made again in halves, and the limit is lowered, whoever set it;
    nothing is lost, and ``cache_info().shortages`` counts such passes. A text that does not fit even alone raises
    `OutOfMemory`.

    The model may change between passes: weights that are trained or loaded, adapters that are switched or merged,
    hooks, a new type or device are noticed before each pass, and what was computed before is dropped (see `Live` for
    what cannot be seen, and say `refresh` after it). Texts keep their tokens, and the log-probabilities they were drawn
    with. Passes are always in eval mode: a model in training mode is in it again after each pass. Threads may share a
    model; they take turns pass by pass, and what each draws does not depend on the others but for the rounding of
    float arithmetic, which depends on what is still known.

    The model may stand behind a wrapper (an adapter of peft, `torch.compile`, a module that passes all on). It is tried
    on a few tokens first: alone, beside texts of other lengths, forked and moved, what it gives must be what one pass
    over each text alone gives. Raises `Unsupported`, with what disagreed, for a model where that cannot be had;
    ``docs/model_families.md`` lists the families.

    What histories have in common is forwarded once, prompts that begin alike included, and forks copy a row
    only when they part. A text that fills the model's context is finished, with ``finish_reason``
    "context".

    >>> from feynkac.models.testing import tiny_lm
    >>> lm = tiny_lm()
    >>> text = lm.prompt([{"role": "user", "content": "Hello"}])
    >>> from feynkac.ppl import keys
    >>> step = lm.tokens(text, 3, temperature=0.5)
    >>> draws = step.sample_batch([step, step], keys.fold(keys.root(0), [0, 1]))
    >>> len(draws.values[0].tokens), draws.log_prob.shape, lm.forwarded - text.node.length <= 4
    (3, (2,), True)
    """

    offers: frozenset[Offer] = frozenset({"law", "hidden"})

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        sampling: Sampling | None = None,
        cache_bytes: int | None = None,
        max_batch: int = 128,
        packed: bool | None = None,
        compile: bool | str = False,
        name: str | None = None,
    ) -> None:
        if not isinstance(model, torch.nn.Module) or not hasattr(tokenizer, "decode"):
            raise TypeError(
                f"a language model is made of a model and its tokenizer, not {type(model).__name__} and "
                f"{type(tokenizer).__name__}; from_pretrained loads both"
            )
        config = text_config(model)
        self.model = model.eval()
        pack(model, packed)
        self._cache_bytes, self._max_batch = cache_bytes, max_batch
        prompt_context, context = contexts(model)
        tree = Histories()
        limit = None if cache_bytes is None else whole_number("cache_bytes", cache_bytes, 0)
        self.forwarder, start = choose(model, tree, limit, max_batch)
        if compile:
            compile_layers(self.forwarder, "inductor" if compile is True else compile)
        self._workers: LocalWorkers | None = None
        super().__init__(
            tokenizer,
            tree,
            name=name or getattr(config, "_name_or_path", "") or f"{type(model).__name__}-{next(_made)}",
            vocab_size=config.vocab_size,
            eos=_end_tokens(model, tokenizer, config.vocab_size),
            context=context,
            prompt_context=prompt_context,
            start=start,
            sampling=sampling,
        )

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        *,
        sampling: Sampling | None = None,
        device: str | None = None,
        dtype: Any = None,
        cache_bytes: int | None = None,
        max_batch: int = 128,
        packed: bool | None = None,
        compile: bool | str = False,
        **kwargs: Any,
    ) -> TransformersLM:
        """Load a model and its tokenizer: a local folder, a name on the hub, or ``"smollm2"`` (see `fetch`).

        ``device`` is a GPU where there is one; ``dtype`` is float32 on a CPU, else the model's own (any other,
        such as ``torch.bfloat16``, changes the law that is sampled, and its log-probabilities with it: these are
        always computed in float32). Other keywords, such as ``device_map``, ``subfolder`` and ``gguf_file``, go to
        ``from_pretrained`` of ``AutoModelForCausalLM`` or, for an encoder–decoder, of ``AutoModelForSeq2SeqLM``. The
        folder of an adapter that peft has saved brings its base model.

        Raises ValueError for a device that is not there, FeynkacError where nothing can be loaded, or weights are
        damaged or missing, and ImportError for an adapter without peft.
        """
        model, tokenizer = load(None, name_or_path, device=device, dtype=dtype, **kwargs)
        return cls(
            model,
            tokenizer,
            sampling=sampling,
            cache_bytes=cache_bytes,
            max_batch=max_batch,
            packed=packed,
            compile=compile,
            name=name_or_path,
        )

    def __repr__(self) -> str:
        varied = self.model.extra_repr() if isinstance(self.model, Varied) else ""
        return f"<TransformersLM {', '.join(filter(None, (self.identity, varied)))}>"

    @property
    def forwarded(self) -> int:
        """Token positions forwarded so far, padding not counted."""
        return self.forwarder.forwarded

    def cache_info(self) -> CacheInfo:
        """Return what is held in memory."""
        with self.forwarder.hold():
            return self.forwarder.info()

    def version(self) -> int:
        """Return a number that is another one whenever the model has been seen to change."""
        return self.forwarder.live.version()

    def revision(self) -> Any:
        """Return a digest of the weights (of a sample of the large ones), and of how the model runs them."""
        config = core(self.model).config.to_dict()
        told = {name: value for name, value in config.items() if name not in ("_name_or_path", "transformers_version")}
        with self.forwarder.hold():
            return [weights(self.model), digest(json.dumps(told, sort_keys=True, default=str)).hex()]

    def refresh(self) -> None:
        """Forget all that was computed, scores included, after a change of the model that cannot be seen (see `Live`).

        >>> from feynkac.models.testing import tiny_lm
        >>> lm = tiny_lm()
        >>> lm.model.lm_head.weight.data.mul_(2.0)  # doctest: +ELLIPSIS
        tensor(...)
        >>> lm.refresh()
        """
        self.forwarder.live.refresh()

    def variant(self, *, experts: int | None = None, layers: int | None = None, adapter: Any = ...) -> TransformersLM:
        """Return a language model with the same weights that runs them otherwise, for instance faster and less well.

        It has a cache of its own, as large as this model's may be (``cache_bytes``), and its steps pass in batches of
        their own. Its texts are named as this model's, so that they move between variants: each goes on from the texts
        of others, ``fast.line(text)``, and their tokens go through it once. It may propose what this model is to say,
        ``fk.sample("line", lm.line(text), proposal=fast.line(text))``. What is left out is as in this model. Whatever
        changes this model (training, loading, hooks) changes its variants.

        Args:
            experts: how many experts each token goes through, in a mixture of experts.
            layers: after how many layers the last norm and the head follow, an early exit (Elhoushi et al. 2024,
                arXiv:2404.16710): good where a model was trained for it.
            adapter: an adapter of peft that was loaded into the model, by its name (Hu et al. 2022, arXiv:2106.09685);
                None is the model without adapters.

        Raises `Unsupported` for experts of a dense model, layers that are not in one list, adapters where there are
        none or where one is merged into the weights, and a variant that cannot be run exactly; ValueError for more
        experts or layers than there are, and for an unknown adapter.

        >>> from feynkac.models.testing import tiny_lm
        >>> lm = tiny_lm()
        >>> fast = lm.variant(layers=1)
        >>> fast, fast.attach(lm.prompt("Once")) == lm.prompt("Once")
        (<TransformersLM tiny-LlamaForCausalLM-0, layers=1>, True)
        """
        with self.forwarder.hold():
            model = Varied(self.model, experts=experts, layers=layers, adapter=adapter)
        lm = TransformersLM(
            model, self.tokenizer, sampling=self.sampling, cache_bytes=self._cache_bytes, max_batch=self._max_batch,
            packed=False, name=self.identity,
        )  # fmt: skip
        lm.eos = self.eos
        with self.forwarder.hold():
            model.check()
        return lm

    # What texts, steps and scores ask for

    def draw(self, runs: Sequence[Run], keys: Keys, tally: Tally) -> None:
        """Advance each run to the end of its step, see `Host`."""
        draw_steps(self.forwarder, runs, keys, tally)

    def forced(
        self, nodes: Sequence[Node], starts: Sequence[int], laws: Sequence[Law], owners: Sequence[int], tally: Tally,
        *, onward: bool = False,
    ) -> Floats:  # fmt: skip
        """Return the log-probability (n,) of the tokens of histories from certain positions on, see `Host`."""
        return forced(self.forwarder, histories(nodes), starts, laws, owners, tally, onward)

    def laws(self, nodes: Sequence[Node], owners: NDArray[np.intp], tally: Tally, sink: Sink) -> None:
        """Say the law of the next token after each history, see `Host`."""

        def pass_on(places: NDArray[np.intp], logits: Any, rows: NDArray[np.intp] | None) -> None:
            (index,) = (None,) if rows is None else send(logits.device, rows)
            for part in parts(len(places), logits, {}):
                sink(places[part], logits[part if index is None else index[part]])

        with torch.inference_mode():
            self.forwarder.next_logits(histories(nodes), owners, tally, pass_on)

    @property
    def workers(self) -> LocalWorkers:
        """What writes texts side by side. Raises `Unsupported` for a model that cannot."""
        if self._workers is None:
            with self.forwarder.hold():
                self._workers = self._workers or LocalWorkers(self.forwarder, self.context)
        return self._workers

    @property
    def depth(self) -> int:
        """How many hidden states a token has: that of its embedding, and one after each layer.

        Raises Unsupported for a model that gives none.
        """
        return depth(self.forwarder)

    def hidden(
        self, nodes: Sequence[Node], layers: Sequence[int], owners: NDArray[np.intp], tally: Tally, sink: Sink
    ) -> None:
        """Say a hidden state at the end of each history, see `Host`."""
        with torch.inference_mode():
            hidden(self.forwarder, histories(nodes), layers, owners, tally, sink)


def _end_tokens(model: Any, tokenizer: Any, size: int) -> frozenset[int]:
    """Return the tokens that end a text, of those that the model can say."""
    ids: set[int] = set()
    inner = core(model)
    for source in (inner.config, getattr(inner, "generation_config", None), tokenizer):
        given = getattr(source, "eos_token_id", None)
        ids.update(given if isinstance(given, list | tuple) else () if given is None else (given,))
    return frozenset(token for token in ids if 0 <= token < size)
