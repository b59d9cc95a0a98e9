"""An agent that does what its caller says: answers with any bytes, or runs a program."""

import contextlib
import io
import json
import os
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.reply(b"ready")

    def do_POST(self) -> None:
        asked = json.loads(self.body() or b"{}")
        if "bytes" in asked:
            self.close_connection = True
            with contextlib.suppress(OSError):
                for _ in range(asked.get("times", 1)):
                    self.wfile.write(asked["bytes"].encode("latin-1"))
                    time.sleep(asked.get("pause", 0))
        elif "run" in asked:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(asked["run"], {"headers": dict(self.headers), "path": self.path, "os": os})  # noqa: S102
            self.reply(printed.getvalue().encode())
        else:
            self.reply(b"hello")

    def body(self) -> bytes:
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("content-length", "0")))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def reply(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
