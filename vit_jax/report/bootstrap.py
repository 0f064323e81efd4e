"""Is one run better than another, or is it noise?"""

import dataclasses

import numpy as np

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

  @property
  def beyond_noise(self) -> bool:
    """Whether the interval leaves out no difference at all."""
    return self.low > 0 or self.high < 0


def paired_bootstrap(
  one: np.ndarray, other: np.ndarray, seed: int = 0
) -> Comparison:
  """Of two arrays (seeds, examples), the same examples in both.

  Examples are drawn with replacement, the same for both; and the seeds of each,
  where there are several, so that the interval has both sources of noise
  (Efron and Tibshirani, An Introduction to the Bootstrap, 1993; percentile).
  """
  rng = np.random.default_rng(seed)
  examples = one.shape[1]
  found = []
  for _ in range(0, RESAMPLES, _CHUNK):
    counts = rng.multinomial(examples, np.full(examples, 1 / examples), _CHUNK)
    means = []
    for each in (one, other):
      seeds = rng.integers(len(each), size=(_CHUNK, len(each)))
      per_seed = counts @ each.T / examples  # (resamples, seeds)
      means.append(np.take_along_axis(per_seed, seeds, 1).mean(1))
    found.append(means[0] - means[1])
  low, high = np.percentile(np.concatenate(found), (2.5, 97.5))
  difference = one.mean() - other.mean()
  return Comparison(
    float(difference),
    float(low),
    float(high),
    examples,
    (len(one), len(other)),
  )


def _load(group: Group, name: str) -> tuple[np.ndarray, np.ndarray] | None:
  """(records, values (seeds, examples)), of runs that kept their examples."""
  kept = []
  for run in group.runs:
    if run.state == 'finished' and run.predictions.exists():
      with np.load(run.predictions) as file:
        if name not in file:
          return None
        kept.append((file['record'], file['label'], file[name]))
  if not kept:
    return None
  records, labels, _ = kept[0]
  for r, y, _ in kept:
    if not (np.array_equal(r, records) and np.array_equal(y, labels)):
      return None
  return labels, np.stack([v for *_, v in kept]).astype(np.float64)


def compare(one: Group, other: Group) -> Comparison | None:
  """None where the two were not evaluated on the same examples."""
  metrics = {run.metric for g in (one, other) for run in g.runs}
  if len(metrics) != 1:
    return None
  name = metrics.pop().rpartition('/')[2]
  found = [_load(group, name) for group in (one, other)]
  if any(f is None for f in found):
    return None
  (labels, a), (others, b) = found
  if not np.array_equal(labels, others):
    return None
  return paired_bootstrap(a, b)


def sentence(one: Group, other: Group, of: int) -> str:
  """What can be said of the difference, and what cannot.

  Args:
    one: the better one.
    other: the other.
    of: how many groups `one` is the best of.
  """
  result = compare(one, other)
  if result is None:
    return (
      f'{one.name or "A"} against {other.name or "B"}: not compared example by '
      'example, for they did not keep the predictions of the same ones.'
    )
  a, b = result.seeds
  seeds = f' and {a} against {b} seeds' if max(a, b) > 1 else ''
  interval = (
    f'{100 * result.difference:+.2f} points, 95 % interval '
    f'{100 * result.low:+.2f} to {100 * result.high:+.2f}, paired bootstrap '
    f'over {result.examples:,} examples{seeds}'
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
  return text
