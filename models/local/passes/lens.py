"""What a pass of a model is looked at through: its hidden states, taken out on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from ....ppl.errors import Unsupported
from ..memory.kept import NOTHING
from ..weights.wrappers import FAULTS, core

INTO_HEAD = -1
"""The key of what goes into the output embedding."""
_FEW = 1024
_FIELDS = ("decoder_hidden_states", "hidden_states")
"""What models of transformers call their hidden states; those of a decoder, where there is one."""


class Lens:
    """Calls a model, and takes hidden states of the last position out of the pass.

    What goes into the output embedding costs nothing and is always taken. For most models it is the last of the states
    that transformers gives; `measure` finds out. Another layer is taken where it is asked for, and from then on in all
    passes over few positions, since the model then holds those of all layers at once.

    Attributes:
        taken: of the last pass, hidden states (n, d) by layer; −1 is what went into the output embedding.
        depth: how many hidden states a token has: after the embedding, and after each layer; None: not known yet.
    """

    def __init__(self, model: Any) -> None:
        self.taken: Mapping[int, Any] = NOTHING
        self.depth: int | None = None
        self._model = model
        self._asked: set[int] = set()
        self._taking: Callable[[int], Iterable[int]] | None = None
        self._last_goes_in = False

    def look(self, inputs: dict[str, Any]) -> Any:
        """Run the model."""
        taken: dict[int, Any] = {}

        def note(given: Any) -> None:  # (n, k, d)
            if given.dim() == 3:
                taken[INTO_HEAD] = given[:, -1].clone()

        head = core(self._model).get_output_embeddings()
        wanted = self._taking or (self._layers if self._asked and _positions(inputs) <= _FEW else None)
        more = {} if wanted is None else {"output_hidden_states": True}
        with nullcontext() if head is None else _watched(head, note):
            out = self._model(**inputs, **more)
        if wanted is not None:
            states = _states(out)
            taken.update((layer, states[layer][:, -1].clone()) for layer in wanted(len(states)))
        self.taken = taken
        return out

    @contextmanager
    def taking(self, layers: Iterable[int]) -> Iterator[None]:
        """Within the block some layers are taken, too, however many positions a pass has."""
        self._asked.update(layers)
        with self._taken_by(self._layers):
            yield

    def forget(self) -> None:
        """Forget what the model was found to give, as it has changed."""
        self.depth = None
        self._asked.clear()

    @contextmanager
    def _taken_by(self, wanted: Callable[[int], Iterable[int]]) -> Iterator[None]:
        self._taking = wanted
        try:
            yield
        finally:
            self._taking = None

    def _layers(self, _: int) -> Iterable[int]:
        return self._asked

    def measure(self, run: Callable[[], Any]) -> None:
        """Find out, by a pass over a token, what hidden states the model gives. Raises Unsupported where it is none."""
        try:
            with self._taken_by(range):
                run()
        except FAULTS as fault:
            name = type(core(self._model)).__name__
            raise Unsupported(f"{name} gives no hidden states when it is asked for them: {fault}") from fault
        into_head = self.taken.get(INTO_HEAD)
        self.depth = len(self.taken) - (into_head is not None)
        self._last_goes_in = into_head is not None and torch.equal(into_head, self.taken[self.depth - 1])

    def key(self, layer: int) -> int:
        """Return the key of a layer in what is taken."""
        return INTO_HEAD if self._last_goes_in and layer + 1 == self.depth else layer


@contextmanager
def _watched(module: Any, note: Callable[[Any], None]) -> Iterator[None]:
    """Within the block ``note`` is told what goes into a module. A hook would be taken for a change of the model."""
    own, forward = vars(module), module.forward
    before = own.get("forward")

    def told(*args: Any, **kwargs: Any) -> Any:
        note(args[0] if args else next(iter(kwargs.values())))
        return forward(*args, **kwargs)

    own["forward"] = told
    try:
        yield
    finally:
        if before is None:
            del own["forward"]
        else:
            own["forward"] = before


def _positions(inputs: dict[str, Any]) -> int:
    """Return how many positions a pass has, of an encoder or a decoder."""
    given = (inputs.get(name) for name in ("input_ids", "decoder_input_ids"))
    most: int = max(ids.numel() for ids in given if ids is not None)
    return most


def _states(out: Any) -> Sequence[Any]:
    """Return the hidden states of all layers, each (n, k, d), of the decoder where there is one."""
    states = next((states for field in _FIELDS if (states := out.get(field)) is not None), None)
    if not states or any(layer.dim() != 3 for layer in states):
        raise TypeError("there is none for each token and layer")
    return tuple(states)
