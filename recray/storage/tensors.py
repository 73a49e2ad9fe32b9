"""Safetensors files whose bytes are held already: their tensors are views of these bytes.

The library copies each tensor twice on the way; a bundle's weights may be gigabytes.
"""

import json
import math
import warnings
from collections.abc import Sequence

import pyarrow as pa
import torch
from torch import Tensor

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


def as_bytes(content: pa.Buffer) -> Tensor:
    """(B,) uint8 of a file's content, without a copy. Nobody may write to it."""
    with warnings.catch_warnings():  # torch warns of memory that is read-only
        warnings.simplefilter("ignore", UserWarning)
        return torch.frombuffer(memoryview(content), dtype=torch.uint8)


def tensors_in(held: Tensor) -> dict[str, Tensor]:
    """The tensors of a file, by name; see https://huggingface.co/docs/safetensors.

    Args:
        held: (B,) uint8, the whole file.

    Raises:
        ValueError: It is no safetensors file, or a tensor does not fill the bytes that it claims.
    """
    start = 8 + int.from_bytes(held[:8].numpy().tobytes(), "little")
    if not 8 <= start <= len(held):
        raise ValueError("its header does not end in it")
    try:
        header = json.loads(held[8:start].numpy().tobytes())
        header.pop("__metadata__", None)
        return {name: _view(held[start:], **one) for name, one in header.items()}
    except (AttributeError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"its header is not one of safetensors: {error!r}") from error


def _view(held: Tensor, dtype: str, shape: Sequence[int], data_offsets: tuple[int, int]) -> Tensor:
    begin, end = data_offsets
    kind, content = DTYPES[dtype], held[begin:end]
    size = math.prod(shape) * kind.itemsize
    if min(shape, default=0) < 0 or begin < 0 or not size == end - begin == len(content):
        raise ValueError(f"{dtype} of shape {shape} is not bytes {begin} to {end} of {len(held)}")
    aligned = content if content.data_ptr() % kind.itemsize == 0 else content.clone()
    return aligned.view(kind).view(shape)
