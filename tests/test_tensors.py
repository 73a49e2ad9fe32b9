"""Safetensors files read as views of their bytes."""

import json

import pyarrow as pa
import pytest
import safetensors.torch
import torch

from recray.storage.tensors import as_bytes, tensors_in


def read(content):
    return tensors_in(as_bytes(pa.py_buffer(content)))


def test_what_the_library_writes_is_read():
    tensors = {
        "rows": torch.arange(6, dtype=torch.float32).view(2, 3),
        "odd": torch.tensor([1, 2, 3], dtype=torch.int8),
        "wide": torch.tensor([1.5, 2.5], dtype=torch.float64),
        "half": torch.tensor([[0.5]], dtype=torch.bfloat16),
        "one": torch.tensor(7),
        "none": torch.empty(0, 4),
        "flags": torch.tensor([True, False]),
    }
    found = read(safetensors.torch.save(tensors, {"format": "pt"}))
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_a_tensor_is_a_view_of_the_bytes():
    held = as_bytes(pa.py_buffer(safetensors.torch.save({"rows": torch.ones(1000)})))
    inside = tensors_in(held)["rows"].data_ptr() - held.data_ptr()
    assert 0 < inside < len(held)


def file_of(header, content=b"\0" * 8):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content


def one(**change):
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | change}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"x", "header does not end"),
        ((2**62).to_bytes(8, "little") + b"{}", "header does not end"),
        (file_of(b"{"), "Expecting property name"),
        (file_of(b"\xff\xfe"), "Expecting value"),
        (file_of(b"[" * 100_000), "not one of safetensors"),
        (file_of([]), "not one of safetensors"),
        (file_of({"a": 1}), "not one of safetensors"),
        (file_of(one(more=1)), "not one of safetensors"),
        (file_of(one(dtype="F33")), "not one of safetensors"),
        (file_of(one(shape=["2"])), "not one of safetensors"),
        (file_of(one(shape=[3])), r"shape \[3\] is not bytes 0 to 8"),
        (file_of(one(shape=[-1, -2])), "is not bytes"),
        (file_of(one(shape=[10**18])), "is not bytes"),
        (file_of(one(data_offsets=[8, 16])), "is not bytes 8 to 16 of 8"),
        (file_of(one(data_offsets=[-8, 0])), "is not bytes"),
        (file_of(one(data_offsets=[0])), "not enough values"),
    ],
)
def test_a_file_that_says_what_it_does_not_hold_is_refused(content, reason):
    with pytest.raises(ValueError, match=reason):
        read(content)
