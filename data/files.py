"""Files -> documents. A document is a text, or a task: a list of parts, (text, is it given?).

    for document in documents("notes.txt", split="paragraph"):
        ...

Files are read as streams. One that is damaged, or no utf-8, is a Fail that names it.
"""
import contextlib
import gzip
import io
import json
import lzma
import os
import re
import tarfile
import zlib

from common import Fail

TEXTS = (".txt", ".jsonl", ".jsonl.gz")
ARCHIVES = (".tar", ".tar.xz", ".xz")       # of texts, or of archives of texts, as OpenWebText is
LIMIT = 2 ** 26                             # no document, line or member of an archive is longer
TASKS = (("question", "answer"), ("prompt", "completion"), ("prefix", "middle", "suffix"))
GENERATED = ("answer", "completion", "middle")
NO_CONTENT = (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE,
              tarfile.FIFOTYPE)


def documents(path, split="paragraph", field="text"):
    """The documents of a file; an archive in an archive comes as it is, (name, bytes)."""
    with intact(path), open(path, "rb") as raw:
        if path.endswith(ARCHIVES):
            yield from members(raw if path.endswith(".tar") else lzma.open(raw), path)
            return
        lines = read_lines(gzip.open(raw) if path.endswith(".gz") else raw, path)
        if path.endswith((".jsonl", ".jsonl.gz")):
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield json_document(line, field, f"{path} line {number}")
        elif not path.endswith(".txt"):
            raise Fail(f"{path} has no suffix that can be read: {', '.join(TEXTS)}")
        elif split == "line":
            yield from (line.rstrip("\n") for line in lines)
        else:
            yield from paragraphs(lines, path, split)


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


def read_lines(raw, path):
    text = io.TextIOWrapper(raw, encoding="utf-8-sig")
    while line := text.readline(LIMIT):
        if len(line) == LIMIT:
            raise Fail(f"{path} has a line of {LIMIT:,} characters or more: break it up")
        yield line


def paragraphs(lines, path, split):
    """Documents between blank lines; split "file": all lines are one document"""
    found, size = [], 0
    for line in lines:
        if split == "paragraph" and not line.strip():
            yield "".join(found).strip("\n")
            found, size = [], 0
            continue
        found.append(line)
        size += len(line)
        if size > LIMIT:
            raise Fail(f"{path} has a document of more than {LIMIT:,} characters: use --split line "
                       "or --split paragraph")
    yield "".join(found).strip("\n")


def json_document(line, field, where):
    """A line of a .jsonl -> the text in `field`, or a task"""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise Fail(f"{where} is not JSON: every line must be an object such as "
                   f'{{"{field}": "..."}}') from None
    texts = {}
    if isinstance(value, dict):
        texts = {key: text for key, text in value.items() if isinstance(text, str)}
    if field in texts:
        return texts[field]
    for keys in TASKS:
        if all(key in texts for key in keys):
            if "question" in keys:
                texts["question"] += "\n"
            return [(texts[key], key not in GENERATED) for key in keys]
    hint = ""
    if texts:
        hint = f": it has {', '.join(texts)[:100]}, so name one with --field"
    raise Fail(f"{where} has no text in the field {field!r}{hint}")


def members(stream, name, most=float("inf")):
    """The texts of a tar, in order, and its .xz members as (name, bytes). most: bytes in all.

    Of tarfile only the headers are used. It would follow a name or a PAX header of gigabytes into
    memory, and takes a damaged header, or a file that just stops, for the end of an archive. Here a
    member of any kind has at most LIMIT bytes, and nothing is ever written under its name."""
    long_name = ""
    while True:
        header = stream.read(512)
        if header and not header.strip(b"\0"):
            break                                           # zeros end an archive
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "replace")
        except tarfile.HeaderError as e:
            raise tarfile.ReadError(f"{e}, and no end-of-archive mark") from None
        if info.type in NO_CONTENT:
            continue
        most -= info.size
        if not 0 <= info.size <= LIMIT or most < 0:
            raise Fail(f"{name}: {info.name!r} unpacks to more than an archive of texts should "
                       f"({info.size:,} bytes)")
        content, padding = stream.read(info.size), -info.size % 512
        if len(content) < info.size or len(stream.read(padding)) < padding:
            raise tarfile.ReadError("unexpected end of data")
        if info.type == tarfile.GNUTYPE_LONGNAME:           # names the next member
            long_name = content.rstrip(b"\0").decode("utf-8", "replace")
        elif info.type == tarfile.XHDTYPE:                  # may name the next member
            found = re.search(rb"\d path=(.*)\n", content)
            long_name = found[1].decode("utf-8", "replace") if found else ""
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            continue
        path, long_name = long_name or info.name, ""
        if os.path.basename(path).startswith("."):
            continue
        if path.endswith(".xz") and most == float("inf"):
            yield f"{name}: {path}", content
        else:
            yield content.decode("utf-8", "replace")
    if len(stream.read(2 ** 20)) == 2 ** 20:                # also: reading to the end checks an .xz
        raise tarfile.ReadError("it goes on after its end")
