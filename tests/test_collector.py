"""The collector walks only what is new, and behind the block everything is as it was."""

import gc
import weakref

import pytest

from se_deploy import collector


class Ring:
    """Refers to itself, so that only the collector ends it."""

    def __init__(self):
        self.me = self


def ring():
    return weakref.ref(Ring())


@pytest.fixture(autouse=True)
def _by_hand():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_what_was_there_is_not_walked_and_what_is_new_is_collected():
    old = [Ring()]
    with collector.only_new():
        assert all(one is not old[0] for one in gc.get_objects())
        new = ring()
        gc.collect()
        assert new() is None
    assert any(one is old[0] for one in gc.get_objects())
    assert gc.get_freeze_count() == 0


def test_a_block_within_one_leaves_it_as_it_is():
    with collector.only_new():
        before = gc.get_freeze_count()
        with collector.only_new(drop_old=True):
            kept = Ring()
        assert gc.get_freeze_count() == before
        assert any(one is kept for one in gc.get_objects())


@pytest.mark.parametrize("drop_old", [False, True])
def test_old_garbage_stays_to_the_end_unless_it_is_dropped_first(drop_old):
    garbage = ring()
    with collector.only_new(drop_old=drop_old):
        gc.collect()
        assert (garbage() is None) == drop_old
    gc.collect()
    assert garbage() is None


def test_an_error_ends_it_too():
    with pytest.raises(KeyError), collector.only_new():
        raise KeyError
    assert gc.get_freeze_count() == 0
