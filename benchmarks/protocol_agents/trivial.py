"""Answers each request with its own body and nothing else, to see how fast the load generator is alone.

python -m benchmarks.protocol_agents.trivial
"""

from __future__ import annotations

import os
import select
import socket

SIZE = 1300
"""Bytes of an answer's body, like a response object."""

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % SIZE


def main() -> None:
    poll = select.epoll()
    listener = socket.create_server(("127.0.0.1", int(os.environ["PORT"])), backlog=128)
    poll.register(listener, select.EPOLLIN)
    connections: dict[int, socket.socket] = {}
    while True:
        for descriptor, _ in poll.poll():
            if descriptor == listener.fileno():
                accepted, _ = listener.accept()
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connections[accepted.fileno()] = accepted
                poll.register(accepted, select.EPOLLIN)
                continue
            request = connections[descriptor].recv(65536)
            if request:
                connections[descriptor].sendall(HEAD + request.partition(b"\r\n\r\n")[2].ljust(SIZE))
            else:
                connections.pop(descriptor).close()


if __name__ == "__main__":
    main()
