"""Tensors of the Open Inference Protocol: from JSON, or from bytes behind it, to arrays; and back."""

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Annotated, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import to_json

from service.problems import BAD_REQUEST, ProblemError
from service.protocols.asking import read_json, refuse_field
from service.protocols.schemas import InferenceRequest, InputTensor, RequestedOutput

FloatArray = NDArray[np.float64]
T = TypeVar("T")

FLOATS: Mapping[str, np.dtype[Any]] = {"FP64": np.dtype("<f8"), "FP32": np.dtype("<f4")}
BYTES = "BYTES"
SIZE = "binary_data_size"

_LENGTH = 4
"""Bytes that tell how long a text is."""

_STRICT = ConfigDict(strict=True)
_NUMBERS = TypeAdapter(Annotated[list[float | None], Field(fail_fast=True)], config=_STRICT)
_TEXTS = TypeAdapter(Annotated[list[str], Field(fail_fast=True)], config=_STRICT)


def split_body(body: bytes, declared: str | None) -> tuple[InferenceRequest, bytes]:
    """Return the JSON of a request, read, and the bytes behind it.

    Args:
        body: the whole body.
        declared: what `Inference-Header-Content-Length` says: how much of it is JSON; None for all.

    Raises:
        ProblemError: the header is no length within the body, or the JSON is not a request.
    """
    if declared is None:
        return read_json(body, InferenceRequest), b""
    length = int(declared) if declared.isascii() and declared.isdecimal() and len(declared) < 20 else -1
    if not 0 <= length <= len(body):
        detail = f"inference-header-content-length is {declared[:40]!r}, and the body has {len(body)} bytes"
        raise ProblemError(BAD_REQUEST, detail)
    return read_json(body[:length], InferenceRequest), body[length:]


class SentTensors:
    """The input tensors of a request, by name."""

    def __init__(self, sent: Sequence[InputTensor], binary: bytes) -> None:
        """Find the bytes of each tensor.

        Raises:
            ProblemError: one is there twice, or the bytes are not as many as they are said to be.
        """
        self._sent: dict[str, tuple[InputTensor, bytes | None]] = {}
        begin = 0
        for tensor in sent:
            if tensor.name in self._sent:
                raise refuse_field(tensor.name, f"input {tensor.name!r} is there twice")
            size = _binary_size(tensor)
            self._sent[tensor.name] = (tensor, None if size is None else binary[begin : begin + size])
            begin += size or 0
        if begin != len(binary):
            detail = f"the inputs take {_short(begin)} bytes of binary data, and {len(binary)} were sent"
            raise refuse_field("inputs", detail)

    @property
    def names(self) -> set[str]:
        """Return which inputs were sent."""
        return set(self._sent)

    def numbers(self, name: str) -> FloatArray:
        """Return a tensor of numbers, NaN or null where missing, with two dimensions.

        Raises:
            ProblemError: it is none.
        """
        tensor, binary = self._sent[name]
        dtype = FLOATS.get(tensor.datatype)
        if dtype is None:
            raise _refuse_datatype(tensor, "FP64 or FP32")
        if len(tensor.shape) != 2:
            raise refuse_field(
                name, f"input {name!r} has {len(tensor.shape)} dimensions; expected [series, steps]"
            )
        flat = np.array(_read(tensor, _NUMBERS), np.float64) if binary is None else _floats(tensor, binary, dtype)
        values: FloatArray = _check_size(tensor, flat).reshape(tensor.shape)
        if np.isinf(values).any():
            raise refuse_field(name, f"input {name!r} holds an infinite value; NaN is a missing one")
        return values

    def texts(self, name: str) -> list[str]:
        """Return a tensor of texts.

        Raises:
            ProblemError: it is none.
        """
        tensor, binary = self._sent[name]
        if tensor.datatype != BYTES:
            raise _refuse_datatype(tensor, BYTES)
        texts = _read(tensor, _TEXTS) if binary is None else _split_texts(tensor, binary)
        if len(texts) != math.prod(tensor.shape):
            raise _refuse_count(tensor, len(texts))
        return texts


def _binary_size(tensor: InputTensor) -> int | None:
    parameters = tensor.parameters or {}
    if "shared_memory_region" in parameters:
        raise refuse_field(tensor.name, f"input {tensor.name!r} is in shared memory, which is not supported")
    size = parameters.get(SIZE)
    if size is None:
        return None
    if isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise refuse_field(tensor.name, f"{SIZE} of input {tensor.name!r} is no number of bytes")
    return size


def _floats(tensor: InputTensor, binary: bytes, dtype: np.dtype[Any]) -> FloatArray:
    if len(binary) % dtype.itemsize:
        raise _refuse_count(tensor, f"{len(binary)} bytes of")
    return np.frombuffer(binary, dtype).astype(np.float64)


def _check_size(tensor: InputTensor, flat: FloatArray) -> FloatArray:
    if len(flat) != math.prod(tensor.shape):
        raise _refuse_count(tensor, len(flat))
    return flat


def _read(tensor: InputTensor, shape: TypeAdapter[T]) -> T:
    """Return the values in the JSON: flat, or in rows."""
    data: list[Any] = [] if tensor.data is None else tensor.data
    if data and all(isinstance(row, list) for row in data):
        data = list(chain.from_iterable(data))
    try:
        return shape.validate_python(data)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = "".join(f"[{part}]" for part in found["loc"][:1])
        raise refuse_field(tensor.name, f"data{where} of input {tensor.name!r}: {found['msg']}") from None


def _split_texts(tensor: InputTensor, binary: bytes) -> list[str]:
    texts, begin = [], 0
    while begin < len(binary):
        end = begin + _LENGTH + int.from_bytes(binary[begin : begin + _LENGTH], "little")
        if begin + _LENGTH > len(binary) or end > len(binary):
            raise refuse_field(tensor.name, f"a text of input {tensor.name!r} is longer than its binary data")
        try:
            texts.append(binary[begin + _LENGTH : end].decode())
        except UnicodeDecodeError:
            raise refuse_field(tensor.name, f"a text of input {tensor.name!r} is not UTF-8") from None
        begin = end
    return texts


def _refuse_datatype(tensor: InputTensor, wanted: str) -> ProblemError:
    return refuse_field(tensor.name, f"input {tensor.name!r} has datatype {tensor.datatype!r}; expected {wanted}")


def _refuse_count(tensor: InputTensor, found: int | str) -> ProblemError:
    shape = ", ".join(_short(size) for size in tensor.shape)
    return refuse_field(tensor.name, f"input {tensor.name!r} has shape [{shape}] and {found} values")


def _short(number: int) -> str:
    return str(number) if number < 10**18 else "a huge number"


def choose_outputs(
    asked: Sequence[RequestedOutput] | None, known: Sequence[str], *, binary: bool
) -> dict[str, bool]:
    """Return the outputs to write, in order, and whether each is to be bytes.

    Raises:
        ProblemError: one is unknown, or asked for in a way that is not supported.
    """
    chosen: dict[str, bool] = {}
    for output in asked or ():
        if output.name not in known:
            raise refuse_field("outputs", f"there is no output {output.name!r}; there are {', '.join(known)}")
        parameters = output.parameters or {}
        for unsupported in ("classification", "shared_memory_region"):
            if parameters.get(unsupported):
                raise refuse_field("outputs", f"{unsupported} of output {output.name!r} is not supported")
        chosen[output.name] = parameters.get("binary_data", binary) is True
    return chosen or dict.fromkeys(known, binary)


def write_answer(
    head: Mapping[str, Any], values: Mapping[str, FloatArray | list[str]], chosen: Mapping[str, bool]
) -> tuple[bytes, int | None]:
    """Return the body of an answer, and how much of it is JSON; None for all.

    Numbers that are none are null in JSON, and NaN in bytes.
    """
    outputs, parts = [], []
    for name, binary in chosen.items():
        value = values[name]
        described: dict[str, Any] = {"name": name, **_describe(value)}
        if binary:
            part = _to_bytes(value)
            described["parameters"] = {SIZE: len(part)}
            parts.append(part)
        else:
            described["data"] = value if isinstance(value, list) else value.ravel().tolist()
        outputs.append(described)
    text = to_json({**head, "outputs": outputs}, inf_nan_mode="null")
    return b"".join([text, *parts]), len(text) if parts else None


def _describe(value: FloatArray | list[str]) -> dict[str, Any]:
    if isinstance(value, list):
        return {"datatype": BYTES, "shape": [len(value)]}
    return {"datatype": "FP64", "shape": list(value.shape)}


def _to_bytes(value: FloatArray | list[str]) -> bytes:
    if isinstance(value, list):
        encoded = [text.encode() for text in value]
        return b"".join(len(text).to_bytes(_LENGTH, "little") + text for text in encoded)
    return np.ascontiguousarray(value, "<f8").tobytes()
