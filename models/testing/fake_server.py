"""A server with a language model and rewards, in this process, that goes wrong at will."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from select import select
from types import TracebackType
from typing import Any, Literal

import numpy as np

from .bigram import Bigram, Floats
from .fake_model import FakeModel, Refused, default_reward
from .faults import AS_IT_IS, Faults
from .tiny import tiny_tokenizer

_PATHS = {
    "/v1/completions": "completions",
    "/v1/chat/completions": "chat",
    "/tokenize": "tokenize",
    "/detokenize": "detokenize",
    "/pooling": "pooling",
    "/classify": "classify",
    "/score": "score",
    "/v1/score": "score",
    "/v1/embeddings": "embeddings",
}


class FakeServer:
    """A server of the OpenAI protocol with vLLM's conventions, for tests; a context manager.

    Behind it is a law that is small enough to be counted up, and a reward that is a function, so that what inference
    over HTTP should find can be known exactly, also while requests get lost. It speaks HTTP on a port of this machine,
    and draws a token with ``/v1/completions`` from its seed alone, as a real server does.

    Args:
        law: the logits (V,) of the next token after some token ids; a `Bigram` by default. With ``lm`` a model that
            runs here, ``lambda ids: lm.next_log_probs(lm.prompt(ids))``.
        model: the name that it answers to.
        context: most tokens of a text.
        logprobs_mode: whether log-probabilities are those that tokens were drawn by ("processed_logprobs"), or the
            law's own, before temperature, cuts and masks ("raw_logprobs"), as vLLM says by default.
        reward: the logits of a string, for ``/classify``, ``/score``, ``/pooling`` and ``/v1/embeddings``; two numbers
            that look random by default.
        step_token: the token at which ``/pooling`` has a step's scores; None is every token.
        tokenizer: that of `tiny_tokenizer` by default.
        api_key: what must be known to be let in.
        tls: the server's side of https; by default it speaks http.
        faults: what goes wrong.

    Attributes:
        faults: the same, to be changed while it runs.
        url: where it is.
        requests: what was asked, as (path, body), in order.
        paths: how often each path was.
        seeds: that were sent, in order.
        aborted: how many requests were given up by who had sent them.
        open: connections that are open now.
        most_open: most that were at once.

    >>> import json, urllib.request
    >>> with FakeServer(model="tiny") as server, urllib.request.urlopen(server.url + "/v1/models") as answer:
    ...     json.load(answer)["data"][0]["id"]
    'tiny'
    """

    def __init__(
        self,
        law: Callable[[tuple[int, ...]], Floats] | None = None,
        *,
        model: str = "fake",
        context: int = 512,
        logprobs_mode: Literal["processed_logprobs", "raw_logprobs"] = "processed_logprobs",
        reward: Callable[[str], Sequence[float]] = default_reward,
        step_token: int | None = None,
        tokenizer: Any = None,
        api_key: str | None = None,
        tls: ssl.SSLContext | None = None,
        faults: Faults | None = None,
    ) -> None:
        self.tokenizer = tokenizer if tokenizer is not None else tiny_tokenizer()
        self.model, self.context, self.api_key, self.tls = model, context, api_key, tls
        self.faults = faults or Faults()
        self._model = FakeModel(
            law or Bigram(len(self.tokenizer)),
            self.tokenizer,
            eos=self.tokenizer.eos_token_id,
            context=context,
            processed=logprobs_mode == "processed_logprobs",
            reward=reward,
            step_token=step_token,
        )
        self.requests: list[tuple[str, Any]] = []
        self.paths: Counter[str] = Counter()
        self.seeds: list[int] = []
        self.most_open = self.aborted = 0
        self._sockets: set[socket.socket] = set()
        self._turn = threading.Lock()
        self._chance = np.random.default_rng(self.faults.seed)
        self._port = 0
        self._server: ThreadingHTTPServer | None = None

    def __enter__(self) -> FakeServer:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Where it is."""
        return f"http{'s' if self.tls else ''}://127.0.0.1:{self._port}"

    @property
    def open(self) -> int:
        """Connections that are open now."""
        return len(self._sockets)

    def start(self) -> None:
        """Begin to answer, at the port of before if there was one."""
        server = _Listening(("127.0.0.1", self._port), _Handler)
        server.fake = self
        if self.tls is not None:
            server.socket = self.tls.wrap_socket(server.socket, server_side=True)
        self._server, self._port = server, server.server_address[1]
        threading.Thread(target=server.serve_forever, args=(0.02,), name="feynkac-fake-server", daemon=True).start()

    def stop(self) -> None:
        """Close every connection, and accept none until the next start."""
        with self._turn:
            server, self._server = self._server, None
        if server is not None:
            self._end(server)

    def _end(self, server: ThreadingHTTPServer) -> None:
        server.shutdown()
        server.server_close()
        with self._turn:
            for each in self._sockets:
                _hang_up(each)

    # What the handlers of connections ask

    def opened(self, connection: socket.socket) -> None:
        """Note a connection."""
        with self._turn:
            self._sockets.add(connection)
            self.most_open = max(self.most_open, len(self._sockets))

    def closed(self, connection: socket.socket) -> None:
        """Note that it is no more."""
        with self._turn:
            self._sockets.discard(connection)

    def models(self) -> dict[str, Any]:
        """Answer ``/v1/models``."""
        known = {"id": self.model, "object": "model", "max_model_len": self.context}
        return {"object": "list", "data": [{k: v for k, v in known.items() if k not in self.faults.lacks}]}

    def lets_in(self, header: str | None) -> bool:
        """Whether a request has the key."""
        return self.api_key is None or header == f"Bearer {self.api_key}"

    def fate(self, path: str, body: Any) -> str:
        """Note a request, and return what becomes of it: "answered", or a fault."""
        faults = self.faults
        with self._turn:
            self.requests.append((path, body))
            self.paths[path] += 1
            if "seed" in body:
                self.seeds.append(body["seed"])
            if self._server is None:  # it is about to be gone
                return "reset"
            if len(self.requests) == faults.dies_at:
                server, self._server = self._server, None
                threading.Thread(target=self._die, args=(server, faults.back_after), daemon=True).start()
                return "reset"
            if faults.limited > 0:
                faults.limited -= 1
                return "limited"
            chance = self._chance.random()
        for fate in ("unavailable", "reset", "half"):
            chance -= getattr(faults, fate)
            if chance < 0:
                return fate
        return "answered"

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Return the status and what is answered, at once and without HTTP."""
        return self.timed(path, body)[:2]

    def timed(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any], float]:
        """Return the status, what is answered, and the seconds that it takes."""
        lacks = self.faults.lacks
        if path not in _PATHS or path in lacks:
            return 404, {"detail": "Not Found"}, 0.0
        if body.get("model", self.model) != self.model:
            refused = Refused(404, f"The model `{body['model']}` does not exist.", "model")
            return refused.status, refused.body, 0.0
        try:
            said = getattr(self._model, _PATHS[path])({k: v for k, v in body.items() if k not in lacks})
        except Refused as refused:
            return refused.status, refused.body, 0.0
        except (KeyError, TypeError, ValueError) as error:
            return 400, Refused(400, f"{type(error).__name__}: {error}").body, 0.0
        drawn = said.get("usage", {}).get("completion_tokens", 0)
        self._spoil(said)
        return 200, {"model": self.model, **said}, self.faults.seconds + self.faults.seconds_per_token * drawn

    def _spoil(self, said: dict[str, Any]) -> None:
        """Leave fields out, and put others wrong."""
        faults = self.faults
        for part in (said, *said.get("choices", ())):
            for name in faults.lacks:
                part.pop(name, None)
        if faults.log_prob is not AS_IT_IS:
            for choice in said.get("choices", ()):
                if choice.get("logprobs") and choice["logprobs"].get("token_logprobs"):
                    choice["logprobs"]["token_logprobs"][0] = faults.log_prob
        if faults.reorders:
            for name in ("choices", "data"):
                if name in said:
                    said[name].reverse()

    def _die(self, server: ThreadingHTTPServer, back_after: float | None) -> None:
        self._end(server)
        if back_after is not None:
            time.sleep(back_after)
            self.start()


class _Listening(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256
    fake: FakeServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of connections that are closed from the other side."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Listening

    def setup(self) -> None:
        super().setup()
        self.server.fake.opened(self.connection)

    def finish(self) -> None:
        self.server.fake.closed(self.connection)
        super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        """Answer what is looked up."""
        if not self._known():
            return
        if self.path == "/v1/models":
            self._say(200, self.server.fake.models())
        else:
            self._say(200 if self.path == "/health" else 404, {})

    def do_POST(self) -> None:
        """Answer what is asked, or let it go wrong."""
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        if not self._known():
            return
        body = json.loads(raw)
        fake = self.server.fake
        fate = fake.fate(self.path, body)
        if fate == "reset":
            self.close_connection = True
            _hang_up(self.connection)
        elif fate == "unavailable":
            self._say(503, {"error": {"message": "overloaded"}})
        elif fate == "limited":
            self._say(429, {"error": {"message": "slow down"}}, fake.faults.retry_after)
        else:
            status, said, seconds = fake.timed(self.path, body)
            if seconds and select([self.connection], [], [], seconds)[0]:  # who asked has hung up
                fake.aborted += 1
                self.close_connection = True
            else:
                self._say(status, said, half=fate == "half")

    def _known(self) -> bool:
        header = self.headers.get("Authorization")
        if self.server.fake.lets_in(header):
            return True
        self._say(401, {"error": {"message": f"no such key: {header}"}})  # there are servers that repeat it
        return False

    def _say(self, status: int, said: dict[str, Any], retry_after: str | None = None, half: bool = False) -> None:
        body = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if retry_after is not None:
            self.send_header("Retry-After", retry_after)
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if half else body)
        self.wfile.flush()
        if half:
            self.close_connection = True
            _hang_up(self.connection)


def _hang_up(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it is gone already
        connection.shutdown(socket.SHUT_RDWR)
