"""Downloads against a server on this machine that breaks, lies, dawdles or refuses: in the end the file is whole, or one line says why not."""

import hashlib
import os
import threading

import pytest

from gpt2_numba.data.fetching import download as module
from gpt2_numba.data.fetching.download import arrived_bytes, download, read_json
from gpt2_numba.errors import UserError
from tests.file_server import FileServer, break_after, other_bytes, send, silent, status, trickle

DATA = os.urandom(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
NAME = "/file.bin"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(module, "PAUSES", (0, 0, 0))
    monkeypatch.setattr(module, "PAUSES_BEFORE_THE_FIRST_ANSWER", (0, 0))


@pytest.fixture
def server():
    with FileServer({NAME: DATA}) as running:
        yield running


def fetch(server, path, **options):
    options = {"size": len(DATA), "sha256": SHA256, **options}
    download(server.url + NAME, path, **options)
    assert path.read_bytes() == DATA
    assert not path.with_name(path.name + ".part").exists()


def refused(server, path, name=NAME, **options):
    """The one-line message of a download that fails and leaves nothing under its name."""
    with pytest.raises(UserError) as error:
        download(server.url + name, path, **options)
    assert not path.exists() and "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("known", [{}, {"size": None}, {"sha256": None}, {"size": None, "sha256": None}])
def test_a_whole_file(tmp_path, server, known):
    fetch(server, tmp_path / "new folder" / "file.bin", **known)
    assert server.requests == [(NAME, None)]
    fetch(server, tmp_path / "new folder" / "file.bin", **known)
    assert len(server.requests) == 1  # it is there already


def test_a_file_of_another_size_is_replaced(tmp_path, server):
    (tmp_path / "file.bin").write_bytes(b"an older version")
    fetch(server, tmp_path / "file.bin")


def test_a_broken_transfer_goes_on_where_it_stopped(tmp_path, server, capsys):
    server.faults = [break_after(1000), break_after(5000)]
    fetch(server, tmp_path / "file.bin")
    assert [asked for _, asked in server.requests] == [None, "bytes=1000-", "bytes=6000-"]
    assert "ended after 1,000 of 300,000 bytes; trying again in 0 s" in capsys.readouterr().err


def test_bytes_that_arrive_end_the_count_of_failures(tmp_path, server):
    server.faults = [break_after(100)] * 20
    fetch(server, tmp_path / "file.bin")
    assert len(server.requests) == 21


def test_what_an_earlier_download_has_left_is_used(tmp_path, server):
    (tmp_path / "file.bin.part").write_bytes(DATA[:200_000])
    assert arrived_bytes(tmp_path / "file.bin", len(DATA)) == 200_000
    arrived = []
    fetch(server, tmp_path / "file.bin", report=arrived.append)
    assert server.requests == [(NAME, "bytes=200000-")] and sum(arrived) == 100_000
    assert arrived_bytes(tmp_path / "file.bin", len(DATA)) == len(DATA)


def test_a_download_killed_before_it_was_renamed_asks_for_nothing(tmp_path, server):
    (tmp_path / "file.bin.part").write_bytes(DATA)
    fetch(server, tmp_path / "file.bin")
    assert server.requests == []


@pytest.mark.parametrize("left", [b"something else", bytes(len(DATA)), DATA + b"more"], ids=["short", "as long", "longer"])
def test_what_belongs_to_another_file_is_dropped(tmp_path, server, left):
    (tmp_path / "file.bin.part").write_bytes(left)
    arrived = []
    fetch(server, tmp_path / "file.bin", report=arrived.append)
    assert sum(arrived) == len(DATA) - len(left)  # so that a progress that began with them ends at the file's size


def test_without_a_checksum_nothing_is_taken_over(tmp_path, server):
    (tmp_path / "file.bin.part").write_bytes(bytes(1000))
    fetch(server, tmp_path / "file.bin", sha256=None)


def test_a_file_that_changes_between_two_tries_is_fetched_whole(tmp_path, server):
    other = os.urandom(len(DATA))

    def replace_and_break(handler, data):
        break_after(1000)(handler, data)
        server.files[NAME] = other

    server.faults = [replace_and_break]
    download(server.url + NAME, tmp_path / "file.bin")
    assert (tmp_path / "file.bin").read_bytes() == other


def test_a_server_without_ranges_sends_all_again(tmp_path):
    with FileServer({NAME: DATA}, ranges=False) as server:
        server.faults = [break_after(1000, ranges=False)]
        fetch(server, tmp_path / "file.bin")
        assert [asked for _, asked in server.requests] == [None, "bytes=1000-"]


def test_a_server_that_sends_another_range(tmp_path, server):
    def wrong_range(handler, data):
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes 0-{len(data) - 1}/{len(data)}")
        handler.end_headers()
        handler.wfile.write(data)

    server.faults = [break_after(1000), wrong_range]
    fetch(server, tmp_path / "file.bin", sha256=None)


def test_a_wrong_checksum_is_tried_again(tmp_path, server, capsys):
    server.faults = [other_bytes]
    fetch(server, tmp_path / "file.bin")
    assert "its SHA-256 is" in capsys.readouterr().err


def test_a_checksum_that_stays_wrong(tmp_path, server):
    message = refused(server, tmp_path / "file.bin", size=len(DATA), sha256="0" * 64)
    assert "its SHA-256 is" in message and "(4 tries)" in message and not os.path.getsize(tmp_path / "file.bin.part")


def test_a_file_of_the_wrong_size(tmp_path, server):
    assert "has 300,000 bytes, not 17" in refused(server, tmp_path / "file.bin", size=17)


def test_a_file_that_is_shorter_than_the_server_says_is_not_taken(tmp_path, server):
    server.faults = [lambda handler, data: send(handler, data, length=len(data) + 1)] * 4
    assert "ended after 300,000 of 300,001 bytes" in refused(server, tmp_path / "file.bin")


def test_a_silent_server(tmp_path, server, monkeypatch, capsys):
    monkeypatch.setattr(module, "PATIENCE", 0.2)
    server.faults = [silent(1)]
    fetch(server, tmp_path / "file.bin")
    assert "nothing came for 0.2 seconds" in capsys.readouterr().err
    assert server.requests[1] == (NAME, f"bytes={len(DATA) // 2}-")


def test_a_server_that_is_too_slow(tmp_path, server, monkeypatch, capsys):
    monkeypatch.setattr(module, "PATIENCE", 0.3)
    monkeypatch.setattr(module, "SLOWEST", 10_000)
    server.faults = [trickle]
    fetch(server, tmp_path / "file.bin")
    assert "bytes came in 0.3 seconds" in capsys.readouterr().err


@pytest.mark.parametrize("code", [404, 403, 401, 410])
def test_a_refusal_is_final(tmp_path, server, code):
    server.faults = [status(code)]
    assert f"answers {code}" in refused(server, tmp_path / "file.bin")
    assert len(server.requests) == 1


@pytest.mark.parametrize("code", [500, 502, 503, 429])
def test_a_busy_server_is_asked_again(tmp_path, server, code):
    server.faults = [status(code)] * 2
    fetch(server, tmp_path / "file.bin")
    server.faults = [status(code)] * 9
    assert f"answers {code}" in refused(server, tmp_path / "other.bin")


def test_a_server_says_how_long_to_wait(tmp_path, server, monkeypatch):
    slept = []
    monkeypatch.setattr(module.time, "sleep", slept.append)
    server.faults = [status(429, Retry_After="7"), status(503, Retry_After="100000")]
    fetch(server, tmp_path / "file.bin")
    assert slept == [7, module.LONGEST_PAUSE]


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_redirects_are_followed_with_the_range(tmp_path, server, code):
    server.files["/moved"] = b""
    (tmp_path / "file.bin.part").write_bytes(DATA[:1000])
    server.faults = [status(code, Location=NAME)]
    download(server.url + "/moved", tmp_path / "file.bin", len(DATA), SHA256)
    assert (tmp_path / "file.bin").read_bytes() == DATA
    assert server.requests == [("/moved", "bytes=1000-"), (NAME, "bytes=1000-")]


def test_no_server(tmp_path):
    with FileServer() as server:
        pass
    message = refused(server, tmp_path / "file.bin")
    assert "Connection refused (3 tries)" in message and "what has arrived is kept" in message


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://a/b", "huggingface.co/a", ""])
def test_an_address_of_another_kind(tmp_path, url):
    with pytest.raises(UserError, match="must begin with http"):
        download(url, tmp_path / "file.bin")


def test_a_disk_that_is_too_small_is_told_before(tmp_path, server, monkeypatch):
    monkeypatch.setattr(module, "free_bytes", lambda directory: 299_999)
    assert "300,000 bytes are missing" in refused(server, tmp_path / "file.bin", size=len(DATA))
    assert server.requests == []


def test_places_that_cannot_be_written(tmp_path, server):
    (tmp_path / "file").touch()
    (tmp_path / "folder.part").mkdir()
    for path in [tmp_path / "file" / "below", tmp_path / "folder", tmp_path / ("n" * 300), tmp_path / "a\0b"]:
        with pytest.raises(UserError, match="must be able to write its file"):
            download(server.url + NAME, path)


def test_two_downloads_of_one_file(tmp_path, server):
    server.gates[NAME] = threading.Event()
    first = threading.Thread(target=download, args=(server.url + NAME, tmp_path / "file.bin"))
    first.start()
    while not server.requests:
        pass
    assert "another process is downloading it" in refused(server, tmp_path / "file.bin")
    server.gates[NAME].set()
    first.join()
    assert (tmp_path / "file.bin").read_bytes() == DATA


def test_a_listing_and_its_next_page(server):
    server.files |= {"/one": b'{"a": [1]}', "/no": b"<html>"}
    assert read_json(server.url + "/one") == ({"a": [1]}, None)
    server.faults = [lambda handler, data: send(handler, data, headers={"Link": '</two?page=2>; rel="next"'})]
    assert read_json(server.url + "/one")[1] == server.url + "/two?page=2"
    with pytest.raises(UserError, match="not JSON"):
        read_json(server.url + "/no")
    with pytest.raises(UserError, match="answers 404"):
        read_json(server.url + "/none")
