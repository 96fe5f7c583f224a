"""How a session ended, as its client is told on the error stream: in JSON (Kubernetes' Status) or as text."""

import json
from dataclasses import dataclass
from typing import Final

_EXIT: Final = "command terminated with non-zero exit code: command terminated with exit code {}"


@dataclass(frozen=True)
class Status:
    """Success, unless there is a message."""

    message: str = ""
    exit_code: int | None = None  # of a command that ended otherwise than with 0

    def json(self) -> bytes:
        """For protocols v4 and v5."""
        if not self.message:
            told: dict[str, object] = {"metadata": {}, "status": "Success"}
        elif self.exit_code is not None:
            causes = [{"reason": "ExitCode", "message": str(self.exit_code)}]
            told = {"reason": "NonZeroExitCode", "details": {"causes": causes}}
        else:
            told = {"reason": "InternalError", "details": {"causes": [{"message": self.message}]}, "code": 500}
        if self.message:
            prefix = "" if self.exit_code is not None else "Internal error occurred: "
            told |= {"metadata": {}, "status": "Failure", "message": prefix + self.message}
        return json.dumps(told).encode()

    def text(self) -> bytes:
        """For the older ones: nothing is success."""
        return self.message.encode()


def of_exit(code: int) -> Status:
    """Of a command's end; `code` is 128 + the signal for one that was killed."""
    return Status(_EXIT.format(code), code) if code else Status()
