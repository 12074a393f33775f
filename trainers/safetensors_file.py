"""Reads what a safetensors file says of itself, and checks what the format's own reader lets pass.

Knows no models and loads no tensors. Called by `model_files`. Free of torch.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

MAX_HEADER = 100 * 2**20
SIZES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}
"""Bytes of an element. Formats below a byte and 8-bit floats belong to quantised weights, which can't be trained on."""
EXPONENT = {"F64": ("<u8", 0x7FF << 52), "F32": ("<u4", 0xFF << 23), "F16": ("<u2", 0x1F << 10), "BF16": ("<u2", 0xFF << 7)}
"""Floats as integers, and the bits that are all set in infinities and NaN (IEEE 754)."""
CHUNK = 2**22


class Malformed(ValueError):
    """The file is no safetensors file that can be trusted; the message names it."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor: where its bytes [start, end) lie in `file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    end: int

    @property
    def elements(self) -> int:
        """How many numbers."""
        return prod(self.shape)

    def is_finite(self) -> bool:
        """No infinity and no NaN; reads the whole tensor, a chunk at a time."""
        if self.dtype not in EXPONENT:
            return True
        form, mask = EXPONENT[self.dtype]
        bits = np.memmap(self.file, form, "r", self.start, (self.elements,))
        exponent = bits.dtype.type(mask)
        return not any(bool(((bits[at : at + CHUNK] & exponent) == exponent).any()) for at in range(0, len(bits), CHUNK))


def read_tensors(file: Path) -> list[Tensor]:
    """The tensors of a file, in the order of their bytes. Raises Malformed unless they fill it exactly and none is empty."""
    header, data_at = _header(file)
    header.pop("__metadata__", None)
    tensors = sorted((_tensor(file, name, facts, data_at) for name, facts in header.items()), key=lambda tensor: tensor.start)
    end = data_at
    for tensor in tensors:
        if tensor.start != end:
            raise Malformed(f"{file.name}: the bytes of {tensor.name} overlap another tensor's or leave a gap")
        end = tensor.end
    if not tensors or end != file.stat().st_size:
        raise Malformed(f"{file.name}: the file does not end where its last tensor does; it is cut or padded")
    return tensors


def _header(file: Path) -> tuple[dict[str, Any], int]:
    """The header, and where the data begins."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER, file.stat().st_size - 8):
            raise Malformed(f"{file.name}: no safetensors file")
        try:
            header = json.loads(stream.read(length), object_pairs_hook=_no_duplicates)
        except (ValueError, RecursionError) as error:
            raise Malformed(f"{file.name}: its header can't be read: {error}") from error
    if not isinstance(header, dict):
        raise Malformed(f"{file.name}: its header is no object")
    return header, 8 + length


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands there twice")
    return found


def _tensor(file: Path, name: str, facts: Any, data_at: int) -> Tensor:
    try:
        start, end = facts["data_offsets"]
        tensor = Tensor(name, facts["dtype"], tuple(facts["shape"]), file, data_at + start, data_at + end)
        sound = all(isinstance(size, int) and size > 0 for size in tensor.shape) and start >= 0
        size = tensor.elements * SIZES[tensor.dtype]
    except KeyError as error:
        raise Malformed(f"{file.name}: {name} is of a form that is not known: {error}") from error
    except (TypeError, ValueError) as error:
        raise Malformed(f"{file.name}: the header's line for {name} can't be read") from error
    if not sound or end - start != size:
        raise Malformed(f"{file.name}: {name} is empty, or its size is not that of its shape")
    return tensor
