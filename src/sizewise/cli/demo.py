"""`sizewise demo`: `fit digits` with a sensible budget."""

from pathlib import Path

from sizewise.cli.fit import AsJson, Debug, Out, Quiet, Resume, run

__all__ = ["command"]

TRIALS = 12  # of plans: about two minutes in all


def command(
    out: Out = Path("runs/demo"),
    resume: Resume = False,
    json: AsJson = False,
    quiet: Quiet = False,
    debug: Debug = False,  # noqa: ARG001  # read by cli.main, which prints errors
) -> None:
    """Run the main job on scikit-learn's handwritten digits: at most 5 ms, 2 MB, 64 MB and one point of accuracy."""
    from sizewise.types import Budget

    budget = Budget(latency="5 ms", size="2 MB", memory="64 MB", max_drop="1 %")
    where = {"runtime": "onnxruntime", "device": "local"}
    run("digits", budget, out, as_json=json, quiet=quiet, **where, time_limit=None, trials=TRIALS, resume=resume, seed=0)
