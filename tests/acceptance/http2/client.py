"""An HTTP/2 client that says whatever it is told to, right or wrong."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions

__all__ = ["Answer", "Client"]

Fields = list[tuple[str, str]]


@dataclass
class Answer:
    """What came back on one stream.

    :ivar frames: How many DATA frames there were.
    :ivar ended: Whether it came to its proper end; else it was reset, or its connection closed.
    """

    status: int = 0
    fields: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    frames: int = 0
    ended: bool = False
    reset: bool = False


class Client:
    """One connection, over TLS.

    :ivar error: What the server ended the connection with.
    :ivar taking: Whether it makes room for more than the first 65535 bytes of its answers.
    """

    def __init__(self, port: int, certificate: Path) -> None:
        context = ssl.create_default_context(cafile=str(certificate))
        context.set_alpn_protocols(["h2"])
        plain = socket.create_connection(("127.0.0.1", port), timeout=20)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = context.wrap_socket(plain, server_hostname="127.0.0.1")
        assert self.socket.selected_alpn_protocol() == "h2"
        self.state = h2.connection.H2Connection(
            h2.config.H2Configuration(
                header_encoding="latin-1",
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self.state.initiate_connection()
        self.answers: dict[int, Answer] = {}
        self.closed = False
        self.error: int | None = None
        self.taking = True
        self.flush()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def flush(self) -> None:
        data = self.state.data_to_send()
        if data:
            try:
                self.socket.sendall(data)
            except OSError:
                self.closed = True

    def ask(
        self,
        path: str = "/svc",
        fields: Fields = (),  # type: ignore[assignment]
        *,
        method: str = "GET",
        authority: str = "a.test",
        end: bool = True,
    ) -> int:
        """Begin a well-formed request; return its stream."""
        pseudo = [(":method", method), (":scheme", "https"), (":authority", authority)]
        return self.say([*pseudo, (":path", path), *fields], end=end)

    def say(self, head: Fields, *, end: bool = True) -> int:
        """Send *head* as it is; return its stream."""
        stream = self.state.get_next_available_stream_id()
        self.answers[stream] = Answer()
        encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in head]
        self.state.send_headers(stream, encoded, end_stream=end)
        self.flush()
        return stream

    def send(self, stream: int, data: bytes, *, end: bool = False) -> None:
        """Send *data* on *stream*, as fast as it is taken."""
        view = memoryview(data)
        while len(view) or end:
            room = self.state.local_flow_control_window(stream)
            size = min(room, self.state.max_outbound_frame_size, len(view))
            if size or not len(view):
                last = end and size == len(view)
                self.state.send_data(stream, bytes(view[:size]), end_stream=last)
                view = view[size:]
                self.flush()
                if last:
                    return
            elif not self.receive():
                return

    def receive(self) -> bool:
        """Take in what comes next; return whether anything may come after it."""
        if self.closed:
            return False
        try:
            data = self.socket.recv(1 << 16)
        except OSError as error:
            if isinstance(error, TimeoutError):
                raise
            data = b""
        if not data:
            self.closed = True
            return False
        try:
            events = self.state.receive_data(data)
        except h2.exceptions.ProtocolError:  # such as a response that ends before its length
            self.closed = True
            return False
        for event in events:
            self._happened(event)
        self.flush()
        return not self.closed

    def _happened(self, event: Any) -> None:
        answer = self.answers.get(getattr(event, "stream_id", 0) or 0)
        if isinstance(event, h2.events.ConnectionTerminated):
            self.closed = True
            self.error = event.error_code
        elif answer is None:
            return
        elif isinstance(event, h2.events.ResponseReceived):
            answer.fields = {str(name): str(value) for name, value in event.headers}
            answer.status = int(answer.fields[":status"])
        elif isinstance(event, h2.events.DataReceived):
            answer.body += event.data
            answer.frames += 1
            if self.taking and event.flow_controlled_length:
                self.take(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            answer.ended = True
        elif isinstance(event, h2.events.StreamReset):
            answer.reset = True

    def take(self, size: int, stream: int) -> None:
        """Make room for *size* more bytes on *stream*."""
        try:
            self.state.increment_flow_control_window(size)
            self.state.increment_flow_control_window(size, stream)
        except h2.exceptions.StreamClosedError:
            pass

    def answer(self, stream: int) -> Answer:
        """Return what came back on *stream*, once nothing more will."""
        answer = self.answers[stream]
        while not answer.ended and not answer.reset and self.receive():
            pass
        return answer
