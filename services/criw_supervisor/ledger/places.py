"""Where the supervisor keeps things: all below `<run>/supervisor`, nothing of it outlives a reboot."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ETC: Final = ("hosts", "hostname", "resolv.conf")


@dataclass(frozen=True)
class PodFiles:
    """Where a pod keeps its things; `directory` is `<run>/supervisor/pods/<pod id>`."""

    directory: Path

    @property
    def ipc(self) -> Path:
        return self.directory / "ns" / "ipc"

    @property
    def uts(self) -> Path:
        return self.directory / "ns" / "uts"

    @property
    def shm(self) -> Path:
        return self.directory / "shm"

    @property
    def own_etc(self) -> Path:
        """A file system of its own: containers write to the files in it."""
        return self.directory / "etc"

    def etc(self, name: str) -> Path:
        """One of `ETC`."""
        return self.own_etc / name

    def namespaces(self) -> dict[str, str]:
        """OCI type and path of the namespaces pinned here."""
        return {kind: os.fspath(path) for kind, path in (("ipc", self.ipc), ("uts", self.uts)) if path.exists()}

    def mounts(self) -> dict[str, Path]:
        """Mount points in a container and what goes there. Without its own IPC a pod shares the host's /dev/shm."""
        names = {f"/etc/{name}": self.etc(name) for name in ETC}
        shm = self.shm if self.shm.exists() else Path("/dev/shm")  # noqa: S108 — the host's, on purpose
        return {**names, "/dev/shm": shm}  # noqa: S108


@dataclass(frozen=True)
class Places:
    """Directories below `<run>/supervisor`."""

    run: Path

    @property
    def pods(self) -> Path:
        return self.run / "pods"

    @property
    def bundles(self) -> Path:
        return self.run / "containers"

    def pod(self, pod_id: str) -> PodFiles:
        return PodFiles(self.pods / pod_id)

    def bundle(self, container_id: str) -> Path:
        return self.bundles / container_id

    def runtime(self, handler: str) -> Path:
        """The state directory of a handler's OCI runtime."""
        return self.run / "runtime" / handler
