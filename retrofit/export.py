"""Write a checkpoint as a folder of safetensors, adapters merged in.

    python retrofit/export.py out/ckpt.pt DIR           # our layout: any model of this project
    python retrofit/export.py out/ckpt.pt DIR --hub     # LLaDA's own, for --method mdm on a LLaDA

    python train.py --init_from DIR                     # goes on from it
    python sample.py --out_dir DIR
"""
import os
import sys

sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))      # the project's files

import checkpoint                                       # noqa: E402
from common import Fail, main, say                      # noqa: E402
from retrofit import llada                              # noqa: E402


def export(argv=None):
    words = sys.argv[1:] if argv is None else list(argv)
    hub = "--hub" in words
    if hub:
        words.remove("--hub")
    if len(words) != 2 or words[0].startswith("-"):
        say(__doc__)
        return
    path, folder = words
    if os.path.exists(os.path.join(folder, "config.json")):
        raise Fail(f"{folder} holds a model already: name another folder")
    loaded = checkpoint.load(path, "cpu")
    if hub:
        llada.export_hub(loaded.net, folder)
    else:
        spec = None
        if not isinstance(loaded.net, llada.Llada):     # a LLaDA's tokenizer.json is copied
            spec = loaded.tokenizer.spec()
        llada.export(loaded.net, folder, loaded.tokenizer.eot, loaded.args, spec)
    millions = loaded.net.count()[0] / 1e6
    say(f"{folder}/: config.json, model.safetensors ({millions:.2f}M parameters, adapters merged)")


if __name__ == "__main__":
    main(export)
