"""Run the application with uvicorn, and stop it without losing a request."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn

from serving.app import create_app
from serving.service import Service
from serving.settings import ServerSettings
from yolact.errors import YolactError

log = logging.getLogger(__name__)

KEEP_ALIVE = 75
"""Seconds for which an idle connection stays open: longer than load balancers keep theirs (often 60), so that these
never send a request on a connection that the server is closing."""


class Server(uvicorn.Server):
    """A server that takes leave on SIGTERM and SIGINT.

    It is not ready from then on, still accepts requests for ``drain`` seconds, answers what it has accepted, and
    ends. A second signal ends the wait.

    Args:
        settings: see `ServerSettings`.
        started: called with the address when the server listens.
    """

    def __init__(self, settings: ServerSettings, started: Callable[[str], None] | None = None) -> None:
        self.settings = settings
        self.error: YolactError | None = None
        """Why the server gave up."""
        self.service = Service(settings, self._give_up)
        self._tell = started
        super().__init__(
            uvicorn.Config(
                create_app(self.service),
                host=settings.host,
                port=settings.port,
                http="h11",
                loop="asyncio",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=int(settings.body_timeout + settings.timeout) + 5,
            )
        )

    @property
    def address(self) -> str:
        """Where the server listens, as ``http://127.0.0.1:8080``."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    async def startup(self, sockets: list | None = None) -> None:
        """Listen, then say where."""
        await super().startup(sockets)
        if self.started and self._tell is not None:
            self._tell(self.address)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take leave, as the class says; called in the main thread for SIGTERM and SIGINT."""
        drain = self.settings.drain
        if self.service.stopping or not drain:
            self.service.stopping = True
            self.should_exit = True
            return
        self.service.stopping = True
        log.info("stopping in %g s; until then requests are still accepted", drain)
        timer = threading.Timer(drain, self.stop)
        timer.daemon = True
        timer.start()

    def stop(self) -> None:
        """Accept no more requests, answer those accepted, and end."""
        self.should_exit = True

    def _give_up(self, error: YolactError) -> None:
        self.error = error
        self.should_exit = True


def serve(settings: ServerSettings, started: Callable[[str], None] | None = None) -> None:
    """Serve until a signal comes.

    Raises:
        YolactError: the only model cannot be loaded, or a setting is wrong.
    """
    server = Server(settings, started)
    server.run()
    if server.error is not None:
        raise server.error
