"""How tensors lie in memory: packed and back is the same, and each element is where TensorRT looks for it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from se_deploy.backends.tensorrt import layouts
from se_deploy.errors import BadArtifact

DIMS = st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 4), st.integers(1, 4))


@pytest.mark.parametrize("name", layouts.FORMATS)
@given(dims=DIMS)
def test_packed_and_back_is_the_same(name, dims):
    layout = layouts.FORMATS[name]
    array = np.arange(np.prod(dims), dtype=np.float32).reshape(dims)
    packed = layout.packed(array)
    assert packed.shape == layout.shape(dims)
    assert packed.flags.c_contiguous
    np.testing.assert_array_equal(layout.unpacked(packed, dims[1]), array)


@given(dims=DIMS, data=st.data())
def test_elements_lie_where_the_documentation_says(dims, data):
    """HWC8: [N][H][W][(C+7)/8*8]; CHW4: [N][(C+3)/4][H][W][4], element c at [c/4] and [c%4]."""
    n, c, h, w = (data.draw(st.integers(0, d - 1)) for d in dims)
    array = np.random.default_rng(0).standard_normal(dims).astype(np.float16)
    assert layouts.FORMATS["HWC8"].packed(array)[n, h, w, c] == array[n, c, h, w]
    assert layouts.FORMATS["CHW4"].packed(array)[n, c // 4, h, w, c % 4] == array[n, c, h, w]


def test_linear_is_as_it_is_and_the_dlas_own_are_refused():
    assert layouts.layout_of("LINEAR", "x") is None
    with pytest.raises(BadArtifact, match="'x' lies in memory as DLA_LINEAR"):
        layouts.layout_of("DLA_LINEAR", "x")
