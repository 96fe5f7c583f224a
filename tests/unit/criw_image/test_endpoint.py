"""Speaking HTTP with registries: credentials, tokens, redirects and TLS, with some that do not behave."""

import asyncio
import contextlib
import functools
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web

from criw.config.image import ImageSection, Registry
from criw.errors import Failed, PermissionDenied
from criw_image.endpoint import Endpoint
from criw_image.reference import parse_reference
from criw_image.transport import Down, Http, open_http
from criw_proto.runtime.v1 import AuthConfig
from support import images
from support.own import free_port
from support.registry import basic_auth, make_certificates
from support.scripted_registry import ScriptedRegistry, scripted_registry

IMAGE = images.small("x")
MANIFEST = "manifests/1"
BLOB = f"blobs/{IMAGE.id}"


@pytest_asyncio.fixture
async def registry() -> AsyncIterator[ScriptedRegistry]:
    async with scripted_registry() as running:
        running.add("a/b:1", IMAGE)
        yield running


def plain(registry: ScriptedRegistry) -> ImageSection:
    return ImageSection(registries={registry.host: Registry(plain_http=True)}, stall_timeout_s=5)


def endpoint_of(http: Http, registry: ScriptedRegistry, auth: AuthConfig | None = None) -> Endpoint:
    reference = parse_reference(f"{registry.host}/a/b:1")
    (host,) = http.hosts.of(reference, auth)
    return Endpoint(http, host, reference)


async def get(endpoint: Endpoint, path: str = MANIFEST) -> bytes:
    async with endpoint.ask("GET", path) as response:
        return await response.read()


async def test_a_redirected_blob_is_asked_without_our_credentials(registry: ScriptedRegistry) -> None:
    async with scripted_registry() as elsewhere, open_http(plain(registry)) as http:
        elsewhere.add("a/b:1", IMAGE)
        registry.redirect_to = elsewhere.url
        endpoint = endpoint_of(http, registry, AuthConfig(registry_token="secret"))
        assert await get(endpoint, BLOB) == IMAGE.config
    assert registry.seen[0].headers["Authorization"] == "Bearer secret"
    (request,) = elsewhere.seen
    assert "Authorization" not in request.headers
    assert request.query == {"signature": "a/b"}


async def test_redirects_end(registry: ScriptedRegistry) -> None:
    registry.redirect_to = registry.url
    async with open_http(plain(registry)) as http:
        with pytest.raises(Failed, match="more than 5 times"):
            await get(endpoint_of(http, registry), BLOB)


@pytest.mark.parametrize(
    "location", ["ftp://a/b", "file:///etc/passwd", "http://[", "//", "http://a..b/", "http://a:99999/", "http://a:0/"]
)
async def test_a_redirect_to_nowhere_is_refused(registry: ScriptedRegistry, location: str) -> None:
    registry.answer = lambda _: web.Response(status=302, headers={"Location": location})
    async with open_http(plain(registry)) as http:
        with pytest.raises(Failed):
            await get(endpoint_of(http, registry))


def wants_basic(request: web.Request) -> web.Response | None:
    if request.headers.get("Authorization") == basic_auth("user", "password"):
        return None
    return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})


async def test_basic_credentials_are_given_when_asked_for(registry: ScriptedRegistry) -> None:
    registry.answer = wants_basic
    async with open_http(plain(registry)) as http:
        endpoint = endpoint_of(http, registry, AuthConfig(username="user", password="password"))
        await get(endpoint)
        await get(endpoint, BLOB)
    sent = ["Authorization" in request.headers for request in registry.seen]
    assert sent == [False, True, True]


async def test_configured_credentials_are_given_where_a_request_brings_none(registry: ScriptedRegistry) -> None:
    registry.answer = wants_basic
    entry = Registry(plain_http=True, username="user", password="password")
    async with open_http(ImageSection(registries={registry.host: entry})) as http:
        await get(endpoint_of(http, registry))
        with pytest.raises(PermissionDenied):
            await get(endpoint_of(http, registry, AuthConfig(username="user", password="wrong")))


@pytest.mark.parametrize(
    ("auth", "remedy"),
    [
        (None, "give credentials"),
        (AuthConfig(username="user", password="wrong"), "check the credentials"),
        (AuthConfig(username="user", password="password", server_address="quay.io"), "give credentials"),
        (AuthConfig(registry_token="wrong"), "check the credentials"),
    ],
)
async def test_a_refusal_names_registry_and_repository(
    registry: ScriptedRegistry, auth: AuthConfig | None, remedy: str
) -> None:
    registry.answer = wants_basic
    async with open_http(plain(registry)) as http:
        refused = f"{registry.url} refuses access to the repository a/b: unauthorized"
        pattern = rf"^cannot pull {registry.host}/a/b:1: {refused}; {remedy}"
        with pytest.raises(PermissionDenied, match=pattern):
            await get(endpoint_of(http, registry, auth))


class TokenScript:
    """Makes a scripted registry want tokens, which it issues itself at /token; each is good for `uses` requests."""

    def __init__(self, registry: ScriptedRegistry, *, uses: int = 100) -> None:
        self.issued = 0
        self._left = 0
        self._uses = uses
        self._registry = registry
        self.realm = f"{registry.url}/token?account=x"
        self.headers: list[str | None] = []
        registry.answer = self.answer

    def answer(self, request: web.Request) -> web.Response | None:
        if request.path == "/token":
            self.headers.append(request.headers.get("Authorization"))
            self.issued += 1
            self._left = self._uses
            return web.json_response({"access_token": f"token {self.issued}"})
        if request.headers.get("Authorization") == f"Bearer token {self.issued}" and self._left:
            self._left -= 1
            return None
        challenge = f'Bearer realm="{self.realm}",service="the service",scope="repository:a/b:pull"'
        return web.Response(status=401, headers={"WWW-Authenticate": challenge})


async def test_a_token_is_fetched_once_a_pull(registry: ScriptedRegistry) -> None:
    script = TokenScript(registry)
    async with open_http(plain(registry)) as http:
        endpoint = endpoint_of(http, registry, AuthConfig(username="user", password="password"))
        async with asyncio.TaskGroup() as tasks:
            for _ in range(5):
                tasks.create_task(get(endpoint, BLOB))
    assert script.issued == 1
    assert script.headers == [basic_auth("user", "password")]
    (request,) = [one for one in registry.seen if one.path == "/token"]
    assert request.query == {"account": "x", "service": "the service", "scope": "repository:a/b:pull"}


async def test_an_expired_token_is_renewed(registry: ScriptedRegistry) -> None:
    script = TokenScript(registry, uses=2)
    async with open_http(plain(registry)) as http:
        endpoint = endpoint_of(http, registry)
        for _ in range(5):
            await get(endpoint, BLOB)
    assert script.issued == 3
    assert script.headers == [None] * 3


async def test_a_token_that_is_not_enough_is_a_refusal(registry: ScriptedRegistry) -> None:
    script = TokenScript(registry, uses=0)
    async with open_http(plain(registry)) as http:
        with pytest.raises(PermissionDenied, match="refuses access to the repository a/b"):
            await get(endpoint_of(http, registry))
    assert script.issued == 1


@pytest.mark.parametrize("realm", ["file:///etc/passwd", "http://[", ""])
async def test_a_token_server_that_is_none_is_refused(registry: ScriptedRegistry, realm: str) -> None:
    TokenScript(registry).realm = realm
    async with open_http(plain(registry)) as http:
        with pytest.raises(Failed):
            await get(endpoint_of(http, registry))


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b'{"token": 1}', b'{"token": ""}', b'{"token": "a\\nb"}', b'{"token":' + b"[" * 5000, b"<html>"],
)
async def test_a_token_server_that_answers_rubbish_is_told(registry: ScriptedRegistry, body: bytes) -> None:
    script = TokenScript(registry)
    registry.answer = lambda request: web.Response(body=body) if request.path == "/token" else script.answer(request)
    async with open_http(plain(registry)) as http:
        with pytest.raises(Failed, match="answered no token"):
            await get(endpoint_of(http, registry))


async def test_an_unknown_authority_is_told_with_the_remedy(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    async with scripted_registry(tls=context) as registry:
        registry.add("a/b:1", IMAGE)
        async with open_http(ImageSection()) as http:
            with pytest.raises(Failed, match=r"^cannot trust https://127.*set ca_file"):
                await get(endpoint_of(http, registry))
        async with open_http(ImageSection(registries={registry.host: Registry(plain_http=True)})) as http:
            with pytest.raises(Down):
                await get(endpoint_of(http, registry))
        entry = Registry(ca_file=tmp_path / "ca.pem")
        async with open_http(ImageSection(registries={registry.host: entry})) as http:
            assert await get(endpoint_of(http, registry)) == IMAGE.manifest
            registry.redirect_to = "http://127.0.0.1:9"
            with pytest.raises(Failed, match="redirects to http, which is not secure"):
                await get(endpoint_of(http, registry), BLOB)
        missing = Registry(ca_file=tmp_path / "missing.pem")
        async with open_http(ImageSection(registries={registry.host: missing})) as http:
            with pytest.raises(Failed, match="cannot use ca_file"):
                await get(endpoint_of(http, registry))


async def test_plain_http_behind_https_is_told_with_the_remedy(registry: ScriptedRegistry) -> None:
    async with open_http(ImageSection()) as http:
        with pytest.raises(Failed, match=r"^cannot speak TLS with https://127.*set plain_http"):
            await get(endpoint_of(http, registry))


async def test_credentials_are_not_sent_in_the_clear_by_a_secure_registry(tmp_path: Path) -> None:
    make_certificates(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    async with scripted_registry(tls=context) as registry, scripted_registry() as tokens:
        script = TokenScript(registry)
        script.realm = f"{tokens.url}/token"
        async with open_http(ImageSection(registries={registry.host: Registry(ca_file=tmp_path / "ca.pem")})) as http:
            with pytest.raises(Failed, match="over plain HTTP"):
                await get(endpoint_of(http, registry, AuthConfig(username="user", password="password")))
        assert tokens.seen == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_token_server_may_redirect_and_credentials_stay_where_they_are_meant_for(
    registry: ScriptedRegistry, status: int
) -> None:
    async with scripted_registry() as elsewhere:
        script = TokenScript(registry)
        script.realm = f"{registry.url}/moved"
        elsewhere.answer = lambda _: web.json_response({"token": "token 0"})

        def answer(request: web.Request) -> web.Response | None:
            if request.path == "/moved":
                return web.Response(status=status, headers={"Location": "/again"})
            if request.path == "/again":
                return web.Response(status=status, headers={"Location": f"{elsewhere.url}/token"})
            script._left = 100
            return script.answer(request)

        registry.answer = answer
        async with open_http(plain(registry)) as http:
            await get(endpoint_of(http, registry, AuthConfig(username="user", password="password")))
        sent = {one.path: one.headers.get("Authorization") for one in (*registry.seen, *elsewhere.seen)}
        basic = basic_auth("user", "password")
        assert (sent["/moved"], sent["/again"], sent["/token"]) == (basic, basic, None)
        registry.seen.clear()
        async with open_http(plain(registry)) as http:
            with pytest.raises(Failed, match="sends the credentials on to"):
                await get(endpoint_of(http, registry, AuthConfig(identity_token="secret")))


async def test_a_token_server_that_knows_only_post_is_asked_so(registry: ScriptedRegistry) -> None:
    script = TokenScript(registry)
    forms: list[dict[str, str]] = []

    async def take_over(request: web.Request) -> web.StreamResponse:
        if request.path == "/token" and request.method == "GET":
            return web.Response(status=405)
        if request.path == "/token":
            forms.append({key: str(value) for key, value in (await request.post()).items()})
        return script.answer(request) or await registry.serve(request)

    registry.take_over = take_over
    async with open_http(plain(registry)) as http:
        await get(endpoint_of(http, registry, AuthConfig(username="user", password="a password")))
    (form,) = forms
    assert (form["grant_type"], form["username"], form["password"]) == ("password", "user", "a password")
    assert (form["service"], form["scope"]) == ("the service", "repository:a/b:pull")


async def test_a_registry_we_are_redirected_to_may_challenge_us(registry: ScriptedRegistry) -> None:
    async with scripted_registry() as elsewhere, open_http(plain(registry)) as http:
        elsewhere.blobs[IMAGE.id] = IMAGE.config
        script = TokenScript(elsewhere)
        registry.redirect_to = elsewhere.url
        assert await get(endpoint_of(http, registry, AuthConfig(registry_token="secret")), BLOB) == IMAGE.config
    assert script.headers == [None]
    assert [one.headers.get("Authorization") for one in elsewhere.requests("blobs")] == [None, "Bearer token 1"]


async def test_a_redirect_brings_no_user_of_its_own(registry: ScriptedRegistry) -> None:
    location = f"http://user:password@{registry.host}/v2/a/b/manifests/1"
    moved = web.Response(status=302, headers={"Location": location})
    registry.answer = lambda _: moved if len(registry.seen) == 1 else None
    async with open_http(plain(registry)) as http:
        endpoint = endpoint_of(http, registry, AuthConfig(registry_token="secret"))
        assert await get(endpoint) == IMAGE.manifest
    assert [request.headers["Authorization"] for request in registry.seen] == ["Bearer secret"] * 2


async def answered(response: web.Response, _: web.Request) -> web.StreamResponse:
    return response


async def test_a_refusal_says_whether_it_is_unauthorized_or_denied(registry: ScriptedRegistry) -> None:
    async with open_http(plain(registry)) as http:
        for status, word in ((401, "unauthorized"), (403, "denied")):
            body = {"errors": [{"code": "X", "message": "evil\x1b[2J\nnews"}]}
            refusal = web.json_response(body, status=status)
            registry.take_over = functools.partial(answered, refusal)
            with pytest.raises(PermissionDenied, match=rf": {word} \(x: evil \[2J news\)"):
                await get(endpoint_of(http, registry))


async def test_a_closed_port_and_an_unknown_host_are_told_in_the_words_people_look_for() -> None:
    closed = f"127.0.0.1:{free_port()}"
    for host, words in ((closed, "connection refused"), ("nowhere.invalid", "no such host nowhere.invalid")):
        async with open_http(ImageSection(registries={host: Registry(plain_http=True)})) as http:
            reference = parse_reference(f"{host}/a/b:1")
            (where,) = http.hosts.of(reference, None)
            with pytest.raises(Down, match=words):
                await get(Endpoint(http, where, reference))


async def test_a_host_that_trickles_its_answer_is_given_up() -> None:
    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for byte in b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1000:
            writer.write(bytes([byte]))
            with contextlib.suppress(ConnectionError):
                await writer.drain()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(closed.wait(), 0.01)
                break
        writer.close()

    closed = asyncio.Event()
    server = await asyncio.start_server(trickle, "127.0.0.1", 0)
    async with server:
        host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        section = ImageSection(registries={host: Registry(plain_http=True)}, stall_timeout_s=0.1)
        async with open_http(section) as http:
            reference = parse_reference(f"{host}/a/b:1")
            (where,) = http.hosts.of(reference, None)
            with pytest.raises(Down, match=r"no answer came within 0\.1 s"):
                await get(Endpoint(http, where, reference))
            closed.set()
