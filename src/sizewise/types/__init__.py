"""The vocabulary: frozen dataclasses that go to JSON and back without loss. Nothing here imports torch.

Latencies are seconds, sizes are bytes, quality is in the metric's own unit (accuracy: share of 1).
"""

from sizewise.types.budget import Budget, Limit, Violation
from sizewise.types.candidates import Candidate, ScaleRecord, StoredTensor, StoredWeights
from sizewise.types.codec import from_json, to_json
from sizewise.types.costs import Cost, LayerCost, LayerKind, LayerShape, ModelProfile
from sizewise.types.figures import Executed, How, Interval, Measurement, Parity, Quality
from sizewise.types.places import Device, Rates, Scheme
from sizewise.types.plans import TIMED_TARGETS, Artefact, Change, Contribution, Plan, Skip, Step, Trait
from sizewise.types.records import Explanation, Gain, Neighbour, ProfileRecord, RunRecord, SearchRecord, Why
from sizewise.types.verdicts import Judgement, LimitVerdict, Relaxation, Unproved, Verdict

__all__ = [
    "TIMED_TARGETS",
    "Artefact",
    "Budget",
    "Candidate",
    "Change",
    "Contribution",
    "Cost",
    "Device",
    "Executed",
    "Explanation",
    "Gain",
    "How",
    "Interval",
    "Judgement",
    "LayerCost",
    "LayerKind",
    "LayerShape",
    "Limit",
    "LimitVerdict",
    "Measurement",
    "ModelProfile",
    "Neighbour",
    "Parity",
    "Plan",
    "ProfileRecord",
    "Quality",
    "Rates",
    "Relaxation",
    "RunRecord",
    "ScaleRecord",
    "Scheme",
    "SearchRecord",
    "Skip",
    "Step",
    "StoredTensor",
    "StoredWeights",
    "Trait",
    "Unproved",
    "Verdict",
    "Violation",
    "Why",
    "from_json",
    "to_json",
]
