"""`plan`: what is read of a compiled step, topologies, the mesh, the search.

The compilers for TPUs and GPUs are in test_plan_compilers.py.
"""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from vit_jax import config as config_lib
from vit_jax import plan, sharding, trees
from vit_jax.cli import main
from vit_jax.data import ops
from vit_jax.errors import UserError
from vit_jax.models import encoder, flops
from vit_jax.plan import collectives, compiled, costs, hlo, search
from vit_jax.plan import topology as topologies
from vit_jax.plan.hardware import GIB, HARDWARE
from vit_jax.setup import Setup, stated_info

CPU8 = topologies.parse('cpu:8')


def program_of(setup):
  step = compiled._compile(setup, CPU8)
  return hlo.Program(step.as_text()), step


def sent(program, slice_of=(0,) * 8):
  """Bytes of each kind of collective, and of all."""
  result = {}
  for t in collectives.transfers(program, slice_of):
    result[t.op] = result.get(t.op, 0) + t.times * (t.links + t.network)
  return result, sum(result.values())


# The text of programs, by hand.

LOOP = """HloModule jit_step, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%condition (s: (s32[], f32[128,256])) -> pred[] {
  %s = (s32[], f32[128,256]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %limit = s32[] constant(12)
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}

%body (s: (s32[], f32[128,256])) -> (s32[], f32[128,256]) {
  %s = (s32[], f32[128,256]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[128,256]{1,0:T(8,128)S(1)} get-tuple-element(%s), index=1
  %sum = f32[128,256]{1,0} all-reduce(%x), channel_id=1, GROUPS, to_apply=%add
  %step = s32[] constant(1)
  %more = s32[] add(%i, %step)
  ROOT %next = (s32[], f32[128,256]{1,0}) tuple(%more, %sum)
}

ENTRY %main (x: f32[128,256]) -> f32[128,256] {
  %x = f32[128,256]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %start = (s32[], f32[128,256]{1,0}) tuple(%zero, %x)
  %loop = (s32[], f32[128,256]{1,0}) while(%start), condition=%condition, BODY
  ROOT %y = f32[128,256]{1,0} get-tuple-element(%loop), index=1
}
"""
BYTES = 4 * 128 * 256

# The text of `splash_attention`: an attribute has a line of its own.
SPLASH = """HloModule jit_step

ENTRY %main (q: bf16[8,6,256,64]) -> f32[8,6,256,128] {
  %q = bf16[8,6,256,64]{3,2,1,0} parameter(0)
  %info = s8[1,1,1]{2,1,0} constant({ { {1} } })
  %splash_mha_fwd_segmented_residuals.1 = (bf16[8,6,256,64]{3,2,1,0}, f32[8,6,256,128]{3,2,1,0}) custom-call(%info, %q, %q, %q), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 256}"
}}, metadata={op_name="jit(step)/pallas_call"}
  %y = bf16[8,6,256,64]{3,2,1,0} get-tuple-element(%splash_mha_fwd_segmented_residuals.1), index=0
  %splash_mha_dkv_no_residuals.2 = (bf16[8,1,6,256,64]{4,3,2,1,0}, bf16[8,6,256,64]{3,2,1,0}, bf16[8,6,256,64]{3,2,1,0}) custom-call(%info, %y, %y, %y), custom_call_target="tpu_custom_call"
  ROOT %sums = f32[8,6,256,128]{3,2,1,0} get-tuple-element(%splash_mha_fwd_segmented_residuals.1), index=1
}
"""  # noqa: E501


def loop(groups='replica_groups={{0,1,2,3},{4,5,6,7}}', body='', text=LOOP):
  text = text.replace('GROUPS', groups).replace('BODY', 'body=%body' + body)
  return hlo.Program(text)


def test_a_loop_counts_as_often_as_it_runs():
  once = 2 * 3 / 4 * BYTES  # a ring of four
  assert sent(loop())[0] == {'all-reduce': 12 * once}
  known = ', backend_config={"known_trip_count":{"n":"5"}}'
  assert sent(loop(body=known))[0] == {'all-reduce': 5 * once}
  for step, rounds in ((2, 6), (5, 3), (12, 1)):  # unrolled: it counts by more
    text = LOOP.replace('constant(1)', f'constant({step})')
    assert sent(loop(text=text))[0] == {'all-reduce': rounds * once}
  endless = loop(text=LOOP.replace('constant(12)', 'parameter(1)'))
  assert sent(endless)[0] == {'all-reduce': once}
  assert endless.endless == {'loop'} and not loop().endless


@pytest.mark.parametrize(
  'text, expected',
  [
    ('replica_groups={{0,1},{2,3}}', [[0, 1], [2, 3]]),
    ('replica_groups=[2,4]<=[8]', [[0, 1, 2, 3], [4, 5, 6, 7]]),
    ('replica_groups=[2,4]<=[4,2]T(1,0)', [[0, 2, 4, 6], [1, 3, 5, 7]]),
    ("replica_groups=mesh['a'=2,'b'=4] {'b'}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
    ("replica_groups=mesh['a'=4] {'a':(1)2}", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=4] {'a':(2)2}", [[0, 1], [2, 3]]),
    ('replica_groups={}', [[0, 1, 2, 3]]),
  ],
)
def test_groups(text, expected):
  assert collectives.groups(text + ', more={}', 4).tolist() == expected


def test_what_crosses_slices_is_told_apart():
  everyone = loop('replica_groups=[1,8]<=[8]')
  (t,) = collectives.transfers(everyone, [0] * 4 + [1] * 4)
  assert t.links == 2 * 3 / 4 * BYTES  # within each slice
  assert t.network == 2 * (BYTES / 4) / 2  # a quarter, each to one other
  (within,) = collectives.transfers(loop(), [0] * 4 + [1] * 4)
  assert within.network == 0
  (one,) = collectives.transfers(everyone, [0] * 8)
  assert one.links == t.links + t.network


@pytest.mark.parametrize('op', collectives.OPS)
@pytest.mark.parametrize('members, slices', [(8, 1), (8, 2), (16, 4)])
def test_slices_send_what_one_would(op, members, slices):
  alone = collectives._sent(op, 1600, members, 1)
  assert sum(collectives._sent(op, 1600, members, slices)) == alone[0] > 0


def test_a_collective_in_several_fusions_counts_once():
  """As TPUs have it: start, middle and end, of one channel."""
  fused = """HloModule m

%part (p: f32[8]) -> f32[64] {
  %p = f32[8]{0} parameter(0)
  ROOT %g = f32[64]{0} all-gather(%p), channel_id=7, replica_groups=[1,8]<=[8]
}

%end (p: f32[8]) -> f32[64] {
  %p = f32[8]{0} parameter(0)
  ROOT %g = f32[64]{0} all-gather(%p), channel_id=CH, replica_groups=[1,8]<=[8]
}

%all-reduce-scatter (p: f32[64]) -> f32[8] {
  %p = f32[64]{0} parameter(0)
  %r = f32[64]{0} all-reduce(%p), channel_id=9, replica_groups=[1,8]<=[8]
  %zero = s32[] constant(0)
  ROOT %s = f32[8]{0} dynamic-slice(%r, %zero), dynamic_slice_sizes={8}
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %a = f32[64]{0} fusion(%x), kind=kLoop, calls=%part
  %b = f32[64]{0} fusion(%x), kind=kLoop, calls=%end
  ROOT %c = f32[8]{0} fusion(%b), kind=kCustom, calls=%all-reduce-scatter
}
"""
  gathered, scattered = 7 * 32, 7 / 8 * 256
  same = sent(hlo.Program(fused.replace('CH', '7')))[0]
  assert same == {'all-gather': gathered, 'reduce-scatter': scattered}
  other = sent(hlo.Program(fused.replace('CH', '8')))[0]
  assert other == {'all-gather': 2 * gathered, 'reduce-scatter': scattered}


def test_traffic_of_slices_updates_and_memory_on_the_chip():
  text = """HloModule m

%outer (q: f32[12,64], j: s32[]) -> f32[64] {
  %q = f32[12,64]{1,0} parameter(0)
  %j = s32[] parameter(1)
  ROOT %f = f32[64]{0} fusion(%q, %j), kind=kLoop, calls=%read
}

%read (p: f32[12,64], i: s32[]) -> f32[64] {
  %p = f32[12,64]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %s = f32[1,64]{1,0} dynamic-slice(%p, %i, %zero), dynamic_slice_sizes={1,64}
  ROOT %b = f32[64]{0} bitcast(%s)
}

%write (p: f32[12,64], v: f32[64], i: s32[]) -> f32[12,64] {
  %p = f32[12,64]{1,0} parameter(0)
  %v = f32[64]{0} parameter(1)
  %i = s32[] parameter(2)
  %zero = s32[] constant(0)
  %b = f32[1,64]{1,0} bitcast(%v)
  ROOT %u = f32[12,64]{1,0} dynamic-update-slice(%p, %b, %i, %zero)
}

ENTRY %main (p: f32[12,64], i: s32[]) -> f32[12,64] {
  %p = f32[12,64]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %row = f32[64]{0:T(128)S(1)} fusion(%p, %i), kind=kLoop, calls=CALLED
  ROOT %q = f32[12,64]{1,0} fusion(%p, %row, %i), kind=kLoop, calls=%write
}
"""
  row, index = 4 * 64, 4
  for called in ('%read', '%outer'):  # TPUs have fusions in fusions
    program = hlo.Program(text.replace('CALLED', called))
    # Read a row, write it; write a row, read it; and the index twice.
    assert costs.traffic(program, on_chip=False) == 4 * row + 2 * index
    assert costs.traffic(program, on_chip=True) == 2 * row + 2 * index


# A step of the small model on simulated devices.


def setup_of(**overrides):
  values = {
    'model.width': '32',
    'model.depth': '2',
    'model.heads': '2',
    'model.unroll': '1',
    'ema': '0',
    'batch_size': '512',
  }
  values |= {k.replace('__', '.'): v for k, v in overrides.items()}
  config = config_lib.load('configs/digits.py', list(values.items()))
  return Setup(config, devices=jax.devices())


@pytest.fixture(scope='module')
def looped():
  """(setup, program, compiled): a loop over the layers, FSDP."""
  setup = setup_of(mesh__data='1', mesh__fsdp='8')
  return setup, *program_of(setup)


@pytest.fixture(scope='module')
def flat():
  """(setup, program, compiled): no loop, data parallel."""
  setup = setup_of(model__unroll='0')
  return setup, *program_of(setup)


def test_costs_of_loops_are_those_of_no_loops(looped, flat):
  truth = flat[2].cost_analysis()  # nothing to correct
  found = costs.flops(looped[1])
  assert costs.flops(flat[1]) == pytest.approx(truth['flops'], rel=1e-3)
  assert found == pytest.approx(truth['flops'], rel=0.05)
  assert looped[2].cost_analysis()['flops'] < 0.8 * truth['flops']
  model, size = flat[0].model, flat[0].info.size
  of = flops.forward(model, size, 1, train=True)
  analytic = flops.TRAINING * sum(of.values()) * 512 / 8
  assert analytic < found < 1.5 * analytic
  moved = costs.traffic(flat[1], on_chip=False)
  assert moved == pytest.approx(truth['bytes accessed'], rel=0.15)


def test_attention_kernels_of_tpus_are_counted():
  program = hlo.Program(SPLASH)
  assert 'sums' in program.computations['main']  # it was read to the end
  product = 2 * 8 * 6 * 256 * 256 * 64
  # XLA has -1 for a call that it does not know.
  assert costs.flops(program) == pytest.approx((2 + 5) * product, abs=2)
  other = SPLASH.replace('splash_mha_', 'other_')
  assert costs.flops(hlo.Program(other)) == pytest.approx(0, abs=2)


def test_data_parallelism_sums_each_gradient_once(flat):
  setup, program, _ = flat
  count = 4 * trees.count(setup.abstract_state.params)
  moved, total = sent(program)
  assert total == moved['all-reduce']
  assert total == pytest.approx(2 * 7 / 8 * count, rel=0.01)


def test_sharded_parameters_are_gathered_not_activations(looped, monkeypatch):
  """FSDP, with and without the constraint on the residual stream."""
  setup, program, step = looped
  count = 4 * trees.count(setup.abstract_state.params)
  moved, total = sent(program)
  assert moved['all-gather'] > 0.5 * count and total < 5 * count
  monkeypatch.setattr(encoder, 'constrain', lambda x: x)
  without, wasteful = program_of(
    Setup(setup.config, setup.info, devices=jax.devices())
  )
  assert sent(without)[1] > 1.5 * total
  temporaries = step.memory_analysis().temp_size_in_bytes
  assert wasteful.memory_analysis().temp_size_in_bytes > temporaries


def test_the_abstract_batch_is_the_loaders(small_config):
  for on_error in ('raise', 'skip'):
    setup = Setup(small_config(**{'data.on_error': on_error}))
    batch = setup.loader('train', setup.train_source).train_batch(0)
    assert batch.keys() == setup.abstract_batch.keys()
    for name, leaf in setup.abstract_batch.items():
      got = batch[name]
      assert (got.shape, got.dtype) == (leaf.shape, leaf.dtype)
      assert got.sharding.is_equivalent_to(leaf.sharding, got.ndim)


# Topologies, the mesh, and what cannot be.


@pytest.mark.parametrize(
  'text, kind, shape, slices, count',
  [
    ('v5e:4x4', 'v5e', (4, 4), 1, 16),
    ('2xv5p:2x2x2', 'v5p', (2, 2, 2), 2, 16),
    ('tpu7x:2x2x1', 'tpu7x', (2, 2, 1), 1, 4),
    ('h100:8', 'h100', (8,), 1, 8),
    ('16xa100:8', 'a100', (8,), 16, 128),
  ],
)
def test_topologies(text, kind, shape, slices, count):
  t = topologies.parse(text)
  assert (t.kind, t.shape, t.slices) == (kind, shape, slices)
  assert t.count == count


@pytest.mark.parametrize(
  'text, words',
  [
    ('v5f:4x4', ("'v5f'", "Did you mean 'v5p'", 'v6e')),
    ('v5e', ("'v5e'", 'KIND:SHAPE')),
    ('v5e:', ('KIND:SHAPE',)),
    ('0xv5e:4x4', ('KIND:SHAPE',)),
    ('h100:2x8', ("'2xh100:8'",)),
    ('h100:16', ('8 GPUs at most', "'2xh100:8'")),
  ],
)
def test_a_topology_that_is_none(text, words):
  with pytest.raises(UserError) as error:
    topologies.parse(text)
  assert all(word in str(error.value) for word in words), error.value


@dataclasses.dataclass(frozen=True)
class Fake:
  """As much of a device as a mesh asks for."""

  id: int
  slice_index: int
  platform: str = 'cpu'
  device_kind: str = 'fake'
  process_index: int = 0


def mesh_of(slices, **axes):
  devices = [Fake(i, i // (16 // slices)) for i in range(16)]
  mesh = sharding.make_mesh({'data': 1, 'fsdp': 1, 'tensor': 1} | axes, devices)
  return np.vectorize(lambda d: d.slice_index)(mesh.devices)


def test_the_mesh_crosses_slices_by_data_first():
  by_data = mesh_of(4, data=4, fsdp=2, tensor=2)
  assert (by_data == np.arange(4)[:, None, None]).all()
  both = mesh_of(4, data=2, fsdp=8)  # what data cannot, fsdp does
  assert {len(set(row.flat)) for row in both} == {2}
  assert len(set(both.flat)) == 4
  tensor = mesh_of(2, data=-1, tensor=8)
  assert (tensor == tensor[:, :, :1]).all()
  with pytest.raises(UserError, match='tensor has to stay'):
    mesh_of(2, tensor=16)


def test_every_number_has_a_source():
  for name, h in HARDWARE.items():
    assert h.source and h.flops >= h.flops32 > 0 and h.memory > GIB, name
    for shape in h.shapes:
      assert topologies.parse(f'{name}:{shape}').kind == name
    if h.platform == 'tpu':  # of a chip, as its page has it
      chip = 2 if 'two devices' in h.source else 1
      for value in (chip * h.flops / 1e12, chip * h.bandwidth / 1e9):
        assert f'{value:g}' in h.source.replace(',', ''), (name, value)
    elif h.platform == 'cuda':
      assert h.memory == h.target['memory'] * 3 // 4
      assert f'{h.links * 2 / 1e9:g} GB/s' in h.source.replace(
        '1.8 TB', '1800 GB'
      )


# The command.

SMALL = ['--config.model.width=32', '--config.model.heads=2']
SMALL += ['--config.model.depth=1', '--config.batch_size=32']


def run(capsys, root, *args):
  config = f'--config={root}/configs/digits.py'
  code = main(['plan', config, *SMALL, *args])
  return code, *capsys.readouterr()


def test_plan_as_json_and_as_a_table(capsys, root, monkeypatch):
  code, out, err = run(
    capsys, root, '--topology=cpu:8', '--config.mesh.fsdp=2', '--json'
  )
  assert code == 0, err
  result = json.loads(out)
  (report,) = result['plans']
  assert report['mesh'] == {'data': 4, 'fsdp': 2, 'tensor': 1}
  memory, limit = report['memory'], HARDWARE['cpu'].memory
  assert memory['optimizer'] > 2 * memory['parameters'] > result['parameters']
  assert memory['parameters'] < 4 * result['parameters']  # fsdp divides them
  used = ('arguments', 'outputs', 'temporaries', 'program')
  whole = sum(memory[name] for name in used) - memory['reused']
  assert memory['total'] == whole < memory['limit'] == limit
  seconds = report['seconds']
  assert seconds['step'] == seconds[report['bound']] == max(seconds.values())
  images = report['images_per_second'] * seconds['step']
  assert images == pytest.approx(32)
  assert report['days'] * 24 * 8 == pytest.approx(report['device_hours'])
  assert report['device_hours'] * 3600 == pytest.approx(
    seconds['step'] * report['steps'] * 8
  )
  assert report['collectives']['all-gather']['times'] > 0
  assert report['fits']
  report = report | {'fits': False}
  monkeypatch.setattr(plan, 'estimate', lambda setup, topology: report)
  code, out, _ = run(capsys, root, '--topology=cpu:8', '--topology=cpu:4')
  assert code == 0 and out.count('\nfits: no  cpu:8: does not fit') == 2
  assert 'temporaries' in out and 'all-gather' in out and 'days' in out


@pytest.mark.parametrize(
  'args, words',
  [
    ([], '--topology is missing'),
    (['--topology=v5q:4x4'], "Did you mean 'v5p'"),
    (['--topology=cpu:8', '--config.mesh.fsdp=3'], 'config.mesh'),
    (['--topology=cpu:8', '--config.batch_size=33'], 'config.batch_size = 33'),
    (['--topology=cpu:8', '--config.model.depht=3'], "'depth'"),
    (['--topology=2xcpu:2'], 'of one node'),
    (
      ['--topology=cpu:8', '--search', '--config.batch_size=33'],
      'no mesh of the 8 devices',
    ),
  ],
)
def test_mistakes_are_told(capsys, root, args, words):
  code, _, err = run(capsys, root, *args)
  assert code == 2 and words in err and 'Traceback' not in err
  assert err.startswith('vit_jax: ') and err.count('\n') == 1


@pytest.mark.parametrize(
  'topology, extra', [('v5e:4x4', 'plan-tpu'), ('h100:8', 'plan-gpu')]
)
def test_a_missing_compiler(capsys, root, topology, extra, monkeypatch):
  def missing(name):
    if name.startswith('jax_plugins'):
      raise ModuleNotFoundError(name)

  monkeypatch.setattr(topologies.importlib.util, 'find_spec', missing)
  code, _, err = run(capsys, root, f'--topology={topology}')
  assert code == 2 and err.count('\n') == 1
  assert f"pip install 'vit_jax[{extra}]'" in err
  extras = (root / 'pyproject.toml').read_text()
  assert f'{extra} = [' in extras


@pytest.mark.parametrize(
  'message, expected',
  [
    (
      'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory '
      'in memory space hbm. Used 24.90G of 15.75G hbm. Exceeded hbm capacity '
      'by 9.15G.',
      (24.9, 15.75),
    ),
    (
      'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required '
      'for HLO temporaries (500.00G) exceeds available HBM (95.74G).',
      (500.0, 95.74),
    ),
    ('INTERNAL: Used 24.90G of 15.75G hbm', None),
  ],
)
def test_what_a_compiler_says_of_memory(message, expected):
  got = compiled.exceeded(message)
  assert got == (expected and tuple(int(n * GIB) for n in expected))


# The search, with steps that follow its estimates.


@pytest.fixture(scope='module')
def known(looped):
  """All ways to run it on eight devices, with estimates."""
  return list(search.ways(looped[0], CPU8, jax.devices()))


@pytest.fixture
def tries(looped, known, monkeypatch):
  """A function from the hardware's memory, and how true the estimates are."""

  def go(limit, seconds=lambda way: way.seconds, memory=lambda way: way.memory):
    small = dataclasses.replace(HARDWARE['cpu'], memory=limit)
    monkeypatch.setitem(HARDWARE, 'cpu', small)
    monkeypatch.setattr(search, 'ways', lambda *args: known)

    def estimate(made, topology):
      values = config_lib.flat(made.config)
      (way,) = (
        w for w in known if all(str(values[k]) == v for k, v in w.overrides)
      )
      return {
        'way': way,
        'fits': memory(way) <= limit,
        'memory': {'total': memory(way)},
        'seconds': {'step': seconds(way)},
      }

    monkeypatch.setattr(search, 'estimate', estimate)
    calls = []
    reports = search.search(
      looped[0], CPU8, jax.devices(), lambda *args: calls.append(args[:2])
    )
    assert len(calls) == len(reports) <= search.TRIES
    return reports

  return go


def test_the_fastest_that_fits_is_found(tries, known):
  best = tries(2 * GIB)[0]
  assert best['way'].seconds == min(w.seconds for w in known)
  assert best['way'].remat == 'none' and best['way'].accumulate == 1
  limit = int(sorted(w.memory for w in known)[5])
  best = tries(limit)[0]
  fast = min(w.seconds for w in known if w.memory <= limit)
  assert best['fits'] and best['way'].seconds == fast
  assert best['way'].accumulate > 1 or best['way'].remat != 'none'


def test_the_search_learns_from_what_it_compiles(tries, known):
  """Memory is 40 % more than estimated; the first way is ten times slower."""
  limit = int(sorted(w.memory for w in known)[20])
  reports = tries(limit, memory=lambda way: 1.4 * way.memory)
  assert not reports[-1]['fits'] and reports[0]['fits']
  assert sum(not r['fits'] for r in reports) == 1
  first = tries(2 * GIB)[0]['way']
  slow = lambda way: way.seconds * (10 if way == first else 1)  # noqa: E731
  reports = tries(2 * GIB, slow)
  assert len(reports) > 1 and reports[0]['way'] != first


def test_nothing_is_compiled_that_is_surely_slower(tries, known):
  reports = tries(int(sorted(w.memory for w in known)[20]))
  ways = [r['way'] for r in reports if r['fits']]
  assert not any(a.frugal(b) for a in ways for b in ways if a is not b)


# The recipes that are there to be planned.


@pytest.mark.parametrize(
  'name, parameters, steps',
  [
    ('vit_i1k', 22e6, 112_603),
    ('vit_g14', 1.9e9, 311_949),
    ('vit_22b', 22.4e9, 177_000),
  ],
)
def test_recipes_to_plan_need_no_data(root, name, parameters, steps):
  config = config_lib.load(f'{root}/configs/{name}.py')
  setup = Setup(config, stated_info(config), devices=jax.devices()[:1])
  count = trees.count(setup.abstract_state.params)
  assert count == pytest.approx(parameters, rel=0.02)
  assert setup.total == steps
  for group in ('train', 'test'):
    ops.build(f'config.data.{group}.ops', config.data[group].ops)
  assert math.prod(setup.abstract_batch['image'].shape[1:]) == 224 * 224 * 3
  unstated = search.apply(config, [('data.examples', '0')])
  assert stated_info(unstated) is None


def test_plan_opens_no_data(root, monkeypatch):
  """The config states what is needed: nothing is read."""
  config = config_lib.load(
    f'{root}/configs/vit_i1k.py', [('model.depth', '1'), ('size', '32')]
  )
  seen = []
  monkeypatch.setattr(plan, 'estimate', lambda s, t: seen.append(s) or REPORT)
  result = plan.run(config, ['cpu:8'])
  assert result['examples'] == 1_281_167 and result['classes'] == 1000
  assert seen[0].mesh.size == 8 and not hasattr(seen[0], 'train_source')


REPORT = {'parameters': 1, 'fits': False}


@pytest.mark.parametrize(
  'text, near',
  [('v5e:4x4x4', '4x4'), ('v5e:2x6', '2x4'), ('v5p:4x4', '4x4x4')],
)
def test_slices_that_do_not_exist(text, near):
  """libtpu ends the process for some, and plans others."""
  with pytest.raises(UserError, match=f'has no slices of .*{near}'):
    topologies.parse(text)
  topologies.parse(f'{text.partition(":")[0]}:{near}')
