import pytest

from criw.errors import InvalidArgument
from criw_network.pod import Bandwidth, Dns, HostPort, Pod
from criw_network.rpc import pod_of
from criw_proto.criw.network import v1


def test_all_that_a_request_says_of_a_pod_is_known() -> None:
    request = v1.AttachRequest(
        pod_id="a" * 64,
        port_mappings=[v1.PortMapping(protocol="udp", container_port=53, host_port=5353, host_ip="10.0.0.1")],
        sysctls={"net.ipv4.ip_forward": "1"},
        name="web-0",
        namespace="shop",
        uid="c0ffee",
        annotations={"k8s.v1.cni.cncf.io/networks": "macvlan"},
        dns=v1.Dns(servers=["10.0.0.10"], searches=["shop.svc"], options=["ndots:5"]),
        bandwidth=v1.Bandwidth(ingress_bits_per_s=1, ingress_burst_bits=2, egress_bits_per_s=3, egress_burst_bits=4),
        cgroup="kubepods/pod-c0ffee",
        user_namespace="/proc/77/ns/user",
    )
    assert pod_of(v1.AttachRequest.parse(bytes(request))) == Pod(
        id="a" * 64,
        ports=(HostPort(protocol="udp", container_port=53, host_port=5353, host_ip="10.0.0.1"),),
        sysctls={"net.ipv4.ip_forward": "1"},
        name="web-0",
        namespace="shop",
        uid="c0ffee",
        annotations={"k8s.v1.cni.cncf.io/networks": "macvlan"},
        dns=Dns(servers=("10.0.0.10",), searches=("shop.svc",), options=("ndots:5",)),
        bandwidth=Bandwidth(ingress_bits_per_s=1, ingress_burst_bits=2, egress_bits_per_s=3, egress_burst_bits=4),
        cgroup="kubepods/pod-c0ffee",
        user_namespace="/proc/77/ns/user",
    )


def test_a_request_that_says_little_leaves_the_rest_empty() -> None:
    assert pod_of(v1.AttachRequest(pod_id="b")) == Pod(id="b")


def test_a_container_port_without_a_host_port_is_no_mapping() -> None:
    listed = [v1.PortMapping(protocol="tcp", container_port=80)]
    assert pod_of(v1.AttachRequest(pod_id="b", port_mappings=listed)).ports == ()


def test_a_bad_port_is_refused() -> None:
    listed = [v1.PortMapping(protocol="icmp", container_port=80, host_port=80)]
    with pytest.raises(InvalidArgument, match="icmp"):
        pod_of(v1.AttachRequest(pod_id="b", port_mappings=listed))
