"""What the loader asks of the system: memory that stays, and idle cores."""

import contextlib
import ctypes
import functools
import math
import os
import sys
import threading

import numpy as np


@functools.cache
def keep_pages():
  """Freed arrays stay with the process, where the C library is glibc.

  A batch of 224x224 is beyond its limit for going back to the system at once,
  and fetching fresh pages for the next one takes longer than filling them.
  """
  with contextlib.suppress(AttributeError, OSError):
    libc = ctypes.CDLL(None)
    libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD
    libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def yield_cores():
  """This thread runs on what others of the process leave of the cores.

  A step on a CPU is cut in equal parts for all cores: who takes one for a
  moment makes all of them wait. So the loader has the moments between.
  """
  if sys.platform == 'linux':  # elsewhere threads have no niceness of their own
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """At an address from which a CPU, as a device, takes it without a copy."""
  size = math.prod(shape) * dtype.itemsize
  memory = np.empty(size + 64, np.uint8)
  start = -memory.ctypes.data % 64
  return memory[start : start + size].view(dtype).reshape(shape)
