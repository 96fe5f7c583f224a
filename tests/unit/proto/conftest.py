"""The project's *.proto files as protoc compiles them."""

import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet

PROTO = Path(__file__).parents[3] / "proto"


@pytest.fixture(scope="session")
def descriptors(tmp_path_factory: pytest.TempPathFactory) -> FileDescriptorSet:
    """All files with their comments."""
    out = tmp_path_factory.mktemp("descriptors") / "all.pb"
    sources = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
    protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}"]
    subprocess.run([*protoc, "--include_source_info", f"--descriptor_set_out={out}", *sources], check=True)
    return FileDescriptorSet.FromString(out.read_bytes())
