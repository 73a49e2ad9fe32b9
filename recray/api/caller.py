"""The state of the caller's process that training and measuring use, put back at their end."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def left_as_found() -> Iterator[None]:
    """Restore torch's threads and the random states of torch, numpy and Python.

    Sums are added in one order by one thread, and models start from the seed of their settings:
    both are settings of the whole process, which the caller may have chosen otherwise.
    """
    threads, states = torch.get_num_threads(), (random.getstate(), np.random.get_state())
    cpu = torch.get_rng_state()
    gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(cpu)
        if gpus:
            torch.cuda.set_rng_state_all(gpus)
        random.setstate(states[0])
        np.random.set_state(states[1])
