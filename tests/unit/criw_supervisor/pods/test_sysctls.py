import pytest

from criw.errors import InvalidArgument
from criw_supervisor.pods.sysctls import split


def test_sysctls_go_to_the_namespace_they_belong_to() -> None:
    asked = {
        "net.ipv4.ip_forward": "1", "kernel.shm_rmid_forced": "1", "kernel.msgmax": "8192", "kernel.sem": "1 2 3 4",
        "fs.mqueue.msg_max": "50", "kernel.domainname": "example.org", "net/core/somaxconn": "100",
    }  # fmt: skip
    network, local = split(asked, own_network=True, own_ipc=True)
    assert network == {"net.ipv4.ip_forward": "1", "net.core.somaxconn": "100"}
    assert set(local) == set(asked) - {"net.ipv4.ip_forward", "net/core/somaxconn"}


@pytest.mark.parametrize(
    ("name", "own_network", "own_ipc"),
    [
        ("net.ipv4.ip_forward", False, True),
        ("kernel.msgmax", True, False),
        ("fs.mqueue.msg_max", True, False),
        ("kernel.domainname", False, True),
        ("kernel.panic", True, True),
        ("vm.swappiness", True, True),
        ("net", True, True),
        ("", True, True),
    ],
)
def test_a_sysctl_that_would_change_the_host_is_refused_by_name(name: str, own_network: bool, own_ipc: bool) -> None:
    with pytest.raises(InvalidArgument, match="belongs to no namespace of the pod"):
        split({name: "1"}, own_network=own_network, own_ipc=own_ipc)
