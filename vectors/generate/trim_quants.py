#!/usr/bin/env python3
"""Trims a file of format vectors (schema dsv4-quants-1) to the size that lives in the repository.

    trim_quants.py FULL.h5 OUT.h5

Kept: every type that dsv4check reads, every distribution of inputs. Cut: the rows of a case from
six to two (one for types that are only decoded), the rows of random bits, the importance matrices
of a case, and the dot products to two kinds of weights times one of activations. The tests read the
trimmed and the full file alike.
"""

import sys

import h5py
import numpy as np

ROWS = [0, 3]  # of the six of every case
BITS_ROWS = 8  # of 32; the dot products use the first six
ACTIVATIONS = ["normal"]
TYPES_LEFT_OUT = {"NVFP4", "Q1_0", "Q2_0", "TQ1_0", "TQ2_0"}  # dsv4check does not read them
# Types that dsv4check decodes but does not write need no variety of importance matrices.
DECODE_ONLY = {"IQ1_M", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS"}
IMATRICES = ["none", "random"]
# All four importance matrices for these distributions.
ALL_IMATRICES = {"normal"}


def put(group, name, data):
    group.create_dataset(name, data=data, compression="gzip", compression_opts=9, shuffle=True)


def kept_cases(type_name, cases, needs_imatrix):
    wanted = ["random"] if type_name in DECODE_ONLY else IMATRICES
    if needs_imatrix:
        wanted = ["random"]
    keep = []
    for i, case in enumerate(cases):
        distribution, imatrix = case.decode().split("/")
        everything = distribution in ALL_IMATRICES and type_name not in DECODE_ONLY
        if imatrix in wanted or everything:
            keep.append(i)
    return keep


def trim_dot(source, target, rows, needs_imatrix):
    """One kind of encoded weights and the random-bit blocks (whose rows are not cut)."""
    weights = "normal_ones" if needs_imatrix else "normal_none"
    for name in (weights, "bits"):
        if name not in source:
            continue
        for act in ACTIVATIONS:
            old = source[name][act]
            new = target.create_group(f"{name}/{act}")
            weight_rows = slice(None) if name == "bits" else rows
            for key in ("exact", "x64", "zen4"):
                put(new, key, old[key][:][weight_rows][:, ROWS])
            put(new, "activation_raw", old["activation_raw"][:][ROWS])


def main(full_path, out_path):
    with h5py.File(full_path, "r") as full, h5py.File(out_path, "w", libver="latest") as out:
        for key, value in full.attrs.items():
            out.attrs[key] = value
        out.attrs["trimmed"] = "fewer rows, importance matrices and dot products; see trim_quants.py"
        inputs = out.create_group("inputs")
        put(inputs, "names", full["inputs/names"][:])
        put(inputs, "rows", full["inputs/rows"][:][:, ROWS])
        imatrix = out.create_group("imatrix")
        put(imatrix, "names", full["imatrix/names"][:])
        put(imatrix, "rows", full["imatrix/rows"][:])
        acts = out.create_group("acts")
        keep = [i for i, n in enumerate(full["acts/names"][:]) if n.decode() in ACTIVATIONS]
        put(acts, "names", full["acts/names"][:][keep])
        put(acts, "rows", full["acts/rows"][:][keep][:, ROWS])

        for name, old in full["types"].items():
            if name in TYPES_LEFT_OUT:
                continue
            new = out.create_group(f"types/{name}")
            for key, value in old.attrs.items():
                new.attrs[key] = value
            needs_imatrix = bool(old.attrs["requires_imatrix"])
            cases = old["cases"][:]
            keep = kept_cases(name, cases, needs_imatrix)
            put(new, "cases", cases[keep])
            rows = ROWS[:1] if name in DECODE_ONLY else ROWS
            put(new, "raw", old["raw"][:][keep][:, rows])
            put(new, "decoded", old["decoded"][:][keep][:, rows])
            if "bits" in old:
                for key in ("raw", "decoded"):
                    put(new, f"bits/{key}", old["bits"][key][:BITS_ROWS])
            trim_dot(old["dot"], new.create_group("dot"), rows, needs_imatrix)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2])
