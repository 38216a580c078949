"""The catalogue: shipped fleets load, own ones override, wrong ones are explained."""

from pathlib import Path

import pytest

from backends.catalogue import PROFILES, fleet_names, load_fleet, load_profile, profile_names
from backends.models.latency import StepModel
from router.errors import ConfigError
from router.model import BackendKind, BackendSpec, Phase

PROFILE = "h100-llama-3.1-8b"


def written(folder: Path, text: str) -> Path:
    """A fleet file."""
    path = folder / "own.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", fleet_names())
def test_shipped_fleets_load(name: str) -> None:
    """Ids are unique, the name is the file's, and every fleet can serve both phases of its model."""
    fleet = load_fleet(name)
    assert fleet.name == name
    assert len({spec.id for spec in fleet.backends}) == len(fleet.backends)
    assert {phase for spec in fleet.backends for phase in spec.phases} == set(Phase)
    assert len({spec.models for spec in fleet.backends}) == 1


def test_the_shipped_fleets_are_these() -> None:
    """Their names are public."""
    assert fleet_names() == ("afd", "fast-slow", "gpu-lpu", "gpu-tpu", "homogeneous", "mixed")


def test_every_shipped_profile_is_found() -> None:
    """One name a file."""
    assert set(profile_names()) == {path.stem for path in PROFILES.glob("*.toml")}
    assert PROFILE in profile_names()


def test_the_mixed_fleet_has_five_kinds_of_device_and_room_for_its_trace() -> None:
    """6,400 prompt and 1,160 output tokens a second at half load, with the NPU left out."""
    specs = load_fleet("mixed").backends
    assert {spec.kind for spec in specs} == {
        BackendKind.GPU, BackendKind.LPU, BackendKind.TPU, BackendKind.NPU,
    }  # fmt: skip
    fast = [spec for spec in specs if spec.kind is not BackendKind.NPU]

    def prefill_rate(spec: BackendSpec) -> float:
        return 1155 / StepModel(spec.step).prefill_s(1155)

    def decode_rate(spec: BackendSpec) -> float:
        return 16 / StepModel(spec.step).decode_step_s(16, 16 * 1260)

    assert sum(prefill_rate(s) for s in fast if Phase.PREFILL in s.phases) > 2 * 6400
    assert sum(decode_rate(s) for s in fast if s.kind is BackendKind.LPU) > 2 * 1160


def test_a_fleet_overrides_any_field(tmp_path: Path) -> None:
    """Beside the profile's name for [backend], in sub-tables for the others; replicas get numbers."""
    path = written(
        tmp_path,
        f"""
        [[backend]]
        profile = "{PROFILE}"
        id = "g"
        replicas = 2
        phases = ["prefill"]
        zone = "z"
        max_num_seqs = 8
        step.noise_sigma = 0.0
        link.latency_s = 0.5
        connector.first_token_from_prefill = false
        power.cap_w = 500
        """,
    )
    fleet = load_fleet(path)
    assert fleet.name == "own"
    assert [spec.id for spec in fleet.backends] == ["g-0", "g-1"]
    one, template = fleet.backends[0], load_profile(PROFILE).spec
    assert (one.phases, one.zone, one.max_num_seqs) == (frozenset({Phase.PREFILL}), "z", 8)
    assert (one.step.noise_sigma, one.step.base_s) == (0.0, template.step.base_s)
    assert (one.link.latency_s, one.power.cap_w) == (0.5, 500)
    assert one.connector.first_token_from_prefill is False
    assert one.profile == PROFILE


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no \\[\\[backend\\]\\]"),
        ("backend = 3", "has no"),
        ("backend = [3]", "must be a table"),
        ("[[backend]", "not TOML"),
        ('[[backend]]\nid = "a"', "'profile' is missing"),
        (f'[[backend]]\nprofile = "{PROFILE}"', "'id' is missing"),
        ('[[backend]]\nid = "a"\nprofile = "h9000"', "no profile 'h9000'; known are b200"),
        ('[[backend]]\nid = "a"\nprofile = "../fleets/mixed"', "no profile"),
        (f'[[backend]]\nid = "a"\nprofile = "{PROFILE}"\nreplica = 2', "'replica'.*'replicas'"),
        (f'[[backend]]\nid = "a"\nprofile = "{PROFILE}"\nreplicas = 0', "'replicas' is 0"),
        (f'[[backend]]\nid = "a"\nprofile = "{PROFILE}"\nreplicas = 100000', "'replicas' is 100000"),
        (f'[[backend]]\nid = "a"\nprofile = "{PROFILE}"\nstep.base_s = 0', "base_s must be above 0"),
        (f'[[backend]]\nid = "a"\nprofile = "{PROFILE}"\n' * 2, "'a' is used twice"),
        ('nam = "x"', "'nam'.*'name'"),
    ],
)
def test_a_wrong_fleet_is_explained(tmp_path: Path, text: str, words: str) -> None:
    """The entry, the field, and what to write instead."""
    with pytest.raises(ConfigError, match=words):
        load_fleet(written(tmp_path, text))


def test_an_unknown_fleet_lists_the_known_ones() -> None:
    """A name that is neither shipped nor a .toml path."""
    with pytest.raises(
        ConfigError, match=r"no fleet 'mixd'; known are afd, fast-slow.*or give a \.toml file"
    ):
        load_fleet("mixd")


def test_a_file_that_cannot_be_read_is_explained(tmp_path: Path) -> None:
    """Missing, not text, or far too large to be a fleet."""
    with pytest.raises(ConfigError, match="cannot be read"):
        load_fleet(tmp_path / "none.toml")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_fleet(binary)
    large = tmp_path / "large.toml"
    large.write_bytes(b"#" * (1 << 21))
    with pytest.raises(ConfigError, match="larger than"):
        load_fleet(large)
