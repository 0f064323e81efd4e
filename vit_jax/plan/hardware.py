"""Accelerators by name: published speeds and sizes, and what XLA asks of them.

Numbers are of one JAX device: of half a chip where JAX sees its two cores as
two devices (v3, tpu7x). A bound needs the most that hardware can do, so links
count in full and in one direction: half of the published "bidirectional".
"""

import dataclasses
from typing import Any, Literal

GB, TERA, GIB = 1e9, 1e12, 2**30

# The fields of XLA's GpuTargetConfigProto that its compiler asks for, as in
# openxla/xla, xla/backends/gpu/target_config/specs/*.txtpb.
TARGET = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {optin}
  threads_per_core_limit: 2048 core_count: {cores} fpus_per_core: {fpus}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth} l2_cache_size: {cache}
  clock_rate_ghz: {clock} device_memory_size: {memory}
  cuda_compute_capability {{ major: {major} minor: 0 }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{name}"
"""


@dataclasses.dataclass(frozen=True)
class Hardware:
  """What one device has and does.

  Attributes:
    platform: of JAX.
    flops: dense bfloat16 matrix products, FLOP/s.
    flops32: float32 ones as the compilers do them if not told otherwise: on
      TPUs in bfloat16, on GPUs in TF32.
    memory: bytes that a program may use. TPU: as libtpu 0.0.42 says when asked
      for more; GPU: the 75 % of the memory that JAX takes by default
      (XLA_PYTHON_CLIENT_MEM_FRACTION).
    bandwidth: of the memory, bytes/s.
    links: to devices of the same slice or node, bytes/s sent.
    network: to other slices or nodes, bytes/s sent; 0: not published.
    shapes: of slices, as published; libtpu has the last word.
    source: of all the above.
    target: what XLA wants to know of a GPU.
  """

  platform: Literal['tpu', 'cuda', 'cpu']
  flops: float
  flops32: float
  memory: int
  bandwidth: float
  links: float
  network: float
  shapes: tuple[str, ...]
  source: str
  target: dict[str, Any] = dataclasses.field(default_factory=dict)


_FLAT = ('1x1', '2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
_CUBES = ('2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8')
_CUBES += ('8x8x8', '8x8x16', '8x16x16')
_GPUS = ('1', '2', '4', '8')

HARDWARE = {
  'v3': Hardware(
    'tpu',
    flops=61.5 * TERA,
    flops32=61.5 * TERA,
    memory=int(15.48 * GIB),
    bandwidth=450 * GB,
    links=4 * 656e9 / 8 / 2,
    network=0.0,
    shapes=('2x2', '4x4', '4x8', '8x8', '8x16', '16x16'),
    source='cloud.google.com/tpu/docs/v3: 123 TFLOP/s, 32 GiB, 900 GB/s a chip '
    'of two devices; Jouppi et al., CACM 63(7), 2020: 4 links of 656 Gbit/s',
  ),
  'v4': Hardware(
    'tpu',
    flops=275 * TERA,
    flops32=275 * TERA,
    memory=int(30.75 * GIB),
    bandwidth=1200 * GB,
    links=6 * 50 * GB,
    network=0.0,
    shapes=_CUBES,
    source='cloud.google.com/tpu/docs/v4: 275 TFLOP/s, 32 GiB, 1200 GB/s; '
    'arXiv 2304.01433, table 4: 6 links of 50 GB/s',
  ),
  'v5e': Hardware(
    'tpu',
    flops=197 * TERA,
    flops32=197 * TERA,
    memory=int(15.75 * GIB),
    bandwidth=819 * GB,
    links=200 * GB,
    network=25e9 / 8,
    shapes=_FLAT,
    source='cloud.google.com/tpu/docs/v5e: 197 TFLOP/s, 16 GB, 819 GB/s, '
    '400 GB/s bidirectional; 2 NICs of 100 Gbit/s for 8 chips',
  ),
  'v5p': Hardware(
    'tpu',
    flops=459 * TERA,
    flops32=459 * TERA,
    memory=int(95.74 * GIB),
    bandwidth=2765 * GB,
    links=600 * GB,
    network=50e9 / 8,
    shapes=_CUBES,
    source='cloud.google.com/tpu/docs/v5p: 459 TFLOP/s, 95 GiB, 2765 GB/s, '
    '1200 GB/s bidirectional, DCN 50 Gbit/s',
  ),
  'v6e': Hardware(
    'tpu',
    flops=918 * TERA,
    flops32=918 * TERA,
    memory=int(31.25 * GIB),
    bandwidth=1638 * GB,
    links=400 * GB,
    network=100e9 / 8,
    shapes=_FLAT,
    source='cloud.google.com/tpu/docs/v6e: 918 TFLOP/s, 32 GB, 1638 GB/s, '
    '800 GB/s bidirectional; DCN 100 Gbit/s',
  ),
  'tpu7x': Hardware(
    'tpu',
    flops=2307 * TERA / 2,
    flops32=2307 * TERA / 2,
    memory=int(94.75 * GIB),
    bandwidth=7380 * GB / 2,
    links=600 * GB / 2,
    network=100e9 / 8 / 2,
    shapes=_CUBES,
    source='cloud.google.com/tpu/docs/tpu7x: 2307 TFLOP/s, 192 GiB, 7380 GB/s, '
    '1200 GB/s bidirectional, DCN 100 Gbit/s a chip of two devices',
  ),
  'a100': Hardware(
    'cuda',
    flops=312 * TERA,
    flops32=156 * TERA,
    memory=85_100_068_864 * 3 // 4,
    bandwidth=2039 * GB,
    links=300 * GB,
    network=200e9 / 8,
    shapes=_GPUS,
    source='NVIDIA A100 80 GB SXM datasheet: 312 TFLOP/s (TF32 156), 80 GB, '
    '2039 GB/s, NVLink 600 GB/s; DGX A100: a NIC of 200 Gbit/s for each GPU',
    target={
      'name': 'NVIDIA A100-SXM4-80GB',
      'major': 8,
      'cores': 108,
      'fpus': 64,
      'shared': 167936,
      'optin': 166912,
      'bandwidth': 2_039_040_000_000,
      'cache': 41_943_040,
      'clock': 1.41,
      'memory': 85_100_068_864,
    },
  ),
  'h100': Hardware(
    'cuda',
    flops=989.5 * TERA,
    flops32=494.7 * TERA,
    memory=84_942_979_072 * 3 // 4,
    bandwidth=3350 * GB,
    links=450 * GB,
    network=400e9 / 8,
    shapes=_GPUS,
    source='NVIDIA H100 SXM datasheet: 1979 TFLOP/s sparse (TF32 989), 80 GB, '
    '3.35 TB/s, NVLink 900 GB/s; DGX H100: a NIC of 400 Gbit/s for each GPU',
    target={
      'name': 'NVIDIA H100 80GB HBM3',
      'major': 9,
      'cores': 132,
      'fpus': 128,
      'shared': 233472,
      'optin': 232448,
      'bandwidth': 3_352_320_000_000,
      'cache': 52_428_800,
      'clock': 1.98,
      'memory': 84_942_979_072,
    },
  ),
  'b200': Hardware(
    'cuda',
    flops=2250 * TERA,
    flops32=1125 * TERA,
    memory=191_514_411_008 * 3 // 4,
    bandwidth=8000 * GB,
    links=900 * GB,
    network=400e9 / 8,
    shapes=_GPUS,
    source='NVIDIA HGX B200: 36 PFLOP/s sparse (TF32 18) for 8 GPUs, 180 GB, '
    '8 TB/s, NVLink 1.8 TB/s; DGX B200: a NIC of 400 Gbit/s for each GPU',
    target={
      'name': 'NVIDIA B200',
      'major': 10,
      'cores': 148,
      'fpus': 128,
      'shared': 233472,
      'optin': 232448,
      'bandwidth': 7_672_320_000_000,
      'cache': 132_644_864,
      'clock': 1.965,
      'memory': 191_514_411_008,
    },
  ),
  'cpu': Hardware(
    'cpu',
    flops=TERA,
    flops32=TERA,
    memory=2 * GIB,
    bandwidth=100 * GB,
    links=10 * GB,
    network=GB,
    shapes=('1', '2', '4', '8'),
    source='no such thing: simulated devices, with round numbers, to try plan',
  ),
}
