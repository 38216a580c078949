"""The checked-in stubs are what the pinned generator makes of the .proto files."""

from pathlib import Path

from tests.regenerate_stubs import PROTOS, regenerate


def test_regenerating_changes_nothing(tmp_path: Path) -> None:
    """An edited .proto without its stubs, or stubs from another generator, fail here."""
    regenerate(tmp_path)
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*_pb2*")}
    kept = {
        path.relative_to(PROTOS): path.read_bytes()
        for path in PROTOS.rglob("*_pb2*.py*")
        if path.suffix != ".pyc"
    }
    assert made == kept
