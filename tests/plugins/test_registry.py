"""The registry of models: entries say what the checkpoints say; pulling is verified, complete or not at all, and safe among processes."""

from __future__ import annotations

import errno
import hashlib
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from dig_core.devices import DEVICE
from dig_core.errors import CheckpointError, UnsupportedError
from dig_plugins import models
from dig_plugins.models import cache
from dig_plugins.models.release import entry_of, release

ROOT = Path(models.__file__).parents[2]
SMALL = models.path("adsorb-fcc111")
CONTENT = SMALL.read_bytes()
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.asked.append(self.path)
        kind = Path(self.path).stem
        if kind == "absent":
            self.send_error(404)
            return
        if kind == "broken":
            self.send_error(503)
            return
        body = {"page": b"<html>sign in</html>"}.get(kind, CONTENT)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if kind == "slow":
            self.wfile.write(body[: len(body) // 2])
            time.sleep(1.0)
            self.wfile.write(body[len(body) // 2 :])
        else:
            self.wfile.write(body[: len(body) // 2] if kind == "cut" else body)


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.asked = []
    threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """An empty cache, that need not exist yet."""
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "a cache"))
    return tmp_path / "a cache" / "models"


def url(server, name: str) -> str:
    return f"http://127.0.0.1:{server.server_port}/{name}.safetensors"


def files(home: Path) -> set[str]:
    """What is in the cache; a lock is no content."""
    return {p.name for p in home.iterdir() if p.suffix != ".lock"} if home.exists() else set()


def offline(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(cache, "urlopen", refuse)


# Entries ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(models.index()))
def test_entries_are_what_the_checkpoints_say(name):
    entry = models.index()[name]
    assert {"system", "energy", "temperature", "licence", "file", "sha256", "size", "recipe"} <= set(entry)
    said = entry_of(models.path(name))
    assert {key: entry.get(key) for key in said} == said
    assert entry["energy"] and entry["system"]


def test_a_new_release_is_entered_by_one_call(tmp_path):
    (tmp_path / "mine.safetensors").write_bytes(CONTENT)
    (tmp_path / "index.json").write_text(json.dumps({"mine": {"recipe": "r.py", "system": "s", "raw_ess": 0.1, "sha256": "old"}}))
    release([tmp_path / "mine.safetensors"])
    entry = json.loads((tmp_path / "index.json").read_text())["mine"]
    assert entry["sha256"] == SHA256 and entry["recipe"] == "r.py" and entry["system"] == "s" and "raw_ess" not in entry


# Pulling -----------------------------------------------------------------------------------------------------------------


def test_what_was_pulled_is_found_by_name_without_a_network(server, home, monkeypatch):
    file = models.pull(url(server, "mine"), sha256=SHA256)
    assert file.read_bytes() == CONTENT and files(home) == {"mine.safetensors", "mine.json"}
    offline(monkeypatch)
    assert models.pull(url(server, "mine")) == file
    assert models.load("mine").card == models.load(SMALL).card
    record = models.cached()["mine"]
    assert record["sha256"] == SHA256 and record["size"] == len(CONTENT) and record["url"] == url(server, "mine")
    assert server.asked == ["/mine.safetensors"]


def test_nothing_but_pull_asks_the_network(home, monkeypatch):
    offline(monkeypatch)
    assert models.pull("adsorb-fcc111") == SMALL and not home.exists()
    assert models.cached() == {}
    with pytest.raises(CheckpointError, match="no model is called 'mine'"):
        models.load("mine")


def test_models_of_the_registry_that_do_not_ship(server, home, monkeypatch, tmp_path):
    entry = models.index()["adsorb-fcc111"] | {"url": url(server, "adsorb-fcc111")}
    (tmp_path / "index.json").write_text(json.dumps({"adsorb-fcc111": entry}))
    monkeypatch.setattr(models, "_HERE", tmp_path)
    with pytest.raises(CheckpointError, match="models pull adsorb-fcc111"):
        models.load("adsorb-fcc111")
    assert models.pull("adsorb-fcc111").parent == home
    assert models.load("adsorb-fcc111").card.name == "adsorb-fcc111"


@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        ("mine", {"sha256": "0" * 64}, CheckpointError, f"has sha256 {SHA256}"),
        ("absent", {}, CheckpointError, "404"),
        ("page", {}, CheckpointError, "no checkpoint that this version reads"),
        ("cut", {}, OSError, f"{len(CONTENT) // 2} of {len(CONTENT)} bytes"),
        ("broken", {}, OSError, "503"),
        ("mine", {"name": "../mine"}, CheckpointError, "letters, digits"),
        ("carbon", {}, CheckpointError, "a model of the registry"),
    ],
    ids=["other file", "absent", "no checkpoint", "cut off", "server", "name", "taken"],
)
def test_failures_leave_nothing(name, options, error, words, server, home):
    with pytest.raises(error, match=words):
        models.pull(url(server, name), **options)
    assert files(home) == set()


def test_no_server(home):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(OSError, match="could not be fetched.*nothing was kept"):
        models.pull(f"http://127.0.0.1:{port}/mine.safetensors")
    with pytest.raises(CheckpointError, match="begins with https://"):
        models.pull("ftp://127.0.0.1/mine.safetensors")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")], ids=["ctrl-c", "full disk"])
def test_what_is_interrupted_leaves_nothing(error, server, home, monkeypatch):
    def half(address, stream, progress):
        stream.write(CONTENT[:1000])
        raise error

    monkeypatch.setattr(cache, "_copy", half)
    with pytest.raises(type(error), match=None if isinstance(error, KeyboardInterrupt) else "make room there"):
        models.pull(url(server, "mine"))
    assert files(home) == set()


def test_leftovers_of_a_killed_process_and_damaged_files_are_replaced(server, home):
    models.pull(url(server, "mine"))
    (home / ".mine.12345.tmp.safetensors").write_bytes(b"half")
    (home / "mine.safetensors").write_bytes(CONTENT[:-1] + b"!")
    with pytest.raises(CheckpointError, match="is damaged: pull 'mine' again"):
        models.load("mine")
    models.pull(url(server, "mine"))
    assert files(home) == {"mine.safetensors", "mine.json"} and models.load("mine").card.name == "adsorb-fcc111"


def test_one_name_is_one_model(server, home):
    models.pull(url(server, "mine"))
    with pytest.raises(CheckpointError, match="holds another model as 'mine'"):
        models.pull(url(server, "other"), name="mine")
    assert models.pull(url(server, "other"), name="mine", sha256=SHA256) == home / "mine.safetensors"


def test_caches_that_cannot_be_written_to_are_named(server, home, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "file"))
    with pytest.raises(OSError, match=f"cannot be written to.*{cache.VARIABLE}"):
        models.pull(url(server, "mine"))
    assert models.cached() == {}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not hold for this user")
def test_read_only_caches_serve_what_they_hold(server, home):
    models.pull(url(server, "mine"))
    home.chmod(0o500)
    try:
        assert models.pull(url(server, "mine")) and models.load("mine")
        with pytest.raises(OSError, match="cannot be written to"):
            models.pull(url(server, "other"))
    finally:
        home.chmod(0o700)


def test_two_processes_fetch_once(server, home):
    code = f"from dig_plugins import models; print(models.pull({url(server, 'slow')!r}).name, models.load('slow').card.name)"
    both = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert [out.strip() for out, _ in said] == ["slow.safetensors adsorb-fcc111"] * 2
    assert server.asked == ["/slow.safetensors"] and files(home) == {"slow.safetensors", "slow.json"}


def test_addresses_of_the_hub():
    assert cache._address("hf://me/mine@v2/some/a.safetensors") == "https://huggingface.co/me/mine/resolve/v2/some/a.safetensors"
    assert cache._address("hf://me/mine/a.safetensors") == "https://huggingface.co/me/mine/resolve/main/a.safetensors"
    assert cache.name_in("hf://me/mine@v2/some/a.safetensors") == "a"


def test_the_cache_is_where_the_platform_has_it(monkeypatch):
    monkeypatch.delenv(cache.VARIABLE, raising=False)
    assert cache.cache_directory().name == "dig-plugins" or "dig-plugins" in cache.cache_directory().parts


def test_models_are_put_on_the_device_that_is_asked_for(monkeypatch):
    """By argument, else by the environment; a GPU where there is one if any will do; what is not there is refused with what is."""
    placed = []
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, device: placed.append(device) or self)

    def put(device: str | None = None, environment: str = "", gpus: int = 0) -> list[str]:
        monkeypatch.setenv(DEVICE, environment)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        placed.clear()
        models.load("alanine-dipeptide", device)
        return list(placed)

    assert put() == put("cpu", "cuda", gpus=1) == put("auto") == []
    assert put("auto", gpus=1) == put("cuda", gpus=2) == put(None, "auto", gpus=1) == ["cuda"] and put("cuda:1", gpus=2) == ["cuda:1"]
    for device, gpus, there in (("cuda", 0, "cpu, by"), ("cuda:2", 2, "cpu, cuda, cuda:0, cuda:1, by"), ("tpu", 1, "cpu, cuda")):
        with pytest.raises(UnsupportedError, match=f"no device '{device}' here: expected auto or one of {there}"):
            put(device, gpus=gpus)
