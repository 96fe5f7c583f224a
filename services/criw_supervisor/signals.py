"""Stop signals: by number, by the names images use, and as the CRI numbers them."""

import signal
from typing import Final

from criw.errors import InvalidArgument
from criw_proto.runtime.v1 import Signal

_RTMIN: Final = int(signal.SIGRTMIN)
_RTMAX: Final = int(signal.SIGRTMAX)


def parse_signal(text: str) -> int:
    """A signal number from "SIGTERM", "TERM", "SIGRTMIN+3" or "15". Raises InvalidArgument."""
    name = text.strip().upper()
    if name.isdecimal() and 0 < int(name) <= _RTMAX:
        return int(name)
    name = name if name.startswith("SIG") else f"SIG{name}"
    for base, start, sign in (("SIGRTMIN+", _RTMIN, 1), ("SIGRTMAX-", _RTMAX, -1)):
        offset = name.removeprefix(base)
        if offset != name and offset.isdecimal() and _RTMIN <= start + sign * int(offset) <= _RTMAX:
            return start + sign * int(offset)
    try:
        return int(signal.Signals[name])
    except KeyError as err:
        raise InvalidArgument(f"cannot stop containers with {text!r}: there is no such signal") from err


def of_cri(value: Signal) -> int:
    """The number of a CRI signal; 0 for SIGNAL_RUNTIME_DEFAULT. Raises InvalidArgument for one the CRI lacks."""
    name = value.name
    if not name:
        raise InvalidArgument(f"cannot stop containers with signal {int(value)}: the CRI has no such value")
    name = name.removeprefix("SIGNAL_").replace("MINUS", "-").replace("PLUS", "+")
    return 0 if name == "RUNTIME_DEFAULT" else parse_signal(name)


_BY_NUMBER: Final[dict[int, Signal]] = {}


def cri_signal(number: int) -> Signal:
    """The CRI's value of a signal number; SIGNAL_RUNTIME_DEFAULT for one it does not have."""
    if not _BY_NUMBER:
        for value in Signal:
            _BY_NUMBER.setdefault(of_cri(value), value)
    return _BY_NUMBER.get(number, Signal(0))
