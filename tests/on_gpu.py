"""Tensors that claim to be in the memory of a GPU, for machines without one.

They refuse what a GPU refuses: an operation with a tensor of the CPU that is more than one number,
and what reads memory from numpy. Numbers are those of the CPU.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map

GPU = torch.device("cuda", 0)
MAY_MIX = ("copy_", "index", "_index_put_impl_", "index_put_", "index_put")
"""Operations that take tensors of both, as torch's do: copies, and indices of a GPU's tensor."""


class OnGpu(Tensor):
    """A tensor of the GPU; `inner` holds its numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "OnGpu":
        inner = inner.detach()
        made = Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(),
            dtype=inner.dtype, device="cpu",
        )  # fmt: skip
        made.inner = inner
        return made

    @property
    def device(self) -> torch.device:
        return GPU

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {k: v for k, v in (kwargs or {}).items() if k != "device"}
        every = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
        name = func.overloadpacket.__name__
        if name not in MAY_MIX and any(type(t) is not cls and t.dim() for t in every):
            raise RuntimeError(f"{name}: tensors of the CPU and of the GPU")
        if name in MAY_MIX[1:] and type(args[0]) is not cls:
            raise RuntimeError(f"{name}: a tensor of the CPU at places of the GPU")
        wrapped = {id(t.inner): t for t in every if isinstance(t, cls)}
        inner = lambda t: t.inner if isinstance(t, cls) else t  # noqa: E731
        made = func(*tree_map(inner, args), **tree_map(inner, kwargs))
        outer = lambda t: wrapped.get(id(t), cls(t)) if type(t) is Tensor else t  # noqa: E731
        if name == "copy_" and type(args[0]) is not cls:
            return args[0]
        return tree_map(outer, made)


class Gpu(TorchFunctionMode):
    """Inside the block `cuda` is a device."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        first = args[0] if args else None
        if name in ("cpu", "tolist", "numpy") and isinstance(first, OnGpu):
            if name == "numpy":
                raise TypeError("can't convert a tensor of the GPU to numpy")
            return first.inner.clone() if name == "cpu" else first.inner.tolist()
        if name == "new_tensor" and isinstance(first, OnGpu):
            return OnGpu(first.inner.new_tensor(*args[1:], **kwargs))
        if name == "to":
            given = [*args[1:], kwargs.get("device")]
            kind = next(
                (torch.device(d).type for d in given if isinstance(d, str | torch.device)), ""
            )
            if kind == "cuda":
                return first if isinstance(first, OnGpu) else OnGpu(first.clone())
            if kind == "cpu" and isinstance(first, OnGpu):
                return first.inner.clone()
        if name == "backward":  # it calls functions of Python, too
            with self:
                slope = (OnGpu(torch.ones(())),)
                given = (first,), slope, False, False, ()
                return _engine_run_backward(*given, allow_unreachable=True, accumulate_grad=True)
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "cuda" and first is not None:
            return OnGpu(func(*args, **(kwargs | {"device": "cpu"})))
        return func(*args, **kwargs)


def to_gpu(model: nn.Module) -> nn.Module:
    """Put the weights of a model there, in place."""
    for module in model.modules():
        for name, value in list(module._parameters.items()):
            if value is not None:
                module._parameters[name] = nn.Parameter(OnGpu(value.detach().clone()))
        for name, value in list(module._buffers.items()):
            if value is not None:
                module._buffers[name] = OnGpu(value.clone())
    return model
