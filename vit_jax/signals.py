"""SIGTERM and Ctrl-C: the first asks to save and leave, the second kills."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any


class Interrupted(BaseException):
  """A signal came while there was nothing to save yet."""


def _unraisable(args: Any):
  """Of a signal within a callback nothing is lost: `requested` is set."""
  if args.exc_type is not Interrupted:
    sys.__unraisablehook__(args)


class Stop:
  """Whether to stop; `catch` it before slow imports, or it never is asked.

  Attributes:
    requested: the name of the signal that came, or ''.
    armed: whether the loop looks at `requested`; before, the signal raises
      Interrupted where it strikes.
  """

  def __init__(self):
    self.requested = ''
    self.armed = False

  def catch(self) -> 'Stop':
    """Catches the signals from here on."""
    sys.unraisablehook = _unraisable
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, self._ask)
    return self

  def _ask(self, number, _frame):
    self.requested = signal.Signals(number).name
    for each in (signal.SIGTERM, signal.SIGINT):
      signal.signal(each, signal.SIG_DFL)
    if not self.armed:
      raise Interrupted(self.requested)


@contextlib.contextmanager
def leaves_at_once(when: str) -> Iterator[None]:
  """A signal that is caught ends the process with 75: nothing is to be saved.

  For calls into C++ that wait, in which Python's handlers do not run, but its
  one in C does, which writes to a file. By the main thread only.
  """
  told, tell = os.pipe()
  os.set_blocking(tell, False)
  before = signal.set_wakeup_fd(tell)

  def watch():
    for number in os.read(told, 1):
      name = signal.Signals(number).name
      print(f'vit_jax: {name} {when}', file=sys.stderr, flush=True)
      os._exit(75)

  thread = threading.Thread(target=watch, name='signals', daemon=True)
  thread.start()
  try:
    yield
  finally:
    signal.set_wakeup_fd(before)
    os.close(tell)  # ends the reading
    thread.join()
    os.close(told)
