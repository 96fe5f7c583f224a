import os
from pathlib import Path

import pytest

from criw_supervisor.containers import log_end
from criw_supervisor.containers.log_end import complete

AT = "2026-01-01T00:00:00.000000000+00:00"


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (["stdout P x"], ["stdout F x"]),
        (["stdout P x", "stdout F y"], ["stdout P x", "stdout F y"]),
        (["stdout F x", "stdout P y", "stderr P e"], ["stdout F x", "stdout F y", "stderr F e"]),
        (["stderr P e", "stdout F x P "], ["stderr F e", "stdout F x P "]),
        (["stdout P "], ["stdout F "]),
        ([], []),
    ],
)
def test_the_last_part_of_a_stream_ends_its_line(tmp_path: Path, written: list[str], expected: list[str]) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"{AT} {line}\n" for line in written))
    for _ in range(2):
        complete(log)
        assert log.read_text().splitlines() == [f"{AT} {line}" for line in expected]


def test_of_a_long_log_only_the_end_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_end, "_TAIL_BYTES", 100)
    log = tmp_path / "log"
    log.write_text(f"{AT} stdout P {'a b c P ' * 30}\n{AT} stdout P end\n")
    complete(log)
    assert log.read_text().splitlines()[0].startswith(f"{AT} stdout P a b c P a")
    assert log.read_text().splitlines()[1] == f"{AT} stdout F end"


def test_what_has_come_in_place_of_the_log_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "other").write_text(f"{AT} stdout P x\n")
    (tmp_path / "link").symlink_to("other")
    os.mkfifo(tmp_path / "fifo")
    complete(tmp_path / "fifo")
    with pytest.raises(OSError, match="link"):
        complete(tmp_path / "link")
    assert (tmp_path / "other").read_text() == f"{AT} stdout P x\n"
