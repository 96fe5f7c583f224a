"""The infra container: the one process a pod has when its containers share a PID namespace.

It is init there: catatonit, which reaps what is left to it and does nothing else. It has the pod's id, no image, no
capability and no log.
"""

import asyncio
import os
import shutil
import time
from pathlib import Path
from typing import Final

from criw.errors import FailedPrecondition
from criw_proto.runtime.v1 import ContainerConfig, ContainerMetadata
from criw_supervisor.ledger.places import Places
from criw_supervisor.ledger.records import ContainerRecord, PodRecord
from criw_supervisor.ledger.states import ContainerState
from criw_supervisor.oci import JsonObject, seccomp
from criw_supervisor.runtimes.handler import Handler, Launch, Task

INIT: Final = "catatonit"
_SIGKILL: Final = 9
_NOBODY: Final = 65534
_OOM_SCORE: Final = -998  # it holds the whole pod; none that this process may not set


async def launch(handler: Handler, places: Places, pod: PodRecord) -> ContainerRecord:
    """Start the pod's infra container; its record. What was made stays until the handler deletes it.

    Raises FailedPrecondition if the program is missing, Failed with what the runtime said.
    """
    program = shutil.which(INIT)
    if program is None:
        raise FailedPrecondition(
            f"cannot run a pod sandbox with a shared PID namespace: {INIT} is missing; install the package {INIT}"
        )
    root = places.pod(pod.id).directory / "infra"
    await asyncio.to_thread(_make_root, root)
    cgroup = f"{pod.cgroup}/{pod.id}"
    document = _document(Path(program), root, cgroup, {**places.pod(pod.id).namespaces(), **_network(pod)})
    task = await handler.create(Launch(Task(pod.id, cgroup), "infra", document))
    await handler.start(task)
    now = time.time_ns()
    return ContainerRecord(
        id=pod.id,
        pod_id=pod.id,
        infra=True,
        config=bytes(ContainerConfig(metadata=ContainerMetadata(name="infra"))),
        runtime=handler.name,
        image_id="",
        image_ref="",
        cgroup=cgroup,
        log_path="",
        state=ContainerState.RUNNING,
        created_at_ns=now,
        started_at_ns=now,
        pid=task.pid,
        pid_started=task.pid_started,
        resources=b"",
        stop_signal=_SIGKILL,
    )


def _make_root(root: Path) -> None:
    (root / "proc").mkdir(parents=True)
    (root / INIT).touch()


def _network(pod: PodRecord) -> dict[str, str]:
    return {"network": pod.netns} if pod.netns else {}


def _document(program: Path, root: Path, cgroup: str, namespaces: dict[str, str]) -> JsonObject:
    return {
        "ociVersion": "1.0.2",
        "root": {"path": os.fspath(root), "readonly": True},
        "process": {
            "user": {"uid": _NOBODY, "gid": _NOBODY},
            "args": [f"/{INIT}", "-P"],
            "env": [],
            "cwd": "/",
            "noNewPrivileges": True,
            "oomScoreAdj": max(_OOM_SCORE, int(Path("/proc/self/oom_score_adj").read_text())),
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {
                "destination": f"/{INIT}",
                "type": "bind",
                "source": os.fspath(program),
                "options": ["bind", "ro", "nosuid", "nodev"],
            },
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [
                {"type": "mount"},
                {"type": "pid"},
                *({"type": kind, "path": path} for kind, path in namespaces.items()),
            ],
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "seccomp": seccomp.default(frozenset()),
        },
    }
