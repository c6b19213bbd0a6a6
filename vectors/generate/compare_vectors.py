#!/usr/bin/env python3
"""Compare two vector files or dumps and print the worst relative L2 distance of every tap they share.

    compare_vectors.py EXPECTED.h5 ACTUAL.h5 [--limit 1e-6] [--case GLOB] [--tap GLOB]

Relative L2 = |actual - expected| / |expected| over one tap of one layer of one case, all shared positions together: the limit is
for this figure. The worst single position (row for compressed_kv and indexer_kv) is shown beside it; it is larger, above all where
a position's own values nearly cancel. Selections are compared as sets: the figure is the number of rows whose sets differ.
router_weights are aligned by expert first, and indexer_scores count only the rows that the position can see.
Exit codes: 0 all within the limit, 1 beyond it, 2 bad input or nothing to compare.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable

import h5py
import numpy as np

SETS = {"indexer_topk", "router_experts"}
ROWS = {"compressed_kv", "indexer_kv"}
CSA_RATIO = 4  # only layers of this ratio have an indexer
LABELS = {"tokens", "positions", "streams_steps", "logits_steps"}


@dataclass
class Worst:
    rel: float = 0.0  # of a whole tensor
    where: str = ""
    position_rel: float = 0.0
    position: str = ""
    count: int = 0
    differing_sets: int = 0


class InputError(ValueError):
    pass


def rel_l2(expected: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """One figure per first-axis entry; NaN in either gives inf."""
    expected = expected.reshape(len(expected), -1).astype(np.float64)
    actual = actual.reshape(len(actual), -1).astype(np.float64)
    norm = np.linalg.norm(expected, axis=1)
    gap = np.linalg.norm(actual - expected, axis=1)
    rel = np.where(norm > 0, gap / np.where(norm > 0, norm, 1), np.where(gap > 0, np.inf, 0))
    return np.where(np.isfinite(rel), rel, np.inf)


def common(expected: np.ndarray, actual: np.ndarray) -> tuple[list[int], list[int], np.ndarray]:
    """Indices of the labels both hold, and the labels."""
    labels = np.intersect1d(expected, actual)
    place_e = {int(v): i for i, v in enumerate(expected)}
    place_a = {int(v): i for i, v in enumerate(actual)}
    return [place_e[int(v)] for v in labels], [place_a[int(v)] for v in labels], labels


def ratio_of(config: dict, layer: int) -> int:
    return config["compress_ratios"][layer] if "compress_ratios" in config else 4


class Tally:
    """The worst figures by tap."""

    def __init__(self, tap_glob: str) -> None:
        self.tap_glob = tap_glob
        self.worst: dict[str, Worst] = defaultdict(Worst)

    def values(self, tap: str, where: str, x: np.ndarray, y: np.ndarray, labels: Iterable[int], unit: str = "position") -> None:
        """One tensor, first axis labelled."""
        if not fnmatch.fnmatch(tap, self.tap_glob) or not x.size:
            return
        if x.shape != y.shape:
            raise InputError(f"{where} {tap}: expected shape {list(x.shape)}, found {list(y.shape)}")
        entry = self.worst[tap]
        entry.count += len(x)
        whole = float(rel_l2(x[None], y[None])[0])
        if whole > entry.rel or not entry.where:
            entry.rel, entry.where = whole, where
        for label, rel in zip(labels, rel_l2(x, y)):
            if rel > entry.position_rel:
                entry.position_rel, entry.position = float(rel), f"{where} {unit} {label}"

    def sets(self, tap: str, where: str, x: np.ndarray, y: np.ndarray, labels: Iterable[int]) -> None:
        if not fnmatch.fnmatch(tap, self.tap_glob):
            return
        entry = self.worst[tap]
        entry.count += len(x)
        for label, left, right in zip(labels, x, y):
            if set(left[left >= 0].tolist()) != set(right[right >= 0].tolist()):
                entry.differing_sets += 1
                entry.where = f"{where} position {label}"


def compare_prefill(name: str, e: h5py.Group, a: h5py.Group, tally: Tally) -> None:
    rows_e, rows_a, positions = common(e["positions"][:], a["positions"][:])
    keys: list[str] = []
    e.visititems(lambda key, item: keys.append(key) if isinstance(item, h5py.Dataset) and key in a else None)
    for key in keys:
        tap = key.rsplit("/", 1)[-1]
        if tap in LABELS:
            continue
        x, y = e[key][...], a[key][...]
        layer = key.split("/")[1] if key.startswith("layers/") else ""
        where = f"{name} layer {layer}" if layer else name
        if key == "mtp/logits":
            ours, theirs, labels = common(e["mtp/positions"][:], a["mtp/positions"][:])
            tally.values(key, where, x[ours], y[theirs], labels)
            continue
        if tap in ROWS:
            tally.values(tap, where, x, y, range(len(x)), "row")
            continue
        x, y, labels = x[rows_e], y[rows_a], positions
        if tap in SETS:
            tally.sets(tap, where, x, y, labels)
            continue
        if tap == "router_weights":
            order = key.replace("router_weights", "router_experts")
            if order in e and order in a:
                # weights of different sets cannot be aligned: router_experts reports those rows
                ex, ey = e[order][:][rows_e], a[order][:][rows_a]
                same = [row for row in range(len(x)) if set(ex[row]) == set(ey[row])]
                x = np.take_along_axis(x, np.argsort(ex, axis=1), axis=1)[same]
                y = np.take_along_axis(y, np.argsort(ey, axis=1), axis=1)[same]
                labels = labels[same]
        if tap == "indexer_scores":
            visible = np.arange(x.shape[1])[None, :] < (labels[:, None] + 1) // CSA_RATIO
            x = np.where(visible, x, 0)
            y = np.where(visible, y, 0) if x.shape == y.shape else y
        tally.values(tap, where, x, y, labels)


def compare_decode(name: str, e: h5py.Group, a: h5py.Group, tally: Tally) -> None:
    def rows(case: h5py.Group) -> np.ndarray:
        return case["logits_steps"][:] if "logits_steps" in case else np.arange(len(case["logits"]))

    if "logits" in e and "logits" in a:
        rows_e, rows_a, labels = common(rows(e), rows(a))
        tally.values("decode/logits", name, e["logits"][:][rows_e], a["logits"][:][rows_a], labels, "row")
    if "streams" in e and "streams" in a:
        rows_e, rows_a, labels = common(e["streams_steps"][:], a["streams_steps"][:])
        x, y = e["streams"][:][rows_e], a["streams"][:][rows_a]
        for layer in range(min(x.shape[1], y.shape[1])):
            tally.values("decode/streams", f"{name} layer {layer}", x[:, layer], y[:, layer], labels, "step")


def compare(expected: h5py.File, actual: h5py.File, case_glob: str, tap_glob: str) -> tuple[dict[str, Worst], int]:
    tally = Tally(tap_glob)
    cases = 0
    for name, e in expected["cases"].items():
        if not fnmatch.fnmatch(name, case_glob) or name not in actual["cases"]:
            continue
        a = actual["cases"][name]
        if not np.array_equal(e["tokens"][:], a["tokens"][:]):
            raise InputError(f"/cases/{name}/tokens: expected the same tokens in both files, found others")
        cases += 1
        if e.attrs["kind"] == "decode":
            compare_decode(name, e, a, tally)
        else:
            compare_prefill(name, e, a, tally)
    for kind in ("main", "compress"):
        path = f"rope/{kind}"
        if path in expected and path in actual:
            rows_e, rows_a, labels = common(expected[path]["positions"][:], actual[path]["positions"][:])
            for part in ("cos", "sin"):
                tally.values(f"{path}/{part}", path, expected[path][part][:][rows_e], actual[path][part][:][rows_a], labels)
    return tally.worst, cases


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("expected", type=Path)
    parser.add_argument("actual", type=Path)
    parser.add_argument("--limit", type=float, default=1e-6, help="largest relative L2 accepted (default 1e-6)")
    parser.add_argument("--case", default="*")
    parser.add_argument("--tap", default="*")
    options = parser.parse_args()
    try:
        with h5py.File(options.expected, "r") as expected, h5py.File(options.actual, "r") as actual:
            for path, file in ((options.expected, expected), (options.actual, actual)):
                if file.attrs.get("schema") != "dsv4-vectors-1":
                    raise InputError(f"{path}: attribute schema: expected dsv4-vectors-1, found {file.attrs.get('schema')}")
            left, right = (str(f.attrs.get("weights_sha256", "")) for f in (expected, actual))
            if left and right and left != right:
                print(f"other weights: {left[:16]} and {right[:16]}", file=sys.stderr)
            worst, cases = compare(expected, actual, options.case, options.tap)
    except (OSError, KeyError, ValueError) as error:
        print(f"{options.expected} and {options.actual}: {error}", file=sys.stderr)
        return 2
    if not worst:
        print(f"{options.expected} and {options.actual}: expected cases and taps in common, found none", file=sys.stderr)
        return 2
    beyond = [tap for tap, entry in worst.items() if entry.rel > options.limit or entry.differing_sets]
    print(f"{'tap':<20}{'rows':>6}  {'rel L2':>9} {'at':<24}{'one position':>13} at")
    for tap in sorted(worst):
        entry = worst[tap]
        mark = "  BEYOND" if tap in beyond else ""
        if tap in SETS:
            print(f"{tap:<20}{entry.count:>6}  {entry.differing_sets} sets differ {entry.where}{mark}")
        else:
            print(f"{tap:<20}{entry.count:>6}  {entry.rel:>9.2e} {entry.where:<24}{entry.position_rel:>13.2e} {entry.position}{mark}")
    total = sum(entry.count for entry in worst.values())
    print(f"{cases} cases, {total} rows, {len(beyond)} taps beyond {options.limit:g}")
    return 1 if beyond else 0


if __name__ == "__main__":
    sys.exit(main())
