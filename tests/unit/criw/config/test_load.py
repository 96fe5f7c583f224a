from collections.abc import Mapping
from pathlib import Path

import pytest

from criw.config.crew import Config, CrewFacts
from criw.config.load import load
from criw.config.network import NetworkSettings
from criw.config.supervisor import Runtime
from criw.errors import InvalidArgument


@pytest.fixture
def main(tmp_path: Path) -> Path:
    return tmp_path / "criw.toml"


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def refusal(path: Path | None, environ: Mapping[str, str] | None = None) -> str:
    with pytest.raises(InvalidArgument, match=r"^cannot ") as caught:
        load(Config, path, environ or {})
    return str(caught.value)


def test_the_defaults_need_no_file(main: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("criw.config.load.DEFAULT_PATH", main)
    assert load(Config, environ={}) == Config()


def test_the_default_file_is_read_if_it_is_there(main: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("criw.config.load.DEFAULT_PATH", written(main, 'group = "default"'))
    assert load(Config, environ={}).group == "default"


def test_a_file_that_was_named_must_be_there(main: Path) -> None:
    assert str(main) in refusal(main)
    assert str(main) in refusal(None, {"CRIW_CONFIG": str(main)})


def test_a_named_file_wins_over_the_variable(main: Path, tmp_path: Path) -> None:
    other = written(tmp_path / "other.toml", 'group = "other"')
    written(main, 'group = "main"')
    assert load(Config, environ={"CRIW_CONFIG": str(other)}).group == "other"
    assert load(Config, main, {"CRIW_CONFIG": str(other)}).group == "main"


def test_later_sources_win(main: Path) -> None:
    written(main, 'group = "file"\nlog_level = "debug"\nlog_format = "json"\nrun = "/run/file"')
    written(main.parent / "conf.d" / "20.toml", 'group = "second"\nlog_level = "error"')
    written(main.parent / "conf.d" / "10.toml", 'group = "first"\nlog_format = "text"')
    got = load(Config, main, {"CRIW_GROUP": "variable"})
    assert (got.group, got.log_level, got.log_format, got.run) == ("variable", "error", "text", Path("/run/file"))


def test_drop_ins_are_read_in_the_order_of_their_names(main: Path) -> None:
    for number in (5, 3, 9, 1, 7, 8, 2, 6, 4):
        written(main.parent / "conf.d" / f"{number}.toml", f"drain_timeout_s = {number}")
    written(main.parent / "conf.d" / "99.toml.off", "drain_timeout_s = 99")
    assert load(Config, written(main, ""), {}).drain_timeout_s == 9


def test_tables_are_merged_and_arrays_replaced(main: Path) -> None:
    written(main, '[network]\nbridge = "br7"\npod_cidrs = ["10.1.0.0/16", "fd00::/64"]\n[image.registries."a:5000"]')
    drop_in = '[network]\nmtu = 9000\npod_cidrs = ["10.2.0.0/16"]\n[image.registries."b"]\nplain_http = true'
    written(main.parent / "conf.d" / "x.toml", drop_in)
    got = load(Config, main, {})
    assert (got.network.bridge, got.network.mtu, got.network.pod_cidrs) == ("br7", 9000, ("10.2.0.0/16",))
    assert {host: registry.plain_http for host, registry in got.image.registries.items()} == {
        "a:5000": False,
        "b": True,
    }


@pytest.mark.parametrize(
    ("name", "text", "key", "value"),
    [
        ("CRIW_ROOT", "/var/x", "root", Path("/var/x")),
        ("CRIW_LOG_LEVEL", "warning", "log_level", "warning"),
        ("CRIW_DRAIN_TIMEOUT_S", "2.5", "drain_timeout_s", 2.5),
        ("CRIW_NETWORK_MTU", "1400", "network.mtu", 1400),
        ("CRIW_NETWORK_POD_CIDRS", '["10.3.0.0/16"]', "network.pod_cidrs", ("10.3.0.0/16",)),
        ("CRIW_SUPERVISOR_CGROUP_PARENT", "/pods", "supervisor.cgroup_parent", "/pods"),
        (
            "CRIW_SUPERVISOR_RUNTIMES",
            '{kata = {path = "/k"}}',
            "supervisor.runtimes",
            {"kata": Runtime(path=Path("/k"))},
        ),
        ("CRIW_CRI_HTTP", "[::1]:80", "cri.http", "[::1]:80"),
        ("HOME", "/root", "group", ""),
    ],
)
def test_variables_name_keys_and_sections(name: str, text: str, key: str, value: object, main: Path) -> None:
    got: object = load(Config, written(main, ""), {name: text})
    for part in key.split("."):
        got = getattr(got, part)
    assert got == value


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("rot = 1", "rot"),
        ("[netwrok]\nmtu = 1500", "netwrok"),
        ('[network]\nbrigde = "x"', "network.brigde"),
        ("[image.registries.r]\nplain = true", "image.registries.r.plain"),
        ('[supervisor.runtimes.runc]\npath = "/r"\nroot = "/"', "supervisor.runtimes.runc.root"),
    ],
)
def test_unknown_keys_are_refused_by_name(text: str, key: str, main: Path) -> None:
    message = refusal(written(main, text))
    assert f"unknown key {key}" in message
    assert str(main) in message


def test_unknown_variables_are_refused_by_name(main: Path) -> None:
    assert "unknown key network.brigde" in refusal(written(main, ""), {"CRIW_NETWORK_BRIGDE": "x"})
    assert "unknown key colour" in refusal(written(main, ""), {"CRIW_COLOUR": "red"})


@pytest.mark.parametrize(
    "text",
    ["image = 5", "[image]\nnew = 1", '[image]\nhttp = "new"', "[image.registries.r]\nplain = true"],
)
def test_a_process_passes_over_the_sections_of_others(text: str, main: Path) -> None:
    got = load(NetworkSettings, written(main, f"{text}\n[network]\nmtu = 1400"), {"CRIW_IMAGE_NEW": "1"})
    assert got.network.mtu == 1400
    assert "image" in refusal(main)  # which is no reason to take it for good


def test_a_process_is_strict_about_the_top_level_and_its_own_section(main: Path) -> None:
    written(main, "rot = 1\n[network]\nmtu = 5\nbrigde = 1")
    with pytest.raises(InvalidArgument, match=r"unknown key network\.brigde") as caught:
        load(NetworkSettings, main, {})
    assert "unknown key rot" in str(caught.value)
    assert "network.mtu" in str(caught.value)


def test_a_client_of_all_reads_their_addresses_and_nothing_else(main: Path) -> None:
    written(main, '[image]\nnew = 1\nhttp = "h:1"\n[network]\nmtu = 5')
    got = load(CrewFacts, main, {})
    assert (got.image.address(), got.network.address()) == (("h", 1), Config().network.address())


def test_every_problem_is_told_at_once(main: Path) -> None:
    message = refusal(written(main, 'rot = 1\nlog_level = "loud"\n[network]\nmtu = 5'))
    assert all(key in message for key in ("rot", "log_level", "network.mtu"))


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('root = "var/lib"', "root"),
        ('run = "run"', "run"),
        (f'run = "/{"r" * 80}"', "run"),
        ("group = 5", "group"),
        ('log_format = "xml"', "log_format"),
        ("drain_timeout_s = 0", "drain_timeout_s"),
        ("network = 5", "network"),
        ('[cri]\nhttp = "9470"', "cri.http"),
        ('[cri]\nhttp = ":9470"', "cri.http"),
        ('[cri]\nhttp = "localhost:http"', "cri.http"),
        ('[cri]\nhttp = "localhost:65536"', "cri.http"),
        ("[image]\nparallel_downloads = 0", "image.parallel_downloads"),
        ("[image]\nstall_timeout_s = -1", "image.stall_timeout_s"),
        ('[image.registries.r]\nmirrors = ["mirror:5000"]', "image.registries.r.mirrors"),
        ('[image.registries."*"]\nusername = "u"', "image.registries"),
        ('[image.registries."*"]\npassword = "p"', "image.registries"),
        ("[storage]\nunpack_workers = 0", "storage.unpack_workers"),
        ('[storage]\nunpack_workers = "two"', "storage.unpack_workers"),
        ('[network]\nbridge = "br-with-a-long-name"', "network.bridge"),
        ('[network]\nbridge = "br/0"', "network.bridge"),
        ('[network]\npod_cidrs = ["10.0.0.0/99"]', "network.pod_cidrs"),
        ('[network]\npod_cidrs = ["10.0.0.1/16"]', "network.pod_cidrs"),
        ('[network]\npod_cidrs = ["10.0.0.0/16", "10.1.0.0/16"]', "network.pod_cidrs"),
        ("[network]\nmtu = 70000", "network.mtu"),
        ('[supervisor]\ncgroup_parent = "criw"', "supervisor.cgroup_parent"),
        ('[supervisor]\ncgroup_parent = "/a/../.."', "supervisor.cgroup_parent"),
        ('[supervisor]\ncgroup_parent = "//"', "supervisor.cgroup_parent"),
        ('[supervisor]\ndefault_runtime = "kata"', "supervisor.default_runtime"),
        ("[supervisor.runtimes.kata]\nargs = []", "supervisor.runtimes.kata.path"),
        ("[supervisor]\npids_limit = -1", "supervisor.pids_limit"),
    ],
)
def test_wrong_values_are_refused_with_their_key(text: str, key: str, main: Path) -> None:
    assert f": {key}" in refusal(written(main, text))


def test_a_default_runtime_may_be_one_of_those_configured(main: Path) -> None:
    text = '[supervisor]\ndefault_runtime = "kata"\n[supervisor.runtimes.kata]\npath = "/k"'
    assert load(Config, written(main, text), {}).supervisor.default_runtime == "kata"


@pytest.mark.parametrize("content", [b"root = ", b"[a]\n[a]\n", b"\xff\xfe"])
def test_what_is_no_toml_is_refused_with_its_file(content: bytes, main: Path) -> None:
    main.write_bytes(content)
    assert str(main) in refusal(main)
    drop_in = main.parent / "conf.d" / "x.toml"
    drop_in.parent.mkdir()
    main.rename(drop_in)
    assert str(drop_in) in refusal(written(main, ""))


def test_a_directory_is_no_configuration(tmp_path: Path) -> None:
    assert str(tmp_path) in refusal(tmp_path)
