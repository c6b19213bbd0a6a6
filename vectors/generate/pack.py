#!/usr/bin/env python3
"""Lay a vector file out so that it is read fast: the same groups, attributes and values, other bytes.

    pack.py FILE.h5 ...              rewrite each file in place, if nothing in it would change
    pack.py --check FILE.h5 OTHER.h5 whether two files hold the same; exit 1 on any difference

What makes a vector file slow is its many small datasets and zlib's decoder. So: links stand in the headers of their
groups, small datasets in their own, and what belongs to a case side by side. Larger datasets are one chunk with the
filters shuffle and deflate, as before, which any HDF5 reads; but the first bytes of all floats (low mantissa: noise)
are deflate's stored blocks, which are copied, and only the last ones are coded. That is smaller than what zlib makes of
the whole, too. TIME_WORTH says how many bytes a microsecond of decoding is worth.
"""

from __future__ import annotations

import argparse
import ctypes
import ctypes.util
import os
import struct
import sys
import zlib
from pathlib import Path

import h5py
import numpy as np

COMPACT_MOST = 60_000  # bytes that a dataset in a header may have; HDF5 allows 64 KiB of message
LINKS_MOST = 4096  # links that stay in a group's header
CHUNK_MOST = 1 << 20  # bytes of one chunk
CHUNK_OVERHEAD = 60  # bytes that filters and chunk add to a header
TIME_WORTH = 170.0  # bytes for a microsecond
STRATEGIES = (zlib.Z_DEFAULT_STRATEGY, zlib.Z_HUFFMAN_ONLY, zlib.Z_RLE)


class PackError(ValueError):
    pass


# ---- what h5py does not offer -------------------------------------------------------------------


def library() -> ctypes.CDLL:
    """The HDF5 library that h5py has loaded."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split(maxsplit=5)[-1]
        if "libhdf5" in os.path.basename(path) and "_hl" not in os.path.basename(path):
            return ctypes.CDLL(path)
    raise PackError("expected h5py to have loaded libhdf5, found no such library")


LIBRARY = library()


def call(name: str, identifier: int, *arguments: object) -> None:
    function = getattr(LIBRARY, name)
    function.restype = ctypes.c_int
    if function(ctypes.c_int64(identifier), *arguments) < 0:
        raise PackError(f"{name} failed")


# ---- deflate ------------------------------------------------------------------------------------


def stored(data: bytes) -> bytes:
    """Deflate blocks that hold the bytes as they are; none of them is the last."""
    parts = []
    for at in range(0, len(data), 65535):
        piece = data[at : at + 65535]
        parts.append(struct.pack("<BHH", 0, len(piece), len(piece) ^ 0xFFFF) + piece)
    return b"".join(parts)


def libdeflate() -> ctypes.CDLL:
    """libdeflate, which weighs more parses than zlib does."""
    name = ctypes.util.find_library("deflate")
    if name is None:
        raise PackError("expected libdeflate, found no such library")
    found = ctypes.CDLL(name)
    found.libdeflate_alloc_compressor.restype = ctypes.c_void_p
    found.libdeflate_deflate_compress.restype = ctypes.c_size_t
    return found


CODER = libdeflate()
MOST_EFFORT = CODER.libdeflate_alloc_compressor(12)


def deflated(data: bytes) -> bytes:
    """Raw deflate, the best that zlib and libdeflate have."""
    best = None
    for strategy in STRATEGIES:
        coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, strategy)
        found = coder.compress(data) + coder.flush()
        best = found if best is None or len(found) < len(best) else best
    room = ctypes.create_string_buffer(len(best))
    sizes = ctypes.c_size_t(len(data)), room, ctypes.c_size_t(len(best))
    size = CODER.libdeflate_deflate_compress(ctypes.c_void_p(MOST_EFFORT), data, *sizes)
    return room.raw[:size] if 0 < size < len(best) else best  # 0: no room for it


def encodings(values: np.ndarray):
    """(bytes, microseconds, chunk): the chunk with 0 to 3 of the four byte planes stored."""
    planes = np.frombuffer(values.tobytes(), np.uint8).reshape(-1, 4).T
    whole = planes.tobytes()
    n = planes.shape[1]
    for count in range(4):
        tail = deflated(whole[count * n :])
        body = stored(whole[: count * n]) + tail
        chunk = b"\x78\xda" + body + struct.pack(">I", zlib.adler32(whole))
        # about what libdeflate takes: a code table, then coded bytes; the stored ones are copied
        yield len(chunk), 3 + (len(whole) - count * n) / 500 + len(whole) / 4000, chunk


# ---- copying ------------------------------------------------------------------------------------


def copy_attributes(source, target) -> None:
    for name in source.attrs:
        attribute = source.attrs.get_id(name)
        kind, space = attribute.get_type(), attribute.get_space()
        new = h5py.h5a.create(target.id, name.encode(), kind, space)
        value = source.attrs[name]
        if kind.get_class() == h5py.h5t.STRING and kind.is_variable_str():
            box = np.empty(space.shape, dtype=h5py.string_dtype())
            box[()] = value
            new.write(box)
        else:
            box = np.empty(space.shape, dtype=attribute.dtype)
            attribute.read(box)
            new.write(box)


def properties(dataset, storage) -> h5py.h5p.PropDCID:
    made = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    made.set_obj_track_times(False)
    made.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    if storage == "compact":
        made.set_layout(h5py.h5d.COMPACT)
    elif storage == "chunk":
        made.set_chunk(dataset.shape)
        made.set_shuffle()
        made.set_deflate(9)
    return made


def copy_dataset(source: h5py.Dataset, group: h5py.Group, name: str) -> None:
    if source.dtype.str not in ("<f4", "<i4") or source.size == 0:
        h5py.h5o.copy(source.parent.id, name.encode(), group.id, name.encode())
        return
    values = np.ascontiguousarray(source[()])
    plain = "compact" if values.nbytes <= COMPACT_MOST else "contiguous"
    best = (values.nbytes + TIME_WORTH * values.nbytes / 4000, plain, b"")
    if source.ndim and values.nbytes <= CHUNK_MOST:
        for size, time, chunk in encodings(values):
            cost = size + CHUNK_OVERHEAD + TIME_WORTH * time
            best = min(best, (cost, "chunk", chunk), key=lambda choice: choice[0])
    space = h5py.h5s.create_simple(source.shape) if source.ndim else h5py.h5s.create(h5py.h5s.SCALAR)
    new = h5py.h5d.create(group.id, name.encode(), source.id.get_type(), space, dcpl=properties(source, best[1]))
    if best[1] == "chunk":
        new.write_direct_chunk((0,) * source.ndim, best[2])
    else:
        new.write(h5py.h5s.ALL, h5py.h5s.ALL, values)
    copy_attributes(source, h5py.Dataset(new))


def new_group(parent: h5py.Group, name: str, source: h5py.Group) -> h5py.Group:
    made = h5py.h5p.create(h5py.h5p.GROUP_CREATE)
    names = max((len(link.encode()) for link in source), default=8)
    call("H5Pset_link_phase_change", made.id, ctypes.c_uint(LINKS_MOST), ctypes.c_uint(0))
    call("H5Pset_est_link_info", made.id, ctypes.c_uint(max(len(source), 1)), ctypes.c_uint(names))
    made.set_obj_track_times(False)
    return h5py.Group(h5py.h5g.create(parent.id, name.encode(), gcpl=made))


def copy_group(source: h5py.Group, target: h5py.Group) -> None:
    """Groups first, so that what leads to the values is in one piece."""
    inner = {name: new_group(target, name, source[name]) for name in source if isinstance(source[name], h5py.Group)}
    copy_attributes(source, target)
    for name in source:
        if isinstance(source.get(name, getlink=True), h5py.HardLink) and isinstance(source[name], h5py.Dataset):
            copy_dataset(source[name], target, name)
        elif name not in inner:
            raise PackError(f"{source.file.filename}: {source[name].name}: expected a group or a dataset")
    for name, group in inner.items():
        copy_group(source[name], group)


# ---- the same? ----------------------------------------------------------------------------------


def same_attributes(a, b) -> str:
    if list(a.attrs) != list(b.attrs) and sorted(a.attrs) != sorted(b.attrs):
        return f"attributes {sorted(a.attrs)} and {sorted(b.attrs)}"
    for name in a.attrs:
        x, y = a.attrs.get_id(name), b.attrs.get_id(name)
        if x.get_type() != y.get_type() or x.shape != y.shape:
            return f"attribute {name}: another type"
        if not np.array_equal(np.asarray(a.attrs[name]), np.asarray(b.attrs[name])):
            return f"attribute {name}: another value"
    return ""


def difference(a, b) -> str:
    """The first difference between two objects and all below them; "" = none."""
    if type(a) is not type(b):
        return f"{a.name}: {type(a).__name__} and {type(b).__name__}"
    found = same_attributes(a, b)
    if found:
        return f"{a.name}: {found}"
    if isinstance(a, h5py.Dataset):
        if a.id.get_type() != b.id.get_type() or a.shape != b.shape or a.maxshape != b.maxshape:
            return f"{a.name}: another type or shape"
        return "" if a[()].tobytes() == b[()].tobytes() else f"{a.name}: other values"
    if sorted(a) != sorted(b):
        return f"{a.name}: {sorted(a)} and {sorted(b)}"
    return next((text for name in a if (text := difference(a[name], b[name]))), "")


def check(one: Path, other: Path) -> str:
    with h5py.File(one, "r") as a, h5py.File(other, "r") as b:
        return difference(a["/"], b["/"])


def pack(path: Path) -> None:
    temporary = path.with_name(path.name + ".tmp")
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_libver_bounds(h5py.h5f.LIBVER_LATEST, h5py.h5f.LIBVER_LATEST)
    call("H5Pset_meta_block_size", access.id, ctypes.c_uint64(1 << 15))
    create = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    create.set_obj_track_times(False)
    call("H5Pset_link_phase_change", create.id, ctypes.c_uint(LINKS_MOST), ctypes.c_uint(0))
    try:
        made = h5py.h5f.create(os.fsencode(temporary), h5py.h5f.ACC_TRUNC, create, access)
        with h5py.File(path, "r") as source, h5py.File(made) as target:
            copy_group(source["/"], target["/"])
        found = check(path, temporary)
        if found:
            raise PackError(f"{path}: {found}")
        before, after = path.stat().st_size, temporary.stat().st_size
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    print(f"{path}: {before} -> {after} bytes")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("files", type=Path, nargs="+")
    options = parser.parse_args()
    try:
        if not options.check:
            for path in options.files:
                pack(path)
            return 0
        if len(options.files) != 2:
            parser.error("--check takes two files")
        found = check(*options.files)
        print(found or "the same")
        return 1 if found else 0
    except (OSError, PackError) as error:
        print(f"pack.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
