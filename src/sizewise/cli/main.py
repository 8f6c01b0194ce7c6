"""The command line's front: subcommands, and the one place where errors become a message and an exit code."""

import errno
import signal
import sys
import traceback
from typing import Annotated, Any, NoReturn

import typer

from sizewise.cli import compress, demo, devices, fit, profile, prune, quantize, replay, select, worker
from sizewise.errors import SizewiseError

__all__ = ["app", "main"]

INTERRUPTED = 130

app = typer.Typer(
    name="sizewise",
    help="Choose how large a neural network a job needs, shrink it under a budget, ship one measured file.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("fit")(fit.command)
app.command("worker")(worker.command)
app.command("prune")(prune.command)
app.command("quantize")(quantize.command)
app.command("compress")(compress.command)
app.command("replay")(replay.command)
app.command("select")(select.command)
app.command("profile")(profile.command)
app.command("devices")(devices.command)
app.command("demo")(demo.command)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        sys.stdout.write(f"sizewise {metadata.version('sizewise')}\n")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Choose how large a neural network a job needs, shrink it under a budget, ship one measured file."""


def main() -> NoReturn:
    """Run the command line; every error is one message on stderr and the exit code that the error owns."""
    signal.signal(signal.SIGTERM, _interrupt)
    debug = "--debug" in sys.argv
    try:
        app()
    except SizewiseError as error:
        _fail(f"error: {error}", error.exit_code, debug)
    except KeyboardInterrupt:
        _fail("interrupted; finished candidates are kept: the same command with --resume goes on", INTERRUPTED, debug)
    except OSError as error:
        hint = "\n  hint: free some space, then the same command with --resume goes on" if error.errno == errno.ENOSPC else ""
        _fail(f"error: {error.filename or 'writing a file'}: {error.strerror or error}{hint}", 2, debug)
    except Exception as error:  # noqa: BLE001  # the top: whatever is left is a mistake of ours
        _fail(f"internal error: {type(error).__name__}: {error}\n  hint: --debug shows the traceback; please report it", 70, debug)
    sys.exit(0)


def _interrupt(*_: Any) -> NoReturn:
    raise KeyboardInterrupt


def _fail(message: str, code: int, debug: bool) -> NoReturn:
    if debug:
        traceback.print_exc()
    sys.stderr.write(message + "\n")
    sys.exit(code)
