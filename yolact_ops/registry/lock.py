"""A lock in MLflow's registry, shared by processes on any machine: one promotion at a time.

MLflow has no compare-and-set for aliases, so two processes that read, decide and write would overwrite each other. The
one atomic operation that its database offers is to create a registered model of a given name. The lock is therefore an
empty registered model ``NAME.promotion-lock`` whose tags hold its owner, a random token and an expiry time. Releasing
it deletes the model.

An expired lock is broken by renaming it. The new name contains the token of the expired lock, so of several processes
that found it expired only one succeeds, which then checks that it renamed the right lock. The renamed lock is kept
until the next holder is done: a process that saw the same expired lock long ago cannot rename the current lock, as a
rename to a taken name fails.

Requests made under the lock time out after seconds instead of MLflow's minutes: a write ends before the lock expires.

One race remains: a holder suspended between its last `Hold.check` and its write, or a process suspended between finding
a lock expired and renaming it, for longer than a lock's lifetime. There is still one champion then, as an alias is one
pointer, and no decision is lost, as each is a tag of its own; `yolact_ops.registry.history` reports that alias and
decisions disagree.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from yolact_ops.registry.versions import RegistryError
from yolact_ops.tracking.store import TrackingError, reported

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import RegisteredModel

log = logging.getLogger(__name__)

LIFETIME = 300.0
"""Seconds after which a lock expires: its process is presumed dead. The work under it takes seconds."""
PATIENCE = 60.0
"""Seconds to wait for another process's lock."""
MARGIN = 0.5
"""Fraction of the lifetime after which a holder stops writing: the clocks of machines differ."""
_TAKEN = ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST")
"""MLflow's error codes for the loser of a race to create or rename; the second if the winner has deleted it already."""
_REQUESTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""MLflow's settings under the lock: with the pauses between retries a request ends within about 70 s, so before the
lock expires if it began before the `MARGIN`. The defaults are 7 retries of 120 s each."""
_BROKEN = ".broken-"
"""Between the lock's name and the token of an expired lock: its new name."""
PAUSE = 0.25
"""Seconds between two checks of another process's lock."""


class LockedError(RegistryError):
    """Another process is promoting the same model, or broke this process's lock."""


@dataclass(frozen=True)
class Hold:
    """A lock that is held."""

    client: MlflowClient
    lock_name: str
    token: str
    deadline: float
    """Monotonic time, seconds: until when the holder may write."""

    def check(self) -> None:
        """Make sure that the lock is still held; call before each write.

        Raises:
            LockedError: the deadline has passed, or another process broke the lock.
        """
        if time.monotonic() > self.deadline or not self._is_ours():
            raise LockedError(
                f"the lock {self.lock_name} was lost: this took so long that the lock may have expired. Check with "
                "`yolact history` which version is the champion, and run it again."
            )

    def release(self) -> None:
        """Delete the lock and the remains of broken ones, unless this lock was broken itself."""
        if self._is_ours():
            with reported(f"delete {self.lock_name}"):
                for name in (
                    self.lock_name,
                    *_broken(self.client, self.lock_name),
                ):  # the lock first, see above
                    _delete(self.client, name)

    def _is_ours(self) -> bool:
        with reported(f"read {self.lock_name}"):
            found = _find(self.client, self.lock_name)
        return found is not None and found.tags.get("token") == self.token


@contextmanager
def hold(
    client: MlflowClient, name: str, owner: str, *, lifetime: float = LIFETIME, patience: float = PATIENCE
) -> Iterator[Hold]:
    """Hold the lock of the registered model ``name``.

    Args:
        client: connected to the registry.
        name: the registered model.
        owner: shown to other processes.
        lifetime: seconds, see `LIFETIME`.
        patience: seconds to wait for another process.

    Raises:
        LockedError: another process held it all the time.
        TrackingError: the store fails or denies access.
    """
    with _environment(_REQUESTS):
        lock = _acquire(client, f"{name}.promotion-lock", owner, lifetime, patience)
        try:
            yield lock
        finally:
            try:
                lock.release()
            except TrackingError as error:  # the work under the lock is done and stays valid
                log.warning("the lock %s stays until it expires: %s", lock.lock_name, error)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables and restore them afterwards."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _acquire(client: MlflowClient, lock_name: str, owner: str, lifetime: float, patience: float) -> Hold:
    give_up = time.monotonic() + patience
    while True:
        began = time.monotonic()
        token = uuid.uuid4().hex
        with reported(f"create {lock_name}"):
            is_made = _create(client, lock_name, token, owner, lifetime)
            found = None if is_made else _find(client, lock_name)
        # A request whose response was lost is retried, and the retry finds the lock that the first one created.
        if is_made or (found is not None and found.tags.get("token") == token):
            return Hold(client, lock_name, token, began + MARGIN * lifetime)
        if found is not None and _is_dead(found) and _break(client, found):
            continue
        if time.monotonic() > give_up:
            raise _locked(lock_name, found)
        time.sleep(PAUSE)


def _locked(lock_name: str, found: RegisteredModel | None) -> LockedError:
    if found is None:  # it was gone at each check, or MLflow hides what has the name
        return LockedError(
            f"could not get the lock {lock_name}: other promotions were faster, or a prompt has that name in the "
            "registry. Run it again."
        )
    return LockedError(
        f"another promotion is running: {_holder(found)}. If that process is dead, its lock expires at "
        f"{_when(found, 'until')}: run this again then."
    )


def _create(client: MlflowClient, lock_name: str, token: str, owner: str, lifetime: float) -> bool:
    """Create the lock with its tags in one database transaction; False if it exists."""
    from mlflow.exceptions import MlflowException

    now = time.time()
    tags = {"token": token, "owner": owner, "since": repr(now), "until": repr(now + lifetime)}
    try:
        client.create_registered_model(lock_name, tags, "Held by a running promotion or rollback, which deletes it.")
    except MlflowException as error:
        if error.error_code in _TAKEN:
            return False
        raise
    return True


def _find(client: MlflowClient, lock_name: str) -> RegisteredModel | None:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(lock_name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def _is_dead(lock: RegisteredModel) -> bool:
    return time.time() > _moment(lock, "until")


def _break(client: MlflowClient, dead: RegisteredModel) -> bool:
    """Remove an expired lock; False if another process did so first."""
    token = dead.tags.get("token", "")
    aside = f"{dead.name}{_BROKEN}{token}"
    with reported(f"break {dead.name}"):
        if not _rename(client, dead.name, aside):
            return False
        taken = _find(client, aside)
        if taken is not None and taken.tags.get("token") == token:
            log.warning("broke the expired lock of a process that seems to have died: %s", _holder(dead))
            return True
        # Between check and rename the expired lock was replaced by a live one: rename that one back. If a third process
        # has created a lock meanwhile, the holder of the renamed one notices in `Hold.check` and gives up.
        if not _rename(client, aside, dead.name):
            _delete(client, aside)
    return False


def _broken(client: MlflowClient, lock_name: str) -> list[str]:
    """Names of broken locks."""
    found = client.search_registered_models(f"name LIKE '{lock_name}{_BROKEN}%'")
    return [
        model.name for model in found if model.name.startswith(lock_name + _BROKEN)
    ]  # LIKE's _ matches any character


def _rename(client: MlflowClient, name: str, to: str) -> bool:
    """Rename a registered model; False if it does not exist or the new name is taken."""
    from mlflow.exceptions import MlflowException

    try:
        client.rename_registered_model(name, to)
    except MlflowException as error:
        if error.error_code in _TAKEN:
            return False
        raise
    return True


def _delete(client: MlflowClient, name: str) -> None:
    """Delete a registered model if it exists."""
    from mlflow.exceptions import MlflowException

    try:
        client.delete_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise


def _holder(lock: RegisteredModel) -> str:
    return f"{lock.tags.get('owner', 'unknown')}, since {_when(lock, 'since')}"


def _moment(lock: RegisteredModel, tag: str) -> float:
    """A time tag as seconds since 1970; 0 if it has none."""
    try:
        return float(lock.tags.get(tag, "0"))
    except ValueError:
        return 0.0


def _when(lock: RegisteredModel, tag: str) -> str:
    return datetime.fromtimestamp(_moment(lock, tag), UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
