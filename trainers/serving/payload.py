"""Bodies of requests -> rows for the model, and outputs -> bodies of answers. Pure functions of bytes: no sockets.

    request    application/json             {"inputs": [row, ...]}, rows as nested lists of numbers; or {"images": ["<base64>", ...]} for
                                            models of images, {"texts": ["...", ...]} for those of bytes
               image/png, image/jpeg, ...   one encoded image
               application/octet-stream     rows one after another, C order, little-endian, of the model's dtype
               application/x-safetensors    one tensor, named as the model's input
    answer     application/json             outputs as nested lists that read back as the same bits (null where not finite)
               application/octet-stream     outputs as above; x-lepton-dtype and x-lepton-shape say of what kind
               application/x-safetensors    one tensor, named as the model's output

Nothing is trusted: sizes are compared with the schema before anything is made from them, lists are walked by the schema's shape
(numpy would make an array as large as the longest string in them asks for), and images are opened by their first bytes only as what
is allowed. Arrow is not taken: its compressed buffers say themselves how large they become.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from leptonstore.errors import LeptonError, SourceError
from leptonstore.process import images
from leptonstore.web.accept import chosen
from trainers.serving.limits import JSON_NUMBER_BYTES_MAX, JSON_SLACK_BYTES, ServeLimits
from trainers.serving.refusal import Refused
from trainers.signature import TensorSpec

JSON, RAW, SAFETENSORS = "application/json", "application/octet-stream", "application/x-safetensors"
# Encoded images by their first bytes. Formats whose header cannot be read without unpacking them (TIFF) are not among them.
IMAGES: dict[str, Callable[[bytes], bool]] = {
    "image/png": lambda data: data.startswith(b"\x89PNG\r\n\x1a\n"),
    "image/jpeg": lambda data: data.startswith(b"\xff\xd8\xff"),
    "image/webp": lambda data: data[:4] == b"RIFF" and data[8:12] == b"WEBP",
    "image/gif": lambda data: data[:4] == b"GIF8",
    "image/bmp": lambda data: data[:2] == b"BM",
}
ANSWERS = (JSON, RAW, SAFETENSORS)
FILLER = -1  # behind the last token of a row that is shorter than the others

Decode = Callable[[bytes], NDArray[Any]]


@dataclass(frozen=True)
class Reader:
    """Bodies -> rows of `spec`. decode: an encoded image -> one row, raises LeptonError; None for models that take none.

    ragged: rows of JSON may be shorter than `spec`, and are filled up with FILLER. texts: strings are taken as their bytes, of which
    the last count.
    Immutable; safe from any thread. Everything raises Refused.
    """

    spec: TensorSpec
    limits: ServeLimits
    rows_max: int
    decode: Decode | None = None
    ragged: bool = False
    texts: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        """Of JSON bodies, one of which there is."""
        return ("inputs", *(["images"] if self.decode else []), *(["texts"] if self.texts else []))

    @property
    def types(self) -> tuple[str, ...]:
        """Content types that it reads."""
        return (JSON, RAW, SAFETENSORS, *(IMAGES if self.decode else ()))

    def bytes_max(self, kind: str) -> int:
        """Of a body of this type: what `rows_max` rows can take, never more than the limit."""
        most = self.limits.body_bytes_max
        if kind == RAW:
            return min(most, self.rows_max * self.spec.row_bytes)
        if kind == JSON and self.keys == ("inputs",):
            return min(most, self.rows_max * self.spec.elements * JSON_NUMBER_BYTES_MAX + JSON_SLACK_BYTES)
        return most

    def read(self, kind: str, body: bytes) -> Tensor:
        """[n, *shape] of the model's dtype, 1 <= n <= rows_max, every value within the range of the schema."""
        if kind == JSON:
            rows = self._json(body)
        elif kind == RAW:
            rows = self._raw(body)
        elif kind == SAFETENSORS:
            rows = self._safetensors(body)
        elif kind in IMAGES and self.decode is not None:
            rows = self._images([body], ["the image"])
        else:
            raise Refused("unsupported_type", f"content-type {kind!r:.100} is none of {', '.join(self.types)}")
        self._require_rows(len(rows))
        self._require_values(rows, kind)
        return torch.from_numpy(np.require(rows, requirements=["C", "W"]))

    def _json(self, body: bytes) -> NDArray[Any]:
        tree = parse_json(body)
        if not isinstance(tree, dict) or len(tree) != 1 or next(iter(tree)) not in self.keys:
            ways = " or ".join(f'{{"{key}": [...]}}' for key in self.keys)
            raise Refused("malformed", f"the body must be {ways}")
        ((name, value),) = tree.items()
        if not isinstance(value, list):
            raise Refused("malformed", f"{name} must be a list of rows")
        self._require_rows(len(value))
        if name == "images":
            names = [f"images[{at}]" for at in range(len(value))]
            return self._images([_from_base64(one, name) for one, name in zip(value, names, strict=True)], names)
        if name == "texts":
            value = [_tokens(one, self.spec.shape[0], f"texts[{at}]") for at, one in enumerate(value)]
        flat = np.empty((len(value), self.spec.elements), self.spec.dtype)
        for at, row in enumerate(value):
            where = f"{name}[{at}]"
            if self.ragged:
                length = _length(row, self.spec, where)
                flat[at, length:] = FILLER
                self._flatten(row, (length,), flat[at, :length], where)
            else:
                self._flatten(row, self.spec.shape, flat[at], where)
        return flat.reshape(len(value), *self.spec.shape)

    def _flatten(self, value: Any, shape: tuple[int, ...], out: NDArray[Any], where: str) -> None:
        """Nested lists of exactly `shape` -> the flat array `out`."""
        if not shape:
            value, shape = [value], (1,)
        if not isinstance(value, list) or len(value) != shape[0]:
            found = f"a list of {len(value)}" if isinstance(value, list) else _json_name(value)
            raise Refused("does_not_fit", f"{where} is {found} where the model takes a list of {shape[0]}: {self.spec}")
        if len(shape) > 1:
            step = out.size // shape[0]
            for at, part in enumerate(value):
                self._flatten(part, shape[1:], out[at * step : (at + 1) * step], f"{where}[{at}]")
            return
        allowed = {int, float} if out.dtype.kind == "f" else {int}
        if strange := set(map(type, value)) - allowed:
            raise Refused(
                "does_not_fit",
                f"{where} has {_json_name(next(iter(strange))())} where the model takes {self.spec.dtype}",
            )
        try:
            low, high = min(value), max(value)
            if (
                self.spec.low is not None
                and self.spec.high is not None
                and not self.spec.low <= low <= high <= self.spec.high
            ):
                self._refuse_range(where)
            with np.errstate(over="ignore"):  # it becomes an infinity, which is refused with the others
                out[:] = value
        except OverflowError:
            self._refuse_range(where)

    def _images(self, files: list[bytes], names: list[str]) -> NDArray[Any]:
        """Their headers first: a small file may unpack to a large image, and many of them to hours of work."""
        assert self.decode is not None
        pixels = 0
        for data, name in zip(files, names, strict=True):
            if not any(is_one(data) for is_one in IMAGES.values()):
                raise Refused("malformed", f"{name} is no image in {', '.join(IMAGES)}")
            try:
                info = images.probe(data, name)
            except SourceError:
                raise Refused("malformed", f"{name} is damaged, or no image that can be decoded") from None
            pixels += info.height * info.width
        if pixels > self.limits.pixels_max:
            raise Refused("too_large", f"{pixels:,} pixels; a request may have {self.limits.pixels_max:,}")
        return np.stack([self._decoded(data, name) for data, name in zip(files, names, strict=True)])

    def _decoded(self, data: bytes, name: str) -> NDArray[Any]:
        assert self.decode is not None
        try:
            return self.decode(data)
        except SourceError:
            raise Refused("malformed", f"{name} is damaged, or no image that can be decoded") from None
        except LeptonError:
            raise Refused("does_not_fit", f"{name} cannot be brought to what the model takes: {self.spec}") from None

    def _raw(self, body: bytes) -> NDArray[Any]:
        if not body or len(body) % self.spec.row_bytes:
            raise Refused(
                "does_not_fit",
                f"the body has {len(body):,} bytes, not a multiple of {self.spec.row_bytes:,}, one row of {self.spec}",
            )
        stored = np.frombuffer(body, np.dtype(self.spec.dtype).newbyteorder("<"))
        return stored.astype(self.spec.dtype).reshape(-1, *self.spec.shape)

    def _safetensors(self, body: bytes) -> NDArray[Any]:
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            tensors = load(body)
        except (SafetensorError, ValueError, KeyError, RuntimeError, OverflowError):
            raise Refused("malformed", "the body is no safetensors") from None
        if set(tensors) != {self.spec.name}:
            raise Refused("does_not_fit", f"the body must hold one tensor, {self.spec.name!r}")
        rows = tensors[self.spec.name]
        if rows.dtype != self.spec.torch_dtype or tuple(rows.shape[1:]) != self.spec.shape or rows.ndim == 0:
            found = f"{str(rows.dtype).removeprefix('torch.')} {list(rows.shape)}"
            raise Refused("does_not_fit", f"{self.spec.name} is {found}; the model takes {self.spec}")
        return rows.numpy()

    def _require_rows(self, rows: int) -> None:
        if rows < 1:
            raise Refused("does_not_fit", "there are no rows")
        if rows > self.rows_max:
            raise Refused("too_large", f"{rows:,} rows; a request may have {self.rows_max:,}")

    def _require_values(self, rows: NDArray[Any], kind: str) -> None:
        low, high = rows.min(), rows.max()
        if self.ragged:  # fillers, which only JSON puts there, behind at least one token
            low = rows[:, 0].min() if low == FILLER and kind == JSON else low
        if rows.dtype.kind == "f" and not (math.isfinite(low) and math.isfinite(high)):
            raise Refused("does_not_fit", f"{self.spec.name} has values that are not finite")
        if (
            self.spec.low is not None
            and self.spec.high is not None
            and not self.spec.low <= low <= high <= self.spec.high
        ):
            self._refuse_range(self.spec.name)

    def _refuse_range(self, where: str) -> NoReturn:
        within = "" if self.spec.low is None else f", from {self.spec.low:g} to {self.spec.high:g}"
        raise Refused("does_not_fit", f"{where} has values that the model does not take: {self.spec.dtype}{within}")


def parse_json(body: bytes) -> Any:
    """Strict JSON: no NaN, no infinities, no number that a float64 cannot hold. Raises Refused."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(constant)

    def finite(text: str) -> float:
        value = float(text)
        return value if math.isfinite(value) else refuse(text)

    try:
        return json.loads(body.decode("utf-8"), parse_constant=refuse, parse_float=finite)
    except (ValueError, RecursionError):  # UnicodeDecodeError is a ValueError
        raise Refused("malformed", "the body is not valid JSON") from None


def _from_base64(text: Any, name: str) -> bytes:
    if not isinstance(text, str):
        raise Refused("does_not_fit", f"{name} must be a string of base64")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise Refused("malformed", f"{name} is no base64") from None


def _length(row: Any, spec: TensorSpec, where: str) -> int:
    """Of a row that may be shorter than the model's."""
    if not isinstance(row, list) or not 1 <= len(row) <= spec.shape[0]:
        found = f"a list of {len(row):,}" if isinstance(row, list) else _json_name(row)
        raise Refused(
            "does_not_fit", f"{where} is {found} where the model takes a list of 1 to {spec.shape[0]:,} tokens"
        )
    return len(row)


def _tokens(text: Any, most: int, where: str) -> list[int]:
    """The last bytes of a text."""
    if not isinstance(text, str) or not text:
        raise Refused("does_not_fit", f"{where} must be a text of at least one character")
    try:
        return list(text.encode()[-most:])
    except UnicodeEncodeError:
        raise Refused("malformed", f"{where} has half a surrogate pair, which is no text") from None


def write_answer(kind: str, outputs: Tensor, name: str, about: Mapping[str, Any]) -> tuple[bytes, dict[str, str]]:
    """(body, headers) of outputs [n, ...] float32. about: what a JSON answer says beside them."""
    outputs = outputs.contiguous()
    if kind == RAW:
        array = outputs.numpy()
        data = array.tobytes() if sys.byteorder == "little" else array.byteswap().tobytes()
        shape = ",".join(map(str, outputs.shape))
        return data, {"x-lepton-dtype": str(array.dtype), "x-lepton-shape": shape}
    if kind == SAFETENSORS:
        from safetensors.torch import save

        return bytes(save({name: outputs})), {}
    values = outputs.tolist()  # float32 as float64: written with 17 digits, they read back as the same float32
    if not bool(torch.isfinite(outputs).all()):
        values = _without_infinities(values)
    return json.dumps({**about, name: values}, separators=(",", ":"), allow_nan=False).encode(), {}


def chosen_answer(accept: str) -> str:
    """The type of answer that an Accept header asks for first; JSON when it takes anything. Raises Refused."""
    best = chosen(accept, (JSON, *(kind for kind in ANSWERS if kind != JSON)))
    if best is None:
        raise Refused("not_acceptable", f"answers are {', '.join(ANSWERS)}")
    return best


def _without_infinities(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_infinities(part) for part in value]
    return value if math.isfinite(value) else None


def _json_name(value: Any) -> str:
    if value is None:
        return "null"
    names = {
        bool: "a boolean",
        int: "a number",
        float: "a number with a fraction",
        str: "a string",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), "something else")
