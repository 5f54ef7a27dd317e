"""One promotion at a time: a lock in MLflow's registry, for processes on any machines.

MLflow moves an alias without asking what it was, so two processes that both look, decide and write would overwrite each
other. What its database does once only is to create a registered model of a name. So the lock is an empty registered
model ``NAME.promotion-lock`` with who holds it, a random token, and until when. It is deleted at the end. A holder that
died is known by its time: whoever comes later renames its lock (a rename to a taken name fails, so one of several
succeeds), looks whether it really took the dead one, and deletes it.

What is left to chance: a holder that is stopped between its last look at the lock (`Hold.check`) and its write, for
longer than the lock lives. There is still one champion then, since an alias is one pointer, and no decision is lost,
since each is a tag of its own; `components.promote.history` sees that alias and decisions do not agree, and says so.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from components.common.registry import RegistryError
from components.common.store import TrackingError, reported

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
"""What MLflow says to a second one who creates; the latter where the first one has deleted it by then."""
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
                f"the lock {self.lock_name} was lost: this took so long that it may be taken for dead. Run it again; "
                "the aliases were not moved."
            )

    def release(self) -> None:
        """Delete the lock, unless somebody broke it."""
        if self._is_ours():
            with reported(f"delete {self.lock_name}"):
                self.client.delete_registered_model(self.lock_name)

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
    """
    lock = _acquire(client, f"{name}.promotion-lock", owner, lifetime, patience)
    try:
        yield lock
    finally:
        try:
            lock.release()
        except TrackingError as error:  # what was done under it stands
            log.warning("the lock %s stays until it is taken for dead: %s", lock.lock_name, error)


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
        if found is None:  # just deleted
            continue
        if _is_dead(found):
            _break(client, found)
            continue
        if time.monotonic() > give_up:
            raise LockedError(
                f"another promotion is under way: {_holder(found)}. If that process is dead, its lock ends by itself "
                f"at {_when(found, 'until')}: run this again then."
            )
        time.sleep(PAUSE)


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


def _break(client: MlflowClient, dead: RegisteredModel) -> None:
    """Take a dead holder's lock away; nothing where another process did so first."""
    from mlflow.exceptions import MlflowException

    token = dead.tags.get("token", "")
    aside = f"{dead.name}.broken-{token}"
    with reported(f"break {dead.name}"):
        try:
            client.rename_registered_model(dead.name, aside)
        except MlflowException as error:
            log.debug("%s was broken by another process: %s", dead.name, error)
            time.sleep(PAUSE)
            return
        taken = client.get_registered_model(aside)
        if taken.tags.get("token") == token:
            log.warning("the lock of a process that seems to have died is broken: %s", _holder(dead))
            client.delete_registered_model(aside)
            return
        # Between the look and the rename the dead lock went, and somebody else's came: it is given back. If a third
        # process has made one by now, its holder finds out by `Hold.check` and gives up.
        with suppress(MlflowException):
            client.rename_registered_model(aside, dead.name)
            return
        client.delete_registered_model(aside)


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
