"""How an OCI runtime is called: a scripted one writes down each of its command lines."""

import asyncio
from itertools import accumulate
from pathlib import Path

import pytest

from criw.config.supervisor import Runtime
from criw.errors import Failed
from criw.ids import new_id
from criw_supervisor.cgroups.hierarchies import parse
from criw_supervisor.ledger.places import Places
from criw_supervisor.runtimes.handler import Task
from criw_supervisor.runtimes.oci import OciHandler

SCRIPT = """\
#!/bin/sh
echo "$*" >> {calls}
test -e {fails} && case "$*" in *--force*) ;; *) exit 1 ;; esac
test -e {says} && cat {says}
exit 0
"""


class Scripted:
    """The handler, with a task whose state directory the runtime has."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._calls = directory / "calls"
        program = directory / "runtime"
        program.write_text(SCRIPT.format(calls=self._calls, fails=directory / "fails", says=directory / "says"))
        program.chmod(0o755)
        places = Places(directory / "run")
        self.handler = OciHandler(
            "r", Runtime(path=program), monitor="conmon", monitors="/criw/conmon", places=places, cgroups=parse(b"")
        )
        self.task = Task(new_id(), "/criw/p/c")
        (places.runtime("r") / self.task.id).mkdir(parents=True)

    def calls(self) -> list[str]:
        """The commands so far, without the global arguments."""
        return [line.split(" ", 2)[2] for line in self._calls.read_text().splitlines()]


@pytest.fixture
def scripted(tmp_path: Path) -> Scripted:
    return Scripted(tmp_path)


async def test_an_ended_container_is_deleted_without_force(scripted: Scripted) -> None:
    await scripted.handler.release(scripted.task)
    assert scripted.calls() == [f"delete {scripted.task.id}"]
    await scripted.handler.delete(scripted.task, ended=True)
    assert not any("--force" in call for call in scripted.calls())


async def test_force_is_for_one_whose_end_is_not_known_or_that_cannot_be_deleted_without(scripted: Scripted) -> None:
    (scripted.directory / "fails").touch()
    await scripted.handler.release(scripted.task)
    assert scripted.calls() == [f"delete {scripted.task.id}", f"delete --force {scripted.task.id}"]
    (scripted.directory / "fails").unlink()
    await scripted.handler.delete(scripted.task, ended=False)
    assert scripted.calls()[2:] == [f"delete --force {scripted.task.id}"]


@pytest.mark.parametrize("answer", ["", "[]", "{}", "nonsense"])
async def test_a_runtime_that_answers_nonsense_is_told(scripted: Scripted, answer: str) -> None:
    (scripted.directory / "says").write_text(answer)
    with pytest.raises(Failed, match=f"cannot learn the state of container {scripted.task.id}"):
        await scripted.handler.recover(scripted.task)


SLOW = """\
#!/bin/sh
echo begin >> {calls}
sleep 0.05
echo end >> {calls}
"""


async def test_many_ends_at_once_do_not_make_as_many_runtimes_run(scripted: Scripted) -> None:
    calls = scripted.directory / "depth"
    (scripted.directory / "runtime").write_text(SLOW.format(calls=calls))
    await asyncio.gather(*(scripted.handler.release(scripted.task) for _ in range(8)))
    depths = list(accumulate(1 if line == "begin" else -1 for line in calls.read_text().splitlines()))
    assert len(depths) == 16
    assert max(depths) == 2
