"""runtime/v1/api.proto is the CRI, whole and with nothing added: the compiled descriptor against the table of facts."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

Row: TypeAlias = tuple[str, ...]  # a line of the table without its last cell, which tells the version

PACKAGE = ".runtime.v1."
OPTIONS = ("deprecated", "debug_redact")
CELLS = 8


@pytest.fixture(scope="module")
def table() -> list[Row]:
    lines = (Path(__file__).parent / "cri-api.tsv").read_text().splitlines()
    return [tuple(line.split("\t")[:CELLS]) for line in lines if not line.startswith("#")]


@pytest.fixture(scope="module")
def compiled(descriptors: FileDescriptorSet) -> list[Row]:
    (api,) = (file for file in descriptors.file if file.name == "runtime/v1/api.proto")
    assert (api.package, api.syntax) == ("runtime.v1", "proto3")
    rows = [row(*cells) for cells in rpcs(api.service)]
    for enum in api.enum_type:
        rows += values(enum, enum.name)
    for message in api.message_type:
        rows += [*members(message, message.name)]
    return rows


def row(*cells: str) -> Row:
    return (*cells, *[""] * (CELLS - len(cells)))


def rpcs(services: Sequence[ServiceDescriptorProto]) -> Iterator[Row]:
    for service in services:
        for rpc in service.method:
            assert not rpc.client_streaming
            yield (
                *("rpc", service.name, rpc.name, bare(rpc.input_type), bare(rpc.output_type)),
                "server-streaming" if rpc.server_streaming else "unary",
                f"/runtime.v1.{service.name}/{rpc.name}",
            )


def values(enum: EnumDescriptorProto, name: str) -> list[Row]:
    return [row("enum", name, value.name, str(value.number)) for value in enum.value]


def members(message: DescriptorProto, name: str) -> Iterator[Row]:
    """The rows of a message, its fields and nested enums; the entries of its maps are written at the field."""
    entries = {f"{PACKAGE}{name}.{nested.name}": nested for nested in message.nested_type if nested.options.map_entry}
    yield row("message", name, str(len(message.field)))
    for field in message.field:
        label = "repeated" if field.label == FieldDescriptorProto.LABEL_REPEATED else "singular"
        kind = type_of(field)
        if (entry := entries.get(field.type_name)) is not None:
            label, kind = "map", f"map<{','.join(type_of(half) for half in entry.field)}>"
        oneof = message.oneof_decl[field.oneof_index].name if field.HasField("oneof_index") else ""
        options = ",".join(f"{option}=true" for option in OPTIONS if getattr(field.options, option))
        yield row("field", name, field.name, str(field.number), kind, label, oneof, options)
    for enum in message.enum_type:
        yield from values(enum, f"{name}.{enum.name}")
    for nested in message.nested_type:
        if not nested.options.map_entry:
            yield from members(nested, f"{name}.{nested.name}")


def type_of(field: FieldDescriptorProto) -> str:
    if field.type_name:
        return bare(field.type_name)
    return str(FieldDescriptorProto.Type.Name(field.type)).removeprefix("TYPE_").lower()


def bare(name: str) -> str:
    assert name.startswith(PACKAGE)
    return name.removeprefix(PACKAGE)


def test_the_table_is_whole(table: list[Row]) -> None:
    """So that an empty or cut table cannot pass for agreement."""
    assert Counter(row[0] for row in table) == {"rpc": 43, "message": 175, "field": 478, "enum": 95}
    assert len(set(table)) == len(table)


@pytest.mark.parametrize("kind", ["rpc", "message", "field", "enum"])
def test_the_protocol_is_the_cri_and_nothing_else(kind: str, table: list[Row], compiled: list[Row]) -> None:
    ours = {row for row in compiled if row[0] == kind}
    theirs = {row for row in table if row[0] == kind}
    assert (theirs - ours, ours - theirs) == (set(), set())


def test_generated_code_has_the_paths_of_the_table(table: list[Row]) -> None:
    """What the server routes by: the generated classes, not the descriptor."""
    from criw_proto.runtime.v1 import ImageServiceBase, RuntimeServiceBase

    mapped = {
        (path, "server-streaming" if handler.cardinality.server_streaming else "unary")
        for service in (RuntimeServiceBase(), ImageServiceBase())
        for path, handler in service.__mapping__().items()
    }
    assert mapped == {(row[6], row[5]) for row in table if row[0] == "rpc"}
