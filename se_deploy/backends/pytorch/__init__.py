"""PyTorch, eager: the reference that every artifact is compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from se_deploy import extras
from se_deploy.backends.backend import Backend, Findings, SelfCheck

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from se_deploy.backends.backend import SessionOptions
    from se_deploy.frontend.zoo import Network
    from se_deploy.protocols import Session
    from se_deploy.quantization.reconstruction import Trainer


def _session(network: Network | torch.nn.Module, options: SessionOptions) -> Session:
    with extras.needed_for("a network"):
        from se_deploy.backends.pytorch import session

    return session.open_network(network, options)


def _trainer() -> Trainer:
    with extras.needed_for("--reconstruct"):
        from se_deploy.backends.pytorch import reconstruction

    return reconstruction.train


def _read(answer: Mapping[str, Any], gpu: str | None) -> Findings:  # noqa: ARG001 - it runs without one
    return Findings(str(answer["version"]), can_run=("networks by PyTorch",))


BACKEND = Backend(
    name="torch",
    title="PyTorch",
    install=extras.install("torch"),
    packages=("torch",),
    check=SelfCheck("import torch as m; print(json.dumps({'version': m.__version__}))", _read),
    network=_session,
    trainer=_trainer,
)
