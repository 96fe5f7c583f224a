"""Known vulnerabilities of OCI runtimes, by the version one tells of itself.

Only those that matter for how containers are made here. What Criw guards against itself (an image whose `/dev` is a
link is refused) is named all the same: others on the host may use the runtime.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

Version: TypeAlias = tuple[int, int, int]
_SAID: Final = re.compile(r"(\w+) version v?((\d+)\.(\d+)(?:\.(\d+))?(?:[-~](rc))?\S*)")


@dataclass(frozen=True)
class _Advisory:
    names: Sequence[str]
    mended: Sequence[Version]  # the first version of each branch that is not affected; older branches all are


# Oldest first: who has what mends the last has them all.
_KNOWN: Final[Mapping[str, Sequence[_Advisory]]] = {
    "runc": (
        _Advisory(("CVE-2022-29162",), ((1, 1, 2),)),
        _Advisory(("CVE-2023-27561", "CVE-2023-28642"), ((1, 1, 5),)),
        _Advisory(("CVE-2024-21626",), ((1, 1, 12),)),
        _Advisory(("CVE-2024-45310",), ((1, 1, 14), (1, 2, 0))),
        _Advisory(("CVE-2025-31133", "CVE-2025-52565", "CVE-2025-52881"), ((1, 2, 8), (1, 3, 3), (1, 4, 0))),
        _Advisory(("CVE-2026-41579",), ((1, 3, 6), (1, 4, 3), (1, 5, 0))),
    ),
    "crun": (
        _Advisory(("CVE-2022-27650",), ((1, 4, 4),)),
        _Advisory(("CVE-2026-47766",), ((1, 28, 0),)),
    ),
}


def known(said: str) -> str:
    """A sentence about the known vulnerabilities of a runtime, from what it answers to `--version`; "" if none is."""
    if (found := _SAID.match(said)) is None:
        return ""
    program, told, major, minor, patch, candidate = found.groups()
    version = int(major), int(minor), -1 if candidate else int(patch or 0)  # a candidate comes before its release
    concerning = [one for one in _KNOWN.get(program, ()) if _is_affected(version, one.mended)]
    if not concerning:
        return ""
    names = ", ".join(name for one in concerning for name in one.names)
    mended = " or ".join(".".join(map(str, one)) for one in concerning[-1].mended)
    return f"{program} {told} has {names}, unless whoever packaged it has mended them; update to {mended} or later"


def _is_affected(version: Version, mended: Sequence[Version]) -> bool:
    for first in mended:
        if version[:2] == first[:2]:
            return version < first
    return version < max(mended)
