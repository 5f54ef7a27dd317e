"""The web application: routers, errors, the token, and metrics of requests."""

from __future__ import annotations

import hmac
import importlib.metadata
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import ApiError, OverloadedError
from serving.routes import feedback, health, model, open_inference, page, predict
from serving.service import Service, service_of
from yolact.formats.problems import writable

PROTECTED = (predict.router, model.router, feedback.router, open_inference.models)
"""Routers whose requests must bear the token, if there is one."""
OPEN = (health.router, open_inference.health, page.router)

PROBES = ("/healthz", "/readyz", "/metrics", "/v2/health/")
"""Paths that are answered however many requests are in work: else a busy server would look like a broken one."""

DESCRIPTION = """Instance segmentation with YOLACT: images in; classes, scores, boxes and masks out.

Every error is `{"error": "..."}`. With a token set, requests need `Authorization: Bearer TOKEN`."""

_BEARER = HTTPBearer(auto_error=False, description="The server's token.")


def create_app(service: Service) -> FastAPI:
    """The application.

    Args:
        service: what its routes share; it runs as long as the application.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(
        title="YOLACT",
        description=DESCRIPTION,
        version=importlib.metadata.version("yolact-pipeline"),
        lifespan=lifespan,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
    )
    app.state.service = service
    for router in PROTECTED:
        app.include_router(router, dependencies=[] if service.token is None else [Depends(authorize)])
    for router in OPEN:
        app.include_router(router)
    app.add_exception_handler(ApiError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_error)
    app.add_exception_handler(RequestValidationError, _answer_error)
    app.add_exception_handler(Exception, _answer_error)
    app.add_middleware(_RequestMiddleware, service=service)
    return app


async def authorize(request: Request, given: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]) -> None:
    """Refuse a request without the token.

    Raises:
        ApiError: 401.
    """
    token = service_of(request).token
    assert token is not None
    if given is None or not hmac.compare_digest(given.credentials.encode(), token):
        what = "the token is wrong" if given else "a token is needed: Authorization: Bearer TOKEN"
        raise ApiError(401, what, {"WWW-Authenticate": "Bearer"})


async def _answer_error(request: Request, error: Exception) -> JSONResponse:
    """Every failure as ``{"error": message}``."""
    if isinstance(error, ApiError):
        if isinstance(error, OverloadedError):
            service_of(request).metrics.refused.labels(error.reason).inc()
        return JSONResponse({"error": writable(error.message)}, error.status, error.headers)
    if isinstance(error, HTTPException):
        return JSONResponse({"error": str(error.detail)}, error.status_code, error.headers)
    if isinstance(error, RequestValidationError):
        lines = [_explain(detail) for detail in error.errors()]
        return JSONResponse({"error": writable("; ".join(lines))}, 422)
    return JSONResponse({"error": "internal error"}, 500)


def _explain(detail: Any) -> str:
    name = ".".join(str(part) for part in detail["loc"][1:])
    if detail["type"] == "extra_forbidden":
        return f"{name}: there is no such parameter; /openapi.json lists them"
    return f"{name}: {detail['msg'][:1].lower()}{detail['msg'][1:]}"


class _RequestMiddleware:
    """Counts, times and limits requests; while the server stops, tells clients to close their connections."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service
        self.active = 0
        """Requests in work."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = perf_counter(), "500"

        async def send_measured(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
                if self.service.stopping:
                    MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        answer = self.app
        if self.active >= self.service.settings.max_requests and not scope["path"].startswith(PROBES):
            answer = JSONResponse({"error": "too many requests are in work"}, 503, {"Retry-After": "1"})
        self.active += 1
        try:
            await answer(scope, receive, send_measured)
        finally:
            self.active -= 1
            path = getattr(scope.get("route"), "path", "other")
            self.service.metrics.requests.labels(path, status).inc()
            self.service.metrics.request_seconds.labels(path).observe(perf_counter() - start)
