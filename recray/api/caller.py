"""The state of the caller's process that training and measuring use, put back at their end."""

import random
import threading
from typing import Any

import numpy as np
import torch


class _LeftAsFound:
    """Restores torch's threads and the random states of torch, numpy and Python.

    Sums are added in one order by one thread, and models start from the seed of their settings:
    both are settings of the whole process, which the caller may have chosen otherwise. Blocks of
    several threads may overlap: the first keeps what it finds, the last one puts it back.
    """

    def __init__(self) -> None:
        self._lock, self._blocks = threading.Lock(), 0
        self._threads = 0
        self._states: tuple[Any, ...] = ()

    def __enter__(self) -> None:
        with self._lock:
            if not self._blocks:
                self._threads = torch.get_num_threads()
                gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
                states = torch.get_rng_state(), gpus, random.getstate(), np.random.get_state()
                self._states = states
            self._blocks += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._blocks -= 1
            torch.set_num_threads(self._threads)  # each thread of the caller has its own number
            if self._blocks:
                return
            cpu, gpus, python, numpy = self._states
            torch.set_rng_state(cpu)
            if gpus:
                torch.cuda.set_rng_state_all(gpus)
            random.setstate(python)
            np.random.set_state(numpy)


left_as_found = _LeftAsFound()
