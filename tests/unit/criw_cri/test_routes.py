from grpclib.const import Cardinality

from criw_cri.routes import REPEATED, routes
from criw_proto.criw.image.v1 import ImagesBase
from criw_proto.runtime.v1 import ImageServiceBase, RuntimeServiceBase

RUNTIME, IMAGES = "/runtime.v1.RuntimeService/", "/runtime.v1.ImageService/"


def test_every_method_has_a_route_to_the_agent_that_serves_it() -> None:
    expected = dict.fromkeys(RuntimeServiceBase().__mapping__(), "supervisor")
    expected |= dict.fromkeys(ImageServiceBase().__mapping__(), "image")
    assert len(expected) == 43  # the CRI's
    expected |= dict.fromkeys(ImagesBase().__mapping__(), "image")
    assert {path: route.agent for path, route in routes().items()} == expected


def test_a_route_knows_its_path_and_how_it_is_called() -> None:
    known = routes()
    assert all(route.path == path for path, route in known.items())
    assert known[f"{RUNTIME}GetContainerEvents"].cardinality is Cardinality.UNARY_STREAM
    assert known[f"{RUNTIME}ListContainers"].cardinality is Cardinality.UNARY_UNARY


def test_of_every_method_and_of_no_other_it_is_said_whether_it_is_repeated() -> None:
    methods = [path.rpartition("/")[2] for path in routes()]
    assert sorted(methods) == sorted(REPEATED), "a method is missing or gone, or two services have one of this name"


def test_a_stream_is_never_repeated() -> None:
    streams = [route for route in routes().values() if route.cardinality.server_streaming]
    assert len(streams) == 8
    assert not any(route.repeated for route in streams)


def test_what_makes_starts_or_changes_something_is_never_repeated() -> None:
    never = {
        "RunPodSandbox", "CreateContainer", "StartContainer", "ExecSync", "Exec", "Attach", "PortForward", "PullImage",
        "CheckpointContainer", "CheckpointPod", "RestorePod", "ReopenContainerLog", "UpdateContainerResources",
        "UpdatePodSandboxResources",
    }  # fmt: skip
    assert not any(routes()[f"{RUNTIME}{name}"].repeated for name in never - {"PullImage"})
    assert not routes()[f"{IMAGES}PullImage"].repeated


def test_what_reads_stops_or_removes_is_repeated() -> None:
    for name in ("ListContainers", "Status", "StopContainer", "RemovePodSandbox"):
        assert routes()[f"{RUNTIME}{name}"].repeated
    assert routes()[f"{IMAGES}RemoveImage"].repeated
