"""Several processes, one run: joining, agreeing, and noticing who is gone.

JAX connects the processes (jax.distributed); what it lacks is here. A thread of
each process writes a sign of life to the coordinator's key-value store; process
0 watches them all, the others watch process 0 and read what it found. Whoever
is not heard of for `peer_timeout` seconds ends all, with a message that names
it; so does a process that fails by itself, with its message and exit code.
"""

import contextlib
import ctypes
import errno
import functools
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import distributed as distributed_state
from jax.sharding import NamedSharding, PartitionSpec

from vit_jax.data.order import hash64
from vit_jax.errors import UserError
from vit_jax.signals import Stop, leaves_at_once

INTERRUPTED = 75  # schedulers start the run again, from its last checkpoint
_JOIN_SECONDS = 300  # for all to start
# What collectives say when a process at the other end is gone.
_BROKEN = re.compile(
  'gloo|nccl|connection|unavailable|aborted|deadline|barrier|heartbeat', re.I
)
_ALIVE, _FAILED, _HOST = 'vit_jax/alive/', 'vit_jax/failed', 'vit_jax/host/'


def primary() -> bool:
  """Whether this process is the one that writes and speaks."""
  return jax.process_index() == 0


def agree(value: bool) -> bool:
  """Whether `value` is true in all processes; each has to ask."""
  if jax.process_count() == 1:
    return value
  from jax.experimental import multihost_utils

  return bool(multihost_utils.process_allgather(np.bool_(value)).all())


def check_same(values: dict[str, Any]):
  """Raises UserError unless all processes have the same values, by name."""
  if jax.process_count() == 1:
    return
  from jax.experimental import multihost_utils

  for name, value in values.items():
    mine = hash64(*json.dumps(value, sort_keys=True).encode())
    words = np.array([mine >> 32, mine & 2**32 - 1], np.uint32)
    all_words = multihost_utils.process_allgather(words)
    other = np.flatnonzero((all_words != all_words[0]).any(-1))
    if len(other):
      raise UserError(
        f'process {other[0]} has another {name} than process 0: all have to '
        'be started with the same command, on the same files and kind of CPU.'
      )


def any_asks(mesh: jax.sharding.Mesh, value: bool) -> jax.Array:
  """How many devices' processes say yes: a scalar that is still computed.

  It costs the loop no wait: it is fetched with the metrics of the step.
  """
  where = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
  flag = np.full(1, value, np.float32)
  flags = jax.make_array_from_callback((mesh.size,), where, lambda _: flag)
  return _sum(flags)


_sum = jax.jit(jnp.sum)


class Peers:
  """The other processes, and the thread that watches over them."""

  def __init__(self, timeout: float):
    state = distributed_state.global_state
    self._client, self._coordinator = state.client, state.coordinator_address
    self._me, self._count = jax.process_index(), jax.process_count()
    self._timeout, self._period = timeout, timeout / 10
    self._over = threading.Event()
    self._leaving = threading.Lock()
    self._client.key_value_set(f'{_HOST}{self._me}', socket.gethostname())
    # JAX aborts the process when the coordinator is gone, and takes no
    # callback; Python's own handlers would run too late.
    self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._aborting)
    ctypes.CDLL(None).signal(int(signal.SIGABRT), self._handler)
    thread = threading.Thread(target=self._watch, name='peers', daemon=True)
    thread.start()

  def _name(self, process: int) -> str:
    try:
      host = self._client.key_value_try_get(f'{_HOST}{process}')
    except Exception:  # it never came so far
      return f'process {process}'
    return f'process {process} on {host}'

  def _look(self, beat: int) -> tuple[str, dict[str, str]]:
    """Gives a sign of life; (what failed, the others' signs)."""
    self._client.key_value_set(
      f'{_ALIVE}{self._me}', str(beat), allow_overwrite=True
    )
    failed = self._client.key_value_dir_get(_FAILED)
    alive = [] if self._me else self._client.key_value_dir_get(_ALIVE)
    return (failed[0][1] if failed else ''), dict(alive)

  def _watch(self):
    """Until the run is over, or someone is gone."""
    seen: dict[int, tuple[str, float]] = {}
    beat, heard = 0, time.monotonic()
    calls = ThreadPoolExecutor(1, 'peers-calls')  # one may not come back
    while not self._over.wait(self._period):
      beat += 1
      try:
        failed, alive = calls.submit(self._look, beat).result(self._timeout)
        heard = time.monotonic()
      except Exception:
        if time.monotonic() - heard > self._timeout and not self._over.is_set():
          self._leave(INTERRUPTED, self._no_coordinator())
        continue
      if failed:
        code, _, message = failed.partition(' ')
        self._leave(int(code), message)
      for process in range(1, self._count if not self._me else 0):
        value = alive.get(f'{_ALIVE}{process}', '')
        last, since = seen.get(process, (None, 0.0))
        if value != last:
          seen[process] = (value, heard)
        elif heard - since > self._timeout:
          self.fail(
            INTERRUPTED,
            f'{self._name(process)} is not heard of for {self._timeout:g} s: '
            'it died, hangs, or the network does.',
          )

  def _no_coordinator(self) -> str:
    return (
      f'process 0, the coordinator at {self._coordinator}, cannot be reached: '
      'it died, hangs, or the network does.'
    )

  def _aborting(self, _number: int):
    """Gives words, and the exit code, to an abort that JAX made of it."""
    host, _, port = self._coordinator.rpartition(':')
    try:
      socket.create_connection((host.strip('[]'), int(port)), 5).close()
    except OSError:
      self._leave(INTERRUPTED, self._no_coordinator())

  def fail(self, code: int, message: str, told: str = '') -> NoReturn:
    """Tells the others why, and ends this process and them."""
    with contextlib.suppress(Exception):  # another was first, or all is lost
      self._client.key_value_set(_FAILED + '/0', f'{code} {told or message}')
    self._leave(code, message)

  def _leave(self, code: int, message: str) -> NoReturn:
    """At once: the usual way out waits for those who are gone."""
    self._leaving.acquire()  # the first thread to come here decides
    print(f'vit_jax: {message}', file=sys.stderr, flush=True)
    if code == INTERRUPTED:
      print(
        'vit_jax: this process ends too; the same command goes on from the '
        'last checkpoint.',
        file=sys.stderr,
        flush=True,
      )
    if not self._me:  # the key-value store goes with it: let them read
      time.sleep(max(3, 2 * self._period))
    os._exit(code)

  def failed(self, error: BaseException) -> NoReturn:
    """Ends all for an error of this process, unless another was its cause."""
    me = self._name(self._me)
    if isinstance(error, UserError):
      self.fail(2, str(error), f'{me}: {error}')
    if _BROKEN.search(str(error)):  # the thread will know by whom
      time.sleep(self._timeout + 3 * self._period)
    traceback.print_exception(error)
    message = f'{me} failed: {type(error).__name__}: {error}'
    self.fail(1, message)

  def end(self):
    """Once all are here, nobody is watched any more."""
    milliseconds = int(1000 * _JOIN_SECONDS)
    self._client.wait_at_barrier('vit_jax/end', milliseconds)
    self._over.set()
    jax.distributed.shutdown()


def _did_not_come(begun: float, _number: int):
  """Gives words, and the exit code, to JAX's abort in `initialize`."""
  if time.monotonic() - begun < _JOIN_SECONDS:
    return  # it has another reason, which was told
  where = distributed_state.global_state.coordinator_address
  print(
    f'vit_jax: not all processes came to the coordinator at {where} within '
    f'{_JOIN_SECONDS} s; start them together, or again.',
    file=sys.stderr,
    flush=True,
  )
  os._exit(INTERRUPTED)


def _check_coordinator(coordinator: str, process: int):
  """Raises UserError for what no waiting would mend; JAX would abort."""
  host, _, port = coordinator.rpartition(':')
  if not (host and port.isdigit() and 0 < int(port) < 2**16):
    raise UserError(
      f'--coordinator={coordinator}: write HOST:PORT, a port from 1 to 65535.'
    )
  try:
    socket.getaddrinfo(host.strip('[]'), int(port))
  except OSError as error:
    raise UserError(
      f'--coordinator={coordinator}: the host {host!r} is not known '
      f'({error.strerror}).'
    ) from error
  if process == 0 and _in_use(int(port)):
    raise UserError(
      f'--coordinator={coordinator}: port {port} of this host is in use by '
      'another program. Take another one.'
    )


def _in_use(port: int) -> bool:
  for family, host in ((socket.AF_INET6, '::'), (socket.AF_INET, '0.0.0.0')):
    try:
      with socket.socket(family, socket.SOCK_STREAM) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tried.bind((host, port))
    except OSError as error:  # or a host without IPv6
      if error.errno == errno.EADDRINUSE:
        return True
  return False


def _join(coordinator: str, processes: int, process: int, timeout: float):
  """jax.distributed.initialize, with words for what goes wrong.

  Raises:
    UserError: nothing says where the others are, or they do not come.
  """
  given = (coordinator, processes, process) != ('', 0, -1)
  if given and not (coordinator and 0 <= process < processes):
    raise UserError(
      f'--coordinator={coordinator} --processes={processes} '
      f'--process={process}: give all three, HOST:PORT of process 0, how many '
      'there are, and the number of this one, from 0.'
    )
  if given:
    _check_coordinator(coordinator, process)
  where = {
    'coordinator_address': coordinator,
    'num_processes': processes,
    'process_id': process,
  }
  # JAX aborts if the others do not come, which is not a mistake of this one:
  # a scheduler may have no place for them yet.
  late = ctypes.CFUNCTYPE(None, ctypes.c_int)(
    functools.partial(_did_not_come, time.monotonic())
  )
  ctypes.CDLL(None).signal(int(signal.SIGABRT), late)
  # It would take SIGTERM for itself; the loop agrees on what to do with it.
  jax.config.update('jax_enable_preemption_service', False)
  try:
    with leaves_at_once('while waiting for the other processes'):
      jax.distributed.initialize(
        **(where if given else {}),
        cluster_detection_method='deactivate' if given else None,
        initialization_timeout=_JOIN_SECONDS,
        # JAX's own watch ends the process without a word to the user: later.
        heartbeat_timeout_seconds=int(3 * timeout) + 10,
        shutdown_timeout_seconds=int(timeout) + 1,
      )
  except ValueError as error:
    raise UserError(
      f'--distributed: no Slurm, TPU VM, GKE or MPI tells where the processes '
      f'are ({error}) Give --coordinator=HOST:PORT --processes=N --process=I.'
    ) from error
  except jax.errors.JaxRuntimeError as error:
    raise UserError(f'--coordinator={coordinator}: {error}') from error
  finally:
    ctypes.CDLL(None).signal(int(signal.SIGABRT), None)


@contextlib.contextmanager
def joined(
  coordinator: str, processes: int, process: int, timeout: float, stop: Stop
) -> Iterator[None]:
  """One of several processes, for as long as the run takes.

  Args:
    coordinator: HOST:PORT of process 0; '': found by JAX, as the next two.
    processes: how many.
    process: which one this is, from 0.
    timeout: seconds after which a silent process is taken for dead.
    stop: signals are agreed on from here, not followed at once.

  Raises:
    UserError: they cannot come together.
  """
  _join(coordinator, processes, process, timeout)
  peers = Peers(timeout)
  stop.armed = True
  try:
    yield
  except BaseException as error:
    peers.failed(error)
  peers.end()
