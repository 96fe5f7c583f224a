from criw.ids import new_id
from criw_network.builtin.bridge import Bridge


def test_a_port_is_named_after_bridge_and_pod() -> None:
    one, other = (Bridge(name, owner="", mtu=1500) for name in ("criw0", "criw1"))
    pod_id = new_id()
    assert len(one.port(pod_id)) == 15, "as many as a link's name may have"
    assert one.port(pod_id).endswith(pod_id[:10])
    assert one.port(pod_id) != other.port(pod_id)
    assert one.port(pod_id) != one.port(new_id())
