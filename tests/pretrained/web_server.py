"""A server on this machine that misbehaves as told."""

import http.server
import re
import threading


class Server:
    """Serves `files`; the other attributes say how.

    Attributes:
      files: {path: bytes}.
      tag: the ETag, or None.
      modified: the Last-Modified, or None.
      cuts: bytes after which each of the next responses ends; when they are used up, none is cut.
      ranges: whether a part may be asked for.
      states: {path: HTTP status} that stands in place of a file.
      moved: {path: address}.
      lengths: whether responses state their length.
      asks_tag: whether a part is sent only of the file that the client knows.
      pieces: the most bytes that a part holds, or None.
      total: what parts state as the size of the whole file; None: what it is.
      log: (path, Range or None) of all requests.
    """

    def __init__(self, files):
        self.files, self.tag, self.cuts, self.ranges = dict(files), '"1"', [], True
        self.states, self.moved, self.lengths, self.log = {}, {}, True, []
        self.asks_tag, self.pieces, self.total, self.modified = True, None, None, None
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                owner.answer(self)

            def log_message(self, *_):
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()

    def answer(self, request):
        path, wanted = request.path, request.headers.get("Range")
        self.log.append((path, wanted))
        if path in self.moved:
            request.send_response(302)
            request.send_header("Location", self.moved[path])
            request.send_header("Content-Length", "0")
            request.end_headers()
        elif path in self.states or path not in self.files:
            request.send_error(self.states.get(path, 404))
        else:
            self.send(request, self.files[path], wanted if self.ranges else None)

    def send(self, request, content, wanted):
        match = re.fullmatch(r"bytes=(\d+)-", wanted or "")
        if match and self.asks_tag and request.headers.get("If-Range") not in (None, self.tag, self.modified):
            match = None  # the file has changed: all of it
        start = int(match[1]) if match else 0
        if match and start >= len(content):
            request.send_error(416)
            return
        end = min(len(content), start + self.pieces) if match and self.pieces else len(content)
        request.send_response(206 if match else 200)
        if match:
            request.send_header("Content-Range", f"bytes {start}-{end - 1}/{self.total or len(content)}")
        if self.lengths:
            request.send_header("Content-Length", str(end - start))
        if self.tag:
            request.send_header("ETag", self.tag)
        if self.modified:
            request.send_header("Last-Modified", self.modified)
        request.end_headers()
        request.wfile.write(content[start:end][: self.cuts.pop(0) if self.cuts else None])
        request.close_connection = True
