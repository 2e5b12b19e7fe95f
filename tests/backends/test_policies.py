import pytest

from se_deploy.backends import registry
from se_deploy.errors import BadInput


def test_an_unknown_policy_is_refused_with_those_that_there_are():
    with pytest.raises(BadInput, match="no policy 'best'") as refused:
        registry.policy("best")
    assert "portable, tensorrt-rtx, tensorrt" in refused.value.hint


def test_a_policy_is_found_by_its_own_name():
    assert {name: policy.name for name, policy in registry.policies().items()} == {
        name: name for name in ("portable", "tensorrt-rtx", "tensorrt")
    }
