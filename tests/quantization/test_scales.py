import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from se_deploy.quantization import scales


@given(st.floats(0, 1e6))
@hypothesis_settings(deadline=None, max_examples=60)
def test_scales_are_fp16_where_it_has_its_bits_and_never_0_or_infinite_there(scale):
    made = scales.representable(np.array([scale]))[0]
    assert 0 < np.float16(made) < np.inf
    assert abs(made - np.clip(scale, 2**-24, 65504)) <= scale * 2**-11
    if 2**-14 <= scale <= 65504:
        assert np.float64(np.float16(made)) == made


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0, 0, None), (-1, 1, None), (0, 65504 * 127, None), (0, 2**-24 * 127, None),
        (-65505 * 127, 0, "more than"), (0, 2**-24 * 126, "less than"), (-1e-12, 1e-13, "less than"),
    ],
)  # fmt: skip
def test_what_no_scale_serves_is_told(low, high, said):
    reason = scales.out_of_range(low, high, 127)
    assert (reason is None) if said is None else (said in reason)
