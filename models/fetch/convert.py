"""GGUF files to ordinary Hugging Face folders."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path


def convert(gguf: Path, out: Path) -> None:
    """Turn a GGUF file into an ordinary float32 folder for ``from_pretrained``."""
    with _quiet():
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder, file = str(gguf.parent), gguf.name
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
        loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
        # A model read from GGUF refuses to be saved, though its weights are float32 by now: copy them.
        config = loaded.config
        config.__dict__.pop("quantization_config", None)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(loaded.state_dict())
        model.tie_weights()
        tokenizer.model_max_length = config.max_position_embeddings
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the progress bars and load reports of transformers, and put its settings back.

    The bar of the GGUF reader heeds no setting, so standard error is held back as well; exceptions pass.
    """
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
