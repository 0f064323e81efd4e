"""Flags that would do nothing beside the others: refused before any work.

What depends on data, runs or files is refused where those are opened.
"""

import argparse

from vit_jax.errors import UserError


def _given(args: argparse.Namespace, *names: str) -> list[str]:
  """Those of some flags that are not at their default, as they are written."""
  default = args.parser.get_default
  return [n for n in names if getattr(args, n, default(n)) != default(n)]


def weights_options(args: argparse.Namespace) -> dict:
  """Options of weights.load that were given."""
  names = ('heads', 'patches', 'size', 'patch', 'architecture')
  return {name: getattr(args, name) for name in _given(args, *names)}


def _launch(args: argparse.Namespace):
  flags = ('nodes', 'gpus_per_node', 'tasks_per_node', 'slurm')
  if args.launch != 'slurm' and (given := _given(args, *flags)):
    raise UserError(f'--{given[0]} is for --launch=slurm.')


def _train(args: argparse.Namespace):
  _launch(args)
  together = ('distributed', 'coordinator', 'processes', 'process', 'launch')
  if _given(args, 'peer_timeout') and not _given(args, *together):
    raise UserError(
      f'--peer_timeout={args.peer_timeout:g} is for several processes: '
      '--distributed, or --launch=slurm.'
    )


def _model(args: argparse.Namespace):
  """Of what has a run or a file of weights."""
  if (args.workdir is None) == (args.weights is None):
    raise UserError('give either --workdir=DIR or --weights=FILE')
  data = getattr(args, 'data', None)
  if args.workdir:
    if data:
      raise UserError(
        f'--data={data} is for --weights=FILE; a run is evaluated on its own '
        f'data, on others by --evaluators="on({data!r})".'
      )
    if options := weights_options(args):
      raise UserError(f'--{min(options)} is for --weights=FILE, not a run.')
  elif given := _given(args, 'step', 'raw'):
    raise UserError(f'--{given[0]} is for --workdir=DIR; a file has one state.')


def _evaluate(args: argparse.Namespace):
  if args.weights and not args.data:
    raise UserError(
      f'--weights={args.weights} is evaluated on --data=folder:PATH, which is '
      'missing.'
    )
  _model(args)
  if args.pictures and not args.evaluators.strip(' ,'):
    raise UserError(
      f'--pictures={args.pictures} is for what --evaluators draw and keep, and '
      'none are given: --evaluators=classification draws the calibration.'
    )


def _viz(args: argparse.Namespace):
  _model(args)
  if args.weights and not args.images:
    raise UserError('viz --weights=FILE needs pictures: viz ... IMAGE')


def _report(args: argparse.Namespace):
  if args.diff and args.output:
    raise UserError(
      f'--output={args.output} is for the page; --diff prints what differs.'
    )
  if args.json and not args.diff:
    raise UserError('--json is for --diff.')


def _inspect(args: argparse.Namespace):
  if args.weights and args.config is None:
    if args.overrides:
      raise UserError('--config.FIELD is for --config=FILE, not --weights')
    return
  given = ['weights'] if args.weights else []
  given += [name for name in weights_options(args) if name != 'size']
  if given:
    raise UserError(
      f'--{min(given)} is not for a config: leave one of them out'
    )
  if args.size and 'size' in dict(args.overrides):
    raise UserError('--size and --config.size are one: leave one of them out')


def _data(args: argparse.Namespace):
  if args.action == 'prepare' and args.overrides:
    raise UserError(
      f'--config.{args.overrides[0][0]} is for data check and data preview.'
    )
  if getattr(args, 'data', None) and 'data.name' in dict(args.overrides):
    raise UserError(
      '--data and --config.data.name are one: leave one of them out'
    )


_CHECKS = {
  'train': _train,
  'sweep': _launch,
  'evaluate': _evaluate,
  'report': _report,
  'predict': _model,
  'viz': _viz,
  'inspect': _inspect,
  'data': _data,
}


def check(args: argparse.Namespace):
  """Raises UserError for a flag that has no effect beside the others.

  Args:
    args: parsed, with `overrides`.
  """
  if args.command in _CHECKS:
    _CHECKS[args.command](args)
