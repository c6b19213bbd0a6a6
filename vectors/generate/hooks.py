"""Records the taps of a DeepSeek-V4 model that runs under transformers.

    with Recorder(model, rows=[0, 127, 128], taps=["streams", "layers/3/*"]) as recorder:
        model(input_ids=ids, use_cache=False)
    recorder.taps["layers/3/attn_out"]        # float32 [3, D]

How it works, and what to change for a modified model: each tap is the input or the output of one submodule, listed in
LAYER_POINTS by its attribute path below a decoder layer, so a port that renames `self_attn.o_b_proj` changes one line there.
Three taps live between modules, inside the attention function: the query and the new key row after RoPE, and the heads before the
inverse RoPE. They are read where every attention backend of transformers reads them: the attention function that the module
looks up in ALL_ATTENTION_FUNCTIONS is wrapped while the recorder is open. A model that calls its attention some other way should
call `recorder.attention(module, query, key, heads)` itself.
A path that the model does not have is skipped and listed in `recorder.missing`; nothing else is changed and leaving the
`with` block removes every hook.

Batch size is one. `rows` are indices into this forward call's tokens; compressed_kv and indexer_kv hold all rows so far.
"""

from __future__ import annotations

import fnmatch
import sys
from dataclasses import dataclass
from typing import Any, Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

INTEGER_TAPS = {"indexer_topk", "router_experts"}
ROW_TAPS = {"compressed_kv", "indexer_kv"}  # first axis: row number, not position
ATTENTION_TAPS = ("q", "kv", "attn_heads")


@dataclass(frozen=True)
class Point:
    """One or more taps at a submodule: `read` maps (args, output) to tensors with the token axis first."""

    path: str
    taps: tuple[str, ...]
    read: Callable[[tuple, Any], Sequence[Tensor]]


def _output(args: tuple, out: Any) -> Sequence[Tensor]:
    """[1, tokens, ...], alone or first of a tuple."""
    return [(out[0] if isinstance(out, tuple) else out)[0]]


def _flat_output(args: tuple, out: Any) -> Sequence[Tensor]:
    """Already [tokens, ...], or [1, tokens, ...]: routers and experts work on flattened tokens."""
    return [out.reshape(-1, out.shape[-1])]


LAYER_POINTS: tuple[Point, ...] = (
    Point("attn_hc", ("hc_attn_post", "hc_attn_comb", "hc_attn_collapsed"), lambda args, out: [part[0] for part in out]),
    Point("input_layernorm", ("attn_norm",), _output),
    Point("self_attn.q_a_norm", ("q_lora",), _output),
    Point("self_attn.compressor", ("compressed_kv",), lambda args, out: [out[0][0, 0]]),
    Point(
        "self_attn.compressor.indexer.scorer",
        ("indexer_q", "indexer_kv", "indexer_scores"),
        lambda args, out: [args[0][0], args[1][0], out[0]],
    ),
    Point("self_attn.compressor.indexer", ("indexer_topk",), _output),
    Point("self_attn.o_a_proj", ("o_lora",), lambda args, out: [out[0].flatten(1)]),
    Point("self_attn.o_b_proj", ("attn_out",), _output),
    Point("ffn_hc", ("streams_mid",), lambda args, out: [args[0][0]]),
    Point("ffn_hc", ("hc_ffn_post", "hc_ffn_comb", "hc_ffn_collapsed"), lambda args, out: [part[0] for part in out]),
    Point("post_attention_layernorm", ("ffn_norm",), _output),
    Point("mlp.gate", ("router_logits", "router_weights", "router_experts"), lambda args, out: out),
    Point("mlp.experts", ("routed_out",), _flat_output),
    Point("mlp.shared_experts", ("shared_out",), _flat_output),
    Point("mlp", ("ffn_out",), _output),
    Point("", ("streams",), _output),
)
MODEL_POINTS: tuple[Point, ...] = (
    Point("model.hc_head", ("head_collapsed",), _output),
    Point("model.norm", ("final_norm",), _output),
    Point("lm_head", ("logits",), _output),
)
LAYERS_PATH = "model.layers"
ATTENTION_PATH = "self_attn"


def submodule(root: nn.Module, path: str) -> nn.Module | None:
    module: Any = root
    for part in path.split(".") if path else ():
        module = getattr(module, part, None)
    return module


class Recorder:
    """Collects taps as numpy arrays in `taps`, keyed "layers/<i>/<tap>" or "<tap>"."""

    def __init__(self, model: nn.Module, rows: Iterable[int] | None = None, taps: Iterable[str] = ("*",)) -> None:
        self.model = model
        self.rows = None if rows is None else list(rows)
        self.patterns = list(taps)
        self.taps: dict[str, np.ndarray] = {}
        self.missing: list[str] = []
        self._handles: list[Any] = []
        self._undo: list[Callable[[], None]] = []
        self._attention: dict[int, tuple[str, dict[str, int]]] = {}

    def wants(self, prefix: str, tap: str) -> bool:
        """A pattern without a slash names a tap in any layer; one with a slash the whole key."""
        return any(fnmatch.fnmatch(prefix + tap if "/" in pattern else tap, pattern) for pattern in self.patterns)

    def keep(self, prefix: str, tap: str, value: Tensor) -> None:
        if not self.wants(prefix, tap):
            return
        if tap not in ROW_TAPS and self.rows is not None:
            value = value[self.rows]
        value = value.detach().to("cpu", torch.int32 if tap in INTEGER_TAPS else torch.float32)
        self.taps[prefix + tap] = value.numpy().copy()

    def _hook(self, root: nn.Module, prefix: str, point: Point) -> None:
        wanted = [tap for tap in point.taps if self.wants(prefix, tap)]
        if not wanted:
            return
        module = submodule(root, point.path)
        if module is None:
            self.missing += [prefix + tap for tap in wanted]
            return

        def after(module: nn.Module, args: tuple, kwargs: dict, out: Any) -> None:
            inputs = args or tuple(kwargs.values())
            for tap, value in zip(point.taps, point.read(inputs, out)):
                self.keep(prefix, tap, value)

        self._handles.append(module.register_forward_hook(after, with_kwargs=True))

    def attention(self, module: nn.Module, query: Tensor, key: Tensor, heads: Tensor) -> None:
        """query [1][H][S][d]; key [1][1][cached window + S + compressed][d]; heads [1][S][H][d]."""
        if id(module) not in self._attention:
            return
        prefix, compressed = self._attention[id(module)]
        tokens = query.shape[2]
        end = key.shape[2] - compressed.get("rows", 0)
        self.keep(prefix, "q", query[0].transpose(0, 1))
        self.keep(prefix, "kv", key[0, 0, end - tokens : end])
        self.keep(prefix, "attn_heads", heads[0])

    def _hook_attention(self, layer: nn.Module, prefix: str) -> Any:
        if not any(self.wants(prefix, tap) for tap in ATTENTION_TAPS):
            return None
        module = submodule(layer, ATTENTION_PATH)
        if module is None:
            self.missing += [prefix + tap for tap in ATTENTION_TAPS if self.wants(prefix, tap)]
            return None
        counts: dict[str, int] = {}
        self._attention[id(module)] = (prefix, counts)
        compressor = submodule(module, "compressor")
        if compressor is not None:
            self._handles.append(compressor.register_forward_hook(lambda _, args, out: counts.update(rows=out[0].shape[2])))
        return module

    def _wrap_attention_lookup(self, module: nn.Module) -> None:
        registry = getattr(sys.modules[type(module).__module__], "ALL_ATTENTION_FUNCTIONS", None)
        if registry is None:
            self.missing += [prefix + tap for prefix, _ in self._attention.values() for tap in ATTENTION_TAPS]
            return
        lookup = registry.get_interface

        def recording_lookup(*args: Any, **kwargs: Any) -> Callable:
            function = lookup(*args, **kwargs)

            def call(owner: nn.Module, query: Tensor, key: Tensor, *rest: Any, **options: Any) -> Any:
                result = function(owner, query, key, *rest, **options)
                self.attention(owner, query, key, result[0])
                return result

            return call

        registry.get_interface = recording_lookup  # shadows the method on this instance only
        self._undo.append(lambda: delattr(registry, "get_interface"))

    def __enter__(self) -> "Recorder":
        layers = submodule(self.model, LAYERS_PATH)
        if layers is None:
            raise ValueError(f"model: expected decoder layers at {LAYERS_PATH}, found {type(self.model).__name__} without them")
        attention = None
        for index, layer in enumerate(layers):
            prefix = f"layers/{index}/"
            for point in LAYER_POINTS:
                self._hook(layer, prefix, point)
            attention = self._hook_attention(layer, prefix) or attention
        for point in MODEL_POINTS:
            self._hook(self.model, "", point)
        if attention is not None:
            self._wrap_attention_lookup(attention)
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()
        for undo in self._undo:
            undo()
        self._handles.clear()
        self._undo.clear()
