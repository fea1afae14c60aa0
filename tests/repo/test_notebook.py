"""`pruning_book.start.start`."""

from __future__ import annotations

import pytest

from pruning_book.start import Session, on_colab, start


def test_start_prints_what_it_returns(capsys: pytest.CaptureFixture[str]) -> None:
    session = start("replay")
    printed = capsys.readouterr().out
    assert printed == f"{session}\n"
    assert session.device in ("cpu", "cuda") and not session.live
    assert session.versions["torch"] != "not installed"


def test_the_environment_decides_the_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNING_LIB_MODE", "live")
    assert start().live
    assert not start("replay").live


def test_an_unknown_mode_says_what_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNING_LIB_MODE", "fast")
    with pytest.raises(ValueError, match=r"'fast'.*'replay' or 'live'.*PRUNING_LIB_MODE"):
        start()


def test_missing_packages_are_named() -> None:
    assert "x not installed" in str(Session("cpu", "replay", {"x": "not installed"}))
    assert not on_colab()
