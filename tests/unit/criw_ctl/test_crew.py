import errno
import os
import socket
import time
from itertools import pairwise

import pytest

from criw.config.crew import Config
from criw_ctl import crew
from criw_ctl.crew import LONGEST_PAUSE_S, Crew, pause_before_restart
from criw_ctl.events import Signals


def test_the_first_restart_comes_at_once_and_later_ones_ever_later() -> None:
    pauses = [pause_before_restart(deaths) for deaths in range(1, 20)]
    assert pauses[0] == 0
    assert all(later > earlier or later == LONGEST_PAUSE_S for earlier, later in pairwise(pauses))
    assert pauses[-1] == LONGEST_PAUSE_S


def test_an_agent_that_cannot_be_forked_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: object, **__: object) -> int:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(crew, "fork_agent", no_memory)
    one, other = socket.socketpair()
    with one, other:
        tried = Crew(Config(), [], signals=Signals(one), notify=other, listeners={}, let_go=lambda: None)
        member = crew.Member("storage")
        tried._start(member)
        assert (member.pid, member.quick_deaths) == (None, 1)
        tried._start(member)
        assert member.due > time.monotonic()
