"""Download files that may take hours: goes on where a cut connection or a killed run stopped."""
import errno
import http.client
import os
import re
import time
import urllib.error
import urllib.request

from common import Fail, say


def expand(url):
    """'x{00..20}.tar' -> the 21 addresses"""
    if not url.startswith(("http://", "https://")):
        raise Fail(f"{url!r} is no web address: --url takes http(s)://..., --from takes files")
    found = re.search(r"\{(\d+)\.\.(\d+)\}", url)
    if not found:
        return [url]
    first, last = found.groups()
    numbers = [str(i).zfill(len(first)) for i in range(int(first), int(last) + 1)]
    return [url[:found.start()] + number + url[found.end():] for number in numbers]


def download(url, path, tries=5):
    """url -> path, by way of path.partial. Gives up after `tries` attempts that brought nothing."""
    partial, failures, most = path + ".partial", 0, 0
    while failures < tries:
        time.sleep(2 ** failures - 1)
        try:
            size, total = fetch(url, partial)
            if size == total or not total:
                os.replace(partial, path)
                return
            problem = "the connection was cut"
        except urllib.error.HTTPError as e:
            problem = f"{e.code} {e.reason}"
            if e.code == 416 and os.path.exists(partial):       # nothing beyond what we have
                os.unlink(partial)                              # is not our file: start over
            elif e.code < 500 and e.code != 429:
                raise Fail(f"{url} answers {problem}: name another place with --url, or files that "
                           "you have with --from") from None
        except (OSError, http.client.HTTPException) as e:       # no network, a time-out
            if getattr(e, "errno", None) == errno.ENOSPC:
                raise
            problem = getattr(e, "reason", e)
        have = file_size(partial)
        failures = 1 if have > most else failures + 1
        most = max(most, have)
        if failures < tries:
            say(f"{url}: {problem}; trying again")
    raise Fail(f"cannot download {url} ({problem}): check the network and run the same command "
               "again, it goes on where this one stopped; or name files that you have with --from")


def fetch(url, partial):
    """One attempt: append to the file `partial` what it lacks -> its size, and what the server says
    that it should be (0: it does not say)"""
    have = file_size(partial)
    headers = {"Range": f"bytes={have}-"} if have else {}
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=60) as r:
        start = have if r.status == 206 else 0      # a server without ranges sends all of it again
        total = start + int(r.headers.get("Content-Length", -start))
        with open(partial, "r+b" if have else "wb", buffering=0) as f:
            f.truncate(start)
            f.seek(start)
            while block := r.read1(2 ** 20):        # read1: what has arrived
                f.write(block)
            return f.tell(), total


def file_size(path):
    return os.path.getsize(path) if os.path.exists(path) else 0
