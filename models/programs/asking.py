"""How programs put a question: as a chat, where the model has a template, else as it stands."""

from __future__ import annotations

from ..language.host import Host
from ..language.texts.text import Text


def ask(lm: Host, question: str) -> Text:
    """Return an empty answer to a question."""
    return lm.prompt([{"role": "user", "content": question}] if lm.chats else question)


def numbered(items: tuple[str, ...]) -> str:
    """Return items a line each, with their numbers in brackets, from 1."""
    return "\n".join(f"[{i}] {item}" for i, item in enumerate(items, 1))
