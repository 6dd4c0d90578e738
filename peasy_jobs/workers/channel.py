"""What runner, worker server and worker processes say to one another: whole messages over a socket.

Messages are plain values written with `marshal`: both ends are the same Python on the same host.
"""

from __future__ import annotations

import marshal
import socket
import struct
from typing import Any

LENGTH = struct.Struct("!Q")
CHUNK = 1 << 18


class Channel:
    """The runner's end. It never blocks, so a worker that is stopped cannot stop its runner."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.inbox, self.outbox = bytearray(), bytearray()
        self.closed = False  # by the other side

    def send(self, message: Any) -> None:
        """Send a message, now or, where the other side does not read, with a later `flush`."""
        data = marshal.dumps(message)
        self.outbox += LENGTH.pack(len(data)) + data
        self.flush()

    def flush(self) -> None:
        try:
            while self.outbox:
                del self.outbox[: self.connection.send(self.outbox)]
        except BlockingIOError:
            pass
        except OSError:
            self.closed = True
            self.outbox.clear()

    def receive(self) -> list[Any]:
        """The messages that have arrived."""
        try:
            while chunk := self.connection.recv(CHUNK):
                self.inbox += chunk
            self.closed = True
        except BlockingIOError:
            pass
        except OSError:
            self.closed = True
        return take_messages(self.inbox)

    def close(self) -> None:
        self.connection.close()


def take_messages(inbox: bytearray) -> list[Any]:
    """Take the whole messages off the front of what has arrived."""
    messages, position = [], 0
    while len(inbox) >= position + LENGTH.size:
        (length,) = LENGTH.unpack_from(inbox, position)
        end = position + LENGTH.size + length
        if len(inbox) < end:
            break
        messages.append(marshal.loads(memoryview(inbox)[position + LENGTH.size : end]))  # noqa: S302  from our worker
        position = end
    del inbox[:position]
    return messages
