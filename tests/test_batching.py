"""Any number of samples through a graph of a fixed batch, and no answer to padding leaves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from se_deploy import batching
from se_deploy.errors import BadData
from se_deploy.protocols import TensorSpec


class Frozen:
    """A session with a fixed batch that doubles rows, and counts what it was fed."""

    def __init__(self, size, outputs):
        self.size, self.outputs_of, self.fed = size, outputs, []

    @property
    def inputs(self):
        return (
            TensorSpec("x", np.dtype(np.float16), (self.size, 3)),
            TensorSpec("a", np.dtype(np.float32), ()),
        )

    @property
    def outputs(self):
        return ()

    def run(self, feeds):
        assert feeds["x"].dtype == np.float16
        self.fed.append(len(feeds["x"]))
        return {"y": self.outputs_of(feeds["x"] * feeds["a"])}


@given(size=st.integers(1, 5), count=st.integers(1, 13), rows=st.integers(1, 3))
def test_every_sample_is_answered_once_and_in_order(size, count, rows):
    session = Frozen(size, lambda x: np.repeat(x, rows, axis=0))
    x = np.arange(count * 3, dtype=np.float32).reshape(count, 3)
    made = batching.run(session, {"x": x, "a": np.float32(2.0) * np.ones((), np.float32)})["y"]
    np.testing.assert_array_equal(made, np.repeat(x * 2, rows, axis=0))
    assert set(session.fed) == {size}


def test_an_output_without_a_row_for_each_sample_is_refused_only_where_there_is_padding():
    session = Frozen(4, lambda x: x.sum(keepdims=True).reshape(1))
    x, a = np.ones((6, 3), np.float32), np.ones((), np.float32)
    with pytest.raises(BadData, match="no row for each sample"):
        batching.run(session, {"x": x, "a": a})
    assert batching.run(session, {"x": x[:4], "a": a})["y"] == [12.0]


def test_a_free_batch_is_run_once():
    session = Frozen(None, lambda x: x)
    batching.run(session, {"x": np.ones((6, 3), np.float32), "a": np.ones((), np.float32)})
    assert session.fed == [6]
