"""One promotion at a time: a lock in MLflow's registry, for processes on any machines.

MLflow moves an alias without asking what it was, so two processes that both look, decide and write would overwrite each
other. What its database does once only is to create a registered model of a name. So the lock is an empty registered
model ``NAME.promotion-lock`` with who holds it, a random token, and until when. It is deleted at the end. A holder that
died is known by its time: whoever comes later renames its lock to one name for all who found it dead, and looks whether
it really took the dead one. What was renamed stays until the next holder is done, so that somebody who saw the same
dead lock long ago cannot rename the lock of now: a rename to a taken name fails.

Requests under the lock have seconds, not MLflow's minutes: a write ends before others take its process for dead.

What is left to chance: a holder that is stopped between its last look at the lock (`Hold.check`) and its write, or one
who breaks a dead lock between look and rename, for longer than a lock lives. There is still one champion then, since an
alias is one pointer, and no decision is lost, since each is a tag of its own; `yolact_ops.registry.history` sees that
alias and decisions do not agree, and says so.
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
"""Seconds after which a lock is taken for that of a dead process. What happens under it takes some seconds."""
PATIENCE = 60.0
"""Seconds to wait for somebody else's lock."""
MARGIN = 0.5
"""Share of the lifetime after which a holder writes nothing any more: clocks of machines differ."""
_TAKEN = ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST")
"""What MLflow says to a second one who creates or renames; the latter where the first one has deleted it by then."""
_REQUESTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
"""Under the lock: with the pauses between retries, a request ends within some 70 s, and so before the lock does if it
began before the `MARGIN`. MLflow's own are 7 retries of 120 s each."""
_BROKEN = ".broken-"
"""Between the lock's name and a dead holder's token: what its lock is renamed to."""
PAUSE = 0.25
"""Seconds between two looks at somebody else's lock."""


class LockedError(RegistryError):
    """Somebody else promotes the same model, or took this process for dead."""


@dataclass(frozen=True)
class Hold:
    """The lock while it is held."""

    client: MlflowClient
    lock_name: str
    token: str
    deadline: float
    """On the monotonic clock: the last moment at which the holder may still write."""

    def check(self) -> None:
        """Make sure that the lock is still held, before something is written.

        Raises:
            LockedError: it took too long, or somebody broke the lock.
        """
        if time.monotonic() > self.deadline or not self._is_ours():
            raise LockedError(
                f"the lock {self.lock_name} was lost: this took so long that it may be taken for dead. See with "
                "`yolact history` which version is the champion, and run it again."
            )

    def release(self) -> None:
        """Delete the lock, and what is left of dead ones, unless somebody broke it."""
        if self._is_ours():
            with reported(f"delete {self.lock_name}"):
                for name in (self.lock_name, *_broken(self.client, self.lock_name)):  # the lock first: see the head
                    _delete(self.client, name)

    def _is_ours(self) -> bool:
        with reported(f"look at {self.lock_name}"):
            found = _find(self.client, self.lock_name)
        return found is not None and found.tags.get("token") == self.token


@contextmanager
def hold(
    client: MlflowClient, name: str, owner: str, *, lifetime: float = LIFETIME, patience: float = PATIENCE
) -> Iterator[Hold]:
    """Hold the lock of the registered model ``name``.

    Args:
        client: of the registry.
        name: the registered model.
        owner: who asks, for the messages of others.
        lifetime: seconds, see `LIFETIME`.
        patience: seconds to wait for somebody else.

    Raises:
        LockedError: somebody else has held it all the time.
        TrackingError: the store fails, or does not let us.
    """
    with _environment(_REQUESTS):
        lock = _acquire(client, f"{name}.promotion-lock", owner, lifetime, patience)
        try:
            yield lock
        finally:
            try:
                lock.release()
            except TrackingError as error:  # what was done under it stands
                log.warning("the lock %s stays until it is taken for dead: %s", lock.lock_name, error)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, and give them back as they were."""
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
        # A request whose answer was lost is sent again, and then meets the lock that it has made itself.
        if is_made or (found is not None and found.tags.get("token") == token):
            return Hold(client, lock_name, token, began + MARGIN * lifetime)
        if found is not None and _is_dead(found) and _break(client, found):
            continue
        if time.monotonic() > give_up:
            raise _locked(lock_name, found)
        time.sleep(PAUSE)


def _locked(lock_name: str, found: RegisteredModel | None) -> LockedError:
    if found is None:  # it came and went each time, or MLflow hides what has the name
        return LockedError(
            f"the lock {lock_name} could not be had: other promotions were quicker, or a prompt has that name in the "
            "registry. Run it again."
        )
    return LockedError(
        f"another promotion is under way: {_holder(found)}. If that process is dead, its lock ends by itself "
        f"at {_when(found, 'until')}: run this again then."
    )


def _create(client: MlflowClient, lock_name: str, token: str, owner: str, lifetime: float) -> bool:
    """Make the lock, tags included, in one transaction of the registry's database; False if it is there."""
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
    """Take a dead holder's lock away; False where another process did so first."""
    token = dead.tags.get("token", "")
    aside = f"{dead.name}{_BROKEN}{token}"
    with reported(f"break {dead.name}"):
        if not _rename(client, dead.name, aside):
            return False
        taken = _find(client, aside)
        if taken is not None and taken.tags.get("token") == token:
            log.warning("the lock of a process that seems to have died is broken: %s", _holder(dead))
            return True
        # Between the look and the rename the dead lock went, and somebody else's came: it is given back. If a third
        # process has made one by now, its holder finds out by `Hold.check` and gives up.
        if not _rename(client, aside, dead.name):
            _delete(client, aside)
    return False


def _broken(client: MlflowClient, lock_name: str) -> list[str]:
    """Dead locks that were renamed."""
    found = client.search_registered_models(f"name LIKE '{lock_name}{_BROKEN}%'")
    return [model.name for model in found if model.name.startswith(lock_name + _BROKEN)]  # to LIKE, _ is any letter


def _rename(client: MlflowClient, name: str, to: str) -> bool:
    """False where there is no such model, or the new name is taken."""
    from mlflow.exceptions import MlflowException

    try:
        client.rename_registered_model(name, to)
    except MlflowException as error:
        if error.error_code in _TAKEN:
            return False
        raise
    return True


def _delete(client: MlflowClient, name: str) -> None:
    """Delete a registered model; it may be gone already."""
    from mlflow.exceptions import MlflowException

    try:
        client.delete_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise


def _holder(lock: RegisteredModel) -> str:
    return f"{lock.tags.get('owner', 'unknown')}, since {_when(lock, 'since')}"


def _moment(lock: RegisteredModel, tag: str) -> float:
    """Seconds since 1970; 0 for what is no lock of ours."""
    try:
        return float(lock.tags.get(tag, "0"))
    except ValueError:
        return 0.0


def _when(lock: RegisteredModel, tag: str) -> str:
    return datetime.fromtimestamp(_moment(lock, tag), UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
