#!/usr/bin/env python3
"""Golden math vectors (float32, no activation quantisation) of a small release checkpoint, by transformers.

    golden.py MODEL_DIR OUT.h5                          the default case list for the model's config
    golden.py MODEL_DIR OUT.h5 --cases 5,130,100+60     prefills of 5 and 130 tokens; 100 prefilled and 60 decoded
    golden.py MODEL_DIR OUT.h5 --like GOLDEN.h5         the cases, tokens, positions and taps of another file

Runs on the CPU by default, where the shipped files were made; on a GPU, TF32 is off. MTP is computed by mtp.py.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import h5py
import numpy as np

from mtp import MtpLayer, has_mtp
from record_dump import describe, load_any, read_tokens, record, record_decode, record_like, record_rope

KEY_TAPS = ["hc_attn_collapsed", "attn_out", "ffn_out", "streams", "router_experts", "router_weights", "indexer_scores", "indexer_topk",
            "compressed_kv", "logits"]
LONG = 1000  # contexts above this keep no compressed rows: they grow with the context and repeat those of shorter cases


def default_cases(config: dict) -> tuple[list[int], list[tuple[int, int]], list[int]]:
    """Prefill contexts, decode (prefill, steps) pairs and the contexts that keep every tap: one below, at and one above each edge."""
    window = config["sliding_window"]
    cut = 4 * config["index_topk"]  # first context at which the indexer drops a row is cut + 4
    contexts = {1, 2, 3, 4, 5, 7, 8, 9, window + 8, cut + 3, cut + 4, cut + 5, 1024}
    for edge in (window, cut, 128, 256, 512):
        contexts |= {edge - 1, edge, edge + 1}
    full = [5, 130, 300]
    decode = [(1, 40), (window - 11, 12), (100, 60), (126, 140)]
    return sorted(contexts | set(full)), decode, full


def default_positions(context: int, window: int) -> list[int]:
    """First, last, the edges of ratio 4, ratio 128 and the window, a third and a half: at most eleven."""
    wanted = {0, 3, 4, 7, window, 127, 128, context // 3, context // 2, context - 2, context - 1}
    return sorted(p for p in wanted if 0 <= p < context)


def parse_cases(text: str) -> tuple[list[int], list[tuple[int, int]]]:
    contexts, decode = [], []
    for item in text.split(","):
        numbers = item.split("+")
        if not all(n.isdigit() and int(n) > 0 for n in numbers) or len(numbers) > 2:
            raise ValueError(f"--cases: expected CONTEXT or PREFILL+STEPS, found {item!r}")
        if len(numbers) == 2:
            decode.append((int(numbers[0]), int(numbers[1])))
        else:
            contexts.append(int(numbers[0]))
    return contexts, decode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="release folder: config.json and safetensors")
    parser.add_argument("out", type=Path)
    parser.add_argument("--cases", help="comma-separated: CONTEXT or PREFILL+STEPS")
    parser.add_argument("--full", help="comma-separated contexts that keep every tap (default 5,130,300)")
    parser.add_argument("--like", type=Path, help="repeat the cases of this file")
    parser.add_argument("--tokens", type=Path, help="token ids, .npy or text; every case takes a prefix (default: random, --seed)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()

    import torch
    import transformers

    try:
        model, release = load_any(str(options.model), options.device, "float32")
        if release is None:
            raise ValueError(f"{options.model}: expected a release checkpoint with official tensor names, found another layout")
        mtp = MtpLayer(model, release) if has_mtp(release) else None
        with h5py.File(options.out, "w", libver=("v110", "v110")) as out:
            describe(
                out,
                model_name=options.model.name,
                producer=f"transformers {transformers.__version__} {type(model).__name__}, eager, float32, {options.device.upper()}",
                numerics="math: float32, no activation quantisation",
                weights_sha256=release.sha256(),
                config=release.config_text,
            )
            out.attrs["torch"] = str(torch.__version__)
            if options.like:
                with h5py.File(options.like, "r") as golden:
                    if golden.attrs["weights_sha256"] != out.attrs["weights_sha256"]:
                        raise ValueError(f"{options.like}: weights_sha256: expected {out.attrs['weights_sha256']}, found {golden.attrs['weights_sha256']}")
                    record_like(model, golden, out, mtp=mtp, progress=sys.stderr.isatty())
            else:
                contexts, decode, full = default_cases(release.config)
                if options.cases:
                    contexts, decode = parse_cases(options.cases)
                if options.full:
                    full = [int(c) for c in options.full.split(",")]
                longest = max([*contexts, *(p + s for p, s in decode)])
                if options.tokens:
                    tokens = read_tokens(options.tokens)
                else:
                    tokens = np.random.default_rng(options.seed).integers(0, release.config["vocab_size"], longest)
                if len(tokens) < longest:
                    raise ValueError(f"{options.tokens}: expected at least {longest} tokens, found {len(tokens)}")
                for context in contexts:
                    positions = default_positions(context, release.config["sliding_window"])
                    taps = ["*"] if context in full else [t for t in KEY_TAPS if t != "compressed_kv" or context < LONG]
                    ahead = [p for p in positions if p < context - 1] if context in full else []
                    record(model, tokens[:context], positions, out, f"ctx{context:05d}", taps, mtp, ahead)
                for prefill, steps in decode:
                    marks = sorted({0, 1, steps // 2, steps - 1} & set(range(steps)))
                    record_decode(model, tokens[: prefill + steps], prefill, out, f"decode{prefill:05d}+{steps:03d}", marks)
                record_rope(model, out)
    except (ValueError, OSError, KeyError) as error:
        print(f"golden: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
