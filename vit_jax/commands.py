"""The commands: a function each, from its flags to the exit code.

What a command needs is imported when it runs, so that --help is instant.
"""

import argparse
import json
import os
from pathlib import Path

from vit_jax.conflicts import weights_options
from vit_jax.errors import UserError


def _load_config(args: argparse.Namespace):
  from vit_jax import config

  if args.config is None:
    raise UserError(
      '--config=FILE is missing, for example --config=configs/digits.py'
    )
  return config.load(args.config, args.overrides)


def _load_model(args: argparse.Namespace):
  """A config to make a model by, which is that of config.init_from."""
  from vit_jax import finetune

  loaded = _load_config(args)
  workdir = getattr(args, 'workdir', Path(os.devnull))
  finetune.check_asked(loaded, workdir, args.overrides)
  return loaded


def _launch(args: argparse.Namespace) -> int:
  """Submits the same command, without the flags of the launch."""
  from vit_jax import finetune, workdir
  from vit_jax.launch import slurm
  from vit_jax.setup import Setup

  # A mistake ends here, not in the queue.
  config = _load_model(args)
  finetune.check_start(config)
  config = finetune.adopt(config, args.workdir)
  Setup(config)
  workdir.check_resumable(args.workdir, config)
  argv = ['train', f'--config={args.config}', f'--workdir={args.workdir}']
  argv += [f'--profile={args.profile}'] if args.profile else []
  argv += ['--distributed', f'--peer_timeout={args.peer_timeout}']
  argv += [f'--config.{path}={value}' for path, value in args.overrides]
  print(slurm.submit(args, tuple(argv)))
  return 0


def _train(args: argparse.Namespace) -> int:
  from vit_jax import distributed, profile, train

  window = profile.parse(args.profile) if args.profile else profile.NONE
  if args.peer_timeout < 1:
    raise UserError(f'--peer_timeout={args.peer_timeout:g}: at least 1 second.')
  if args.launch:
    return _launch(args)
  config = _load_model(args)
  where = (args.coordinator, args.processes, args.process)
  if not args.distributed and where == ('', 0, -1):
    return train.run(config, args.workdir, args.stop, window)
  with distributed.joined(*where, args.peer_timeout, args.stop):
    return train.run(config, args.workdir, args.stop, window)


def _sweep(args: argparse.Namespace) -> int:
  from vit_jax.config import find_file
  from vit_jax.sweeps import run

  if args.launch == 'local' or args.dry_run:
    return run.run(args, args.overrides, args.stop)
  run.check(args, args.overrides)
  path = find_file('--experiment', str(args.experiment), 'experiments')
  from vit_jax.launch import slurm

  argv = ['sweep', f'--experiment={path.absolute()}']
  argv += [f'--workdir={args.workdir}', f'--retries={args.retries}']
  argv += [f'--storage={args.storage}']
  argv += [f'--config.{path}={value}' for path, value in args.overrides]
  print(slurm.submit_array(args, tuple(argv)))
  return 0


def _open(args: argparse.Namespace, headless: bool = False):
  """(setup, parameters, what they are of) by --workdir or --weights."""
  from vit_jax import opening

  if args.workdir:
    setup, step, params = opening.load_run(args.workdir, args.step, args.raw)
    return setup, params, {'step': step}
  data = getattr(args, 'data', None)
  split = getattr(args, 'split', '') or 'test'
  setup, params = opening.open_weights(
    args.weights, data, weights_options(args), headless, split
  )
  return setup, params, {'weights': str(args.weights)}


def _convert(args: argparse.Namespace) -> int:
  from vit_jax import opening

  options = weights_options(args)
  print(opening.convert(args.source, args.to, args.format, options))
  return 0


def _plan(args: argparse.Namespace) -> int:
  from vit_jax import plan
  from vit_jax.plan import table

  result = plan.run(_load_model(args), args.topology, args.search)
  if args.json:
    print(json.dumps(result))
  else:
    table.show(result)
  return 0


def _inspect(args: argparse.Namespace) -> int:
  from vit_jax import inspect_model

  if args.weights and args.config is None:
    result = inspect_model.of_weights(args.weights, weights_options(args))
  else:
    args.overrides += [('size', str(args.size))] if args.size else []
    result = inspect_model.of_config(_load_model(args))
  print(json.dumps(result) if args.json else inspect_model.text(result))
  return 0


def _evaluate(args: argparse.Namespace) -> int:
  from vit_jax import evaluate, evaluators

  calls = evaluators.split_calls(args.evaluators)
  evaluators.check('--evaluators', calls)
  features = {name for name, _ in evaluators.check('', calls)}
  headless = bool(features) and features <= set(evaluators.OF_FEATURES)
  setup, params, source = _open(args, headless)
  result = source | evaluate.run(
    setup,
    params,
    split=args.split,
    keep=args.keep,
    evaluators=calls,
    pictures=args.pictures,
  )
  if args.json:
    print(json.dumps(result))
  else:
    for name, value in result.items():
      text = f'{value:.4f}' if isinstance(value, float) else value
      print(f'{name:18} {text}')
  return 0


def _predict(args: argparse.Namespace) -> int:
  from vit_jax import predict

  setup, params, _ = _open(args)
  if getattr(setup.task, 'masks', False):
    found = predict.segment(setup, params, args.images, args.output, args.whole)
    for result in found:
      shares = result['shares'].items()
      words = ', '.join(f'{k} {v:.1%}' for k, v in shares if v)
      line = f'{result["file"]}\t{result["overlay"]}\t{words}'
      print(json.dumps(result) if args.json else line)
    return 0
  if args.output or args.whole:
    flag = '--output' if args.output else '--whole'
    raise UserError(f'{flag} is for runs of segmentation.')
  for result in predict.run(setup, params, args.images):
    if args.json:
      print(json.dumps(result))
    else:
      best = result['predictions'][0]
      print(f'{result["file"]}\t{best["class"]}\t{best["probability"]:.4f}')
  return 0


def _report(args: argparse.Namespace) -> int:
  from vit_jax import report
  from vit_jax.report import diff, examples

  if args.diff:
    if len(args.runs) != 2:
      raise UserError(f'--diff takes two runs, not {len(args.runs)}.')
    files = [path.suffix == '.npz' for path in args.runs]
    if any(files) and not all(files):
      raise UserError('--diff takes two runs, or two files of predictions.')
    if all(files):
      found, text = examples.compare(*args.runs), examples.text
    else:
      found, text = diff.diff(*args.runs), diff.text
    print(json.dumps(found) if args.json else text(*args.runs, found))
    return 0
  text, path = report.run(args.runs, args.output)
  print(text)
  print(path)
  return 0


def _viz(args: argparse.Namespace) -> int:
  from vit_jax.viz import inside

  setup, params, source = _open(args, headless=True)
  title = ', '.join([str(args.workdir or args.weights), *map(str, args.images)])
  if 'step' in source:
    title += f', step {source["step"]}'
  print(inside.run(setup, params, args.images, args.output, title))
  return 0


def _data(args: argparse.Namespace) -> int:
  from vit_jax import config, finetune, inspect_data, preview
  from vit_jax.setup import Setup

  if args.action == 'prepare':
    from vit_jax.data.prepare import prepare

    print(prepare(args.name, args.data_dir))
    return 0
  if args.action == 'preview':
    setup = Setup(finetune.adopt(_load_model(args), Path(os.devnull)))
    preview.draw(setup, args.split, args.batch, args.count, args.output)
    print(args.output)
    return 0
  if args.data:
    overrides = [('data.name', args.data), *args.overrides]
    loaded = config.load(args.config, overrides)
  else:
    loaded = _load_config(args)
  splits = list(dict.fromkeys(args.split.split(',')))
  report = inspect_data.check(loaded, splits)
  print(json.dumps(report) if args.json else inspect_data.text(report))
  bad = sum(len(report[s]['unreadable']) for s in splits)
  if bad:
    raise UserError(f'{bad:,} records of {loaded.data.name} cannot be read.')
  return 0


COMMANDS = {
  'train': _train,
  'sweep': _sweep,
  'evaluate': _evaluate,
  'report': _report,
  'viz': _viz,
  'predict': _predict,
  'convert': _convert,
  'plan': _plan,
  'inspect': _inspect,
  'data': _data,
}
