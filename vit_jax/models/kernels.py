"""Attention by fused kernels, and which of them a model gets where.

XLA's attention (attention.py) writes the weights (N, N) of every head to memory
and reads them back. A fused kernel keeps them on the chip, a block at a time,
and computes them again for the gradient (arXiv 2205.14135): the same function
up to rounding, with no weights to look at. (The one for MLPs: mlp.py.)
"""

import functools
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from absl import logging
from jaxtyping import Array, Float

from vit_jax import sharding

Kind = Literal['auto', 'xla', 'cudnn', 'splash', 'short']

_MADE_FOR = {'cudnn': 'gpu', 'splash': 'tpu', 'short': 'tpu'}

# Of splash: a TPU's vector unit has so many lanes, and lengths are multiples of
# it; a block of this side, its gradient included, still fits the memory of a
# v5e's vector unit in float32.
_LANES, _BLOCK = 128, 1024

# Tokens from which 'auto' takes splash on TPUs where short does not do, and how
# many times as many they may be with their padding. By `plan` for a v5e it
# moves more bytes than XLA at 196 tokens, padded to 256, and fewer at 256 and
# 576 (docs/scaling.md); of 512 and more padding adds a quarter at most.
_LONG, _PADDED = 256, 1.25

# Tokens up to which six arrays of a head, (N, N) in float32, fit on the chip.
_SHORT = 640


def refusal(kernel: str, dtype: str, width: int) -> str:
  """Why a kernel cannot take heads of that width, or ''."""
  if kernel == 'cudnn' and dtype not in ('bfloat16', 'float16'):
    return f"cudnn takes dtype = 'bfloat16', not {dtype!r}"
  if kernel == 'cudnn' and (width % 8 or width > 128):
    return (
      'cudnn takes heads of a width that is a multiple of 8, at most 128, not '
      f'{width}'
    )
  if kernel == 'splash' and width > 256:
    return f'splash takes heads of a width of at most 256, not {width}'
  if kernel == 'short' and width % _LANES and _LANES % width:
    return f'short takes heads of a width that divides {_LANES}, not {width}'
  return ''


def _too_much(width: int, tokens: int, heads: int) -> str:
  """Why 'short' cannot take such a sequence, or ''."""
  if heads * width % _LANES:
    return f'short takes whole {_LANES} columns, not {heads} heads of {width}'
  if tokens > _SHORT:
    return f'short takes {_SHORT} tokens at most, not {tokens}'
  return ''


def _missing(dtype: str, width: int) -> str:
  """Why the GPUs that are here have no cuDNN attention, or ''."""
  qkv = [jax.ShapeDtypeStruct((1, 8, 1, width), dtype)] * 3
  try:  # jax looks for the library, and knows what it takes
    jax.eval_shape(cudnn, *qkv)
  except (RuntimeError, NotImplementedError) as error:
    return str(error).rstrip('.')
  found = jax.local_devices(backend='gpu')[0].compute_capability
  if float(found) < 8:
    return f'cudnn needs compute capability 8.0, this GPU has {found}'
  return ''


def _best(platform: str, dtype: str, width: int, tokens: int, heads: int):
  """What 'auto' means."""
  if platform == 'gpu':
    return 'cudnn'
  if platform != 'tpu':
    return 'xla'
  why = refusal('short', dtype, width) or _too_much(width, tokens, heads)
  if dtype == 'bfloat16' and not why:
    return 'short'
  padded = -(-tokens // _LANES) * _LANES
  fits = tokens >= _LONG and padded <= _PADDED * tokens
  return 'splash' if fits else 'xla'


def choose(
  asked: str, platform: str, dtype: str, width: int, tokens: int, heads: int
) -> tuple[str, str]:
  """The kernel, of KERNELS or 'xla'; and if it is a substitute, why.

  Args:
    asked: one of Kind.
    platform: 'cpu', 'gpu' or 'tpu'.
    dtype: of queries, keys and values.
    width: K, of a head.
    tokens: N.
    heads: H that a device has.
  """
  shape = (width, tokens, heads)
  kernel = _best(platform, dtype, *shape) if asked == 'auto' else asked
  if kernel == 'xla':
    return 'xla', ''
  why = refusal(kernel, dtype, width)
  if _MADE_FOR[kernel] != platform:
    why = f'{kernel} is for {_MADE_FOR[kernel].upper()}s, this is a {platform}'
  elif kernel == 'cudnn' and not why:
    why = _missing(dtype, width)
  elif kernel == 'short' and not why:
    why = _too_much(*shape)
  return ('xla', why) if why else (kernel, '')


@functools.cache
def say(what: str, why: str):
  """A line of the log, once: it is computed by XLA, and why."""
  logging.warning('%s: %s: xla', what, why)


def device() -> tuple[str, str]:
  """'cpu', 'gpu' or 'tpu', and the kind of the devices that are compiled for.

  A mesh that is set tells, be it of devices that are not here (`plan`).
  """
  found = jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
  platform = {'cuda': 'gpu', 'rocm': 'gpu'}.get(found.platform, found.platform)
  return platform, found.device_kind


def pick(asked: Kind, query: Float[Array, 'B N H K']) -> str:
  """The kernel for such queries on the devices that are compiled for.

  What cannot be had is replaced by 'xla', with one line of the log.
  """
  _, tokens, heads, width = query.shape
  ways = sharding.ways('tensor')
  heads = heads if heads % ways else heads // ways
  shape = (width, tokens, heads)
  kernel, why = choose(asked, device()[0], str(query.dtype), *shape)
  if why:
    say('attention', why)
  return kernel


def _divided(
  kernel: Callable[..., Array], query: Array, key: Array, value: Array
) -> Array:
  """Runs a kernel on what each device has of the batch and the heads.

  The compiler cannot divide what it cannot look into.
  """
  spec = sharding.heads_spec(query.shape)
  if spec is not None:
    kernel = jax.shard_map(
      kernel, in_specs=spec, out_specs=spec, check_vma=False
    )
  return kernel(query, key, value)


def cudnn(
  query: Float[Array, 'B N H K'],
  key: Float[Array, 'B N H K'],
  value: Float[Array, 'B N H K'],
) -> Float[Array, 'B N H K']:
  """Attention by cuDNN, on GPUs: in float16 or bfloat16.

  Its gradient is for even lengths (jax 0.10 takes every call for one with a
  bias): an odd one is padded by a token, which is masked.
  """
  tokens = query.shape[1]
  padding = ((0, 0), (0, tokens % 2), (0, 0), (0, 0))

  def attend(*qkv: Array) -> Array:
    lengths = None
    if tokens % 2:
      lengths = jnp.full(qkv[0].shape[:1], tokens, jnp.int32)
    y = jax.nn.dot_product_attention(
      *(jnp.pad(x, padding) for x in qkv),
      query_seq_lengths=lengths,
      key_value_seq_lengths=lengths,
      implementation='cudnn',
    )
    return y[:, :tokens]

  return _divided(attend, query, key, value)


def blocks(tokens: int) -> tuple[int, int]:
  """(side of a block, length after padding) for splash.

  As few blocks as may be, of equal sides: 197 -> (256, 256), 1025 -> (640,
  1280).
  """
  count = math.ceil(tokens / _BLOCK)
  side = math.ceil(tokens / count / _LANES) * _LANES
  return side, count * side


def splash(
  query: Float[Array, 'B N H K'],
  key: Float[Array, 'B N H K'],
  value: Float[Array, 'B N H K'],
  interpret: bool = False,
) -> Float[Array, 'B N H K']:
  """Attention by the Pallas kernel for TPUs that comes with JAX.

  Its lengths are multiples of 128: tokens are padded, and what is padding is a
  segment of its own, of which no token sees anything.

  Args:
    query: queries, key: keys, value: values.
    interpret: runs the kernel step by step, on any platform.
  """
  # Most runs do without its 0.15 s.
  from jax.experimental.pallas.ops.tpu import splash_attention

  tokens, width = query.shape[1], query.shape[-1]
  side, length = blocks(tokens)
  sizes = splash_attention.BlockSizes(
    block_q=side,
    block_kv=side,
    block_q_dkv=side,
    block_kv_dkv=side,
    use_fused_bwd_kernel=True,  # 5 products of matrices, not 7
  )
  segments = None
  if length > tokens:
    ids = (jnp.arange(length) >= tokens).astype(jnp.int32)
    segments = splash_attention.SegmentIds(ids, ids)

  def attend(*qkv: Array) -> Array:
    full = splash_attention.FullMask((length, length))
    kernel = splash_attention.make_splash_mha_single_device(
      splash_attention.MultiHeadMask([full] * qkv[0].shape[2]),
      block_sizes=sizes,
      interpret=interpret,
    )
    padding = ((0, 0), (0, 0), (0, length - tokens), (0, 0))
    padded = [jnp.pad(x.swapaxes(1, 2), padding) for x in qkv]
    y = jax.vmap(kernel, (0, 0, 0, None))(*padded, segments)
    return y[:, :, :tokens].swapaxes(1, 2)

  # The kernel does not divide by √K.
  query = query * jnp.asarray(width**-0.5, query.dtype)
  return _divided(attend, query, key, value)


def short(
  query: Float[Array, 'B N H K'],
  key: Float[Array, 'B N H K'],
  value: Float[Array, 'B N H K'],
  interpret: bool = False,
) -> Float[Array, 'B N H K']:
  """Attention by our Pallas kernel for TPUs, of sequences that are short.

  Args:
    query: queries, key: keys, value: values.
    interpret: runs the kernel step by step, on any platform.
  """
  from vit_jax.models.short import attend  # Pallas: see `splash`

  width = query.shape[-1]

  def whole(*qkv: Array) -> Array:
    rows = [x.reshape(*x.shape[:2], -1) for x in qkv]
    # As the projections made them: nothing is copied.
    y = attend(jnp.concatenate(rows, -1), width, interpret)
    return y.reshape(qkv[0].shape)

  return _divided(whole, query, key, value)


KERNELS = {'cudnn': cudnn, 'splash': splash, 'short': short}
