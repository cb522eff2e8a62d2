"""A run and its folder: everything that is kept there, so that a run that was killed goes on as if
nothing had happened, to the bit. The files themselves: checkpoint.py.
"""
import checkpoint
import parallel
from common import Fail, lock, parse, remove_left

SHAPES = ("method", "ell", "insertion", "block_size", "n_layer", "n_head", "n_embd")


def claim(args):
    """Lock out_dir until this process ends, remove half-written files, and refuse to write over
    another run. -> the lock: keep it"""
    held = lock(args.out_dir)
    for name in ("ckpt.pt", "log.csv", "loss.png"):
        remove_left(args.out_dir, name)
    if checkpoint.found(args.out_dir) and args.init_from != "resume" and not args.overwrite:
        raise Fail(f"{args.out_dir} holds a run: go on with --init_from resume, start again with "
                   "--overwrite, or name another --out_dir")
    return held


def flags(cls, doc, argv, content):
    """The flags of the run that is resumed, but for those that are named now"""
    new = ("init_from", "out_dir", "overwrite", "device")
    saved = [f"--{name}={value}" for name, value in content["args"].items() if name not in new]
    args = parse(cls, doc, saved + argv)
    for name in SHAPES:
        before = content["args"].get(name)
        if getattr(args, name) != before:
            raise Fail(f"--{name} differs from the run being resumed ({before}): leave it out, or "
                       "start another --out_dir")
    return args


def trained(net):
    """{name: parameter}: all of them, or a pretrained model's adapters"""
    return {name: p for name, p in net.named_parameters() if p.requires_grad}


def state(net, ema, optimizers):
    """The tensors of a checkpoint: weights, their averages, moments"""
    moments = [parallel.optimizer_state(net, optimizer) for optimizer in optimizers]
    return dict(model=parallel.whole(trained(net)), ema=parallel.whole(ema), optimizer=moments)


def restore(net, ema, optimizers, content, dataset):
    """The other way: everything as it was when `content` was saved"""
    if content["fingerprint"] != dataset.train.fingerprint:
        raise Fail("the training data differs from that of the run being resumed: restore it, or "
                   "start another --out_dir")
    for mine, part in ((trained(net), "model"), (ema, "ema")):
        checkpoint.check_names(net, content[part])
        parallel.fill(mine, content[part])
    for optimizer, moments in zip(optimizers, content["optimizer"], strict=True):
        parallel.set_optimizer(net, optimizer, moments)


def start_from(net, path, tokenizer):
    """Begin with the averaged weights of another run. Those of a fixed canvas may begin a model
    with insertion: its gap head is new."""
    content = checkpoint.read(path)
    mine, theirs = trained(net), content["ema"]
    odd = [k for k in theirs if k not in mine or mine[k].shape != theirs[k].shape]
    odd += [k for k in mine if k not in theirs and not k.startswith("gap.")]
    odd += [k for k in ("n_head", "rope_theta", "ell")
            if content["config"].get(k) != getattr(net.config, k)]
    if content["tokenizer"] != tokenizer.spec():
        odd.append("its tokenizer is another one")
    if odd or content.get("base"):
        raise Fail(f"{path} is of another kind or size ({' '.join(odd[:1])}): give the flags that "
                   "it was trained with, or train from scratch")
    parallel.fill(mine, theirs)
