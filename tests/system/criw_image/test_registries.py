"""The image agent and Debian's docker-registry: with TLS, passwords and tokens, and when it is down."""

import base64
from collections.abc import Mapping, Sequence

import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from criw_proto.runtime.v1 import AuthConfig
from support import images
from support.image_agent import running_images
from support.registry import PASSWORD, REFRESH_TOKEN, USERNAME, Registry, running_registry

IMAGE = images.small("pulled from a real registry")
KNOWN = AuthConfig(username=USERNAME, password=PASSWORD)
WRONG = AuthConfig(username=USERNAME, password="wrong")
ENCODED = AuthConfig(auth=base64.b64encode(f"{USERNAME}:{PASSWORD}".encode()).decode())
ELSEWHERE = AuthConfig(username=USERNAME, password=PASSWORD, server_address="https://quay.example")
IDENTITY = AuthConfig(identity_token=REFRESH_TOKEN)


def entry(registry: Registry, **settings: str) -> str:
    lines = [f'[image.registries."{registry.address}"]']
    if registry.tls:
        lines.append(f'ca_file = "{registry.ca_file}"')
    else:
        lines.append("plain_http = true")
    return "\n".join([*lines, *(f'{key} = "{value}"' for key, value in settings.items())])


@pytest.mark.parametrize("tls", [False, True])
async def test_an_open_registry(*, tls: bool) -> None:
    async with running_registry(tls=tls) as registry:
        reference = await registry.push("a/b:1", IMAGE)
        async with running_images(entry(registry)) as agent:
            assert await agent.pull(reference) == IMAGE.id
            found = await agent.find(reference)
            assert found is not None
            assert found.repo_digests == [f"{registry.address}/a/b@{IMAGE.digest}"]


@pytest.mark.parametrize("tls", [False, True])
async def test_a_registry_with_passwords(*, tls: bool) -> None:
    async with running_registry(tls=tls, auth="basic") as registry:
        reference = await registry.push("a/b:1", IMAGE)
        async with running_images(entry(registry)) as agent:
            for refused in (None, WRONG, ELSEWHERE, AuthConfig()):
                with pytest.raises(GRPCError, match="repository a/b") as refusal:
                    await agent.pull(reference, refused)
                assert refusal.value.status is Status.PERMISSION_DENIED
            assert await agent.all() == []
            assert await agent.pull(reference, KNOWN) == IMAGE.id
            assert await agent.pull(reference, ENCODED) == IMAGE.id
            # It is here, and yet whoever may not pull it is told so.
            with pytest.raises(GRPCError) as refusal:
                await agent.pull(reference, WRONG)
            assert refusal.value.status is Status.PERMISSION_DENIED


async def test_configured_credentials() -> None:
    async with running_registry(auth="basic") as registry:
        reference = await registry.push("a/b:1", IMAGE)
        async with running_images(entry(registry, username=USERNAME, password=PASSWORD)) as agent:
            assert await agent.pull(reference) == IMAGE.id


TOKENS: Sequence[tuple[str, AuthConfig | None, bool]] = (
    ("public/b:1", None, True),
    ("private/b:1", None, False),
    ("private/b:1", KNOWN, True),
    ("private/b:1", IDENTITY, True),
    ("private/b:1", WRONG, False),
    ("private/b:1", AuthConfig(identity_token="wrong"), False),
    ("private/b:1", AuthConfig(registry_token="wrong"), False),
)


async def test_a_registry_with_tokens() -> None:
    async with running_registry(auth="token") as registry:
        assert registry.tokens is not None
        tokens = registry.tokens
        for name in ("public/b:1", "private/b:1"):
            await registry.push(name, IMAGE)
        async with running_images(entry(registry)) as agent:
            for name, auth, allowed in TOKENS:
                await agent.remove_all()
                tokens.requests.clear()
                if allowed:
                    assert await agent.pull(f"{registry.address}/{name}", auth) == IMAGE.id
                    assert len(tokens.requests) == 1
                    continue
                with pytest.raises(GRPCError, match="repository private/b") as refusal:
                    await agent.pull(f"{registry.address}/{name}", auth)
                assert refusal.value.status is Status.PERMISSION_DENIED
            tokens.requests.clear()
            granted: list[dict[str, object]] = [{"type": "repository", "name": "private/b", "actions": ["pull"]}]
            token = AuthConfig(registry_token=await tokens.issue(granted))
            assert await agent.pull(f"{registry.address}/private/b:1", token) == IMAGE.id
            assert tokens.requests == []


async def test_a_registry_that_is_down_and_comes_back() -> None:
    async with running_registry() as registry:
        reference = await registry.push("a/b:1", IMAGE)
        async with running_images(entry(registry)) as agent:
            await registry.stop()
            with pytest.raises(GRPCError) as refusal:
                await agent.pull(reference)
            # The kubelet looks for the prefix, and only where the status is UNKNOWN.
            assert refusal.value.status is Status.UNKNOWN
            assert (refusal.value.message or "").startswith("RegistryUnavailable: ")
            assert reference in (refusal.value.message or "")
            await registry.start()
            assert await agent.pull(reference) == IMAGE.id


async def test_a_mirror_of_everything() -> None:
    async with running_registry() as mirror:
        await mirror.push("library/busybox:latest", images.busybox())
        await mirror.push("a/b:1", IMAGE)
        async with running_images(f'[image.registries."*"]\nmirrors = ["{mirror.url}"]\n') as agent:
            await agent.pull("busybox")
            await agent.pull("quay.example/a/b:1")
            tags = {tag for image in await agent.all() for tag in image.repo_tags}
            assert tags == {"docker.io/library/busybox:latest", "quay.example/a/b:1"}


CODES: Mapping[str, Status] = {
    "no/such:1": Status.NOT_FOUND,
    "a/b:2": Status.NOT_FOUND,
    "Upper/Case:1": Status.INVALID_ARGUMENT,
    "a/b:1:2": Status.INVALID_ARGUMENT,
    f"a/b@{images.digest_of(b'')}": Status.NOT_FOUND,
    "": Status.INVALID_ARGUMENT,
}


async def test_what_cannot_be_pulled_says_why() -> None:
    async with running_registry() as registry:
        await registry.push("a/b:1", IMAGE)
        async with running_images(entry(registry)) as agent:
            for name, status in CODES.items():
                reference = f"{registry.address}/{name}" if name else ""
                with pytest.raises(GRPCError) as refusal:
                    await agent.pull(reference)
                assert (name, refusal.value.status) == (name, status)
                assert (refusal.value.message or "").startswith("cannot ")
                assert reference in (refusal.value.message or "")
