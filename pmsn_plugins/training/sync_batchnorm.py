"""Batch normalisation over the samples of all processes, on any device.

torch.nn.SyncBatchNorm works on GPUs only and takes no time axis; this one also works with gloo and in multi-step mode.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm


class SyncBatchNorm(_BatchNorm):
    """Normalises [N, C, *], or [T, N, C, *] with ``multi_step``, by mean and variance over everything but C.

    In training both come from all processes together; in evaluation they are the running ones, as usual.
    """

    multi_step = False

    def _check_input_dim(self, x: Tensor) -> None:
        if x.ndim < 2 or x.shape[1] != self.num_features:
            raise ValueError(
                f"expected {self.num_features} channels on axis 1 of [N, C, *], got shape {tuple(x.shape)}"
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.multi_step:
            return self._over_samples(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return self._over_samples(x)

    def _over_samples(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        self._check_input_dim(x)
        values = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        axes = [axis for axis in range(x.ndim) if axis != 1]
        shape = (1, -1) + (1,) * (x.ndim - 2)
        count = all_reduce(values.new_tensor(float(x.numel() // x.shape[1])))
        mean = all_reduce(values.sum(axes)) / count
        centred = values - mean.view(shape)
        variance = all_reduce(centred.square().sum(axes)) / count
        if self.track_running_stats:
            assert self.num_batches_tracked is not None and self.running_mean is not None
            assert self.running_var is not None
            with torch.no_grad():
                self.num_batches_tracked += 1
                weight = 1.0 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
                self.running_mean.lerp_(mean.to(self.running_mean), weight)
                self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var), weight)
        y = centred * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(x.dtype)


def convert_sync_batchnorm(net: nn.Module) -> nn.Module:
    """Replace every batch normalisation by one over all processes, with the same parameters; returns the net."""
    if isinstance(net, _BatchNorm):
        synced = SyncBatchNorm(net.num_features, net.eps, net.momentum, net.affine, net.track_running_stats)
        synced.multi_step = getattr(net, "step_mode", "s") == "m"
        synced._parameters, synced._buffers, synced.training = net._parameters, net._buffers, net.training
        return synced
    for name, child in net.named_children():
        setattr(net, name, convert_sync_batchnorm(child))
    return net
