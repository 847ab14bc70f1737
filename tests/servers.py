"""A server on this machine for tests of downloads, with faults to order; nothing else can be reached from there."""

import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

LOCAL = "127.0.0.1"
FAULTS = ("cut", "short", "chunks", "reset", "dropped", "missing", "slow")


class Server:
    """Files by path.

    Attributes:
        url: What precedes a path.
        files: The content of each path.
        headers: What every answer has besides; of the file that it is about, or of none.
        faults: What goes wrong with the next requests for a path, one a request:
            cut, half of the content comes, of the length that was promised;
            short, half of it comes as if it were the whole;
            chunks, the same where no length is promised;
            reset, the connection is reset after half of it;
            dropped, the connection is closed without an answer;
            missing, the answer is 404;
            slow, all is well, but it takes time.
        asked: The paths asked for, and not merely about, in order.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.headers: dict[str, str] = {}
        self.faults: dict[str, list[str]] = {}
        self.asked: list[str] = []
        self._http = ThreadingHTTPServer((LOCAL, 0), type("Handler", (_Handler,), {"shelf": self}))
        self.url = f"http://{LOCAL}:{self._http.server_port}"
        # Polled often, so that closing takes no half second.
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop serving."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    shelf: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        content = self.shelf.files.get(self.path)
        self._start(404 if content is None else 200, len(content or b""))

    def do_GET(self) -> None:
        self.shelf.asked.append(self.path)
        planned = self.shelf.faults.get(self.path)
        fault, content = planned.pop(0) if planned else "", self.shelf.files.get(self.path)
        assert fault in ("", *FAULTS)
        if fault == "dropped":
            self.close_connection = True
        elif content is None or fault == "missing":
            self._start(404, 0)
        elif fault == "chunks":
            self._start(200, None)
            half = content[: len(content) // 2]
            self.wfile.write(f"{len(half):x}\r\n".encode() + half + b"\r\n")
        elif fault in {"cut", "reset"}:
            self._start(200, len(content))
            self.wfile.write(content[: len(content) // 2])
            if fault == "reset":
                self.wfile.flush()
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
        else:
            if fault == "slow":
                time.sleep(0.3)
            self._send(content[: len(content) // 2] if fault == "short" else content)

    def _send(self, content: bytes) -> None:
        asked = self.headers.get("Range", "")
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        extra = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if asked else {}
        self._start(206 if asked else 200, len(content) - start, extra)
        self.wfile.write(content[start:])

    def _start(self, status: int, length: int | None, extra: dict[str, str] | None = None) -> None:
        self.send_response(status)
        sized = {"Transfer-Encoding": "chunked"} if length is None else {"Content-Length": str(length)}
        missing = {"X-Error-Code": "EntryNotFound"} if status == 404 else {}
        for name, value in (sized | missing | self.shelf.headers | (extra or {})).items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    """Serve files here, with caches in `tmp_path`, no proxy, and no way to any other machine."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "*")
    for name in ("XDG_CACHE_HOME", "TORCH_HOME", "HF_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "cache"))
    strayed: list[object] = []

    def only_here(reach: Any, host: Any) -> Any:
        def guarded(*arguments: Any, **options: Any) -> Any:
            if host(arguments) != LOCAL:
                strayed.append(host(arguments))
                raise OSError(f"a test reaches for {host(arguments)}")
            return reach(*arguments, **options)

        return guarded

    monkeypatch.setattr(socket, "getaddrinfo", only_here(socket.getaddrinfo, lambda arguments: arguments[0]))
    monkeypatch.setattr(socket.socket, "connect", only_here(socket.socket.connect, lambda arguments: arguments[1][0]))
    serving = Server()
    yield serving
    serving.close()
    assert strayed == []
