"""Jobs on their way to other processes, and exceptions on their way back: by cloudpickle, as Ray has it."""

from __future__ import annotations

import os
import platform
import traceback
from pathlib import Path
from typing import Any

from ...ppl.errors import CannotSend, WorkerError
from ...ppl.sites import short
from .job import Job

_HOME = str(Path(__file__).parents[2])


def pickled(job: Job) -> bytes:
    """Return a job as it is sent. Raises CannotSend, naming the model."""
    from ray import cloudpickle

    def refusal(what: Any) -> Exception | None:
        try:
            cloudpickle.dumps(what)
        except Exception as error:
            return error
        return None

    if (error := refusal(job)) is None:
        return bytes(cloudpickle.dumps(job))
    if not job.made:
        what = f"what {short(job.models, 60)} refers to cannot be sent to workers"
        fix = "make it inside the function, which each worker calls once"
    elif refusal(job.engine) is not None:
        what, fix = f"{short(job.engine, 80)} cannot be sent to workers", "give it functions that are"
    else:
        models = job.models if isinstance(job.models, list) else [job.models]
        bad = next((model for model in models if refusal(model) is not None), models[0])
        what = f"{short(bad, 80)} cannot be sent to workers"
        fix = "pass a function that makes the models, which each worker calls once, in place of them"
    raise CannotSend(f"{what} ({type(error).__name__}: {error}): {fix}") from error


class _Bare:
    """Stands for an exception that cannot be pickled, as one whose ``__init__`` takes other things than ``args``."""

    def __init__(self, error: Exception) -> None:
        self._parts = type(error), error.args, vars(error)

    def __reduce__(self) -> Any:
        return _made, self._parts


def _made(kind: type[Exception], args: tuple[Any, ...], state: dict[str, Any]) -> Exception:
    error = kind.__new__(kind, *args)
    vars(error).update(state)
    return error


def carried(error: Exception) -> Any:
    """Return an exception as it can be sent, with where it was raised, in code that is not ours, in a note."""
    from ray import cloudpickle

    frames = traceback.extract_tb(error.__traceback__)
    others = [frame for frame in frames if not frame.filename.startswith(_HOME)] or frames
    lines = "".join(traceback.format_list(others)).rstrip()
    error.add_note(f"feynkac: raised in process {os.getpid()} on {platform.node()}:\n{lines}")
    for sent in (error, _Bare(error)):
        try:
            if type(cloudpickle.loads(cloudpickle.dumps(sent))) is type(error):
                return sent
        except Exception:
            continue
    other = WorkerError(f"{type(error).__name__}: {error}")
    vars(other)["__notes__"] = error.__notes__
    return other
