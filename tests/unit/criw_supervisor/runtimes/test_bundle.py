from pathlib import Path

import pytest

from criw.errors import FailedPrecondition, InvalidArgument
from criw_supervisor.runtimes.bundle import Bundle

DOCUMENT: dict[str, object] = {"process": {"env": ["A=ŵ"], "args": ["sh"], "terminal": True}}


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    made = Bundle(tmp_path / "bundle")
    made.write(DOCUMENT)
    return made


def test_a_bundle_is_for_root_alone_and_gives_back_what_was_written(bundle: Bundle) -> None:
    assert bundle.directory.stat().st_mode & 0o777 == 0o700
    assert bundle.read() == DOCUMENT


@pytest.mark.parametrize("text", ["A=\udcff", "\ud800"])
def test_text_that_would_reach_the_runtime_altered_is_refused(tmp_path: Path, text: str) -> None:
    made = Bundle(tmp_path / "other")
    with pytest.raises(InvalidArgument, match=r"cannot hand .* to the runtime: it is not UTF-8"):
        made.write({"mounts": [{"source": f"/data/{text}"}]})
    assert not made.directory.exists()


def test_a_further_command_runs_as_the_containers_own(bundle: Bundle) -> None:
    assert bundle.process(["ls", "-l"]) == {"env": ["A=ŵ"], "args": ["ls", "-l"], "terminal": False}


def test_files_of_further_commands_are_known_by_their_names(bundle: Bundle) -> None:
    assert bundle.all_exec_files() == []
    for path in bundle.exec_files("abc"):
        path.touch()
        assert bundle.is_exec_file(str(path))
    assert sorted(bundle.all_exec_files()) == sorted(bundle.exec_files("abc"))
    assert not bundle.is_exec_file(str(bundle.config))


def test_a_bundle_that_is_gone_is_empty_and_runs_nothing(bundle: Bundle) -> None:
    for _ in range(2):
        bundle.remove()
    assert bundle.read() == {}
    with pytest.raises(FailedPrecondition, match="its bundle is gone"):
        bundle.process(["ls"])
