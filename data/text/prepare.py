"""text: any .txt, .jsonl or .jsonl.gz of yours.

    python data/text/prepare.py notes.txt --split line  # or: python train.py --dataset notes.txt
    python data/text/prepare.py texts.jsonl --field body --tokenizer bpe

A line of a .jsonl is a text, or a task: {"prompt", "completion"}, {"question", "answer"} (GSM8K's)
or {"prefix", "middle", "suffix"}; all but completion, answer and middle is given. The set lands in
data/text/STEM-HASH. The text is held in memory: data/owt/prepare.py --from reads any size.
"""
import os
import sys

sys.path.insert(0, os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..")))
import data
from common import Fail, main, say
from data.files import documents
from data.writing import sources


def prepare(folder, tokenizer, path, split, field):
    say(f"preparing {folder} from {path}")
    train, val = data.split(list(documents(path, split, field)), 0.05)
    data.write_texts(folder, train, val, tokenizer, sources(path, split=split, field=field))


def run():
    path, *flags = sys.argv[1:] or [""]
    if path in ("-h", "--help"):
        flags = ["--help"]
    elif not os.path.isfile(path):
        raise Fail(f"there is no file {path!r}: name a text, python data/text/prepare.py FILE")
    data.by_hand(path, __doc__, argv=flags)


if __name__ == "__main__":
    main(run)
