import numpy as np
import pytest

from se_deploy.quantization.im2col import ConvWindow


def test_windows_are_what_a_convolution_sees():
    x = np.arange(2 * 3 * 5 * 6, dtype=np.float32).reshape(2, 3, 5, 6)
    window = ConvWindow((2, 3), (2, 1), (1, 2), (1, 0, 0, 1))
    at = np.arange(window.count(x.shape))
    rows = window.rows(x, at)
    padded = np.pad(x, [(0, 0), (0, 0), (1, 0), (0, 1)])
    wanted = [
        padded[n, :, r * 2 : r * 2 + 2, c : c + 5 : 2].reshape(3, -1)
        for n in range(2)
        for r in range(3)
        for c in range(3)
    ]
    np.testing.assert_array_equal(rows, np.stack(wanted))


@pytest.mark.parametrize(("auto_pad", "pads"), [("SAME_UPPER", (0, 0, 1, 1)), ("SAME_LOWER", (1, 1, 0, 0))])
def test_a_window_with_auto_pad_pads_each_input_by_its_own_size(auto_pad, pads):
    free = ConvWindow((3, 3), (2, 2), (1, 1), (), auto_pad)
    for size, own in ((6, pads), (5, (1, 1, 1, 1))):
        x = np.random.default_rng(size).standard_normal((1, 2, size, size)).astype(np.float32)
        settled = ConvWindow((3, 3), (2, 2), (1, 1), own)
        at = np.arange(9)
        assert free.count(x.shape) == settled.count(x.shape) == 9
        np.testing.assert_array_equal(free.rows(x, at), settled.rows(x, at))


def test_a_fully_connected_layer_sees_rows():
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    window = ConvWindow((), (), (), (), axis=2)
    np.testing.assert_array_equal(window.rows(x, np.array([0, 4]))[:, :, 0], [x[0, 0], x[1, 1]])
