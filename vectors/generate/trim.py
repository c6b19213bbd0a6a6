#!/usr/bin/env python3
"""Cut a full golden file down to the size a checkout can carry.

    trim.py --source DIR --out DIR [--only NAME ...]

DIR holds the untrimmed files under the names in PLANS. Nothing is recomputed or rounded: a trimmed file holds a
subset of the positions and taps of its source, bit for bit, and names the source by hash.
What every plan keeps: all context lengths, all decode cases, MTP, the RoPE tables, logits, router and indexer
selections. What a plan gives up is positions (the cases share one token prefix, so an early position of a long case
repeats one of a shorter case) and, where a file is still too large, taps that another case holds as well.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Iterable

import h5py
import numpy as np

CHUNK_LIMIT = 1 << 20  # bytes; a dataset up to this size is one chunk
COMPACT_LIMIT = 384  # bytes; below this a filter costs more than it saves: the data live in the object header

SELECTIONS = {"router_experts", "router_weights", "indexer_topk"}
ROW_TAPS = {"compressed_kv", "indexer_kv"}  # first axis is the row number, never thinned
CASE_HEADS = {"head_collapsed", "final_norm"}


@dataclass
class Plan:
    """What is kept of one file. Case names are matched exactly; `limit` caps the positions of a case."""

    why: str
    priority: list[int]  # positions worth keeping, after the first and the last, best first
    limit: Callable[[int], int]  # context -> how many positions
    full: dict[str, list[int] | None]  # cases that keep every tap, with their positions (None: all)
    taps: Callable[[int], set[str]]  # context -> layer taps of the other cases
    compressed: set[int]  # contexts that keep compressed_kv
    decode_rows: int | None  # logits rows of a decode case (None: all)
    drop_full: dict[str, set[str]] = field(default_factory=dict)  # taps a full case gives up


# Lengths where the state changes shape: around the window (72 nano, 20 stress), the first indexer cut (81, 28), the 128-token
# window of the HCA compressor, and the powers of two where engines chunk.
NANO_SMALL = {4, 5, 7, 8, 9, 16}
STRESS_SMALL = {4, 5, 7, 8, 9, 19, 22, 28, 33}

PLANS: dict[str, Plan] = {
    "nano-hf-f32.h5": Plan(
        why="positions thinned to the first, the last and the edges of windows and ratios; every tap at ctx00005, ctx00130 and "
        "ctx00300 at three positions; elsewhere streams, selections, indexer scores and logits, with attn_out and ffn_out at 9, 73, 81, 129, "
        "513 and 4096 tokens; compressed_kv at 4 to 16, 73, 80, 84, 130, 300 and 513 tokens",
        priority=[127, 128, 72, 3, 4, 7],
        limit=lambda context: 3 if context <= 9 else 4,
        full={"ctx00005": [0, 3, 4], "ctx00130": [0, 128, 129], "ctx00300": [0, 150, 299]},
        taps=lambda context: {"streams", "indexer_scores"}
        | SELECTIONS
        | ({"attn_out", "ffn_out"} if context in {9, 73, 81, 129, 513, 4096} else set()),
        compressed=NANO_SMALL | {73, 80, 84, 130, 300, 513},
        decode_rows=6,
    ),
    "stress-hf-f32.h5": Plan(
        why="positions thinned to the first, the last and the edges of windows and ratios; every tap at ctx00005, ctx00022 (but q) and "
        "ctx00131 (and at ctx00260 all but q, attn_heads, indexer_q, streams_mid and rows) at three positions; elsewhere streams, "
        "selections, indexer scores and logits, with attn_out and ffn_out at 9, 29, 129 and 513 tokens; compressed_kv at 4 to 9, 19, 22, "
        "28, 33, 64, 131 and 513 tokens",
        priority=[127, 128, 20, 3, 4, 7],
        limit=lambda context: 4 if context in {129, 513} else 3,
        full={"ctx00005": [0, 3, 4], "ctx00022": [0, 20, 21], "ctx00131": [0, 129, 130], "ctx00260": [0, 130, 259]},
        taps=lambda context: {"streams", "indexer_scores"}
        | SELECTIONS
        | ({"attn_out", "ffn_out"} if context in {9, 29, 129, 513} else set()),
        compressed=STRESS_SMALL | {64, 131, 513},
        decode_rows=10,
        drop_full={"ctx00022": {"q"}, "ctx00260": {"q", "attn_heads", "indexer_q", "streams_mid"}},
    ),
    "nano-official-qat-f32.h5": Plan(
        why="all positions kept (acceptance is a median over positions); streams at 5, 130 and 300 tokens, attn_out and "
        "ffn_out at 5 and 130; compressed_kv at 4 to 16, 73, 84, 130 and 300 tokens",
        priority=[],
        limit=lambda context: 1 << 30,
        full={},
        taps=lambda context: SELECTIONS
        | ({"streams"} if context in {5, 130, 300} else set())
        | ({"attn_out", "ffn_out"} if context in {5, 130} else set()),
        compressed=NANO_SMALL | {73, 84, 130, 300},
        decode_rows=6,
    ),
    "stress-official-qat-f32.h5": Plan(
        why="all positions kept (acceptance is a median over positions); streams at 5, 29, 131, 260 and 513 tokens, attn_out "
        "and ffn_out at 5 and 131; compressed_kv at 4 to 9, 19, 22, 28, 33, 64, 131 and 260 tokens",
        priority=[],
        limit=lambda context: 1 << 30,
        full={},
        taps=lambda context: SELECTIONS
        | ({"streams"} if context in {5, 29, 131, 260, 513} else set())
        | ({"attn_out", "ffn_out"} if context in {5, 131} else set()),
        compressed=STRESS_SMALL | {64, 131, 260},
        decode_rows=10,
    ),
    "nano-official-deployed-bf16.h5": Plan(
        why="positions thinned; at most four a case; streams at 5, 73 and 130 tokens, elsewhere selections and logits",
        priority=[127, 128, 72, 3, 4, 7],
        limit=lambda context: 4,
        full={},
        taps=lambda context: SELECTIONS | ({"streams"} if context in {5, 73, 130} else set()),
        compressed=set(),
        decode_rows=None,
    ),
    "nano-q2-math.h5": Plan(
        why="three positions a case; every tap but attn_heads, q, indexer_q and streams_mid at ctx00130; elsewhere "
        "selections, indexer scores and logits, with streams at 73 and 513 tokens",
        priority=[127, 128, 72, 3],
        limit=lambda context: 3,
        full={"ctx00130": [0, 128, 129]},
        taps=lambda context: {"indexer_scores"} | SELECTIONS | ({"streams"} if context in {73, 513} else set()),
        compressed={130},
        decode_rows=None,
        drop_full={"ctx00130": {"attn_heads", "q", "indexer_q", "streams_mid"}},
    ),
}


def pick_positions(present: np.ndarray, plan: Plan, context: int) -> np.ndarray:
    """Indices into `present`: first, last, then plan.priority, then the later ones first, up to the plan's limit."""
    limit = min(plan.limit(context), len(present))
    chosen: list[int] = []
    last = int(present[-1])
    for position in [int(present[0]), last, *plan.priority, *(int(p) for p in present[::-1])]:
        if len(chosen) < limit and position in present and position not in chosen:
            chosen.append(position)
    return np.flatnonzero(np.isin(present, chosen))


def spread(count: int, limit: int | None) -> np.ndarray:
    """Rows 0 and count-1, their neighbours, and the rest evenly: at most `limit` of `count`."""
    if limit is None or limit >= count:
        return np.arange(count)
    return np.unique(np.concatenate([[1, count - 2], np.linspace(0, count - 1, limit - 2).round().astype(int)]))


def write(group: h5py.Group, name: str, data: np.ndarray, attrs: Iterable[tuple[str, object]] = ()) -> None:
    """One dataset: compact when tiny, else one gzip+shuffle chunk (or chunks of about CHUNK_LIMIT along the first axis)."""
    data = np.ascontiguousarray(data)
    if data.nbytes <= COMPACT_LIMIT:
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_layout(h5py.h5d.COMPACT)
        creation.set_obj_track_times(False)
        space = h5py.h5s.create_simple(data.shape)
        h5py.h5d.create(group.id, name.encode(), h5py.h5t.py_create(data.dtype), space, creation)
        if data.size:
            group[name][...] = data
    else:
        rows = data.shape[0]
        if data.nbytes > CHUNK_LIMIT:
            rows = max(1, int(CHUNK_LIMIT // (data.nbytes // data.shape[0])))
        group.create_dataset(name, data=data, chunks=(rows, *data.shape[1:]), compression="gzip", compression_opts=9,
                             shuffle=True, track_times=False)
    for key, value in attrs:
        group[name].attrs[key] = value


def trim_prefill(name: str, source: h5py.Group, target: h5py.Group, plan: Plan) -> None:
    context = int(source.attrs["context"])
    present = source["positions"][:]
    full = name in plan.full
    if full and plan.full[name] is not None:
        wanted = plan.full[name]
        missing = set(wanted) - set(present.tolist())
        if missing:
            raise ValueError(f"{source.file.filename}: /cases/{name}/positions: expected {sorted(missing)} among them, found {present.tolist()}")
        keep = np.flatnonzero(np.isin(present, wanted))
    else:
        keep = pick_positions(present, plan, context)
    write(target, "tokens", source["tokens"][:])
    write(target, "positions", present[keep])
    for tap in ("logits", *sorted(CASE_HEADS)):
        if tap in source:
            write(target, tap, source[tap][:][keep], source[tap].attrs.items())
    for layer in source["layers"]:
        for tap, dataset in source["layers"][layer].items():
            if tap in ROW_TAPS:
                wanted_tap = context in plan.compressed and (full or tap == "compressed_kv")
            else:
                wanted_tap = full or tap in plan.taps(context)
            if not wanted_tap or tap in plan.drop_full.get(name, ()):
                continue
            data = dataset[:] if tap in ROW_TAPS else dataset[:][keep]
            write(target.require_group(f"layers/{layer}"), tap, data, dataset.attrs.items())
    if "mtp" in source:
        mtp_positions = source["mtp/positions"][:]
        rows = [0, len(mtp_positions) // 2, len(mtp_positions) - 1]  # of at least three
        mtp = target.create_group("mtp")
        write(mtp, "positions", mtp_positions[rows])
        write(mtp, "logits", source["mtp/logits"][:][rows])


def trim_decode(source: h5py.Group, target: h5py.Group, plan: Plan) -> None:
    for tap, dataset in source.items():
        data = dataset[:]
        if tap == "logits":
            rows = spread(len(data), plan.decode_rows)
            if "streams_steps" in source and len(rows) < len(data):
                # row 1+s belongs to step s: keep the logits of every step whose streams are kept
                rows = np.union1d(rows, source["streams_steps"][:] + 1)
            if len(rows) < len(data):
                write(target, "logits_steps", rows.astype(np.int32))
                data = data[rows]
        write(target, tap, data, dataset.attrs.items())


def trim_file(source_path: Path, target_path: Path, plan: Plan) -> None:
    digest = hashlib.sha256(source_path.read_bytes()).hexdigest()
    part = target_path.with_suffix(".part")
    with h5py.File(source_path, "r") as source, h5py.File(part, "w", libver=("v110", "v110")) as target:
        for key, value in source.attrs.items():
            target.attrs[key] = value
        target.attrs["trimmed_from_sha256"] = digest
        target.attrs["trimmed"] = plan.why
        for name, case in source["cases"].items():
            out = target.create_group(f"cases/{name}")
            for key, value in case.attrs.items():
                out.attrs[key] = value
            if case.attrs["kind"] == "decode":
                trim_decode(case, out, plan)
            else:
                trim_prefill(name, case, out, plan)
        if "rope" in source:
            for kind, tables in source["rope"].items():
                for key, dataset in tables.items():
                    write(target.require_group(f"rope/{kind}"), key, dataset[:])
    part.replace(target_path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="folder with the untrimmed files")
    parser.add_argument("--out", type=Path, required=True, help="folder for the trimmed files")
    parser.add_argument("--only", nargs="*", choices=sorted(PLANS), default=None, help="these files only")
    options = parser.parse_args()
    if options.source.resolve() == options.out.resolve():
        parser.error(f"--out: expected another folder than --source, found {options.out}")
    for name in options.only or PLANS:
        source, target = options.source / name, options.out / name
        if not source.is_file():
            print(f"{source}: expected an untrimmed golden file, found none", file=sys.stderr)
            return 2
        try:
            trim_file(source, target, PLANS[name])
        except (KeyError, ValueError, OSError) as error:
            print(f"{source}: {error}", file=sys.stderr)
            return 2
        print(f"{name}: {source.stat().st_size} -> {target.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
