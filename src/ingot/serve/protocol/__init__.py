"""The messages of gRPC, made from the compiled form of open_inference.proto when this is imported.

They live in a pool of their own: a client library's messages of the same names in one process do not clash with them.
"""
from __future__ import annotations

from importlib.resources import files
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory  # type: ignore[import-untyped]

SERVICE = "inference.GRPCInferenceService"


def _messages() -> tuple[dict[str, Any], dict[str, tuple[str, str, bool]]]:
    """Message classes by name, and (input, output, stream) of the service's methods by name."""
    found = descriptor_pb2.FileDescriptorSet.FromString(
        files("ingot.serve.protocol").joinpath("open_inference.binpb").read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in found.file:
        pool.Add(file)
    classes = {message.name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"inference.{message.name}"))
               for file in found.file for message in file.message_type}
    methods = {m.name: (m.input_type.rpartition(".")[2], m.output_type.rpartition(".")[2], m.client_streaming)
               for file in found.file for service in file.service for m in service.method}
    return classes, methods


MESSAGES, METHODS = _messages()
