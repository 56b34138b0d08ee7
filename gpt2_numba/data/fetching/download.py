"""Downloads over HTTP that survive a bad network: a broken one goes on where it stopped, and only a whole, right file gets its name.

A file that is not complete is called NAME.part. What is missing of it is asked for by a range request (RFC 9110, section 14); a server that
does not know these sends the file from its start. Then the size and the SHA-256 are checked, and only then is the file renamed: one that
exists under its own name is whole, whenever the program was ended.

Whatever may be temporary is tried again after a pause, each longer than the one before: no connection, a broken one, a silent or hopelessly
slow one, a busy server, a wrong checksum. What has arrived ends the count of failures.
"""

import contextlib
import errno
import functools
import hashlib
import http.client
import json
import os
import re
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from gpt2_numba.data.disk_space import free_bytes
from gpt2_numba.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: two downloads of one file at the same time are not noticed
    fcntl = None

PAUSES = (1, 2, 4, 8, 16, 32, 64)  # seconds before each new try
PAUSES_BEFORE_THE_FIRST_ANSWER = PAUSES[:3]  # a machine without a network should hear of it soon
LONGEST_PAUSE = 300  # seconds; a server may ask for a longer one
PATIENCE = 30  # seconds without a byte, or with fewer than SLOWEST a second
SLOWEST = 1024  # bytes per second
CHUNK = 1 << 18  # bytes that are read at once
LARGEST_LISTING = 1 << 26  # bytes of an answer in JSON

TEMPORARY_CODES = (408, 416, 425, 429, 500, 502, 503, 504)  # HTTP's; any other error is final
SAME_COMMAND = "Then give the same command again: what has arrived is kept"


def download(url, path, size=None, sha256=None, report=None):
    """Download `url` to `path`, unless the file is there already. Returns the Path.

    size, sha256   what the file must have: bytes, and 64 hexadecimal digits; None: unknown
    report         called with the number of bytes that have arrived since the last call; a negative number takes some back, also of those
                   that an earlier download has left (`arrived_bytes`)

    A file that has the right size (any, if that is unknown) is not downloaded again. What an earlier download has left is used only if
    `sha256` can tell whether it belongs to the same file. Raises UserError, one line, if the server refuses, if it fails too often, if the
    disk is full or cannot be written, or if another process is downloading the same file.
    """
    path = Path(path)
    try:
        if path.is_file() and size in (None, path.stat().st_size):
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        part = _part(path)
        with open(part, "ab+") as file:
            _lock(file, path)
            _Transfer(url, file, path.name, size, sha256, report or (lambda count: None)).run()
        os.replace(part, path)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: a download must be able to write its file: {reason}. Choose another directory, or make room") from error
    return path


def arrived_bytes(path, size=None):
    """How much of a download to `path`, of `size` bytes if that is known, an earlier one has left."""
    for file in (Path(path), _part(Path(path))):
        with contextlib.suppress(OSError, ValueError):
            found = file.stat().st_size
            if file.suffix == ".part" or size in (None, found):
                return found
    return 0


def _part(path):
    return path.with_name(path.name + ".part")


def read_json(url):
    """Return (what the JSON document at `url` holds, the URL of the next page or None). Raises UserError as `download` does."""
    failures = 0
    while True:
        try:
            with _open(url, {"Accept": "application/json"}) as answer:
                return json.loads(answer.read(LARGEST_LISTING)), _next_page(url, answer.headers)
        except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: no JSON
            failures += 1
            _pause_or_raise(url, error, failures, PAUSES_BEFORE_THE_FIRST_ANSWER)


class _Broken(Exception):
    """A transfer went wrong in a way that another try may mend. The message says how."""


class _Transfer:
    """One file on its way. `run` returns when it is complete and right.

    url, size, sha256, report   as in `download`        file   the part, open for appending        name   in messages
    """

    # Six parameters, all of them set once, by `download`.
    def __init__(self, url, file, name, size, sha256, report):
        self.url, self.file, self.name = url, file, name
        self.size, self.sha256, self.report = size, sha256, report
        self.etag = None  # of the version that the part belongs to
        self.pauses = PAUSES_BEFORE_THE_FIRST_ANSWER
        self.reported = self._arrived()  # bytes of the part that `report` knows of

    def run(self):
        if self.sha256 is None:  # nothing could tell whether what is there belongs to the same file
            self._begin_again()
        failures = 0
        while True:
            before = self._arrived()
            try:
                self._receive()
                self._check()
                return
            except (OSError, http.client.HTTPException, _Broken) as error:
                if isinstance(error, _CannotWrite):
                    raise
                failures = 1 if self._arrived() > before else failures + 1
                _pause_or_raise(self.url, error, failures, self.pauses, self.name)

    def _arrived(self):
        return self.file.seek(0, os.SEEK_END)

    def _report(self):
        arrived = self._arrived()
        if arrived != self.reported:
            self.report(arrived - self.reported)
            self.reported = arrived

    def _begin_again(self):
        self.file.truncate(0)
        self._report()

    def _receive(self):
        """Ask for what is missing and append it to the part."""
        if self.size is not None and self._arrived() > self.size:
            self._begin_again()
        start = self._arrived()
        self._report()
        if start == self.size:
            return
        if self.size is not None and free_bytes(Path(self.file.name).parent) < self.size - start:
            raise _CannotWrite(errno.ENOSPC, f"{self.size - start:,} bytes are missing, and the disk has less room")
        with self._open_at(start) as answer:
            self.pauses = PAUSES
            self.etag = answer.headers.get("ETag")
            total = self._total(answer, start)
            self._append(answer)
        if total is not None and self._arrived() < total:
            raise _Broken(f"the connection ended after {self._arrived():,} of {total:,} bytes")
        self.size = total if self.size is None else self.size

    def _open_at(self, start):
        """The server's answer to a request for all bytes from `start` on."""
        headers = {}
        if start:
            headers["Range"] = f"bytes={start}-"
            if self.etag and not self.etag.startswith("W/"):
                headers["If-Range"] = self.etag  # if the file is another one by now, all of it comes
        try:
            return _open(self.url, headers)
        except urllib.error.HTTPError as error:
            if error.code == 416:  # the part is as long as the file, or longer, and is not right
                self._begin_again()
            raise

    def _total(self, answer, start):
        """The size of the whole file according to the answer, None if it does not say. Empties the part if the answer begins at byte 0."""
        length = answer.headers.get("Content-Length")
        length = int(length) if length and length.isdecimal() else None
        if answer.status == 206:
            found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
            if not found or int(found[1]) != start:
                self._begin_again()
                raise _Broken("the server sent another range than the one asked for")
            total = None if found[2] == "*" else int(found[2])
        elif answer.status == 200:
            self._begin_again()
            total = length
        else:
            raise _Broken(f"the server answered with status {answer.status}")
        if None not in (total, self.size) and total != self.size:
            self._begin_again()
            raise _Broken(f"the server's file has {total:,} bytes, not {self.size:,}")
        return total

    def _append(self, answer):
        """Write what comes to the part. Raises TimeoutError if it comes too slowly."""
        since, count = time.monotonic(), 0
        while chunk := answer.read1(CHUNK):
            try:
                self.file.write(chunk)
                self.file.flush()
            except OSError as error:
                raise _CannotWrite(error.errno, error.strerror) from error
            self._report()
            count += len(chunk)
            if time.monotonic() - since > PATIENCE:
                if count < SLOWEST * PATIENCE:
                    raise TimeoutError(f"only {count:,} bytes came in {PATIENCE} seconds")
                since, count = time.monotonic(), 0

    def _check(self):
        """Put the part on the disk, and raise _Broken, having emptied it, if it is not the right file."""
        self.file.flush()
        os.fsync(self.file.fileno())
        if self.size is not None and self._arrived() != self.size:
            arrived = self._arrived()
            self._begin_again()
            raise _Broken(f"{arrived:,} bytes came, not {self.size:,}")
        if self.sha256 is not None:
            self.file.seek(0)
            digest = hashlib.sha256()
            while chunk := self.file.read(1 << 22):
                digest.update(chunk)
            if digest.hexdigest() != self.sha256.lower():
                self._begin_again()
                raise _Broken(f"its SHA-256 is {digest.hexdigest()[:12]}..., not {self.sha256[:12].lower()}...")


class _CannotWrite(OSError):
    """The disk's fault, not the network's: another try is useless."""


def _open(url, headers):
    """The answer to a GET request; redirects are followed. Raises OSError (HTTPError included), http.client.HTTPException, or UserError."""
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise UserError(f"{url}: an address must begin with http:// or https://. Correct it (HF_ENDPOINT, if it is the hub's)")
    request = urllib.request.Request(url, headers={"User-Agent": "gpt2_numba", "Accept-Encoding": "identity", **headers})
    opener = urllib.request.build_opener(_Redirects, urllib.request.HTTPSHandler(context=_certificates()))
    return opener.open(request, timeout=PATIENCE)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Also the status 308, which Python 3.10 does not follow."""

    http_error_308 = urllib.request.HTTPRedirectHandler.http_error_302

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        return super().redirect_request(req, fp, 301 if code == 308 else code, msg, headers, newurl)


@functools.cache
def _certificates():
    """The system's certificates and, where certifi is installed, as with tiktoken, those of Mozilla: some Pythons find none."""
    context = ssl.create_default_context()
    try:
        import certifi

        context.load_verify_locations(certifi.where())
    except (ImportError, OSError):
        pass
    return context


def _next_page(url, headers):
    """The URL of the next page of a listing, from its header Link (RFC 8288); None if this is the last."""
    found = re.search(r'<([^>]*)>\s*;[^,]*\brel="?next\b', headers.get("Link", ""))
    return urllib.parse.urljoin(url, found[1]) if found else None


def _pause_or_raise(url, error, failures, pauses, name=None):
    """Wait before the next try, after telling the user why; raise UserError if the error is final, or was the last that is put up with."""
    if isinstance(error, UserError):
        raise error
    reason = _reason(error)
    code = getattr(error, "code", None)
    certificate = isinstance(getattr(error, "reason", None), ssl.SSLCertVerificationError)
    if certificate or code is not None and code not in TEMPORARY_CODES:
        raise UserError(f"{url}: cannot be downloaded: {reason}. Check the address, or whether the file has moved") from error
    if failures > len(pauses):
        raise UserError(f"{url}: cannot be downloaded: {reason} ({failures} tries). Check the network. {SAME_COMMAND}") from error
    pause = max(pauses[failures - 1], _asked_pause(error))
    print(f"{name or url}: {reason}; trying again in {pause:g} s", file=sys.stderr, flush=True)
    time.sleep(pause)


def _reason(error):
    """What went wrong, as text."""
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} {error.reason}"
    cause = getattr(error, "reason", error)  # URLError wraps another error
    if isinstance(cause, TimeoutError):
        return str(cause) if "came in" in str(cause) else f"nothing came for {PATIENCE} seconds"
    if isinstance(cause, http.client.IncompleteRead):
        return "the connection ended too early"
    if isinstance(cause, json.JSONDecodeError):
        return "the answer is not JSON"
    return str(getattr(cause, "strerror", None) or cause) or type(cause).__name__


def _asked_pause(error):
    """The seconds that a busy server asks to wait (Retry-After), at most LONGEST_PAUSE; 0 if it asks for none."""
    text = (getattr(error, "headers", None) or {}).get("Retry-After", "")
    return min(int(text), LONGEST_PAUSE) if text.isdecimal() and len(text) < 10 else 0


def _lock(file, path):
    """Keep the part for this process alone. Raises UserError if another one has it. Without a lock where the file system has none."""
    if fcntl:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{path}: another process is downloading it: wait for its end") from None
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL):
                raise
