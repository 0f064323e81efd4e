"""Is one run better than another, or is it noise?"""

import dataclasses
from pathlib import Path

import numpy as np
from scipy import stats

from vit_jax.errors import UserError
from vit_jax.report.kept import check_same, origin_of
from vit_jax.report.runs import Group

RESAMPLES = 4000
_CHUNK = 200


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Mean difference of two groups in a metric, with its 95 % interval."""

  difference: float
  low: float
  high: float
  examples: int
  seeds: tuple[int, int]
  percent: bool  # a share of the examples, told in points
  warning: str = ''  # if it is not known whether the examples are the same

  @property
  def beyond_noise(self) -> bool:
    """Whether the interval leaves out no difference at all."""
    return self.low > 0 or self.high < 0


def paired_bootstrap(
  one: np.ndarray, other: np.ndarray, seed: int = 0, percent: bool = True
) -> Comparison:
  """Of two arrays (seeds, examples), the same examples in both.

  The noise of the examples is the spread of the mean difference over resamples
  of them, the same for both (Efron and Tibshirani, An Introduction to the
  Bootstrap, 1993). That of the seeds is added where there are several, by their
  variance and Student's t with Welch's degrees of freedom: to resample two or
  three seeds would make the interval far too narrow.
  """
  rng = np.random.default_rng(seed)
  each = one.mean(0) - other.mean(0)
  examples, means = len(each), []
  for _ in range(0, RESAMPLES, _CHUNK):
    counts = rng.multinomial(examples, np.full(examples, 1 / examples), _CHUNK)
    means.append(counts @ each / examples)
  variance = np.concatenate(means).var()
  freedom = 0.0  # the inverse of the degrees of freedom, times variance squared
  for group in (one, other):
    if len(group) > 1:
      own = group.mean(1).var(ddof=1) / len(group)
      variance += own
      freedom += own**2 / (len(group) - 1)
  degrees = variance**2 / freedom if freedom else np.inf
  margin = float(stats.t.ppf(0.975, degrees) * np.sqrt(variance))
  difference = float(each.mean())
  return Comparison(
    difference,
    difference - margin,
    difference + margin,
    examples,
    (len(one), len(other)),
    percent,
  )


def _load(
  group: Group, name: str
) -> tuple[np.ndarray, np.ndarray, dict[Path, tuple[str, str]]] | None:
  """((2, examples) records and labels, (seeds, examples) values of a metric).

  Of the runs that kept their examples, if those are the same ones; and the
  origins of their files.
  """
  which, values, origins = [], [], {}
  for run in group.done:
    if run.predictions.exists():
      with np.load(run.predictions) as file:
        if name not in file:
          return None
        # Those of segmentation keep no labels, but the pixels of each class.
        label = file['label'] if 'label' in file else file['true'].argmax(1)
        which.append(np.stack((file['record'], label)))
        values.append(file[name])
        origins[run.predictions] = origin_of(file)
  check_same(origins)
  if not which or not all(np.array_equal(w, which[0]) for w in which):
    return None
  return which[0], np.stack(values), origins


def compare(one: Group, other: Group) -> Comparison | None:
  """None where there are no two of the same examples.

  Raises:
    UserError: they are of different ones, by what their files tell.
  """
  metrics = {run.metric for g in (one, other) for run in g.done}
  if len(metrics) != 1:
    return None
  name = metrics.pop().rpartition('/')[2]
  found = [_load(group, name) for group in (one, other)]
  if any(f is None for f in found):
    return None
  (which, a, first_of), (others, b, second_of) = found
  warning = check_same(first_of | second_of)
  if not np.array_equal(which, others):
    return None
  kinds = a.astype(np.float64), b.astype(np.float64)
  result = paired_bootstrap(*kinds, percent=a.dtype == bool)
  return dataclasses.replace(result, warning=warning)


def sentence(one: Group, other: Group, of: int) -> str:
  """What can be said of the difference, and what cannot.

  Args:
    one: the better one.
    other: the other.
    of: how many groups `one` is the best of.
  """
  result, why = None, 'they did not keep the predictions of the same ones.'
  try:
    result = compare(one, other)
  except UserError as error:
    why = str(error)
  if result is None:
    return (
      f'{one.name or "A"} against {other.name or "B"}: not compared example by '
      f'example, for {why}'
    )
  a, b = result.seeds
  seeds = f' and {a} against {b} seeds' if max(a, b) > 1 else ''
  scale, digits = (100, 2) if result.percent else (1, 4)
  shown = [
    f'{scale * value:+.{digits}f}'
    for value in (result.difference, result.low, result.high)
  ]
  interval = (
    f'{shown[0]}{" points" if result.percent else ""}, 95 % interval '
    f'{shown[1]} to {shown[2]}, paired bootstrap over {result.examples:,} '
    f'examples{seeds}'
  )
  names = (
    f'{one.name or one.runs[0].path} against {other.name or other.runs[0].path}'
  )
  said = 'is beyond noise' if result.beyond_noise else 'is within noise'
  text = f'The difference of {names} {said} ({interval}).'
  if min(a, b) < 2:
    text += ' With one seed, how much another seed would change is not in it.'
  elif min(a, b) < 5:
    text += (
      f' With {min(a, b)} seeds the noise between seeds is known roughly only.'
    )
  if of > 2:
    text += (
      f' It is the best of {of}, picked by these same examples: part of its '
      'lead is luck.'
    )
  return f'{text} Warning: {result.warning}' if result.warning else text
