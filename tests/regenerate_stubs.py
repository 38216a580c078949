"""Generate the wire stubs in place, or into another folder: `python tests/regenerate_stubs.py [FOLDER]`."""

import sys
from pathlib import Path

from grpc_tools import protoc

PROTOS = Path(__file__).resolve().parent.parent / "protos"


def regenerate(out: Path) -> None:
    """Write *_pb2.py, *_pb2.pyi and *_pb2_grpc.py of every .proto below `out`."""
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    include = Path(protoc.__file__).parent / "_proto"
    outputs = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
    code = protoc.main(["protoc", f"-I{PROTOS}", f"-I{include}", *outputs, *sources])
    if code != 0:
        raise SystemExit(f"protoc failed with code {code}; the stubs below {out} are incomplete.")


if __name__ == "__main__":
    regenerate(Path(sys.argv[1]) if len(sys.argv) > 1 else PROTOS)
