"""Few labels: as many of each class as config.data.train.per_class says."""

import numpy as np
import pytest

from vit_jax.data.few import Few
from vit_jax.data.sources import Digits
from vit_jax.errors import BadRecord, UserError
from vit_jax.setup import Setup


def test_the_first_of_each_class():
  whole = Digits('', 'train')
  few = Few(whole, 3, 'config.data.train.per_class')
  assert len(few) == 30 and few.classes == whole.classes
  labels = np.array([whole[i]['label'] for i in range(len(whole))])
  rows = np.concatenate([np.flatnonzero(labels == y)[:3] for y in range(10)])
  rows = sorted(map(int, rows))
  assert [few[i]['key'] for i in range(30)] == [whole[i]['key'] for i in rows]
  assert [few.key(i) for i in range(30)] == [whole.key(i) for i in rows]
  prints = {Few(whole, n, '').fingerprint for n in (1, 2, 3)}
  assert len(prints | {whole.fingerprint}) == 4


def test_bad_records_do_not_count(monkeypatch):
  read = Digits.__getitem__

  def damaged(self, index):
    if index == 0:
      raise BadRecord('number 0: not an image')
    return read(self, index)

  whole = Digits('', 'train')
  first = whole[0]['label']
  monkeypatch.setattr(Digits, '__getitem__', damaged)
  with pytest.raises(BadRecord, match='number 0'):
    Few(whole, 3, '')
  few = Few(whole, 3, '', 'skip')
  labels = [few[i]['label'] for i in range(30)]
  assert labels.count(first) == 3


def test_mistakes(small_config):
  with pytest.raises(UserError, match="per_class = 200: class '0' has only"):
    Setup(small_config(data__train__per_class='200'))
  with pytest.raises(UserError, match='per_class = -1: at least 1'):
    Setup(small_config(data__train__per_class='-1'))
