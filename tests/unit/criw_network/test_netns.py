import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criw.errors import InvalidArgument
from criw_network import netns


@given(st.text() | st.text(alphabet=string.ascii_lowercase + "./").map(lambda text: f"net.{text}"))
def test_a_sysctl_name_leads_nowhere_but_below_net(name: str) -> None:
    try:
        netns.check_sysctls({name: "1"})
    except InvalidArgument:
        return
    parts = name.replace(".", "/").split("/")
    assert parts[0] == "net"
    assert len(parts) > 1
    assert not {"", ".."} & set(parts)


@pytest.mark.parametrize("name", ["net.ipv4.ip_forward", "net.ipv4.conf.eth0.arp_ignore", "net.netfilter.nf_log-x"])
def test_dotted_names_are_allowed(name: str) -> None:
    netns.check_sysctls({name: "1"})


def test_what_the_kernel_does_not_have_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"net\.ipv4\.no_such_thing .*no such setting"):
        netns.write_sysctls({"net.ipv4.no_such_thing": "1"})
