"""What training needs of a model."""

import torch
from torch import Tensor, nn


class Trainable(nn.Module):
    """The interface of a model that can be trained, as `star.model.LanguageModel` has it.

    It serves the type checker: any module with these two methods will do, and need not inherit from this class.
    """

    compute_dtype: torch.dtype | None  # of activations; set by `train`

    def loss(self, inputs: Tensor, targets: Tensor, /, reduction: str = "mean") -> Tensor:
        """Cross-entropy in nats of targets int64 [B, T]: a scalar, or [B, T] with reduction "none"."""
        raise NotImplementedError

    def parameter_groups(self) -> list[dict]:
        """Every parameter once, grouped by how it is trained; see `star.model.LanguageModel.parameter_groups`."""
        raise NotImplementedError
