from pathlib import Path

import pytest
from pydantic import ValidationError

from criw.config.crew import Config
from criw.config.image import ImageSection
from criw.config.storage import StorageSection


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        Config().network.mtu = 9000


def test_paths_and_addresses_of_the_agents() -> None:
    storage, image = StorageSection(http="[::1]:90"), ImageSection(http="h:0")
    got = Config(root=Path("/r"), run=Path("/u"), storage=storage, image=image)
    assert got.state_dir("image") == Path("/r/image")
    assert got.run_dir("image") == Path("/u/image")
    assert (got.socket("cri"), got.socket("image", 2)) == (Path("/u/criw.sock"), Path("/u/image/2.sock"))
    assert got.storage.address(2) == ("::1", 92)
    assert got.image.address(2) == ("h", 0)  # any free port, for every instance


def test_no_two_agents_have_one_user_unless_it_is_root() -> None:
    with pytest.raises(ValidationError, match=r"storage\.user and image\.user are both 7: give each a user"):
        Config(image=ImageSection(user=7), storage=StorageSection(user=7))
    root = Config(image=ImageSection(user=0), storage=StorageSection(user=0))
    assert root.image.user == root.storage.user == root.supervisor.user == 0
