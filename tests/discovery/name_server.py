"""A small DNS server on loopback, over UDP and TCP, that answers from a zone as a real one does."""

from __future__ import annotations

import socket
import struct
import threading
from types import TracebackType
from typing import Any

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.zone

ORIGIN = dns.name.from_text("test.")
SOA = "@ 60 IN SOA ns hostmaster 1 2 3 4 5\n@ 60 IN NS ns\nns 60 IN A 127.0.0.1\n"


class NameServer:
    """Serves the zone ``test.``; use it as a context manager.

    :param records: Lines of a zone file, besides its SOA and NS.
    :ivar asked: The questions, as ``a.test. A``, and how each came.
    :ivar failing: Questions, or kinds of records, that are answered with SERVFAIL.
    """

    def __init__(self, records: str) -> None:
        self.asked: list[tuple[str, str]] = []
        self.failing: set[str] = set()
        self.serve(records)

    def serve(self, records: str) -> None:
        """Serve other records from now on."""
        self._zone = dns.zone.from_text(SOA + records, ORIGIN, relativize=False, check_origin=False)

    def __enter__(self) -> NameServer:
        while True:
            self._tcp = socket.create_server(("127.0.0.1", 0))
            self.port = self._tcp.getsockname()[1]
            self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            try:
                self._udp.bind(("127.0.0.1", self.port))
                break
            except OSError:  # somebody else has it
                self._udp.close()
                self._tcp.close()
        self.address = f"127.0.0.1:{self.port}"
        self._threads = [
            threading.Thread(target=serve, daemon=True)
            for serve in (self._serve_udp, self._serve_tcp)
        ]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._udp.sendto(b"", ("127.0.0.1", self.port))
        self._tcp.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        self._udp.close()
        self._tcp.close()

    def _serve_udp(self) -> None:
        while True:
            data, client = self._udp.recvfrom(4096)
            if not data:
                return
            query, response = self._answer(data, "udp")
            try:
                wire = response.to_wire(max_size=query.payload or 512)
            except dns.exception.TooBig:
                response = dns.message.make_response(query)
                response.flags |= dns.flags.TC
                wire = response.to_wire()
            self._udp.sendto(wire, client)

    def _serve_tcp(self) -> None:
        while True:
            try:
                connection, _ = self._tcp.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as stream:
                head = stream.read(2)
                if len(head) == 2:
                    _, response = self._answer(stream.read(struct.unpack("!H", head)[0]), "tcp")
                    wire = response.to_wire(max_size=65535)
                    connection.sendall(struct.pack("!H", len(wire)) + wire)

    def _answer(self, data: bytes, way: str) -> tuple[Any, Any]:
        query = dns.message.from_wire(data)
        response = dns.message.make_response(query)
        response.flags |= dns.flags.AA
        [question] = query.question
        kind = dns.rdatatype.to_text(question.rdtype)
        text = f"{question.name} {kind}"
        self.asked.append((text, way))
        if not self.failing.isdisjoint((text, kind, "all")):
            response.set_rcode(dns.rcode.SERVFAIL)
            return query, response
        name = question.name
        for _ in range(8):
            if not name.is_subdomain(ORIGIN) or self._zone.get_node(name) is None:
                response.set_rcode(dns.rcode.NXDOMAIN)
                break
            found = self._zone.get_rrset(name, question.rdtype)
            alias = self._zone.get_rrset(name, "CNAME")
            if found is not None:
                response.answer.append(found)
                break
            if alias is None:
                break
            response.answer.append(alias)
            name = alias[0].target
        if not response.answer:
            response.authority.append(self._zone.find_rrset(ORIGIN, "SOA"))
        return query, response
