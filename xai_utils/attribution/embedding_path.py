"""The straight path in embedding space from a baseline to the prompt: what integrated gradients integrate along."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from xai_utils.attribution.target import Objective


class EmbeddingPath:
    """F and the densities of its positions' scores between `start` (alpha 0) and the objective's own inputs (alpha 1).

    Positions in front of the first that moves are computed once.
    """

    def __init__(self, objective: Objective, start: Float[Tensor, "position hidden"]):
        self.objective, self.since = objective, objective.unchanged(start)
        self.start = start[self.since :]
        self.step = objective.inputs[self.since :] - self.start

    def values(self, alphas: Float[np.ndarray, " point"]) -> Float[np.ndarray, " point"]:
        """F at some points, without gradients."""
        return self.objective.values(self._points(alphas), self.since).double().cpu().numpy()

    def densities(
        self, alphas: Float[np.ndarray, " point"]
    ) -> tuple[Float[np.ndarray, " point"], Float[np.ndarray, "point position"]]:
        """F, and the gradient times the step, summed over the embedding axis."""
        values, gradients = self.objective.values_and_gradients(self._points(alphas), self.since)
        densities = torch.einsum("nph,ph->np", gradients.double(), self.step.double())
        return values.double().cpu().numpy(), np.pad(densities.cpu().numpy(), ((0, 0), (self.since, 0)))

    def _points(self, alphas: Float[np.ndarray, " point"]) -> Float[Tensor, "point position hidden"]:
        return self.start + torch.tensor(alphas).to(self.step)[:, None, None] * self.step
