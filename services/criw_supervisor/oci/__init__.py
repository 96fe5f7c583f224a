"""The OCI runtime configuration of a container, one module per concern (OCI runtime-spec, config.md).

It owns the translation from CRI and image configuration to the runtime's. It must never start or change anything.
"""

JsonObject = dict[str, object]
