"""The user's cache of checkpoints: fetched when asked, verified, complete or not there, safe among processes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from http.client import HTTPException
from pathlib import Path
from typing import IO
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from dig_core import __version__
from dig_core.errors import CheckpointError
from dig_core.files import finished, write_atomically
from dig_core.progress import Show, bar

__all__ = ["cache_directory", "cached", "digest", "fetch", "intact", "name_in"]

VARIABLE = "DIG_PLUGINS_CACHE"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_HUB = re.compile(r"hf://([^/]+/[^/@]+)(?:@([^/]+))?/(.+)")
_CHUNK, _TIMEOUT = 1 << 20, 30.0
_KEPT = {"url": str, "sha256": str, "size": int}
"""What a record says at least."""


def cache_directory() -> Path:
    """``DIG_PLUGINS_CACHE`` if it is set, else the platform's cache directory of this user. It need not exist."""
    given = os.environ.get(VARIABLE)
    if given:
        return Path(given).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("dig-plugins", appauthor=False)


def cached() -> dict[str, dict]:
    """Name -> record (file, url, sha256, size, pulled) of every checkpoint in the cache; what is incomplete is not among them."""
    found = {}
    for place in sorted((cache_directory() / "models").glob("*.json")):
        record = _read(place)
        if record is not None:
            found[place.stem] = record
    return found


def fetch(url: str, name: str, sha256: str | None = None, *, progress: Show = None) -> Path:
    """The checkpoint at ``url`` as ``name`` in the cache, downloaded unless it is there already.

    ``sha256``: what the file must have; without it the one that came is recorded, and holds from then on. Other processes that ask for the
    same name wait, then find it. A download that fails or is interrupted leaves nothing behind.

    Raises
    ------
    CheckpointError: no checkpoint there, another sha256, a name that is taken or cannot be one. OSError: no connection, a cache that
    cannot be written to.
    """
    if not _NAME.fullmatch(name):
        raise CheckpointError(f"expected a name of letters, digits, - and _, got {name!r}: choose one with name=.")
    _address(url)
    place = cache_directory() / "models" / f"{name}.safetensors"
    if _there(place, url, sha256):
        return place
    with _locked(place):
        if not _there(place, url, sha256):
            _download(url, place, sha256, progress)
    return place


def intact(record: dict) -> bool:
    """Whether the file of a record is there, as long and with the digest that the record says."""
    file = Path(record["file"])
    return file.is_file() and file.stat().st_size == record["size"] and digest(file) == record["sha256"]


def digest(file: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    found = hashlib.sha256()
    with open(file, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()


def name_in(url: str) -> str:
    """The name that a checkpoint at ``url`` has if none is chosen: its file's."""
    return Path(unquote(urlsplit(url).path)).stem


def _read(place: Path) -> dict | None:
    """The record beside a checkpoint; None where it is not one that was written here."""
    try:
        record = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not all(isinstance(record.get(name), kind) for name, kind in _KEPT.items()):
        return None
    return {**record, "file": str(place.with_suffix(".safetensors"))}


def _there(place: Path, url: str, sha256: str | None) -> bool:
    """Whether ``place`` holds what was asked for; a damaged file counts as none."""
    record = _read(place.with_suffix(".json"))
    if record is None or not intact(record):
        return False
    same = record["sha256"] == sha256.lower() if sha256 else record["url"] == url
    if not same:
        raise CheckpointError(f"the cache holds another model as {place.stem!r}, from {record['url']}: choose a name, or remove {place}.")
    return True


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    """One process at a time works on ``place``. OSError, saying what to do, where the cache cannot be written to."""
    from filelock import FileLock

    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(place.with_suffix(".lock"))
        lock.acquire()
    except OSError as error:
        raise _unwritable(place, error) from error
    try:
        yield
    finally:
        lock.release()


def _download(url: str, place: Path, sha256: str | None, progress: Show) -> None:
    """Fetch, verify, read, then rename; and the record last, without which a checkpoint does not count."""
    from dig_core.dig import DiG

    for left in place.parent.glob(f".{place.stem}.*.tmp.*"):  # of processes that were killed; the lock says they are gone
        left.unlink(missing_ok=True)
    place.with_suffix(".json").unlink(missing_ok=True)
    try:
        with finished(place) as temporary:
            with open(temporary, "wb") as stream:
                _copy(url, stream, progress)
            found = digest(temporary)
            if sha256 and found != sha256.lower():
                raise CheckpointError(f"{url} has sha256 {found}, expected {sha256}: it is damaged or another file, nothing was kept.")
            try:
                DiG.load(temporary)
            except CheckpointError as error:
                raise CheckpointError(f"{url} is no checkpoint that this version reads, nothing was kept: {error}") from error
            size = temporary.stat().st_size
        when = datetime.now(timezone.utc).isoformat(timespec="seconds")
        record = {"url": url, "sha256": found, "sha256_given": bool(sha256), "size": size, "pulled": when}
        write_atomically(place.with_suffix(".json"), json.dumps(record, indent=2).encode())
    except _Network as error:
        raise OSError(f"{url} could not be fetched ({error}), nothing was kept: try again, or load a copy by its path.") from error
    except OSError as error:
        raise _unwritable(place, error) from error


class _Network(Exception):
    """The connection failed, as opposed to the disk."""


def _copy(url: str, stream: IO[bytes], progress: Show) -> None:
    chunks = _chunks(url)
    total = next(chunks)
    with bar(label=name_in(url), progress=progress, total=total, unit="B", unit_scale=True) as shown:
        for chunk in chunks:
            stream.write(chunk)
            shown.update(len(chunk))


def _chunks(url: str) -> Iterator:
    """First how many bytes are to come, or None where the server does not say; then the bytes."""
    request = Request(_address(url), headers={"User-Agent": f"dig-plugins/{__version__}"})
    try:
        with urlopen(request, timeout=_TIMEOUT) as answer:
            said = answer.headers.get("Content-Length")
            total, came = (int(said) if said else None), 0
            yield total
            while chunk := answer.read(_CHUNK):
                came += len(chunk)
                yield chunk
    except HTTPError as error:
        if 400 <= error.code < 500:
            raise CheckpointError(f"there is no checkpoint at {url}: {error.code} {error.reason}.") from error
        raise _Network(f"{error.code} {error.reason}") from error
    except (OSError, HTTPException) as error:
        raise _Network(getattr(error, "reason", None) or error) from error
    if total is not None and came != total:
        raise _Network(f"{came} of {total} bytes came")


def _address(url: str) -> str:
    """What to open: of ``hf://OWNER/REPOSITORY[@REVISION]/FILE`` the file on the Hugging Face hub."""
    hub = _HUB.fullmatch(url)
    if hub:
        return f"https://huggingface.co/{hub[1]}/resolve/{hub[2] or 'main'}/{hub[3]}"
    if urlsplit(url).scheme not in ("https", "http", "file"):
        raise CheckpointError(f"expected an address that begins with https://, http://, hf:// or file://, got {url!r}.")
    return url


def _unwritable(place: Path, error: OSError) -> OSError:
    full = error.errno == errno.ENOSPC
    advice = "make room there" if full else "make it writable"
    said = f"the cache {place.parent} cannot be written to ({error.strerror or error}): {advice}, or set {VARIABLE} to another directory."
    return OSError(error.errno, said)
