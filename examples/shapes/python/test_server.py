"""A server and its client, on a fixed port."""

import http.server
import threading
import urllib.request

import pytest


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 8080), http.server.SimpleHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield "http://127.0.0.1:8080"
    server.shutdown()
    thread.join()
    server.server_close()


def test_serves_this_folder(server):
    with urllib.request.urlopen(server + "/testyard.toml") as answer:
        assert b'name = "shapes"' in answer.read()


@pytest.mark.parametrize("path", ["/no-such", "/python/no-such.py"])
def test_says_what_is_not_there(server, path):
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(server + path)
    assert caught.value.code == 404
    caught.value.close()
