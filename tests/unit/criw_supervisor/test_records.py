import itertools

import pytest

from criw.errors import FailedPrecondition
from criw_supervisor.records import NEXT, ContainerRecord, ContainerState

S = ContainerState
ALLOWED = {(S.CREATED, S.RUNNING), (S.CREATED, S.EXITED), (S.RUNNING, S.EXITED)}


def record(state: ContainerState) -> ContainerRecord:
    return ContainerRecord(
        id="c" * 64, pod_id="p" * 64, config=b"\xff\x00", runtime="runc", image_id="sha256:i", image_ref="r@sha256:d",
        cgroup="/criw/p/c", log_path="", state=state, created_at_ns=1, pid=2, pid_started=3, resources=b"",
        stop_signal=15,
    )  # fmt: skip


def test_the_table_has_every_state() -> None:
    assert set(NEXT) == set(ContainerState)


@pytest.mark.parametrize(("state", "to"), list(itertools.product(ContainerState, repeat=2)))
def test_every_pair_of_states(state: ContainerState, to: ContainerState) -> None:
    before = record(state)
    if (state, to) in ALLOWED:
        after = before.moved(to, exit_code=7)
        assert (after.state, after.exit_code) == (to, 7)
        assert before.state is state
    else:
        with pytest.raises(FailedPrecondition, match=f"from {state} to {to}"):
            before.moved(to)


def test_a_record_survives_the_store_with_its_bytes() -> None:
    before = record(S.RUNNING)
    assert ContainerRecord.model_validate_json(before.model_dump_json()) == before
