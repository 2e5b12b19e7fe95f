"""Every rewrite that there is, in the order in which chosen ones are applied."""

from __future__ import annotations

from se_deploy.passes.rewrites import (
    excite,
    gate,
    hoist,
    identity,
    layout,
    pad_hidden_units,
    prune_hidden_units,
    residual,
    squeeze,
    stem,
)
from se_deploy.passes.rewrites.base import Rewriter

REWRITES = (
    Rewriter(identity.NAME, "drop a slice that takes everything", identity.sites, identity.apply),
    Rewriter(
        prune_hidden_units.NAME,
        "remove hidden units that never change",
        prune_hidden_units.sites,
        prune_hidden_units.apply,
    ),
    Rewriter(
        pad_hidden_units.NAME,
        "an even number of hidden units",
        pad_hidden_units.sites,
        pad_hidden_units.apply,
    ),
    Rewriter(
        layout.BEHIND_DEPTHWISE,
        "concatenate behind the depthwise convolution",
        layout.behind_depthwise_sites,
        layout.behind_depthwise,
    ),
    Rewriter(residual.PADDED, "add a padded shortcut", residual.padded_sites, residual.padded),
    Rewriter(layout.SPLIT, "convolve a concatenation part by part", layout.split_sites, layout.split),
    Rewriter(
        hoist.POINTWISE, "squeeze before the linear 1x1 convolution", hoist.pointwise_sites, hoist.pointwise
    ),
    Rewriter(
        hoist.SAME_PADDED,
        "squeeze before the linear k x k convolution",
        hoist.same_padded_sites,
        hoist.same_padded,
    ),
    Rewriter(gate.BEHIND_POOL, "gate behind the pooling", gate.behind_pool_sites, gate.behind_pool),
    Rewriter(
        gate.PREVIOUS,
        "gate into the previous convolution's weights",
        gate.previous_sites,
        gate.previous,
        run_time_weights=True,
    ),
    Rewriter(
        gate.NEXT,
        "gate into the next convolution's weights",
        gate.next_sites,
        gate.next_conv,
        run_time_weights=True,
    ),
    Rewriter(
        gate.NEXT_BATCHED,
        "gate into the next 1x1 convolution as a product per image",
        gate.next_batched_sites,
        gate.next_batched,
        run_time_weights=True,
    ),
    Rewriter(
        residual.GATED,
        "a gated 1x1 convolution and its shortcut's as one",
        residual.gated_sites,
        residual.gated,
        run_time_weights=True,
    ),
    Rewriter(residual.NAME, "two added 1x1 convolutions as one", residual.sites, residual.apply),
    Rewriter(excite.NAME, "last layer as a sum that merges with the gate", excite.sites, excite.apply),
    Rewriter(
        squeeze.AVERAGE_POOL,
        "squeeze as an average pooling of the whole map",
        squeeze.average_pool_sites,
        squeeze.average_pool,
    ),
    Rewriter(squeeze.NHWC_MEAN, "squeeze as a mean in NHWC", squeeze.nhwc_mean_sites, squeeze.nhwc_mean),
    Rewriter(layout.COPY, "copy into a concatenation", layout.copy_sites, layout.copy),
    Rewriter(
        layout.CONVOLVE, "keep a wide 1x1 convolution a convolution", layout.convolve_sites, layout.convolve
    ),
    Rewriter(stem.NAME, "pixels folded into channels before the stem", stem.sites, stem.apply),
)
"""Every rewrite, in the order in which chosen ones are applied."""

NAMES = tuple(rewriter.name for rewriter in REWRITES)
