"""Write a checkpoint as a folder of safetensors, adapters merged in.

    python retrofit/export.py out/ckpt.pt DIR           # our layout: any model of this project
    python retrofit/export.py out/ckpt.pt DIR --hub     # LLaDA's own, for others' code

    python sample.py --out_dir DIR
    python train.py --init_from DIR                     # goes on from it

LLaDA's own layout takes what `train.py --method mdm --init_from LLaDA-FOLDER` made. It has no place
for what insertion needs: the gap head, the time, the vector for given slots.

In float32 the answers stay the same. In bf16 they do not quite: W + B A is rounded to 8 bits, where
training had added B A x to W x.
"""
import json
import os
import shutil
import sys
from dataclasses import asdict

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))     # the project

import checkpoint                                               # noqa: E402
from common import Fail, atomic_open, main, say                 # noqa: E402
from retrofit import llada, safetensors                         # noqa: E402


def export(net, folder, eot, args=None, tokenizer=None):
    """Write any network of this project in our own layout, which llada.load reads: config.json,
    model.safetensors, and the tokenizer.json of its base.

    eot: the token that ends a text. args: the flags of its training. tokenizer: the spec() of one
    that is not its base's."""
    options, weights = asdict(net.config), llada.merged(net)
    if net.code.permutation is not None:
        weights["permutation"] = net.code.permutation
    safetensors.write(os.path.join(folder, "model.safetensors"), weights)
    if net.base and os.path.exists(os.path.join(net.base, "tokenizer.json")):
        shutil.copy(os.path.join(net.base, "tokenizer.json"), folder)
    description = dict(model=type(net).__name__, options=options, never=list(net.never), args=args,
                       tokenizer=tokenizer, vocab_size=options["V"], eos_token_id=eot)
    with atomic_open(os.path.join(folder, "config.json")) as f:
        json.dump(description, f, indent=1)


def export_hub(net, folder):
    """Write a LLaDA in LLaDA's own layout: no tensor is missing, and none is new. The config, the
    tokenizer and the modelling code are copied from its base."""
    if not isinstance(net, llada.Llada) or net.config.insertion != "instant":
        raise Fail("only a LLaDA of --method mdm fits LLaDA's own layout: export without --hub")
    _, mask, _ = llada.read_config(net.base)
    weights = llada.merged(net)
    embed = weights["embed.weight"][:-2].clone()        # without the symbols V and V + 1,
    embed[mask] = weights["embed.weight"][-2]           # of which the first was our mask
    weights["embed.weight"] = embed
    names = llada.names(net.config.n_layer)
    weights = {theirs: weights[ours] for theirs, ours in names.items()}
    safetensors.write(os.path.join(folder, "model.safetensors"), weights)
    for name in os.listdir(net.base):
        if name.endswith((".json", ".py")) and not name.endswith(".index.json"):
            shutil.copy(os.path.join(net.base, name), folder)


def run(argv=None):
    words = sys.argv[1:] if argv is None else list(argv)
    paths = [word for word in words if word != "--hub"]
    if len(paths) != 2 or paths[0].startswith("-"):
        return say(__doc__)
    path, folder = paths
    if os.path.exists(os.path.join(folder, "config.json")):
        raise Fail(f"{folder} holds a model already: name another folder")
    loaded = checkpoint.load(path)
    if "--hub" in words:
        export_hub(loaded.net, folder)
    else:
        spec = None if loaded.net.base else loaded.tokenizer.spec()     # a base's own is copied
        export(loaded.net, folder, loaded.tokenizer.eot, loaded.args, spec)
    millions = loaded.net.count()[0] / 1e6
    say(f"{folder}/: config.json, model.safetensors ({millions:.2f}M parameters, adapters merged)")


if __name__ == "__main__":
    main(run)
