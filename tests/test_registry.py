"""Techniques, runtimes and devices by file name."""

import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import sizewise
from sizewise import registry
from sizewise.errors import InternalError, UnknownName

ROOT = Path(sizewise.__file__).parent


@pytest.mark.parametrize("kind", ["techniques", "runtimes"])
def test_names_are_the_public_files_of_the_folder(kind: str) -> None:
    files = {path.stem for path in (ROOT / kind).glob("*.py")}
    public = sorted(name for name in files if not name.startswith("_"))
    assert public
    assert list(registry.names(kind)) == public


def test_listing_imports_neither_the_files_nor_torch() -> None:
    program = (
        "import sys; from sizewise import registry; "
        "found = registry.names('techniques') + registry.names('runtimes') + registry.device_names(); "
        "print(len(found), 'torch' in sys.modules, any(m.startswith(('sizewise.techniques.', 'sizewise.runtimes.')) for m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    count, torch, modules = done.stdout.split()
    assert int(count) >= 3
    assert (torch, modules) == ("False", "False")


def test_getting_a_name_gives_the_class_of_that_file() -> None:
    assert registry.get("techniques", "channel_pruning").__name__ == "ChannelPruning"
    assert registry.get("runtimes", "onnxruntime").name == "onnxruntime"


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("techniques", "chanel_pruning", "unknown technique 'chanel_pruning'"),
        ("runtimes", "onnxruntim", "unknown runtime 'onnxruntim'"),
    ],
)
def test_an_unknown_name_says_the_nearest(kind: str, name: str, message: str) -> None:
    with pytest.raises(UnknownName) as caught:
        registry.get(kind, name)
    near = {"techniques": "channel_pruning", "runtimes": "onnxruntime"}[kind]
    assert message in str(caught.value)
    assert f"did you mean {near!r}?" in str(caught.value)


def test_private_files_and_paths_cannot_be_got() -> None:
    for name in ("_onnxruntime_memory", "__init__", "../errors", ""):
        with pytest.raises(UnknownName):
            registry.get("runtimes", name)


@pytest.mark.parametrize(("kind", "attribute"), [("techniques", "TECHNIQUE"), ("runtimes", "RUNTIME")])
def test_a_file_that_offers_nothing_is_our_mistake(kind: str, attribute: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "names", lambda _: ("hollow",))
    monkeypatch.setitem(sys.modules, f"sizewise.{kind}.hollow", ModuleType("hollow"))
    with pytest.raises(InternalError, match=f"sizewise.{kind}.hollow: the file defines no {attribute}"):
        registry.get(kind, "hollow")


def test_every_device_file_is_listed_and_is_toml_with_a_title_and_sources() -> None:
    assert list(registry.device_names()) == sorted(path.stem for path in (ROOT / "devices").glob("*.toml"))
    for name in registry.device_names():
        text = tomllib.loads(registry.device_file(name))
        assert text["title"]
        assert text["sources"]


def test_an_unknown_device_says_the_nearest() -> None:
    with pytest.raises(UnknownName, match="unknown device 'locl'") as caught:
        registry.device_file("locl")
    assert caught.value.hint == "did you mean 'local'?"
