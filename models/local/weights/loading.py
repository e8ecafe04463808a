"""Models of transformers with their tokenizers, from folders and from the hub, adapters of peft among them."""

from __future__ import annotations

import importlib.util
import json
import os
from typing import Any

import torch

from ....ppl.errors import FeynkacError
from ...fetch import hint, resolve
from .devices import find

_SHARED = (
    "cache_dir", "force_download", "gguf_file", "local_files_only", "proxies", "revision", "subfolder", "token",
    "trust_remote_code",
)  # fmt: skip
"""Keywords that say where files are, for configuration and tokenizer as for weights."""
_TOKENIZER_FILES = ("tokenizer_config.json", "tokenizer.json")


def load(
    auto: Any, name_or_path: str, *, device: str | None = None, dtype: Any = None, unused: str = "", **kwargs: Any
) -> tuple[Any, Any]:
    """Load a model and its tokenizer.

    Args:
        auto: an Auto class of transformers, or a class of models; None: what generates text.
        name_or_path: a folder, a name on the hub, or an alias (see `fetch`). An adapter of peft brings its base model.
        device: where to; the best there is by default.
        dtype: by default float32 on a CPU, else the model's own; ``torch_dtype`` means the same.
        unused: what weights are called that may be missing.
        kwargs: go to ``from_pretrained``.

    Raises TypeError for what is no name, ValueError for a device that is not there, FeynkacError where nothing can be
    loaded, or weights are damaged, or missing, which transformers would fill with random numbers, and ImportError for
    an adapter without peft.
    """
    if not isinstance(name_or_path, str | os.PathLike):
        raise TypeError(f"a model is loaded by its name or from a folder, not from {name_or_path!r}")
    path = resolve(name_or_path)
    device = find(device)
    if "torch_dtype" in kwargs:
        given = kwargs.pop("torch_dtype")
        dtype = given if dtype is None else dtype
    if dtype is None:
        dtype = torch.float32 if device == "cpu" else "auto"
    shared = {name: kwargs[name] for name in _SHARED if name in kwargs}
    try:
        base = _base(path, shared)
        tokenizer = _tokenizer(path, base, shared)
        if auto is None:
            auto = _generates(base or path, {} if base else shared)
        model, report = auto.from_pretrained(path, dtype=dtype, output_loading_info=True, **kwargs)
    except OSError as error:
        raise FeynkacError(f"{name_or_path!r} cannot be loaded: {hint(name_or_path)}\n{error}") from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise FeynkacError(f"the weights of {name_or_path!r} are damaged ({error}): fetch them again") from error
    missing = sorted(key for key in report["missing_keys"] if not (unused and key.startswith(unused)))
    if missing:
        raise FeynkacError(
            f"{name_or_path!r} has no weights for {', '.join(missing[:4])}, so that a {type(model).__name__} made "
            "of it would be random there: it is a model of another kind"
        )
    return (model if "device_map" in kwargs else model.to(device)), tokenizer


def _generates(path: str, shared: dict[str, Any]) -> Any:
    """Return the Auto class of a model that generates text."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    encodes = AutoConfig.from_pretrained(path, **shared).is_encoder_decoder
    return AutoModelForSeq2SeqLM if encodes else AutoModelForCausalLM


def _base(path: str, shared: dict[str, Any]) -> str | None:
    """Return the base model of an adapter; None for a model that is whole."""
    from transformers.utils.peft_utils import find_adapter_config_file

    where = {name: value for name, value in shared.items() if name not in ("gguf_file", "trust_remote_code")}
    found = find_adapter_config_file(path, **where)
    if found is None or _has(path, ("config.json",), where):
        return None
    if importlib.util.find_spec("peft") is None:
        raise ImportError(f"{path!r} is an adapter of peft: pip install peft")
    with open(found, encoding="utf-8") as file:
        return str(json.load(file)["base_model_name_or_path"])


def _tokenizer(path: str, base: str | None, shared: dict[str, Any]) -> Any:
    """Load the tokenizer, which may lie beside the model's folder, or with the base model alone."""
    from transformers import AutoTokenizer

    places = [(path, shared)]
    if "subfolder" in shared:
        places.append((path, {name: value for name, value in shared.items() if name != "subfolder"}))
    if base is not None:
        places.append((base, {}))
    for place, where in places[:-1]:
        if _has(place, _TOKENIZER_FILES, where):
            return AutoTokenizer.from_pretrained(place, **where)
    place, where = places[-1]
    return AutoTokenizer.from_pretrained(place, **where)


def _has(path: str, names: tuple[str, ...], where: dict[str, Any]) -> bool:
    """Whether a folder or a repository has one of some files."""
    from transformers.utils.hub import cached_file

    where = {name: value for name, value in where.items() if name not in ("gguf_file", "trust_remote_code")}
    return any(
        cached_file(
            path, name, **where, _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False, _raise_exceptions_for_gated_repo=False,
        ) is not None
        for name in names
    )  # fmt: skip
