"""Functions that the tests of checkers call in other processes, where they must be importable."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time


def brief(text):
    """Answers, hangs, dies or fails, as it is told."""
    if text == "hang":
        while True:
            pass
    if text == "sleep":
        time.sleep(60)
    if text == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if text == "exit":
        os._exit(0)
    if text == "child":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        time.sleep(60)
    if text == "fail":
        raise KeyError("what is wrong")
    if text == "print":
        print("noise" * 1000)
    return len(text) < 6


def share(text, letter):
    """The share of a letter in a text."""
    return text.count(letter) / len(text)


def slow(number):
    """Takes half a second."""
    time.sleep(0.5)
    return number


def whatever(value):
    """Returns something that is not a number."""
    return {"value": value}


def kind_of(value):
    """Tells types apart."""
    return {"int": 1.0, "float": 2.0, "bool": 3.0, "list": 4.0}[type(value).__name__]


def process(_):
    """The id of the process."""
    return os.getpid()
