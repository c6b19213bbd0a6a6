"""The official release format, decoded to float32, and the transformers model built from it.

A release is a folder with config.json and safetensors files: routed experts as FP4 (two e2m1 codes a byte) with a power-of-two
scale per 32 inputs, linears as FP8 e4m3 with a power-of-two scale per 128x128 block, the rest BF16, F32 or I64. An unquantised
release (all BF16 or F32) is the same folder without `.scale` tensors.
Everything is decoded exactly: a code times a power of two is a float32.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Iterator

import numpy as np

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], dtype=np.float32)
PLAIN_TYPES = {"F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I8": "i1", "U8": "u1"}
BYTE_TYPES = {"F8_E4M3": "u1", "F8_E8M0": "u1", "BF16": "<u2"}


def e4m3_table() -> np.ndarray:
    """All 256 values of FP8 e4m3 (no infinities; 0x7f and 0xff are NaN)."""
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    magnitude = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * np.exp2(exponent - 10.0))
    magnitude[(codes & 127) == 127] = np.nan
    return np.where(codes & 128, -magnitude, magnitude).astype(np.float32)


E4M3 = e4m3_table()


class CheckpointError(ValueError):
    """Bad input; the message names the file, the tensor, what was expected and what was found."""


class Release:
    """The tensors of a release folder by official name, decoded on access."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.files = sorted(self.folder.glob("*.safetensors"))
        if not self.files:
            raise CheckpointError(f"{self.folder}: expected *.safetensors, found none")
        config_path = self.folder / "config.json"
        if not config_path.is_file():
            raise CheckpointError(f"{config_path}: expected the model's config.json, found none")
        self.config_text = config_path.read_text()
        self.config: dict = json.loads(self.config_text)
        self._where: dict[str, tuple[Path, str, list[int], int, int]] = {}
        for path in self.files:
            with path.open("rb") as stream:
                size = int.from_bytes(stream.read(8), "little")
                header = json.loads(stream.read(size))
            for name, entry in header.items():
                if name != "__metadata__":
                    begin, end = entry["data_offsets"]
                    self._where[name] = (path, entry["dtype"], entry["shape"], 8 + size + begin, end - begin)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def names(self) -> Iterator[str]:
        """Every tensor but the scales, which belong to their weights."""
        return (name for name in self._where if not name.endswith(".scale"))

    def sha256(self) -> str:
        digest = hashlib.sha256()
        for path in self.files:
            digest.update(path.read_bytes())
        return digest.hexdigest()

    def _raw(self, name: str) -> tuple[str, np.ndarray]:
        if name not in self._where:
            raise CheckpointError(f"{self.folder}: tensor {name}: expected in the checkpoint, found none")
        path, dtype, shape, offset, size = self._where[name]
        kind = PLAIN_TYPES.get(dtype) or BYTE_TYPES.get(dtype)
        if kind is None:
            raise CheckpointError(f"{path}: tensor {name}: expected one of {sorted(PLAIN_TYPES | BYTE_TYPES)}, found {dtype}")
        data = np.memmap(path, dtype="u1", mode="r", offset=offset, shape=(size,)).view(kind)
        return dtype, np.array(data).reshape(shape)

    def tensor(self, name: str) -> np.ndarray:
        """float32 (or int64 for tables), shape [out, in] with FP4 unpacked."""
        dtype, raw = self._raw(name)
        scale_name = name.removesuffix(".weight") + ".scale"
        scaled = name.endswith(".weight") and scale_name in self
        if dtype == "BF16":
            return (raw.astype("<u4") << 16).view("<f4")
        if dtype == "F8_E4M3":
            return E4M3[raw] * self._scale(scale_name, raw.shape, 128, 128)
        if dtype in ("I8", "U8") and scaled:
            codes = raw.view("u1")
            values = np.empty((codes.shape[0], codes.shape[1] * 2), dtype=np.float32)
            values[:, 0::2], values[:, 1::2] = E2M1[codes & 15], E2M1[codes >> 4]
            return values * self._scale(scale_name, values.shape, 1, 32)
        return raw if raw.dtype.kind == "i" else raw.astype(np.float32)

    def _scale(self, name: str, shape: tuple[int, ...], rows: int, columns: int) -> np.ndarray:
        dtype, raw = self._raw(name)
        expected = (-(-shape[0] // rows), -(-shape[1] // columns))
        if dtype != "F8_E8M0" or raw.shape != expected:
            raise CheckpointError(f"{self.folder}: tensor {name}: expected F8_E8M0 {list(expected)}, found {dtype} {list(raw.shape)}")
        scale = np.exp2(raw.astype(np.float32) - 127)
        return np.repeat(np.repeat(scale, rows, axis=0), columns, axis=1)[: shape[0], : shape[1]]


# Official suffix -> transformers suffix inside a layer. Routed experts are gathered separately.
LAYER_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "attn.attn_sink": "self_attn.sinks",
    "attn.wq_a.weight": "self_attn.q_a_proj.weight",
    "attn.q_norm.weight": "self_attn.q_a_norm.weight",
    "attn.wq_b.weight": "self_attn.q_b_proj.weight",
    "attn.wkv.weight": "self_attn.kv_proj.weight",
    "attn.kv_norm.weight": "self_attn.kv_norm.weight",
    "attn.wo_a.weight": "self_attn.o_a_proj.weight",
    "attn.wo_b.weight": "self_attn.o_b_proj.weight",
    "attn.indexer.wq_b.weight": "self_attn.compressor.indexer.q_b_proj.weight",
    "attn.indexer.weights_proj.weight": "self_attn.compressor.indexer.scorer.weights_proj.weight",
    "ffn.gate.weight": "mlp.gate.weight",
    "ffn.gate.bias": "mlp.gate.e_score_correction_bias",
    "ffn.gate.tid2eid": "mlp.gate.tid2eid",
    "ffn.shared_experts.w1.weight": "mlp.shared_experts.gate_proj.weight",
    "ffn.shared_experts.w3.weight": "mlp.shared_experts.up_proj.weight",
    "ffn.shared_experts.w2.weight": "mlp.shared_experts.down_proj.weight",
    **{f"hc_{site}_{part}": f"{site}_hc.{part}" for site in ("attn", "ffn") for part in ("fn", "base", "scale")},
    **{
        f"attn.{official}.{a}": f"self_attn.{ours}.{b}"
        for official, ours in (("compressor", "compressor"), ("indexer.compressor", "compressor.indexer"))
        for a, b in (
            ("ape", "position_bias"),
            ("wkv.weight", "kv_proj.weight"),
            ("wgate.weight", "gate_proj.weight"),
            ("norm.weight", "kv_norm.weight"),
        )
    },
}
TOP_NAMES = {
    "embed.weight": "model.embed_tokens.weight",
    "head.weight": "lm_head.weight",
    "norm.weight": "model.norm.weight",
    "hc_head_fn": "model.hc_head.hc_fn",
    "hc_head_base": "model.hc_head.hc_base",
    "hc_head_scale": "model.hc_head.hc_scale",
}
EXPERT = re.compile(r"ffn\.experts\.(\d+)\.w[123]\.weight$")


def layer_state(release: Release, prefix: str) -> dict[str, np.ndarray]:
    """A decoder layer's state dict under transformers' names; `prefix` is "layers.3." or "mtp.0."."""
    state: dict[str, np.ndarray] = {}
    experts = 0
    for name in release.names():
        if not name.startswith(prefix):
            continue
        suffix = name[len(prefix) :]
        match = EXPERT.match(suffix)
        if match:
            experts = max(experts, int(match.group(1)) + 1)
        elif suffix in LAYER_NAMES:
            state[LAYER_NAMES[suffix]] = release.tensor(name)
        elif prefix.startswith("layers."):
            raise CheckpointError(f"{release.folder}: tensor {name}: expected a DeepSeek-V4 layer tensor, found an unknown name")

    def expert(number: int, part: str) -> np.ndarray:
        return release.tensor(f"{prefix}ffn.experts.{number}.{part}.weight")

    state["mlp.experts.gate_up_proj"] = np.stack([np.concatenate([expert(e, "w1"), expert(e, "w3")]) for e in range(experts)])
    state["mlp.experts.down_proj"] = np.stack([expert(e, "w2") for e in range(experts)])
    return state


def model_state(release: Release) -> dict[str, np.ndarray]:
    state = {ours: release.tensor(official) for official, ours in TOP_NAMES.items()}
    for layer in range(release.config["num_hidden_layers"]):
        state |= {f"model.layers.{layer}.{name}": value for name, value in layer_state(release, f"layers.{layer}.").items()}
    return state


def transformers_config(config: dict, extra_layers: int = 0):  # -> DeepseekV4Config
    """The release's config.json as a transformers config; `extra_layers` appends window-only, top-k-routed layers (MTP)."""
    from transformers import DeepseekV4Config

    ratios = config["compress_ratios"]
    layers = config["num_hidden_layers"]
    rotary = config["qk_rope_head_dim"] / config["head_dim"]
    scaling = config["rope_scaling"]
    skip = {"architectures", "model_type", "quantization_config", "torch_dtype", "rope_scaling", "compress_ratios", "num_hash_layers",
            "topk_method", "expert_dtype", "num_hidden_layers"}
    kinds = {0: "sliding_attention", 4: "compressed_sparse_attention", 128: "heavily_compressed_attention"}
    unknown = sorted(set(ratios) - set(kinds))
    if unknown:
        raise CheckpointError(f"config.json: compress_ratios: expected values of {sorted(kinds)}, found {unknown}")
    hashed = config["num_hash_layers"]
    return DeepseekV4Config(
        **{key: value for key, value in config.items() if key not in skip},
        num_hidden_layers=layers + extra_layers,
        layer_types=[kinds[ratio] for ratio in ratios[:layers]] + ["sliding_attention"] * extra_layers,
        mlp_layer_types=["hash_moe"] * hashed + ["moe"] * (layers - hashed + extra_layers),
        rope_parameters={
            "main": {"rope_type": "default", "rope_theta": float(config["rope_theta"]), "partial_rotary_factor": rotary},
            "compress": {
                "rope_type": "yarn",
                "rope_theta": float(config["compress_rope_theta"]),
                "partial_rotary_factor": rotary,
                "factor": float(scaling["factor"]),
                "beta_fast": float(scaling["beta_fast"]),
                "beta_slow": float(scaling["beta_slow"]),
                "original_max_position_embeddings": scaling["original_max_position_embeddings"],
                "attention_factor": 1.0,
            },
        },
    )


def load_state(module, state: dict[str, np.ndarray], source: str) -> None:
    """load_state_dict with a one-line error that names the first tensor that does not fit."""
    import torch

    own = module.state_dict()
    for name in sorted(set(own) | set(state)):
        expected = list(own[name].shape) if name in own else None
        found = list(state[name].shape) if name in state else None
        if expected != found:
            raise CheckpointError(f"{source}: tensor {name}: expected shape {expected}, found {found}")
    module.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in state.items()})


def load_release(folder: Path, device: str = "cpu"):  # -> tuple[DeepseekV4ForCausalLM, Release]
    """The release as a float32 transformers model with eager attention and eager experts, ready to run."""
    import torch
    from transformers import DeepseekV4ForCausalLM

    release = Release(folder)
    config = transformers_config(release.config)
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    with torch.device("cpu"):
        model = DeepseekV4ForCausalLM(config).to(torch.float32)
    load_state(model, model_state(release), str(folder))
    return model.eval().to(device), release


def is_release(folder: Path) -> bool:
    """Official tensor names and an official config.json, rather than what transformers' save_pretrained writes."""
    if not any(Path(folder).glob("*.safetensors")):
        return False
    release = Release(folder)
    return "embed.weight" in release and "compress_ratios" in release.config
