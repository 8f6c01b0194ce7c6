"""The record of a search as an Optuna study, which can be resumed, shared between processes and looked at with `optuna-dashboard`.

A plan is one trial: running while it is tried, complete with its three objectives once its file is measured, pruned where it was stopped
or set aside by a prediction, failed where it cannot be carried out. The run folder says what is finished; the study follows it.
"""

import hashlib
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.exceptions import ExperimentalWarning, OptunaError
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState
from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError

from sizewise.errors import UsageError
from sizewise.search.proxy import Observation
from sizewise.search.space import OFF, Point, Space
from sizewise.types import Candidate, to_json

__all__ = ["Figures", "Study", "owner_of", "sqlite_url"]

OBJECTIVES = ("latency_s", "size_bytes", "loss")
STARTUP = 8  # trials before suggestions follow what was found
OWNER, STATUS, MEMORY = "owner", "status", "memory_bytes"
NOT_TRIED = "not tried"
STATES = {"measured": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "beaten": TrialState.PRUNED}  # else failed
SEED_STEP = 1_000_003

Figures = Mapping[str, float]


def sqlite_url(path: Path) -> str:
    """The address of a database file."""
    return "sqlite:///" + str(path.absolute()).replace("%", "%25").replace("?", "%3F")


class Study:
    """One search's trials.

    Args:
        space: of plans.
        url: any address that Optuna takes as a storage.
        name: of the study; it is continued where the storage has it.
        owner: which run this is, where several share the study.
        seed: of suggestions. They depend on it and on the trials so far, so that a resumed search suggests the same.

    Raises:
        UsageError: the storage cannot be used.
    """

    def __init__(self, space: Space, url: str, name: str, owner: str, seed: int) -> None:
        self.space, self._owner, self._seed = space, owner, seed
        self._distributions = _distributions(space)
        said = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)  # what it says of new studies is nothing that a user asked for
        try:
            self._storage = _opened(url)
            self._study = optuna.create_study(
                storage=self._storage, study_name=name, directions=["minimize"] * len(OBJECTIVES), load_if_exists=True
            )
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                self._study.set_metric_names(list(OBJECTIVES))
        except (OptunaError, SQLAlchemyError, ImportError, ValueError) as error:
            raise UsageError(
                "the study cannot be kept there",
                where="storage",
                got=f"{url}: {' '.join(str(error).split())[:200]}",
                wanted="an address that Optuna takes, such as sqlite:///study.db",
                hint="a damaged study.db may be deleted: it is made anew from the candidates that are finished",
            ) from error
        finally:
            optuna.logging.set_verbosity(said)

    def close(self) -> None:
        """Let go of the storage."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def resume(self, known: Mapping[Point, Candidate], figures: Mapping[Point, tuple[float, ...]]) -> None:
        """Bring the study up to what the run folder has: nothing that is finished is lost, and what was interrupted is tried next.

        Args:
            known: what this run has finished.
            figures: latency, size, memory and loss of what of it was measured.
        """
        held: set[Point] = set()
        for trial in self._study.get_trials(deepcopy=False):
            point = self._point(trial)
            if point is None or trial.user_attrs.get(OWNER) != self._owner:
                continue
            if trial.state == TrialState.RUNNING:
                self._study.tell(trial.number, state=TrialState.FAIL)
                if point not in known:
                    self.enqueue(point)
            elif trial.user_attrs.get("candidate"):
                held.add(point)
        for point, candidate in known.items():
            if point not in held:
                self._add(point, candidate, figures.get(point))

    def _add(self, point: Point, candidate: Candidate, figures: Sequence[float] | None) -> None:
        """A trial that was finished before the study knew of it."""
        attributes: dict[str, Any] = {OWNER: self._owner, "candidate": candidate.id, STATUS: candidate.status, **self._described(point)}
        state = STATES.get(candidate.status, TrialState.FAIL)
        values = None
        if figures is not None:
            latency, size, memory, loss = figures
            values, attributes[MEMORY] = [latency, size, loss], memory
        self._study.add_trial(
            optuna.create_trial(
                state=state,
                values=values,
                params=self._params(point),
                distributions=dict(self._distributions),
                user_attrs=attributes,
                constraints={candidate.status: 1.0} if state == TrialState.PRUNED else None,
            )
        )

    def _described(self, point: Point) -> dict[str, str]:
        plan = self.space.plan(point)
        return {"label": f"{plan.scale}: {plan.label}", "plan": to_json(plan).decode()}

    def enqueue(self, point: Point) -> None:
        """Make it the next that is asked for."""
        self._study.enqueue_trial(self._params(point))

    def ask(self) -> tuple[Trial, Point | None]:
        """The next trial: what was enqueued, else what the sampler suggests; None for steps that do not go together."""
        number = len(self._study.get_trials(deepcopy=False))
        self._study.sampler = TPESampler(seed=self._seed * SEED_STEP + number, multivariate=True, n_startup_trials=STARTUP)
        trial = self._study.ask(dict(self._distributions))
        trial.set_user_attr(OWNER, self._owner)
        point = self._canonical(trial.params)
        if point is not None:
            for name, value in self._described(point).items():
                trial.set_user_attr(name, value)
        return trial, point

    def tell(self, trial: Trial, candidate: Candidate, figures: Sequence[float] | None, limits: Figures) -> None:
        """What became of a trial.

        Args:
            trial: that was asked for.
            candidate: its outcome.
            figures: latency, size, memory and loss, where it was measured.
            limits: by how much each limit is exceeded; 0 or less where it is kept.
        """
        trial.set_user_attr("candidate", candidate.id)
        trial.set_user_attr(STATUS, candidate.status)
        trial.set_user_attr("seconds", candidate.seconds)
        if candidate.reason is not None:
            trial.set_user_attr("reason", candidate.reason)
        if figures is not None:
            latency, size, memory, loss = figures
            trial.set_user_attr(MEMORY, memory)
            for name, excess in limits.items():
                trial.set_constraint(name, excess)
            self._study.tell(trial, [latency, size, loss])
        elif STATES.get(candidate.status) == TrialState.PRUNED:
            trial.set_constraint(candidate.status, 1.0)
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            self._study.tell(trial, state=TrialState.FAIL)

    def withdraw(self, trial: Trial) -> None:
        """A trial that was broken off."""
        self._study.tell(trial, state=TrialState.FAIL)

    def set_aside(self, trial: Trial, reason: str, predicted: Figures) -> None:
        """A suggestion that is not tried, and what was predicted of it."""
        trial.set_user_attr(STATUS, NOT_TRIED)
        trial.set_user_attr("reason", reason)
        for name, value in predicted.items():
            trial.set_user_attr(f"predicted_{name}", value)
        trial.set_constraint("promise", 1.0)
        self._study.tell(trial, state=TrialState.PRUNED)

    def waiting(self) -> int:
        """How many trials are enqueued."""
        return len(self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    def elsewhere(self) -> tuple[list[Observation], set[Point]]:
        """What other runs that share the study have measured, and what they are trying or have tried."""
        found, taken = list[Observation](), set[Point]()
        for trial in self._study.get_trials(deepcopy=False):
            point = self._point(trial)
            if point is None or trial.user_attrs.get(OWNER) in (None, self._owner):
                continue
            if trial.state == TrialState.COMPLETE:
                latency, size, loss = trial.values
                found.append(Observation(point, latency, size, trial.user_attrs.get(MEMORY), loss))
            if trial.state == TrialState.RUNNING or trial.user_attrs.get("candidate"):
                taken.add(point)
        return found, taken

    def set_asides(self) -> int:
        """How many suggestions were not tried."""
        return sum(trial.user_attrs.get(STATUS) == NOT_TRIED for trial in self._study.get_trials(deepcopy=False))

    def _point(self, trial: FrozenTrial) -> Point | None:
        return self._canonical(trial.params) if trial.params or not self._distributions else None

    def _canonical(self, params: Mapping[str, Any]) -> Point | None:
        names = [str(params["scale"])] if len(self.space.scales) > 1 else list(self.space.scales)
        levels = [_level_name(params.get(lever.name, OFF)) for lever in self.space.levers(names[0])]
        return self.space.canonical(names[0], levels)

    def _params(self, point: Point) -> dict[str, Any]:
        found: dict[str, Any] = {"scale": point.scale}
        for lever, level in zip(self.space.levers(point.scale), self.space.levels(point), strict=True):
            found[lever.name] = level.strength if lever.ordered else level.name
        return {name: value for name, value in found.items() if name in self._distributions}


def _opened(url: str) -> optuna.storages.RDBStorage:
    """The storage. A database file is not flushed to the disk at every word: the run folder says what is finished."""
    storage = optuna.storages.RDBStorage(url)
    if storage.engine.dialect.name == "sqlite":
        storage.engine.dispose()
        event.listen(storage.engine, "connect", _hurry)
    return storage


def _hurry(connection: Any, _: Any) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")


def _level_name(value: Any) -> str:
    if isinstance(value, float | int):
        return OFF if value == 0 else f"{value:g}"
    return str(value)


def _distributions(space: Space) -> dict[str, BaseDistribution]:
    """A parameter per lever that has a choice anywhere, and one for the scale."""
    found: dict[str, BaseDistribution] = {}
    if len(space.scales) > 1:
        found["scale"] = CategoricalDistribution(space.scales)
    for number, name in enumerate(space.names):
        levels = [level for scale in space.scales for level in space.levers(scale)[number].levels]
        if len({level.name for level in levels}) < 2:
            continue
        if space.levers(space.scales[0])[number].ordered:
            found[name] = FloatDistribution(0.0, max(level.strength for level in levels), step=0.1)
        else:
            found[name] = CategoricalDistribution(list(_unique(level.name for level in levels)))
    return found


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def owner_of(folder: Path) -> str:
    """A short name for a run folder on this machine."""
    return hashlib.sha256(f"{os.uname().nodename} {folder.absolute()}".encode()).hexdigest()[:12]
