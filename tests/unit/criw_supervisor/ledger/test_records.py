import pytest

from criw.errors import FailedPrecondition
from criw_supervisor.ledger.records import ContainerRecord, PodRecord
from criw_supervisor.ledger.states import ContainerState, PodState


def container(state: ContainerState) -> ContainerRecord:
    return ContainerRecord(
        id="c" * 64, pod_id="p" * 64, config=b"\xff\x00", runtime="runc", image_id="sha256:i", image_ref="r@sha256:d",
        cgroup="/criw/p/c", log_path="", state=state, created_at_ns=1, pid=2, pid_started=3, resources=b"",
        stop_signal=15,
    )  # fmt: skip


def pod(state: PodState) -> PodRecord:
    return PodRecord(
        id="p" * 64, config=b"\xff\x00", runtime_handler="", runtime="runc", state=state, created_at_ns=1,
        hostname="web", netns="/net", ips=("10.0.0.2",), cgroup="/criw/p", owned=(),
    )  # fmt: skip


def test_a_record_moves_with_what_changes_and_the_one_before_stays() -> None:
    before, ready = container(ContainerState.RUNNING), pod(PodState.READY)
    after = before.moved(ContainerState.EXITED, exit_code=7)
    assert (before.state, after.state, after.exit_code) == (ContainerState.RUNNING, ContainerState.EXITED, 7)
    stopped = ready.moved(PodState.STOPPING).moved(PodState.STOPPED, netns="")
    assert (ready.netns, stopped.netns, stopped.state) == ("/net", "", PodState.STOPPED)


def test_a_record_does_not_skip_or_repeat_a_state() -> None:
    with pytest.raises(FailedPrecondition, match="from exited to running"):
        container(ContainerState.EXITED).moved(ContainerState.RUNNING)
    with pytest.raises(FailedPrecondition, match="from ready to stopped"):
        pod(PodState.READY).moved(PodState.STOPPED)


def test_a_record_survives_the_store_with_its_bytes() -> None:
    for before in (container(ContainerState.RUNNING), pod(PodState.READY)):
        assert type(before).model_validate_json(before.model_dump_json()) == before
