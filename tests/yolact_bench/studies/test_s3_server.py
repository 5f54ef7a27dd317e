"""The S3 server of the studies and its network with latency; `tests.servers` uses the same server."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.servers.servers import s3_server, use_s3
from yolact_bench.studies.s3_server import delayed
from yolact_ops.transfer.storage import make_client

LATENCY = 0.02


@pytest.fixture
def echo() -> Iterator[str]:
    """The address of a server that sends back what it gets, and closes when its client has."""

    def answer(client: socket.socket) -> None:
        with client:
            while data := client.recv(1 << 16):
                client.sendall(data)

    def serve() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=[client], daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def receive(connection: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size and (data := connection.recv(1 << 16)):
        found += data
    return found


def test_all_bytes_of_all_connections_come_in_order_and_late(echo: str) -> None:
    def talk(number: int) -> list[float]:
        """Seconds that each of two answers took, the first one with the connection."""
        sent, took = np.random.default_rng(number).bytes(3_000_001), []
        began = time.perf_counter()
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as connection:
            for byte in (b"a", b"b"):
                connection.sendall(byte)
                assert receive(connection, 1) == byte
                took.append(time.perf_counter() - began)
                began = time.perf_counter()
            writing = threading.Thread(target=connection.sendall, args=[sent])
            writing.start()
            found = receive(connection, len(sent))
            writing.join()
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""
        assert found == sent
        return took

    with delayed(echo, LATENCY) as address, ThreadPoolExecutor(8) as pool:
        for first, second in pool.map(talk, range(8)):
            assert first >= 2 * LATENCY
            assert second >= LATENCY


def test_a_real_server_answers_through_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "one").write_bytes(b"content")
    with s3_server(tmp_path) as server, delayed(server, LATENCY) as address:
        use_s3(monkeypatch, address)
        assert make_client().get_object(Bucket="bucket", Key="one")["Body"].read() == b"content"
