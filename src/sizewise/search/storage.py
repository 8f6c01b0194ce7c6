"""Where a study is kept: a database file, or a server that several machines share, on which trials give signs of life.

A trial whose run gives none for a while has been lost with it; whoever looks next puts its plan back.
"""

import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.exceptions import OptunaError
from optuna.samplers import BaseSampler
from optuna.storages import RDBStorage, fail_stale_trials
from optuna.trial import FrozenTrial
from sqlalchemy import event, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from sizewise.errors import MissingExtra, UsageError

__all__ = ["Given", "Heart", "answering", "opened", "put_back_stale", "quietly", "sqlite_url"]

BEAT_S = 30  # seconds between signs of life,
GRACE_S = 150  # without which a trial counts as lost
OPENINGS = 5  # that are tried while another process may be making the tables
PAUSE_S = 0.5
DRIVERS = ("psycopg", "psycopg2")


def sqlite_url(path: Path) -> str:
    """The address of a database file."""
    return "sqlite:///" + str(path.absolute()).replace("%", "%25").replace("?", "%3F")


@contextmanager
def quietly() -> Iterator[None]:
    """Without what Optuna says that no user of ours has asked for: of new studies, of what is experimental, of signs of life."""
    said = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"optuna\.|sizewise\.search\.")
            yield
    finally:
        optuna.logging.set_verbosity(said)


@contextmanager
def answering(url: str, *others: type[Exception]) -> Iterator[None]:
    """Errors of the storage, and those of other kinds that are named, told to people; a password in the address is not.

    Raises:
        MissingExtra: the database's driver is not installed.
        UsageError: the storage cannot be used.
    """
    kinds: tuple[type[Exception], ...] = (OptunaError, SQLAlchemyError, *others)
    try:
        yield
    except ImportError as error:
        missing = getattr(error.__cause__ or error, "name", None)
        if missing in DRIVERS:
            raise MissingExtra("psycopg", "postgresql", where="storage") from error
        raise _unusable(url, error) from error
    except kinds as error:
        raise _unusable(url, error) from error


def _unusable(url: str, error: Exception) -> UsageError:
    try:
        shown = make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        shown = url
    return UsageError(
        "the study cannot be kept there",
        where="storage",
        got=f"{shown}: {' '.join(str(error).split())[:200]}",
        wanted="an address that Optuna takes, such as sqlite:///study.db",
        hint="finished trials are in the run folder, and --resume goes on; a damaged study.db may be deleted: it is made anew from them",
    )


def opened(url: str, *, shared: bool) -> RDBStorage:
    """The storage.

    Args:
        url: any address that Optuna takes.
        shared: whether other runs may use it, too, so that trials have to give signs of life.
    """
    beats = {"heartbeat_interval": BEAT_S, "grace_period": GRACE_S, "heartbeat_stale_trial_callback": _put_back}
    kept: dict[str, Any] = beats if shared else {}
    for opening in range(OPENINGS):
        try:
            storage = RDBStorage(url, {"pool_pre_ping": True}, **kept)
            break
        except SQLAlchemyError as error:
            if "exists" not in str(error) or opening == OPENINGS - 1:  # else another process makes the same tables at this moment
                raise
            threading.Event().wait(PAUSE_S)
    if storage.engine.dialect.name == "sqlite":
        storage.engine.dispose()
        event.listen(storage.engine, "connect", _hurry)
    return storage


def _hurry(connection: Any, _: Any) -> None:
    """A database file is not flushed to the disk at every word: the run folder says what is finished."""
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


def _put_back(study: optuna.Study, trial: FrozenTrial) -> None:
    study.enqueue_trial(trial.params)


def put_back_stale(study: optuna.Study) -> None:
    """Fail every trial that has given no sign of life for too long; its plan waits to be tried again."""
    with quietly():
        fail_stale_trials(study)


class Heart(threading.Thread):
    """Gives signs of life of trials under way, until it is stopped.

    Args:
        storage: that they are kept in.
    """

    def __init__(self, storage: RDBStorage) -> None:
        super().__init__(name="signs of life", daemon=True)
        self._storage, self._ended = storage, threading.Event()
        self._trials: set[int] = set()

    def begin(self, trial: int) -> None:
        """From now on, at once for the first time."""
        self._storage.record_heartbeat(trial)
        self._trials.add(trial)

    def end(self, trial: int) -> None:
        """No more."""
        self._trials.discard(trial)

    def run(self) -> None:
        """Beat."""
        while not self._ended.wait(BEAT_S):
            for trial in tuple(self._trials):
                with suppress(OptunaError, SQLAlchemyError):  # a server that is away for a moment; the next sign may be in time
                    self._storage.record_heartbeat(trial)
        self._storage.remove_session()

    def stop(self) -> None:
        """Stop, and wait for it."""
        self._ended.set()
        self.join()


class Given(BaseSampler):
    """Suggests what it is given.

    Args:
        params: of the next trial.
    """

    def __init__(self, params: Mapping[str, Any]) -> None:
        self._params = params

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Nothing depends on anything."""
        return {}

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        """Nothing."""
        return {}

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        """The value that is given."""
        return self._params[param_name]
