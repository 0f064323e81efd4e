"""timm's names of architectures, and the arguments that each stands for."""

import re
from typing import Any

# embed_dim, depth, num_heads, width of the MLP.
SIZES = {
  'tiny': (192, 12, 3, 768),
  'xsmall': (256, 10, 4, 1024),
  'wee': (256, 14, 4, 1280),
  'little': (320, 14, 5, 1792),
  'small': (384, 12, 6, 1536),
  'medium': (512, 12, 8, 2048),
  'mediumd': (512, 20, 8, 2048),
  'betwixt': (640, 12, 10, 2560),
  'base': (768, 12, 12, 3072),
  'base_plus': (896, 12, 14, 3584),
  'large': (1024, 24, 16, 4096),
  'so400m': (1152, 27, 16, 4304),
  'huge': (1280, 32, 16, 5120),
  'giant': (1408, 40, 16, 6144),
  'giantopt': (1536, 40, 16, 6144),
  'gigantic': (1664, 48, 16, 8192),
  'dinov2_giant': (1536, 40, 24, 4096),
  'dinov3_huge': (1280, 32, 20, 5120),
  '7b': (4096, 40, 32, 8192),
}

# What is written, the first of the nearest. timm knows others.
NAMES = re.findall(
  r'\S+',
  """
vit_base_patch16_224 vit_base_patch16_384 vit_base_patch32_224
vit_base_patch32_384 vit_base_patch8_224 vit_tiny_patch16_224
vit_tiny_patch16_384 vit_small_patch16_224 vit_small_patch16_384
vit_small_patch32_224 vit_small_patch32_384 vit_small_patch8_224
vit_large_patch16_224 vit_large_patch16_384 vit_large_patch32_224
vit_large_patch32_384 vit_large_patch14_224 vit_huge_patch14_224
vit_giant_patch14_224 vit_gigantic_patch14_224
vit_base_patch16_gap_224 vit_huge_patch14_gap_224 vit_giant_patch16_gap_224
vit_medium_patch16_reg4_gap_256 vit_base_patch16_reg4_gap_256
deit_tiny_distilled_patch16_224 deit_small_distilled_patch16_224
deit_base_distilled_patch16_224 deit_base_distilled_patch16_384
deit3_small_patch16_224 deit3_small_patch16_384 deit3_medium_patch16_224
deit3_base_patch16_224 deit3_base_patch16_384 deit3_large_patch16_224
deit3_large_patch16_384 deit3_huge_patch14_224
flexivit_small flexivit_base flexivit_large
vit_small_patch14_dinov2 vit_base_patch14_dinov2 vit_large_patch14_dinov2
vit_giant_patch14_dinov2 vit_small_patch14_reg4_dinov2
vit_base_patch14_reg4_dinov2 vit_large_patch14_reg4_dinov2
vit_giant_patch14_reg4_dinov2
vit_base_patch16_dinov3 vit_base_patch16_dinov3_qkvb vit_small_patch16_dinov3
vit_small_patch16_dinov3_qkvb vit_small_plus_patch16_dinov3
vit_small_plus_patch16_dinov3_qkvb vit_large_patch16_dinov3
vit_large_patch16_dinov3_qkvb vit_huge_plus_patch16_dinov3
vit_huge_plus_patch16_dinov3_qkvb vit_7b_patch16_dinov3
vit_base_patch16_siglip_224 vit_base_patch16_siglip_256
vit_base_patch16_siglip_384 vit_base_patch16_siglip_512
vit_base_patch32_siglip_256 vit_large_patch16_siglip_256
vit_large_patch16_siglip_384 vit_large_patch16_siglip_512
vit_so400m_patch14_siglip_224 vit_so400m_patch14_siglip_378
vit_so400m_patch16_siglip_256 vit_so400m_patch16_siglip_384
vit_so400m_patch16_siglip_512 vit_giantopt_patch16_siglip_256
vit_giantopt_patch16_siglip_384
vit_base_patch16_clip_224 vit_base_patch16_clip_384 vit_base_patch32_clip_224
vit_large_patch14_clip_224 vit_large_patch14_clip_336
vit_huge_patch14_clip_224 vit_giant_patch14_clip_224
vit_gigantic_patch14_clip_224 vit_base_patch32_clip_quickgelu_224
vit_base_patch16_clip_quickgelu_224 vit_large_patch14_clip_quickgelu_224
vit_large_patch14_clip_quickgelu_336 vit_huge_patch14_clip_quickgelu_224
vit_base_r50_s16_224 vit_base_r50_s16_384 vit_base_r26_s32_224
vit_tiny_r_s16_p8_224 vit_tiny_r_s16_p8_384 vit_small_r26_s32_224
vit_small_r26_s32_384 vit_large_r50_s32_224 vit_large_r50_s32_384
""",
)

_KINDS = ('vit', 'deit', 'deit3', 'flexivit')
_WORDS = (
  *('plus', 'distilled', 'clip', 'quickgelu', 'siglip', 'gap', 'map'),
  *('dinov2', 'dinov3', 'qkvb', 'miil'),
)
_STEMS = {('r', 16): 'R', ('r26', 32): 'R26', ('r50', 32): 'R50'}
_STEMS |= {('r50', 16): 'R50-3'}
POOLS = {'token': 'cls', 'avg': 'mean', 'map': 'map', '': 'none'}
GELUS = {'gelu': 'exact', 'gelu_tanh': 'tanh', 'quick_gelu': 'quick'}
_DEFAULTS = {
  'in_chans': 3,
  'class_token': True,
  'global_pool': 'token',
  'fc_norm': False,
  'pre_norm': False,
  'no_embed_class': False,
  'reg_tokens': 0,
  'init_values': False,  # whether there are any
  'qkv_bias': True,
  'qk_norm': False,
  'act_layer': 'gelu',
  'pos_embed': 'learn',
  'pool_include_prefix': False,
  'rope_temperature': 100.0,
}


def words(name: str) -> tuple[str, str, set[str], dict[str, int]] | None:
  """Kind, size, words and numbers of a name; None: none that is known here.

  'vit_base_patch16_clip_224.openai' is 'vit', 'base', {'clip'} and {'patch':
  16, 'image': 224}.
  """
  kind, *rest = name.partition('.')[0].split('_')
  size, *rest = rest or ['']
  known, numbers = set(), {}
  for word in rest:
    match = re.fullmatch(r'(patch|reg|s|p|(?=\d))(\d+)', word)
    if match:
      numbers[match[1] or 'image'] = int(match[2])
    elif word in _WORDS or word in ('r', 'r26', 'r50'):
      known.add(word)
    else:
      return None
  if 'plus' in known and 'dinov3' not in known:
    size += '_plus'
  if kind not in _KINDS or size not in SIZES:
    return None
  return kind, size, known, numbers


def siglip_act(size: str, patch: int, image: int) -> str:
  """timm's GELU for its SigLIPs; Google trained all of them with the tanh."""
  late = patch == 32 or size == 'giantopt' or (size, image) == ('large', 512)
  return 'gelu_tanh' if late or (size, patch) == ('so400m', 16) else 'gelu'


def _features(
  kind: str, size: str, has: set[str], registers: int
) -> dict[str, Any]:
  """The arguments that the words of a name change."""
  args, gap = dict(_DEFAULTS), 'gap' in has
  if kind in ('deit3', 'flexivit'):
    args |= {'no_embed_class': True, 'init_values': kind == 'deit3'}
  if size == 'base_plus' and 'clip' not in has:
    args['init_values'] = True
  if 'dinov2' in has:
    args |= {'init_values': True, 'no_embed_class': bool(registers)}
  if 'dinov3' in has:
    args |= {'init_values': True, 'global_pool': 'avg'}
    args['qkv_bias'] = 'qkvb' in has
  if gap or {'siglip', 'map'} & has:
    args |= {'class_token': False, 'global_pool': 'avg' if gap else 'map'}
  if gap and registers:  # timm's own recipes
    args |= {'no_embed_class': True, 'fc_norm': True}
    args['init_values'] = size != 'base'
  elif gap and size in ('medium', 'betwixt'):
    args |= {'qkv_bias': False, 'init_values': True}
  if 'clip' in has:
    args['pre_norm'] = True
    args['act_layer'] = 'quick_gelu' if 'quickgelu' in has else 'gelu'
  if 'miil' in has:
    args['qkv_bias'] = False
  return args


def implied(name: str) -> dict[str, Any] | None:
  """What a name, with or without a '.tag', stands for; None: unknown here."""
  found = words(name)
  if found is None:
    return None
  kind, size, has, numbers = found
  patch, image = numbers.get('patch', 16), numbers.get('image', 224)
  registers = 4 if 'dinov3' in has else numbers.get('reg', 0)
  stem = ''
  for word in ('r', 'r26', 'r50'):
    if word in has:
      stem = _STEMS.get((word, numbers.get('s', 0)), '')
      patch = numbers.get('p', 1)
  if kind == 'flexivit' or {'dinov2', 'dinov3'} & has:
    image = 240 if kind == 'flexivit' else 518 if 'dinov2' in has else 256
  row = size
  if ('dinov2' in has and size == 'giant') or (
    'dinov3' in has and size == 'huge'
  ):
    row = f'dinov{"2" if size == "giant" else "3"}_{size}'
  width, depth, heads, hidden = SIZES[row]
  if (size, patch) == ('base', 16) and 'gap' in has:
    heads = 12 if registers or 'siglip' in has else 16
  swiglu = row in ('dinov2_giant', '7b') or {'plus', 'dinov3'} <= has
  args = _features(kind, size, has, registers)
  if 'siglip' in has:
    args['act_layer'] = siglip_act(size, patch, image)
  return args | {
    'embed_dim': width,
    'depth': depth,
    'num_heads': heads,
    'hidden': hidden,
    'patch_size': patch,
    'img_size': (image, image),
    'reg_tokens': registers,
    'eps': 1e-5 if {'clip', 'dinov3'} & has else 1e-6,
    'swiglu': swiglu,
    'rope': 'dinov3' in has,
    'distilled': 'distilled' in has,
    'stem': stem,
  }
