"""How a model's texts begin and go on: prompts, and the strings that are given to a text."""

from __future__ import annotations

import operator
import warnings
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from typing import Any, TypeAlias

from ...ppl.errors import ContextOverflow, PromptWarning, TokenizerMismatch, Unsupported
from ...ppl.sites import short
from .host import Host
from .texts.encoding import Codec, check_string, ending_space
from .texts.text import Reading, Text
from .texts.tree import Node, Tree

Message: TypeAlias = Mapping[str, Any]
_CONTEXT = 8
_LOOK_BACK = 64


class Writer:
    """Makes the texts of a language model.

    Args:
        lm: the model.
        start: the tokens that its decoder begins with where an encoder reads the prompt; else None.
    """

    def __init__(self, lm: Host, start: tuple[int, ...] | None) -> None:
        self.lm = lm
        self.start = start
        self.codec = Codec(lm.tokenizer, lm.vocab_size, repr(lm))

    # A text begins

    def prompt(self, prompt: Any, tokens: Any = None) -> Text:
        """Return a text with an empty response; see `LanguageModel.prompt`."""
        lm = self.lm
        string, tokens = self._read(prompt) if tokens is None else self._given(prompt, tokens)
        self._check_prompt(tokens)
        node = self._root(tokens)
        return Text(
            lm.identity, string, tokens, reading=self._reading(tokens, ()), node=node, lm=lm,
            finish_reason=lm.finish_reason(node, last=-1), fingerprint=self.codec.fingerprint,
        )  # fmt: skip

    def attach(self, text: Text) -> Text:
        """Return an equal text that belongs to the model; see `LanguageModel.attach`."""
        lm = self.lm
        if not isinstance(text, Text):
            raise TypeError(f"{lm!r} goes on from a text, such as lm.prompt('Once'), not from {short(text, 80)}")
        if text.node is not None and text.lm is lm:
            return text
        self._check_tokenizer(text)
        prompt, response = self.codec.known(text.prompt_tokens, repr(text)), self.codec.known(text.tokens, repr(text))
        self._check_prompt(prompt)
        root = self._root(prompt)
        self._check_length(root.length + len(response), "use a model with a longer context")
        node = lm.tree.extend(root, response)
        reading = text.reading
        if not reading.context and not reading.held:
            reading = replace(self._reading(prompt, response), raw=reading.raw)
        reason = text.finish_reason
        if text.identity != lm.identity:  # what ends a text of one model need not end that of another
            reason = lm.finish_reason(node, last=response[-1] if reason == "eos" else -1)
        return replace(
            text, identity=lm.identity, fingerprint=self.codec.fingerprint, node=node, lm=lm, reading=reading,
            finish_reason=reason, _tokens=(),
        )  # fmt: skip

    def _check_tokenizer(self, text: Text) -> None:
        """Raise TokenizerMismatch unless the tokens of a text mean the same to this model."""
        if text.fingerprint and text.fingerprint != self.codec.fingerprint:
            raise TokenizerMismatch(
                f"{text!r} is of {text.identity}, whose tokenizer is not that of {self.lm!r}: its tokens would read as "
                "something else; use lm.prompt(text.prompt).append(str(text))"
            )
        if not text.fingerprint and text.identity != self.lm.identity:
            raise TokenizerMismatch(
                f"{text!r} belongs to {text.identity}, not to {self.lm!r}, and comes from a file that does not tell "
                "their tokenizers apart: attach it to its own model, or use lm.prompt(text.prompt).append(str(text))"
            )

    def _check_prompt(self, tokens: tuple[int, ...]) -> None:
        most = self.lm.prompt_context
        if most is not None and len(tokens) > most:
            raise ContextOverflow(
                f"the prompt has {len(tokens)} tokens, but the {'context' if self.start is None else 'encoder'} of "
                f"{self.lm!r} is {most}: shorten it, or use a model with a longer context"
            )

    def _check_length(self, length: int, remedy: str) -> None:
        most = self.lm.context
        if most is not None and length > most:
            raise ContextOverflow(f"the text has {length} tokens, but the context of {self.lm!r} is {most}: {remedy}")

    def _read(self, prompt: Any) -> tuple[str, tuple[int, ...]]:
        """Return a prompt as a string and its tokens."""
        tokenizer, bos = self.lm.tokenizer, self.lm.tokenizer.bos_token_id
        ends = False
        if isinstance(prompt, str):
            string, tokens = prompt, self.codec.known(tokenizer(check_string(prompt)).input_ids, short(prompt, 80))
            if not tokens and bos is None:
                raise ValueError(f"{self.lm!r} has no begin token, so a prompt must have at least one token")
            tokens = tokens or (bos,)
            ends = self.start is None and len(tokens) > 1 and tokens[-1] in self.lm.eos
        else:
            items = _items(prompt)
            if isinstance(items[0], Mapping):
                string = self._chat(items)
                tokens = self.codec.encode(string)
            else:
                tokens = self.codec.known(_ids(items), "the prompt")
                string = tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False)
        self._check(string, tokens, ends)
        return string, tokens

    def _given(self, prompt: Any, tokens: Any) -> tuple[str, tuple[int, ...]]:
        """Return a prompt as a string and the tokens that are given for it."""
        items = () if isinstance(prompt, str) else _items(prompt)
        if items and not isinstance(items[0], Mapping):
            raise TypeError("tokens=… are those of a prompt that is a string or messages; a prompt may be ids itself")
        string = self._chat(items) if items else check_string(prompt)
        given = self.codec.known(_ids(_items(tokens)), "the prompt")
        self._check(string, given, ends=False)
        return string, given

    def _check(self, string: str, tokens: tuple[int, ...], ends: bool) -> None:
        """Warn of a prompt that begins twice, or that its tokenizer ends where the model is to go on from it."""
        bos, last = self.lm.tokenizer.bos_token_id, self.codec.hidden.get(tokens[-1], "")
        if bos is not None and tokens[:2] == (bos, bos):
            _warn(
                f"the prompt {short(string, 80)} begins with two begin tokens of {self.lm!r}: its tokenizer adds one, "
                "so leave out that of the string"
            )
        if ends and not string.rstrip().endswith(last):
            _warn(
                f"the tokenizer of {self.lm!r} puts the end token {last!r} after the prompt {short(string, 80)}, so "
                "that the model reads it as finished: set tokenizer.add_eos_token = False, or give the tokens without "
                "it, lm.prompt(tokenizer(prompt).input_ids[:-1])"
            )

    def _chat(self, messages: Sequence[Any]) -> str:
        lm = self.lm
        for message in messages:
            if not isinstance(message, Mapping) or "role" not in message:
                raise TypeError(f'a message is a mapping with "role" and "content", not {short(message, 80)}')
        if not lm.chats:
            raise Unsupported(f"{lm!r} has no chat template: give the prompt as a string")
        going = messages[-1]["role"] == "assistant"
        string: str = lm.tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=not going,
            continue_final_message=going,
        )
        return string

    def _root(self, prompt: tuple[int, ...]) -> Node:
        tree: Tree[Node] = self.lm.tree
        return tree.root(prompt) if self.start is None else tree.root(self.start, source=prompt)

    def _reading(self, prompt: tuple[int, ...], response: tuple[int, ...]) -> Reading:
        # With an encoder the response is a string of its own.
        context = ((*prompt, *response) if self.start is None else response)[-_CONTEXT:]
        return Reading(context=context, before=self.codec.decode(context))

    # A text goes on

    def append(self, text: Text, string: str) -> tuple[Text, int]:
        """Return a text with a string after it, and the position at which the string's tokens begin."""
        lm = self.lm
        text = self._open(text)
        before, reading = text.node, text.reading
        assert before is not None
        tokens = self._follow(text, string)
        self._check_length(before.length + len(tokens), "append less, or use a model with a longer context")
        reading = reading.read(self.codec.decode, tokens) if tokens else reading
        node = lm.tree.extend(before, tokens)
        reason = lm.finish_reason(node, last=-1)
        return text.grow(node, reading, string, (None, len(reading.raw)), finish_reason=reason), before.length

    def cut(self, text: Text, to: int) -> Text:
        """Return a text with its first ``to`` response tokens alone; see `Text.cut`."""
        text = self.attach(text)
        node, tokens = text.node, text.tokens
        assert node is not None
        if to == len(tokens):
            return text
        whole = bisect_right(text.ends, to, key=attrgetter("tokens"))
        before = replace(text, steps=text.steps[:whole], ends=text.ends[:whole], finish_reason=None)
        node, end = node.ancestor(text.offset + to), before.end
        reading = self._reading(text.prompt_tokens, ()).read(self.codec.decode, tokens[:to])
        if end.tokens == to or whole == len(text.steps):
            return replace(before, node=node, reading=reading)
        begin = end.begin
        if end.tokens < 0:  # a file of before tells of the last step where it ended, and what it displays
            last, step = text.ends[whole], text.steps[whole]
            begin = max(0, (last.begin if last.shown is None else last.shown) - len(step))
            if len(reading.raw) < begin:
                raise ValueError(
                    f"the file that {text!r} comes from tells of its last step alone where it begins: cut off fewer "
                    "tokens"
                )
        return before.grow(node, reading, reading.raw[begin:], (None, len(reading.raw)))

    def _open(self, text: Text) -> Text:
        """Return where a text goes on: before the end token, if there is one."""
        text = self.attach(text)
        return self.cut(text, len(text.tokens) - 1) if text.finish_reason == "eos" else text

    def encode(self, string: str, after: Text | None) -> tuple[int, ...]:
        """Return the tokens of a string; see `LanguageModel.encode`."""
        if after is None:
            return self.codec.encode(string)
        return self._follow(self._open(after), string)

    def _follow(self, text: Text, string: str) -> tuple[int, ...]:
        node = text.node
        assert node is not None
        top = 0 if self.start is None else text.offset  # after an encoder the response is a string of its own
        first = max(top, node.length - _LOOK_BACK)
        given = text.steps[-1] if text.steps else text.prompt if self.start is None else ""
        lost = ending_space(given) if text.shown is None else ""
        return self.codec.follow(node.tokens(first), string, first == top, lost)

    def stops(self, stop: str | Sequence[str]) -> tuple[tuple[str, ...], frozenset[int]]:
        """Return the stops of a step: strings, and special tokens, which are never displayed, by their ids."""
        several = not isinstance(stop, str | bytes) and isinstance(stop, Iterable)
        given: tuple[Any, ...] = tuple(stop) if several else (stop,)
        known = self.codec.special
        if not given:
            raise ValueError("a step needs a stop to go on to; lm.complete goes on to the text's end")
        for one in given:
            if one not in known and len(self.codec.parts(one)) > 1:
                raise ValueError(
                    f"the stop {one!r} would never be met: special tokens are not displayed; give the token alone"
                )
        return tuple(one for one in given if one not in known), frozenset(known[one] for one in given if one in known)

    def decode_response(self, tokens: Sequence[int]) -> str:
        """Return the string of a response; see `LanguageModel.decode_response`."""
        return self.codec.decode_inside(tokens) if self.start is None else self.codec.decode(tokens)


def _items(prompt: Any) -> Sequence[Any]:
    """Return the messages or tokens of a prompt. Raises TypeError for other things, ValueError where there are none."""
    items = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    if isinstance(items, bytes | bytearray | Mapping) or not isinstance(items, Sequence):
        hint = {bytes: "; decode it first", Text: "; use str(text) or text.full"}.get(type(prompt), "")
        raise TypeError(f"a prompt is a string, chat messages or token ids, not {short(prompt, 80)}{hint}")
    if not items:
        raise ValueError('an empty list is no prompt: give "" to begin with the begin token alone')
    return items


def _ids(items: Sequence[Any]) -> list[int]:
    try:
        if any(isinstance(item, bool) for item in items):
            raise TypeError
        return [operator.index(item) for item in items]
    except TypeError:
        raise TypeError(
            f"a prompt is a string, a list of chat messages or a list of token ids, not {short(items, 80)}"
        ) from None


def _warn(message: str) -> None:
    warnings.warn(message, PromptWarning, stacklevel=6)  # at the line that calls `LanguageModel.prompt`
