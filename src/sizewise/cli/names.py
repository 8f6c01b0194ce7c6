"""Names that are checked before torch is imported, so that a typing mistake is answered at once."""

from pathlib import Path

from sizewise import registry
from sizewise.errors import UnknownName, UsageError

__all__ = ["check_device", "check_folder", "check_runtime"]


def check_device(name: str) -> None:
    """A device of that name, or a device file.

    Raises:
        UnknownName: neither.
    """
    if not name.endswith(".toml") and name not in registry.device_names():
        raise UnknownName("device", name, registry.device_names(), where="--device")


def check_runtime(name: str) -> None:
    """A runtime of that name.

    Raises:
        UnknownName: there is none.
    """
    if name not in registry.names("runtimes"):
        raise UnknownName("runtime", name, registry.names("runtimes"), where="--runtime")


def check_folder(out: Path, *, resume: bool) -> None:
    """A run folder that can be begun, or gone on with.

    Raises:
        UsageError: it is not empty and nothing is to be resumed.
    """
    if out.is_dir() and any(out.iterdir()) and not resume:
        raise UsageError("the folder is not empty", where=str(out), hint="--resume goes on with an interrupted run; or name another folder")
