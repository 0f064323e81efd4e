"""The loop. Start reading here.

`run` makes the parts (setup.py), restores the state (checkpoint.py), and then
steps: next batch (data/loader.py), train step (step.py), and on their cadences
metrics (writers.py), evaluation (evaluate.py) and checkpoints.
"""

import contextlib
import functools
import json
import math
import time
from pathlib import Path

import jax
import ml_collections

from vit_jax import (
  checkpoint,
  distributed,
  finetune,
  recipe,
  result,
  rollback,
  trees,
  workdir,
)
from vit_jax import config as config_lib
from vit_jax.errors import UserError
from vit_jax.evaluate import evaluate, predictions
from vit_jax.evaluators import View, check_data, run_all
from vit_jax.log import Cadence, Log
from vit_jax.models import cpu
from vit_jax.profile import NONE, Profile, Window, check
from vit_jax.setup import Setup
from vit_jax.signals import Stop
from vit_jax.viz import panels
from vit_jax.writers import Terminal, Writers

FINISHED, INTERRUPTED = 0, distributed.INTERRUPTED


def _best_before(setup: Setup, writers: Writers) -> float:
  if not setup.evaluations:
    return -math.inf
  name = f'eval/{setup.evaluations[0]}/{setup.task.best}'
  scores = [line[name] for line in writers.kept if line.get(name) is not None]
  return max(scores, default=-math.inf)


def run(
  config: ml_collections.FrozenConfigDict,
  path: Path,
  stop: Stop | None = None,
  window: Window = NONE,
) -> int:
  """Trains, or goes on with, the run in the workdir `path`.

  Args:
    config: complete, from config.load.
    path: the workdir.
    stop: asks the loop to save and leave; None: nothing does.
    window: of steps to profile.

  Returns:
    The exit code: FINISHED, or INTERRUPTED by a signal and saved.

  Raises:
    UserError: a mistake in the config, the data or the workdir.
  """
  begun = time.perf_counter()
  finetune.check_start(config)
  config = finetune.adopt(config, path)
  setup = Setup(config)
  check(window, setup.total)
  alike = {
    'config': json.loads(config_lib.to_json(setup.config)),
    'data': setup.info.fingerprint,
  }
  if setup.mesh.devices.flat[0].platform == 'cpu':
    alike['kind of CPU (with products of bfloat16 or without)'] = cpu.native()
  distributed.check_same(alike)
  primary = distributed.primary()
  with workdir.locked(path) if primary else contextlib.nullcontext():
    workdir.check_resumable(path, config)
    try:
      return _run(setup, path, stop or Stop(), begun, window)
    except UserError:
      raise
    except Exception as error:
      reason = workdir.disk_error(error, path)
      if not reason:
        raise
      raise UserError(
        f'--workdir={path} cannot be written to: {reason}. What was saved '
        'before is untouched: mend this, and the same command goes on from '
        'the last checkpoint.'
      ) from error


def _run(
  setup: Setup, path: Path, stop: Stop, begun: float, window: Window
) -> int:
  done = workdir.read_json(path / 'result.json')
  if done and done['steps'] >= setup.total:
    terminal = Terminal(setup.total, setup.total, distributed.primary())
    result.report(path, done, terminal)
    terminal.close()
    return FINISHED
  sources = {name: setup.source(name) for name in setup.evaluations}
  evaluations = {n: setup.loader(n, source) for n, source in sources.items()}
  batches = setup.loader('train', setup.train_source)
  check_data('config.evaluators', setup.config.evaluators, setup)
  _ = setup.abstract_state  # refuses what does not fit, before it is written
  if distributed.primary():
    workdir.write_provenance(path, setup.info)
    workdir.write_json(path / 'config.json', config_lib.to_json(setup.config))
  distributed.agree(True)  # the others look for it after that
  if not (path / 'config.json').exists():
    raise UserError(
      f'--workdir={path} is not on a file system that all processes share: '
      'what process 0 wrote there is not seen here.'
    )
  windows, failed = rollback.read(path), None
  with jax.set_mesh(setup.mesh):
    parts = (setup, path, stop, begun, window, batches, evaluations)
    while True:
      try:
        return _loop(*parts, windows, failed)
      except rollback.NotFinite as error:
        failed = error.step
        rollback.check(windows, failed, setup.config.max_rollbacks)


def _evaluate_all(setup, path, evaluations, state, step, writers, log) -> float:
  """Writes the metrics of each split; returns what picks the best."""
  best = None
  for name, loader in evaluations.items():
    begun = time.perf_counter()
    keep = predictions(path, name) if step == setup.total else None
    metrics = evaluate(setup, loader, state.averaged, keep, name)
    line = {f'eval/{name}/{key}': value for key, value in metrics.items()}
    line[f'time/eval_{name}'] = time.perf_counter() - begun
    line['time/elapsed'] = log.elapsed
    writers.write(step, line)
    score = metrics[setup.task.best]
    log.say(f'step {step}  {name} {setup.task.best} {score:.4f}')
    panels.draw_split(setup, state.averaged, loader, name, step, path)
    best = score if best is None else best  # the first split decides
  return -math.inf if best is None else best


def _look(setup, path, evaluations, state, writers):
  """Writes what config.evaluators say of the first split."""
  calls = setup.config.evaluators
  for name, loader in list(evaluations.items())[: 1 if calls else 0]:
    folder = path if distributed.primary() else None
    view = View(setup, state.averaged, loader, folder, name)
    found = run_all('config.evaluators', calls, view)
    line = {f'eval/{name}/{key}': value for key, value in found.items()}
    writers.write(setup.total, line)


def _restore(setup, path, checkpoints):
  """The newest sound state, or the first one."""
  state = checkpoint.restore(checkpoints, setup.abstract_state) or (
    finetune.initial(setup)
  )
  if int(state.step) > setup.total:
    checkpoints.close()
    raise UserError(
      f'config.total = {setup.total} steps, but the run in {path} has done '
      f'{int(state.step)}.'
    )
  return state


def _loop(
  setup, path, stop, begun, window, batches, evaluations, windows, failed
) -> int:
  """From the last checkpoint to the end, a signal, or a step to go back from.

  Args:
    setup, path, stop, begun, window: as in `run`.
    batches, evaluations: loaders.
    windows: of data to leave out; grows by one if `failed`.
    failed: the step that was not finite, if the run goes back for it.
  """
  primary, many = distributed.primary(), jax.process_count() > 1
  checkpoints = checkpoint.Checkpoints(path / 'checkpoints')
  state = _restore(setup, path, checkpoints)
  given = finetune.given(setup)
  if given:
    digest = trees.digest(given)  # by all processes: it may be divided
    name = f'config.task.teacher = {setup.teacher.path!r}'
    if primary:
      workdir.check_same(path, 'teacher', digest, name)
  start = int(state.step)
  terminal = Terminal(setup.total, start, primary)
  if failed is None:
    terminal.say(setup.describe(trees.count(state.params)))
    for line in recipe.words(setup):
      terminal.say(line)
    if start:
      terminal.say(f'resuming after step {start}')
  else:
    windows.append(rollback.Window(start, failed))
    terminal.say(rollback.words(windows[-1]))
    if primary:
      rollback.write(path, windows)
  config = setup.config.to_dict()
  writers = Writers(path, start, primary, config)
  evaluation, save = Cadence(setup, 'eval_every'), Cadence(setup, 'save_every')
  log = Log(setup, writers, terminal, begun, len(windows))
  number = functools.partial(rollback.batch_number, windows=windows)
  profile = Profile(window if primary else NONE, path, start)
  stream = batches.train(start, setup.total, number)
  record = _best_before(setup, writers)
  try:
    for step in range(start + 1, setup.total + 1):
      waiting = time.perf_counter()
      batch = next(stream)
      waited = time.perf_counter() - waiting
      profile.before(step, state)
      state, metrics = setup.train_step(state, batch, given)
      stop.armed = True  # from here on there is something to save
      if many:  # all have to learn of a signal after the same step
        asked = distributed.any_asks(setup.mesh, bool(stop.requested))
        metrics |= {'asked': asked}
      log.step(step, metrics, waited)
      if profile.ends(step):
        log.flush()
        log.say(profile.write(state))
        log.restart_clock()
      stopping = log.asked if many else bool(stop.requested)
      best, improved = None, False
      if evaluation.due(step):
        log.flush()
        best = _evaluate_all(
          setup, path, evaluations, state, step, writers, log
        )
        improved = best > record  # never by nan, which must not become one
        record = best if improved else record
        log.restart_clock()
      if save.due(step) or improved or stopping:
        log.flush()
        writers.sync()  # a checkpoint's metrics are on disk before it is
        saving = time.perf_counter()
        checkpoints.save(state, best)
        log.saved(time.perf_counter() - saving)
        log.restart_clock()
      if stopping and step < setup.total:
        checkpoints.wait()
        terminal.say(
          f'{stop.requested or "a signal to another process"}: saved after '
          f'step {step}; the same command goes on from here'
        )
        return INTERRUPTED
    checkpoints.wait()
    # After it: a mistake in one of them costs no step.
    _look(setup, path, evaluations, state, writers)
    writers.close()
    finished = result.finish(path, setup, evaluations, state, log)
    terminal.close()
    result.report(path, finished, terminal)
    return FINISHED
  finally:
    profile.close()
    stream.close()
    terminal.close()
    writers.close()
    checkpoints.close()
