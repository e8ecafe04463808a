"""The command ``python -m feynkac``."""

import importlib.metadata

import pytest

import feynkac
from feynkac.__main__ import extras, main


def test_it_says_what_is_here(capsys):
    pytest.importorskip("torch")
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert f"feynkac {feynkac.__version__}" in printed
    assert "[text]" in printed
    assert "cpu" in printed
    assert "smollm2" in printed


def test_extras_are_those_of_the_package_and_say_what_is_missing(monkeypatch):
    named = set(importlib.metadata.metadata("feynkac").get_all("Provides-Extra")) - {"all", "dev", "docs"}
    assert extras().keys() == named

    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    assert extras()["progress"] == ["rich"]


def test_wrong_commands_are_said_to_be_so(capsys):
    assert main(["fly"]) == 2
    assert "no command is called 'fly'" in capsys.readouterr().err
    assert main(["bench", "nothing"]) == 2
    assert "token_smc" in capsys.readouterr().err


def test_benchmarks_are_listed(capsys):
    assert main(["bench"]) == 0
    assert "token_smc" in capsys.readouterr().out.splitlines()


def test_fetch_is_a_part_of_it(capsys):
    assert main(["fetch", "--list"]) == 0
    assert "minilm" in capsys.readouterr().out
