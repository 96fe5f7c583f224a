import pytest

from criw.errors import NotFound
from criw_ctl.names import Inventory, name_of
from criw_proto.runtime.v1 import Container, ContainerMetadata, ContainerState, PodSandbox, PodSandboxMetadata


def pod(digit: str, name: str) -> PodSandbox:
    return PodSandbox(id=digit * 64, metadata=PodSandboxMetadata(name=name))


def container(digit: str, name: str, of: PodSandbox) -> Container:
    return Container(id=digit * 64, metadata=ContainerMetadata(name=name), pod_sandbox_id=of.id)


WEB, DATABASE, JOB = pod("1", "web"), pod("2", "database"), pod("3", "job")
IN_WEB, SIDECAR = container("a", "web", WEB), container("b", "sidecar", WEB)
IN_DATABASE, DATABASE_SIDECAR = container("c", "postgres", DATABASE), container("d", "sidecar", DATABASE)
SECOND_TRY, FIRST_TRY = container("e", "try", JOB), container("f", "try", JOB)
ALL = Inventory(
    pods=[WEB, DATABASE, JOB],
    containers=[IN_WEB, SIDECAR, IN_DATABASE, DATABASE_SIDECAR, SECOND_TRY, FIRST_TRY],  # newest first
)


@pytest.mark.parametrize("text", ["a" * 64, "a", "aaaa", "web"])
def test_a_container_by_id_beginning_and_name(text: str) -> None:
    assert ALL.container(text) is IN_WEB


def test_a_name_means_the_last_of_those_that_followed_one_another() -> None:
    assert ALL.container("try") is SECOND_TRY


def test_a_name_that_two_pods_have_is_not_clear() -> None:
    with pytest.raises(NotFound, match=r"cannot tell which container sidecar means: b{13}, d{13} have that name"):
        ALL.container("sidecar")


def test_a_beginning_that_two_ids_have_is_not_clear() -> None:
    twin = PodSandbox(id="1" * 63 + "2", metadata=PodSandboxMetadata(name="twin"))
    with pytest.raises(NotFound, match="more than one id begins with it"):
        Inventory(pods=[WEB, twin], containers=[]).pod_or_container("11")


@pytest.mark.parametrize("text", ["nothing", "", "0", "2"])
def test_what_is_no_container_is_said_with_a_hint(text: str) -> None:
    with pytest.raises(NotFound, match=r"criwctl ps -a"):
        ALL.container(text)


def test_a_name_a_pod_shares_with_its_container_means_the_pod() -> None:
    assert ALL.pod_or_container("web") is WEB


def test_a_name_a_pod_shares_with_another_pods_container_is_not_clear() -> None:
    stranger = container("9", "web", DATABASE)
    with pytest.raises(NotFound, match=r"1{13}, 9{13} have that name"):
        Inventory(pods=[WEB, DATABASE], containers=[IN_WEB, stranger]).pod_or_container("web")


def test_pods_and_containers_by_id() -> None:
    assert ALL.pod_or_container("2") is DATABASE
    assert ALL.pod_or_container("c") is IN_DATABASE
    assert ALL.pod_or_container("postgres") is IN_DATABASE


def test_a_name_goes_before_the_beginning_of_an_id() -> None:
    cafe = Container(id="cafe" * 16, metadata=ContainerMetadata(name="x"), pod_sandbox_id=WEB.id)
    named = container("7", "cafe", WEB)
    assert Inventory(pods=[WEB], containers=[cafe, named]).container("cafe") is named


def test_what_has_no_metadata_has_no_name() -> None:
    assert name_of(PodSandbox(id="1")) == ""


@pytest.mark.parametrize("text", ["web/sidecar", "111/bbb", "web/bbb", "b"])
def test_a_container_is_named_with_its_pod_too(text: str) -> None:
    assert ALL.target(text) is SIDECAR


def test_a_pod_stands_for_its_only_container_that_runs() -> None:
    running = Container(
        id="9" * 64,
        metadata=ContainerMetadata(name="main"),
        pod_sandbox_id=JOB.id,
        state=ContainerState.CONTAINER_RUNNING,
    )
    ended = Container(id="8" * 64, pod_sandbox_id=JOB.id, state=ContainerState.CONTAINER_EXITED)
    assert Inventory([JOB], [running, ended]).target("job") is running
    with pytest.raises(NotFound, match="cannot find a container that runs in pod job"):
        Inventory([JOB], [ended]).target("job")
    with pytest.raises(NotFound, match="write job/main, job/main"):
        Inventory([JOB], [running, running]).target("job")


@pytest.mark.parametrize("text", ["nothing", "nothing/web", "web/nothing", "web/", "/web"])
def test_what_no_command_can_run_in_is_said(text: str) -> None:
    with pytest.raises(NotFound, match="criwctl ps -a"):
        ALL.target(text)
