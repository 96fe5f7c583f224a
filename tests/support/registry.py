"""A real registry on the loopback interface: Debian's docker-registry on a directory of its own.

With `auth="token"` it is docker-registry's own token authentication: a small server beside it issues the signed
tokens (distribution's token specification), to those who know the password or a refresh token, and to anybody for
repositories below `public/`.
"""

import asyncio
import base64
import contextlib
import json
import os
import re
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import IO, Final, Literal

import aiohttp
import yarl
from aiohttp import web

from support import images

USERNAME: Final = "criw"
PASSWORD: Final = "a password"
REFRESH_TOKEN: Final = "an identity token"
_SERVICE: Final = "test registry"
_ISSUER: Final = "test issuer"
_START_LIMIT_S: Final = 20.0
_LISTENING: Final = re.compile(r"listening on (?P<host>127\.0\.0\.1):(?P<port>\d+)")

Auth = Literal["none", "basic", "token"]


class Registry:
    """Use `running_registry()`. `log` is what docker-registry wrote, its requests included."""

    def __init__(self, directory: Path, *, tls: bool, auth: Auth) -> None:
        self.directory = directory
        self.port = 0
        self.tls = tls
        self.auth: Auth = auth
        self.log: list[str] = []
        self.tokens: TokenServer | None = None
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    @property
    def address(self) -> str:
        """host:port, as it begins a reference."""
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """As a mirror is configured."""
        return f"{'https' if self.tls else 'http'}://{self.address}"

    @property
    def ca_file(self) -> Path:
        """The authority to trust, with tls."""
        return self.directory / "ca.pem"

    async def push(self, name: str, pushed: images.Image | images.Index) -> str:
        """Put an image in as `name` (`repository:tag`); its full reference."""
        trust = ssl.create_default_context(cafile=self.ca_file) if self.tls else True
        basic = {"Authorization": basic_auth(USERNAME, PASSWORD)} if self.auth == "basic" else {}
        repository = name.rpartition(":")[0]
        token = ""
        if self.tokens is not None:
            token = await self.tokens.issue([{"type": "repository", "name": repository, "actions": ["pull", "push"]}])
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust), headers=basic) as session:
            await images.push(session, yarl.URL(self.url), name, pushed, token=token)
        return f"{self.address}/{name}"

    async def start(self) -> None:
        """Start it (again); a port once taken is kept."""
        configuration = self.directory / "config.json"  # JSON is YAML
        configuration.write_text(json.dumps(self._settings()))
        self._process = await asyncio.to_thread(
            subprocess.Popen,
            ["docker-registry", "serve", os.fspath(configuration)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={"PATH": os.environ["PATH"], "OTEL_TRACES_EXPORTER": "none"},
        )
        listening = threading.Event()
        # A thread, so that a test that blocks its event loop does not block the registry as well.
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout, listening), name="registry log")
        self._reader.start()
        await asyncio.to_thread(listening.wait, _START_LIMIT_S)
        if not self.port or self._process.poll() is not None:
            await self.stop()
            raise AssertionError(f"docker-registry did not start:\n{''.join(self.log)}")

    def _read(self, output: IO[str], listening: threading.Event) -> None:
        for line in output:
            self.log.append(line)
            if found := _LISTENING.search(line):
                self.port = int(found["port"])
                listening.set()
        listening.set()

    async def stop(self) -> None:
        """Stop it; what was pushed stays."""
        if self._process is None or self._reader is None:
            return
        self._process.kill()
        await asyncio.to_thread(self._process.wait)
        await asyncio.to_thread(self._reader.join)
        self._process = self._reader = None

    def _settings(self) -> dict[str, object]:
        http: dict[str, object] = {"addr": f"127.0.0.1:{self.port}", "secret": "not one"}
        if self.tls:
            http["tls"] = {
                "certificate": os.fspath(self.directory / "server.pem"),
                "key": os.fspath(self.directory / "server.key"),
            }
        settings: dict[str, object] = {
            "version": "0.1",
            "log": {"level": "info", "accesslog": {"disabled": False}},
            "storage": {
                "filesystem": {"rootdirectory": os.fspath(self.directory / "data")},
                "delete": {"enabled": True},
            },
            "http": http,
        }
        if self.auth == "basic":
            settings["auth"] = {"htpasswd": {"realm": "test", "path": os.fspath(self.directory / "htpasswd")}}
        if self.tokens is not None:
            settings["auth"] = {
                "token": {
                    "realm": self.tokens.url,
                    "service": _SERVICE,
                    "issuer": _ISSUER,
                    "rootcertbundle": os.fspath(self.directory / "token.pem"),
                }
            }
        return settings


class TokenServer:
    """Issues the tokens docker-registry believes. `requests` are the queries and forms it was sent."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.url = ""
        self.requests: list[dict[str, str]] = []

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        app = web.Application()
        app.add_routes([web.get("/token", self._get), web.post("/token", self._post)])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/token"
            yield
        finally:
            await runner.cleanup()

    async def issue(self, access: list[dict[str, object]]) -> str:
        """A JSON web token that grants `access`, signed by openssl."""
        certificate = (self._directory / "token.pem").read_text()
        chain = ["".join(certificate.splitlines()[1:-1])]
        now = int(time.time())
        claims = {
            "iss": _ISSUER,
            "sub": USERNAME,
            "aud": _SERVICE,
            "nbf": now - 10,
            "iat": now,
            "exp": now + 300,
            "jti": "1",
            "access": access,
        }
        head = {"typ": "JWT", "alg": "RS256", "x5c": chain}
        signed = ".".join(_base64url(json.dumps(part).encode()) for part in (head, claims))
        argv = ["openssl", "dgst", "-sha256", "-sign", os.fspath(self._directory / "token.key")]
        signer = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        signature, _ = await signer.communicate(signed.encode())
        assert signer.returncode == 0
        return f"{signed}.{_base64url(signature)}"

    async def _get(self, request: web.Request) -> web.Response:
        self.requests.append(dict(request.query))
        known = False
        if "Authorization" in request.headers:
            known = request.headers["Authorization"] == basic_auth(USERNAME, PASSWORD)
            if not known:
                return web.json_response({"details": "incorrect username or password"}, status=401)
        token = await self.issue(_granted(request.query.getall("scope", []), known=known))
        return web.json_response({"token": token, "expires_in": 300})

    async def _post(self, request: web.Request) -> web.Response:
        form = {name: str(value) for name, value in (await request.post()).items()}
        self.requests.append(form)
        if form.get("grant_type") != "refresh_token" or form.get("refresh_token") != REFRESH_TOKEN:
            return web.json_response({"details": "unknown refresh token"}, status=401)
        token = await self.issue(_granted(form.get("scope", "").split(), known=True))
        return web.json_response({"access_token": token, "expires_in": 300, "scope": form.get("scope", "")})


def basic_auth(username: str, password: str) -> str:
    """The Authorization header of RFC 7617."""
    return f"Basic {base64.b64encode(f'{username}:{password}'.encode()).decode()}"


def _granted(scopes: list[str], *, known: bool) -> list[dict[str, object]]:
    granted: list[dict[str, object]] = []
    for scope in scopes:
        kind, _, rest = scope.partition(":")
        name, _, actions = rest.rpartition(":")
        allowed = ["pull"] if known or name.startswith("public/") else []
        granted.append({"type": kind, "name": name, "actions": [one for one in actions.split(",") if one in allowed]})
    return granted


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _openssl(*argv: str) -> None:
    subprocess.run(["openssl", *argv], check=True, capture_output=True)


def make_certificates(directory: Path) -> None:
    """`ca.pem`, and `server.pem` with `server.key` for 127.0.0.1 and localhost, signed by it."""
    settings = directory / "openssl.cnf"
    settings.write_text("[req]\ndistinguished_name = dn\n[dn]\n")
    common = ("req", "-x509", "-config", os.fspath(settings), "-newkey", "rsa:2048", "-nodes", "-days", "2")
    ca, ca_key = os.fspath(directory / "ca.pem"), os.fspath(directory / "ca.key")
    _openssl(
        *(*common, "-subj", "/CN=test authority", "-out", ca, "-keyout", ca_key),
        *("-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"),
    )
    _openssl(
        *(*common, "-subj", "/CN=localhost", "-CA", ca, "-CAkey", ca_key),
        *("-out", os.fspath(directory / "server.pem"), "-keyout", os.fspath(directory / "server.key")),
        *("-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost", "-addext", "basicConstraints=critical,CA:FALSE"),
    )


@contextlib.asynccontextmanager
async def running_registry(*, tls: bool = False, auth: Auth = "none", port: int = 0) -> AsyncIterator[Registry]:
    """An empty registry, gone with all it holds when the block is left. Port 0 takes a free one.

    `auth` other than "none" knows `USERNAME` with `PASSWORD`, "token" also `REFRESH_TOKEN`.
    """
    async with contextlib.AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="registry-")))
        directory.chmod(0o755)  # the image agent has a user of its own, and reads ca.pem
        registry = Registry(directory, tls=tls, auth=auth)
        registry.port = port
        if tls:
            await asyncio.to_thread(make_certificates, directory)
        if auth == "basic":
            argv = ["htpasswd", "-Bbn", USERNAME, PASSWORD]
            made = await asyncio.to_thread(subprocess.run, argv, check=True, capture_output=True)
            (directory / "htpasswd").write_bytes(made.stdout)
        if auth == "token":
            certificate = ("-out", os.fspath(directory / "token.pem"), "-keyout", os.fspath(directory / "token.key"))
            argv = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=tokens", *certificate]
            await asyncio.to_thread(_openssl, *argv)
            registry.tokens = TokenServer(directory)
            await stack.enter_async_context(registry.tokens.running())
        stack.push_async_callback(registry.stop)
        await registry.start()
        yield registry
