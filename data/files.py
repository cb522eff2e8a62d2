"""Files -> documents. A document is a text, or a task: a list of parts, (text, is it given?).

    for document in documents("notes.txt", split="paragraph"):
        ...

Files are read as streams. One that is damaged, or no utf-8, is a Fail that names it.
"""
import contextlib
import gzip
import io
import itertools
import json
import lzma
import math
import tarfile
import zlib

from common import Fail

TEXTS = (".txt", ".jsonl", ".jsonl.gz")
ARCHIVES = (".tar", ".tar.xz", ".xz")       # of texts, or of archives of texts, as OpenWebText is
LIMIT = 2 ** 26                             # bytes of a member of an archive
TASKS = (("question", "answer"), ("prompt", "completion"), ("prefix", "middle", "suffix"))
GENERATED = ("answer", "completion", "middle")
XZ = b"\xfd7zXZ\0"                          # how an .xz begins


def documents(path, split="paragraph", field="text"):
    """The documents of a file"""
    with intact(path), open(path, "rb") as raw:
        if path.endswith(ARCHIVES):
            archive = raw if path.endswith(".tar") else lzma.open(raw)
            yield from members(archive, path)
            return
        if not path.endswith(TEXTS):
            raise Fail(f"{path} has no suffix that can be read: {', '.join(TEXTS)}")
        content = gzip.open(raw) if path.endswith(".gz") else raw
        lines = io.TextIOWrapper(content, encoding="utf-8-sig")
        if not path.endswith(".txt"):
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield json_document(line, field, f"{path} line {number}")
        elif split == "line":
            yield from (line.rstrip("\n") for line in lines)
        elif split == "file":
            yield lines.read().strip("\n")
        else:
            for is_text, group in itertools.groupby(lines, lambda line: bool(line.strip())):
                if is_text:
                    yield "".join(group).strip("\n")


@contextlib.contextmanager
def intact(path):
    """Turns what can be wrong with the content of a file into a sentence"""
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, tarfile.TarError) as e:
        raise Fail(f"{path} is truncated or damaged ({e}): delete the file, get it again and "
                   "repeat the command") from None
    except UnicodeDecodeError as e:
        raise Fail(f"{path} is not utf-8 text ({e.reason}): convert it, for example with iconv "
                   "-f latin1 -t utf-8") from None
    except OSError as e:
        raise Fail(f"cannot read {path}: {e.strerror or e}") from None


def json_document(line, field, where):
    """A line of a .jsonl -> the text in `field`, or a task"""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise Fail(f"{where} is not JSON: every line must be an object such as "
                   f'{{"{field}": "..."}}') from None
    pairs = value.items() if isinstance(value, dict) else ()
    texts = {key: text.encode("utf-8", "replace").decode() for key, text in pairs
             if isinstance(text, str)}                      # JSON may hold half a character
    if field in texts:
        return texts[field]
    for keys in TASKS:
        if texts.keys() >= set(keys):
            if "question" in keys:
                texts["question"] += "\n"
            return [(texts[key], key not in GENERATED) for key in keys]
    names = ", ".join(texts)[:100] or "no texts"
    raise Fail(f"{where} has no text in the field {field!r}: it has {names}, so name one with "
               "--field")


def members(stream, name, most=math.inf):
    """The texts of a tar, in order, and those of tars in its .xz members. most: bytes in all

    Of tarfile only the headers are used. It would follow a name or a PAX header of gigabytes into
    memory, and takes a damaged header, or a file that just stops, for the end of an archive. Here a
    member of any kind has at most LIMIT bytes, and nothing is ever written under its name."""
    inner = most < math.inf
    while (header := stream.read(512)) == b"" or header.strip(b"\0"):       # zeros end an archive
        info = tarfile.TarInfo.frombuf(header, "utf-8", "replace")          # or raises a TarError
        where = f"{name}: {info.name}"
        most -= info.size
        if not 0 <= info.size <= LIMIT or most < 0:
            raise Fail(f"{where!r} unpacks to more than an archive of texts should "
                       f"({info.size:,} bytes)")
        blocks = stream.read(info.size + -info.size % 512)
        if len(blocks) < info.size or len(blocks) % 512:
            raise tarfile.ReadError("unexpected end of data")
        content = blocks[:info.size]
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            continue
        if not content.startswith(XZ):
            yield content.decode("utf-8", "replace")
        elif inner:
            raise Fail(f"{where!r} is an archive in an archive in an archive: unpack one of them")
        else:
            with intact(where):
                yield from members(lzma.open(io.BytesIO(content)), where, 4 * LIMIT)
    if len(stream.read(2 ** 20)) == 2 ** 20:                # reading to the end also checks an .xz
        raise tarfile.ReadError("it goes on after its end")
