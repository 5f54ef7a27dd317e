"""Settings of the server: environment variables named ``YOLACT_SERVE_...``, or arguments."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from yolact.errors import SettingsError
from yolact.inference.network import Precision

PREFIX = "YOLACT_SERVE_"

BYTES_PER_CHARACTER = 4
"""Memory of a character of parsed text, at most: if the text has one beyond the first plane of Unicode."""
BYTES_PER_VALUE = 48
"""Memory of a parsed number and of the lists that refer to it, at most; in JSON it takes two bytes or more."""

REPORT_EXTRA = 8_000_000
"""Bytes of a report of feedback beyond the image. A hundred convex objects as wide as the largest masks, 8192 columns,
have run lengths of 3 MB: two numbers for each column, each of two characters."""

Seconds = Annotated[float, Field(gt=0, le=3600)]


class ServerSettings(BaseSettings):
    """What the server serves, and how much it accepts."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", frozen=True)

    model: str = "models:/yolact@champion"
    """``models:/NAME@ALIAS`` (followed: a version that gets the alias is taken up), ``models:/NAME/VERSION``, a folder
    with a model, or an ``.onnx`` or ``.xml`` file of `yolact export`."""
    candidate: str | None = None
    """A second model of the same forms, that requests may ask for (``candidate=true``) and the page compares with."""
    name: str | None = Field(default=None, min_length=1, pattern=r"^[^/]+$")
    """The model's name in the Open Inference Protocol; None for the registered name, or ``yolact``."""
    host: str = "127.0.0.1"
    """Address to listen at; ``0.0.0.0`` for all."""
    port: int = Field(default=8080, ge=0, le=65535)
    """0 takes a free one."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")
    """Exported files know only some, see `yolact_ops.prediction.model.EXPORTED_DEVICES`."""
    precision: Precision = "fp32"
    """Of the network; an exported file has its own."""
    batch_size: int = Field(default=8, ge=1, le=256)
    """Largest number of images that pass the network at once. They are those that wait when it is free; none waits for
    others to come."""
    mask_side: int = Field(default=2048, ge=64, le=8192)
    """Masks of images whose longer side exceeds this are reduced to it, pixels. Bounds the memory."""

    queue_size: int = Field(default=64, ge=1)
    """Images in work or waiting; a request beyond them is answered 429."""
    memory_mb: int = Field(default=1024, ge=1)
    """Memory of all request bodies and decoded images, MB; a request beyond it is answered 429."""
    max_images: int = Field(default=32, ge=1)
    """Images in a request."""
    max_body_mb: float = Field(default=32, gt=0)
    """Largest body of a request, MB. A report of feedback may be larger, see `max_report_bytes`."""
    max_megapixels: float = Field(default=50, gt=0)
    """Largest image, by its header, before it is decoded."""
    max_requests: int = Field(default=512, ge=1)
    """Requests in work at once, those included whose body is still arriving; one beyond them is answered 503. Health
    and metrics do not count."""
    timeout: Seconds = 30
    """From the end of a request's body to its answer, seconds; then it is answered 504."""
    body_timeout: Seconds = 20
    """For receiving a request's body, seconds; then it is answered 408."""

    poll: Seconds = 30
    """Seconds between two looks at the registry, on average: each is up to a fifth longer or shorter."""
    drain: float = Field(default=0, ge=0, le=600)
    """Seconds after SIGTERM in which the server still accepts requests but says that it is not ready, so that a load
    balancer sends no more."""
    feedback: Path | None = None
    """Folder in which ``POST /feedback`` stores images with what was found; None refuses them."""
    feedback_days: int = Field(default=30, ge=1, le=3650)
    """Stored images are deleted after this many days."""
    feedback_mb: int = Field(default=1000, ge=1)
    """Size of all stored images together, MB."""
    token: SecretStr | None = None
    """Requests must bear it (``Authorization: Bearer ...``); health and metrics are open."""
    token_file: Path | None = None
    """File with the token, instead of ``token``."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.max_images > self.queue_size:
            raise ValueError(f"max_images ({self.max_images}) must not be larger than queue_size ({self.queue_size})")
        if self.token is not None and self.token_file is not None:
            raise ValueError("token and token_file: set one of them")
        if self.decoded_bytes > self.memory_bytes:
            raise ValueError(
                f"memory_mb ({self.memory_mb}) must hold the largest request, {self.decoded_bytes / 1e6:.0f} MB: "
                f"{1 + BYTES_PER_CHARACTER} times max_body_mb ({self.max_body_mb:g}; of a report of feedback 4/3 of it "
                f"and {REPORT_EXTRA / 1e6:g}) and 3 times max_megapixels ({self.max_megapixels:g})"
            )
        return self

    @property
    def memory_bytes(self) -> int:
        """`memory_mb` in bytes."""
        return self.memory_mb * 10**6

    @property
    def max_body_bytes(self) -> int:
        """`max_body_mb` in bytes."""
        return int(self.max_body_mb * 1e6)

    @property
    def max_report_bytes(self) -> int:
        """Largest body of a report of feedback: an image of `max_body_bytes` in base64, and what was found in it."""
        return 4 * math.ceil(self.max_body_bytes / 3) + REPORT_EXTRA

    @property
    def max_pixels(self) -> int:
        """`max_megapixels` in pixels."""
        return int(self.max_megapixels * 1e6)

    @property
    def decoded_bytes(self) -> int:
        """Bytes of the largest body, parsed, with the largest image, decoded."""
        body = self.max_body_bytes if self.feedback is None else self.max_report_bytes
        return (1 + BYTES_PER_CHARACTER) * body + 3 * self.max_pixels

    def read_token(self) -> bytes | None:
        """The token that requests must bear; None if they need none.

        Raises:
            SettingsError: the file is missing or empty, or the token is empty.
        """
        if self.token_file is not None:
            try:
                text = self.token_file.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsError(f"token file {self.token_file} cannot be read: {error}") from error
            source = str(self.token_file)
        elif self.token is not None:
            text, source = self.token.get_secret_value().strip(), "token"
        else:
            return None
        if not text:
            raise SettingsError(f"{source}: the token is empty; write one, or unset it to accept all requests")
        return text.encode()


def read_settings(**given: Any) -> ServerSettings:
    """Settings from the environment, and from ``given`` where that is not None.

    Raises:
        SettingsError: a value is wrong; names the variable.
    """
    try:
        return ServerSettings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(detail, given) for detail in error.errors())) from error


def _explain(detail: Any, given: dict[str, Any]) -> str:
    message = detail["msg"].removeprefix("Value error, ")
    if not detail["loc"]:
        return f"serving: {message}"
    key = str(detail["loc"][0])
    name = f"--{key.replace('_', '-')}" if given.get(key) is not None else f"{PREFIX}{key.upper()}"
    shown = "" if "token" in key else f" (found {detail['input']!r})"
    return f"{name}: {message[:1].lower()}{message[1:]}{shown}"
