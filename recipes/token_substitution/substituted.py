"""A tied model whose new rows alone are trained: what a token costs it, in the rows' two roles apart."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from xai_utils.errors import UserError
from xai_utils.models.adapters import embedding_matrix


class Substituted(nn.Module):
    """A tied causal model whose rows `rows` are a parameter of their own, float32; all else is frozen.

    Logits are computed for the kept rows and the new rows apart, so that the frozen part needs no gradient of its own.
    With `among`, the ids that a text to train on holds, probability is shared among them and the new tokens alone:
    in the training for two cores three in four kept tokens never occur, and their logits are a fifth of the work.
    """

    place: Tensor
    kept: Tensor

    def __init__(
        self,
        model: PreTrainedModel,
        rows: list[int],
        start: Float[Tensor, "rows hidden"],
        among: Int[Tensor, " token"] | None = None,
    ):
        super().__init__()
        if not model.config.tie_word_embeddings:
            raise UserError(
                "the base's output head is not tied to its embedding; expected a tied model; "
                "here one row serves a token in both roles"
            )
        self.body: nn.Module = model.requires_grad_(False).eval().model
        weight = embedding_matrix(model)
        kept = torch.full((len(weight),), among is None)
        if among is not None:
            kept[among] = True
        kept[rows] = False
        place = torch.full((len(weight),), -1)  # an id that is not `among` the text's has no place
        place[kept] = torch.arange(int(kept.sum()))
        place[rows] = int(kept.sum()) + torch.arange(len(rows))
        self.register_buffer("place", place.to(weight.device))
        self.register_buffer("kept", weight[kept.to(weight.device)].clone())
        order = torch.tensor(rows).argsort()
        assert torch.equal(order, torch.arange(len(rows))), "rows must be in ascending order"
        self.rows = nn.Parameter(start.detach().float().to(weight.device, copy=True))

    def without_place(self, ids: Int[Tensor, "window position"]) -> list[int]:
        """Ids that are neither new nor `among` those that share probability."""
        seen = ids.unique()
        return seen[self.place[seen.to(self.place.device)].cpu() < 0].tolist()

    def hidden(self, ids: Int[Tensor, "sequence position"]) -> Float[Tensor, "sequence position hidden"]:
        """The body's last hidden states."""
        slot = self.place[ids] - len(self.kept)
        new = F.embedding(slot.clamp(min=0), self.rows).to(self.kept.dtype)
        embeds = torch.where(
            (slot >= 0)[..., None], new, F.embedding(self.place[ids].clamp(max=len(self.kept) - 1), self.kept)
        )
        return self.body(inputs_embeds=embeds, use_cache=False).last_hidden_state

    def features(self, ids: Int[Tensor, "sequence position"]) -> "Features":
        """What the surprise of every token but the first depends on beside the rows' output role."""
        states = self.hidden(ids)[:, :-1]
        old = (states @ self.kept.T).float()
        place = self.place[ids[:, 1:]]
        own = old.gather(-1, place.clamp(max=len(self.kept) - 1)[..., None])[..., 0]
        slot = (place - len(self.kept)).clamp(min=-1)
        return Features(states, slot, old.logsumexp(-1), torch.where(slot < 0, own, 0.0))

    def surprise(self, ids: Int[Tensor, "sequence position"]) -> Float[Tensor, "sequence position-1"]:
        """-log p of every token but the first, in nats, float32."""
        return output_surprise(self.rows, self.features(ids))


class Features(NamedTuple):
    """Positions as the output role sees them: hidden state [... hidden], place of the next token among the rows (-1:
    a kept token), the kept rows' log-sum-exp, and the next token's logit where it is a kept one (else 0), [...]."""

    state: Tensor
    slot: Tensor
    kept_sum: Tensor
    kept_logit: Tensor


def output_surprise(rows: Float[Tensor, "rows hidden"], at: Features) -> Float[Tensor, " ..."]:
    """-log p of the next token, in nats, as a function of the new rows alone where the features are fixed."""
    new = at.state.float() @ rows.T
    own = torch.where(at.slot >= 0, new.gather(-1, at.slot.clamp(min=0)[..., None])[..., 0], at.kept_logit)
    return torch.logaddexp(new.logsumexp(-1), at.kept_sum) - own
