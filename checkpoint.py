"""Checkpoints: one dict, written beside the old one and renamed, with a checksum.

The newest is ckpt.pt, older ones are ckpt-STEP.pt. The file is torch's own zip; the SHA-256 of all
bytes before it is the zip's comment.
"""
import contextlib
import hashlib
import os
import struct
import zipfile
from dataclasses import fields
from pathlib import Path

import torch

import data
import interpolant
from common import Fail, atomic_open
from loaded import Loaded
from model import Config, Transformer
from retrofit import llada

LONGEST = 2 ** 20       # tokens: no document is longer
FORMAT = 2              # raised when an older reader could make no sense of a newer file


# -----------------------------------------------------------------------------
# files

def digest(f, size):
    """SHA-256 of the first `size` bytes of an open file, in hex"""
    sha = hashlib.sha256()
    while size > 0 and (block := f.read(min(size, 1 << 24))):
        sha.update(block)
        size -= len(block)
    return sha.hexdigest().encode()


def save(out_dir, keep=2, **content):
    """Write out_dir/ckpt.pt. The last one becomes ckpt-STEP.pt, and all but the newest `keep` are
    removed. Whatever happens, the last good one is still there."""
    path = Path(out_dir, "ckpt.pt")
    if path.exists() and keep > 1:
        last = step_of(path)
        if last is not None and last < content["step"]:
            older = path.with_name(f"ckpt-{last:08d}.pt")
            older.unlink(missing_ok=True)
            os.link(path, older)
    with atomic_open(path, "w+b") as f:
        try:
            torch.save({"format": FORMAT, **content}, f)
        except RuntimeError as e:                       # torch's way to say that the disk is full
            raise OSError(28, str(e).splitlines()[0], str(path)) from None
        size = f.seek(0, os.SEEK_END) - 2               # a zip ends with the length of its comment
        f.seek(0)
        comment = digest(f, size)
        f.seek(size)
        f.write(struct.pack("<H", len(comment)) + comment)
    for old in found(out_dir)[keep:]:
        old.unlink()


def step_of(path):
    """The step of a checkpoint that this project wrote; None if it cannot be read"""
    try:
        return torch.load(path, map_location="meta", weights_only=True, mmap=True)["step"]
    except Exception:               # damaged, or another project's: it is about to be replaced
        return None


def found(out_dir):
    """All checkpoints in a folder, newest first"""
    paths = sorted(Path(out_dir).glob("ckpt-*.pt"), reverse=True)
    if Path(out_dir, "ckpt.pt").exists():
        paths.insert(0, Path(out_dir, "ckpt.pt"))
    return paths


def read(path):
    """A checkpoint's dict, verified. Code in a file is never run (weights_only). Raises Fail."""
    path = Path(path)
    if not path.is_file():
        raise Fail(f"there is no checkpoint {path}: train one with python train.py")
    with open(path, "rb") as f:
        size = f.seek(0, os.SEEK_END)
        f.seek(0)
        comment = digest(f, size - 66)
        if f.read() != struct.pack("<H", 64) + comment:
            raise Fail(f"{path} is damaged (its checksum differs), or no checkpoint of this "
                       f"project: use an older one ({path.parent}/ckpt-*.pt)")
    try:
        check_archive(path, size)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:                              # torch raises many kinds
        raise Fail(f"{path} cannot be read, and code in it is never run ({reason(e)})") from None
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise Fail(f"{path} is not a checkpoint of this project")
    if content["format"] != FORMAT:
        raise Fail(f"{path} has format {content['format']}, this version reads {FORMAT}: use the "
                   "version of the code that wrote it")
    with must_fit(path):
        for name, kind in PARTS.items():
            if not isinstance(content[name], kind):
                raise ValueError(f"{name} is not a {kind.__name__}")
        for part in ("model", "ema"):
            if sum(w.nbytes for w in content[part].values()) > size:
                raise ValueError("its weights claim to be larger than the file")
    return content


PARTS = dict(model=dict, ema=dict, config=dict, args=dict, tokenizer=dict, step=int)


def check_archive(path, size):
    """A zip may claim to hold more than its size: torch stores without compression."""
    with zipfile.ZipFile(path) as z:
        if sum(record.file_size for record in z.infolist()) > size:
            raise ValueError("it claims to hold more than its size")


def reason(e):
    """The first line of an exception, in which torch says what is wrong"""
    return (str(e).splitlines() or [type(e).__name__])[0]


@contextlib.contextmanager
def must_fit(path):
    """Around the use of a checkpoint: where its parts do not fit each other, that is a Fail."""
    try:
        yield
    except (KeyError, TypeError, RuntimeError, ValueError, AttributeError) as e:
        raise Fail(f"{path} does not fit its own description ({reason(e)})") from None


def newest_good(out_dir, warn):
    """The newest checkpoint in a folder that can be read"""
    fault = f"there is no checkpoint in {out_dir}: train without --init_from first"
    for path in found(out_dir):
        try:
            content = read(path)
        except Fail as e:
            fault = str(e)
            warn(f"warning: {fault}")
            continue
        warn(f"going on from {path}, step {content['step']}")
        return content
    raise Fail(fault)


# -----------------------------------------------------------------------------
# networks

def build(content):
    """The network that a checkpoint's dict describes, without its weights"""
    config = content["config"]
    if content.get("base"):                             # adapters of a pretrained model
        schedule, size = config["insertion"], config["block_size"]
        return llada.retrofit(content["base"], schedule, size, content["lora"])
    unknown = set(config) - {f.name for f in fields(Config)}
    if unknown:
        raise Fail(f"the checkpoint has options that are not known here: {', '.join(unknown)}")
    for part in ("model", "ema"):
        check_sizes(config, content[part])
    return Transformer(Config(**config), content.get("permutation"))


def check_sizes(config, weights):
    """Before anything is built: a description must not ask for more than the file holds."""
    for f in fields(Config):
        if type(config.get(f.name, f.default)) is not f.type:
            raise ValueError(f"{f.name} is {config[f.name]!r}")
    blocks = {name.split(".")[1] for name in weights if name.startswith("blocks.")}
    head = tuple(weights["head.weight"].shape)
    if len(blocks) != config["n_layer"] or head != (config["V"], config["n_embd"]):
        raise ValueError("its sizes are not those of its weights")
    if config["block_size"] > LONGEST:                  # no weight's shape limits it
        raise ValueError(f"block_size is {config['block_size']}")
    interpolant.schedule(config["insertion"])           # is there one of that name?
    with torch.device("meta"):                          # shapes only
        net = Transformer(Config(**config))
    check_names(net, weights)
    for name, p in net.named_parameters():
        if p.shape != weights[name].shape:
            raise ValueError(f"{name} has another shape")


def check_names(net, weights):
    """They must be all that is trained; adapters need not name what is frozen."""
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    if set(weights) != trained:
        odd = min(set(weights) ^ trained)
        raise ValueError(f"{odd} is missing, or has no place")


def set_weights(net, weights):
    """Load weights into a network"""
    check_names(net, weights)
    if not all(w.isfinite().all() for w in weights.values()):
        raise ValueError("its weights are not finite numbers")
    net.load_state_dict(weights, strict=False)


def load(path, device="cpu", ema=True):
    """A run's folder, a checkpoint, an exported folder or a LLaDA folder -> Loaded, with the
    averaged weights (ema=False: the last ones)."""
    path = Path(path)
    if llada.is_folder(path):
        return from_llada(path, device)
    if path.is_dir() or not path.suffix:
        path = path / "ckpt.pt"
    content = read(path)
    with must_fit(path):
        net = build(content)
        set_weights(net, content["ema" if ema else "model"])
        interpolant.schedule(content["args"]["unmasking"])      # is there one of that name?
        tokenizer = data.tokenizer_from(content["tokenizer"])
        if tokenizer.vocab_size != net.config.V:
            raise ValueError("its tokenizer has another vocabulary")
        net = net.to(device).eval().requires_grad_(False)
        return Loaded(net, content["args"], tokenizer, content["step"])


def from_llada(folder, device):
    """A pretrained model as it is: LLaDA itself, or a folder that retrofit/export.py wrote"""
    net, description = llada.load(folder, device), llada.described(folder)
    method = "mdm" if net.gap is None else "flexmdm"
    args = dict(method=method, insertion=net.config.insertion, unmasking="linear", dataset="",
                split="paragraph", field="text", packing="documents")
    tokenizer = data.tokenizer_from(description.get("tokenizer") or str(folder))
    net = net.eval().requires_grad_(False)
    return Loaded(net, description.get("args") or args, tokenizer, 0)
