import itertools

import pytest

from criw.errors import FailedPrecondition
from criw_supervisor.ledger.states import (
    NEXT_OF_CONTAINER,
    NEXT_OF_POD,
    ContainerState,
    PodState,
    check_container_move,
    check_pod_move,
)

S, P = ContainerState, PodState
ALLOWED = {(S.CREATED, S.RUNNING), (S.CREATED, S.EXITED), (S.RUNNING, S.EXITED)}
ALLOWED_OF_PODS = {(P.READY, P.STOPPING), (P.STOPPING, P.STOPPED)}


def test_the_tables_have_every_state() -> None:
    assert set(NEXT_OF_CONTAINER) == set(ContainerState)
    assert set(NEXT_OF_POD) == set(PodState)


@pytest.mark.parametrize(("state", "to"), list(itertools.product(ContainerState, repeat=2)))
def test_every_pair_of_container_states(state: ContainerState, to: ContainerState) -> None:
    if (state, to) in ALLOWED:
        check_container_move("c", state, to)
    else:
        with pytest.raises(FailedPrecondition, match=f"cannot move container c from {state} to {to}"):
            check_container_move("c", state, to)


@pytest.mark.parametrize(("state", "to"), list(itertools.product(PodState, repeat=2)))
def test_every_pair_of_pod_states(state: PodState, to: PodState) -> None:
    if (state, to) in ALLOWED_OF_PODS:
        check_pod_move("p", state, to)
    else:
        with pytest.raises(FailedPrecondition, match=f"cannot move pod sandbox p from {state} to {to}"):
            check_pod_move("p", state, to)
