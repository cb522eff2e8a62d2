"""text: any .txt, .jsonl or .jsonl.gz of yours.

    python data/text/prepare.py notes.txt --split line  # or: python train.py --dataset notes.txt
    python data/text/prepare.py texts.jsonl --field body --tokenizer bpe

A line of a .jsonl is a text, or a task: {"prompt", "completion"}, {"question", "answer"} (GSM8K's)
or {"prefix", "middle", "suffix"}; all but completion, answer and middle is given. The set lands in
data/text/STEM-HASH. The text is held in memory: data/owt/prepare.py --from reads any size.
"""
import dataclasses
import os
import sys

sys.path.insert(0, os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..")))
import data
from common import Fail, flag, main, parse, say
from data.files import documents
from data.writing import sources

TOKENIZER, BLOCK_SIZE = "bytes", 1024


def prepare(folder, tokenizer, source, split="paragraph", field="text"):
    say(f"preparing {folder} from {source}")
    found = list(documents(source, split, field))
    made = sources(source) | {"split": split, "field": field}
    data.write_texts(folder, *data.split(found, 0.05), tokenizer, made)


@dataclasses.dataclass
class Args(data.Args):
    split: str = flag("paragraph", "what a document of a .txt is", ["paragraph", "line", "file"])
    field: str = flag("text", "the field of a .jsonl that holds the text")


def run():
    path, *flags = sys.argv[1:] or [""]
    if path in ("-h", "--help"):
        parse(Args, __doc__, ["--help"])
    if not os.path.isfile(path):
        raise Fail(f"there is no file {path!r}: name a text, python data/text/prepare.py FILE")
    data.by_hand(path, __doc__, Args, flags)


if __name__ == "__main__":
    main(run)
