"""A room's part of runtime.v1.RuntimeService: requests translated, nothing decided."""

import re
from typing import Final

from grpclib.const import Handler

from criw_proto.runtime.v1 import RuntimeServiceBase

_WORD: Final = re.compile(r"(?<!^)(?=[A-Z])")


class Face(RuntimeServiceBase):
    """Override the methods that the room answers."""

    def answers(self) -> dict[str, Handler]:
        """The methods that are overridden, by path."""
        return {path: handler for path, handler in self.__mapping__().items() if _method(path) in vars(type(self))}


def _method(path: str) -> str:
    """The name in Python of a gRPC method ("/service/RunPodSandbox": run_pod_sandbox)."""
    return _WORD.sub("_", path.rpartition("/")[2]).lower()
