"""Scale and mask become tensors once, and each threat model is given its own, however it came to be."""

import pickle

import pytest
import torch

from tasks.attacks import ThreatModel
from tasks.attacks.features import KEPT, _made, mask_of, scale_of
from tasks.attacks.geometry import limits

SCALE, MASK = (0.5, 2.0, 1.0), (True, False, True)
THREAT = ThreatModel(eps=0.1, scale=SCALE, mask=MASK)
X = torch.zeros(2, 3)


@pytest.mark.parametrize("of", [scale_of, mask_of])
def test_the_same_threat_is_asked_twice_and_a_tensor_is_made_once(of):
    first, second = of(THREAT, X), of(THREAT.model_copy(update={"eps": 0.2}), X)
    assert first.data_ptr() == second.data_ptr()
    assert of(THREAT, X.double()).tolist() == first.tolist()


def test_a_copy_with_another_scale_or_mask_is_given_its_own():
    assert scale_of(THREAT, X).tolist() == [list(SCALE)]
    assert mask_of(THREAT, X).tolist() == [list(MASK)]
    other = THREAT.model_copy(update={"scale": (4.0, 4.0, 4.0), "mask": (False, True, False)})
    assert scale_of(other, X).tolist() == [[4.0, 4.0, 4.0]]
    assert mask_of(other, X).tolist() == [[False, True, False]]
    assert scale_of(other.model_copy(update={"scale": None}), X).tolist() == 1.0


def test_a_threat_that_was_asked_is_stored_compared_and_sent_as_one_that_was_not():
    fresh = ThreatModel(eps=0.1, scale=SCALE, mask=MASK)
    digest, hashed = fresh.digest, hash(fresh)
    limits(X, fresh)
    assert (fresh.digest, hash(fresh)) == (digest, hashed)
    assert fresh == ThreatModel(eps=0.1, scale=SCALE, mask=MASK)
    sent = pickle.loads(pickle.dumps(fresh))
    assert sent == fresh
    assert scale_of(sent, X).tolist() == [list(SCALE)]
    assert len(pickle.dumps(fresh)) == len(pickle.dumps(ThreatModel(eps=0.1, scale=SCALE, mask=MASK)))


def test_what_was_first_asked_for_without_gradients_serves_where_there_are_some():
    threat = THREAT.model_copy(update={"scale": (1.0, 2.0, 3.0)})
    with torch.inference_mode():
        scale_of(threat, X)
    x = torch.ones(1, 3, requires_grad=True)
    (x * scale_of(threat, x)).sum().backward()
    assert x.grad.tolist() == [[1.0, 2.0, 3.0]]


def test_no_more_tensors_are_kept_than_are_in_use():
    for i in range(3 * KEPT):
        scale_of(ThreatModel(eps=0.1, scale=(i + 1.0, 1.0, 1.0)), X)
    assert _made.cache_info().currsize <= KEPT
