"""What is made of conmon's and the OCI runtime's words; the real ones are in the system tests."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criw.config.supervisor import Runtime, SupervisorSection
from criw.errors import Failed, FailedPrecondition
from criw_supervisor.runtime import Handler, Handlers, Launch, _created_pid, probe_handlers, runtime_words


def launch(bundle: Path, **changes: object) -> Launch:
    given = {
        "container_id": "c" * 64, "name": "web", "bundle": bundle, "log_path": "/logs/web.log",
        "exit_dir": bundle / "exits", "terminal": False, "stdin": False, "stdin_once": False,
    } | changes  # fmt: skip
    return Launch(**given)  # type: ignore[arg-type]  # the fields by name


def handler(tmp_path: Path, name: str = "runc", path: str = "runc") -> Handler:
    return Handler(name, Runtime(path=Path(path), args=("--debug",)), conmon="/usr/bin/conmon", root=tmp_path / name)


@pytest.mark.parametrize("key", ["pid", "data"])  # the words of conmon's versions
def test_the_pid_conmon_tells(tmp_path: Path, key: str) -> None:
    assert _created_pid(launch(tmp_path), json.dumps({key: 4711}).encode(), tmp_path / "conmon.log") == 4711


RUNC = 'time="2026-01-02T03:04:05Z" level=error msg="runc create failed: exec: \\"nope\\": not found in $PATH"'


@pytest.mark.parametrize(
    ("line", "complaint", "message"),
    [
        (json.dumps({"pid": -1, "message": RUNC + "\n"}), "", 'runc create failed: exec: "nope": not found in $PATH'),
        (json.dumps({"data": -1, "message": ""}), RUNC, 'runc create failed: exec: "nope": not found in $PATH'),
        (
            json.dumps({"pid": -1}),
            "[conmon:e]: Runtime path does not exist\n",
            "[conmon:e]: Runtime path does not exist",
        ),
        ("", "", "conmon ended without a word"),
        ("no json", "", "conmon ended without a word"),
    ],
)
def test_what_went_wrong_is_told_in_the_runtimes_own_words(
    tmp_path: Path, line: str, complaint: str, message: str
) -> None:
    (tmp_path / "conmon.log").write_text(complaint)
    with pytest.raises(Failed) as caught:
        _created_pid(launch(tmp_path), line.encode(), tmp_path / "conmon.log")
    assert str(caught.value) == f"cannot create container web: {message}"


@given(st.text())
def test_the_message_of_a_log_line_is_taken_out_of_its_quotes(message: str) -> None:
    line = f"time=x level=error msg={json.dumps(message)}"
    if 'msg="' not in message:
        assert runtime_words(line) == message


@given(st.text(), st.sampled_from(["", 'level=error msg="']))
def test_words_that_are_no_log_line_are_told_as_they_are(text: str, beginning: str) -> None:
    words = beginning + text.replace('"', "'")  # a message that begins and never ends is none
    assert runtime_words(words) == words


def test_the_last_of_several_log_lines_counts() -> None:
    assert runtime_words('level=warning msg="never mind"\nlevel=error msg="it is broken"\n') == "it is broken"


def test_conmons_command_line(tmp_path: Path) -> None:
    made = handler(tmp_path)
    words = made._conmon_command(launch(tmp_path))
    assert words[words.index("--log-path") + 1] == "k8s-file:/logs/web.log"
    assert words[words.index("--exit-dir") + 1] == str(tmp_path / "exits")
    assert [word for word in words if word.startswith("--runtime-arg")] == [
        "--runtime-arg=--debug", "--runtime-arg=--root", f"--runtime-arg={tmp_path}/runc",
    ]  # fmt: skip
    assert {"--terminal", "--stdin", "--leave-stdin-open"} & set(words) == set()
    assert "--terminal" in made._conmon_command(launch(tmp_path, terminal=True))
    once = made._conmon_command(launch(tmp_path, stdin=True, stdin_once=True))
    assert ("--stdin" in once, "--leave-stdin-open" in once) == (True, False)
    assert "--leave-stdin-open" in made._conmon_command(launch(tmp_path, stdin=True))
    silent = made._conmon_command(launch(tmp_path, log_path=""))
    assert silent[silent.index("--log-path") + 1] == "off:"


def test_a_request_gets_a_handler_that_works(tmp_path: Path) -> None:
    runc, crun = handler(tmp_path), handler(tmp_path, "crun")
    handlers = Handlers({"crun": crun, "runc": runc}, {"crun": "cgroups in hybrid mode"}, "runc")
    assert handlers.get("") is runc
    assert handlers.get("runc") is runc
    assert handlers.working == ["runc"]
    with pytest.raises(FailedPrecondition, match=r"crun: cgroups in hybrid mode; working handlers: runc"):
        handlers.get("crun")
    with pytest.raises(FailedPrecondition, match=r"kata: it is not configured"):
        handlers.get("kata")
    assert handlers.of_record("crun") is crun  # what it made before must still be stopped
    with pytest.raises(FailedPrecondition, match="not configured in"):
        handlers.of_record("gone")


def test_without_a_working_handler_the_default_is_refused(tmp_path: Path) -> None:
    handlers = Handlers({"runc": handler(tmp_path)}, {"runc": "it is broken"}, "")
    with pytest.raises(FailedPrecondition, match=r"\(default\): runc: it is broken; working handlers: none"):
        handlers.get("")


async def test_a_runtime_that_is_not_installed_is_broken_and_says_so(tmp_path: Path) -> None:
    section = SupervisorSection(conmon=Path("/bin/sh"), runtimes={"nope": Runtime(path=Path("/nowhere/nope"))})
    handlers = await probe_handlers(section, tmp_path)
    assert handlers.broken == {"nope": "/nowhere/nope is not installed"}
    assert (handlers.working, handlers.default) == ([], "")


async def test_a_runtime_that_fails_is_broken_and_says_why(tmp_path: Path) -> None:
    program = tmp_path / "fails"
    program.write_text("#!/bin/sh\necho cannot do that here >&2\nexit 1\n")
    program.chmod(0o755)
    section = SupervisorSection(conmon=Path("/bin/sh"), runtimes={"fails": Runtime(path=program)})
    handlers = await probe_handlers(section, tmp_path)
    assert handlers.broken == {"fails": "cannot do that here"}
    assert list((tmp_path / "runtime").glob("probe-*")) == []


async def test_without_conmon_there_is_no_supervisor(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="/nowhere/conmon is missing; install the package conmon"):
        await probe_handlers(SupervisorSection(conmon=Path("/nowhere/conmon")), tmp_path)


async def test_deleting_what_the_runtime_does_not_know_is_a_success(tmp_path: Path) -> None:
    await handler(tmp_path, path="/nowhere/runc").delete("c" * 64, force=True)
