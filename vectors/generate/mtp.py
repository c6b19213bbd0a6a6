"""The multi-token-prediction layer, which transformers leaves out, from transformers' own layer classes.

Position i takes the last layer's streams at i and the id of token i+1 and predicts token i+2:
x_j = e_proj·RMSNorm_e(embed(id)) + h_proj·RMSNorm_h(streams_j), one decoder layer (window attention, top-k router), its own head
collapse and norm, then the model's head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from checkpoint import Release, layer_state, load_state, transformers_config


class MtpLayer(nn.Module):
    def __init__(self, model: nn.Module, release: Release, index: int = 0) -> None:
        super().__init__()
        prefix = f"mtp.{index}."
        body = model.model
        config = transformers_config(release.config, extra_layers=1)
        config._attn_implementation = "eager"
        config._experts_implementation = "eager"
        self.window = config.sliding_window
        self.embed, self.head, self.rotary = body.embed_tokens, model.lm_head, body.rotary_emb
        self.layer = type(body.layers[0])(config, config.num_hidden_layers - 1).float()
        self.hc_head = type(body.hc_head)(config).float()
        norm = type(body.norm)
        self.enorm, self.hnorm, self.norm = (norm(config.hidden_size, eps=config.rms_norm_eps) for _ in range(3))
        self.e_proj, self.h_proj = (nn.Linear(config.hidden_size, config.hidden_size, bias=False) for _ in range(2))
        load_state(self.layer, layer_state(release, prefix), str(release.folder))
        load_state(
            self.hc_head, {f"hc_{part}": release.tensor(f"{prefix}hc_head_{part}") for part in ("fn", "base", "scale")}, str(release.folder)
        )
        for name in ("enorm", "hnorm", "norm", "e_proj", "h_proj"):
            load_state(getattr(self, name), {"weight": release.tensor(f"{prefix}{name}.weight")}, str(release.folder))
        self.eval().to(self.head.weight.device)

    @torch.no_grad()
    def forward(self, input_ids: Tensor, streams: Tensor) -> Tensor:
        """input_ids [S], streams [S][hc][D] after the last layer -> logits [S-1][V]."""
        ids, streams = input_ids[None, 1:], streams[None, :-1]
        tokens = ids.shape[1]
        hidden = self.e_proj(self.enorm(self.embed(ids))).unsqueeze(2) + self.h_proj(self.hnorm(streams))
        positions = torch.arange(tokens, device=ids.device)[None]
        distance = positions[0, :, None] - positions[0, None, :]
        mask = torch.zeros(tokens, tokens, device=ids.device)
        mask = mask.masked_fill((distance < 0) | (distance >= self.window), float("-inf"))
        hidden = self.layer(
            hidden,
            position_embeddings={"main": self.rotary(hidden, position_ids=positions, layer_type="main")},
            position_ids=positions,
            attention_mask=mask[None, None],
            input_ids=ids,
            past_key_values=None,
        )
        return self.head(self.norm(self.hc_head(hidden)))[0]


def has_mtp(release: Release) -> bool:
    return "mtp.0.e_proj.weight" in release
