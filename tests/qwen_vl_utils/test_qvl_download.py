"""http with limits, against a server on this machine."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from qwen_vl_utils import DownloadError
from qwen_vl_utils.download import downloaded


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/missing":
            self.send_error(404)
            return
        if self.path == "/to-file":
            self.send_response(302)
            self.send_header("Location", "file:///etc/hostname")
            self.end_headers()
            return
        self.send_response(200)
        if self.path == "/short":
            self.send_header("Content-Length", "5000")
        elif self.path == "/known":
            self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"x" * 1000)
        if self.path == "/hangs":
            self.server.released.wait(10)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.released = threading.Event()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.released.set()
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_body_is_a_file_for_a_while(address):
    with downloaded(f"{address}/known") as path:
        assert path.read_bytes() == b"x" * 1000
    assert not path.exists()


@pytest.mark.parametrize(
    ("path", "limits", "match"),
    [
        ("/known", {"max_bytes": 999}, "1000 bytes: at most 999"),
        ("/unknown", {"max_bytes": 999}, "more than 999"),
        ("/short", {}, "cannot be fetched|broke off"),
        ("/missing", {}, "404"),
        ("/to-file", {}, "cannot be fetched"),
        ("/hangs", {"idle_timeout_seconds": 0.2}, "cannot be fetched"),
        ("/known", {"timeout_seconds": -1}, "too long"),
    ],
)
def test_limits(address, path, limits, match):
    with pytest.raises(DownloadError, match=match), downloaded(address + path, **limits):
        pass


def test_schemes():
    for url in ("file:///etc/hostname", "ftp://a/b", "data:text/plain,hi"):
        with pytest.raises(DownloadError, match="http and https"), downloaded(url):
            pass
