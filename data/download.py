"""Download files that may take hours: goes on where a cut connection or a killed run stopped."""
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
    numbers = range(int(found[1]), int(found[2]) + 1)
    return [url.replace(found[0], str(i).zfill(len(found[1]))) for i in numbers]


def download(url, path, tries=5):
    """url -> path, by way of path.partial"""
    partial = path + ".partial"
    for attempt in range(tries):
        time.sleep(2 ** attempt - 1)
        try:
            if fetch(url, partial):
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
            problem = getattr(e, "reason", e)
        say(f"{url}: {problem}")
    raise Fail(f"cannot download {url} ({problem}): check the network and run the same command "
               "again, it goes on where this one stopped; or name files that you have with --from")


def fetch(url, partial):
    """One attempt: append to the file `partial` what it lacks -> is it complete?"""
    have = os.path.getsize(partial) if os.path.exists(partial) else 0
    headers = {"Range": f"bytes={have}-"} if have else {}
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as r:
        start, mode = have, "ab"
        if r.status != 206:                         # a server without ranges sends all of it again
            start, mode = 0, "wb"
        with open(partial, mode, buffering=0) as f:
            while block := r.read1(2 ** 20):        # read1: what has arrived
                f.write(block)
            return r.headers.get("Content-Length") in (None, str(f.tell() - start))
