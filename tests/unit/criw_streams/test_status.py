import json

import pytest

from criw_streams.status import Status, of_exit


def test_success_is_told_in_json_and_by_no_text() -> None:
    assert json.loads(of_exit(0).json()) == {"metadata": {}, "status": "Success"}
    assert of_exit(0).text() == b""


@pytest.mark.parametrize("code", [1, 126, 137, 255])
def test_an_exit_code_is_told_as_the_kubelet_tells_it(code: int) -> None:
    message = f"command terminated with non-zero exit code: command terminated with exit code {code}"
    assert json.loads(of_exit(code).json()) == {
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }
    assert of_exit(code).text() == message.encode()


def test_another_failure_is_an_internal_error() -> None:
    told = json.loads(Status("error executing command in container: \u00fc").json())
    assert told["message"] == "Internal error occurred: error executing command in container: \u00fc"
    assert (told["status"], told["reason"], told["code"]) == ("Failure", "InternalError", 500)
    assert Status("\u00fc").text() == "\u00fc".encode()
