import tomllib
from pathlib import Path

from criw.config.common import AGENTS
from criw.config.crew import Config
from criw.config.document import default_toml


def test_the_default_configuration_as_toml_is_the_default_configuration() -> None:
    text = default_toml()
    assert Config.model_validate(tomllib.loads(text)) == Config()
    assert "# " in text


def test_the_default_toml_names_every_key() -> None:
    tree = tomllib.loads(default_toml())
    assert tree.keys() == Config.model_fields.keys()
    for name in AGENTS:
        keys = type(Config().facts(name)).model_fields.keys() - {"registries"}  # empty by default: a comment only
        assert tree[name].keys() == keys
    assert "registries" in default_toml()


def test_the_shipped_configuration_is_the_default() -> None:
    assert (Path(__file__).parents[4] / "deploy" / "criw.toml").read_text() == default_toml()
