"""Is it a gRPC server that answers? Servers of one answer each."""

import socket
import threading
import time

import pytest

from bench.fleet.grpc_answer import why_not

SETTINGS = b"\0\0\0\4\0\0\0\0\0"
NO_RAY = "what answers there is no Ray"


def headers(*content: int) -> bytes:
    return len(content).to_bytes(3, "big") + b"\1\4\0\0\0\1" + bytes(content)


@pytest.fixture
def server():
    """The address of a server that answers so, and then says nothing more."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answering(answer: bytes | None) -> str:
            def serve() -> None:
                connection, _ = listening.accept()
                with connection:
                    connection.recv(1 << 16)
                    if answer is not None:
                        connection.sendall(answer)
                        time.sleep(0.5)

            threading.Thread(target=serve, daemon=True).start()
            return f"127.0.0.1:{listening.getsockname()[1]}"

        yield answering


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (SETTINGS + headers(0x88, 0x5F), None),
        (SETTINGS + headers(0x3F, 0x88), None),  # the size of the table, 200
        (SETTINGS + headers(0x8D), NO_RAY),  # 404, as a proxy's
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", NO_RAY),
        (SETTINGS, "timed out"),
        (None, "the connection was closed"),
    ],
    ids=["gRPC", "gRPC with a table", "HTTP/2", "HTTP/1", "nothing more", "closed"],
)
def test_what_answers(server, answer, why):
    assert why_not(server(answer), 0.2) == why


def test_nobody():
    assert why_not("127.0.0.1:1", 1.0) == "Connection refused"
    assert why_not("nowhere.invalid:99999999", 1.0)
