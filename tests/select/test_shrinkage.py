"""What shrinking would make of a scale: stated factors, weighted by where the cost is."""

import pytest

from sizewise.select.shrinkage import SEEN, shrunk

from .conftest import Build


def test_a_net_of_one_family_shrinks_by_that_familys_factors(build: type[Build]) -> None:
    found = shrunk(build.profile(layers=(build.layer("conv", 2e-3, 4000), build.layer("conv", 1e-3, 400)), seconds=3e-3))
    assert found is not None
    assert found.latency_factor == pytest.approx(SEEN["conv"].latency)
    assert found.size_factor == pytest.approx(SEEN["conv"].size)
    assert found.latency_s.value == pytest.approx(3e-3 * SEEN["conv"].latency)
    assert found.size_bytes == round(4400 * SEEN["conv"].size)
    assert found.latency_s.how == "predicted"


def test_families_count_by_their_part_of_the_time_and_of_the_bytes(build: type[Build]) -> None:
    layers = (build.layer("conv", 3e-3, 1000), build.layer("recurrent", 1e-3, 3000), build.layer("memory", 0.0, 0))
    found = shrunk(build.profile(layers=layers, seconds=4e-3))
    assert found is not None
    assert found.latency_factor == pytest.approx(0.75 * SEEN["conv"].latency + 0.25 * SEEN["recurrent"].latency)
    assert found.size_factor == pytest.approx(0.25 * SEEN["conv"].size + 0.75 * SEEN["recurrent"].size)


def test_the_interval_shrinks_with_the_value(build: type[Build]) -> None:
    profile = build.profile(layers=(build.layer("matmul"),), seconds=10e-3)
    found = shrunk(profile)
    assert found is not None
    assert profile.latency_s is not None
    for end in ("low", "value", "high"):
        assert getattr(found.latency_s, end) == pytest.approx(getattr(profile.latency_s, end) * found.latency_factor)


def test_every_family_with_macs_says_once_where_its_factor_was_seen(build: type[Build]) -> None:
    layers = tuple(build.layer(family) for family in ("conv", "memory", "matmul", "conv"))
    found = shrunk(build.profile(layers=layers))
    assert found is not None
    assert [text.split(":")[0] for text in found.sources] == ["conv", "matmul"]
    assert all(SEEN[text.split(":")[0]].source in text for text in found.sources)


def test_recurrent_nets_stay_as_they_are(build: type[Build]) -> None:
    profile = build.profile(layers=(build.layer("recurrent"),))
    found = shrunk(profile)
    assert found is not None
    assert (found.latency_factor, found.size_factor) == (1.0, 1.0)
    assert (found.size_bytes, found.peak_bytes) == (profile.weight_bytes, 1000)


def test_activations_are_never_more_than_before(build: type[Build]) -> None:
    for family in SEEN:
        profile = build.profile(layers=(build.layer(family),), peak_bytes=1000)
        found = shrunk(profile)
        assert found is not None
        assert found.peak_bytes is not None
        assert 0 < found.peak_bytes <= 1000
    unknown = shrunk(build.profile(layers=(build.layer("conv"),), peak_bytes=None))
    assert unknown is not None
    assert unknown.peak_bytes is None


def test_nothing_is_said_without_layers_or_latency(build: type[Build]) -> None:
    assert shrunk(build.profile(layers=())) is None
    assert shrunk(build.profile(layers=(build.layer("conv"),), seconds=None)) is None


def test_layers_without_weights_do_not_change_the_bytes(build: type[Build]) -> None:
    found = shrunk(build.profile(layers=(build.layer("conv", weights=0),), weight_bytes=0))
    assert found is not None
    assert (found.size_factor, found.size_bytes) == (1.0, 0)


def test_every_factor_shrinks_or_leaves_alone() -> None:
    for family, seen in SEEN.items():
        assert all(0 < factor <= 1 for factor in (seen.latency, seen.size, seen.activations)), family
        assert seen.source
