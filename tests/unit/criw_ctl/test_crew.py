from itertools import pairwise

from criw_ctl.crew import LONGEST_PAUSE_S, pause_before_restart


def test_the_first_restart_comes_at_once_and_later_ones_ever_later() -> None:
    pauses = [pause_before_restart(deaths) for deaths in range(1, 20)]
    assert pauses[0] == 0
    assert all(later > earlier or later == LONGEST_PAUSE_S for earlier, later in pairwise(pauses))
    assert pauses[-1] == LONGEST_PAUSE_S
