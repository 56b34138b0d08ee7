"""A file server on this machine for the tests of downloads: a stand-in for the hub, which can be slow, broken or wrong on demand."""

import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse


class FileServer:
    """Use it in a `with` statement. Serves `files`, a dict from a path such as "/a/b.bin" to bytes, on 127.0.0.1.

    url        "http://127.0.0.1:PORT"
    requests   a list of (path, the header Range or None), in the order in which they came
    faults     a list by request of what goes wrong, used up one by one; None: nothing. A fault is a function of the handler and the file's
               bytes that answers, or returns False to let the server answer
    ranges     False: the server does not know ranges
    gates      dict from a path to a threading.Event: the file is not served before it is set
    """

    def __init__(self, files=(), ranges=True):
        self.files, self.ranges = dict(files), ranges
        self.requests, self.faults, self.gates, self.headers = [], [], {}, []

    def add_dataset(self, repo, files):
        """Make a data set of the hub from a dict {path: bytes}: its files and their listing, two files a page."""
        entries = [
            {"type": "file", "path": path, "size": len(data), "oid": "0" * 40, "lfs": {"oid": hashlib.sha256(data).hexdigest()}}
            for path, data in files.items()
        ]
        for path, data in files.items():
            self.files[f"/datasets/{repo}/resolve/main/{path}"] = data
        self.listings = {**getattr(self, "listings", {}), f"/api/datasets/{repo}/tree/main": entries}

    def __enter__(self):
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    server._answer(self)

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_):
        for gate in self.gates.values():
            gate.set()
        self._server.shutdown()
        self._server.server_close()

    def _answer(self, handler):
        path, _, query = handler.path.partition("?")
        path = urllib.parse.unquote(path)
        self.requests.append((path, handler.headers.get("Range")))
        self.headers.append(dict(handler.headers))
        if path in self.gates:
            self.gates[path].wait(30)
        listing = self._listing(path, query)
        if listing is not None:
            return listing(handler)
        data = self.files.get(path)
        fault = self.faults.pop(0) if self.faults else None
        if fault and fault(handler, data) is not False:
            return None
        if data is None:
            return handler.send_error(404)
        return send(handler, data, ranges=self.ranges)

    def _listing(self, path, query):
        """A function of the handler that answers with a page of the hub's listing, None if `path` is no such thing."""
        for start, entries in getattr(self, "listings", {}).items():
            if path == start or path.startswith(start + "/"):
                folder = path[len(start) + 1 :]
                found = [entry for entry in entries if not folder or entry["path"].startswith(folder + "/")]
                first = int(urllib.parse.parse_qs(query).get("cursor", ["0"])[0])
                link = f'<{self.url}{path}?recursive=true&cursor={first + 2}>; rel="next"' if first + 2 < len(found) else None
                body = json.dumps(found[first : first + 2]).encode()
                return lambda handler: send(handler, body, headers={"Link": link} if link else {})
        return None


def send(handler, data, ranges=False, headers=(), length=None, status=200):
    """Answer with `data`, or with the range that is asked for. length: what Content-Length says instead."""
    found = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", "")) if ranges else None
    etag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
    if found and handler.headers.get("If-Range", etag) == etag:
        start = int(found[1])
        if start >= len(data):
            return handler.send_error(416)
        handler.send_response(206)
        handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        data = data[start:]
    else:
        handler.send_response(status)
    handler.send_header("ETag", etag)
    handler.send_header("Content-Length", str(len(data) if length is None else length))
    for name, value in dict(headers).items():
        handler.send_header(name, value)
    handler.end_headers()
    return handler.wfile.write(data)


# ------------------------------------------------------------------------------------------------ faults


def break_after(count, ranges=True):
    """The connection ends after `count` bytes of what was asked for."""

    def fault(handler, data):
        found = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", "")) if ranges else None
        start = int(found[1]) if found else 0
        if start:
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            handler.send_response(200)
        handler.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()[:16]}"')
        handler.send_header("Content-Length", str(len(data) - start))
        handler.end_headers()
        handler.wfile.write(data[start : start + count])
        handler.wfile.flush()
        handler.connection.close()

    return fault


def silent(seconds):
    """Nothing comes for some seconds, after the first half."""

    def fault(handler, data):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[: len(data) // 2])
        handler.wfile.flush()
        threading.Event().wait(seconds)

    return fault


def trickle(handler, data):
    """A byte every few milliseconds."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    for byte in data:
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()
        threading.Event().wait(0.01)


def status(code, **headers):
    """Answer with an HTTP error."""

    def fault(handler, _):
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return fault


def other_bytes(handler, data):
    """Right length, wrong contents."""
    send(handler, bytes(len(data)))
