"""Manifests, indexes and configurations."""

import contextlib
import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criw.errors import DataLoss, Fault, InvalidArgument, NotFound
from criw_image.manifest import (
    CONFIG_LIMIT_BYTES,
    Index,
    Manifest,
    chain_id,
    choose,
    parse_config,
    parse_manifest,
)
from criw_image.platforms import Platform, machine_platforms
from support import images

AMD64 = machine_platforms("x86_64")
ARM64 = machine_platforms("aarch64")
HEX = "0123456789abcdef" * 4
LINUX_AMD64 = {"os": "linux", "architecture": "amd64"}


def parsed(document: object, media_type: str = "") -> Manifest | Index:
    return parse_manifest(json.dumps(document).encode(), media_type, what="the image")


def manifest_of(image: images.Image) -> Manifest:
    found = parse_manifest(image.manifest, image.media_type, what="the image")
    assert isinstance(found, Manifest)
    return found


@pytest.mark.parametrize("types", [images.OCI, images.DOCKER])
def test_a_manifest_names_its_parts(types: images.MediaTypes) -> None:
    image = images.small("x", types=types)
    found = manifest_of(image)
    assert found.config.digest == image.id
    assert [one.digest for one in found.layers] == [images.digest_of(one.blob) for one in image.layers]
    assert [one.size for one in found.layers] == [len(one.blob) for one in image.layers]


def test_a_manifest_without_its_media_type_is_known_by_what_it_has() -> None:
    image = images.small("x")
    document = json.loads(image.manifest)
    del document["mediaType"]
    assert isinstance(parsed(document), Manifest)
    assert isinstance(parsed(document, "application/octet-stream"), Manifest)
    assert isinstance(parsed({"schemaVersion": 2, "manifests": []}), Index)


def test_schema_1_is_refused_by_name() -> None:
    for media_type in ("", "application/vnd.docker.distribution.manifest.v1+prettyjws"):
        with pytest.raises(InvalidArgument, match="schema 1"):
            parsed({"schemaVersion": 1, "fsLayers": []}, media_type)


def test_an_artifact_is_refused_with_its_type() -> None:
    document = json.loads(images.small("x").manifest)
    document["config"]["mediaType"] = "application/vnd.cncf.helm.config.v1+json"
    with pytest.raises(InvalidArgument, match=r"artifact of type application/vnd\.cncf\.helm"):
        parsed(document)
    document["artifactType"] = "application/example"
    with pytest.raises(InvalidArgument, match="artifact of type application/example"):
        parsed(document)


def test_what_can_be_read_two_ways_is_refused() -> None:
    document = json.loads(images.small("x").manifest)
    with pytest.raises(DataLoss, match="calls its manifest"):
        parsed(document, images.OCI.index)
    with pytest.raises(DataLoss, match="as an image and as an index"):
        parsed(document | {"manifests": []})
    with pytest.raises(DataLoss, match="as an image and as an index"):
        parsed({"mediaType": images.OCI.index, "manifests": [], "layers": []})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"digest": "md5:00"}, r"layers\.0\.digest"),
        ({"digest": f"sha256:{HEX}/../x"}, r"layers\.0\.digest"),
        ({"size": -1}, r"layers\.0\.size"),
        ({"size": "many"}, r"layers\.0\.size"),
        ({"mediaType": "application/vnd.oci.image.layer.v1.tar+encrypted"}, "layer must be a tar"),
        ({"mediaType": None}, "layer must be a tar"),
        ({"size": 2**63}, r"layers\.0\.size"),
        ({"size": None}, r"layers\.0\.size"),
    ],
)
def test_a_bad_layer_is_refused(change: dict[str, object], message: str) -> None:
    document = json.loads(images.small("x").manifest)
    document["layers"][0] |= change
    with pytest.raises(InvalidArgument, match=message):
        parsed(document)


def test_a_huge_configuration_is_refused() -> None:
    document = json.loads(images.small("x").manifest)
    document["config"]["size"] = CONFIG_LIMIT_BYTES + 1
    with pytest.raises(InvalidArgument, match="configuration is larger"):
        parsed(document)


@pytest.mark.parametrize("data", [b"", b"[]", b"1", b"\xff", b"{", b"[" * 100_000])
def test_what_is_no_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidArgument, match="registry answered is not"):
        parse_manifest(data, images.OCI.manifest, what="the image")


@pytest.mark.parametrize("number", ["NaN", "9" * 5000, "1e999"])
def test_a_number_that_is_none_is_refused_as_the_rest_is(number: str) -> None:
    data = json.dumps(json.loads(images.small("x").manifest)).replace('"size": ', f'"size": {number}, "was": ').encode()
    with pytest.raises(InvalidArgument, match="cannot pull the image"):
        parse_manifest(data, images.OCI.manifest, what="the image")


UNKNOWN_TYPE = "application/vnd.example.manifest.v9+json"


def test_a_manifest_of_an_unknown_type_is_refused() -> None:
    document = json.loads(images.small("x").manifest)
    with pytest.raises(InvalidArgument, match=rf"artifact of type {UNKNOWN_TYPE.replace('+', '.')}"):
        parsed(document | {"mediaType": UNKNOWN_TYPE})
    with pytest.raises(InvalidArgument, match="artifact of type"):
        parsed(document | {"mediaType": ""}, UNKNOWN_TYPE)
    with pytest.raises(InvalidArgument, match="artifact of type"):
        parsed({"schemaVersion": 2, "manifests": []}, UNKNOWN_TYPE)


def test_control_characters_of_a_document_reach_no_message() -> None:
    document = json.loads(images.small("x").manifest)
    document["layers"][0]["mediaType"] = "evil\x1b[2J\n"
    for spoiled in (document, document | {"mediaType": "evil\x1b[2J\n"}, document | {"layers": [{"size": "\x1b"}]}):
        with pytest.raises(InvalidArgument) as refusal:
            parsed(spoiled)
        assert str(refusal.value).isprintable()
    evil = {"os": "evil\x1b", "architecture": "\n"}
    with pytest.raises(NotFound) as missing:
        choose(index_of(evil), what="the image", runs=AMD64)
    assert str(missing.value).isprintable()
    with pytest.raises(NotFound) as other:
        parse_config(config_of(**evil), 0, what="the image", runs=AMD64)
    assert str(other.value).isprintable()


@pytest.mark.parametrize("kind", ["application/octet-stream", "application/json", "text/html", None])
def test_docker_s_configuration_may_be_called_some_file(kind: str | None) -> None:
    document = json.loads(images.small("x", types=images.DOCKER).manifest)
    document["config"]["mediaType"] = kind
    assert isinstance(parsed(document), Manifest)
    document["mediaType"] = images.OCI.manifest
    with pytest.raises(InvalidArgument, match="artifact of type"):
        parsed(document)


def test_null_lists_are_empty_ones() -> None:
    document = json.loads(images.small("x").manifest)
    found = parsed(document | {"layers": None, "manifests": None, "annotations": None})
    assert isinstance(found, Manifest)
    assert found.layers == ()
    for rootfs in (None, {"diff_ids": None}):
        assert parse_config(config_of(rootfs=rootfs, variant=None), 0, what="the image", runs=AMD64).diff_ids == ()


@pytest.mark.parametrize(
    "other",
    [
        {"mediaType": images.OCI.manifest, "digest": "blake3:00", "size": 1, "platform": {"os": "plan9"}},
        {"digest": None, "size": "many", "platform": {"os": 9}},
        {"platform": {"variant": None, "os": "windows", "architecture": "amd64"}},
        {"mediaType": UNKNOWN_TYPE, "digest": "x", "platform": {"os": "linux", "architecture": "amd64"}},
        "no entry",
        None,
    ],
)
def test_an_index_s_entry_for_others_never_matters(other: object) -> None:
    ours = {"mediaType": images.OCI.manifest, "digest": f"sha256:{HEX}", "size": 5, "platform": dict(LINUX_AMD64)}
    found = parsed({"schemaVersion": 2, "mediaType": images.OCI.index, "manifests": [other, ours]})
    assert isinstance(found, Index)
    assert [one.size for one in choose(found, what="the image", runs=AMD64)] == [5]


def test_our_own_entry_must_be_right() -> None:
    ours = {"mediaType": images.OCI.manifest, "digest": "blake3:00", "size": 5, "platform": dict(LINUX_AMD64)}
    found = parsed({"schemaVersion": 2, "mediaType": images.OCI.index, "manifests": [ours]})
    assert isinstance(found, Index)
    with pytest.raises(InvalidArgument, match="not a sha256 or sha512 digest"):
        choose(found, what="the image", runs=AMD64)


@pytest.mark.parametrize(
    ("platform", "runs"),
    [
        ({"os": "Linux", "architecture": "x86_64"}, AMD64),
        ({"os": "linux", "architecture": "X86-64"}, AMD64),
        ({"os": "LINUX", "architecture": "AMD64", "variant": ""}, AMD64),
        ({"os": "linux", "architecture": "aarch64"}, ARM64),
        ({"os": "linux", "architecture": "arm64", "variant": "8"}, ARM64),
        ({"os": "linux", "architecture": "armhf"}, ARM64),
        ({"os": "linux", "architecture": "i386"}, AMD64),
    ],
)
def test_a_platform_is_known_by_its_other_names(platform: dict[str, str], runs: list[Platform]) -> None:
    assert [one.size for one in choose(index_of(WINDOWS, platform), what="the image", runs=runs)] == [1]


def test_entries_that_do_not_tell_their_platform_are_all_looked_into() -> None:
    unsaid: list[dict[str, str] | None] = [
        None,
        WINDOWS,
        {"os": "", "architecture": ""},
        {"os": "linux"},
        {"architecture": "amd64"},
        {"architecture": "s390x"},
    ]
    assert [one.size for one in choose(index_of(*unsaid), what="the image", runs=AMD64)] == [0, 2, 3, 4]
    assert [one.size for one in choose(index_of(*unsaid, LINUX_AMD64), what="the image", runs=AMD64)] == [6]


def index_of(*platforms: dict[str, str] | None) -> Index:
    entries = []
    for number, platform in enumerate(platforms):
        digest = f"sha256:{hashlib.sha256(bytes([number])).hexdigest()}"
        entry: dict[str, object] = {"mediaType": images.OCI.manifest, "digest": digest, "size": number}
        entries.append(entry | ({"platform": platform} if platform else {}))
    found = parsed({"schemaVersion": 2, "mediaType": images.OCI.index, "manifests": entries})
    assert isinstance(found, Index)
    return found


LINUX_386 = {"os": "linux", "architecture": "386"}
LINUX_ARM64_V8 = {"os": "linux", "architecture": "arm64", "variant": "v8"}
LINUX_ARM_V7 = {"os": "linux", "architecture": "arm", "variant": "v7"}
LINUX_ARM_V6 = {"os": "linux", "architecture": "arm", "variant": "v6"}
WINDOWS = {"os": "windows", "architecture": "amd64"}
UNKNOWN = {"os": "unknown", "architecture": "unknown"}


@pytest.mark.parametrize(
    ("platforms", "runs", "chosen"),
    [
        ([UNKNOWN, WINDOWS, LINUX_386, LINUX_AMD64], AMD64, 3),
        ([LINUX_386, LINUX_ARM64_V8], AMD64, 0),
        ([LINUX_AMD64 | {"variant": "v3"}, LINUX_AMD64 | {"variant": "v1"}], AMD64, 1),
        ([LINUX_ARM_V6, LINUX_ARM_V7, LINUX_ARM64_V8], ARM64, 2),
        ([LINUX_ARM_V6, LINUX_ARM_V7], ARM64, 1),
        ([LINUX_ARM_V6, LINUX_ARM_V7], machine_platforms("armv6l"), 0),
        ([LINUX_AMD64, {"os": "linux", "architecture": "riscv64"}], machine_platforms("riscv64"), 1),
        ([WINDOWS, None], AMD64, 1),
    ],
)
def test_the_best_platform_is_chosen(platforms: list[dict[str, str] | None], runs: list[Platform], chosen: int) -> None:
    assert [one.size for one in choose(index_of(*platforms), what="the image", runs=runs)] == [chosen]


def test_no_platform_of_ours_is_told_with_what_there_is() -> None:
    with pytest.raises(NotFound, match=r"linux/amd64 behind the image: it offers linux/arm64/v8, windows/amd64"):
        choose(index_of(WINDOWS, LINUX_ARM64_V8), what="the image", runs=AMD64)
    with pytest.raises(NotFound, match="it offers nothing"):
        choose(index_of(), what="the image", runs=AMD64)


def test_a_configuration_is_read() -> None:
    image = images.small("x", config={"User": "www-data:33"})
    config = parse_config(image.config, 2, what="the image", runs=machine_platforms())
    assert config.diff_ids == tuple(one.diff_id for one in image.layers)
    assert config.user == "www-data:33"
    assert config.text.encode() == image.config


def config_of(**fields: object) -> bytes:
    return json.dumps({"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": []}} | fields).encode()


@pytest.mark.parametrize("config", [None, {}, {"User": None}, {"User": ""}])
def test_a_configuration_without_a_user_is_root_s(config: object) -> None:
    assert parse_config(config_of(config=config), 0, what="the image", runs=AMD64).user == ""


@pytest.mark.parametrize("fields", [{"architecture": "s390x"}, {"os": "windows"}])
def test_a_configuration_of_another_platform_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(NotFound, match="cannot find an image for linux/amd64 behind the image"):
        parse_config(config_of(**fields), 0, what="the image", runs=AMD64)


def test_a_configuration_that_tells_no_platform_is_taken() -> None:
    assert parse_config(b'{"rootfs": {}}', 0, what="the image", runs=AMD64).diff_ids == ()


def test_layers_and_diff_ids_must_match() -> None:
    with pytest.raises(InvalidArgument, match="2 layers, its configuration 0"):
        parse_config(config_of(), 2, what="the image", runs=AMD64)


def test_a_chain_is_named_as_the_specification_says() -> None:
    one, two, three = (f"sha256:{hashlib.sha256(bytes([number])).hexdigest()}" for number in range(3))
    assert chain_id([]) == ""
    assert chain_id([one]) == one
    pair = f"sha256:{hashlib.sha256(f'{one} {two}'.encode()).hexdigest()}"
    assert chain_id([one, two]) == pair
    assert chain_id([one, two, three]) == f"sha256:{hashlib.sha256(f'{pair} {three}'.encode()).hexdigest()}"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
keys = st.sampled_from(["schemaVersion", "mediaType", "config", "layers", "manifests", "digest", "size", "rootfs"])


@given(st.dictionaries(keys, json_values), st.sampled_from(["", images.OCI.index, images.DOCKER.manifest]))
def test_any_document_is_read_or_refused(document: object, media_type: str) -> None:
    with contextlib.suppress(Fault):
        parsed(document, media_type)
    with contextlib.suppress(Fault):
        parse_config(json.dumps(document).encode(), 0, what="the image", runs=AMD64)
