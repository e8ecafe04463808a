"""Checkers in processes of their own, and model-written code under limits: how it ends, what is left."""

from __future__ import annotations

import importlib.util
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import checkers
import pytest

import feynkac as fk
from feynkac.models.rewards import Checker, CheckerError, CodeTests, extract_code, run_python
from feynkac.ppl.score import evaluate
from laws import check_unbiased

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="checkers need POSIX processes")


@pytest.fixture
def brief():
    with Checker(checkers.brief, timeout=1.0, workers=2) as checker:
        yield checker


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z" if sys.platform == "linux" else True


def gone(pid, seconds=5.0):
    """Whether a process ends soon."""
    end = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(pid)


# -- trusted functions ------------------------------------------------------------------------------------------


def test_bools_and_numbers_become_scores(brief):
    assert evaluate([brief("short"), brief("not short"), brief("print")]) == [1.0, 0.0, 1.0]
    assert brief.kind == "probability"
    with Checker(checkers.share, workers=1, kind="real") as share:
        assert evaluate([share("abca", "a"), share("abca", "b")]) == [0.5, 0.25]
    with Checker(checkers.share, workers=1, template=lambda text: (text, "b")) as share:
        assert evaluate([share("abca")]) == [0.25]


def test_what_hangs_or_dies_is_worth_what_is_said_and_the_reason_is_kept(brief):
    began = time.monotonic()
    outcomes = dict(zip(words := ["hang", "ok", "sleep", "die", "exit", "fine"], brief.details(words)))
    assert time.monotonic() - began < 8
    assert {word: outcome.reason for word, outcome in outcomes.items()} == {
        "hang": "timeout", "sleep": "timeout", "die": "crash", "exit": "crash", "ok": "", "fine": "",
    }  # fmt: skip
    assert [outcomes[word].value for word in words] == [0, 1, 0, 0, 0, 1]
    assert 1.0 <= outcomes["hang"].seconds < 3
    with Checker(checkers.brief, timeout=0.3, workers=1, kind="real", failed=-5.0) as other:
        assert evaluate([other("hang"), other("ok")]) == [-5.0, 1.0]


def test_what_a_killed_call_started_is_killed_too(brief):
    own = set(_children(os.getpid()))
    evaluate([brief("ok")])
    (worker,) = set(_children(os.getpid())) - own
    seen = []
    watch = threading.Thread(target=lambda: (time.sleep(0.5), seen.extend(_children(worker))))
    watch.start()
    assert brief.details(["child"])[0].reason == "timeout"
    watch.join()
    assert len(seen) == 1
    assert gone(seen[0])
    assert gone(worker)


def _children(pid):
    out = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    return [child for child in map(int, out.split()) if alive(child)]


def test_the_fault_of_the_checker_is_an_error(brief):
    with pytest.raises(CheckerError, match=r"(?s)'brief' raised for \('fail'\).*KeyError: 'what is wrong'"):
        evaluate([brief("fail")])
    assert evaluate([brief("ok")]) == [1.0]
    with Checker(checkers.whatever, workers=1) as checker, pytest.raises(CheckerError, match="TypeError"):
        evaluate([checker("x")])
    with Checker(checkers.slow, workers=1) as checker, pytest.raises(fk.errors.InvalidWeight, match=r"returned 7\.0"):
        evaluate([checker(7)])
    with pytest.raises(TypeError, match=r"'brief': \(<generator.*cannot go to another process"):
        brief(x for x in "ab")
    with pytest.raises(ValueError, match="timeout must be positive"):
        Checker(checkers.brief, timeout=0)


def test_a_worker_that_cannot_import_the_function_says_so(monkeypatch, tmp_path):
    (tmp_path / "passing.py").write_text("def fn(x):\n    return True\n")
    spec = importlib.util.spec_from_file_location("passing", tmp_path / "passing.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "passing", module)
    spec.loader.exec_module(module)
    with (
        Checker(module.fn, workers=1) as checker,
        pytest.raises(CheckerError, match=r"(?s)a worker could not start its function.*No module named 'passing'"),
    ):
        evaluate([checker("x")])


def test_calls_run_side_by_side():
    with Checker(checkers.slow, workers=4, kind="real") as checker:
        evaluate([checker(0), checker(10), checker(20), checker(30)])  # the workers are up
        began = time.monotonic()
        assert evaluate([checker(i) for i in range(1, 5)]) == [1.0, 2.0, 3.0, 4.0]
        assert time.monotonic() - began < 1.5  # one after the other they would take 2 seconds


def test_workers_are_used_again_and_end_with_the_checker():
    checker = Checker(checkers.process, workers=1, kind="real")
    first, second = evaluate([checker("a"), checker("b")])
    assert first == second
    checker.close()
    assert gone(int(first))
    (third,) = evaluate([checker("c")])
    assert third != first
    del checker
    assert gone(int(third))


def test_a_worker_whose_pool_is_killed_ends(tmp_path):
    code = (
        "import checkers, os, sys, threading, time\n"
        "from feynkac.models.rewards import Checker\nfrom feynkac.ppl.score import evaluate\n"
        "c = Checker(checkers.process, workers=1, kind='real')\nprint(int(evaluate([c('x')])[0]), flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env).stdout
    assert gone(int(out))


def test_equal_arguments_of_other_types_are_other_inputs_and_arguments_may_be_mutable():
    with Checker(checkers.kind_of, workers=1, kind="real") as checker:
        assert evaluate([checker(1), checker(1.0), checker(True), checker([1])]) == [1.0, 2.0, 3.0, 4.0]
        changing = [1]
        score = checker(changing)
        changing.append(2)
        assert evaluate([score, checker([1])]) == [4.0, 4.0]
        assert len(checker._details._known) == 4


def test_functions_that_have_no_name_to_import_travel_whole(monkeypatch):
    pytest.importorskip("cloudpickle")
    limit = 3
    with Checker(lambda text: len(text) < limit, workers=1) as checker:
        assert evaluate([checker("ab"), checker("abc")]) == [1.0, 0.0]
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises(ImportError, match="pip install cloudpickle, or put the function into a module"):
        Checker(lambda text: True)


def test_a_checker_in_a_program_is_exact_and_checks_each_input_once(brief):
    @fk.program
    async def model():
        text = ""
        for _ in range(2):
            text += await fk.sample("word", fk.dist.Categorical([0.5, 0.3, 0.2], values=["ab", "abcd", "abcde"]))
            await fk.factor("brief", brief(text).logit(clip=0.1))
        return text

    exact = fk.enumerate_program(model())
    assert len(set(exact.law().values())) > 3
    check_unbiased(model(), fk.SMC(4, ess_threshold=1.0), exact.law(), exact.log_evidence, runs=500)
    # Once by the enumeration, and once by all the runs: each `infer` starts afresh.
    assert list(Counter(epoch for epoch, *_ in brief._details._known).values()) == [3 + 9, 3 + 9]


def test_reward_calls_are_those_that_were_made(brief):
    @fk.program
    async def model():
        text = await fk.sample("word", fk.dist.Categorical([0.5, 0.5], values=["ab", "abcdefg"]))
        outcome = await fk.call("outcome", brief.details, text)
        await fk.factor("brief", brief(text).logit())
        return text, outcome.reason

    posterior = fk.infer(model(), fk.SMC(20, ess_threshold=0.0), seed=0)
    assert posterior.cost.reward_calls == 2
    assert {value[1] for value in posterior.values} == {""}


# -- code that a model wrote ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def f(x): return x + 1", ""),
        ("def f(x): return x", r"AssertionError: f\(1\) is 2"),
        ("def g(x): return x", "NameError: name 'f' is not defined"),
        ("def f(x: return", "SyntaxError: .*<code>"),
        ("while True: pass", "timeout"),
        ("import time; time.sleep(60)", "timeout"),
        ("x = bytearray(10**10)", "memory"),
        ("while True: print('x' * 1000)", "output"),
        ("open('big', 'wb').write(bytes(10**6))", "output"),
        ("import sys; sys.exit(0)", r"it ended itself: SystemExit\(0\)"),
        ("import os; os._exit(0)", "it ended before its tests did, with exit code 0"),
        ("import ctypes; ctypes.string_at(0)", "crash: signal 11"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt: "),
        ("import sys; sys.stdout.close()\ndef f(x): return 2", ""),
        ("import os; os.fork()\ndef f(x): return 2", ""),
        (
            "import os\nfor d in range(3, 999):\n    try: os.write(d, b'no')\n    except OSError: pass",
            ".*written over",
        ),
    ],
)
def test_how_a_run_ends(code, reason):
    if reason == "memory" and sys.platform != "linux":
        pytest.skip("memory is limited on Linux alone")
    began = time.monotonic()
    run = run_python(code, "assert f(1) == 2, 'f(1) is 2'", timeout=1.5)
    assert time.monotonic() - began < 6
    assert run.passed is (reason == "")
    assert re.fullmatch(reason, run.reason.replace(" (<code>, line 1)", "<code>")), run.reason
    assert len(run.output) <= 1 << 16


def test_a_run_has_its_own_folder_environment_and_input(monkeypatch, tmp_path):
    monkeypatch.setenv("SECRET", "hush")
    monkeypatch.chdir(tmp_path)
    code = "import os, sys\nprint('SECRET' in os.environ, os.listdir(), os.getcwd(), input(), sys.argv)"
    run = run_python(code, stdin="a line\n")
    assert run.passed
    secret, listing, folder, *rest = run.output.split()
    assert (secret, listing) == ("False", "[]")
    assert not Path(folder).exists()
    assert Path(folder) != tmp_path
    assert rest == ["a", "line", "['candidate.py']"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("read", ["sys.stdin.read()", "sys.stdin.buffer.read().decode()", "open(0).read()"])
def test_code_may_read_its_input_in_every_way(read):
    run = run_python(f"import sys\nfound = {read}", "assert found == 'a\\nμ\\n', found", stdin="a\nμ\n")
    assert run.passed, run.reason


@pytest.mark.parametrize("timeout", [0.0, -1.0, math.nan, math.inf, 1e12])
def test_limits_that_cannot_be_kept_are_refused(timeout):
    for make in (
        lambda: run_python("", timeout=timeout),
        lambda: CodeTests("assert True", timeout=timeout),
        lambda: Checker(math.sqrt, timeout=timeout),
    ):
        with pytest.raises(ValueError, match="timeout must be positive and at most 1,000,000 seconds"):
            make()
    for make in (lambda: CodeTests("assert True", workers=0), lambda: Checker(math.sqrt, workers=-1)):
        with pytest.raises(ValueError, match="workers must be a positive integer"):
            make()


def test_what_a_run_starts_ends_with_it():
    sleep = "[sys.executable, '-c', 'import time; time.sleep(60)']"
    run = run_python(f"import subprocess, sys\nprint(subprocess.Popen({sleep}).pid)")
    assert run.passed
    assert gone(int(run.output))


def test_faults_of_the_tests_are_errors():
    with pytest.raises(ValueError, match="the tests are not Python: "):
        run_python("x = 1", "assert x ==")
    with pytest.raises(ValueError, match="the tests are not Python"):
        CodeTests(["assert x =="])
    with pytest.raises(ValueError, match="at least one test"):
        CodeTests([])
    with pytest.raises(ValueError, match="output must be at least 1024"):
        run_python("", output=10)


def test_the_reward_is_the_share_of_tests_passed_side_by_side():
    tests = ["assert f(1) == 2", "assert f(2) == 4", "import time; time.sleep(0.7)", "while True: pass"]
    reward = CodeTests(tests, timeout=1.5, workers=8)
    began = time.monotonic()
    text = "Here it is:\n```python\ndef f(x):\n    return 2 * x\n```\nand that is all."
    assert evaluate([reward(text), reward("def f(x): return 2")]) == [0.75, 0.5]
    assert time.monotonic() - began < 5  # two loops of 1.5 seconds and two naps, each for itself, take 6 at the best
    (runs,) = reward.details([text])
    assert [run.reason for run in runs] == ["", "", "", "timeout"]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("x = 1", "x = 1"),
        ("a\n```python\nx = 1\n```\nb\n```\ny = 2\n```", "x = 1\n\ny = 2\n"),
        ("```py\nx = 1", "x = 1"),
        ("``` Python \nx = '```'\n```", "x = '```'\n"),
    ],
)
def test_code_is_taken_out_of_fences(text, code):
    assert extract_code(text) == code


def test_a_run_that_starts_after_an_interrupt_ends_at_once():
    from feynkac.models.rewards.code.programs import _Running

    running = _Running({"timeout": 30})
    running.stop()
    assert running.run(("while True: pass", "")).seconds < 10


@pytest.fixture
def interruptible():
    """A shell that starts the tests in the background has them ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_leaves_nothing_running(interruptible):
    reward = CodeTests(["while True: pass"], timeout=30, workers=2)
    own = set(_children(os.getpid()))
    threading.Timer(0.6, os.kill, (os.getpid(), signal.SIGINT)).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        evaluate([reward(f"x = {i}") for i in range(5)])
    assert time.monotonic() - began < 5
    assert set(_children(os.getpid())) <= own
    with Checker(checkers.brief, timeout=30, workers=2) as checker:
        threading.Timer(0.6, os.kill, (os.getpid(), signal.SIGINT)).start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            evaluate([checker(text) for text in ("hang", "sleep", "child")])
        assert time.monotonic() - began < 5
        assert set(_children(os.getpid())) <= own
        assert evaluate([checker("ok")]) == [1.0]
