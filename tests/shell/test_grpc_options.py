"""gRPC ignores options that it does not know, so a misspelt one protects nobody."""

from pathlib import Path

import pytest
from grpc._cython import cygrpc

from router.grpc_options import channel_options, server_options

CORE = Path(cygrpc.__file__).read_bytes()


@pytest.mark.parametrize("name", sorted({name for name, _ in (*server_options(), *channel_options())}))
def test_grpc_knows_the_option(name: str) -> None:
    """The library holds its name to the end; a linker may share it with the end of a longer string."""
    known = name.encode() + b"\0" in CORE
    assert known, f"this gRPC has no option {name}"
