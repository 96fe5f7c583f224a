"""A bundle: the directory an OCI runtime reads (config.json), and where whoever holds the container keeps its files."""

import errno
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from criw.errors import FailedPrecondition, InvalidArgument
from criw.kernel import suppress_errno
from criw_supervisor.oci import JsonObject

_MODE: Final = 0o700  # environment variables are in it
_EXEC: Final = "exec-"


def encoded(document: JsonObject) -> bytes:
    """A document for the runtime. Raises InvalidArgument for text that is not Unicode, as some names of files are.

    JSON cannot carry it: the runtime would take other names for it.
    """
    try:
        return json.dumps(document, ensure_ascii=False).encode()
    except UnicodeEncodeError as err:
        text = err.object[max(err.start - 60, 0) : err.end].rpartition('"')[2]
        raise InvalidArgument(f"cannot hand {text!r} to the runtime: it is not UTF-8") from err


@dataclass(frozen=True)
class Bundle:
    """All methods block."""

    directory: Path

    @property
    def config(self) -> Path:
        return self.directory / "config.json"

    def write(self, document: JsonObject) -> None:
        """Make the bundle. Raises InvalidArgument for text that is not Unicode."""
        content = encoded(document)
        self.directory.mkdir(parents=True)
        self.directory.chmod(_MODE)
        self.config.write_bytes(content)

    def read(self) -> JsonObject:
        """The OCI configuration the container was made with; empty if the bundle is gone."""
        try:
            document: JsonObject = json.loads(self.config.read_text())
        except FileNotFoundError:
            return {}
        return document

    def process(self, command: list[str], *, terminal: bool = False) -> JsonObject:
        """The OCI process object of a further command: the container's own, with the command in place of its own.

        Raises FailedPrecondition if the bundle is gone.
        """
        process = self.read().get("process")
        if not isinstance(process, dict):
            raise FailedPrecondition(f"cannot run a command in container {self.directory.name}: its bundle is gone")
        process = {**process, "args": command, "terminal": terminal}
        environment = process.get("env")
        if terminal and isinstance(environment, list) and not any(word.startswith("TERM=") for word in environment):
            process["env"] = [*environment, "TERM=xterm"]
        return process

    def change_process(self, **changes: object) -> None:
        """Have further commands run with another value of these keys of the OCI process object."""
        document = self.read()
        process = document.get("process")
        if isinstance(process, dict):
            fresh = self.config.with_suffix(".new")
            fresh.write_bytes(encoded(document | {"process": {**process, **changes}}))
            fresh.replace(self.config)

    def exec_files(self, token: str) -> tuple[Path, Path]:
        """Where the OCI process object and the pid of one further command go."""
        return self.directory / f"{_EXEC}{token}.json", self.directory / f"{_EXEC}{token}.pid"

    def is_exec_file(self, argument: str) -> bool:
        """Whether an argument of some process's command line is such a file."""
        return argument.startswith(os.fspath(self.directory / _EXEC))

    def all_exec_files(self) -> list[Path]:
        return list(self.directory.glob(f"{_EXEC}*"))

    def remove(self) -> None:
        """Remove it with all that is in it; a success if it is gone."""
        while self.directory.exists():
            # An exec that ends with the container has files in it, too.
            with suppress_errno(errno.ENOENT, errno.ENOTEMPTY):
                shutil.rmtree(self.directory)
