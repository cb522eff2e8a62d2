"""Safetensors files, without the package: 8 bytes of length N, N bytes of JSON, then the data.

    {"w": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, "__metadata__": {...}}

Offsets count from the end of the JSON; all is little-endian. What is read are views of the mapped
file: a byte comes from the disk when it is used, and writing to a tensor never reaches the file.
Nothing is believed before it is checked: the tensors must tile the file.
"""
import json
import math
import mmap
import os

import torch

from common import Fail, atomic_open

DTYPES = {"BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "U16": torch.uint16,
          "I16": torch.int16, "U32": torch.uint32, "I32": torch.int32, "U64": torch.uint64,
          "I64": torch.int64,
          "F8_E5M2": torch.float8_e5m2, "F8_E4M3": torch.float8_e4m3fn, "F16": torch.float16,
          "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}


def unique(pairs):
    """A JSON object as a dict. A name that stands there twice would hide one of the two."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name stands in it twice")
    return dict(pairs)


def read_json(path):
    """A file that holds one JSON object -> dict"""
    try:
        with open(path, "rb") as f:
            content = json.loads(f.read().decode(), object_pairs_hook=unique)
    except OSError as e:
        raise Fail(f"cannot read {path}: {e.strerror}") from None
    except (ValueError, RecursionError) as e:
        raise Fail(f"{path} is not JSON ({e}): fetch it again") from None
    if not isinstance(content, dict):
        raise Fail(f"{path} holds no JSON object: fetch it again")
    return content


def read(path):
    """{name: tensor} of one file"""
    if not os.path.isfile(path):
        raise Fail(f"there is no file {path}: fetch it, or name another folder")
    try:
        with open(path, "rb") as f:
            data = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY)
        return views(data)
    except OSError as e:
        raise Fail(f"cannot read {path}: {e.strerror}") from None
    except (ArithmeticError, AttributeError, LookupError, RecursionError, RuntimeError, TypeError,
            ValueError) as e:               # an empty file, too: it cannot be mapped
        raise Fail(f"{path} is not a whole safetensors file ({e}): fetch it again") from None


def views(data):
    """The bytes of a file -> its tensors"""
    size = int.from_bytes(data[:8], "little")
    begin = 8 + size
    if begin > len(data):
        raise ValueError(f"of {len(data)} bytes, and its header would have {size}")
    header = json.loads(data[8:begin].decode(), object_pairs_hook=unique)
    header.pop("__metadata__", None)
    tensors, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        dtype, shape, (start, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
        if dtype not in DTYPES:
            raise ValueError(f"the dtype {dtype!r} of {name!r} is not known here")
        dtype = DTYPES[dtype]
        if not all(type(x) is int and 0 <= x < 2 ** 48 for x in (*shape, start, stop)):
            raise ValueError(f"the entry of {name!r} holds absurd numbers")
        if start != end:
            raise ValueError(f"{name!r} does not begin where the tensor before it ends")
        if stop - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{name!r} of shape {shape} cannot have {stop - start} bytes")
        if begin + stop > len(data):
            raise ValueError(f"{name!r} ends after the file")
        raw = torch.empty(0, dtype=torch.uint8)
        if stop > start:
            raw = torch.frombuffer(data, dtype=torch.uint8, count=stop - start,
                                   offset=begin + start)
        if (begin + start) % dtype.itemsize:                                # not aligned: a copy is
            raw = raw.clone()
        tensors[name], end = raw.view(dtype).view(shape), stop
    if begin + end != len(data):
        raise ValueError(f"its tensors have {end} bytes of the {len(data) - begin} that there are")
    return tensors


def read_folder(folder):
    """All tensors of a hub folder: of model.safetensors, or of the shards that the index names."""
    index = os.path.join(folder, "model.safetensors.index.json")
    if not os.path.exists(index):
        return read(os.path.join(folder, "model.safetensors"))
    where = read_json(index).get("weight_map")                              # {tensor: file}
    if not isinstance(where, dict) or not all(isinstance(file, str) for file in where.values()):
        raise Fail(f"{index} has no weight_map from tensor names to files: fetch it again")
    tensors, found = {}, {}
    for file in sorted(set(where.values())):
        if os.path.basename(file) != file:
            raise Fail(f"{index} names {file!r}, which is not in its folder: do not trust it")
        shard = read(os.path.join(folder, file))
        tensors.update(shard)
        found.update(dict.fromkeys(shard, file))
    if found != where:
        name = min(name for name, _ in found.items() ^ where.items())
        raise Fail(f"{folder}: the index and the files do not agree on {name!r}: fetch both again")
    return tensors


def write(path, tensors):
    """{name: tensor} -> a file. One tensor at a time is copied to the host."""
    kinds = {dtype: name for name, dtype in DTYPES.items()}
    header, end = {"__metadata__": {"format": "pt"}}, 0
    order = sorted(tensors, key=lambda name: -tensors[name].dtype.itemsize)            # all aligned
    for name in order:
        t = tensors[name]
        start, end = end, end + t.numel() * t.dtype.itemsize
        header[name] = dict(dtype=kinds[t.dtype], shape=list(t.shape), data_offsets=[start, end])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with atomic_open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            f.write(tensors[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
