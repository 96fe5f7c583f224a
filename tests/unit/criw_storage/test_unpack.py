"""What the agent makes of a worker that its layer has taken over: a scripted one in its place."""

import os
from pathlib import Path

import pytest

from criw.errors import DataLoss, DeadlineExceeded, Failed, Fault, InvalidArgument, ResourceExhausted
from criw_storage import unpack

DIFF_ID = "5" * 64


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    (tmp_path / "layer/d").mkdir(parents=True)
    (tmp_path / "layer/link").symlink_to("../outside")
    return tmp_path / "layer"


async def judge(monkeypatch: pytest.MonkeyPatch, target: Path, script: str) -> unpack.Unpacked:
    monkeypatch.setattr(unpack, "_START", f"import os, sys\n{script}")
    with Path(os.devnull).open() as nothing:
        return await unpack.unpack(nothing.fileno(), target, DIFF_ID, lock=nothing.fileno())


async def test_an_honest_report(monkeypatch: pytest.MonkeyPatch, target: Path) -> None:
    report = b"i\0id\0id/e\0wd\0xsecurity.selinux\0d" + DIFF_ID.encode() + b"\0"
    found = await judge(monkeypatch, target, f"os.write(1, {report!r})")
    assert found == unpack.Unpacked((b"", b"d", b"d/e"), (b"d",), ("security.selinux",))


@pytest.mark.parametrize("kind", ["i", "o", "w"])
@pytest.mark.parametrize("path", ["..", "../outside", "/etc", "d/../..", "d//e", "."])
async def test_paths_that_lead_out_are_not_believed(
    monkeypatch: pytest.MonkeyPatch, target: Path, kind: str, path: str
) -> None:
    with pytest.raises(Failed, match="cannot believe"):
        await judge(monkeypatch, target, f"os.write(1, b'{kind}{path}\\0d{DIFF_ID}\\0')")


async def test_links_are_not_followed_to_be_made_opaque(monkeypatch: pytest.MonkeyPatch, target: Path) -> None:
    with pytest.raises(OSError, match="link"):
        await judge(monkeypatch, target, f"os.write(1, b'olink\\0d{DIFF_ID}\\0')")


@pytest.mark.parametrize(
    ("script", "fault", "text"),
    [
        ("os.write(1, b'rit is no tar\\0')", InvalidArgument, "it is no tar"),
        ("os.write(1, b's\\0')", ResourceExhausted, "no space left"),
        (f"os.write(1, b'd{'6' * 64}\\0')", DataLoss, "another digest; pull the image again$"),
        (f"os.write(1, b'd{DIFF_ID}')", Failed, "code 0"),
        ("pass", Failed, "code 0"),
        ("sys.exit(3)", Failed, "code 3"),
        (f"os.write(1, b'd{DIFF_ID}\\0'); sys.exit(1)", Failed, "code 1"),
        ("sys.exit(128 + 9)", Failed, "killed"),
        ("os.kill(os.getpid(), 9)", Failed, "killed"),
        ("sys.exit(128 + 24)", InvalidArgument, "processor time"),
        ("os.write(1, b'\\xff\\0' * 100)", Failed, "code 0"),
        ("while True: os.write(1, b'id\\0' * 10_000)", InvalidArgument, "so many directories"),
    ],
)
async def test_everything_else_is_an_error_that_names_the_layer(
    monkeypatch: pytest.MonkeyPatch, target: Path, script: str, fault: type[Fault], text: str
) -> None:
    with pytest.raises(fault, match=text):
        await judge(monkeypatch, target, script)


async def test_a_worker_has_the_time_that_its_blob_s_size_gives_it(
    monkeypatch: pytest.MonkeyPatch, target: Path
) -> None:
    monkeypatch.setattr(unpack, "_LIMIT_S", 0.2)
    with pytest.raises(DeadlineExceeded, match=f"{DIFF_ID}: it takes longer than"):
        await judge(monkeypatch, target, "while True: pass")


async def test_the_worker_gets_no_secrets(monkeypatch: pytest.MonkeyPatch, target: Path) -> None:
    monkeypatch.setenv("CRIW_IMAGE_REGISTRIES", "a password")
    script = (
        f"names = [n for n in os.environ if n.startswith('CRIW')]; os.write(1, b'd{DIFF_ID}\\0'); sys.exit(len(names))"
    )
    assert await judge(monkeypatch, target, script) == unpack.Unpacked((), (), ())
