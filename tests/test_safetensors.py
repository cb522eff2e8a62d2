"""retrofit/safetensors.py: every tensor goes out and comes back; what a file says of itself is
believed only where it fits, and else is one sentence."""
import json
import os
import random
import re

import pytest
import torch

from common import Fail
from hub import write_shards
from retrofit import safetensors


def raw(tensor):
    return tensor.contiguous().view(-1).view(torch.uint8)


def container(header, data=b""):
    """The bytes of a file with this header (a dict, or bytes) and data"""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_every_dtype_goes_out_and_comes_back(tmp_path):
    tensors = {"scalar": torch.tensor(2.5), "none": torch.empty(0, 7),
               "ünïcode": torch.arange(5).view(5, 1).T, "flags": torch.rand(3, 4) < 0.5}
    for i, dtype in enumerate(safetensors.DTYPES.values()):
        if dtype != torch.bool:
            data = torch.randint(0, 256, (3 * (i + 1) * dtype.itemsize,)).byte()
            tensors[f"t{i}"] = data.view(dtype).view(3, i + 1)
    safetensors.write(tmp_path / "x.safetensors", tensors)
    back = safetensors.read(tmp_path / "x.safetensors")
    assert set(back) == set(tensors)
    for name, t in tensors.items():
        assert back[name].dtype == t.dtype and back[name].shape == t.shape
        assert torch.equal(raw(back[name]), raw(t))
        assert back[name].data_ptr() % t.dtype.itemsize == 0
    assert os.listdir(tmp_path) == ["x.safetensors"]                        # nothing left beside it


def test_a_file_is_mapped_not_copied_and_never_written_to(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.write(path, {"w": torch.arange(1 << 16, dtype=torch.float32)})
    before, w = path.read_bytes(), safetensors.read(path)["w"]
    w.mul_(2)
    assert w[3] == 6 and path.read_bytes() == before
    safetensors.write(path, {"w": w})                                       # over the mapped file
    assert w[3] == 6 and safetensors.read(path)["w"][3] == 6


def test_unaligned_tensors_are_read(tmp_path):
    header = {"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
              "b": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]}}
    data = b"\7" + torch.tensor([1.5, -2.0]).numpy().tobytes()
    (tmp_path / "x").write_bytes(container(header, data))
    tensors = safetensors.read(tmp_path / "x")
    assert tensors["a"].tolist() == [7] and tensors["b"].tolist() == [1.5, -2.0]
    assert tensors["b"].data_ptr() % 4 == 0


GOOD = {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        "b": {"dtype": "BF16", "shape": [4], "data_offsets": [16, 24]}}


def lie(**changes):
    return container({**GOOD, "b": {**GOOD["b"], **changes}}, bytes(24))


@pytest.mark.parametrize("content", [
    b"", b"1234567", bytes(8), b"\xff" * 8 + b"{}", container(b"[1]"), container(b"null"),
    container(b"{" * 100000), container(b'{"a":' + b"[" * 200000), container(b"\xff\xfe{}"),
    container(GOOD, bytes(23)), container(GOOD, bytes(25)), container(GOOD, bytes(24))[:60],
    container({**GOOD, "b": 7}, bytes(24)),
    container({"a": {"dtype": "F32"}}), container(b'{"a":' + b"9" * 5000 + b"}"),
    lie(dtype="F4"), lie(dtype=["F32"]), lie(dtype=None), lie(shape=[5]), lie(shape=4),
    lie(shape=[4.0]), lie(shape=[-2, -2]), lie(shape=[1 << 40, 1 << 40]),
    lie(shape=[0, 1 << 40, 1 << 40]), lie(shape=[1 << 50]),
    lie(data_offsets=[0, 8]), lie(data_offsets=[8, 16]), lie(data_offsets=[20, 28]),
    lie(data_offsets=[24, 16]), lie(data_offsets=[-8, 0]),
    lie(data_offsets=[1 << 70, (1 << 70) + 8]), lie(data_offsets=[16]),
    lie(data_offsets=None), lie(data_offsets=[1 << 50, (1 << 50) + 8]),
    lie(shape=[1 << 45], data_offsets=[16, 16 + (2 << 45)])])
def test_a_lying_header_is_one_sentence(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(Fail, match="is not a whole safetensors file.*fetch it again"):
        safetensors.read(tmp_path / "x")


def damaged(rng, good):
    """Bytes changed, cut off, repeated, another length, or other numbers in the header"""
    b = bytearray(good)
    kind = rng.randrange(5)
    if kind == 0:
        for _ in range(rng.randrange(1, 4)):
            b[rng.randrange(len(b))] = rng.randrange(256)
    elif kind == 1:
        del b[rng.randrange(len(b)):]
    elif kind == 2:
        i = rng.randrange(len(b))
        b[i:i] = b[rng.randrange(len(b)):][:rng.randrange(40)]
    elif kind == 3:
        size = rng.choice([rng.randrange(256), 1 << rng.randrange(64), len(b) - 8])
        b[:8] = size.to_bytes(8, "little")
    else:
        numbers = [b"0", b"-1", b"8", b"16", b"1e9", b"9" * rng.randrange(1, 30)]
        text = re.sub(rb"\d+", lambda m: rng.choice([m[0], m[0], *numbers]), bytes(b[8:-24]))
        b = container(text, bytes(24))
    return bytes(b)


def test_damaged_files_only_ever_fail(tmp_path):
    """A Fail, or tensors that fit the file; nothing else, and no crash."""
    rng, failed, read = random.Random(0), 0, 0
    good = container(GOOD, bytes(range(24)))
    for _ in range(2000):
        content = damaged(rng, good)
        (tmp_path / "x").write_bytes(content)
        try:
            tensors = safetensors.read(tmp_path / "x")
        except Fail:
            failed += 1
            continue
        read += 1
        assert sum(t.numel() * t.dtype.itemsize for t in tensors.values()) <= len(content)
        assert all(t.clone().shape == t.shape for t in tensors.values())
    assert failed > 1000 and read > 20, (failed, read)


def test_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "nothing", tmp_path, tmp_path / "pipe"):
        with pytest.raises(Fail, match="there is no file"):
            safetensors.read(path)
    with pytest.raises(Fail, match="there is no file .*model.safetensors"):
        safetensors.read_folder(tmp_path)


def test_shards(tmp_path):
    tensors = {"a": torch.randn(3), "b": torch.randn(4), "c": torch.randn(5)}
    where = {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-2.safetensors"}
    write_shards(tmp_path / "s", where, tensors)
    back = safetensors.read_folder(tmp_path / "s")
    assert set(back) == set(tensors) and all(torch.equal(back[k], tensors[k]) for k in tensors)

    index = tmp_path / "s" / "model.safetensors.index.json"
    for bad in ("model-3.safetensors", "/etc/passwd", ".."):
        index.write_text(json.dumps({"weight_map": {**where, "c": bad}}))
        with pytest.raises(Fail, match="there is no file"):
            safetensors.read_folder(tmp_path / "s")
    index.write_text("{")
    with pytest.raises(Fail, match="cannot read .*index.json"):
        safetensors.read_folder(tmp_path / "s")
