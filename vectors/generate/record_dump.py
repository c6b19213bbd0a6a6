#!/usr/bin/env python3
"""Record a dump (schema dsv4-vectors-1) of any DeepSeek-V4 model that runs under transformers.

    record_dump.py MODEL OUT.h5 --tokens FILE [--positions LIST] [--taps GLOB ...]
    record_dump.py MODEL OUT.h5 --like GOLDEN.h5 [--case GLOB] [--taps GLOB ...]

MODEL is a release folder (FP4/FP8 or BF16, official names; decoded to float32) or anything from_pretrained takes. With --like
the cases, tokens and positions come from a golden file, so that the dump lines up with it:

    compare_vectors.py GOLDEN.h5 OUT.h5

From Python, for a model object of your own (see hooks.py for where each tap is read):

    with h5py.File("dump.h5", "w") as out:
        describe(out, model_name="mine", producer="my port", numerics="math", weights_sha256="...")
        record(model, input_ids, positions=[0, 72, 299], out=out, case_name="ctx00300", taps=["streams", "logits"])
        record_decode(model, input_ids, prefill=100, out=out, case_name="decode00100+060", streams_steps=[0, 59])
"""

from __future__ import annotations

import argparse
import datetime
import fnmatch
import re
import sys
from pathlib import Path
from typing import Iterable, Sequence

import h5py
import numpy as np
import torch

from checkpoint import is_release, load_release
from hooks import Recorder
from mtp import MtpLayer, has_mtp

SCHEMA = "dsv4-vectors-1"
ROPE_POSITIONS = [0, 1, 2, 63, 127, 128, 4095, 4096, 65535, 65536, 131072, 262143, 524288, 1000000, 1048575]
STREAMS = re.compile(r"layers/(\d+)/streams$")


def write_dataset(group: h5py.Group, name: str, data: np.ndarray) -> None:
    data = np.ascontiguousarray(data, dtype=np.int32 if data.dtype.kind in "iu" else np.float32)
    options = dict(compression="gzip", compression_opts=9, shuffle=True, chunks=data.shape) if data.nbytes > 384 else {}
    if data.nbytes > 1 << 20:
        options["chunks"] = (max(1, data.shape[0] * (1 << 20) // data.nbytes), *data.shape[1:])
    group.create_dataset(name, data=data, track_times=False, **options)


def describe(out: h5py.File, *, model_name: str, producer: str, numerics: str, weights_sha256: str = "", config: str = "") -> None:
    """The root attributes. weights_sha256 may stay empty; the comparison then cannot tell other weights apart."""
    out.attrs["schema"] = SCHEMA
    out.attrs["model"] = model_name
    out.attrs["producer"] = producer
    out.attrs["numerics"] = numerics
    out.attrs["weights_sha256"] = weights_sha256
    out.attrs["config"] = config
    out.attrs["made"] = datetime.date.today().isoformat()


def _ids(model: torch.nn.Module, input_ids: Sequence[int] | np.ndarray | torch.Tensor) -> torch.Tensor:
    device = next(model.parameters()).device
    return torch.as_tensor(np.asarray(input_ids), dtype=torch.long, device=device).reshape(1, -1)


def _case(out: h5py.File, name: str, kind: str, ids: torch.Tensor) -> h5py.Group:
    case = out.create_group(f"cases/{name}")
    case.attrs["kind"], case.attrs["context"] = kind, ids.shape[1]
    write_dataset(case, "tokens", ids[0].cpu().numpy())
    return case


@torch.no_grad()
def record(
    model: torch.nn.Module,
    input_ids: Sequence[int] | np.ndarray | torch.Tensor,
    positions: Sequence[int],
    out: h5py.File,
    case_name: str,
    taps: Iterable[str] = ("*",),
    mtp: MtpLayer | None = None,
    mtp_positions: Sequence[int] = (),
) -> list[str]:
    """One prefill of input_ids, its taps at `positions` written as /cases/<case_name>. Returns the taps that were not found."""
    ids = _ids(model, input_ids)
    outside = [p for p in positions if not 0 <= p < ids.shape[1]]
    if outside:
        raise ValueError(f"{case_name}: positions: expected 0..{ids.shape[1] - 1}, found {outside}")
    case = _case(out, case_name, "prefill", ids)
    write_dataset(case, "positions", np.asarray(positions, dtype=np.int32))
    with Recorder(model, rows=positions, taps=taps) as recorder:
        model(input_ids=ids, use_cache=False)
    for key, value in recorder.taps.items():
        write_dataset(case, key, value)
    if mtp is not None and len(mtp_positions):
        layers = model.config.num_hidden_layers
        with Recorder(model, taps=[f"layers/{layers - 1}/streams"]) as last:
            model(input_ids=ids, use_cache=False)
        write_dataset(case, "mtp/positions", np.asarray(mtp_positions, dtype=np.int32))
        logits = mtp(ids[0], torch.from_numpy(last.taps[f"layers/{layers - 1}/streams"]).to(ids.device))
        write_dataset(case, "mtp/logits", logits[list(mtp_positions)].cpu().numpy())
    return recorder.missing


@torch.no_grad()
def record_decode(
    model: torch.nn.Module,
    input_ids: Sequence[int] | np.ndarray | torch.Tensor,
    prefill: int,
    out: h5py.File,
    case_name: str,
    streams_steps: Sequence[int] = (),
    logits_steps: Sequence[int] | None = None,
) -> None:
    """A prefill of the first tokens, then one token a call: logits after every call, streams at streams_steps."""
    ids = _ids(model, input_ids)
    case = _case(out, case_name, "decode", ids)
    case.attrs["prefill"] = prefill
    result = model(input_ids=ids[:, :prefill], use_cache=True)
    logits, streams = [result.logits[0, -1].float().cpu().numpy()], []
    for step, position in enumerate(range(prefill, ids.shape[1])):
        with Recorder(model, taps=["streams"] if step in streams_steps else []) as recorder:
            result = model(input_ids=ids[:, position : position + 1], past_key_values=result.past_key_values, use_cache=True)
        logits.append(result.logits[0, -1].float().cpu().numpy())
        if recorder.taps:
            by_layer = sorted(recorder.taps, key=lambda key: int(STREAMS.match(key).group(1)))
            streams.append(np.stack([recorder.taps[key][0] for key in by_layer]))
    rows = np.stack(logits)
    if logits_steps is not None:
        write_dataset(case, "logits_steps", np.asarray(logits_steps, dtype=np.int32))
        rows = rows[list(logits_steps)]
    write_dataset(case, "logits", rows)
    if streams:
        write_dataset(case, "streams", np.stack(streams))
        write_dataset(case, "streams_steps", np.asarray(sorted(streams_steps), dtype=np.int32))


@torch.no_grad()
def record_rope(model: torch.nn.Module, out: h5py.File, positions: Sequence[int] = tuple(ROPE_POSITIONS)) -> None:
    rotary = model.model.rotary_emb
    device = next(model.parameters()).device
    probe = torch.zeros(1, device=device)
    for kind in ("main", "compress"):
        cos, sin = rotary(probe, position_ids=torch.tensor([list(positions)], device=device), layer_type=kind)
        group = out.create_group(f"rope/{kind}")
        write_dataset(group, "positions", np.asarray(positions, dtype=np.int32))
        write_dataset(group, "cos", cos[0].cpu().numpy())
        write_dataset(group, "sin", sin[0].cpu().numpy())


def record_like(
    model: torch.nn.Module,
    golden: h5py.File,
    out: h5py.File,
    cases: str = "*",
    taps: Iterable[str] | None = None,
    mtp: MtpLayer | None = None,
    progress: bool = False,
) -> None:
    """The cases of another file: same names, tokens and positions; the taps it holds, or those that `taps` names."""
    if not any(fnmatch.fnmatch(name, cases) for name in golden["cases"]):
        raise ValueError(f"{golden.filename}: expected a case that matches {cases!r}, found {', '.join(golden['cases'])}")
    for name, source in golden["cases"].items():
        if not fnmatch.fnmatch(name, cases):
            continue
        if progress:
            print(name, file=sys.stderr, flush=True)
        if source.attrs["kind"] == "decode":
            record_decode(
                model,
                source["tokens"][:],
                int(source.attrs["prefill"]),
                out,
                name,
                streams_steps=source["streams_steps"][:].tolist() if "streams_steps" in source else (),
                logits_steps=source["logits_steps"][:].tolist() if "logits_steps" in source else None,
            )
            continue
        held: list[str] = []
        source.visititems(lambda key, item: held.append(key) if isinstance(item, h5py.Dataset) else None)
        record(
            model,
            source["tokens"][:],
            source["positions"][:].tolist(),
            out,
            name,
            taps=held if taps is None else taps,
            mtp=mtp,
            mtp_positions=source["mtp/positions"][:].tolist() if "mtp" in source else (),
        )
    if "rope" in golden and hasattr(model.model, "rotary_emb"):
        record_rope(model, out, golden["rope/main/positions"][:].tolist())


def read_tokens(path: Path) -> np.ndarray:
    """.npy with integers, or text with integers separated by anything else."""
    tokens = np.load(path).ravel() if path.suffix == ".npy" else np.array([int(t) for t in re.findall(r"\d+", path.read_text())])
    if tokens.size == 0 or tokens.dtype.kind not in "iu":
        raise ValueError(f"{path}: expected token ids, found {tokens.size} values of {tokens.dtype}")
    return tokens


def nowhere(missing: list[str], layers: int) -> list[str]:
    """Taps that no layer has. Missing in some is normal: a window-only layer has no compressor."""
    taps = [key.rsplit("/", 1)[-1] for key in missing]
    return sorted({tap for tap in taps if taps.count(tap) == layers})


def cast_parameters(model: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """Parameters only: buffers (inverse frequencies, the router's bias) stay float32, or RoPE angles would be rounded."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    return model


def load_any(source: str, device: str, dtype: str):  # -> (model, Release | None)
    """A release folder through checkpoint.py, anything else through from_pretrained."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if Path(source).is_dir() and is_release(Path(source)):
        model, release = load_release(Path(source), device)
        return cast_parameters(model, getattr(torch, dtype)), release
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype), attn_implementation="eager")
    return model.eval().to(device), None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="release folder, or a name or folder for from_pretrained")
    parser.add_argument("out", type=Path, help="dump to write")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--tokens", type=Path, help="token ids: .npy or text")
    what.add_argument("--like", type=Path, help="golden file whose cases, tokens and positions are repeated")
    parser.add_argument("--positions", help="comma-separated positions for --tokens (default: the last one)")
    parser.add_argument("--case", default="*", help="with --like: the cases to run (glob)")
    parser.add_argument("--taps", nargs="+", help="taps or globs, as `streams` or `layers/3/*` (default: all, or those of --like)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float64"])
    parser.add_argument("--producer", help="names the engine in the dump")
    options = parser.parse_args()

    import transformers

    try:
        model, release = load_any(options.model, options.device, options.dtype)
        mtp = MtpLayer(model, release) if release and has_mtp(release) and options.dtype == "float32" else None
        with h5py.File(options.out, "w", libver=("v110", "v110")) as out:
            describe(
                out,
                model_name=Path(options.model).name,
                producer=options.producer or f"transformers {transformers.__version__} {type(model).__name__}, {options.dtype}, {options.device}",
                numerics="math" if options.dtype == "float32" else f"math in {options.dtype}",
                weights_sha256=release.sha256() if release else "",
                config=release.config_text if release else model.config.to_json_string(),
            )
            if options.like:
                with h5py.File(options.like, "r") as golden:
                    record_like(model, golden, out, options.case, options.taps, mtp, progress=sys.stderr.isatty())
            else:
                tokens = read_tokens(options.tokens)
                positions = [int(p) for p in options.positions.split(",")] if options.positions else [len(tokens) - 1]
                ahead = [p for p in positions if p < len(tokens) - 1] if mtp else []
                missing = record(model, tokens, positions, out, f"ctx{len(tokens):05d}", options.taps or ["*"], mtp, ahead)
                for tap in nowhere(missing, len(model.model.layers)):
                    print(f"record_dump: {tap}: no layer of {type(model).__name__} has it where hooks.py looks", file=sys.stderr)
    except (ValueError, OSError, KeyError) as error:
        print(f"record_dump: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
