"""Kept states and gradient checkpointing.

``torch.utils.checkpoint`` forgets what a forward pass computed and repeats it during the backward pass. By then a
neuron that keeps its state has gone on: a repeated call would start where the first one ended, and give wrong gradients
without a word. A neuron that always started from rest can do so again. For any other, what a call started from is lost.
"""

from __future__ import annotations

import torch
from torch import Tensor

_library = torch.library.Library("pmsn_plugins", "FRAGMENT")
_library.define("not_repeated(Tensor x) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))


class KeepsState:
    """Mixin for a module that keeps its state between calls."""

    _without_kept_state: str
    """How to use the neuron without a kept state."""

    _has_continued = False
    """Whether any call started from a kept state rather than from rest."""

    _given_in = -1
    """The backward pass in which the kept state was last set from outside, by someone who knows what it was."""

    @staticmethod
    def in_backward() -> bool:
        """Whether a backward pass runs, in whose middle nothing must be kept."""
        return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1

    def _repeated(self, continues: bool) -> bool:
        """Whether a call repeats an earlier one: then it must start from rest, and keep nothing.

        Args:
            continues: whether the call would start from a kept state.

        Raises:
            RuntimeError: it is repeated, and may have started from a kept state.
        """
        if torch.compiler.is_compiling():
            if continues:
                self._has_continued = True
            return False
        backward = torch._C._current_graph_task_id()
        if backward in (-1, self._given_in):
            # no backward pass comes to what is computed in inference mode; and setting takes as long as ten questions
            if continues and not self._has_continued and not torch.is_inference_mode_enabled():
                self._has_continued = True
            return False
        if self._has_continued:
            raise RuntimeError(
                f"{type(self).__name__} is called again inside a backward pass, as gradient checkpointing "
                "(torch.utils.checkpoint) does, but has gone on from a kept state before: the state that the first "
                f"call started from is lost, and gradients would be wrong. {self._without_kept_state}"
            )
        return True

    def _checked_when_run(self, x: Tensor) -> Tensor:
        """``x``, in torch.compile with a test at run time that no backward pass runs: it compiles only one branch."""
        if torch.compiler.is_dynamo_compiling() and torch.is_grad_enabled():
            return x - torch.ops.pmsn_plugins.not_repeated(x.detach())
        return x


def _not_repeated(x: Tensor) -> Tensor:
    """A zero of the dtype of ``x``."""
    if torch._C._current_graph_task_id() != -1:
        raise RuntimeError(
            "a compiled neuron that keeps its state is called inside a backward pass, as gradient checkpointing "
            "(torch.utils.checkpoint) does: the state that the first call started from is lost, and gradients would be "
            "wrong. Use keep_state=False (SpikingJelly), or init_hidden=False and pass the state explicitly (snnTorch)"
        )
    return x.new_zeros(())


_library.impl("not_repeated", _not_repeated, "CompositeExplicitAutograd")
torch.library.register_fake("pmsn_plugins::not_repeated", lambda x: x.new_empty(()), lib=_library)
