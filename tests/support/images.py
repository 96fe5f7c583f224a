"""Real images for tests and the demo, built from Debian's busybox-static and nginx-light without a registry.

The same packages give the same bytes, and so the same digests. `python -m support.images --push HOST:PORT` puts what
`catalogue()` lists into a plain-HTTP registry.
"""

import argparse
import asyncio
import enum
import functools
import gzip
import hashlib
import io
import json
import platform
import subprocess
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

import aiohttp
import yarl
import zstandard

BUSYBOX: Final = Path("/bin/busybox")
NGINX: Final = Path("/usr/sbin/nginx")
TOOLS: Final = (Path("/usr/sbin/setcap"), Path("/usr/sbin/getcap"), Path("/usr/bin/chattr"), Path("/usr/bin/lsattr"))
ARCHITECTURE: Final = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
PAGE: Final = "Served by nginx in a pod of Criw.\n"
_EPOCH: Final = "1970-01-01T00:00:00Z"
_PATH_ENV: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PASSWD: Final = (
    "root:x:0:0:root:/root:/bin/sh\n"
    "www-data:x:33:33:www-data:/var/www:/bin/false\n"
    "app:x:1000:1000:app:/home/app:/bin/sh\n"
    "nobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"
)
_GROUP: Final = "root:x:0:\nwww-data:x:33:\napp:x:1000:\nextra:x:2000:app\nnogroup:x:65534:\n"
_NGINX_CONF: Final = """\
user www-data;
worker_processes 1;
pid /run/nginx.pid;
error_log /dev/stderr;
events {}
http {
    default_type text/plain;
    access_log /dev/stdout;
    server {
        listen 80;
        root /usr/share/nginx/html;
    }
}
"""

Json: TypeAlias = Mapping[str, "Json"] | Sequence["Json"] | str | int


class Compression(enum.StrEnum):
    """Of a layer's blob."""

    GZIP, ZSTD, NONE = "gzip", "zstd", "none"


@dataclass(frozen=True)
class MediaTypes:
    """The names one specification has for the parts of an image."""

    manifest: str
    index: str
    config: str
    layers: Mapping[Compression, str]


OCI: Final = MediaTypes(
    manifest="application/vnd.oci.image.manifest.v1+json",
    index="application/vnd.oci.image.index.v1+json",
    config="application/vnd.oci.image.config.v1+json",
    layers={
        Compression.GZIP: "application/vnd.oci.image.layer.v1.tar+gzip",
        Compression.ZSTD: "application/vnd.oci.image.layer.v1.tar+zstd",
        Compression.NONE: "application/vnd.oci.image.layer.v1.tar",
    },
)
DOCKER: Final = MediaTypes(
    manifest="application/vnd.docker.distribution.manifest.v2+json",
    index="application/vnd.docker.distribution.manifest.list.v2+json",
    config="application/vnd.docker.container.image.v1+json",
    layers={
        Compression.GZIP: "application/vnd.docker.image.rootfs.diff.tar.gzip",
        Compression.ZSTD: "application/vnd.docker.image.rootfs.diff.tar.zstd",
        Compression.NONE: "application/vnd.docker.image.rootfs.diff.tar",
    },
)


@dataclass(frozen=True)
class Entry:
    """One member of a layer's tar. `name` has no leading slash."""

    name: str
    kind: bytes = tarfile.REGTYPE
    mode: int = 0o644
    data: bytes = b""
    target: str = ""
    uid: int = 0
    gid: int = 0
    xattrs: Mapping[str, str] = field(default_factory=dict)


def directory(name: str, mode: int = 0o755, *, uid: int = 0, gid: int = 0) -> Entry:
    return Entry(name, tarfile.DIRTYPE, mode, uid=uid, gid=gid)


def file(name: str, data: bytes | str, mode: int = 0o644, *, uid: int = 0, gid: int = 0) -> Entry:
    return Entry(name, mode=mode, data=data.encode() if isinstance(data, str) else data, uid=uid, gid=gid)


def symlink(name: str, target: str) -> Entry:
    return Entry(name, tarfile.SYMTYPE, 0o777, target=target)


def hard_link(name: str, target: str) -> Entry:
    return Entry(name, tarfile.LNKTYPE, target=target)


def whiteout(name: str) -> Entry:
    """Hides `name` of the layers below (OCI image-spec layer.md)."""
    parent, slash, last = name.rpartition("/")
    return Entry(f"{parent}{slash}.wh.{last}")


def opaque(name: str) -> Entry:
    """Hides all that the layers below have in the directory `name`."""
    return Entry(f"{name}/.wh..wh..opq")


def tar_of(entries: Iterable[Entry]) -> bytes:
    """The uncompressed tar of a layer, every time the epoch."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry in entries:
            info = tarfile.TarInfo(entry.name)
            info.type, info.mode, info.size = entry.kind, entry.mode, len(entry.data)
            info.linkname, info.uid, info.gid = entry.target, entry.uid, entry.gid
            info.pax_headers = {f"SCHILY.xattr.{name}": value for name, value in entry.xattrs.items()}
            tar.addfile(info, io.BytesIO(entry.data))
    return buffer.getvalue()


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass(frozen=True)
class Layer:
    """A layer as a registry keeps it."""

    blob: bytes
    diff_id: str
    compression: Compression


def layer(*entries: Entry, compression: Compression = Compression.GZIP) -> Layer:
    tar = tar_of(entries)
    match compression:
        case Compression.GZIP:
            blob = gzip.compress(tar, compresslevel=6, mtime=0)
        case Compression.ZSTD:
            blob = zstandard.compress(tar)
        case Compression.NONE:
            blob = tar
    return Layer(blob, digest_of(tar), compression)


@dataclass(frozen=True)
class Image:
    """An image's manifest with all that it names."""

    manifest: bytes
    media_type: str
    config: bytes
    layers: tuple[Layer, ...]

    @property
    def digest(self) -> str:
        """Of the manifest: what a registry knows the image by."""
        return digest_of(self.manifest)

    @property
    def id(self) -> str:
        """Of the configuration: what a runtime knows the image by."""
        return digest_of(self.config)

    @property
    def blobs(self) -> list[bytes]:
        return [self.config, *(one.blob for one in self.layers)]

    @property
    def manifests(self) -> list[tuple[str, bytes]]:
        """Media type and bytes of every manifest, the one that names the image last."""
        return [(self.media_type, self.manifest)]


@dataclass(frozen=True)
class Index:
    """Images for several platforms behind one name."""

    index: bytes
    media_type: str
    images: tuple[Image, ...]

    @property
    def digest(self) -> str:
        return digest_of(self.index)

    @property
    def blobs(self) -> list[bytes]:
        return [blob for one in self.images for blob in one.blobs]

    @property
    def manifests(self) -> list[tuple[str, bytes]]:
        return [*(pair for one in self.images for pair in one.manifests), (self.media_type, self.index)]


def image(
    *layers: Layer,
    config: Mapping[str, Json] | None = None,
    architecture: str = ARCHITECTURE,
    types: MediaTypes = OCI,
) -> Image:
    """An image of these layers, lowest first. `config` is the `config` object of OCI image-spec config.md."""
    settings = {"Env": [_PATH_ENV], **(config or {})}
    diff_ids = [one.diff_id for one in layers]
    configuration = _json(
        {
            "created": _EPOCH,
            "architecture": architecture,
            "os": "linux",
            "config": settings,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": [{"created": _EPOCH, "created_by": f"layer {number}"} for number in range(len(layers))],
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": types.manifest,
            "config": _descriptor(types.config, configuration),
            "layers": [_descriptor(types.layers[one.compression], one.blob) for one in layers],
        }
    )
    return Image(manifest, types.manifest, configuration, layers)


def index(images: Mapping[str, Image], types: MediaTypes = OCI) -> Index:
    """An index of images by architecture, in the order given."""
    entries = [
        {**_descriptor(one.media_type, one.manifest), "platform": {"architecture": architecture, "os": "linux"}}
        for architecture, one in images.items()
    ]
    document = {"schemaVersion": 2, "mediaType": types.index, "manifests": entries}
    return Index(_json(document), types.index, tuple(images.values()))


def _json(document: Mapping[str, object]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _descriptor(media_type: str, data: bytes) -> dict[str, str | int]:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}


def _base_entries() -> list[Entry]:
    applets = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True).stdout.split()
    return [
        *(
            directory(name)
            for name in ("bin", "etc", "home", "home/app", "proc", "run", "sys", "usr", "usr/bin", "var")
        ),
        directory("root", 0o700),
        directory("tmp", 0o1777),
        file("bin/busybox", BUSYBOX.read_bytes(), 0o755),
        *(symlink(f"bin/{name}", "busybox") for name in sorted(applets) if name != "busybox"),
        file("etc/passwd", _PASSWD),
        file("etc/group", _GROUP),
    ]


@functools.cache
def base_layer(compression: Compression = Compression.GZIP) -> Layer:
    """Debian's static busybox with a link for each applet, and the accounts root, www-data, app and nobody."""
    return layer(*_base_entries(), compression=compression)


def busybox(config: Mapping[str, Json] | None = None) -> Image:
    """`sh` by default; `config` adds to the image's configuration."""
    return image(base_layer(), config={"Cmd": ["sh"], **(config or {})})


def _libraries(program: Path) -> list[Path]:
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    words = [word for line in listed.splitlines() for word in line.split()]
    return sorted({Path(word) for word in words if word.startswith("/")})


def _with_libraries(*programs: Path) -> Layer:
    """Programs of the host, each where it is there, with what they need to run."""
    files = sorted({*programs, *(library for program in programs for library in _libraries(program))})
    parents = sorted({parent for path in files for parent in path.parents if parent != Path("/")})
    return layer(
        *(directory(str(path).lstrip("/")) for path in parents),
        *(file(str(path).lstrip("/"), path.read_bytes(), 0o755) for path in files),
    )


@functools.cache
def tools() -> Image:
    """busybox, and the programs for capabilities and attributes of files."""
    return image(base_layer(), _with_libraries(*TOOLS), config={"Cmd": ["sh"]})


@functools.cache
def nginx() -> Image:
    """nginx in the foreground on port 80: busybox, program, configuration and page are layers of their own."""
    program = _with_libraries(NGINX)
    configuration = layer(
        directory("etc/nginx"),
        file("etc/nginx/nginx.conf", _NGINX_CONF),
        directory("var/log"),
        directory("var/log/nginx"),
        directory("var/lib"),
        directory("var/lib/nginx"),
    )
    page = layer(
        directory("usr/share"),
        directory("usr/share/nginx"),
        directory("usr/share/nginx/html"),
        file("usr/share/nginx/html/index.html", PAGE),
    )
    config: dict[str, Json] = {
        "Entrypoint": ["/usr/sbin/nginx", "-e", "/dev/stderr"],
        "Cmd": ["-g", "daemon off;"],
        "ExposedPorts": {"80/tcp": {}},
        "StopSignal": "SIGQUIT",
    }
    return image(base_layer(), program, configuration, page, config=config)


def small(text: str, *, types: MediaTypes = OCI, config: Mapping[str, Json] | None = None) -> Image:
    """An image of two tiny layers which differs with `text`; the lower one is the same in all of them."""
    return image(layer(file("same", "same\n")), layer(file("text", text)), types=types, config=config)


@functools.cache
def odd() -> Image:
    """What layers may do to each other, below /odd, on top of busybox."""
    first = layer(
        directory("odd"),
        directory("odd/hidden"),
        file("odd/hidden/below", "hidden by an opaque directory\n"),
        file("odd/removed", "removed by a whiteout\n"),
        directory("odd/removed-dir"),
        file("odd/removed-dir/file", "goes with its directory\n"),
        directory("odd/was-directory"),
        file("odd/was-directory/file", "the directory becomes a file\n"),
        symlink("odd/was-symlink", "/etc"),
        file("odd/changed", "before\n"),
    )
    second = layer(
        directory("odd/hidden"),
        opaque("odd/hidden"),
        file("odd/hidden/above", "visible\n"),
        whiteout("odd/removed"),
        whiteout("odd/removed-dir"),
        file("odd/was-directory", "a file now\n"),
        directory("odd/was-symlink"),
        file("odd/was-symlink/inside", "not in /etc\n"),
        file("odd/changed", "after\n", 0o600, uid=33, gid=33),
    )
    third = layer(
        file("odd/one", "two names\n"),
        hard_link("odd/two", "odd/one"),
        file("odd/setuid", "#!/bin/sh\n", 0o4755),
        directory("odd/setgid", 0o2775, gid=2000),
        file("odd/not-ascii-ŵ", "llong\n"),
        file(f"odd/{'long-name-' * 20}", "more than a tar header holds\n"),
        Entry("odd/fifo", tarfile.FIFOTYPE, 0o600),
        Entry("odd/attribute", data=b"x\n", xattrs={"user.criw": "yes"}),
        symlink("odd/dangling", "/nowhere"),
        file("odd/implied/parents/file", "its directories are not listed\n"),
    )
    return image(base_layer(), first, second, third)


@functools.cache
def variants() -> Mapping[str, Image | Index]:
    """Images for tests by `repository:tag`: media types, compressions, users, several platforms."""
    here = small("this machine's")
    other = image(layer(file("text", "another machine's")), architecture="s390x")
    docker = small("docker", types=DOCKER)
    return {
        "test/index:1": index({"s390x": other, ARCHITECTURE: here}),
        "test/other-platform:1": index({"s390x": other}),
        "test/docker:1": docker,
        "test/docker-list:1": index({"s390x": other, ARCHITECTURE: docker}, DOCKER),
        "test/zstd:1": image(base_layer(Compression.ZSTD)),
        "test/plain:1": image(base_layer(Compression.NONE)),
        "test/odd:1": odd(),
        "test/user-uid:1": busybox({"User": "1002"}),
        "test/user-uid-group:1": busybox({"User": "1003:1004"}),
        "test/user-name:1": busybox({"User": "www-data"}),
        "test/user-name-group:1": busybox({"User": "www-data:1004"}),
    }


def catalogue() -> Mapping[str, Image | Index]:
    """Everything by `repository:tag`. A registry that has it can be the mirror of docker.io."""
    return {"library/busybox:latest": busybox(), "library/nginx:latest": nginx(), **variants()}


async def push(
    session: aiohttp.ClientSession, base: yarl.URL, name: str, pushed: Image | Index, *, token: str = ""
) -> None:
    """Put an image into the registry at `base` as `name` (`repository:tag`). Raises aiohttp's errors."""
    repository, _, tag = name.rpartition(":")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    root = base / "v2" / repository
    for blob in pushed.blobs:
        digest = digest_of(blob)
        async with session.head(root / "blobs" / digest, headers=headers) as found:
            if found.status == 200:
                continue
        async with session.post(root / "blobs" / "uploads" / "", headers=headers) as started:
            started.raise_for_status()
            upload = base.join(yarl.URL(started.headers["Location"]))
        async with session.put(upload.update_query(digest=digest), data=blob, headers=headers) as done:
            done.raise_for_status()
    for number, (media_type, document) in enumerate(pushed.manifests, start=1):
        reference = tag if number == len(pushed.manifests) else digest_of(document)
        typed = {**headers, "Content-Type": media_type}
        async with session.put(root / "manifests" / reference, data=document, headers=typed) as done:
            done.raise_for_status()


async def _push_all(address: str, only: str) -> None:
    async with aiohttp.ClientSession() as session:
        for name, pushed in catalogue().items():
            if only in name:
                await push(session, yarl.URL(f"http://{address}"), name, pushed)
                print(f"{address}/{name}  {pushed.digest}")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m support.images", description=__doc__)
    parser.add_argument("--push", metavar="HOST:PORT", help="plain-HTTP registry to put the images into")
    parser.add_argument("--only", default="", metavar="TEXT", help="only images with TEXT in their name")
    options = parser.parse_args(argv)
    if options.push:
        asyncio.run(_push_all(options.push, options.only))
    else:
        for name, listed in catalogue().items():
            if options.only in name:
                print(f"{name}  {listed.digest}")


if __name__ == "__main__":
    main()
