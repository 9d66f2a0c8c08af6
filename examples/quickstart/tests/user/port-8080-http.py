#!/usr/bin/python3 -BISs
"""Serves HTTP on port 8080, and fetches a page from itself."""

import sys

sys.path.insert(0, ".")
import guard  # noqa: F401, E402
import http.client  # noqa: E402
import http.server  # noqa: E402
import threading  # noqa: E402


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"quickstart")

    def log_message(self, *arguments):
        pass


server = http.server.HTTPServer(("127.0.0.1", 8080), Page)
threading.Thread(target=server.handle_request, daemon=True).start()
connection = http.client.HTTPConnection("127.0.0.1", 8080, timeout=10)
connection.request("GET", "/")
page = connection.getresponse().read()
assert page == b"quickstart", page
