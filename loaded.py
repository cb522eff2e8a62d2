"""A trained model, ready to be asked:

    loaded = checkpoint.load("out")         # a run's folder, a checkpoint, a LLaDA folder
    loaded.generate(num_samples=4)
    loaded.generate(prompt="import ")
    loaded.generate(infill="for [..] in range([..]): pass")

How it writes: sampler.py.
"""
import re

import torch

import interpolant
from common import Fail
from sampler import generate, generate_left_to_right, retimed, start_from

SHORT = 256             # tokens: what counts as a short document
HOLE = re.compile(r"\[\.\.(\d*)\]")


def parse_pattern(pattern, encode):
    """'a[..]b[..3]' -> the given ids around the holes, and each hole's size (None: unknown)"""
    holes = list(HOLE.finditer(pattern))
    if not holes:
        raise Fail(f"--infill {pattern!r} has no hole: mark each place to fill with [..], "
                   "as in 'for [..] in range([..]): pass'")
    ends = [0] + [m.end() for m in holes]
    starts = [m.start() for m in holes] + [len(pattern)]
    parts = [encode(pattern[a:z]) for a, z in zip(ends, starts)]
    return parts, [int(m[1][:9]) if m[1] else None for m in holes]


class Loaded:
    """A model ready to be asked. .net .predict .code .config .tokenizer .step, and .args: the flags
    that it was trained with, a dict."""

    def __init__(self, net, args, tokenizer, step):
        self.net = net
        self.code, self.config = net.code, net.config
        self.args, self.tokenizer, self.step = args, tokenizer, step

    @property
    def fixed(self):
        """no insertion"""
        return self.config.insertion == "instant"

    @torch.no_grad()
    def predict(self, y, n, t, at, given=None):
        weight = self.net.head.weight
        half = weight.is_cuda and weight.dtype == torch.float32
        with torch.autocast(weight.device.type, torch.bfloat16, enabled=half):
            return self.net(y, n, t, at, given)

    def generate(self, num_samples=1, prompt="", infill="", seed=None, batch_size=64, **settings):
        """num_samples texts: free, continuing `prompt`, or filling the holes [..] of `infill`.
        seed: makes them the same again, on a CPU. settings: see documents()."""
        if seed is not None:
            torch.manual_seed(seed)
        start, texts = self.start(prompt, infill), []
        while len(texts) < num_samples:
            B = min(batch_size, num_samples - len(texts))
            x, n = self.documents(B, start, **settings)
            texts += self.texts(x, n, holes=bool(infill))
        return texts

    def images(self, num_samples=64, steps=128, known=None, keep=None, seed=None, batch_size=64,
               **settings):
        """-> (num_samples, H, W, C) uint8. To paint in: known (num_samples, H, W, C) uint8 images,
        of which the pixels where keep (H, W) bool is true are told. settings: of documents()"""
        if seed is not None:
            torch.manual_seed(seed)
        settings = dict(sampler="parallel", order="random") | settings
        start, drawn = None, []
        for first in range(0, num_samples, batch_size):
            B = min(batch_size, num_samples - first)
            if known is not None:
                x = torch.from_numpy(known[first:first + B]).long().flatten(1)      # (B, L)
                told = torch.from_numpy(keep).flatten().repeat_interleave(known.shape[3])  # (L,)
                y = torch.where(told[:, None], self.code.encode(x), self.code.mask)
                start = y, torch.full((B,), x.shape[1])
            drawn.append(self.documents(B, start, steps, **settings)[0])
        return torch.cat(drawn).view(-1, *self.config.shape).byte().numpy()

    def start(self, prompt="", infill=""):
        """What generation begins with: None, or the state of one row (sampler.start_from)"""
        if prompt and infill:
            raise Fail("--prompt and --infill are two things: give one (a prompt is 'text[..]')")
        if infill and self.config.causal:
            raise Fail("an autoregressive model cannot fill holes: give it a --prompt")
        common = (self.code, self.config.block_size, self.fixed, self.tokenizer.eot)
        if infill:
            return start_from(*parse_pattern(infill, self.tokenizer.encode), *common)
        if prompt:
            return start_from([self.tokenizer.encode(prompt)], [], *common, end_open=True)
        return None

    def documents(self, B, start=None, steps=128, order="", temperature=1.0, sampler="exact",
                  insertion="", unmasking="", **settings):
        """B documents as ids: x (B, block_size), n (B,). start: of one row, for all of them. order:
        margin for short documents with insertion, else random: asking about every mask of long ones
        costs memory, and on a fixed canvas end tokens are the surest, so that texts end early.
        insertion, unmasking: other schedules than in training. settings: window, watch"""
        block_size = self.config.block_size
        if not order:
            order = "margin" if block_size <= SHORT and not self.fixed else "random"
        trained = interpolant.schedule(self.config.insertion)
        try:
            used = interpolant.schedule(insertion or self.config.insertion)
            unmask = interpolant.schedule(unmasking or self.args["unmasking"])
        except ValueError as e:
            raise Fail(str(e)) from None
        if (used.name == "instant") != self.fixed:
            raise Fail(f"--insertion {insertion} does not go with this model's: {trained.name}")
        if start is not None:
            start = [x.expand(B, *x.shape[1:]) for x in start]
        if self.config.causal:
            prompt = None
            if start is not None:
                clean = int((start[0][0] != self.code.mask).all(1).sum())
                prompt = self.code.decode(start[0][:, :clean])
            return generate_left_to_right(self.predict, self.code, B, block_size,
                                          self.tokenizer.eot, temperature, prompt)
        predict = self.predict
        if used.name != trained.name:
            predict = retimed(predict, trained, used)
        return generate(predict, self.code, B, block_size, steps, used, unmask, order, temperature,
                        start, sampler, **settings)

    def texts(self, x, n, holes=False):
        """Ids and lengths -> strings. A fixed canvas ends a document with its first end token;
        where holes were filled, text follows, and end tokens are left out."""
        texts, eot = [], self.tokenizer.eot
        for row, length in zip(x.tolist(), n.tolist()):
            row = row[:length]
            if eot in row and not holes:
                row = row[:row.index(eot)]
            texts.append(self.tokenizer.decode([v for v in row if v != eot]))
        return texts
