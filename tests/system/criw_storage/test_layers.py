"""Layers as a container sees them: through the mount, on top of each other."""

import asyncio
import os
import stat
import tarfile
from pathlib import Path

import pytest

from criw.errors import DataLoss, Fault, InvalidArgument, NotFound
from criw.rpc.client import call
from criw_proto.criw.storage.v1 import UnpackLayerRequest
from criw_storage import overlay
from support import images
from support.images import Compression, Entry, directory, file, hard_link, layer, opaque, symlink, tar_of, whiteout
from support.storage import Storage, layer_of

IMAGE = "sha256:" + "0" * 64


def owner_and_mode(path: Path) -> tuple[int, int, int]:
    found = path.lstat()
    return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)


@pytest.mark.parametrize("compression", Compression)
async def test_every_kind_of_entry_in_every_compression(storage: Storage, compression: Compression) -> None:
    made = layer(
        directory("dev", 0o755),
        Entry("dev/fifo", tarfile.FIFOTYPE, 0o640, uid=1, gid=2),
        directory("shared", 0o3775, uid=33, gid=2000),
        file("shared/plain", b"text\n" * 100_000, 0o640, uid=1000, gid=1001),
        file("shared/set-id", "x", 0o6755, uid=1000, gid=1001),
        Entry("shared/capable", data=b"x", xattrs={"user.note": "kept"}),
        hard_link("shared/second name", "shared/plain"),
        symlink("link", "/shared/plain"),
        file("ŵ" * 60 + "/" + "n" * 200, "long"),
        compression=compression,
    )
    async with storage.mounted(made) as root:
        assert (root / "shared/plain").read_bytes() == b"text\n" * 100_000
        assert owner_and_mode(root / "shared/plain") == (1000, 1001, 0o640)
        assert owner_and_mode(root / "shared/set-id") == (1000, 1001, 0o6755)
        assert owner_and_mode(root / "shared") == (33, 2000, 0o3775)
        assert owner_and_mode(root / "dev/fifo") == (1, 2, 0o640)
        assert stat.S_ISFIFO((root / "dev/fifo").stat().st_mode)
        assert (root / "shared/plain").samefile(root / "shared/second name")
        assert (root / "link").readlink() == Path("/shared/plain")
        assert os.getxattr(root / "shared/capable", "user.note") == b"kept"
        assert {path.lstat().st_mtime for path in (root / "shared", root / "shared/plain", root / "link")} == {0}
        assert (root / ("ŵ" * 60) / ("n" * 200)).read_text() == "long"


async def test_devices_and_file_capabilities(storage: Storage) -> None:
    # cap_net_raw=ep, as setcap(8) writes it: revision 2, the effective flag, permitted bit 13.
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    null = tarfile.TarInfo("null")
    null.type, null.mode, null.devmajor, null.devminor = tarfile.CHRTYPE, 0o666, 1, 3
    made = layer_of(_pax(b"SCHILY.xattr.security.capability=" + capability) + tar_of([file("ping", "x", 0o755)])[:1024]
                    + null.tobuf(tarfile.USTAR_FORMAT) + bytes(1024))  # fmt: skip
    async with storage.mounted(made) as root:
        found = (root / "null").stat()
        assert (stat.S_ISCHR(found.st_mode), found.st_rdev) == (True, os.makedev(1, 3))
        assert (root / "null").read_bytes() == b""
        assert os.getxattr(root / "ping", "security.capability") == capability


def _pax(record: bytes) -> bytes:
    """An extended header with one record."""
    body = b"%d %s\n" % (len(record) + 4, record)
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, len(body)
    return info.tobuf(tarfile.USTAR_FORMAT) + body.ljust(-(-len(body) // 512) * 512, b"\0")


async def test_what_layers_do_to_each_other(storage: Storage) -> None:
    async with storage.mounted(*images.odd().layers) as root:
        odd = root / "odd"
        assert {path.name for path in (odd / "hidden").iterdir()} == {"above"}
        assert not (odd / "removed").exists()
        assert not (odd / "removed-dir").exists()
        assert (odd / "was-directory").read_text() == "a file now\n"
        assert (odd / "was-symlink/inside").read_text() == "not in /etc\n"
        assert not (root / "etc/inside").exists()
        assert (odd / "changed").read_text() == "after\n"
        assert owner_and_mode(odd / "changed") == (33, 33, 0o600)
        assert {"removed", "removed-dir"}.isdisjoint(path.name for path in odd.iterdir())


async def test_a_directory_replaced_by_a_new_one_shows_nothing_of_the_old(storage: Storage) -> None:
    lower = layer(directory("d"), file("d/old", "x"), directory("e"), file("e/old", "x"))
    upper = layer(whiteout("d"), directory("d"), file("d/new", "x"), file("e", "x"), directory("e"), file("e/new", "x"))
    async with storage.mounted(lower, upper) as root:
        assert {path.name for path in (root / "d").iterdir()} == {"new"}
        assert {path.name for path in (root / "e").iterdir()} == {"new"}


async def test_an_opaque_root_hides_all_below(storage: Storage) -> None:
    upper = layer(Entry(".wh..wh..opq"), file("new", "x"))
    async with storage.mounted(layer(directory("old"), file("f", "x")), upper) as root:
        assert {path.name for path in root.iterdir()} == {"new"}


async def test_whiteouts_that_hide_nothing_are_not_seen(storage: Storage) -> None:
    lowest = layer(whiteout("top"), directory("a"), whiteout("a/nothing"), file("a/f", "x"))
    upper = layer(
        directory("b", 0o700), whiteout("b/nothing"), directory("a/o"), opaque("a/o"), whiteout("a/o/nothing")
    )
    async with storage.mounted(lowest, upper) as root:
        seen = {os.fspath(path.relative_to(root)) for path in root.rglob("*")}
        assert seen == {"a", "a/f", "a/o", "b"}
        assert owner_and_mode(root / "b") == (0, 0, 0o700)


async def test_implied_directories_look_like_those_below(storage: Storage) -> None:
    base = layer(
        directory(".", 0o711),
        directory("tmp", 0o1777),
        directory("srv", 0o750, uid=33, gid=34),
        Entry("srv/www", tarfile.DIRTYPE, 0o2750, uid=33, gid=34, xattrs={"user.note": "kept"}),
        directory("gone", 0o700),
        directory("same"),
    )
    second = layer(file("tmp/two", "x"), whiteout("gone"))
    third = layer(file("srv/www/page", "x"), file("gone/again", "x"), file("same/f", "x"), file("tmp/three", "x"))
    async with storage.mounted(base, second, third) as root:
        assert owner_and_mode(root) == (0, 0, 0o711)
        assert owner_and_mode(root / "tmp") == (0, 0, 0o1777)
        assert owner_and_mode(root / "srv") == (33, 34, 0o750)
        assert owner_and_mode(root / "srv/www") == (33, 34, 0o2750)
        assert os.getxattr(root / "srv/www", "user.note") == b"kept"
        assert owner_and_mode(root / "gone") == (0, 0, 0o755)
        assert {path.name for path in (root / "tmp").iterdir()} == {"two", "three"}
        assert (root / "srv/www/page").read_text() == "x"


async def test_files_below_a_link_of_the_base_go_where_it_leads(storage: Storage) -> None:
    base = layer(
        directory("usr"), directory("usr/bin", 0o711), file("usr/bin/sh", "sh"), directory("usr/lib64"),
        symlink("bin", "usr/bin"), symlink("lib64", "/usr/lib64"),
    )  # fmt: skip
    tool = layer(file("bin/tool", b"x" * 1_000_000, 0o755), file("bin/deep/file", "x"))
    library, removal = layer(file("lib64/x", "x")), layer(whiteout("bin/tool"))
    async with storage.mounted(base, tool, library) as root:
        assert ((root / "bin").readlink(), (root / "lib64").readlink()) == (Path("usr/bin"), Path("/usr/lib64"))
        assert {path.name for path in (root / "bin").iterdir()} == {"sh", "tool", "deep"}
        assert owner_and_mode(root / "usr/bin") == (0, 0, 0o711)
        assert (root / "usr/bin/tool").read_bytes() == b"x" * 1_000_000
        assert (root / "usr/lib64/x").read_text() == "x"
        with (root / "bin/tool").open("ab") as tool_file:  # copied up, so that the layer keeps its own
            tool_file.write(b"more")
        async with storage.mounted(base, tool, library, removal) as other:
            assert {path.name for path in (other / "bin").iterdir()} == {"sh", "deep"}
            assert (other / "bin").is_symlink()
            assert not (other / "usr/bin/tool").exists()
        async with storage.mounted(tool) as other:  # the same layer, with nothing below
            assert (other / "bin/tool").stat().st_size == 1_000_000
        assert (root / "bin/tool").stat().st_size == 1_000_004
        await storage.crew.kill("storage")
        await storage.crew.start("storage")
        assert (root / "usr/bin/tool").stat().st_size == 1_000_004


async def test_second_names_of_files_take_no_space(storage: Storage) -> None:
    base = layer(directory("usr/bin"), symlink("bin", "usr/bin"))
    tool = layer(file("bin/tool", b"x" * 1_000_000))
    plain = await storage.add(tool)
    before = await storage.usage()
    await storage.add(base, tool)
    after = await storage.usage()
    assert before.images is not None
    assert after.images is not None
    patch = next((storage.state / "layers").glob("patch-*"))
    assert (patch / "usr/bin/tool").stat().st_nlink == 2
    # Four of the base, its root included, and the three directories of the patch.
    assert after.images.inodes_used - before.images.inodes_used == 7
    assert after.images.used_bytes - before.images.used_bytes < 100_000
    await storage.remove_image(plain)
    assert (patch / "usr/bin/tool").stat().st_nlink == 2  # the layer is still there
    await storage.remove_all()


async def test_a_layer_is_shared_and_only_patched_where_chains_differ(storage: Storage) -> None:
    shared = layer(file("d/shared", "x"))
    ordinary, special = layer(directory("d")), layer(directory("d", 0o700))
    first = await storage.add(ordinary, shared)
    assert len(list((storage.state / "layers").iterdir())) == 2
    second = await storage.add(special, shared)
    assert len(list((storage.state / "layers").iterdir())) == 4  # the other base, and one patch
    roots = [await storage.create(first), await storage.create(second)]
    assert [owner_and_mode(root / "d")[2] for root in roots] == [0o755, 0o700]
    await storage.remove_image(first)
    await storage.remove(roots[0])
    assert (roots[1] / "d/shared").read_text() == "x"
    await storage.remove(roots[1])
    await storage.remove_image(second)


async def test_the_same_layer_twice_and_no_layer_at_all(storage: Storage) -> None:
    lower, upper = layer(file("f", "lower")), layer(file("f", "upper"))
    async with storage.mounted(lower, upper, lower) as root:
        assert (root / "f").read_text() == "lower"
    async with storage.mounted() as root:
        (root / "written").write_text("x")
        assert [path.name for path in root.iterdir()] == ["written"]


async def test_as_many_layers_as_an_image_may_have(storage: Storage) -> None:
    made = [layer(file(f"{number}/file", str(number)), file("top", str(number))) for number in range(127)]
    async with storage.mounted(*made) as root:
        assert (root / "top").read_text() == "126"
        assert len(list(root.iterdir())) == 128


async def test_more_layers_than_can_be_mounted_are_refused_when_the_image_is_made(storage: Storage) -> None:
    limit = overlay.most_layers()
    made = [layer(directory("d"), file(f"d/{number}", "")) for number in range(limit + 1)]
    await asyncio.gather(*(storage.unpack(IMAGE, one) for one in made[:-1]))
    with pytest.raises(InvalidArgument, match=f"{limit + 1} layers or more, and this kernel mounts at most {limit}"):
        await storage.unpack(IMAGE, made[-1])
    with pytest.raises(InvalidArgument, match="rebuild the image with fewer"):
        await storage.commit(IMAGE, made)
    await storage.commit(IMAGE, made[:-1])
    rootfs = await storage.create(IMAGE)
    assert len(list((rootfs / "d").iterdir())) == limit
    await storage.remove_all()


# Refusals


async def test_nothing_outside_the_layer_is_reached(storage: Storage) -> None:
    outside = storage.crew.directory / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    refused = [
        [file("../../outside/secret", "overwritten")],
        [directory("d"), file("d/../../../../../outside/new", "x")],
        [symlink("link", os.fspath(outside)), hard_link("stolen", "link/secret")],
        [hard_link("stolen", os.fspath(outside / "secret"))],
        [hard_link("stolen", "../../../../outside/secret")],
        [hard_link("stolen", "/proc/1/environ")],
        [symlink("link", "/proc/self/root"), hard_link("stolen", "link/etc/passwd")],
    ]
    for entries in refused:
        with pytest.raises(InvalidArgument, match=r"cannot unpack layer sha256:[0-9a-f]{64}: "):
            await storage.unpack(IMAGE, layer(*entries))
        assert storage.directories() == []
    through = layer(
        symlink("abs", os.fspath(outside)),
        file("abs/secret", "inside"),
        symlink("up", "../../../../outside"),
        file("up/new", "inside"),
        symlink("self", "/proc/self/cwd/../../outside"),
        file("self/new", "inside"),
    )
    async with storage.mounted(through) as root:
        assert (Path(f"{root}{outside}") / "secret").read_text() == "inside"
    assert {path.name: path.read_text() for path in outside.iterdir()} == {"secret": "secret"}
    (outside / "secret").unlink()


@pytest.mark.parametrize(
    "blob",
    [
        b"no archive at all".ljust(600, b"."),
        tar_of([file("f", b"x" * 5000)])[:3000],
        layer(file("f", b"x" * 5000)).blob[:-10],
        b"\x28\xb5\x2f\xfdgarbage",
        tar_of([Entry("f", b"Z")]),
    ],
    ids=["no tar", "cut short", "gzip cut short", "no zstd", "unknown type"],
)
async def test_a_broken_blob_is_refused_by_name_and_leaves_nothing(storage: Storage, blob: bytes) -> None:
    broken = images.Layer(blob, images.digest_of(blob), Compression.NONE)
    with pytest.raises(InvalidArgument, match=f"cannot unpack layer {broken.diff_id}: "):
        await storage.unpack(IMAGE, broken)
    assert storage.directories() == []


async def test_other_bytes_than_the_digest_says_are_refused(storage: Storage) -> None:
    made = layer(file("f", "x"))
    other = images.digest_of(b"something else")
    with pytest.raises(DataLoss, match=f"cannot unpack layer {other}: its bytes have another digest") as caught:
        await storage.unpack(IMAGE, images.Layer(made.blob, other, made.compression))
    assert made.diff_id.removeprefix("sha256:") not in str(caught.value)
    assert made.diff_id.removeprefix("sha256:") in storage.crew.log_path("storage").read_text()
    assert storage.directories() == []
    await storage.unpack(IMAGE, made)
    await storage.remove_image(IMAGE)


async def test_bad_requests(storage: Storage) -> None:
    made = layer(file("f", "x"))
    blob = storage.blob(made.blob)
    (storage.blobs / "link").symlink_to(blob)
    good = {"image_id": IMAGE, "diff_id": made.diff_id, "blob": blob, "media_type": ""}
    cases: list[tuple[dict[str, str], type[Fault], str]] = [
        ({"blob": blob + "x"}, NotFound, blob + "x"),
        ({"blob": blob + "/x"}, NotFound, blob + "/x"),
        ({"blob": os.fspath(storage.blobs / blob)}, InvalidArgument, blob),
        ({"blob": f"../blobs/{blob}"}, InvalidArgument, blob),
        ({"blob": "link"}, InvalidArgument, "'link'"),
        ({"blob": "/etc/shadow"}, InvalidArgument, "/etc/shadow"),
        ({"blob": ""}, InvalidArgument, "cannot read blob"),
        ({"diff_id": made.diff_id.removeprefix("sha256:")}, InvalidArgument, "sha256"),
        ({"diff_id": "sha256:../../../etc"}, InvalidArgument, "sha256"),
        ({"diff_id": made.diff_id.upper()}, InvalidArgument, "sha256"),
        ({"image_id": ""}, InvalidArgument, "image_id"),
        ({"media_type": "application/vnd.wasm.content.layer.v1+wasm"}, InvalidArgument, "wasm"),
        ({"media_type": "application/vnd.oci.image.layer.v1.tar+encrypted"}, InvalidArgument, "encrypted"),
    ]  # fmt: skip
    for change, fault, text in cases:
        with pytest.raises(fault, match=text):
            await call(storage.layers.unpack_layer, UnpackLayerRequest(**(good | change)))
        assert storage.directories() == []


async def test_the_first_bytes_decide_not_the_media_type(storage: Storage) -> None:
    types = (
        images.OCI.layers[Compression.GZIP],
        images.DOCKER.layers[Compression.ZSTD],
        images.OCI.layers[Compression.NONE],
    )
    for compression in Compression:
        for media_type in types:
            await storage.unpack(IMAGE, layer(file("f", "x"), compression=compression), media_type=media_type)
            await storage.remove_image(IMAGE)


# Concurrency


async def test_calls_for_one_layer_are_joined(storage: Storage) -> None:
    made = layer(*(file(f"{number}", b"x" * 1000) for number in range(2000)))
    ids = [f"sha256:{number:064}" for number in range(10)]
    before = await storage.metric("criw_storage_unpack_seconds_count")
    sizes = await asyncio.gather(*(storage.unpack(image_id, made) for image_id in ids))
    assert len(set(sizes)) == 1
    assert await storage.metric("criw_storage_unpack_seconds_count") == before + 1
    for image_id in ids:
        assert len(storage.directories()) == 1
        await storage.remove_image(image_id)


async def test_layers_are_unpacked_side_by_side_and_shared(storage: Storage) -> None:
    made = [layer(file(str(number), b"x" * 100_000)) for number in range(8)]
    chains = [made[:6], made[2:], made[::2], made[::-1]]
    before = await storage.metric("criw_storage_unpack_seconds_count")
    image_ids = await asyncio.gather(*(storage.add(*chain) for chain in chains))
    assert await storage.metric("criw_storage_unpack_seconds_count") == before + 8
    assert await storage.metric("criw_storage_layers") == 8
    assert await storage.images() == set(image_ids)
    await asyncio.gather(*(storage.remove_image(image_id) for image_id in image_ids))
    assert await storage.metric("criw_storage_layers") == 0
    assert await storage.metric("criw_storage_layer_bytes") == 0
