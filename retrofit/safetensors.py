"""A pretrained model's folder: config.json and safetensors files, without the package. Such a file
is 8 bytes of length N, N bytes of JSON, then the data; offsets count from the end of the JSON:

    {"w": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, "__metadata__": {...}}

The tensors are views of the mapped file: a byte comes from the disk when it is used, and writing to
a tensor never reaches the file.
"""
import contextlib
import json
import mmap
import os

import torch

from common import Fail, atomic_open

DTYPES = {"BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16,
          "I32": torch.int32, "I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16,
          "F32": torch.float32, "F64": torch.float64}


def read_json(path):
    """A file that holds one JSON object -> dict"""
    try:
        with open(path, encoding="utf-8") as f:
            content = json.load(f)
        if not isinstance(content, dict):
            raise ValueError("it holds no JSON object")
    except (OSError, ValueError, RecursionError) as e:
        raise Fail(f"cannot read {path} ({e}): fetch it again") from None
    return content


def read_config(folder, implemented):
    """config.json. implemented: {key: the values that the code knows; None: it may be absent}"""
    path = os.path.join(folder, "config.json")
    config = read_json(path)
    for key, values in implemented.items():
        if config.get(key) not in values:
            raise Fail(f"{path}: {key} is {config.get(key)!r}, and the code implements {values}")
    return config


@contextlib.contextmanager
def must_fit(folder):
    """Around the building of a network: where tensors and config.json differ, that is a Fail."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        why = " ".join(str(e).split())
        raise Fail(f"{folder}: the tensors do not fit config.json ({why}): fetch both") from None


def read(path):
    """{name: tensor} of one file"""
    if not os.path.isfile(path):
        raise Fail(f"there is no file {path}: fetch it, or name another folder")
    try:
        with open(path, "rb") as f:
            return views(mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY))
    except Exception as e:                  # a damaged header raises many kinds
        raise Fail(f"{path} is not a whole safetensors file ({e!r}): fetch it again") from None


def views(data):
    """The bytes of a file -> its tensors. The header must describe all of them, without a hole."""
    end = begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    header.pop("__metadata__", None)
    tensors, raw = {}, torch.frombuffer(data, dtype=torch.uint8)
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        start, stop = (begin + offset for offset in entry["data_offsets"])
        if start != end:
            raise ValueError(f"{name} does not begin where the tensor before it ends")
        part, end = raw[start:stop], stop
        dtype = DTYPES[entry["dtype"]]
        if part.data_ptr() % dtype.itemsize:
            part = part.clone()             # aligned, as torch needs it
        tensors[name] = part.view(dtype).view(tuple(entry["shape"]))
    if end != len(data):
        raise ValueError(f"it has {len(data)} bytes and describes {end}")
    return tensors


def read_folder(folder):
    """All tensors of a folder: of model.safetensors, or of the shards that the index names"""
    index = os.path.join(folder, "model.safetensors.index.json")
    files = {"model.safetensors"}
    if os.path.exists(index):
        files = set(read_json(index)["weight_map"].values())                # {tensor: file}
    tensors = {}
    for file in files:
        tensors |= read(os.path.join(folder, os.path.basename(file)))
    return tensors


def write(path, tensors):
    """{name: tensor} -> a file. One tensor at a time is copied to the host."""
    names = {dtype: name for name, dtype in DTYPES.items()}
    tensors = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)     # all aligned
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, t in tensors:
        start, end = end, end + t.nbytes
        header[name] = dict(dtype=names[t.dtype], shape=list(t.shape), data_offsets=[start, end])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with atomic_open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for _, t in tensors:
            f.write(t.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
