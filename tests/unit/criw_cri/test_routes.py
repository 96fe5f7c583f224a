from grpclib.const import Cardinality

from criw_cri.routes import IDEMPOTENT, routes
from criw_proto.runtime.v1 import ImageServiceBase, RuntimeServiceBase

RUNTIME, IMAGES = "/runtime.v1.RuntimeService/", "/runtime.v1.ImageService/"


def test_every_method_of_the_cri_has_a_route_to_the_agent_that_serves_it() -> None:
    expected = dict.fromkeys(RuntimeServiceBase().__mapping__(), "supervisor")
    expected |= dict.fromkeys(ImageServiceBase().__mapping__(), "image")
    assert {path: route.agent for path, route in routes().items()} == expected
    assert len(expected) == 43


def test_a_route_knows_its_path_and_how_it_is_called() -> None:
    known = routes()
    assert all(route.path == path for path, route in known.items())
    assert known[f"{RUNTIME}GetContainerEvents"].cardinality is Cardinality.UNARY_STREAM
    assert known[f"{RUNTIME}ListContainers"].cardinality is Cardinality.UNARY_UNARY


def test_only_methods_that_exist_are_declared_idempotent() -> None:
    methods = {path.rpartition("/")[2] for path in routes()}
    assert methods >= IDEMPOTENT


def test_what_makes_or_starts_something_is_never_repeated() -> None:
    never = {
        "RunPodSandbox", "CreateContainer", "StartContainer", "ExecSync", "Exec", "Attach", "PortForward", "PullImage",
        "CheckpointContainer", "ReopenContainerLog",
    }  # fmt: skip
    assert {path.rpartition("/")[2] for path, route in routes().items() if route.idempotent} & never == set()
    assert routes()[f"{IMAGES}RemoveImage"].idempotent
