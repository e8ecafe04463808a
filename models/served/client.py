"""How a server is spoken to: a wave of requests at once, within its limits, each of them again where it got lost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import threading
import weakref
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlsplit

from ...ppl.cost import OutOfTime, charge, seconds_left
from ...ppl.errors import ServerError
from ...ppl.lazy import needing
from ...ppl.running.calls import background
from ...ppl.sites import short
from .gate import Gate
from .key import Key

with needing("a model behind a server", "server"):
    import httpx2
    import orjson

T = TypeVar("T")

_LOCAL = ("localhost", "127.0.0.1", "::1")
_CONNECT = 10.0
"""Seconds to wait for a connection, which depend on nothing that is drawn."""
_LONGEST = 20.0
"""Longest pause before a request is sent again, in seconds, unless the server asks for a longer one."""
_SETTLE = 5.0
"""Seconds that an interrupt waits for requests to be cancelled."""
_SHOWN = 400
"""Characters of an answer's body that an error shows."""
_KEPT = 4000
"""Characters of it that an error holds."""
_TOO_LONG = (
    "input_tokens",
    "maximum context length",
    "maximum model length",
    "context_length_exceeded",
    "max_tokens must be at least 1",
)
"""What servers say, in one way or another, of a text that is too long, or leaves no room for an answer."""
_AGAIN = frozenset({408, 429, 500, 502, 503, 504})
_LATE = frozenset({408, 504})
"""Those of them that say that it took too long, be it a server or a proxy before it."""


@dataclass
class _Trouble(Exception):
    """A request that brought no answer.

    Attributes:
        what: happened.
        status: of the answer, if there was one.
        body: of the answer.
        again: whether the request may be sent again.
        tells: whether what was to be the answer may have been the reason: long ones are late, or cut short.
        late: whether more time may help.
        wait: seconds that the server asks for.
        remedy: what to do.
    """

    what: str
    status: int | None = None
    body: str = ""
    again: bool = True
    tells: bool = False
    late: bool = False
    wait: float = 0.0
    remedy: str = "check the URL, that the server runs, and its log"


@dataclass(eq=False)
class _Request:
    method: str
    path: str
    body: bytes | None = None
    weight: int = 0
    same_seed: bool = True
    sent: int = 0


class _Line:
    """The connections of a client on one event loop."""

    def __init__(self, client: Client) -> None:
        self.loop = asyncio.get_running_loop()
        self.gate = Gate(client.limit, client.tokens_in_flight)
        self.answered = 0
        local = urlsplit(client.url).hostname in _LOCAL
        self.http = httpx2.AsyncClient(
            headers={"Content-Type": "application/json", "User-Agent": "feynkac", **client.key.headers},
            # What certificates to trust takes long to read, and is not asked without TLS.
            verify=client.verify if client.url.startswith("https:") else False,
            limits=httpx2.Limits(max_connections=client.limit, max_keepalive_connections=client.limit),
            trust_env=not local,  # the environment's proxies know no server of this machine
        )


class Client:
    """A server as models and rewards speak to it: requests go out together, and answers come in order.

    A request that was lost (no connection, a reset, an answer cut short, a time-out, status 408, 429, 500, 502, 503 or
    504) is sent again after a pause: a random part of 0.1 s, 0.2 s, 0.4 s and so on, at most 20 s ("full jitter"), and
    what ``Retry-After`` asks for besides, which all requests wait for. It is the same request, with the same seed in
    it: whether an answer is late, or cut short, depends on what is in it, so that another draw would have another law.
    Where seeds mean nothing to the server, a late answer is an error. Any other status is an error at once.

    One client serves any number of threads; a copy in another process has connections of its own, and looks for the key
    in the environment there.

    Args:
        url: of the server, such as ``"http://localhost:8000"``, with or without a last ``/v1``.
        api_key: what lets us in; by default ``FEYNKAC_API_KEY`` of the environment, or ``OPENAI_API_KEY`` for OpenAI.
            It is sent, and neither shown nor saved.
        limit: most requests under way at once.
        tokens_in_flight: most tokens under way at once, by the weights that requests come with; None is any number.
        timeout: seconds to wait for an answer; doubled whenever one was late.
        retries: how often a request is sent again. A 429 counts only where no other request got through meanwhile.
        backoff: the first pause, in seconds.
        verify: whether certificates are checked, or an ``ssl.SSLContext`` that does.

    Raises ValueError for a URL that is none of http or https, or holds credentials, and for limits that are none.

    >>> Client("https://example.org/v1", api_key="sk-secret")
    <Client https://example.org>
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        limit: int = 64,
        tokens_in_flight: int | None = None,
        timeout: float = 600.0,
        retries: int = 5,
        backoff: float = 0.1,
        verify: Any = True,
    ) -> None:
        host = _check_url(url)
        if limit < 1 or (tokens_in_flight is not None and tokens_in_flight < 1):
            raise ValueError(f"the limits must be 1 or more, not {limit} requests and {tokens_in_flight} tokens")
        if not (timeout > 0 and retries >= 0 and backoff >= 0):
            raise ValueError(f"timeout, retries and backoff must not be negative: {timeout}, {retries}, {backoff}")
        self.url = url.rstrip("/").removesuffix("/v1")
        self.key = Key(host, api_key)
        self.limit, self.tokens_in_flight = limit, tokens_in_flight
        self.timeout, self.retries, self.backoff = timeout, retries, backoff
        self.verify = verify
        self._line: _Line | None = None
        self._jitter = random.Random()

    def __repr__(self) -> str:
        return f"<Client {self.url}>"

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_line": None}

    def __copy__(self) -> Client:
        return self

    def __deepcopy__(self, _: Any) -> Client:
        return self

    def post(
        self,
        path: str,
        payloads: Sequence[dict[str, Any]],
        *,
        weights: Sequence[int] | None = None,
        same_seed: bool = True,
        refusals: bool = False,
    ) -> list[Any]:
        """Send payloads as JSON, all at once, and return what the server answered, parsed and in their order.

        Every request that was sent is charged, to the row of its payload.

        Args:
            path: such as ``"/v1/completions"``.
            payloads: what to send.
            weights: tokens that each will have under way, for ``tokens_in_flight``.
            same_seed: whether a payload sent again has the same answer, so that it may be where it was late.
            refusals: whether a payload that is refused by status 400 or 422 has the `ServerError` for its answer, which
                else is raised.

        Raises ServerError, when all other requests have been cancelled; so they are by an interrupt.
        """
        bodies = [orjson.dumps(payload, option=orjson.OPT_SERIALIZE_NUMPY) for payload in payloads]
        each = [0] * len(bodies) if weights is None else weights
        requests = [_Request("POST", path, body, int(n), same_seed) for body, n in zip(bodies, each, strict=True)]
        try:
            return _wait(self._together(requests, refusals))
        finally:
            charge(requests=[request.sent for request in requests])

    def get(self, path: str) -> Any:
        """Return what the server answers to a GET of a path, parsed. Raises ServerError."""
        return _wait(self._together([_Request("GET", path)], False))[0]

    def close(self) -> None:
        """Close the connections; the next request opens new ones."""
        line, self._line = self._line, None
        if line is not None and line.loop is background("served"):
            _wait(line.http.aclose())

    async def _together(self, requests: Sequence[_Request], refusals: bool) -> list[Any]:
        tasks = [asyncio.ensure_future(self._answer(request, refusals)) for request in requests]
        try:
            return await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise

    async def _answer(self, request: _Request, refusals: bool) -> Any:
        """Send a request until it is answered."""
        line = self._connected()
        tries, timeout, answered = 0, self.timeout, line.answered
        while True:
            try:
                async with line.gate.through(request.weight):
                    request.sent += 1
                    answer = await self._send(line, request, timeout)
                line.answered += 1
                return answer
            except _Trouble as error:
                trouble = error  # what is raised below must not have it for its context: it may repeat the key
            if refusals and not trouble.again and trouble.status in (400, 422):
                return self._error(request, trouble)
            # Where others got through since the last time, the server is not ill but slow: this one's turn will come.
            tries += not (trouble.status == 429 and line.answered > answered)
            answered = line.answered
            self._may_go_on(request, trouble, tries)
            if trouble.late:
                timeout *= 2
            if trouble.wait:
                line.gate.shut(trouble.wait)
            await asyncio.sleep(self._jitter.random() * min(_LONGEST, self.backoff * 2 ** max(0, tries - 1)))

    def _connected(self) -> _Line:
        """Return the connections on the loop that now runs; only its thread makes them."""
        line = self._line
        if line is None or line.loop is not asyncio.get_running_loop():
            line = self._line = _Line(self)
            weakref.finalize(self, _leave, line.http, line.loop, os.getpid()).atexit = False
        return line

    def _may_go_on(self, request: _Request, trouble: _Trouble, tries: int) -> None:
        """Raise ServerError unless a request may be sent again."""
        if trouble.again and trouble.tells and not request.same_seed:
            trouble.remedy = (
                "the server promises no seeds, so that asking again would favour short answers; raise timeout= "
                f"(now {self.timeout:g} s) or ask for fewer tokens"
            )
        elif trouble.wait > self.timeout:
            trouble.what += f" and asks to wait {trouble.wait:,.0f} s"
            trouble.remedy = f"come back then, or raise timeout= (now {self.timeout:g} s)"
        elif trouble.again and tries <= self.retries:
            return
        elif trouble.again:
            trouble.what += f", {tries} times"
        raise self._error(request, trouble)

    def _error(self, request: _Request, trouble: _Trouble) -> ServerError:
        url = self.url + request.path
        body = self.key.hide(trouble.body)
        shown = f": {short(body, _SHOWN)}" if body else ""
        message = f"{request.method} {url} {self.key.hide(trouble.what)}{shown}; {trouble.remedy}"
        return ServerError(message, url, trouble.status, body[:_KEPT])

    async def _send(self, line: _Line, request: _Request, timeout: float) -> Any:
        """Send a request once, and return what the answer says. Raises _Trouble."""
        limits = httpx2.Timeout(timeout, connect=min(timeout, _CONNECT), pool=None)
        message = line.http.build_request(request.method, self.url + request.path, content=request.body, timeout=limits)
        try:
            response = await line.http.send(message, stream=True)
        except httpx2.ReadTimeout:
            raise _late(timeout) from None
        except httpx2.TransportError as error:
            raise _unreached(error) from None
        try:
            content = await response.aread()
        except httpx2.ReadTimeout:
            raise _late(timeout) from None
        except (httpx2.TransportError, httpx2.DecodingError) as error:
            what = f"was answered by half ({error or type(error).__name__})"
            raise _Trouble(what, response.status_code, tells=True) from None
        finally:
            await response.aclose()
        if response.status_code == 200:
            return _parsed(content)
        _refused(response, content.decode(errors="replace"), self.key)


def client_of(server: str | Client, api_key: str | None) -> Client:
    """Return what speaks to a server, given as its URL or as a client. Raises ValueError for a client and a key."""
    if isinstance(server, str):
        return Client(server, api_key=api_key)
    if api_key is not None:
        raise ValueError(f"{server!r} has its key already: leave out api_key=, or give it to the client")
    return server


def too_long(error: ServerError) -> bool:
    """Return whether a server refused what it was sent as too long for its model."""
    return error.status in (400, 422) and any(words in error.body for words in _TOO_LONG)


def _check_url(url: str) -> str:
    """Return the host of a server's URL. Raises ValueError, which shows no credentials."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("the URL of a server looks like 'http://localhost:8000', with http or https and a host")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ValueError(
            f"the URL of the server at {parts.hostname} has more than a host and a path: give a key by api_key= or "
            "FEYNKAC_API_KEY, where it is neither shown nor saved"
        )
    return parts.hostname


def _wait(work: Coroutine[Any, Any, T]) -> T:
    """Do some work on the background loop, which runs no code of users, and wait for it. An interrupt cancels it,
    and so does the end of a budget of seconds.
    """
    loop = background("served")
    ended = threading.Event()
    begun: list[asyncio.Task[T]] = []

    def begin() -> None:
        begun.append(loop.create_task(work))
        begun[0].add_done_callback(lambda _: ended.set())

    def end() -> None:
        if begun:
            begun[0].cancel()
        else:
            work.close()
            ended.set()

    try:
        loop.call_soon_threadsafe(begin)
        if not ended.wait(seconds_left()):
            raise OutOfTime
    except BaseException:
        loop.call_soon_threadsafe(end)
        ended.wait(_SETTLE)
        raise
    return begun[0].result()


def _leave(http: Any, loop: asyncio.AbstractEventLoop, process: int) -> None:
    """Close the connections of a client that is gone."""
    if os.getpid() == process:
        with contextlib.suppress(RuntimeError):  # at the end of the process the loop may be gone, too
            asyncio.run_coroutine_threadsafe(http.aclose(), loop)


def _late(timeout: float) -> _Trouble:
    remedy = "raise timeout=, ask for fewer tokens, or lower limit=, so that fewer requests share the server"
    return _Trouble(f"was not answered in {timeout:g} s", tells=True, late=True, remedy=remedy)


def _unreached(error: Exception) -> _Trouble:
    """Return what an error of the transport, before any answer, amounts to."""
    what = f"did not get through ({str(error) or type(error).__name__})"
    if "CERTIFICATE_VERIFY_FAILED" in what:
        remedy = "give verify= an ssl.SSLContext that trusts the server's certificate"
        return _Trouble(what, again=False, remedy=remedy)
    known = not isinstance(error, httpx2.UnsupportedProtocol | httpx2.LocalProtocolError)
    return _Trouble(what, again=known)


def _parsed(content: bytes) -> Any:
    """Return the data of an answer, which may hold NaN. Raises _Trouble where it is no whole JSON."""
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(content)  # knows NaN and Infinity, which are for those who asked to judge
    except ValueError:
        start = content[:_KEPT].decode(errors="replace")
        raise _Trouble("was answered by half, or by no JSON", 200, start, tells=True) from None


def _refused(response: Any, body: str, key: Key) -> NoReturn:
    """Raise what a status other than 200 amounts to."""
    status = response.status_code
    trouble = _Trouble(f"was answered by status {status}", status, body, again=status in _AGAIN)
    trouble.tells = trouble.late = status in _LATE
    trouble.wait = _seconds(response.headers.get("Retry-After", "")) if trouble.again else 0.0
    if status == 429:
        trouble.remedy = "lower limit= or tokens_in_flight=, or raise retries="
    elif status in (401, 403):
        trouble.remedy = key.remedy
    elif status == 404:
        trouble.remedy = "check the URL, model=, and that the server has this path"
    elif 300 <= status < 400:
        trouble.remedy = f"give the URL that it has moved to, {short(response.headers.get('Location', ''), 200)}"
    elif status < 500:
        trouble.remedy = "the server does not take such a request: see what it says, and its version"
    raise trouble


def _seconds(header: str) -> float:
    """Return how long a Retry-After header, in seconds or a date, asks to wait; 0 where it is neither."""
    with contextlib.suppress(ValueError):
        return max(0.0, float(header))
    with contextlib.suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(header).timestamp() - time())
    return 0.0
