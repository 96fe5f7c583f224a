"""What a user meets before any crew answers: exit codes and one line on stderr."""

import os
import socket
import tomllib
from pathlib import Path

import pytest

from criw.config.common import Common
from criw.config.crew import Config
from criw.config.load import load
from criw_ctl.__main__ import main


@pytest.fixture(autouse=True)
def no_configuration_of_the_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in tuple(os.environ):
        if name.startswith("CRIW_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("CRIW_CONFIG", str(tmp_path / "criw.toml"))
    (tmp_path / "criw.toml").write_text(f'root = "{tmp_path}/lib"\nrun = "{tmp_path}/run"\n')


def run(*argv: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize(
    "argv",
    [
        ["status"],
        ["pull", "busybox"],
        ["images"],
        ["rmi", "busybox"],
        ["run", "busybox"],
        ["run", "-d", "busybox"],
        ["pods"],
        ["ps", "-a", "-o", "json"],
        ["logs", "-f", "web"],
        ["exec", "web", "true"],
        ["exec", "--sync", "web", "true"],
        ["attach", "web"],
        ["cp", "web:x", "y"],
        ["port-forward", "web", "80"],
        ["stop", "web"],
        ["rm", "-f", "web"],
        ["inspect", "web"],
        ["stats"],
    ],
)
@pytest.mark.parametrize("stale", [False, True])
def test_a_crew_that_does_not_run_is_said_at_once(
    argv: list[str], stale: bool, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    if stale:  # a socket whose process was killed
        for path in (load(Common).socket("cri"), load(Common).socket("image")):
            path.parent.mkdir(parents=True, exist_ok=True)
            with socket.socket(socket.AF_UNIX) as left:
                left.bind(str(path))
    assert run(*argv) == 1
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert line.startswith(f"criwctl: cannot reach the crew: nothing listens on {tmp_path}/run/")
    assert "criwctl up" in line


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        ([], "criwctl --help"),
        (["nonsense"], "'nonsense'; see criwctl --help"),
        (["ps", "--nonsense"], "criwctl ps --help"),
        (["run"], "IMAGE'; see criwctl run --help"),
        (["run", "-d", "--rm", "busybox"], "cannot remove at the end what is left running"),
        (["run", "-p", "80", "busybox"], "cannot map the port 80"),
        (["run", "-v", "/no/such:/x", "busybox"], "cannot mount /no/such"),
        (["run", "-e", "x", "busybox"], "KEY=VALUE"),
        (["run", "--name", "A_B", "busybox"], "cannot name a pod A_B"),
        (["ps", "-o", "yaml"], "yaml"),
        (["logs", "--tail", "-1", "web"], "--tail"),
        (["exec", "web"], "CMD"),
        (["exec", "web", "--"], "a command must follow"),
        (["exec", "--sync", "-i", "web", "cat"], "leave out --sync"),
        (["cp", "a", "b"], "NAME:PATH; see criwctl cp --help"),
        (["port-forward", "web", "x:80"], "cannot forward x:80"),
    ],
)
def test_wrong_usage_is_2_and_one_line(argv: list[str], hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("criwctl: cannot")
    assert hint in line


@pytest.mark.parametrize("argv", [["config", "check"], ["ps"], ["up"], ["status"], ["pull", "x"]])
def test_a_bad_configuration_is_78(argv: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("rot = 'x'\n")
    assert run("--config", str(tmp_path / "bad.toml"), *argv) == os.EX_CONFIG
    (line,) = capsys.readouterr().err.splitlines()
    assert "unknown key rot" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("argv", [["config", "check"], ["up"]])
def test_who_checks_or_starts_the_crew_knows_every_section(
    argv: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "bad.toml").write_text(f"root = '{tmp_path}'\nrun = '{tmp_path}/run'\n[network]\nbrigde = 'x'\n")
    assert run("--config", str(tmp_path / "bad.toml"), *argv) == os.EX_CONFIG
    assert "unknown key network.brigde" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("argv", [["ps"], ["status"], ["pull", "x"]])
def test_a_client_is_not_stopped_by_an_upgraded_agents_keys(
    argv: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "new.toml").write_text(f"run = '{tmp_path}/run'\n[network]\nnew = 'x'\n")
    assert run("--config", str(tmp_path / "new.toml"), *argv) == 1
    assert f"nothing listens on {tmp_path}/run/" in capsys.readouterr().err


def test_directories_that_cannot_be_made_are_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(f'root = "{tmp_path}/lib"\nrun = "/dev/null/run"\n')
    assert run("--config", str(tmp_path / "bad.toml"), "up") == os.EX_CONFIG
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("criwctl: cannot start the crew on /dev/null/run: Not a directory; run it as root")


def test_a_configuration_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--config", "/no/such.toml", "config", "check") == os.EX_CONFIG
    assert "/no/such.toml" in capsys.readouterr().err


def test_a_good_configuration_is_said_to_be(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run("config", "check") == 0
    assert str(tmp_path / "lib") in capsys.readouterr().out


def test_the_default_configuration_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("config", "default") == 0
    assert Config.model_validate(tomllib.loads(capsys.readouterr().out)) == Config()


@pytest.mark.parametrize(
    "command",
    ["up", "status", "pull", "images", "rmi", "run", "pods", "ps", "logs", "exec", "attach", "cp", "port-forward"],
)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, "--help") == 0
    assert f"criwctl {command}" in capsys.readouterr().out
