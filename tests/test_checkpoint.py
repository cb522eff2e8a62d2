"""checkpoint.py: what is saved comes back, damage and forgeries are refused in one sentence, and
whatever happens the last good file is still there."""
import hashlib
import io
import math
import os
import pickle
import struct
import zipfile
from dataclasses import asdict

import pytest
import torch

import checkpoint
import data
import runs
from checkpoint import Loaded
from common import Fail
from model import Config, Transformer

SIZES = dict(V=256, block_size=12, n_layer=2, n_head=2, n_embd=16, n_cond=8)
KINDS = {"flexmdm": Config(**SIZES), "mdm": Config(insertion="instant", **SIZES),
         "flexprime": Config(ell=2, **SIZES),
         "prime": Config(ell=4, insertion="instant", **SIZES),
         "ar": Config(insertion="instant", causal=True, **SIZES)}


def network(kind="flexmdm", permutation=None):
    """Every weight away from its start"""
    net = Transformer(KINDS[kind], permutation)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return net.eval()


def write(folder, net, **more):
    """A checkpoint of step 7 whose averages are half of its weights -> its path"""
    weights = {name: p.detach().clone() for name, p in net.named_parameters()}
    content = dict(step=7, model=weights, ema={name: w / 2 for name, w in weights.items()},
                   config=asdict(net.config), permutation=net.code.permutation,
                   args={"method": "flexmdm", "unmasking": "linear"},
                   tokenizer=data.tokenizer_from("bytes").spec())
    checkpoint.save(folder, **content | more)
    return folder / "ckpt.pt"


def seal(path):
    """Give a zip the comment that `read` asks for: the SHA-256 of all bytes before it."""
    content = path.read_bytes()
    assert content[-2:] == b"\0\0", "it has a comment"
    comment = hashlib.sha256(content[:-2]).hexdigest().encode()
    path.write_bytes(content[:-2] + struct.pack("<H", len(comment)) + comment)


def unsealed(path):
    """The zip as torch wrote it"""
    content = path.read_bytes()
    return content[:-66] + b"\0\0"


def refused(path, match=None):
    """Refused by read or load, in one sentence that names the file -> the sentence"""
    with pytest.raises(Fail, match=match) as fault:
        checkpoint.load(path)
    assert str(path) in str(fault.value) and "\n" not in str(fault.value)
    return str(fault.value)


def question(config):
    y = torch.full((2, 5, config.ell), 1)
    y[:, 1::2] = Transformer(config).code.mask
    n, at = torch.tensor([5, 4]), torch.zeros(2, 5, dtype=torch.bool)
    at[:, 1] = at[0, 3] = True
    return y, n, torch.tensor([0.3, 0.8]), at


# -----------------------------------------------------------------------------
# what is saved comes back

@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_gives_the_same_answers(kind, tmp_path):
    """From its averages, unless told otherwise; found by its own path and by its folder's."""
    net, asked = network(kind), question(KINDS[kind])
    path = write(tmp_path, net)
    for loaded in (checkpoint.load(path, ema=False), checkpoint.load(tmp_path, ema=False)):
        for a, b in zip(loaded.predict(*asked), net(*asked)):
            assert a is b is None or torch.equal(a, b) and not a.requires_grad
        assert loaded.step == 7 and loaded.config == KINDS[kind] and not loaded.net.training
        assert loaded.tokenizer.spec() == data.tokenizer_from("bytes").spec()
        assert loaded.args["method"] == "flexmdm"
    averaged = checkpoint.load(path)
    assert torch.equal(averaged.net.embed.weight, net.embed.weight.detach() / 2)


def test_slots_that_were_given_are_told_apart(tmp_path):
    net, (y, n, t, at) = network(), question(KINDS["flexmdm"])
    loaded = checkpoint.load(write(tmp_path, net), ema=False)
    given = torch.zeros(2, 5, dtype=torch.bool)
    given[:, 0] = True
    told, plain = loaded.predict(y, n, t, at, given=given)[0], loaded.predict(y, n, t, at)[0]
    assert torch.equal(told, net(y, n, t, at, given)[0]) and not torch.equal(told, plain)


@pytest.mark.parametrize("size", [256, 16 ** 2])
def test_a_checkpoint_keeps_its_digit_code(size, tmp_path):
    net = network("flexprime", permutation=torch.randperm(size))
    code = checkpoint.load(write(tmp_path, net)).code
    assert torch.equal(code.encode(torch.arange(256)), net.code.encode(torch.arange(256)))


def test_a_vocabulary_travels_with_the_checkpoint(tmp_path):
    """A trained BPE needs no file beside it."""
    ranks = [bytes([b]).hex() for b in range(256)] + [b"th".hex()]
    tokenizer = data.tokenizer_from({"name": "bpe-258", "ranks": ranks})
    config = Config(**SIZES | dict(V=258))
    path = write(tmp_path, Transformer(config), tokenizer=tokenizer.spec())
    loaded = checkpoint.load(path)
    assert loaded.tokenizer.encode("the") == [256, 101] and loaded.tokenizer.eot == 257


def test_weights_are_not_shared_with_what_was_loaded(tmp_path):
    net = network()
    path = write(tmp_path, net)
    with torch.no_grad():
        checkpoint.load(path).net.embed.weight.zero_()
    assert torch.equal(checkpoint.load(path, ema=False).net.embed.weight, net.embed.weight)


def test_only_text_up_to_the_first_end_is_a_document():
    """The end is 7 here. Where holes were filled, text follows an end, and ends are left out."""
    net = Transformer(Config(V=8, block_size=6, n_layer=1, n_head=1, n_embd=8, n_cond=4))
    loaded = Loaded(net, {}, data.tokenizer_from("numbers-8"), 0)
    x, n = torch.tensor([[1, 2, 7, 3, 7], [0, 5, 6, 7, 7]]), torch.tensor([5, 3])
    assert loaded.texts(x, n) == ["1 2", "0 5 6"]
    assert loaded.texts(x, n, holes=True) == ["1 2 3", "0 5 6"]


# -----------------------------------------------------------------------------
# the files of a run

def step_at(path):
    return checkpoint.read(path)["step"]


def test_the_newest_are_kept_and_found_in_order(tmp_path):
    net = network()
    for step in (1, 2, 10, 300):
        write(tmp_path, net, step=step, keep=3)
    assert [p.name for p in checkpoint.found(tmp_path)] == [
        "ckpt.pt", "ckpt-00000010.pt", "ckpt-00000002.pt"]
    assert [step_at(p) for p in checkpoint.found(tmp_path)] == [300, 10, 2]
    write(tmp_path, net, step=300, keep=3)              # the same step again: replaced
    assert [step_at(p) for p in checkpoint.found(tmp_path)] == [300, 10, 2]
    write(tmp_path, net, step=301, keep=1)
    assert [step_at(p) for p in checkpoint.found(tmp_path)] == [301]


def test_an_older_one_is_used_where_the_newest_is_damaged(tmp_path):
    net, said = network(), []
    for step in (1, 2, 3):
        write(tmp_path, net, step=step, keep=3)
    assert checkpoint.newest_good(tmp_path, said.append)["step"] == 3
    assert said == [f"going on from {tmp_path / 'ckpt.pt'}, step 3"]
    with open(tmp_path / "ckpt.pt", "r+b") as f:
        f.seek(3000)
        f.write(b"\xff" * 8)
    said.clear()
    assert checkpoint.newest_good(tmp_path, said.append)["step"] == 2
    assert said[0].startswith("warning: ") and "damaged" in said[0] and "step 2" in said[1]
    for path in checkpoint.found(tmp_path):
        path.write_bytes(b"")
    with pytest.raises(Fail, match="damaged"):
        checkpoint.newest_good(tmp_path, said.append)
    with pytest.raises(Fail, match="there is no checkpoint in"):
        checkpoint.newest_good(tmp_path / "nothing", said.append)


def test_a_damaged_one_never_pushes_out_a_good_one(tmp_path):
    """Step 6 is damaged, the run went on from 3 and is stopped after 4."""
    net = network()
    for step in (3, 6):
        write(tmp_path, net, step=step)
    with open(tmp_path / "ckpt.pt", "r+b") as f:
        f.seek(os.path.getsize(tmp_path / "ckpt.pt") // 2)             # in a weight
        f.write(b"\xff" * 8)
    write(tmp_path, net, step=4)
    assert [step_at(p) for p in checkpoint.found(tmp_path)] == [4, 3]


def test_a_write_that_fails_leaves_the_last_one(tmp_path):
    path = write(tmp_path, network())
    before = path.read_bytes()
    with pytest.raises(Exception):
        write(tmp_path, network(), bad=lambda: 0)       # cannot be pickled
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["ckpt.pt"]


def test_what_a_killed_process_left_is_removed_by_the_next_one(tmp_path):
    net, left = network(), [".ckpt.pt.abc.tmp", ".ckpt.pt.x1.tmp"]
    for name in [*left, ".other.tmp", "mine.tmp"]:
        (tmp_path / name).write_bytes(b"half")
    write(tmp_path, net)
    assert sorted(os.listdir(tmp_path)) == [".other.tmp", "ckpt.pt", "mine.tmp"]


def test_its_zip_is_one_that_any_tool_can_test(tmp_path):
    """The checksum is the zip's comment."""
    path = write(tmp_path, network())
    with zipfile.ZipFile(path) as z:
        assert z.testzip() is None
        assert z.comment.decode() == hashlib.sha256(unsealed(path)[:-2]).hexdigest()


# -----------------------------------------------------------------------------
# damage

def test_any_damage_is_noticed(tmp_path):
    """A bit changed anywhere, the file cut anywhere, or made longer"""
    path = write(tmp_path, network())
    good = path.read_bytes()
    places = [0, 1, 3, 30, *torch.randint(len(good), (60,)).tolist()]
    for i in places + [len(good) - k for k in (67, 66, 65, 64, 1)]:
        path.write_bytes(good[:i] + bytes([good[i] ^ (1 << i % 8)]) + good[i + 1:])
        refused(path, "damaged")
    for i in [0, 1, 65, 66, 100, *torch.randint(len(good), (20,)).tolist(), len(good) - 1]:
        path.write_bytes(good[:i])
        refused(path, "damaged")
    path.write_bytes(good + b"\0")
    refused(path, "damaged")
    path.write_bytes(good)
    assert checkpoint.load(path).step == 7


class Harmful:
    def __reduce__(self):
        return os.mkdir, (os.environ["HARM"],)


def test_code_in_a_checkpoint_is_never_run(tmp_path, monkeypatch):
    """Its checksum is right."""
    monkeypatch.setenv("HARM", str(tmp_path / "harm"))
    path = write(tmp_path, network(), extra=Harmful())
    refused(path, "code in it is never run")
    torch.save({"format": checkpoint.FORMAT, "x": Harmful()}, path)
    seal(path)
    refused(path, "code in it is never run")
    path.write_bytes(pickle.dumps(Harmful()))
    refused(path, "damaged")
    assert not (tmp_path / "harm").exists()


def test_what_is_not_there(tmp_path):
    refused(tmp_path / "absent.pt", "there is no checkpoint")
    with pytest.raises(Fail, match="there is no checkpoint"):
        checkpoint.load(tmp_path)
    with zipfile.ZipFile(tmp_path / "ckpt.pt", "w") as z:
        z.writestr("a", "b")
    refused(tmp_path / "ckpt.pt", "damaged")


# -----------------------------------------------------------------------------
# forgeries: their checksum is right

def changed(**options):
    """Options of the description that differ"""
    return dict(config={**asdict(KINDS["flexmdm"]), **options})


FORGED = {
    "another format": (dict(format=9), "format 9"),
    "a format that is no number": (dict(format="2"), "not a checkpoint"),
    "a step that is no number": (dict(step="seven"), "step is not a int"),
    "no flags": (dict(args=None), "args is not a dict"),
    "weights that are none": (dict(ema=[1, 2]), "ema is not a dict"),
    "an option from elsewhere": (changed(wings=2), "wings"),
    "another width": (changed(n_embd=48), "its sizes are not those"),
    "another vocabulary": (changed(V=10 ** 12), "its sizes are not those"),
    "a billion blocks": (changed(n_layer=10 ** 9), "its sizes are not those"),
    "a fraction of blocks": (changed(n_layer=2.0), "n_layer is 2.0"),
    "a time embedding of gigabytes": (changed(n_cond=10 ** 9), "has another shape"),
    "documents of terabytes": (changed(block_size=10 ** 12), "block_size is"),
    "flags without a schedule": (dict(args={}), "unmasking"),
    "a schedule that is no name": (dict(args={"unmasking": 3}), "does not fit"),
    "no digits": (changed(ell=0), "multiple of ell"),
    "too many digits": (changed(ell=16), "lower ell"),
    "a method without a gap head": (changed(insertion="instant"), "gap.*has no place"),
    "an unknown schedule": (changed(insertion="sideways"), "unknown schedule"),
    "no schedule": (changed(insertion=None), "insertion is None"),
    "a wrong permutation": (dict(permutation=torch.zeros(256).long()), "permutation"),
    "a permutation that is none": (dict(permutation="random"), "does not fit|permutation"),
    "an unknown tokenizer": (dict(tokenizer={"name": "x"}), "unknown tokenizer"),
    "another tokenizer": (dict(tokenizer={"name": "numbers-9"}), "vocabulary"),
    "a damaged vocabulary": (dict(tokenizer={"name": "bpe", "ranks": ["zz"]}), "vocabulary"),
}


@pytest.mark.parametrize("what", FORGED)
def test_a_forged_description_is_refused(what, tmp_path):
    more, match = FORGED[what]
    path = write(tmp_path, network(), **more)
    with pytest.raises(Fail, match=match) as fault:
        checkpoint.load(path)
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize("part", ["model", "ema"])
def test_forged_weights_are_refused(part, tmp_path):
    """One missing, one too many, one of another shape, one that is no tensor, one not finite"""
    net = network()
    weights = {name: p.detach().clone() for name, p in net.named_parameters()}
    name = "blocks.1.mlp.0.bias"

    def refuse(match, **changes):
        content = {k: v for k, v in {**weights, **changes}.items() if v is not None}
        with pytest.raises(Fail, match=match):
            checkpoint.load(write(tmp_path, net, **{part: content}), ema=part == "ema")
    refuse(f"{name} is missing", **{name: None})
    refuse("given is missing", given=None)
    refuse("does not fit", **{"head.weight": None})
    refuse("wings is missing, or has no place", wings=torch.zeros(3))
    refuse(f"{name} has another shape", **{name: torch.zeros(65)})
    refuse("does not fit", **{name: 3})
    for bad in (math.nan, math.inf):
        refuse("not finite", **{name: weights[name].index_fill(0, torch.tensor([3]), bad)})


def test_a_small_file_that_claims_to_be_large_is_refused(tmp_path):
    """A weight of 40 GB that is one number repeated; and a zip of compressed zeros"""
    net = network()
    weights = {name: p.detach().clone() for name, p in net.named_parameters()}
    weights["head.weight"] = torch.zeros(1).expand(10 ** 5, 10 ** 5)
    refused(write(tmp_path, net, ema=weights), "larger than the file")
    path = tmp_path / "ckpt.pt"
    with zipfile.ZipFile(io.BytesIO(unsealed(write(tmp_path, net)))) as z:
        records = {record.filename: z.read(record) for record in z.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        for name, content in records.items():
            z.writestr(name, content)
        z.writestr("ckpt/data/zeros", bytes(20 << 20))
    seal(path)
    assert path.stat().st_size < 1 << 20
    refused(path, "claims to hold more than its size")


@pytest.mark.parametrize("content", [b"", b"\x80\x02.", b"\x80\x02}q\x00.", b"\x80\x02]q\x00.",
                                     b"\x80\x02K\x07.", b"." * 100, b"(" * 1000])
def test_a_forged_pickle_is_refused(content, tmp_path):
    """Nothing, an empty stack, an empty dict, a list, a number, noise"""
    path = tmp_path / "ckpt.pt"
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("ckpt/data.pkl", content)
        z.writestr("ckpt/version", "3\n")
        z.writestr("ckpt/byteorder", "little")
    seal(path)
    refused(path)


def test_a_run_is_not_resumed_from_a_forgery(tmp_path):
    """By one sentence, whatever part does not fit"""
    dataset = runs.write_lines(tmp_path / "lines")
    out = tmp_path / "run"
    runs.trained(out, dataset, "--max_iters=1")
    good = runs.newest(out)

    def refuse(match, **more):
        checkpoint.save(out, **{**good, **more})
        assert match in runs.refused(dataset, f"--out_dir={out}", "--init_from=resume")

    args = good["args"]
    refuse("invalid choice: 'wings'", args={**args, "method": "wings"})
    refuse("unknown flag --wings", args={**args, "wings": 2})
    refuse("n_embd", args={k: v for k, v in args.items() if k != "n_embd"})
    refuse("does not fit", optimizer=good["optimizer"][:1])
    refuse("does not fit", optimizer=None)
    refuse("does not fit", window="wings")
    refuse("does not fit", seconds=None)
    refuse("does not fit", window_tokens=[])
    refuse("is missing", ema={k: v for k, v in good["ema"].items() if k != "given"})
    refuse("training data differs", fingerprint="x")
