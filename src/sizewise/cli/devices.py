"""`sizewise devices`: the devices that can be asked about, with their figures."""

import sys

from sizewise.cli.fit import AsJson, Debug

__all__ = ["command"]


def command(
    json: AsJson = False,
    debug: Debug = False,  # noqa: ARG001  # read by cli.main, which prints errors
) -> None:
    """List the devices, with memory, speed, and how far predictions can be trusted; --json gives every number's source."""
    from sizewise import registry
    from sizewise.devices.loader import load_device
    from sizewise.report.devices_terminal import devices_summary
    from sizewise.types import to_json

    devices = [load_device(name) for name in registry.device_names()]
    sys.stdout.write(to_json(devices).decode() if json else devices_summary(devices) + "\n")
