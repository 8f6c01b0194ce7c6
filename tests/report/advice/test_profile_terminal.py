from collections.abc import Callable
from dataclasses import replace

import pytest

from sizewise.report.profile_terminal import profile_summary
from sizewise.types import Device, LayerCost, ModelProfile, ProfileRecord, from_json, to_json


def words(record: ProfileRecord) -> str:
    return " ".join(profile_summary(record).split())


def one(record: ProfileRecord, model: ModelProfile, device: Device | None = None) -> ProfileRecord:
    return replace(record, models=(model,), device=device or record.device)


def test_several_models_are_compared_before_each_is_told(profiles: ProfileRecord) -> None:
    text = words(profiles)
    assert text.startswith("onnxruntime on this machine (Example CPU), 2 threads model params MACs weights peak latency runs there?")
    assert "huge 400 M 4.00 G 1.60 GB 65.5 kB 900 ms no: weights of 1.60 GB do not fit 1.00 GB of RAM" in text
    assert text.index("runs there?") < text.index("resnet-s: 1x1x8x8 float32, batch 1")
    assert "cannot run on this machine: weights of 1.60 GB do not fit 1.00 GB of RAM" in text


def test_one_model_needs_no_comparison(profiles: ProfileRecord) -> None:
    assert "runs there?" not in profile_summary(one(profiles, profiles.models[0]))


def test_the_totals_name_their_conventions(profiles: ProfileRecord) -> None:
    text = words(one(profiles, profiles.models[0]))
    for part in (
        "parameters 400 k",
        "MACs 4.00 M one MAC is a multiply-accumulate, two FLOPs",
        "weights 1.60 MB",
        "activations 210 kB",
        "peak memory 65.5 kB",
        "intensity 4.2 MAC/B",
        "latency 2.00 ms [1.90, 2.10] median of one warm call; the roofline predicts 2.00 ms (909 us to 4.40 ms)",
        "not counted: grid_sampler 3",
        "note: 2 % of the time belongs to no layer",
    ):
        assert part in text


def test_a_predicted_latency_says_so(make_profile: Callable[..., ModelProfile], make_device: Callable[..., Device]) -> None:
    record = ProfileRecord(version="0", device=make_device(), runtime="onnxruntime", models=(make_profile(),))
    text = words(record)
    assert text.startswith("predicted for Example board, 8 GB, 4 threads, within a factor of 2.2")
    assert "latency 2.00 ms [909 us, 4.40 ms] (predicted) by the roofline, within a factor of 2.2" in text


def test_layers_come_by_share_of_the_time_with_one_line_for_the_rest(profiles: ProfileRecord) -> None:
    lines = profile_summary(one(profiles, profiles.models[0])).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("layers by time, 12 of 20"))
    rows = lines[start + 2 : start + 14]
    shares = [float(row.split()[-2]) for row in rows]
    assert shares == sorted(shares, reverse=True)
    assert lines[start + 14] == "  8 more layers: 12 % of the time"
    assert rows[0].startswith("  (the model)")


def test_without_latencies_layers_come_by_macs(make_profile: Callable[..., ModelProfile], profiles: ProfileRecord) -> None:
    text = words(one(profiles, make_profile(seconds=None)))
    assert "latency not known neither measured nor predicted" in text
    assert "layers by MACs, 12 of 20" in text
    assert "8 more layers: 6.3 % of the MACs" in text
    assert "blocks.3.memory" not in text  # it has none


def test_a_model_that_cannot_be_exported_has_no_layers_and_its_reason(profiles: ProfileRecord) -> None:
    bare = replace(profiles.models[0], layers=(), peak_bytes=None, notes=("it cannot be exported: data-dependent control flow",))
    text = words(one(profiles, bare))
    assert "layers by" not in text
    assert "peak memory not known" in text
    assert "data-dependent control flow" in text


def test_a_layer_that_the_runtime_folded_shows_no_time(make_profile: Callable[..., ModelProfile], profiles: ProfileRecord) -> None:
    folded = [line for line in profile_summary(one(profiles, make_profile(count=9))).splitlines() if "folded" in line]
    assert [line.split()[-3:] for line in folded] == [["folded", "0", "%"]]


@pytest.mark.parametrize("length", [1, 30, 90, 300])
def test_no_line_is_wider_than_a_terminal(profiles: ProfileRecord, length: int) -> None:
    def stretch(layer: LayerCost) -> LayerCost:
        return replace(layer, path=f"m.{'x' * length}.{'y' * length}", kind="K" * length)

    name = "n" * length
    wide = tuple(
        replace(m, name=f"{m.name}{name}", misfits=(name,), notes=(name,), uncounted={name: 2}, layers=tuple(map(stretch, m.layers)))
        for m in profiles.models
    )
    lines = profile_summary(replace(profiles, models=wide, device=replace(profiles.device, title=name))).splitlines()
    assert max(map(len, lines)) <= 100


def test_deep_paths_keep_their_number_and_their_end(profiles: ProfileRecord) -> None:
    first = profiles.models[0]
    layers = (replace(first.layers[0], path="encoder.encoder.layer.11.attention.self.query"), *first.layers[1:])
    assert "e.e.l.11.a.self.query" in profile_summary(one(profiles, replace(first, layers=layers)))


def test_names_cannot_command_the_terminal(profiles: ProfileRecord) -> None:
    first = profiles.models[0]
    evil = replace(first, name="a\x1b[2Jb", layers=(replace(first.layers[0], path="c\x07\nd"), *first.layers[1:]))
    assert all(character.isprintable() or character == "\n" for character in profile_summary(one(profiles, evil)))


def test_a_profile_survives_the_json_round_trip(profiles: ProfileRecord) -> None:
    again = from_json(ProfileRecord, to_json(profiles))
    assert again == profiles
    assert profile_summary(again) == profile_summary(profiles)
