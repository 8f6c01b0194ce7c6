"""The record of a search as an Optuna study, which can be resumed, shared between processes and looked at with `optuna-dashboard`.

A plan is one trial: running while it is tried, complete with its three objectives once its file is measured, pruned where it was stopped
or set aside by a prediction, failed where it cannot be carried out. The run folder says what is finished; the study follows it.
"""

import hashlib
import os
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState

from sizewise.search.proxy import Observation
from sizewise.search.space import OFF, Point, Space
from sizewise.search.storage import Given, Heart, answering, opened, put_back_stale, quietly
from sizewise.types import Candidate, to_json

__all__ = ["Figures", "Study", "owner_of"]

OBJECTIVES = ("latency_s", "size_bytes", "loss")
STARTUP = 8  # trials before suggestions follow what was found
STEP = 0.05  # every rate of an ordered lever is a multiple of it
OWNER, DEVICE, STATUS, MEMORY = "owner", "device", "status", "memory_bytes"
ANYWHERE = ("stopped", "failed")  # what becomes of a plan on whatever device
NOT_TRIED = "not tried"
STATES = {"measured": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "beaten": TrialState.PRUNED}  # else failed
SEED_STEP = 1_000_003

Figures = Mapping[str, float]


class Study:
    """One search's trials.

    Args:
        space: of plans.
        url: any address that Optuna takes as a storage.
        name: of the study; it is continued where the storage has it.
        owner: which run this is, where several share the study.
        seed: of suggestions. They depend on it and on the trials so far, so that a resumed search suggests the same.
        device: what latencies and memory hold for. Those of another one are not used, but by Optuna's suggestions, which know no devices.
        shared: whether other runs may use the storage at the same time; then trials give signs of life, and those that give none for
            a while are tried again by whoever looks next.

    Raises:
        UsageError: the storage cannot be used.
        MissingExtra: the database's driver is not installed.
    """

    def __init__(self, space: Space, url: str, name: str, owner: str, seed: int, *, device: str = "", shared: bool = False) -> None:
        self.space, self._owner, self._seed, self._device, self._url = space, owner, seed, device, url
        self._distributions = _distributions(space)
        with quietly(), answering(url, ValueError):
            self._storage = opened(url, shared=shared)
            self._study = optuna.create_study(
                storage=self._storage, study_name=name, directions=["minimize"] * len(OBJECTIVES), load_if_exists=True
            )
            self._study.set_metric_names(list(OBJECTIVES))
        self._heart = Heart(self._storage) if shared else None
        if self._heart is not None:
            self._heart.start()

    def close(self) -> None:
        """Let go of the storage."""
        if self._heart is not None:
            self._heart.stop()
        self._storage.remove_session()
        self._storage.engine.dispose()

    def resume(self, known: Mapping[Point, Candidate], figures: Mapping[Point, tuple[float, ...]]) -> None:
        """Bring the study up to what the run folder has: nothing that is finished is lost, and what was interrupted is tried next.

        Args:
            known: what this run has finished.
            figures: latency, size, memory and loss of what of it was measured.
        """
        held: set[Point] = set()
        with answering(self._url):
            for trial in self._study.get_trials(deepcopy=False):
                point = self._point(trial)
                if point is None or trial.user_attrs.get(OWNER) != self._owner:
                    continue
                if trial.state == TrialState.RUNNING:
                    self._study.tell(trial.number, state=TrialState.FAIL)
                    if point not in known:
                        self._study.enqueue_trial(self._params(point))
                elif trial.user_attrs.get("candidate"):
                    held.add(point)
            for point, candidate in known.items():
                if point not in held:
                    self._add(point, candidate, figures.get(point))

    def _add(self, point: Point, candidate: Candidate, figures: Sequence[float] | None) -> None:
        """A trial that was finished before the study knew of it."""
        attributes: dict[str, Any] = {OWNER: self._owner, DEVICE: self._device, "candidate": candidate.id, STATUS: candidate.status}
        attributes |= self._described(point)
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

    def ask(self) -> tuple[Trial, Point | None]:
        """The next trial: what waits, else what the sampler suggests; None for steps that do not go together."""
        with answering(self._url):
            number = len(self._study.get_trials(deepcopy=False))
            return self._ask(TPESampler(seed=self._seed * SEED_STEP + number, multivariate=True, n_startup_trials=STARTUP))

    def ask_for(self, point: Point) -> tuple[Trial, Point | None]:
        """A trial of this plan; what waits comes first."""
        with answering(self._url):
            return self._ask(Given(self._params(point)))

    def _ask(self, sampler: BaseSampler) -> tuple[Trial, Point | None]:
        self._study.sampler = sampler
        with quietly():
            trial = self._study.ask(dict(self._distributions))
        if self._heart is not None:
            self._heart.begin(trial._trial_id)  # before it has an owner: without, nobody waits for it
        point = self._canonical(trial.params)
        facts = {} if point is None else self._described(point)
        for name, value in {**facts, DEVICE: self._device, OWNER: self._owner}.items():
            trial.set_user_attr(name, value)
        return trial, point

    def first_at(self, trial: Trial, point: Point) -> bool:
        """Whether no other run on such a device had begun with the plan when the trial was asked for."""
        with answering(self._url):
            return not any(
                other.number < trial.number and other.user_attrs.get(DEVICE) == self._device and self._point(other) == point
                for other in self._elsewhere((TrialState.RUNNING,))
            )

    def tell(self, trial: Trial, candidate: Candidate, figures: Sequence[float] | None, limits: Figures) -> None:
        """What became of a trial.

        Args:
            trial: that was asked for.
            candidate: its outcome.
            figures: latency, size, memory and loss, where it was measured.
            limits: by how much each limit is exceeded; 0 or less where it is kept.
        """
        with answering(self._url):
            if self._storage.get_trial(trial._trial_id).state.is_finished():  # no sign of life reached the others, who gave it up
                point = self._canonical(trial.params)
                assert point is not None
                self._add(point, candidate, figures)
            else:
                self._tell(trial, candidate, figures, limits)
        self._ends(trial)

    def _tell(self, trial: Trial, candidate: Candidate, figures: Sequence[float] | None, limits: Figures) -> None:
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
        with answering(self._url):
            if not self._storage.get_trial(trial._trial_id).state.is_finished():
                self._study.tell(trial, state=TrialState.FAIL)
        self._ends(trial)

    def _ends(self, trial: Trial) -> None:
        if self._heart is not None:
            self._heart.end(trial._trial_id)

    def set_aside(self, trial: Trial, reason: str, predicted: Figures) -> None:
        """A suggestion that is not tried, and what was predicted of it."""
        with answering(self._url):
            trial.set_user_attr(STATUS, NOT_TRIED)
            trial.set_user_attr("reason", reason)
            for name, value in predicted.items():
                trial.set_user_attr(f"predicted_{name}", value)
            trial.set_constraint("promise", 1.0)
            self._study.tell(trial, state=TrialState.PRUNED)
        self._ends(trial)

    def waiting(self) -> int:
        """How many trials wait, those among them that were lost with their run."""
        with answering(self._url):
            if self._heart is not None:
                put_back_stale(self._study)
            return len(self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)))

    def running_elsewhere(self) -> int:
        """How many trials other runs have under way."""
        with answering(self._url):
            return len(self._elsewhere((TrialState.RUNNING,)))

    def _elsewhere(self, states: Container[TrialState] | None = None) -> list[FrozenTrial]:
        trials = self._study.get_trials(deepcopy=False, states=states)
        return [trial for trial in trials if trial.user_attrs.get(OWNER) not in (None, self._owner)]

    def elsewhere(self) -> tuple[list[Observation], set[Point]]:
        """What other runs that share the study have measured, and what need not be tried here, since they do or did.

        What another device has measured is tried here, too, where it has promise: its size and its loss are known, its latency is not.
        """
        found, taken = list[Observation](), set[Point]()
        with answering(self._url):
            trials = self._elsewhere()
        for trial in trials:
            point = self._point(trial)
            if point is None:
                continue
            here = trial.user_attrs.get(DEVICE) == self._device
            if trial.state == TrialState.COMPLETE:
                latency, size, loss = trial.values
                memory = trial.user_attrs.get(MEMORY)
                found.append(Observation(point, latency, size, memory, loss) if here else Observation(point, size=size, loss=loss))
            if trial.state == TrialState.RUNNING or (trial.user_attrs.get("candidate") and (here or _holds_anywhere(trial))):
                taken.add(point)
        return found, taken

    def set_asides(self) -> int:
        """How many suggestions were not tried."""
        with answering(self._url):
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


def _holds_anywhere(trial: FrozenTrial) -> bool:
    return trial.user_attrs.get(STATUS) in ANYWHERE


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
            found[name] = FloatDistribution(0.0, max(level.strength for level in levels), step=STEP)
        else:
            found[name] = CategoricalDistribution(list(_unique(level.name for level in levels)))
    return found


def _unique(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def owner_of(folder: Path) -> str:
    """A short name for a run folder on this machine."""
    return hashlib.sha256(f"{os.uname().nodename} {folder.absolute()}".encode()).hexdigest()[:12]
