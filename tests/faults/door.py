"""A door before a server: a proxy that a test opens, shuts, makes slow, or lets swallow the answers."""

import socket
import threading
import time
from contextlib import suppress


class Door:
    """A TCP proxy on a free local port before 127.0.0.1:port.

    `shut`: who connects is turned away. `deaf`: what is asked gets through, the answer does not. `delay`: seconds that
    each piece of an answer is held back. `refusal`: what each HTTP request is answered instead.
    """

    def __init__(self, port: int) -> None:
        self.port_behind = port
        self.shut = self.deaf = False
        self.delay = 0.0
        self.refusal: tuple[int, str] | None = None  # a status, and S3's word for it: 503, SlowDown
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.connections: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        """Turn everybody away, those who are inside too."""
        self.shut = True
        self.cut()

    def cut(self) -> None:
        """Turn away those who are inside."""
        for connection in self.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.connections.clear()

    def open(self) -> None:
        """Let everybody in again."""
        self.shut = self.deaf = False

    def gone(self) -> None:
        """End it."""
        self.close()
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:  # the door is gone
                return
            if self.shut:
                client.close()
                continue
            if self.refusal is not None:
                threading.Thread(target=self._refuse, args=(client, *self.refusal), daemon=True).start()
                continue
            try:
                server = socket.create_connection(("127.0.0.1", self.port_behind))
            except OSError:
                client.close()
                continue
            self.connections += [client, server]
            threading.Thread(target=self._lead, args=(client, server), daemon=True).start()

    def _refuse(self, client: socket.socket, status: int, word: str) -> None:
        """Read one request to its end, and answer that it is not done."""
        with client, client.makefile("rb") as asked, suppress(OSError, ValueError):
            client.settimeout(10)
            lengths = [0]
            while (line := asked.readline()) not in (b"\r\n", b""):
                if line.lower().startswith(b"content-length:"):
                    lengths.append(int(line.split(b":")[1]))
                if line.lower().startswith(b"expect:"):
                    client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            asked.read(lengths[-1])
            body = f"<?xml version='1.0'?><Error><Code>{word}</Code><Message>no</Message></Error>".encode()
            head = f"HTTP/1.1 {status} {word}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n"
            client.sendall(head.encode() + b"Connection: close\r\n\r\n" + body)

    def _lead(self, client: socket.socket, server: socket.socket) -> None:
        """Pass on what both say, until one of them ends."""
        with client, server:
            there = threading.Thread(target=self._pass, args=(client, server, False), daemon=True)
            there.start()
            self._pass(server, client, True)
            there.join()

    def _pass(self, source: socket.socket, target: socket.socket, answers: bool) -> None:
        with suppress(OSError):
            while piece := source.recv(65536):
                if answers and self.deaf:
                    break
                if answers and self.delay:
                    time.sleep(self.delay)
                target.sendall(piece)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
