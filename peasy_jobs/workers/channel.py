"""Send and receive whole messages over a job socket: frame each with its length."""

from __future__ import annotations

import socket
import struct
import threading

LENGTH = struct.Struct("!Q")  # bytes of the message that follows
CHUNK = 1 << 18  # bytes to receive at once


class RunnerChannel:
    """The runner's end. It never blocks, so that a suspended worker cannot hold up its runner."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.inbox = bytearray()
        self.outbox = bytearray()
        self.closed = False  # by the worker, or because it died

    def send(self, message: bytes) -> None:
        """Send a message. What the socket does not take yet goes out with a later `flush`."""
        self.outbox += frame(message)
        self.flush()

    def flush(self) -> None:
        """Send as much of what is waiting as the socket takes."""
        try:
            while self.outbox:
                del self.outbox[: self.connection.send(self.outbox)]
        except BlockingIOError:
            pass
        except OSError:
            self.closed = True
            self.outbox.clear()

    def receive(self) -> list[bytearray]:
        """Return the messages that have arrived, possibly none."""
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


class WorkerChannel:
    """The worker's end. It blocks; any thread of the job may send."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.inbox = bytearray()
        self.send_lock = threading.Lock()

    def send(self, message: bytes) -> None:
        """Send a message. Raises `OSError` if the runner is gone or a job has closed the socket."""
        with self.send_lock:
            self.connection.sendall(frame(message))

    def receive(self) -> list[bytearray] | None:
        """Wait for data and return the complete messages, possibly none. Return None at the end."""
        chunk = self.connection.recv(CHUNK)
        if not chunk:
            return None
        self.inbox += chunk
        return take_messages(self.inbox)


def frame(message: bytes) -> bytes:
    """Return a message with its length in front."""
    return LENGTH.pack(len(message)) + message


def take_messages(inbox: bytearray) -> list[bytearray]:
    """Remove the complete messages from the front of `inbox` and return them."""
    messages, position = [], 0
    while len(inbox) >= position + LENGTH.size:
        (length,) = LENGTH.unpack_from(inbox, position)
        start = position + LENGTH.size
        if len(inbox) < start + length:
            break
        messages.append(inbox[start : start + length])
        position = start + length
    del inbox[:position]
    return messages
