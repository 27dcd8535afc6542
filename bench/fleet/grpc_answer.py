"""Does a gRPC server answer at an address? Ray's head is one. Ray itself would take a minute to see that it is none,
and a proxy that answers for every address speaks HTTP/2 as well: so one call is made, and its answer looked at.
"""

import socket
import time

_HEADERS, _SETTINGS = 1, 4  # types of frames (RFC 9113)
_END_HEADERS, _END_STREAM = 4, 1
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_CALL = "/grpc.health.v1.Health/Check"
_STATUS_200 = 0x88
"""The header `:status: 200` (RFC 7541, static table). Every gRPC server answers so, whatever it makes of the call: its
own status comes behind."""


def _frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
    return len(content).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + content


def _text(value: str) -> bytes:
    return bytes([len(value)]) + value.encode()


def _call(host: str) -> bytes:
    """How a client begins, and an empty message for _CALL."""
    headers = b"\x83\x86"  # :method POST, :scheme http
    headers += b"\x04" + _text(_CALL) + b"\x01" + _text(host[:100])  # :path, :authority
    headers += b"\x0f\x10" + _text("application/grpc") + b"\0" + _text("te") + _text("trailers")  # content-type
    message = b"\0" + bytes(4)  # not compressed, of no bytes
    return (_PREFACE + _frame(_SETTINGS, 0, 0, b"") + _frame(_HEADERS, _END_HEADERS, 1, headers)
            + _frame(0, _END_STREAM, 1, message))  # fmt: skip


def why_not(address: str, limit_s: float) -> str | None:
    """Why no gRPC server answers at HOST:PORT within that time; None where one does."""
    host, _, port = address.rpartition(":")
    until = time.monotonic() + limit_s

    def read(count: int) -> bytes:
        found = b""
        while len(found) < count:
            connection.settimeout(max(until - time.monotonic(), 0.001))
            new = connection.recv(count - len(found))
            if not new:
                raise OSError("the connection was closed")
            found += new
        return found

    try:
        with socket.create_connection((host, int(port)), limit_s / 2) as connection:
            connection.sendall(_call(host))
            while True:
                begin = read(9)
                if begin[3] > 9:  # no frame of HTTP/2: HTTP/1 in words, or something else
                    return "what answers there is no Ray"
                content = read(int.from_bytes(begin[:3], "big"))
                if begin[3] == _HEADERS:
                    # The size of the table of headers may come first.
                    first = next((byte for byte in content if not 0x20 <= byte < 0x40), 0)
                    return None if first == _STATUS_200 else "what answers there is no Ray"
    except (OSError, OverflowError) as error:
        return getattr(error, "strerror", None) or str(error)
