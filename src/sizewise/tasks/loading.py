"""Find a task by what a person types: a built-in name, a file, or a module and an attribute."""

import importlib
import importlib.util
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from sizewise.errors import SizewiseError, UnknownName, UsageError, blaming
from sizewise.tasks.task import Task

__all__ = ["BUILT_IN", "load_task"]

BUILT_IN = ("digits",)
_STDLIB = sysconfig.get_paths()["stdlib"]


def load_task(spec: str) -> Task:
    """The task named by `spec`: "digits", "path/to/file.py" (which defines `task`), or "package.module:task".

    A task file is a Python program of the user's own and is run as such.

    Raises:
        UnknownName: neither a built-in name nor a file nor module:attribute.
        UsageError: the file does not exist, or defines no task.
        PreconditionError: the file raises.
    """
    task = _found(spec)
    task.source = str(Path(spec).resolve()) if spec.endswith(".py") else spec
    return task


def _found(spec: str) -> Task:
    if spec in BUILT_IN:
        module = importlib.import_module(f"sizewise.tasks.{spec}")
        task: Task = module.make_task()
        return task
    if spec.endswith(".py"):
        return _attribute(_run_file(Path(spec)), "task", spec)
    if ":" in spec:
        name, _, attribute = spec.partition(":")
        if "" not in sys.path:
            sys.path.insert(0, "")
        return _attribute(_guarded(lambda: importlib.import_module(name), spec), attribute, spec)
    raise UnknownName("task", spec, [*BUILT_IN, "path/to/file.py", "package.module:task"])


def _run_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError("no such task file", where=str(path))
    # a name of its own: the file may be called like a module that it imports
    found = importlib.util.spec_from_file_location(f"_sizewise_task_{path.stem}", path)
    if found is None or found.loader is None:
        raise UsageError("not a Python file", where=str(path))
    module, loader = importlib.util.module_from_spec(found), found.loader
    sys.modules[found.name] = module  # dataclasses and pickling look their module up there
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        _guarded(lambda: loader.exec_module(module), str(path), found.origin)
    except BaseException:
        del sys.modules[found.name]  # half-loaded
        raise
    return module


def _guarded(run: Callable[[], ModuleType | None], where: str, file: str | None = None) -> ModuleType | None:
    try:
        with blaming("the task could not be read"):
            return run()
    except SizewiseError as error:
        place = f"{where}{_line_of(error, file)}"
        error.where = place if error.where is None else f"{place}, {error.where}"
        raise


def _line_of(error: BaseException, file: str | None) -> str:
    """The deepest line of the task file; for a module, which is not known before it is found, of the user's own code."""
    cause = error.__cause__ or error
    if isinstance(cause, SyntaxError):
        return f", line {cause.lineno}"
    frames = traceback.extract_tb(cause.__traceback__)
    own = str(Path(__file__).parent.parent)
    mine = [f for f in frames if f.filename == file or (file is None and not f.filename.startswith((own, "<frozen", _STDLIB)))]
    return f", line {mine[-1].lineno}" if mine else ""


def _attribute(module: ModuleType | None, attribute: str, where: str) -> Task:
    if not hasattr(module, attribute):
        tasks = [name for name, value in vars(module).items() if isinstance(value, Task)]
        raise UsageError(
            f"the module defines no {attribute!r}",
            where=where,
            wanted=f"{attribute} = sizewise.Task(...)",
            hint=f"it defines {', '.join(tasks)}" if tasks else None,
        )
    task = getattr(module, attribute)
    if not isinstance(task, Task):
        raise UsageError(f"{attribute!r} is not a task", where=where, got=type(task).__name__, wanted="a sizewise.Task")
    return task
