"""FLOPs and bytes counted, not timed: dispatch modes that see what an operation is made of."""

import weakref
from collections.abc import Callable

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mipo.kernels import linear_logps as logps_kernel
from mipo.kernels import linear_preference_loss as loss_kernel


class LookInside(TorchDispatchMode):
    """Runs the Python function below each of mipo's operators, so that other modes see what it is made of."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        operators = (logps_kernel._forward, logps_kernel._backward, loss_kernel._forward)
        inside = {operator.op: operator.flat for operator in operators}
        return inside.get(func.overloadpacket, func)(*args, **(kwargs or {}))


class PeakMemory(TorchDispatchMode):
    """Bytes of the storages that come into being, at most at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        before = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and (storage := x.untyped_storage())._cdata not in self.known | before:
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return out

    def _forget(self, storage: int, size: int) -> None:
        self.known.discard(storage)
        self.now -= size


def peak(step: Callable[[], object]) -> int:
    with PeakMemory() as memory, LookInside():
        step()
    return memory.peak
