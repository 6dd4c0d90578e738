"""A TCP proxy between a runner and its database server, so that faults never touch the server."""

import contextlib
import selectors
import socket
import struct
import threading
import time


class Proxy:
    """Forward to `target`. It can drop all connections, refuse new ones, or fall silent."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.silent = self.refusing = self.dropping = self.closed = False
        self.port = 0
        self._listen()
        self.peers: dict[socket.socket, socket.socket] = {}
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _listen(self) -> None:
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.listener.bind(("127.0.0.1", self.port))
        self.listener.listen(128)
        self.listener.setblocking(False)
        self.port = self.listener.getsockname()[1]

    def drop(self) -> None:
        self.dropping = True

    def close(self) -> None:
        self.closed = True
        self.thread.join()

    def _run(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listener, selectors.EVENT_READ)
        listening = True
        while not self.closed:
            if self.refusing == listening:
                listening = not self.refusing
                if listening:
                    self._listen()
                    self.selector.register(self.listener, selectors.EVENT_READ)
                else:
                    self.selector.unregister(self.listener)
                    self.listener.close()
            if self.dropping or not listening:
                self.dropping = False
                for one in list(self.peers):
                    self._end(one)
            if self.silent:
                time.sleep(0.02)
                continue
            for key, _ in self.selector.select(0.05):
                if key.fileobj is self.listener:
                    self._accept()
                elif key.fileobj in self.peers:
                    self._forward(key.fileobj)
        for one in list(self.peers):
            self._end(one)
        self.listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            client, _ = self.listener.accept()
            try:
                server = socket.create_connection(self.target, 5)
            except OSError:
                client.close()
                return
            for one, other in ((client, server), (server, client)):
                one.settimeout(2)
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.peers[one] = other
                self.selector.register(one, selectors.EVENT_READ)

    def _forward(self, one: socket.socket) -> None:
        try:
            data = one.recv(1 << 16)
            if data:
                self.peers[one].sendall(data)
                return
        except OSError:
            pass
        self._end(one)

    def _end(self, one: socket.socket) -> None:
        if one in self.peers:
            for end in (one, self.peers[one]):
                self.selector.unregister(end)
                del self.peers[end]
                with contextlib.suppress(OSError):
                    # Close with a reset.
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.close()
