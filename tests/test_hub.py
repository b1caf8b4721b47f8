"""A hub that does not answer costs seconds, once, and what is in its cache is used all the same."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from typer.testing import CliRunner

from draft import hub
from draft_cli.app import app


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that has not asked yet and may ask, with a hub of little patience."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "DRAFT_HUB_UNREACHED"):
        monkeypatch.setenv(name, "")  # put back afterwards, whatever is written meanwhile
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hub, "_asked", set())
    monkeypatch.setattr(hub, "SECONDS", 0.5)
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def silent() -> Iterator[tuple[str, list[str]]]:
    """The address of a server that accepts everything and answers nothing, and what it was asked."""
    requests: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept: list[socket.socket] = []

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    kept.append(connection)
                    requests.append(connection.recv(1000).decode(errors="replace").split("\r")[0])

        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", requests
        for connection in kept:
            connection.close()


def answering(status: bytes) -> str:
    """The address of a server that gives one answer."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with server, server.accept()[0] as connection:
            connection.recv(1000)
            connection.sendall(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")

    threading.Thread(target=serve, daemon=True).start()
    return f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_hub_that_swallows_packets_is_asked_once_and_then_left_alone(clean, silent, monkeypatch) -> None:
    address, requests = silent
    monkeypatch.setenv("HF_ENDPOINT", address)
    hub.ask_once()
    hub.ask_once()
    assert len(requests) == 1
    assert hub.unreached() == "the hub did not answer within 0.5 s" and hub.switched_off() == "HF_HUB_OFFLINE"
    assert sys.modules["huggingface_hub.constants"].HF_HUB_OFFLINE


@pytest.mark.parametrize("status", [b"200 OK", b"401 Unauthorized", b"404 Not Found"])
def test_a_hub_that_answers_is_used(clean, monkeypatch, status: bytes) -> None:
    monkeypatch.setenv("HF_ENDPOINT", answering(status))
    hub.ask_once()
    assert (hub.unreached(), hub.switched_off()) == ("", "")


def test_no_connection_and_a_broken_hub_are_named(clean, monkeypatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = f"http://127.0.0.1:{server.getsockname()[1]}"
    for address, reason in (
        (closed, "there is no connection to the hub (connection refused)"),
        (answering(b"503 Service Unavailable"), "the hub answers with 503"),
    ):
        monkeypatch.setattr(hub, "_asked", set())
        monkeypatch.setenv("HF_HUB_OFFLINE", "")
        monkeypatch.setenv("HF_ENDPOINT", address)
        hub.ask_once()
        assert hub.unreached() == reason


def test_a_hub_that_is_switched_off_is_not_asked(clean, silent, monkeypatch) -> None:
    address, requests = silent
    monkeypatch.setenv("HF_ENDPOINT", address)
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")
    hub.ask_once()
    assert not requests and hub.unreached() == ""


PIPELINE = """\
name: far
stages:
  train:
    kind: train
    model: owner/far
    prompts: [a cat]
    rewards: {clip_score: {model: other/far}, near: {use: clip_score, model: emoji/clip}, jpeg: {}}
"""


def test_a_check_names_the_weights_that_are_not_here_yet(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "far.yaml").write_text(PIPELINE)
    output = CliRunner().invoke(app, ["check", str(tmp_path / "far.yaml")]).output
    text = "not on this machine yet, a run fetches it from the hub"
    assert f"owner/far: {text} (stages.train.model)" in output
    assert f"other/far: {text} (stages.train.rewards.clip_score.model)" in output
    assert output.count(text) == 2 and "ok: 1 stage" in output
    snapshot = tmp_path / "cache" / "models--owner--far" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model_index.json").write_text("{}")
    assert CliRunner().invoke(app, ["check", str(tmp_path / "far.yaml")]).output.count(text) == 1


@pytest.mark.slow
def test_a_run_without_a_hub_ends_with_one_error(tmp_path: Path, silent) -> None:
    address, requests = silent
    (tmp_path / "far.yaml").write_text(PIPELINE.replace("clip_score: {model: other/far}, ", ""))
    environment = {
        name: value for name, value in os.environ.items() if "OFFLINE" not in name and "proxy" not in name.lower()
    }
    environment |= {"HF_ENDPOINT": address, "HF_HUB_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "draft_cli.app", "run", "far.yaml"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 2 and len(requests) == 1
    error = done.stderr[done.stderr.index("error:") :]
    assert "the hub did not answer within 5 s" in error and "owner/far" in error
    assert "Retry" not in done.stderr and "Traceback" not in done.stderr
