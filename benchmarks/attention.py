"""Attention by each kernel that runs here, forward and with its gradient.

XLA's as a model has it, JAX's own and flax's; cuDNN's and the Pallas kernels
where they run. One image-like batch for each length; the same random inputs.
"""

import functools
import os
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track

from benchmarks import measure
from vit_jax.models import kernels
from vit_jax.models.attention import attend

HEADS, WIDTH = 6, 64  # of S/16
LENGTHS = (197, 577, 1025)
DTYPES = ('float32', 'bfloat16')
_TOKENS = 1600  # of a batch, about
_ROUND = 0.3  # seconds
_ALLOWED = {'float32': 1e-4, 'bfloat16': 5e-2}

Attend = Callable[[Any, Any, Any], Any]


def candidates(dtype: str, tokens: int) -> dict[str, Attend]:
  """What runs on this machine's devices."""
  ways: dict[str, Attend] = {
    'xla': attend,
    'jax.nn': functools.partial(
      jax.nn.dot_product_attention, implementation='xla'
    ),
    'flax': nn.dot_product_attention,
  }
  platform = kernels.device()[0]
  for name, kernel in kernels.KERNELS.items():
    kind, _ = kernels.choose(name, platform, dtype, WIDTH, tokens, HEADS)
    if kind == name:
      ways[name] = kernel
  return ways


def _inputs(dtype: str, tokens: int) -> list[jax.Array]:
  rng = np.random.default_rng(tokens)
  shape = (max(1, _TOKENS // tokens), tokens, HEADS, WIDTH)
  return [jnp.asarray(rng.normal(size=shape), dtype) for _ in range(4)]


def _compiled(way: Attend) -> tuple[Callable, Callable]:
  """(forward; forward and the three gradients), of q, k, v, dy."""

  def gradient(query, key, value, dy):
    y, pull = jax.vjp(way, query, key, value)
    return y, *pull(dy)

  return jax.jit(lambda *qkvd: way(*qkvd[:3])), jax.jit(gradient)


def _check(
  ways: dict[str, tuple[Callable, Callable]], inputs: list, most: float
):
  """Raises AssertionError unless all give the same, gradients too."""
  wanted = None
  for name, (_, gradient) in ways.items():
    found = [np.asarray(x, np.float32) for x in gradient(*inputs)]
    wanted = wanted or found
    apart = max(
      np.abs(a - b).max() / np.abs(b).max()
      for a, b in zip(found, wanted, strict=True)
    )
    assert apart < most, f'{name} is another function: {apart:.2g}'


def _seconds(call: Callable, inputs: list, times: int) -> float:
  """Of a call, the mean of some after each other."""
  begun = time.perf_counter()
  for _ in range(times):
    jax.block_until_ready(call(*inputs))
  return (time.perf_counter() - begun) / times


def run(rounds: int, lengths: tuple[int, ...] = LENGTHS) -> dict[str, Any]:
  """Measures; the record."""
  load, rates, rows = os.getloadavg()[0], {}, []
  for tokens in track(lengths, 'measuring', transient=True):
    for dtype in DTYPES:
      inputs = _inputs(dtype, tokens)
      ways = {n: _compiled(way) for n, way in candidates(dtype, tokens).items()}
      _check(ways, inputs, _ALLOWED[dtype])
      seconds = {name: ([], []) for name in ways}
      for forward, _ in ways.values():  # compiles, as _check did the others
        jax.block_until_ready(forward(*inputs))
      # So many calls that a round takes about as long as that of any other.
      times = {
        name: [
          max(1, round(_ROUND / _seconds(call, inputs, 3))) for call in calls
        ]
        for name, calls in ways.items()
      }
      for _ in range(rounds):
        for name, calls in ways.items():
          every = zip(calls, times[name], seconds[name], strict=True)
          for call, count, kept in every:
            kept.append(_seconds(call, inputs, count))
      chosen, _ = kernels.choose(
        'auto', kernels.device()[0], dtype, WIDTH, tokens, HEADS
      )
      for name, kept in seconds.items():
        forward, both = (
          tokens * inputs[0].shape[0] / measure.median(one) for one in kept
        )
        auto = 'auto' if name == chosen else ''
        rows.append((tokens, dtype, name, forward / 1e3, both / 1e3, auto))
        key = f'{name}, {tokens} tokens, {dtype}'
        rates |= {f'{key}: forward': forward, f'{key}: gradient': both}
  columns = ('tokens', 'dtype', 'kernel', 'forward, 1000 tokens/s')
  columns += ('with gradient', '')
  return measure.record(
    'attention',
    load=load,
    about=f'{HEADS} heads of {WIDTH}, batches of about {_TOKENS} tokens, '
    f'medians of {rounds} rounds of {_ROUND} s, in turn',
    rates=rates,
    tables={'Attention': measure.table(columns, rows)},
  )
