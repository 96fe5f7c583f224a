"""Images whose files or configuration are odd or hostile: no link leads the runtime out of the root."""

import asyncio
import tarfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from criw_proto.runtime import v1 as cri
from support import host, images
from support.client import Client
from support.crew import running_crew
from support.registry import running_registry
from support.supervised import Traces

TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount"
ODD: dict[str, images.Json] = {
    "Cmd": ["sh"],
    "Env": ["", "=C:=x", "A=b"],
    "Volumes": {"/data": {}, "/var/run/mine": {}},
}


@dataclass(frozen=True)
class Setting:
    client: Client
    traces: Traces
    references: Mapping[str, str]
    elsewhere: Path  # a directory of the host that links of images lead to

    async def run(self, name: str, command: tuple[str, ...], mounts: list[cri.Mount], *, readonly: bool = False) -> str:
        image = await self.client.pull(self.references[name])
        security = cri.LinuxContainerSecurityContext(readonly_rootfs=readonly)
        container_id = await self.client.create(
            await self.client.run_pod(), image, command, mounts=mounts, security=security
        )
        await self.client.start(container_id)
        return container_id


@pytest_asyncio.fixture(scope="module")
async def module(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Setting]:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    base = images.base_layer()
    made = {
        "linked-dev": images.image(base, images.layer(images.symlink("dev", str(elsewhere)))),
        "like-debian": images.image(base, images.layer(images.symlink("var/run", "/run")), config=ODD),
        "fifo": images.image(base, images.layer(images.Entry("etc/passwd", tarfile.FIFOTYPE, 0o644))),
        "device": images.image(base, images.layer(images.symlink("etc/group", "/dev/zero"))),
    }
    async with running_registry() as registry:
        references = {name: await registry.push(f"test/{name}:1", one) for name, one in made.items()}
        toml = f'[image.registries."{registry.address}"]\nplain_http = true\n'
        async with running_crew(extra_toml=toml) as crew:
            client = Client(crew.channel("cri"), crew.directory / "logs", name="images")
            yield Setting(client, Traces(crew.config_path), references, elsewhere)
            for reference in references.values():
                await client.remove_image(reference)


@pytest_asyncio.fixture
async def setting(module: Setting) -> AsyncIterator[Setting]:
    yield module
    await module.client.remove_all()


async def test_an_image_whose_dev_is_a_link_makes_nothing_on_the_host(setting: Setting) -> None:
    image = await setting.client.pull(setting.references["linked-dev"])
    pod_id = await setting.client.run_pod()
    before = host.contents(setting.traces)
    with pytest.raises(GRPCError, match="its /dev is a link") as caught:
        await setting.client.create(pod_id, image)
    assert caught.value.status is Status.INVALID_ARGUMENT
    assert list(setting.elsewhere.iterdir()) == []
    assert host.contents(setting.traces) == before


@pytest.mark.parametrize("name", ["fifo", "device"])
async def test_accounts_a_runtime_would_read_without_end_are_refused_at_once(setting: Setting, name: str) -> None:
    image = await setting.client.pull(setting.references[name])
    pod_id = await setting.client.run_pod()
    before = host.contents(setting.traces)
    async with asyncio.timeout(10):
        with pytest.raises(GRPCError, match="is no plain file") as caught:
            await setting.client.create(pod_id, image)
    assert caught.value.status is Status.INVALID_ARGUMENT
    assert host.contents(setting.traces) == before


@pytest.mark.parametrize("volume_on_run", [False, True])
async def test_a_pod_has_its_token_though_var_run_is_a_link(
    setting: Setting, tmp_path: Path, volume_on_run: bool
) -> None:
    for name in ("token", "run"):
        (tmp_path / name).mkdir()
    (tmp_path / "token/token").write_text("secret")
    mounts = [cri.Mount(container_path=TOKEN, host_path=str(tmp_path / "token"), readonly=True)]
    if volume_on_run:
        mounts.append(cri.Mount(container_path="/run", host_path=str(tmp_path / "run")))
    container_id = await setting.run("like-debian", ("sleep", "3600"), mounts)
    for path in (TOKEN, TOKEN.removeprefix("/var")):
        assert await setting.client.output(container_id, "cat", f"{path}/token") == "secret"


@pytest.mark.parametrize("readonly", [False, True])
async def test_the_images_volumes_are_there_and_writable(setting: Setting, readonly: bool) -> None:
    container_id = await setting.run("like-debian", ("sleep", "3600"), [], readonly=readonly)
    script = "touch /data/x /run/mine/x && ls /data /var/run/mine; touch /x 2>/dev/null && echo root; echo $A"
    expected = ["/data:", "x", "", "/var/run/mine:", "x", *([] if readonly else ["root"]), "b"]
    assert (await setting.client.output(container_id, "sh", "-c", script)).splitlines() == expected


async def test_a_mounted_directory_that_is_not_there_is_made(setting: Setting, tmp_path: Path) -> None:
    mounts = [cri.Mount(container_path="/data", host_path=str(tmp_path / "not/yet"))]
    container_id = await setting.run("like-debian", ("sleep", "3600"), mounts)
    assert (await setting.client.exec(container_id, "touch", "/data/word")).exit_code == 0
    assert (tmp_path / "not/yet/word").exists()
