"""The network's messages: equal to the official SDK's byte by byte, and compiled from the `.proto` files beside them."""

from __future__ import annotations

import importlib
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from allora_sdk.rpc_client.dec_canonical import canonicalize_dec  # type: ignore[import-untyped]  # no stubs
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from hypothesis import given, settings
from hypothesis import strategies as st

from forecastd.chain.codec import canonical_value
from forecastd.chain.methods import METHODS
from forecastd.chain.proto import cosmos_pb2, emissions_pb2

TX = "cosmos.tx.v1beta1"
SIGNED = [
    *((f"{TX}.{name}", getattr(cosmos_pb2, name)) for name in ("TxRaw", "TxBody", "AuthInfo", "SignDoc", "Tx")),
    ("cosmos.crypto.secp256k1.PubKey", cosmos_pb2.PubKey),
    ("cosmos.auth.v1beta1.BaseAccount", cosmos_pb2.BaseAccount),
    *(
        (f"emissions.{version}.{name}", getattr(emissions_pb2, name))
        for version in ("v9", "v10")
        for name in ("InsertWorkerPayloadRequest", "InputInferenceForecastBundle", "RegisterRequest")
    ),
]
QUERIED = [
    (f"{method.name.rpartition('.')[0]}.{message.DESCRIPTOR.name.removesuffix('V9')}", message)
    for method in METHODS.values()
    for message in (method.request, method.reply)
]
NUMBERS: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_STRING: st.sampled_from(["", "y", "1E-7", "\0", "ß漢😀"]) | st.text(max_size=40),
    FieldDescriptor.TYPE_BYTES: st.binary(max_size=40),
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_UINT64: st.sampled_from([0, 1, 127, 128, 2**63, 2**64 - 1]) | st.integers(0, 2**64 - 1),
    FieldDescriptor.TYPE_INT64: st.sampled_from([0, -1, 2**63 - 1, -(2**63)]) | st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.TYPE_ENUM: st.sampled_from([0, 1]),
}
TIMES = st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001  # zone follows


def sdk_class(name: str) -> Any:
    package, _, short_name = name.rpartition(".")
    return getattr(importlib.import_module(f"allora_sdk.rpc_client.protos.{package}"), short_name)


def field_values(descriptor: Descriptor, theirs: Any) -> st.SearchStrategy[dict[str, Any]]:
    """Values for some fields of a message that the SDK's class has too."""
    strategies: dict[str, st.SearchStrategy[Any]] = {}
    for field in descriptor.fields:
        inner = theirs._betterproto.cls_by_field.get(field.name)
        if inner is None:
            continue
        if field.message_type is None:
            values = NUMBERS[field.type]
        elif field.message_type.full_name == "google.protobuf.Timestamp":
            values = TIMES
        else:
            values = field_values(field.message_type, inner)
        is_list = field.label == FieldDescriptor.LABEL_REPEATED
        strategies[field.name] = st.lists(values, max_size=3) if is_list else values
    return st.fixed_dictionaries({}, optional=strategies)


def make_ours(message: Any, values: dict[str, Any]) -> Any:
    for name, value in values.items():
        field = message.DESCRIPTOR.fields_by_name[name]
        if isinstance(value, datetime):
            getattr(message, name).FromDatetime(value)
        elif isinstance(value, dict):
            getattr(message, name).SetInParent()
            make_ours(getattr(message, name), value)
        elif isinstance(value, list) and field.message_type is not None:
            for item in value:
                make_ours(getattr(message, name).add(), item)
        elif isinstance(value, list):
            getattr(message, name).extend(value)
        else:
            setattr(message, name, value)
    return message


def make_theirs(theirs: Any, values: dict[str, Any]) -> Any:
    def make(inner: Any, value: Any) -> Any:
        if isinstance(value, list):
            return [make(inner, item) for item in value]
        return make_theirs(inner, value) if isinstance(value, dict) else value

    classes = theirs._betterproto.cls_by_field
    return theirs(**{name: make(classes[name], value) for name, value in values.items()})


@pytest.mark.parametrize(("name", "ours"), [*SIGNED, *QUERIED], ids=[name for name, _ in (*SIGNED, *QUERIED)])
@pytest.mark.filterwarnings("ignore:.* is deprecated")
@settings(max_examples=20)
@given(data=st.data())
def test_messages_equal_the_sdks_byte_by_byte(name: str, ours: Any, data: st.DataObject) -> None:
    theirs = sdk_class(name)
    values = data.draw(field_values(ours.DESCRIPTOR, theirs))
    mine, raw = make_ours(ours(), values), bytes(make_theirs(theirs, values))
    assert mine.SerializeToString() == raw
    assert ours.FromString(raw) == mine


def test_every_field_is_in_one_version_of_the_sdk() -> None:
    fields, known = set[str](), set[str]()

    def compare(descriptor: Descriptor, theirs: Any) -> None:
        classes = theirs._betterproto.cls_by_field
        for field in descriptor.fields:
            fields.add(field.full_name)
            if field.name in classes:
                known.add(field.full_name)
                if hasattr(classes[field.name], "_betterproto"):
                    compare(field.message_type, classes[field.name])

    for name, ours in (*SIGNED, *QUERIED):
        compare(ours.DESCRIPTOR, sdk_class(name))
    assert fields == known


def test_unknown_fields_are_tolerated() -> None:
    theirs = sdk_class("emissions.v10.GetTopicResponse")(
        topic=sdk_class("emissions.v10.Topic")(id=67, p_norm="3", label_whitelist=["a"], unity_tolerance="0.1")
    )
    assert emissions_pb2.GetTopicResponse.FromString(bytes(theirs)).topic.id == 67


@given(st.floats(allow_nan=False, allow_infinity=False) | st.decimals(allow_nan=False, allow_infinity=False).map(str))
def test_canonical_value_equals_the_sdks(value: float | str) -> None:
    assert canonical_value(value) == canonicalize_dec(value)


@pytest.mark.parametrize(
    "text",
    ["0", "-0", "0.00", "-0.0", "0E-2000", "0E-2001", "0E+3", "1e3", " 1.50 ", "1_0", ".5", "5.", "1e-7", "10e-8"],
)
def test_canonical_value_of_a_text_equals_the_sdks(text: str) -> None:
    assert canonical_value(text) == canonicalize_dec(text)


@pytest.mark.parametrize("file", [cosmos_pb2, emissions_pb2])
def test_generated_classes_are_current(root: Path, tmp_path: Path, file: Any) -> None:
    pytest.importorskip("grpc_tools", reason="grpcio-tools is part of [dev]")
    compiled = tmp_path / "compiled"
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{root}", f"--descriptor_set_out={compiled}", file.DESCRIPTOR.name],
        check=True, cwd=root,
    )  # fmt: skip
    (expected,) = FileDescriptorSet.FromString(compiled.read_bytes()).file
    current = FileDescriptorProto()
    file.DESCRIPTOR.CopyToProto(current)
    messages = list(expected.message_type)
    for message in messages:
        messages.extend(message.nested_type)
        for field in message.field:
            field.ClearField("json_name")  # not in the generated classes
    assert current == expected


def test_generated_classes_accept_every_runtime(root: Path) -> None:
    for path in (root / "forecastd/chain/proto").glob("*_pb2.py"):
        assert "ValidateProtobufRuntimeVersion" not in path.read_text(encoding="utf-8")


def test_messages_and_cosmpy_fit_into_one_process(root: Path) -> None:
    code = "import forecastd.chain.codec, cosmpy.protos.cosmos.tx.v1beta1.tx_pb2 as theirs; print(theirs.TxRaw().body_bytes)"
    completed = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert (completed.returncode, completed.stdout) == (0, "b''\n"), completed.stderr
