"""Finding a task by what a person types."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sizewise.errors import PreconditionError, UnknownName, UsageError
from sizewise.tasks.loading import BUILT_IN, load_task

GOOD = """import sizewise, torch
task = sizewise.Task({'m': torch.nn.Linear(3, 2)}, torch.zeros(1, 3), validation=[torch.zeros(1, 3)], name='mine')
"""


@pytest.fixture(autouse=True)
def _same_search_path() -> Iterator[None]:
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if not name.partition(".")[0].startswith(("torch", "numpy", "sklearn", "scipy", "sizewise")):
            del sys.modules[name]


def _file(tmp_path: Path, text: str, name: str = "job.py") -> str:
    path = tmp_path / name
    path.write_text(text)
    return str(path)


def test_every_built_in_name_gives_its_task() -> None:
    pytest.importorskip("sklearn")
    for name in BUILT_IN:
        assert load_task(name).name == name


def test_a_file_gives_its_task_even_with_a_dash_in_its_name(tmp_path: Path) -> None:
    assert load_task(_file(tmp_path, GOOD, "my-job.v2.py")).name == "mine"


def test_a_file_may_import_its_neighbours(tmp_path: Path) -> None:
    _file(tmp_path, GOOD, "neighbour_of_the_job.py")
    assert load_task(_file(tmp_path, "from neighbour_of_the_job import task\n")).name == "mine"


def test_a_file_is_run_anew_at_every_loading(tmp_path: Path) -> None:
    assert load_task(_file(tmp_path, GOOD)).name == "mine"
    assert load_task(_file(tmp_path, GOOD.replace("'mine'", "'changed since'"))).name == "changed since"


def test_a_file_named_like_a_library_does_not_replace_it(tmp_path: Path) -> None:
    assert load_task(_file(tmp_path, GOOD, "json.py")).name == "mine"
    assert hasattr(sys.modules["json"], "dumps")


def test_a_module_of_the_working_folder_gives_the_named_attribute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _file(tmp_path, GOOD + "other = task\n", "job_in_the_working_folder.py")
    monkeypatch.chdir(tmp_path)
    assert load_task("job_in_the_working_folder:other").name == "mine"


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match=r"no/such/job\.py: no such task file"):
        load_task("no/such/job.py")


def test_a_name_that_means_nothing_says_what_would(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="unknown task 'digit'") as caught:
        load_task("digit")
    assert caught.value.hint == "did you mean 'digits'?"
    assert caught.value.wanted is not None
    assert "path/to/file.py" in caught.value.wanted
    assert "package.module:task" in caught.value.wanted


def test_a_file_without_a_task_says_how_to_write_one_and_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="defines no 'task'") as caught:
        load_task(_file(tmp_path, GOOD.replace("task =", "job =")))
    assert caught.value.wanted == "task = sizewise.Task(...)"
    assert caught.value.hint == "it defines job"
    with pytest.raises(UsageError, match="defines no 'task'") as caught:
        load_task(_file(tmp_path, "number = 3\n"))
    assert caught.value.hint is None


def test_what_is_no_task_is_refused_by_type() -> None:
    with pytest.raises(UsageError, match="json:dumps: 'dumps' is not a task") as caught:
        load_task("json:dumps")
    assert caught.value.got == "function"


def test_a_module_that_does_not_exist_is_named() -> None:
    with pytest.raises(PreconditionError, match="no_such_module_at_all:task: the task could not be read") as caught:
        load_task("no_such_module_at_all:task")
    assert "No module named 'no_such_module_at_all'" in str(caught.value)


@pytest.mark.parametrize("folder", ["plain", "sizewise", "importlib"])
def test_a_file_that_raises_is_named_with_the_line_wherever_it_lies(tmp_path: Path, folder: str) -> None:
    (tmp_path / folder).mkdir()
    path = _file(tmp_path / folder, "number = 1\n\nnumber / 0\n")
    with pytest.raises(PreconditionError) as caught:
        load_task(path)
    assert caught.value.where == f"{path}, line 3"
    assert caught.value.got == "ZeroDivisionError: division by zero"
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_the_line_is_one_of_the_task_file(tmp_path: Path) -> None:
    path = _file(tmp_path, "import json\n\njson.loads('{')\n")
    with pytest.raises(PreconditionError) as caught:
        load_task(path)
    assert caught.value.where == f"{path}, line 3"


def test_a_syntax_error_says_its_line(tmp_path: Path) -> None:
    with pytest.raises(PreconditionError, match="could not be read") as caught:
        load_task(_file(tmp_path, "number = 1\ndef (:\n"))
    assert "line 2" in str(caught.value)


def test_a_file_may_define_dataclasses_with_postponed_annotations(tmp_path: Path) -> None:
    text = "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass Settings:\n    width: int = 3\n"
    assert load_task(_file(tmp_path, text + GOOD)).name == "mine"
