"""Download files over HTTP(S): resumed after interruptions, verified, and fetched only once.

A file being fetched is ``.NAME.part``; next to it, ``.NAME.part.json`` records which version of the file its bytes
are from. A fetched file has a record, ``NAME.json``, which tells a later run that nothing needs to be fetched.
"""

from __future__ import annotations

import email.utils
import json
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import requests  # type: ignore[import-untyped]
from tqdm import tqdm
from urllib3.exceptions import HTTPError

from yolact.errors import EX_UNAVAILABLE, DataError
from yolact.files import write_json_atomic
from yolact_ops.lineage.redaction import without_credentials
from yolact_ops.transfer.disk import BLOCK, file_digest, require_free_disk

log = logging.getLogger(__name__)

MAX_TRIES = 5
"""Consecutive attempts without a new byte before a transfer fails."""

FIRST_PAUSE = 0.5
"""Seconds before the second attempt; doubled for each later one."""

LONGEST_PAUSE = 60.0
"""Maximum pause, seconds, even if the server asks for more (Retry-After)."""

TIMEOUT = (10, 60)
"""Timeouts for connecting and between two received blocks, seconds."""

PASSING_STATUS = (408, 425, 429, 500, 502, 503, 504)
"""HTTP status codes after which a retry may succeed (RFC 9110 section 15, RFC 6585, RFC 8470)."""

_FINAL = (requests.exceptions.SSLError, requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema)
"""Failed requests after which a retry would not help."""


class DownloadError(DataError):
    """A file could not be fetched; names the address, the reason and the fix. Received bytes are kept."""


class ServerUnavailableError(DownloadError):
    """The reason is a server that cannot be reached, breaks off or has a problem: a retry may succeed."""

    exit_code = EX_UNAVAILABLE


@dataclass(frozen=True)
class KnownFile:
    """Expected size and checksum of a file."""

    size: int
    """Bytes."""
    md5: str
    """Hex."""


@dataclass(frozen=True)
class Version:
    """A server's description of the current version of a file; empty or -1 if it gives none."""

    etag: str
    last_modified: str
    size: int
    """Bytes."""

    @property
    def validator(self) -> str:
        """Value for ``If-Range``: a strong ETag, or else the date (RFC 9110 section 13.1.5); empty without either."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.last_modified


class _InterruptedError(Exception):
    """An attempt failed in a way that a retry may fix."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


def fetch_file(urls: Sequence[str], target: Path, known: KnownFile | None = None) -> bool:
    """Fetch a file from the first address that has it, unless ``target`` is that file already.

    Args:
        urls: addresses of the same file, ``http://`` or ``https://``; at least one.
        target: path of the file, which appears whole or not at all; its folder is created.
        known: size and checksum, if published. Otherwise the server is asked whether the file changed.

    Returns:
        Whether anything was fetched.

    Raises:
        DownloadError: no address gave the file, or it is not the expected one; `ServerUnavailableError` if a server
            was unavailable.
        DataError: the disk is too full.
    """
    record = _read_json(_record_path(target))
    held = target.is_file() and target.stat().st_size == record.get("size")
    if held and known is not None and record.get("md5") == known.md5:
        return False
    failures: list[DownloadError] = []
    for url in urls:
        try:
            if held and known is None and record.get("url") == without_credentials(url):
                version = ask_version(url)
                if version.validator and version == Version(**record["version"]):
                    return False
            _fetch(url, target, known)
            return True
        except DownloadError as error:
            failures.append(error)
            if len(urls) > len(failures):
                log.warning("%s Trying the next address.", error)
    kind = next((type(error) for error in failures if isinstance(error, ServerUnavailableError)), DownloadError)
    raise kind("\n".join(map(str, failures)))


def ask_version(url: str) -> Version:
    """The version of the file on the server, without fetching it.

    Raises:
        DownloadError: the server cannot be reached or does not give the file.
    """
    try:
        # Not HEAD: addresses signed for GET refuse it.
        with requests.get(url, headers=_headers(), stream=True, timeout=TIMEOUT) as response:
            if response.status_code != requests.codes.ok:
                kind = ServerUnavailableError if response.status_code in PASSING_STATUS else DownloadError
                raise kind(_status_message(url, response))
            return _version(response)
    except DownloadError:
        raise
    except (*_FINAL, ValueError) as error:
        raise DownloadError(_unreachable(url, error)) from None
    except requests.RequestException as error:
        raise ServerUnavailableError(_unreachable(url, error)) from None


def _fetch(url: str, target: Path, known: KnownFile | None) -> None:
    """Fetch from one address, resuming after interruptions; see `fetch_file`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f".{target.name}.part")
    failed = 0
    while True:
        before = _size(part)
        try:
            version = _transfer(url, part, known)
            break
        except _InterruptedError as error:
            failed = 1 if _size(part) > before else failed + 1
            if failed >= MAX_TRIES:
                kept = f" The {_size(part):,} received bytes are kept: run it again to resume." if _size(part) else ""
                raise ServerUnavailableError(
                    f"{without_credentials(url)}: {error} (tried {failed} times in a row).{kept}"
                ) from None
            pause = max(FIRST_PAUSE * 2 ** (failed - 1), error.pause)
            log.warning("%s: %s; resuming from byte %d", without_credentials(url), error, _size(part))
            time.sleep(min(pause, LONGEST_PAUSE))
    md5 = _check(url, part, known)
    record = {"url": without_credentials(url), "size": _size(part), "md5": md5, "version": asdict(version)}
    _record_path(target).unlink(missing_ok=True)  # first, so a new file never has the old one's record
    with part.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(part, target)
    _part_record(part).unlink(missing_ok=True)
    write_json_atomic(_record_path(target), record)


def _transfer(url: str, part: Path, known: KnownFile | None) -> Version:
    """Append the missing bytes to ``part`` with one request.

    Raises:
        _InterruptedError: the transfer broke off, or the server is temporarily unable to answer.
        DownloadError: a retry would not help.
    """
    held = _size(part)
    saved = _read_json(_part_record(part))
    validator = str(saved.get("validator", "")) if saved.get("url") == without_credentials(url) else ""
    if held and not validator and known is None:  # it is unknown whether the bytes are of the current file
        held = 0
    if known is not None and held > known.size:
        held = 0
    try:
        with requests.get(url, headers=_headers(held, validator), stream=True, timeout=TIMEOUT) as response:
            if response.status_code == requests.codes.requested_range_not_satisfiable and held:
                return _at_the_end(response, part, held)
            if response.status_code not in (requests.codes.ok, requests.codes.partial_content):
                _refuse_status(url, response)
            version = _version(response)
            start = _first_byte(response)
            if start != held:  # the server has another version, or does not support ranges
                if start:
                    raise DownloadError(f"{without_credentials(url)}: sent bytes from {start:,}, not from {held:,}.")
                held = 0
            if version.size >= 0:
                require_free_disk(part.parent, version.size - held, f"downloading {without_credentials(url)}")
            if not held:
                part.unlink(missing_ok=True)  # first, so the old bytes never have the new version's record
            saved = {"url": without_credentials(url), "validator": version.validator}
            write_json_atomic(_part_record(part), saved)
            _append(response, part, held, version.size)
            return version
    except _FINAL as error:
        raise DownloadError(_unreachable(url, error)) from None
    except requests.RequestException as error:
        raise _InterruptedError(_reason(error)) from None


def _append(response: requests.Response, part: Path, held: int, size: int) -> None:
    """Write the response body at byte ``held`` of ``part``; ``size`` is the whole file's, -1 if unknown."""
    total = size if size >= 0 else None
    name = part.name.removeprefix(".").removesuffix(".part")
    bar = tqdm(desc=name, total=total, initial=held, unit="B", unit_scale=True, unit_divisor=1024, disable=None)
    with bar, part.open("r+b" if held else "wb") as file:
        file.seek(held)
        file.truncate()
        try:
            while block := response.raw.read1(BLOCK):
                file.write(block)
                bar.update(len(block))
        except (HTTPError, TimeoutError):
            expected = f" of {size:,}" if total is not None else ""
            raise _InterruptedError(f"the connection ended after {file.tell():,}{expected} bytes") from None
        arrived = file.tell()
    if total is not None and arrived < total:
        raise _InterruptedError(f"the connection ended after {arrived:,} of {total:,} bytes")


def _at_the_end(response: requests.Response, part: Path, held: int) -> Version:
    """Handle a server without bytes after the held ones: these are complete, or of another version."""
    stated = response.headers.get("Content-Range", "").rpartition("/")[2]
    if stated == str(held):
        return Version(response.headers.get("ETag", ""), response.headers.get("Last-Modified", ""), held)
    part.unlink()
    raise _InterruptedError("the file changed on the server; starting over")


def _check(url: str, part: Path, known: KnownFile | None) -> str:
    """Verify the file and return its MD5, hex; a file that is not the expected one is removed."""
    md5 = file_digest(part, "md5")
    if known is not None and (_size(part), md5) != (known.size, known.md5):
        size = _size(part)
        part.unlink()
        raise DownloadError(
            f"{without_credentials(url)}: is not the expected file: {size:,} bytes with md5 {md5}, expected "
            f"{known.size:,} bytes with md5 {known.md5}. It was removed. Run it again, or name another "
            "address under data.mirrors."
        )
    return md5


def _headers(held: int = 0, validator: str = "") -> dict[str, str]:
    headers = {"Accept-Encoding": "identity"}  # so that byte ranges are of the file itself
    if held:
        headers["Range"] = f"bytes={held}-"
        if validator:
            headers["If-Range"] = validator
    return headers


def _version(response: requests.Response) -> Version:
    """The stated size of the response, bytes; raises `DownloadError` if it is not a number."""
    if response.status_code == requests.codes.partial_content:
        stated = response.headers.get("Content-Range", "").rpartition("/")[2]
    else:
        stated = response.headers.get("Content-Length", "")
    size = int(stated) if stated.isdecimal() else -1
    return Version(response.headers.get("ETag", ""), response.headers.get("Last-Modified", ""), size)


def _first_byte(response: requests.Response) -> int:
    """Position in the file where the response body begins."""
    if response.status_code != requests.codes.partial_content:
        return 0
    stated = response.headers.get("Content-Range", "")
    start = stated.removeprefix("bytes ").partition("-")[0]
    if not start.isdecimal():
        raise DownloadError(f"{without_credentials(response.url)}: answered with the invalid range {stated!r}.")
    return int(start)


def _refuse_status(url: str, response: requests.Response) -> None:
    if response.status_code not in PASSING_STATUS:
        raise DownloadError(_status_message(url, response))
    raise _InterruptedError(f"the server answered {response.status_code} {response.reason}", _retry_after(response))


def _retry_after(response: requests.Response) -> float:
    """Seconds that the server asks to wait, given as a number or a date (RFC 9110 section 10.2.3); 0 if it does not."""
    stated = response.headers.get("Retry-After", "")
    if stated.isdecimal():
        return float(stated)
    try:
        return max(email.utils.parsedate_to_datetime(stated).timestamp() - time.time(), 0.0)
    except ValueError:
        return 0.0


def _status_message(url: str, response: requests.Response) -> str:
    fix = {
        401: "It requires a login: put it into ~/.netrc.",
        403: "It refuses access: check the permissions, or whether a signed address has expired.",
        404: "There is no such file: check the address (data.source or data.mirrors).",
        410: "The file was removed: name another address.",
    }.get(response.status_code, "Check the address, or try later.")
    return f"{without_credentials(url)}: the server answered {response.status_code} {response.reason}. {fix}"


def _unreachable(url: str, error: Exception) -> str:
    return f"{without_credentials(url)}: {_reason(error)}. Check the address and the network."


def _reason(error: BaseException) -> str:
    """The innermost cause in a few words: HTTP libraries wrap it several times."""
    if isinstance(error, requests.exceptions.SSLError):
        return f"the connection is not trusted ({error})"
    if isinstance(error, requests.exceptions.ConnectTimeout | requests.exceptions.ReadTimeout | TimeoutError):
        return "the server does not respond in time"
    if isinstance(error, requests.exceptions.ConnectionError) and "Failed to resolve" in str(error):
        return "the server's name cannot be resolved"
    if isinstance(error, requests.exceptions.ConnectionError) and "refused" in str(error):
        return "the server refuses connections (is it running?)"
    if isinstance(error, requests.exceptions.ConnectionError | HTTPError):
        return f"the connection broke ({type(error).__name__})"
    return str(error)


def _record_path(target: Path) -> Path:
    return target.with_name(f"{target.name}.json")


def _part_record(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_json(path: Path) -> dict:
    """Read a record; empty if it is missing or damaged, so the file is fetched again."""
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
