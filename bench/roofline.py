"""The roofline's prediction for this machine against measurement, over the whole zoo, float32, batch 1.

    python bench/roofline.py

Every model is exported, loaded back and timed with ONNX Runtime side by side with the others; its predicted latency uses the
calibrated rates of this machine (measured anew, so that calibration and measurement see the same machine). The error of one model
is the larger of prediction / measurement and its inverse, minus one. Target: a median of at most 30 %.
"""

import statistics
import sys
from dataclasses import replace

from sizewise.devices.loader import load_device
from sizewise.pipeline.calibrate import calibrate
from sizewise.pipeline.export import find_runtime
from sizewise.pipeline.profile import profile_models
from sizewise.zoo.catalog import names, open_entry

WANTED = 0.30


def main() -> int:
    """Print every model's two figures, the median error, and how many lie within the stated factor."""
    runtime = find_runtime("onnxruntime")
    device = load_device("local")
    device = replace(device, rates=calibrate(runtime, device.threads))
    assert device.rates is not None
    print(f"rates: {device.rates}")
    profiles = profile_models({name: open_entry(name)[:2] for name in sys.argv[1:] or names()}, device, runtime)
    errors = []
    for p in profiles:
        assert p.latency_s is not None
        assert p.predicted_s is not None
        ratio = p.predicted_s.value / p.latency_s.value
        errors.append(max(ratio, 1 / ratio) - 1)
        print(f"{p.name:20} measured {1e3 * p.latency_s.value:9.3f} ms  predicted {1e3 * p.predicted_s.value:9.3f} ms  ratio {ratio:5.2f}")
    median = statistics.median(errors)
    within = sum(error + 1 <= device.rates.error_factor for error in errors)
    print(f"within a factor of {device.rates.error_factor}: {within} of {len(errors)}")
    print(f"{'ok  ' if median <= WANTED else 'FAIL'} median error {100 * median:.0f} % (wanted <= {100 * WANTED:.0f} %)")
    return int(median > WANTED)


if __name__ == "__main__":
    sys.exit(main())
