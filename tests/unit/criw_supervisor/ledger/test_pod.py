"""What the CRI tells of pods and containers, from their records."""

from pathlib import Path

import pytest

from criw_proto.runtime import v1 as cri
from criw_supervisor.ledger.container import Container
from criw_supervisor.ledger.places import PodFiles
from criw_supervisor.ledger.pod import Pod, namespace_options
from criw_supervisor.ledger.records import ContainerRecord, PodRecord
from criw_supervisor.ledger.states import ContainerState, PodState

POD_CONFIG = cri.PodSandboxConfig(
    metadata=cri.PodSandboxMetadata(name="web", namespace="default", uid="u", attempt=2),
    labels={"io.kubernetes.pod.name": "web", "app": "ŵ"},
    annotations={"kubernetes.io/config.seen": "now"},
    linux=cri.LinuxPodSandboxConfig(
        security_context=cri.LinuxSandboxSecurityContext(
            namespace_options=cri.NamespaceOption(pid=cri.NamespaceMode.CONTAINER, ipc=cri.NamespaceMode.NODE)
        )
    ),
)
CONTAINER_CONFIG = cri.ContainerConfig(
    metadata=cri.ContainerMetadata(name="main", attempt=3),
    image=cri.ImageSpec(image="sha256:i", user_specified_image="busybox"),
    labels={"io.kubernetes.container.name": "main"},
    annotations={"io.kubernetes.container.hash": "abc"},
    mounts=[cri.Mount(container_path="/dev/termination-log", host_path="/var/lib/kubelet/x")],
)


def pod(**changes: object) -> Pod:
    record = PodRecord(
        id="p" * 64, config=bytes(POD_CONFIG), runtime_handler="", runtime="runc", state=PodState.READY,
        created_at_ns=11, hostname="web", netns="/net", ips=("10.0.0.2", "fd00::2"), cgroup="/criw/p", owned=(),
    )  # fmt: skip
    return Pod(record.model_copy(update=changes), PodFiles(Path("/pods/p")))


def container(**changes: object) -> Container:
    record = ContainerRecord(
        id="c" * 64, pod_id="p" * 64, config=bytes(CONTAINER_CONFIG), runtime="runc", image_id="sha256:i",
        image_ref="repo@sha256:d", cgroup="/criw/p/c", log_path="/logs/main.log", state=ContainerState.CREATED,
        created_at_ns=12, pid=1, pid_started=2, resources=bytes(cri.LinuxContainerResources(cpu_shares=512)),
        uid=7, gid=8, groups=(8, 9), stop_signal=3,
    )  # fmt: skip
    return Container(record.model_copy(update=changes))


def listed_pod(one: Pod) -> cri.PodSandbox:
    (found,) = cri.ListPodSandboxResponse.parse(one.listing).items
    return found


def listed_container(one: Container) -> cri.Container:
    (found,) = cri.ListContainersResponse.parse(one.listing).containers
    return found


def test_a_pod_in_a_list_has_all_the_kubelet_needs() -> None:
    found = listed_pod(pod())
    assert (found.id, found.metadata, found.created_at) == ("p" * 64, POD_CONFIG.metadata, 11)
    assert (found.labels, found.annotations) == (POD_CONFIG.labels, POD_CONFIG.annotations)
    assert (found.state, found.runtime_handler) == (cri.PodSandboxState.SANDBOX_READY, "")


@pytest.mark.parametrize("state", [PodState.STOPPING, PodState.STOPPED])
def test_a_pod_that_is_being_stopped_is_not_ready_anywhere_and_has_no_address(state: PodState) -> None:
    one = pod()
    one.update(one.record.model_copy(update={"state": state}))
    assert listed_pod(one).state == one.status().state == one.state == cri.PodSandboxState.SANDBOX_NOTREADY
    network = one.status().network
    assert network is not None
    assert (network.ip, network.additional_ips) == ("", [])


def test_a_pods_status_gives_back_what_was_asked_for() -> None:
    status = pod().status()
    assert status.network == cri.PodSandboxNetworkStatus(ip="10.0.0.2", additional_ips=[cri.PodIp(ip="fd00::2")])
    assert status.linux is not None
    assert status.linux.namespaces is not None
    assert status.linux.namespaces.options == namespace_options(POD_CONFIG)
    assert (status.metadata, status.created_at) == (POD_CONFIG.metadata, 11)


def test_a_request_without_namespace_options_means_the_pods_own() -> None:
    options = namespace_options(cri.PodSandboxConfig())
    assert {options.network, options.pid, options.ipc} == {cri.NamespaceMode.POD}


def test_a_container_in_a_list_has_all_the_kubelet_needs() -> None:
    found = listed_container(container())
    assert (found.id, found.pod_sandbox_id, found.metadata) == ("c" * 64, "p" * 64, CONTAINER_CONFIG.metadata)
    assert (found.image, found.image_ref, found.image_id) == (CONTAINER_CONFIG.image, "repo@sha256:d", "sha256:i")
    assert (found.labels, found.annotations) == (CONTAINER_CONFIG.labels, CONTAINER_CONFIG.annotations)
    assert (found.state, found.created_at) == (cri.ContainerState.CONTAINER_CREATED, 12)


def test_the_list_follows_the_record() -> None:
    one = container()
    assert not one.exited.is_set()
    one.update(one.record.moved(ContainerState.RUNNING, started_at_ns=13))
    assert listed_container(one).state == cri.ContainerState.CONTAINER_RUNNING
    one.update(one.record.moved(ContainerState.EXITED, finished_at_ns=14, exit_code=1, reason="Error"))
    assert listed_container(one).state == cri.ContainerState.CONTAINER_EXITED
    assert one.exited.is_set()


def test_a_containers_status() -> None:
    ended = {
        "state": ContainerState.EXITED, "started_at_ns": 13, "finished_at_ns": 14, "exit_code": 137,
        "reason": "OOMKilled", "message": "why",
    }  # fmt: skip
    status = container(**ended).status()
    assert (status.created_at, status.started_at, status.finished_at) == (12, 13, 14)
    assert (status.exit_code, status.reason, status.message) == (137, "OOMKilled", "why")
    assert status.mounts == CONTAINER_CONFIG.mounts
    assert status.log_path == "/logs/main.log"
    assert status.resources == cri.ContainerResources(linux=cri.LinuxContainerResources(cpu_shares=512))
    assert status.user == cri.ContainerUser(linux=cri.LinuxContainerUser(uid=7, gid=8, supplemental_groups=[8, 9]))
    assert status.stop_signal == cri.Signal.SIGQUIT
    assert (status.image_id, status.image_ref) == ("sha256:i", "repo@sha256:d")
