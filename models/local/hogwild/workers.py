"""How a model with rotary embeddings writes texts side by side, on keys and values that it keeps."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray

from ....ppl.errors import OutOfMemory, Unsupported
from ....ppl.keys import Keys, uniform
from ...language.drawing.laws import drawn, log_prob_of, read, tokens_of
from ...language.host import Floats, Tally
from ...language.stepping.together import Board, Play, Times
from ...language.texts.tree import Node
from ..memory.histories import Histories
from ..memory.jobs import Job
from ..memory.kept import Kept, Wave, gather
from ..passes.attention import AttentionForwarder, turn
from ..passes.forward import Forwarder
from ..passes.trial import distance, most_by_rounding, ordinary, trying
from ..weights.staging import send
from ..weights.wrappers import accepted, core
from .blocks import Blocks, Layers, Prompt, Seat, Writing, size
from .turning import Pass, Turn, learn, passing

_HEADROOM = 64
_LOGITS = 2**26
"""Most logits in one pass that keeps them at all positions."""


@dataclass(frozen=True)
class Known:
    """What a pass left of a board: where it sits with all its tokens written, and logits (n, W, V) with its row."""

    seat: Seat
    logits: Wave


@dataclass(frozen=True, eq=False)
class _Task:
    """To write what is written in one board beyond what is in another, which it goes on from."""

    start: Board
    end: Board
    owner: int

    @property
    def seat(self) -> Seat | None:
        """Where the beginning sits; None where it is to be written, too."""
        return None if self.start.seat is None or self.start.seat.blocks is None else self.start.seat

    @property
    def first(self) -> list[int]:
        """How many tokens of each text are written there."""
        return [0 if self.seat is None else len(times) for times in self.start.times]

    def again(self, memory: int) -> int:
        """Return how many tokens are written once more, as they were lost since a memory began."""
        sat, known = self.start.seat, self.start.known
        left = sum(map(len, self.end.times)) - sum(map(len, self.start.times))
        lost = sat is not None and sat.blocks is None and sat.memory == memory
        return lost * sum(map(len, self.start.times)) + left * (known is not None and known.seat.memory == memory)


class LocalWorkers:
    """Writes texts of a model side by side; see `feynkac.models.language.stepping.together`.

    Blocks are kept while a `Board` needs them and memory allows, in half of what was for keys and values. The
    model is tried first: how its layers turn queries and keys is learned, and three texts written one after another
    must be what one text is that has them one after another.

    Raises `Unsupported` for a model whose texts cannot see each other so.
    """

    def __init__(self, forwarder: Forwarder, longest: int | None) -> None:
        model = forwarder.model
        name = type(core(model)).__name__
        config = core(model).config.get_text_config()
        if type(forwarder) is not AttentionForwarder or "position_ids" not in accepted(model):
            raise Unsupported(f"{name} does not keep keys and values by the numbers of their positions")
        if "chunked_attention" in (getattr(config, "layer_types", None) or ()):
            raise Unsupported(f"{name} attends within chunks of a text, which texts side by side have not in common")
        if "mrope_section" in repr(getattr(config, "rope_parameters", None)):
            raise Unsupported(f"{name} has positions in several dimensions (M-RoPE)")
        self.turn = turn(core(model).config.to_dict())
        """The longest cache in which keys are turned as they are in a short one (LongRoPE); None for any."""
        self._forwarder: AttentionForwarder = forwarder
        self._keeps_logits = "logits_to_keep" in accepted(model)
        self._boards: WeakValueDictionary[tuple[tuple[Node, ...], Times], Board] = WeakValueDictionary()
        self._prompts: WeakKeyDictionary[Node, Wave] = WeakKeyDictionary()
        self._passed: WeakKeyDictionary[Node, int] = WeakKeyDictionary()
        """Prompts that were passed, and in which of the model's memories."""
        self._turns: dict[int, Turn | None] = {}
        self._like: Layers = {}
        """What the keys and values of a prompt are like in each layer, without its tokens."""
        self._kept = Kept(sys.maxsize)
        forwarded = forwarder.forwarded
        with forwarder.hold(), trying(model):
            self._turns = learn(model, self._say, min((n for n in (longest, self.turn) if n is not None), default=None))
            self._try(name)
            forwarder.forwarded = forwarded
            forwarder.blocks = self._kept
            forwarder.allot(forwarder.allowance.decide())

    def board(self, nodes: tuple[Node, ...], times: Times) -> Board:
        """Return the one board with these histories and times."""
        board = self._boards.get((nodes, times))
        if board is None:
            board = self._boards[nodes, times] = Board(nodes, times)
        return board

    # Laws, draws and scores

    def draw(self, plays: Sequence[Play], keys: Keys, tally: Tally) -> None:
        """Advance each play to its end, with draws from its own key alone; ``tally[i]`` is of play i."""
        forwarder = self._forwarder
        for group in self._groups(plays):
            tick = 0
            while active := [i for i in group if plays[i].live]:
                live = [(row, w, i) for row, i in enumerate(active) for w in plays[i].live]
                rows, texts, _ = map(list, zip(*live))
                with torch.inference_mode():
                    logits = self.laws([plays[i].board for i in active], active, tally)
                    chances = uniform(keys[active], logits.shape[1], offset=tick * logits.shape[1])[rows, texts]
                    each = logits.flatten(0, 1) if len(live) == logits[..., 0].numel() else logits[rows, texts]
                    chances = forwarder.tensor(chances)
                    tokens, log_probs = tokens_of(read(drawn(each, chances, plays[group[0]].request.sampling)))
                taken: dict[int, list[tuple[int, float]]] = defaultdict(list)
                for (_, _, i), token, log_prob in zip(live, tokens.tolist(), log_probs.tolist()):
                    taken[i].append((token, log_prob))
                for i, pairs in taken.items():
                    plays[i].advance(pairs)
                    _sit(*plays[i].boards[-2:])
                    tally.tokens_out[i] += len(pairs)
                for i in taken:
                    if tick:
                        plays[i].boards[-2].known = None  # nobody goes on from the middle of a step
                tick += 1

    def forced(self, plays: Sequence[Play], owners: Sequence[int], tally: Tally) -> Floats:
        """Return the log-probability (n,) of what plays took; it is charged to ``owners[i]``, or who shares it."""
        total = np.zeros(len(plays))
        with torch.inference_mode():
            for group in self._groups(plays):
                logits = self.laws([plays[i].boards[0] for i in group], [owners[i] for i in group], tally)
                firsts = [(i, row, w, plays[i].drawn[w]) for row, i in enumerate(group) for w in range(logits.shape[1])]
                places = [(i, row, w, 0, taken[0]) for i, row, w, taken in firsts if taken]
                _score(total, plays, logits[:, :, None], places)
                for i in group:
                    _sit(*plays[i].boards[:2])
                self._follow(plays, group, owners, total, tally)
        return total

    def _follow(
        self, plays: Sequence[Play], group: Sequence[int], owners: Sequence[int], total: Floats, tally: Tally
    ) -> None:
        """Add the log-probabilities of what plays took after the first tick, of as many ticks in a pass as will go."""
        span = max(1, _LOGITS // (len(group) * len(plays[group[0]].runs) * self._forwarder.vocab_size))
        at = 1
        while going := [i for i in group if at < len(plays[i].boards) - 1]:
            users: dict[tuple[Board, Board], list[int]] = defaultdict(list)
            for i in going:
                boards = plays[i].boards
                users[boards[at], boards[min(at + span, len(boards) - 1)]].append(i)
            tasks = [_Task(start, end, owners[who[0]]) for (start, end), who in users.items()]
            with self._forwarder.hold():
                for part, seats, logits in self._write(tasks, True, tally):
                    places = []
                    for task, seat in zip(part, seats):
                        task.end.seat = seat
                        for i in users[task.start, task.end]:
                            places += [(i, seat.row, *rest) for rest in _after(plays[i], task.end, at, at + span)]
                    _score(total, plays, logits, places)
            at += span

    def laws(self, boards: Sequence[Board], owners: Sequence[int], tally: Tally) -> Any:
        """Return the logits of the next token of each text of each board, (n, W, V), once what is left is written.

        Those of a text that has no tokens are of its prompt. What is written is charged to the first that needs it.
        """
        with self._forwarder.hold():
            found: dict[Board, tuple[Any, int]] = {}
            tasks: dict[Board, _Task] = {}
            for board, owner in zip(boards, owners):
                if board.known is not None and board.known.logits.logits is not None:
                    found[board] = board.known.logits.logits, board.known.seat.row
                elif board.length == board.prompt.length:
                    logits = self._forwarder.alone(
                        partial(self._prompt, board.prompt, owner, tally), f"a prompt of {board.length} tokens"
                    )[1]
                    found[board] = logits[:, None].expand(-1, len(board.nodes), -1), 0
                elif board not in tasks:
                    tasks[board] = _Task(board, self.board(board.nodes, board.written()), owner)
            for part, seats, logits in self._write(list(tasks.values()), False, tally):
                kept = Wave(logits[:, :, -1])
                for task, seat in zip(part, seats):
                    task.start.known = Known(seat, kept)
                    found[task.start] = kept.logits, seat.row
                self._forwarder.kept.keep(kept)
            return gather([found[board] for board in boards])

    # Passes

    def _write(
        self, tasks: Sequence[_Task], every: bool, tally: Tally
    ) -> Iterator[tuple[Sequence[_Task], Sequence[Seat], Any]]:
        """Write tokens, in as few passes as memory allows.

        Yields for each some of the tasks, where they sit now, and logits (n, W, k, V) of these rows: after the last k
        tokens of each text, or the last alone.
        """
        queue = [list(tasks)] if tasks else []
        while queue:
            part = queue.pop(0)
            written = self._attempt(part, every, tally)
            if written is None:
                queue[:0] = part[: len(part) // 2], part[len(part) // 2 :]
            else:
                yield part, *written

    def _attempt(self, tasks: Sequence[_Task], every: bool, tally: Tally) -> tuple[Sequence[Seat], Any] | None:
        """Write tasks together: where they sit, and logits; None where fewer of them may fit: less is kept then."""
        write = partial(self._together, tasks, every, tally)
        end = tasks[0].end
        what = f"{len(end.nodes)} texts of {end.length} tokens in all"
        written: tuple[Sequence[Seat], Any] | None
        written = self._forwarder.alone(write, what) if len(tasks) == 1 else self._forwarder.unless_short(write)
        return written

    def _together(self, tasks: Sequence[_Task], every: bool, tally: Tally) -> tuple[Sequence[Seat], Any] | None:
        roots = {task.end.prompt: task.owner for task in reversed(tasks)}
        prompts = {root: self._prompt(root, owner, tally)[0] for root, owner in roots.items()}
        seats = self._place(tasks)
        if seats is None:
            return None
        try:
            return seats, self._pass(tasks, seats, prompts, every, tally)
        except BaseException:
            self._kept.drop(seats[0].wave)  # half-written blocks must not be read
            raise

    def _pass(
        self, tasks: Sequence[_Task], seats: Sequence[Seat], prompts: Mapping[Node, Layers], every: bool, tally: Tally
    ) -> Any:
        blocks = seats[0].blocks
        n, workers, _ = blocks.shape
        counts = np.zeros((n, workers), np.int64)
        rows = [seat.row for seat in seats]
        counts[rows] = [[len(times) for times in task.end.times] for task in tasks] - blocks.filled[rows]
        q = int(counts.max())
        ids, times = np.zeros((n, workers, q), np.int64), np.full((n, workers, q), -1)
        behind: dict[Node, list[int]] = defaultdict(list)
        for task, row in zip(tasks, rows):
            behind[task.end.prompt].append(row)
            for w, count in enumerate(counts[row].tolist()):
                if count:
                    begin = int(blocks.filled[row, w])
                    new = task.end.nodes[w].tokens(task.end.prompt.length + begin)
                    ids[row, w, q - count :] = new[:count]
                    times[row, w, q - count :] = task.end.times[w][begin:]
        behind[tasks[0].end.prompt] += {*range(n)} - {*rows}  # where nothing is written, something must be seen, too
        pairs = [(prompts[root], users) for root, users in behind.items()]
        now = Writing(blocks, counts, times, pairs, self._turns)
        logits = self._run(now, ids.reshape(n * workers, q), now.positions, q if every else 1, tally)
        blocks.filled += counts
        for task, row in zip(tasks, rows):
            self._note(task.owner, int(counts[row].sum()), task.again(self._forwarder.memory), tally)
        return logits.unflatten(0, (n, workers))

    def _note(self, owner: int, positions: int, again: int, tally: Tally) -> None:
        """Note positions that were passed, ``again`` of them once more."""
        self._forwarder.forwarded += positions
        self._forwarder.recomputed += again
        tally.forwarded(owner, positions, again)

    def _run(self, now: Pass, ids: NDArray[np.int64], positions: NDArray[np.int64], keep: int, tally: Tally) -> Any:
        """Pass tokens through the model; logits (n, keep, V)."""
        forwarder = self._forwarder
        inputs = {"logits_to_keep": keep} if self._keeps_logits else {}
        tally.calls += 1
        with passing(forwarder.configs, now):
            logits = forwarder.invoke(
                input_ids=forwarder.tensor(ids), position_ids=forwarder.tensor(positions), past_key_values=now,
                use_cache=True, **inputs,
            ).logits  # fmt: skip
        return logits[:, -keep:].float()

    def _prompt(self, root: Node, owner: int, tally: Tally) -> tuple[Layers, Any]:
        """Return the keys and values of a prompt, and the logits (1, V) after it."""
        wave = self._prompts.get(root)
        if wave is not None and wave.state is not None:
            self._kept.touch(wave)
            return wave.state, wave.logits
        again = root.length * (self._passed.get(root) == self._forwarder.memory)
        now = Prompt()
        logits = self._run(now, np.array([root.prompt]), np.arange(root.length)[None], 1, tally)[:, 0]
        self._note(owner, root.length, again, tally)
        self._like = {layer: (keys[:, :0], values[:, :0]) for layer, (keys, values) in now.kept.items()}
        size = sum(x.nbytes for pair in now.kept.values() for x in pair)
        wave = Wave(logits, now.kept, size, lasting=True)
        self._kept.keep(wave)
        self._prompts[root] = wave
        self._passed[root] = self._forwarder.memory
        return now.kept, logits

    # Places

    def _place(self, tasks: Sequence[_Task]) -> list[Seat] | None:
        """Return where the tasks can be written, with their beginnings there; None where fewer of them may fit."""
        kept = self._kept
        first = np.array([task.first for task in tasks])
        end = max(len(times) for task in tasks for times in task.end.times)
        waves = {id(task.seat.wave): task.seat.wave for task in tasks if task.seat is not None}
        if len(waves) == 1 and (seats := _in_place(tasks, first, end)):
            kept.touch(seats[0].wave)
            return seats
        for cap in (end + _HEADROOM, end):
            shape = len(tasks), first.shape[1], cap
            if kept.make_room(size(shape, self._like), lambda wave: id(wave) in waves):
                break
        else:
            if len(tasks) > 1:
                return None
            raise OutOfMemory(
                f"{first.shape[1]} texts of {end} tokens side by side take {size(shape, self._like)} bytes of keys and "
                f"values, and there are {kept.limit} for them: give the model more cache_bytes"
            )
        blocks = Blocks(shape, self._like)
        old = [(task.seat, row) for row, task in enumerate(tasks) if task.seat is not None]
        blocks.copy([seat for seat, _ in old], [row for _, row in old], first[[row for _, row in old]])
        wave = Wave(None, blocks, size(shape, self._like))
        kept.keep(wave)
        return [Seat(wave, row, self._forwarder.memory) for row in range(len(tasks))]

    def _groups(self, plays: Sequence[Play]) -> Iterator[list[int]]:
        """Cut plays into groups that run to their ends one after another: those of a group fit into memory together."""
        going = [i for i, play in enumerate(plays) if play.live or len(play.boards) > 1]
        if going:
            workers = len(plays[0].runs)
            longest = max(max(plays[i].board.lengths) + plays[i].request.k for i in going) + _HEADROOM
            room = self._kept.limit // (2 * size((1, workers, longest), self._like))
            most = max(1, min(room, self._forwarder.max_batch // workers))
            yield from (going[at : at + most] for at in range(0, len(going), most))

    # A trial

    def _say(self, now: Pass, position: int) -> None:
        token = int(ordinary(self._forwarder)[0])
        self._run(now, np.array([[token]]), np.array([[position]]), 1, Tally(1))

    def _try(self, name: str) -> None:
        """Write three texts one after another, so that each stands at the place that it has in one text of all.

        Raises `Unsupported` where what the model gives for them is not what it gives for the one text.
        """
        forwarder, tree = self._forwarder, Histories()
        drawn = np.random.default_rng(0).choice(ordinary(forwarder), 10).tolist()
        prompt, whole = tree.root(tuple(drawn[:3])), tree.root(tuple(drawn))
        truth = forwarder.bare(Job(whole, 0, None, None), True)[0]
        nodes, times, seat = [prompt] * 3, tuple[tuple[int, ...], ...](((),) * 3), None
        for worker, begin, end in ((1, 3, 5), (2, 5, 7), (0, 7, 9), (0, 9, 10)):
            nodes[worker] = tree.extend(nodes[worker], drawn[begin:end])
            board = self.board(tuple(nodes), times)
            board.seat = seat
            logits = self.laws([board], [0], Tally(1))[0, worker]
            gap = distance(logits, truth[end - 1])
            if not gap <= most_by_rounding(forwarder.model):
                raise Unsupported(
                    f"{name} gives other logits for texts side by side than for one text of all: off by {gap:.2g} of "
                    "their spread"
                )
            times, seat = board.written(), board.known.seat


def _in_place(tasks: Sequence[_Task], first: NDArray[np.int64], end: int) -> list[Seat] | None:
    """Let tasks go on in the blocks in which they all sit, those after the first of a seat in free rows; or None."""
    blocks = None if tasks[0].seat is None else tasks[0].seat.blocks
    if blocks is None or any(task.seat is None for task in tasks) or end > blocks.shape[2]:
        return None
    seats: dict[int, Seat] = {}
    claimed: set[Seat] = set()
    for i, task in enumerate(tasks):
        seat = task.seat
        if seat is not None and seat not in claimed and (blocks.filled[seat.row] == first[i]).all():
            claimed.add(seat)
            seats[i] = seat
    forks, free = [i for i in range(len(tasks)) if i not in seats], blocks.free
    if len(forks) > len(free) or 2 * len(tasks) < blocks.shape[0]:
        return None
    sources = [seat for i in forks if (seat := tasks[i].seat) is not None]
    blocks.copy(sources, free[: len(forks)], first[forks])
    seats.update({i: Seat(source.wave, row, source.memory) for i, source, row in zip(forks, sources, free)})
    return [seats[i] for i in range(len(tasks))]


def _sit(before: Board, board: Board) -> None:
    """Let a board sit where the one that it goes on from was written, if that was written anywhere."""
    if before.known is not None and (board.seat is None or board.seat.blocks is None):
        board.seat = before.known.seat


def _after(play: Play, end: Board, first: int, last: int) -> Iterator[tuple[int, int, int]]:
    """Yield the text, the column of logits and the token of all that a play took at some ticks.

    The column is that of the token before, counted from the last that is written in ``end``.
    """
    for w, (taken, length) in enumerate(zip(play.drawn, play.boards[0].lengths)):
        for i in range(first, min(last, len(taken))):
            yield w, length + i - 1 - len(end.times[w]), taken[i]


def _score(total: Floats, plays: Sequence[Play], logits: Any, places: Sequence[tuple[int, int, int, int, int]]) -> None:
    """Add the log-probabilities of tokens to those of their plays: (play, row, text, column, token) for each."""
    if places:
        users, rows, texts, columns, tokens = map(list, zip(*places))
        (given,) = send(logits.device, np.array(tokens))
        log_prob = log_prob_of(logits[rows, texts, columns], given, plays[0].request.sampling)
        np.add.at(total, users, read(log_prob))
