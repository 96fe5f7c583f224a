import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from criw.errors import InvalidArgument
from criw_supervisor.launch import _kill_makers, _write_bundle, make_log_directory


def test_a_bundle_is_for_root_alone(tmp_path: Path) -> None:
    _write_bundle(tmp_path / "bundle", {"process": {"env": ["A=\udcff"]}}, str(tmp_path / "logs" / "pod" / "a.log"))
    assert (tmp_path / "bundle").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "bundle" / "config.json").exists()
    assert (tmp_path / "logs" / "pod").is_dir()


@pytest.mark.parametrize("directory", ["/proc/nothing/logs", "/etc/passwd/logs"])
def test_a_log_directory_that_cannot_be_is_refused_by_name(directory: str) -> None:
    with pytest.raises(InvalidArgument, match=f"cannot make the log directory {directory}"):
        make_log_directory(Path(directory, "a.log"))


# As conmon does: it goes on to start the next program with the bundle in its arguments.
MAKER = """
import subprocess, sys, time
while True:
    subprocess.Popen(["sleep", "600", *sys.argv[1:]])
    time.sleep(0.05)
"""


def working_on(bundle: Path) -> list[Path]:
    mark = os.fsencode(bundle) + b"\0"
    return [path.parent for path in Path("/proc").glob("[0-9]*/cmdline") if mark in _read(path)]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def test_what_works_on_a_bundle_is_killed_also_what_it_starts_meanwhile(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    sleeping = tmp_path / "bin" / "sleep"
    sleeping.write_text("#!/bin/sh\nread x\n")
    sleeping.chmod(0o755)
    environment = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    bundle = tmp_path / "bundle"
    maker = subprocess.Popen([sys.executable, "-c", MAKER, str(bundle)], env=environment, stdin=subprocess.PIPE)
    bystander = subprocess.Popen([sys.executable, "-c", "input()", f"{bundle}-of-another"], stdin=subprocess.PIPE)
    until = time.monotonic() + 10
    while len(working_on(bundle)) < 3:
        assert time.monotonic() < until
    _kill_makers(bundle)
    assert maker.wait() == -9
    assert working_on(bundle) == []
    assert bystander.poll() is None
    bystander.communicate(b"\n")
    maker.communicate()
