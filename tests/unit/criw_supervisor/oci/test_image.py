import json

import pytest

from criw.errors import Failed
from criw_supervisor.oci.image import ImageConfig, parse_image_config


def parse(document: object) -> ImageConfig:
    return parse_image_config(json.dumps(document).encode(), "busybox")


def test_what_a_container_takes_from_its_image() -> None:
    config = {
        "Entrypoint": ["/bin/app"], "Cmd": ["serve"], "Env": ["A=b"], "User": "app", "WorkingDir": "/srv",
        "StopSignal": "SIGQUIT", "ExposedPorts": {"80/tcp": {}}, "Volumes": {"/data": {}},
    }  # fmt: skip
    assert parse({"config": config, "rootfs": {}}).model_dump() == {
        "entrypoint": ("/bin/app",), "cmd": ("serve",), "env": ("A=b",), "user": "app", "working_dir": "/srv",
        "stop_signal": "SIGQUIT", "volumes": ("/data",),
    }  # fmt: skip


@pytest.mark.parametrize("document", [{}, {"config": None}, {"config": {}}, {"config": {"Cmd": None, "User": None}}])
def test_everything_may_be_missing_or_null(document: object) -> None:
    assert parse(document) == ImageConfig()


def test_entries_of_the_environment_without_a_name_are_left_out() -> None:
    assert parse({"config": {"Env": ["", "=C:=x", "A=b", "B", "C="]}}).env == ("A=b", "B", "C=")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"null",
        b"no json",
        b'{"config": []}x',
        b'{"config": {"Cmd": "not a list"}}',
        b"\xff",
        b"[" * 100_000,
    ],
)
def test_what_is_no_configuration_is_refused_with_the_images_name(raw: bytes) -> None:
    with pytest.raises(Failed, match="cannot use image busybox"):
        parse_image_config(raw, "busybox")
