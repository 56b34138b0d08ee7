"""Files of the Hugging Face hub, and of other servers, as they are listed and fetched.

The hub lists the files of a data set with their sizes and, for large ones, their SHA-256, so every byte of a download is checked.
HF_ENDPOINT is the address of another server with the same layout, such as a mirror.
"""

import fnmatch
import os
import re
import threading
import urllib.parse
from typing import NamedTuple

from gpt2_numba.data.disk_space import free_bytes
from gpt2_numba.data.fetching.download import arrived_bytes, download, read_json
from gpt2_numba.errors import UserError
from gpt2_numba.progress import Progress, file_size

HUB = "https://huggingface.co"
MOST_PAGES = 1000  # of a listing
SHOWN_EVERY = 0.2  # seconds


class RemoteFile(NamedTuple):
    """A file to download. size and sha256 are None if unknown. name: its path in the repository."""

    name: str
    url: str
    size: int | None = None
    sha256: str | None = None


def hub_address():
    """The hub's address: HF_ENDPOINT or huggingface.co."""
    return (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/")


def hub_files(repo, pattern):
    """The RemoteFiles of a data set on the hub whose paths match `pattern`, sorted. Raises UserError if there is none."""
    folder = re.match(r"[^*?\[]*/|", pattern)[0].rstrip("/")  # the part of it without wildcards: a listing of more may be very long
    url = f"{hub_address()}/api/datasets/{repo}/tree/main" + (f"/{urllib.parse.quote(folder)}" if folder else "") + "?recursive=true"
    files = []
    for _ in range(MOST_PAGES):
        page, next_url = read_json(url)
        files += _listed_files(url, repo, page)
        if next_url is None:
            break
        url = next_url
    matching = sorted(file for file in files if fnmatch.fnmatchcase(file.name, pattern))
    if not matching:
        raise UserError(
            f"{hub_address()}/datasets/{repo} must have files like {pattern}, and has none: it has changed, or HF_ENDPOINT is wrong"
        )
    return matching


def _listed_files(url, repo, page):
    """The RemoteFiles of one page of a listing."""
    try:
        entries = [entry for entry in page if entry["type"] == "file"]
        return [
            RemoteFile(
                entry["path"],
                f"{hub_address()}/datasets/{repo}/resolve/main/{urllib.parse.quote(entry['path'])}",
                int(entry["size"]),
                entry["lfs"]["oid"] if entry.get("lfs") else None,
            )
            for entry in entries
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{url}: the answer must be the hub's list of files, and is something else. Check HF_ENDPOINT") from error


def check_room(directory, files):
    """Raise UserError if files to download, pairs (path, bytes), do not fit on the disk of `directory`."""
    missing = sum(size - arrived_bytes(path, size) for path, size in files)
    if missing > (free := free_bytes(directory)):
        raise UserError(
            f"--out {directory}: {file_size(missing)} are to be downloaded, and the disk has {file_size(free)} left: make room, choose "
            "another --out, or fewer --shards"
        )


class Fetch:
    """The download of one RemoteFile in a thread that never delays the end of the program. Its progress is shown while `wait` waits."""

    def __init__(self, file, path):
        self._file, self._path = file, path
        self._arrived = arrived_bytes(path, file.size)
        self._done, self._error = threading.Event(), None
        threading.Thread(target=self._run, name="download", daemon=True).start()

    def wait(self):
        """Return when the file is there. Raises UserError as `download` does."""
        with Progress(f"downloading {self._path.name}", total=self._file.size, unit="B", done=self._arrived) as progress:
            while not self._done.wait(SHOWN_EVERY):
                progress.advance(self._arrived - progress.done)
        if self._error:
            raise self._error

    def _run(self):
        try:
            download(self._file.url, self._path, self._file.size, self._file.sha256, report=self._report)
        except BaseException as error:
            self._error = error
        self._done.set()

    def _report(self, count):
        self._arrived += count
