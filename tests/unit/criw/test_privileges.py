"""What is left of root: seen from inside a process that has dropped the rest, and from outside in what it owns."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from criw.config.crew import Config
from criw.privileges import KEPT, Capability, Identity, identity_of

pytestmark = pytest.mark.root

USER, GROUP = 64321, 64322
BARE = Identity(USER, GROUP, frozenset())
STORAGE = Identity(USER, GROUP, KEPT["storage"])
# Becomes what its arguments say, then tells what it is, what a program it starts is, and whether it can go back.
PROGRAM = """
import json, os, sys
from criw.privileges import Capability, Identity
uid, gid, *kept = map(int, sys.argv[1:])
Identity(uid, gid, frozenset(map(Capability, kept))).become()
def status(text):
    return dict(line.split(":\\t", 1) for line in text.splitlines() if ":\\t" in line)
with open("/proc/self/status") as file:
    found = {"self": status(file.read())}
pipe, end = os.pipe()
if not os.fork():
    os.dup2(end, 1)
    os.execv("/bin/cat", ["cat", "/proc/self/status"])
os.close(end)
with os.fdopen(pipe) as file:
    found["child"] = status(file.read())
os.wait()
def refused(work):
    try:
        work()
    except PermissionError:
        return True
    return False
ways = {
    "root": lambda: os.setresuid(0, 0, 0),
    "group": lambda: os.setgroups([0]),
    "shadow": lambda: open("/etc/shadow"),
}
found["refused"] = {name: str(refused(way)) for name, way in ways.items()}
print(json.dumps(found))
"""


def become(identity: Identity, *prefix: str) -> subprocess.CompletedProcess[str]:
    numbers = [identity.uid, identity.gid, *(identity.kept or ())]
    return subprocess.run(
        [*prefix, sys.executable, "-c", PROGRAM, *(str(int(number)) for number in numbers)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def became(identity: Identity) -> Mapping[str, Mapping[str, str]]:
    done = become(identity)
    assert done.returncode == 0, done.stderr
    found: Mapping[str, Mapping[str, str]] = json.loads(done.stdout)
    return found


def mask(identity: Identity) -> int:
    return sum(1 << capability for capability in identity.kept or ())


@pytest.mark.parametrize("who", ["self", "child"])
@pytest.mark.parametrize("identity", [BARE, STORAGE, Identity(0, GROUP, KEPT["network"])])
def test_a_process_and_what_it_starts_have_what_is_kept_and_no_more(identity: Identity, who: str) -> None:
    status = became(identity)[who]
    assert status["Uid"].split() == [str(identity.uid)] * 4
    assert status["Gid"].split() == [str(identity.gid)] * 4
    assert status["Groups"].split() == []
    for kind in ("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb"):
        assert int(status[kind], 16) == mask(identity), kind
    assert status["NoNewPrivs"] == "1"


def test_there_is_no_way_back() -> None:
    assert became(BARE)["refused"] == {"root": "True", "group": "True", "shadow": "True"}


def test_capabilities_root_has_not_got_itself_are_not_missed() -> None:
    """In a container, say."""
    status = json.loads(become(STORAGE, "setpriv", "--bounding-set=-linux_immutable").stdout)["self"]
    assert int(status["CapEff"], 16) == mask(STORAGE) & ~(1 << Capability.LINUX_IMMUTABLE)


def test_a_root_that_may_not_drop_its_capabilities_is_told_what_it_takes() -> None:
    done = become(BARE, "setpriv", "--bounding-set=-setpcap")
    assert done.returncode
    assert f"FailedPrecondition: cannot become user {USER}: " in done.stderr.splitlines()[-1].replace(
        "criw.errors.", ""
    )


def test_root_becomes_what_the_configuration_says() -> None:
    config = Config()
    found = {agent: identity_of(agent, config) for agent in ("cri", "image", "storage", "network", "supervisor")}
    assert {identity.gid for identity in found.values()} == {config.crew_gid}
    users = {agent: identity.uid for agent, identity in found.items()}
    assert (users.pop("network"), users.pop("supervisor")) == (0, 0)
    assert len(set(users.values())) == 3
    assert 0 not in users.values()
    assert (found["cri"].kept, found["image"].kept, found["supervisor"].kept) == (frozenset(), frozenset(), None)


def test_somebody_else_stays_who_he_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    identity = identity_of("image", Config())
    assert (identity.uid, identity.kept) == (1000, None)


# --- directories


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="criw-privileges-", dir="/tmp") as made:
        Path(made).chmod(0o755)
        state = Path(made) / "state"
        (state / "blobs" / "deep").mkdir(parents=True)
        (state / "blobs" / "deep" / "blob").touch()
        (state / "agent.db").touch()
        (Path(made) / "other").touch()
        (state / "blobs" / "link").symlink_to(Path(made) / "other")
        yield state


def owners(directory: Path) -> dict[str, int]:
    return {os.fspath(path.relative_to(directory)): path.lstat().st_uid for path in (directory, *directory.rglob("*"))}


def test_what_an_agent_left_that_was_root_is_all_taken_over(directory: Path) -> None:
    BARE.take(directory)
    names = (".", "agent.db", "blobs", "blobs/deep", "blobs/deep/blob", "blobs/link")
    assert owners(directory) == dict.fromkeys(names, USER)
    assert (directory.parent / "other").stat().st_uid == 0


def test_what_is_in_layers_keeps_its_owners(directory: Path) -> None:
    STORAGE.take(directory)
    taken = {name for name, uid in owners(directory).items() if uid == USER}
    assert taken == {".", "agent.db", "blobs"}


def test_a_file_of_somebody_else_is_not_taken_by_a_link_to_it(directory: Path) -> None:
    BARE.take(directory)
    (directory / "blobs" / "hard").hardlink_to(directory.parent / "other")  # root's
    Identity(USER + 1, GROUP, frozenset()).take(directory)
    assert (directory.parent / "other").stat().st_uid == 0
    assert owners(directory)["agent.db"] == USER + 1


def test_a_directory_that_is_right_is_left_alone(directory: Path) -> None:
    BARE.take(directory)
    os.chown(directory / "agent.db", 4711, 4711)
    BARE.take(directory)
    assert owners(directory)["agent.db"] == 4711


def test_what_is_made_as_the_user_is_the_users_and_only_then(directory: Path) -> None:
    BARE.take(directory)
    with BARE.assumed():
        (directory / "its").touch()
        with pytest.raises(PermissionError):
            (directory.parent / "not-its").touch()
    (directory / "roots").touch()
    assert ((directory / "its").stat().st_uid, (directory / "its").stat().st_gid) == (USER, GROUP)
    assert ((directory / "roots").stat().st_uid, (directory / "roots").stat().st_gid) == (0, os.getegid())
