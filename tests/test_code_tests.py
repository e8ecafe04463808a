"""Code against tests: what passes is what is right, by any means that the code may try."""

import os

import pytest

from feynkac.models.rewards import CodeTests, run_python
from feynkac.ppl.score import evaluate

TEST = "assert f(2) == 4, f(2)"
NEAR = "assert abs(f(2) - 4) < 1e-9, f(2)"

# Each defines no right f, and would have its test pass.
CHEATS = {
    "an empty result written by hand": """
import os
for fd in range(3, 64):
    for told in (b'""', b'', b'null', b'["value", null, []]'):
        try: os.write(fd, told)
        except OSError: pass
os._exit(0)""",
    "the same through the files of processes": """
import os
for pid in [p for p in os.listdir("/proc") if p.isdigit()] if os.path.isdir("/proc") else []:
    try: fds = os.listdir(f"/proc/{pid}/fd")
    except OSError: continue
    me = os.readlink(f"/proc/{pid}/exe") == os.readlink("/proc/self/exe") and int(pid) in (os.getppid(), os.getpid())
    for fd in fds if me else []:
        try:
            handle = os.open(f"/proc/{pid}/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK)
            os.write(handle, b'""')
        except OSError: pass
def f(x): return 5""",
    "an answer to a question not yet asked": """
import json, os, socket, struct, sys
def say(message):
    data = json.dumps(message).encode()
    for fd in range(3, 16):
        try: os.write(fd, struct.pack("!I", len(data)) + data)
        except OSError: pass
say(["value", ["dict", []], []])
for _ in range(4): say(["value", "", []])""",
    "exec replaced": """
import builtins
builtins.exec = builtins.compile = builtins.eval = lambda *args, **named: None
def f(x): return 5""",
    "an equal to everything": """
class Any:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
def f(x): return Any()""",
    "a number equal to everything": """
class Any(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def f(x): return Any(5)""",
    "a list of such": """
class Any:
    def __eq__(self, other): return True
def f(x): return [Any()]""",
    "a function by its class": """
class Meta(type):
    def __eq__(cls, other): return True
    __hash__ = type.__hash__
class f(metaclass=Meta):
    def __new__(cls, x): return cls
""",
    "the module of messages": """
import json, sys
json.dumps = lambda *args, **named: '["value", "", []]'
for module in list(sys.modules.values()):
    peer = getattr(module, "Peer", None)
    if peer is not None:
        peer.encode = lambda self, value: 5
def f(x): return 5""",
    "names that are not its to define": """
import sys
frame = sys._getframe()
while not hasattr(frame.f_locals.get("self"), "receive"): frame = frame.f_back
peer = frame.f_locals["self"]
def f(x): return 5
def none(x): return 0.0
own = {"__builtins__": ("name", {"abs": none}), "f": ("name", f), "os": ("module", "cheat")}
peer.send(["value", peer.encode(own), []])
while True: peer.answer(peer.receive())""",
    "what belongs to the tests": """
import sys
frame = sys._getframe()
while not hasattr(frame.f_locals.get("self"), "receive"): frame = frame.f_back
peer = frame.f_locals["self"]
def f(x):
    for number in range(20):
        for what in ("call", "get", "iter", "eval", "load", "flush"):
            peer.send(["ask", what, [["yours", number], ["list", []], "__globals__"]])
            if peer.receive()[0] == "ask": break
    return 5""",
    "standard output": """
import sys
class Out:
    def write(self, text): raise SystemExit(0)
    def flush(self): raise SystemExit(0)
sys.stdout = sys.stderr = Out()
def f(x): return 5""",
    "the end of an object": """
import sys, atexit
class End:
    def __del__(self): sys.exit(0)
def f(x):
    End()
    atexit.register(sys.exit, 0)
    return 5""",
    "the end of the process within the call": """
import os
def f(x): os._exit(0)""",
    "an exit within the call": """
import sys
def f(x): sys.exit(0)""",
    "frames and the rubbish heap": """
import gc, sys
def f(x):
    frame = sys._getframe()
    while frame:
        for value in frame.f_locals.values():
            if isinstance(value, str) and "==" in value: return int(value.split("==")[1].split(",")[0])
        frame = frame.f_back
    for value in gc.get_objects():
        if isinstance(value, dict):
            for one in list(value.values()):
                if isinstance(one, str) and one.startswith("assert f"): return 4
    return 5""",
    "standard input": """
import sys
told = sys.stdin.read()
def f(x): return 4 if "assert" in told else 5""",
    "the arguments of processes": """
import os
def f(x):
    seen = b""
    for pid in filter(str.isdigit, os.listdir("/proc")) if os.path.isdir("/proc") else []:
        for name in ("cmdline", "environ"):
            try: seen += open(f"/proc/{pid}/{name}", "rb").read()
            except OSError: pass
    return 4 if b"assert f(2)" in seen else 5""",
    "assertions turned off": """
import builtins, sys
sys.flags = None
builtins.AssertionError = type("Quiet", (Exception,), {})
AssertionError = builtins.AssertionError
def f(x): return 5""",
    "names of its own for everything": """
__builtins__ = {}
__name__ = "tests"
def f(x): return 5""",
    "the tests' process killed": """
import os, signal
def f(x):
    for pid in filter(str.isdigit, os.listdir("/proc")) if os.path.isdir("/proc") else []:
        try:
            if b"examiner" in open(f"/proc/{pid}/cmdline", "rb").read() and int(pid) > os.getpid():
                if os.getppid() == int(open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[1]):
                    os.kill(int(pid), signal.SIGTERM)
        except OSError: pass
    return 5""",
    "a fork that answers": """
import os
def f(x):
    if os.fork() == 0: return 4
    os.wait()
    return 5""",
}


@pytest.mark.parametrize("test", [TEST, NEAR], ids=["equal", "near"])
@pytest.mark.parametrize("cheat", CHEATS)
def test_what_is_not_right_does_not_pass(cheat, test):
    run = run_python(CHEATS[cheat], test, timeout=10)
    assert not run.passed
    assert run.reason


# Tests that are less strict than an equation; each code returns an object that says yes to everything.
YES = """
class Yes:
    def __getattr__(self, name): return Yes()
    def __call__(self, *args, **named): return Yes()
    def _zero(self, *args): return 0.0
    def _true(self, *args): return True
    __sub__ = __rsub__ = __add__ = __abs__ = __float__ = __round__ = __mul__ = _zero
    __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __contains__ = __instancecheck__ = _true
    def __int__(self): return 4
    def __index__(self): return 4
    def __len__(self): return 1
    def __iter__(self): return iter([Yes()])
    def __hash__(self): return 4
    def __bool__(self): return True
    def __ne__(self, other): return False
def f(x): return Yes()
"""


@pytest.mark.parametrize(
    "test",
    [
        "assert f(2) == 4",
        "assert 4 == f(2)",
        "assert not f(2) != 4",
        "assert abs(f(2) - 4) < 1e-9",
        "assert abs(4 - f(2)) < 1e-9",
        "assert f(2) < 5",
        "assert 3 <= f(2)",
        "assert 4 in f(2)",
        "assert f(2) in (4, 5)",
        "assert f(2) in {4: 1}",
        "assert isinstance(f(2), int)",
        "assert [f(2)] == [4] and {'a': f(2)} == {'a': 4}",
        "import math\nassert math.isclose(f(2), 4)",
        "assert round(f(2), 3) == 4.0",
        "assert sum(f(2)) == 4",
        "assert list(f(2)) == [4]",
        "import unittest\nunittest.TestCase().assertAlmostEqual(f(2), 4)",
        "import unittest\nunittest.TestCase().assertIn(f(2), [4])",
        "assert not (f(2) - 4)",
        "assert int(f(2)) == 4 and range(9)[f(2)] == 4",
    ],
)
def test_an_object_that_says_yes_is_no_number(test):
    run = run_python(YES, test, timeout=10)
    assert not run.passed
    assert run.reason.startswith(("AssertionError", "TypeError"))


@pytest.mark.parametrize("name", ["all", "abs", "isinstance", "len", "AssertionError"])
def test_pythons_own_names_are_those_of_the_tests(name):
    code = f"def {name}(*args): return True\ndef f(x): return 5"
    run = run_python(code, f"assert {name} and f(2) == 5")
    assert not run.passed
    assert run.reason == f"it redefines {name!r}, which is Python's own in its tests"
    assert run_python(code, "assert f(2) == 5").passed


RIGHT = {
    "plain values": (
        r"""
def f(x): return x
""",
        r"""
for x in (None, True, 3, -(2**80), 1.5, float('inf'), 'a\ud800é', b'ab', bytearray(b'c'), 1j, (1, [2, {3}]),
          {1: 'a', (2, 'b'): [None]}, frozenset({1}), range(3), int):
    assert f(x) == x and type(f(x)) is type(x)
assert f(float('nan')) != f(float('nan')) and f(x=2) == 2
""",
    ),
    "counters, deques, fractions": (
        """
from collections import Counter, defaultdict, deque
from fractions import Fraction
def f(s): return Counter(s)
def g(s):
    d = defaultdict(list)
    d[s].append(1)
    return d
def h(): return deque([1, 2]), Fraction(1, 3)
""",
        """
assert f('aab') == {'a': 2, 'b': 1} and f('aab').most_common(1) == [('a', 2)] and g('x') == {'x': [1]}
from fractions import Fraction as F
assert list(h()[0]) == [1, 2] and h()[1] == F(1, 3)
""",
    ),
    "changes in place": (
        """
def f(xs, seen=None):
    xs.sort()
    if seen is not None: seen['n'] = len(xs)
""",
        """
xs, seen = [3, 1, 2], {}
assert f(xs, seen=seen) is None
assert xs == [1, 2, 3] and seen == {'n': 3}
""",
    ),
    "classes": (
        """
class Stack:
    def __init__(self, xs=()): self.xs = list(xs)
    def push(self, x):
        self.xs.append(x)
        return self
    def pop(self): return self.xs.pop()
    def __len__(self): return len(self.xs)
    def __iter__(self): return iter(self.xs)
    def __getitem__(self, i): return self.xs[i]
    def __eq__(self, other): return self.xs == other.xs
    def __repr__(self): return f'Stack({self.xs})'
    def __add__(self, other): return Stack(self.xs + other.xs)
    def __lt__(self, other): return len(self) < len(other)
    @classmethod
    def of(cls, *xs): return cls(xs)
DEFAULT = Stack([7])
""",
        """
s = Stack()
s.push(1).push(2)
assert len(s) == 2 and s.pop() == 2 and list(s) == [1] and s[0] == 1 and 1 in s
assert s == Stack([1]) and s != Stack([2]) and repr(s) == str(s) == 'Stack([1])' and isinstance(s, Stack)
assert (s + Stack([2])).xs == [1, 2] and s < Stack([1, 2]) and Stack.of(1).xs == [1] and s is s
s.xs = [5]
assert s.pop() == 5 and not s and DEFAULT.xs == [7] and not isinstance(3, Stack)
""",
    ),
    "exceptions": (
        """
class Bad(ValueError): pass
class Worse(Bad): pass
def f(x):
    if x < 0: raise Worse(f'no {x}')
    return [][x]
""",
        """
try: f(-1)
except Bad as error: assert error.args == ('no -1',) and isinstance(error, ValueError)
else: raise AssertionError('nothing raised')
try: f(3)
except IndexError: pass
else: raise AssertionError('nothing raised')
""",
    ),
    "functions of the tests": (
        """
def twice(g, x): return g(g(x))
def total(xs): return sum(xs)
def by(xs, key): return sorted(xs, key=key)
""",
        """
assert twice(lambda x: x + 3, 1) == 7 and total(x * x for x in range(4)) == 14
assert by(['bb', 'a'], key=len) == ['a', 'bb'] and twice(str.upper, 'a') == 'A'
""",
    ),
    "functions of the code": (
        """
def add(n): return lambda x: x + n
""",
        """
assert add(2)(3) == 5 and list(map(add(1), [1])) == [2]
""",
    ),
    "objects of the tests": (
        """
def depth(t): return 0 if t is None else 1 + max(depth(t.left), depth(t.right))
def swap(t):
    t.left, t.right = t.right, t.left
    return t
""",
        """
class Tree:
    def __init__(self, left=None, right=None): self.left, self.right = left, right
t = Tree(Tree(Tree()))
assert depth(t) == 3
assert swap(t) is t and t.left is None and depth(t.right) == 2
""",
    ),
    "generators": (
        """
def f(n):
    for i in range(n): yield i
""",
        """
assert list(f(3)) == [0, 1, 2] and next(f(1)) == 0 and sum(f(4)) == 6
""",
    ),
    "check": (
        """
def f(x): return 2 * x
""",
        """
def check(candidate):
    assert candidate(2) == 4
check(f)
""",
    ),
    "modules of the code": (
        """
import math
from math import sqrt
def f(x): return x / 3
""",
        """
assert math.isclose(f(2), 2 / 3) and sqrt(4) == 2
""",
    ),
    "arrays": (
        """
import numpy as np
def f(x): return np.asarray(x) * 2
def g(x): return np.mean(x)
""",
        """
assert f([1, 2]).tolist() == [2, 4] and np.allclose(f(np.ones(2)), 2.0) and g([1, 2]) == 1.5
""",
    ),
    "printing": (
        """
def f(x): print('code', x)
""",
        """
f(1)
print('tests')
""",
    ),
}


@pytest.mark.parametrize("what", RIGHT)
def test_what_is_right_passes(what):
    code, tests = RIGHT[what]
    run = run_python(code, tests, timeout=20, memory=4 << 30)
    assert run.passed, run.reason
    if what == "printing":
        assert sorted(run.output.split("\n")) == ["", "code 1", "tests"]


def test_what_the_code_may_not_ask_of_the_tests():
    code = """
def f(*things):
    found = []
    for thing in things:
        for name in ("__class__", "__globals__", "_hidden", "gi_frame", "__init__"):
            try:
                found.append(repr(thing.__getattr__(name)))
            except AttributeError:
                found.append(None)
    return found
"""
    tests = "class A:\n    _hidden = 1\nfound = f(A(), (x for x in 'ab'))\nassert set(found) == {None}, found"
    run = run_python(code, tests)
    assert run.passed, run.reason


def test_an_answer_without_end_is_cut_off():
    run = run_python("def f(x): return 'a' * (1 << 27)", "assert f(2) == 4", timeout=20)
    assert run.reason == "its answers were written over"


def test_the_reward_is_not_fooled():
    reward = CodeTests([TEST, "assert f(3) == 6"], timeout=10)
    codes = ["def f(x): return 2 * x", YES, CHEATS["an empty result written by hand"], CHEATS["exec replaced"]]
    assert evaluate([reward(code) for code in codes]) == [1.0, 0.0, 0.0, 0.0]


def test_nothing_is_left_open():
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("descriptors are counted on Linux alone")
    run_python("x = 1", "assert x == 1")
    before = len(os.listdir("/proc/self/fd"))
    for code in ("x = 1", "import os; os._exit(1)", "while True: pass"):
        run_python(code, "assert x == 1", timeout=0.5)
    assert len(os.listdir("/proc/self/fd")) == before
