"""tf.train.Example without TensorFlow: the one message that TFRecord and ArrayRecord files hold of pictures.

    Example   { Features features = 1 }
    Features  { map<string, Feature> feature = 1 }
    Feature   { oneof { BytesList 1, FloatList 2, Int64List 3 } }      each { repeated value = 1 }

(tensorflow/core/example/{example,feature}.proto), described to the protobuf library here.
"""

import abc
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from unclip_jax.core.extras import needs
from unclip_jax.data.columns import Rows
from unclip_jax.data.skipping import BadRecordError

MOST_BYTES = 1 << 29
LOOKED_AT = 100
"""Records that are tried for the names of features."""
Message = Any
"""A message of the protobuf library."""
_KINDS = {"bytes_list": "BytesList", "float_list": "FloatList", "int64_list": "Int64List"}


class ExampleRows(Rows):
    """Rows that are examples, one record each; their columns are the features of the first that can be read."""

    @abc.abstractmethod
    def record(self, index: int) -> bytes:
        """Return a record; raise BadRecordError where it cannot be read."""

    @functools.cached_property
    def _names(self) -> Sequence[str]:
        for index in range(min(len(self), LOOKED_AT)):
            try:
                return sorted(parse(self.record(index)))
            except BadRecordError:
                continue
        return ()

    @property
    def columns(self) -> Sequence[str]:
        return self._names

    def cells(self, index: int, names: Sequence[str]) -> Mapping[str, object]:
        cells = parse(self.record(index))
        return {name: cells[name] for name in names if name in cells}


def parse(record: bytes) -> dict[str, object]:
    """Return the features of an example by name: the one value of a feature that has one, else a list of them.

    Raises BadRecordError for bytes that are no example.
    """
    if len(record) > MOST_BYTES:
        raise BadRecordError(f"has {len(record):,} bytes, more than the limit of {MOST_BYTES:,}")
    try:
        message = _example().FromString(record)
    except Exception as error:  # DecodeError, of whichever implementation is there
        raise BadRecordError("is no tf.train.Example") from error
    return {name: _value(feature) for name, feature in message.features.feature.items()}


def _value(feature: Message) -> object:
    kind = feature.WhichOneof("kind")
    values = [] if kind is None else list(getattr(feature, kind).value)
    return values[0] if len(values) == 1 else values


@functools.cache
def _example() -> Message:
    """Return the class of the message."""
    with needs("data"):
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="unclip_jax/example.proto", package="unclip_jax", syntax="proto3")

    def add(message: Message, name: str, number: int, kind: int, of: str = "", **more: int) -> None:
        label = more.pop("label", field.LABEL_OPTIONAL)
        one = message.field.add(name=name, number=number, type=kind, label=label, **more)
        if of:
            one.type_name = f".unclip_jax.{of}"

    scalars = {"BytesList": field.TYPE_BYTES, "FloatList": field.TYPE_FLOAT, "Int64List": field.TYPE_INT64}
    for name, kind in scalars.items():
        add(file.message_type.add(name=name), "value", 1, kind, label=field.LABEL_REPEATED)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, of) in enumerate(_KINDS.items(), start=1):
        add(feature, name, number, field.TYPE_MESSAGE, of, oneof_index=0)
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    add(entry, "key", 1, field.TYPE_STRING)
    add(entry, "value", 2, field.TYPE_MESSAGE, "Feature")
    add(features, "feature", 1, field.TYPE_MESSAGE, "Features.FeatureEntry", label=field.LABEL_REPEATED)
    add(file.message_type.add(name="Example"), "features", 1, field.TYPE_MESSAGE, "Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("unclip_jax.Example"))
