"""A pretrained LLaDA checkpoint, opened without any framework: weights, config and tokenizer of the hub's folder.

    LLaDA-8B-Base/config.json                      read_config     -> options of model.Config; what is not implemented is refused by name
                  model.safetensors.index.json     read_checkpoint -> {name: tensor}, all of them views of memory-mapped files
                  model-0000k-of-00006.safetensors
                  tokenizer.json                   tokenizer_json  -> a tiktoken.Encoding with the same token ids

    model = llada.load("LLaDA-8B-Base")                                     # LLaDA itself, in this project's transformer
    model = llada.load("LLaDA-8B-Base", insertion="linear", adaln=8)        # its retrofit (arXiv 2509.01025, LLaDA section)
    llada.add_lora(model)                                                   # low-rank adapters; everything else of LLaDA is frozen

The checkpoint has a row for every symbol, mask and pad among them; here the mask and the pad are symbols of their own, V and V + 1, whose
rows are copies. Each step is strict: every tensor is used exactly once, every byte of a file belongs to exactly one tensor.

One worked number: LoRA with r = 128 on q, k, v of 32 blocks, 4096 wide, and on the head, 126464 tokens: 32 * 3 * 128 * (4096 + 4096)
+ 128 * (4096 + 126464) = 117.4M numbers to train beside the 8.0 billion that stand still.
"""
import json
import math
import mmap
import os
import re
import sys
import unicodedata
from dataclasses import asdict

import tiktoken
import torch
import torch.nn as nn
import torch.nn.functional as F

import model as project
import prime
from common import Fail, aside

DTYPES = {"BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F8_E5M2": torch.float8_e5m2, "F8_E4M3": torch.float8_e4m3fn,
          "I16": torch.int16, "U16": torch.uint16, "F16": torch.float16, "BF16": torch.bfloat16, "I32": torch.int32, "U32": torch.uint32,
          "F32": torch.float32, "I64": torch.int64, "U64": torch.uint64, "F64": torch.float64}
HEADER_MOST = 100_000_000        # bytes of JSON; the format's own limit


# ---- safetensors: 8 bytes of length N, N bytes of JSON, then the data; all little-endian ---------------------------------------------

def unique(pairs):
    """The members of a JSON object as a dict; a name that stands there twice would hide one of the two."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a name stands in it twice")
    return dict(pairs)


def read_json(path):
    try:
        with open(path, "rb") as f:
            content = json.loads(f.read().decode(), object_pairs_hook=unique)
    except OSError as e:
        raise Fail(f"cannot read {path}: {e.strerror}") from None
    except (ValueError, RecursionError) as e:
        raise Fail(f"{path} is not JSON ({e}): fetch it again") from None
    if not isinstance(content, dict):
        raise Fail(f"{path} holds no JSON object: fetch it again")
    return content


def read_safetensors(path):
    """A file's tensors: {name: tensor}. Each is a view of the mapped file: a byte is read when it is used, and writing never reaches the file.

    Nothing is believed before it is checked: what the header says must fit the file to the byte.
    """
    broken = lambda why: Fail(f"{path} is not a whole safetensors file: {why}; fetch it again")
    if sys.byteorder != "little":
        raise Fail("safetensors are little-endian, and this machine is not: use another one")
    try:
        if not os.path.isfile(path):
            raise Fail(f"there is no file {path}: fetch it, or name another folder")
        with open(path, "rb") as f:
            size = os.fstat(f.fileno()).st_size
            data = mmap.mmap(f.fileno(), size, access=mmap.ACCESS_COPY) if size else b""
    except OSError as e:
        raise Fail(f"cannot read {path}: {e.strerror}") from None
    N = int.from_bytes(data[:8], "little")
    if size < 8 or N > min(size - 8, HEADER_MOST):
        raise broken(f"it has {size} bytes, and its header would have {N}" if size >= 8 else f"it has {size} bytes")
    try:
        header = json.loads(data[8:8 + N].decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as e:
        raise broken(f"its header is not JSON ({e})") from None
    if not isinstance(header, dict):
        raise broken("its header is no JSON object")
    header.pop("__metadata__", None)

    number = lambda x: type(x) is int and 0 <= x < 1 << 62
    for name, entry in header.items():                                                         # 1. each tensor by itself
        if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= set(entry):
            raise broken(f"the entry of {name!r} lacks dtype, shape or data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise Fail(f"{path}: the dtype {dtype!r} of {name!r} is not known here; those that are: {', '.join(DTYPES)}")
        if not isinstance(shape, list) or len(shape) > 16 or not all(map(number, shape)) or math.prod(max(d, 1) for d in shape) >= 1 << 62:
            raise broken(f"the shape of {name!r} is absurd")
        if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(number, offsets)):
            raise broken(f"the data_offsets of {name!r} are absurd")
        if math.prod(shape) * DTYPES[dtype].itemsize != offsets[1] - offsets[0]:
            raise broken(f"{name!r} of shape {shape} and dtype {dtype} cannot have {offsets[1] - offsets[0]} bytes")
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):       # 2. together they tile the file
        if entry["data_offsets"][0] != end:
            raise broken(f"{name!r} {'overlaps another tensor' if entry['data_offsets'][0] < end else 'leaves a gap before it'}")
        end = entry["data_offsets"][1]
    if end != size - 8 - N:
        raise broken(f"its tensors have {end} bytes, and the file has {size - 8 - N} for them")

    tensors = {}
    for name, entry in header.items():                                                         # 3. only now: views
        dtype, start, stop = DTYPES[entry["dtype"]], *(8 + N + x for x in entry["data_offsets"])
        raw = torch.frombuffer(data, dtype=torch.uint8, count=stop - start, offset=start) if stop > start else torch.empty(0, dtype=torch.uint8)
        tensors[name] = (raw.clone() if start % dtype.itemsize else raw).view(dtype).view(entry["shape"])
    return tensors


def write_safetensors(path, tensors):
    """{name: tensor} -> a safetensors file, written aside and renamed, one tensor in memory at a time."""
    kinds = {dtype: name for name, dtype in DTYPES.items()}
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))            # widest first: every tensor is aligned
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name in order:
        t = tensors[name]
        if t.dtype not in kinds:
            raise Fail(f"{path}: safetensors has no dtype {t.dtype} ({name}): convert it first")
        header[name] = {"dtype": kinds[t.dtype], "shape": list(t.shape), "data_offsets": [end, end := end + t.numel() * t.dtype.itemsize]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with aside(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            f.write(tensors[name].detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())


def read_checkpoint(folder):
    """All tensors of a hub folder, {name: tensor}: of its model.safetensors, or of the shards that its index names."""
    single, index = (os.path.join(folder, name) for name in ("model.safetensors", "model.safetensors.index.json"))
    if not os.path.exists(index):
        if not os.path.exists(single):
            raise Fail(f"{folder} has neither model.safetensors nor model.safetensors.index.json: name the folder of a downloaded checkpoint")
        return read_safetensors(single)
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(file, str) for file in where.values()):
        raise Fail(f"{index} has no weight_map from tensor names to files: fetch it again")
    files = sorted(set(where.values()))
    for file in files:
        if file in ("", ".", "..") or re.search(r"[/\\\0:]", file):
            raise Fail(f"{index} names the file {file!r}, which is not in its folder: that is not a checkpoint to trust")
        if not os.path.isfile(os.path.join(folder, file)):
            raise Fail(f"{folder} lacks the shard {file}, which {os.path.basename(index)} names: download it into that folder")
    tensors = {}
    for file in files:
        for name, tensor in read_safetensors(os.path.join(folder, file)).items():
            if where.get(name) != file:
                raise Fail(f"{os.path.join(folder, file)} holds the tensor {name!r}, which the index does not expect there: fetch both again")
            tensors[name] = tensor
    for name in where.keys() - tensors.keys():
        raise Fail(f"{folder}: the shard {where[name]} lacks the tensor {name!r}, which the index expects there: fetch it again")
    return tensors


# ---- the model: config and names -----------------------------------------------------------------------------------------------------

SIZES = {"d_model": "n_embd", "n_layers": "n_layer", "n_heads": "n_head", "mlp_hidden_size": "n_hidden", "vocab_size": "V",
         "max_sequence_length": "block_size"}                                                  # LLaDA's key: this project's option
OPTIONAL = {"n_kv_heads": "n_kv_head"}                                                         # absent or null: as many as n_heads
REQUIRED = {"block_type": ["llama"], "activation_type": ["silu"], "layer_norm_type": ["rms"]}  # what the code implements
ABSENT_OR = {"include_bias": [False], "include_qkv_bias": [False, None], "bias_for_layer_norm": [False, None], "weight_tying": [False],
             "rope": [True], "rope_full_precision": [True], "rope_scaling": [None], "alibi": [False], "attention_layer_norm": [False], "input_emb_norm": [False],
             "scale_logits": [False], "clip_qkv": [None], "layer_norm_with_affine": [True], "multi_query_attention": [None, False],
             "block_group_size": [1], "quantization_config": [None]}


def read_config(folder):
    """config.json -> (options of model.Config, mask token, pad token). Refuses, by name, every value that the code does not implement."""
    path = os.path.join(folder, "config.json")
    config = read_json(path)
    wrong = lambda key, needs: Fail(f"{path}: {key} is {config.get(key)!r}, and the code implements {needs}: only LLaDA's own layout can be opened")
    same = lambda a, b: type(a) is type(b) and a == b
    for key, values in {**REQUIRED, **ABSENT_OR}.items():
        if (key in config or key in REQUIRED) and not any(same(config.get(key), v) for v in values):
            raise wrong(key, " or ".join(map(repr, values)))
    options = {}
    for key, option in {**SIZES, **OPTIONAL}.items():
        value = config.get(key)
        if value is None and key in OPTIONAL:
            continue
        if type(value) is not int or not 1 <= value <= 1 << 24:
            raise wrong(key, "whole numbers from 1 to 2^24")
        options[option] = value
    for key, option in {"rope_theta": "rope_theta", "rms_norm_eps": "norm_eps"}.items():
        value = config.get(key)
        if type(value) not in (int, float) or not 0 < value < 1e12:
            raise wrong(key, "numbers above 0")
        options[option] = float(value)
    if options["n_embd"] % (2 * options["n_head"]):
        raise wrong("n_heads", f"divisors of d_model = {options['n_embd']} with an even quotient")
    if options["n_head"] % options.get("n_kv_head", 1):
        raise wrong("n_kv_heads", f"divisors of n_heads = {options['n_head']}")
    if config.get("embedding_size") not in (None, options["V"]):
        raise wrong("embedding_size", f"vocab_size = {options['V']} only")
    mask, pad = config.get("mask_token_id"), config.get("pad_token_id", config.get("eos_token_id"))
    for key, token in {"mask_token_id": mask, "pad_token_id": pad}.items():
        if type(token) is not int or not 0 <= token < options["V"]:
            raise wrong(key, f"tokens from 0 to {options['V'] - 1}")
    return {**options, "n_cond": options["n_embd"], "norm": "rms", "mlp": "swiglu", "adaln": 0,
            "insertion": "instant"}, mask, pad


NAMES = {                                                                                      # LLaDA's tensor: this project's parameter
    "model.transformer.wte.weight": "embed.weight",
    "model.transformer.blocks.{i}.attn_norm.weight": "blocks.{i}.norm1.weight",
    "model.transformer.blocks.{i}.q_proj.weight": "blocks.{i}.q.weight",
    "model.transformer.blocks.{i}.k_proj.weight": "blocks.{i}.k.weight",
    "model.transformer.blocks.{i}.v_proj.weight": "blocks.{i}.v.weight",
    "model.transformer.blocks.{i}.attn_out.weight": "blocks.{i}.out.weight",
    "model.transformer.blocks.{i}.ff_norm.weight": "blocks.{i}.norm2.weight",
    "model.transformer.blocks.{i}.ff_proj.weight": "blocks.{i}.gate.weight",
    "model.transformer.blocks.{i}.up_proj.weight": "blocks.{i}.up.weight",
    "model.transformer.blocks.{i}.ff_out.weight": "blocks.{i}.down.weight",
    "model.transformer.ln_f.weight": "norm.weight",
    "model.transformer.ff_out.weight": "head.weight",
}


def renamed(tensors, n_layer, folder):
    """{LLaDA's name: tensor} -> {this project's name: tensor}, every tensor exactly once."""
    if n_layer > len(tensors):                                                                 # do not even write the names of absurdly many
        raise Fail(f"{folder}: config.json says n_layers = {n_layer}, and the checkpoint has {len(tensors)} tensors: they do not belong together")
    table = {theirs.format(i=i): ours.format(i=i) for theirs, ours in NAMES.items() for i in range(n_layer if "{i}" in theirs else 1)}
    for name in sorted(tensors.keys() - table.keys()):
        raise Fail(f"{folder}: the tensor {name!r} has no place in LLaDA with n_layers = {n_layer}: another architecture, or another config.json")
    for name in sorted(table.keys() - tensors.keys()):
        raise Fail(f"{folder}: the tensor {name!r} is missing: fetch the checkpoint again")
    return {table[name]: tensor for name, tensor in tensors.items()}


def load(folder, device="cpu", **options):
    """A hub folder, or one that export() wrote -> this project's Transformer, in the files' dtype. options override those of model.Config.

    Without options LLaDA is LLaDA; insertion="linear", adaln=8 make it FlexMDM: gap head, time embedding and modulations are new, in float32,
    and start so that the token logits are still LLaDA's, given what stands in the end slot: the pad token, as after every text it was trained on.
    Built on the meta device: the parameters are the mapped file itself until something moves or changes them.
    """
    own, weights = read_json(os.path.join(folder, "config.json")).get("options"), read_checkpoint(folder)
    if own is None:
        config, mask, pad = read_config(folder)
        weights = renamed(weights, config["n_layer"], folder)
        embed = weights["embed.weight"]
        if list(embed.shape) != [config["V"], config["n_embd"]]:
            raise Fail(f"{folder}: the embedding is {list(embed.shape)}; config.json implies {[config['V'], config['n_embd']]}")
        weights["embed.weight"] = torch.cat([embed, embed[[mask, pad]]])                       # this project's mask is V, its pad V + 1
    try:
        with torch.device("meta"):
            if own is not None and own.get("n_layer", 6) > len(weights):                       # absurd: do not even build it
                raise Fail(f"n_layer = {own['n_layer']}")
            model = project.build({**(config if own is None else own), **options})
    except (Fail, TypeError, ValueError, AttributeError, RuntimeError) as e:
        raise Fail(f"{folder}: config.json describes no model that could be built with these tensors ({e})") from None
    permutation = weights.pop("permutation", None)
    new = [m for part in (model.time, model.shared, model.gap) if part is not None for m in part.modules()] if own is None else []
    fresh = {id(p) for m in new for p in m.parameters()}
    expected = {name: p.shape for name, p in model.named_parameters() if id(p) not in fresh}
    for name in sorted(expected.keys() ^ weights.keys()):
        raise Fail(f"{folder}: the tensor {name!r} is {'missing' if name in expected else 'of no use'}: fetch the checkpoint again")
    for name, tensor in weights.items():
        if tensor.shape != expected[name] or not tensor.is_floating_point():
            raise Fail(f"{folder}: the tensor for {name} is {tensor.dtype} {list(tensor.shape)}; config.json implies numbers, {list(expected[name])}")
    try:
        model.code = prime.Code(model.config.V, model.config.ell, permutation)
    except ValueError as e:
        raise Fail(f"{folder}: {e}") from None
    for m in new:
        m.to_empty(device="cpu", recurse=False)
        if isinstance(m, project.Norm):
            nn.init.ones_(m.weight)
        elif hasattr(m, "reset_parameters"):
            m.reset_parameters()
    model.init()                                                                               # of these; nothing happens on the meta device
    model.load_state_dict(weights, strict=False, assign=True)
    assert not [name for name, p in model.named_parameters() if p.is_meta]
    return model.to(device)


def is_folder(path):
    """Is this the folder of a pretrained model?"""
    return os.path.isfile(os.path.join(path, "config.json"))


def retrofit(folder, insertion, block_size=None, rank=0):
    """LLaDA with what training adds: insertion (unless `instant`), adapters of this rank (0: all weights train). Its mask token is never drawn.

    Also an exported folder of this project: its options stand, so that a run can go on from one.
    """
    theirs = read_json(os.path.join(folder, "config.json"))
    model = load(folder, **({} if "options" in theirs or insertion == "instant" else {"insertion": insertion, "adaln": 8}))
    if model.config.insertion != insertion:
        raise Fail(f"{folder} was exported with --insertion {model.config.insertion}, not {insertion}: give the same --method and --insertion")
    if block_size and block_size > model.config.block_size:
        raise Fail(f"--block_size {block_size} is longer than the {model.config.block_size} tokens that {folder} was trained with")
    model.config.block_size = block_size or model.config.block_size
    model.never = theirs.get("never", []) if "options" in theirs else [read_config(folder)[1]]
    if rank:
        add_lora(model, rank, alpha=rank, dropout=0.0)
        model.base = os.path.abspath(folder)
    else:
        model.requires_grad_(True)
    return model


def vocabulary(folder):
    """The tokenizer of a pretrained model's folder: (tiktoken.Encoding, V, the id that ends a text)."""
    theirs = read_json(os.path.join(folder, "config.json"))
    if isinstance(theirs.get("options"), dict):
        V, eot = theirs["options"].get("V"), theirs.get("eot")
    else:
        options, _, eot = read_config(folder)
        V = options["V"]
    if type(V) is not int or type(eot) is not int or not 0 <= eot < V:
        raise Fail(f"{folder} does not say which token ends a text: export it again")
    return tokenizer_json(os.path.join(folder, "tokenizer.json")), V, eot


def export(model, folder, eot=None):
    """Write a model, adapters merged in, as a folder that load() reads: config.json and model.safetensors, with this project's names.

    The tokenizer.json of the pretrained model under the adapters goes with it; eot: the id that ends a text.
    """
    if model.base and os.path.exists(os.path.join(model.base, "tokenizer.json")):
        with open(os.path.join(model.base, "tokenizer.json"), "rb") as source, aside(os.path.join(folder, "tokenizer.json"), "wb") as f:
            f.write(source.read())
    merge_lora(model)
    permutation = {} if model.code.permutation is None else {"permutation": model.code.permutation}
    write_safetensors(os.path.join(folder, "model.safetensors"), {**model.state_dict(), **permutation})
    with aside(os.path.join(folder, "config.json")) as f:
        json.dump({"options": asdict(model.config), "never": model.never, "eot": eot}, f, indent=1)


# ---- low-rank adapters (arXiv 2106.09685): W x + (alpha / r) B A x, with B = 0 at the start ------------------------------------------

class LoRA(nn.Linear):
    """A Linear whose weight stands still, plus a product of two thin matrices, a (r, in) and b (out, r), that is trained in float32."""

    def __init__(self, linear, r, alpha, dropout):
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.scale, self.dropout = alpha / r, dropout
        self.a = nn.Parameter(torch.empty(r, self.in_features, device=linear.weight.device))
        self.b = nn.Parameter(torch.zeros(self.out_features, r, device=linear.weight.device))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self, x):
        low = F.linear(F.dropout(x, self.dropout, self.training), self.a.to(x.dtype))          # (..., r)
        return F.linear(x, self.weight, self.bias) + self.scale * F.linear(low, self.b.to(x.dtype))

    @torch.no_grad()
    def merged(self):
        """A plain Linear that computes the same."""
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        low = self.scale * (self.b.float() @ self.a.float())
        linear.weight = nn.Parameter((self.weight.float() + low).to(self.weight.dtype), requires_grad=False)
        linear.bias = self.bias
        return linear


def add_lora(model, r=128, alpha=128, dropout=0.1):
    """Freeze the model, and give q, k, v of every block and the head an adapter. What is new (time, modulations, gap head) trains in full."""
    model.requires_grad_(False)
    for part in (model.time, model.shared, model.gap):
        if part is not None:
            part.requires_grad_(True)
    for block in model.blocks:
        block.q, block.k, block.v = (LoRA(linear, r, alpha, dropout) for linear in (block.q, block.k, block.v))
    model.head = LoRA(model.head, r, alpha, dropout)
    return model


def merge_lora(model):
    """Replace every adapter by the plain Linear that computes the same."""
    for block in model.blocks:
        block.q, block.k, block.v = (x.merged() if isinstance(x, LoRA) else x for x in (block.q, block.k, block.v))
    model.head = model.head.merged() if isinstance(model.head, LoRA) else model.head
    return model


# ---- the tokenizer: byte-level BPE of a tokenizer.json -> tiktoken -------------------------------------------------------------------

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"           # what ByteLevel(use_regex) splits with


def alphabet():
    """The 256 visible characters that byte-level BPE spells bytes with: {character: byte}."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in plain]
    return {**{chr(b): b for b in plain}, **{chr(256 + i): b for i, b in enumerate(rest)}}


def last_merges(pairs):
    """{(a, b): priority} -> {token: the priority of the merge that completes it when it is encoded by itself}, for tokens that are their own encoding.

    tiktoken merges two neighbours if their concatenation has a rank, tokenizer.json if their pair has one. With these ranks it is the same:
    when all of a token's bytes are covered by two neighbours, no merge has crossed its ends, so the merges inside it were those of the
    token by itself, and the two neighbours are its last pair. (Without that, two merges that spell one token would be confused.)
    """
    ranks = {}
    for token in {a + b for a, b in pairs}:
        parts, last = list(token), None
        while len(parts) > 1:
            rank, i = min((pairs.get(pair, math.inf), i) for i, pair in enumerate(zip(parts, parts[1:])))
            if rank == math.inf:
                break
            parts[i:i + 2], last = [parts[i] + parts[i + 1]], rank
        if len(parts) == 1:
            ranks[token] = last
    return ranks


def pre_tokenizer(spec, refuse):
    """The specification of a pre-tokenizer -> (regular expression, whether a text gets a space in front)."""
    steps = spec.get("pretokenizers") if isinstance(spec, dict) and spec.get("type") == "Sequence" else [spec]
    match steps:
        case [{"type": "ByteLevel", "add_prefix_space": bool(prefix), **rest}]:
            return GPT2 if rest.get("use_regex", True) else r"[\s\S]+", prefix
        case [{"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": behavior, "invert": bool(invert)},
              {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]:
            if behavior == "Isolated":                                                         # what lies between two matches is a piece too
                return rf"(?:{regex})|(?:(?!{regex})[\s\S])+", False
            if behavior == "Removed" and invert:
                return regex, False
    kinds = [step.get("type") if isinstance(step, dict) else step for step in steps] if isinstance(steps, list) else steps
    raise refuse(f"its pre-tokenizer {kinds} is neither ByteLevel nor Split by a regular expression, isolated, followed by ByteLevel")


class HubEncoding(tiktoken.Encoding):
    """tiktoken's engine with the ids of a tokenizer.json. Inside, ids are merge priorities; `ids` has the file's id for each of them."""

    def __init__(self, path, pattern, ranks, ids, spelled, special, form, prefix):
        super().__init__(os.path.basename(os.path.dirname(os.path.abspath(path))), pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        self.path, self.ids, self.spelled, self.form, self.prefix = path, ids, spelled, form, prefix
        self.literal = {text for text, normalized in special if not normalized}                # found in the text as it is,
        self.normal = {text for text, normalized in special if normalized}                     # found after Unicode normalization
        self._special_tokens = {text: id for (text, _), id in special.items()}
        self._special_token_values = set(self._special_tokens.values())
        self.id_of = {text: id for id, text in spelled.items()}
        self.max_token_value = max(spelled)

    def __reduce__(self):
        return tokenizer_json, (self.path,)

    def encode_ordinary(self, text):
        return self.encode(text, disallowed_special=())

    def encode(self, text, *, allowed_special=frozenset(), disallowed_special="all"):
        allowed = self.special_tokens_set if allowed_special == "all" else set(allowed_special)
        refused = self.special_tokens_set - allowed if disallowed_special == "all" else set(disallowed_special)
        if refused and (found := re.search(either(refused), text)):
            tiktoken.core.raise_disallowed_special_token(found.group())
        out = []
        for i, part in enumerate(re.split(either(allowed & self.literal), text)):              # every second part is a special token
            if i % 2:
                out.append(self._special_tokens[part])
                continue
            for k, piece in enumerate(re.split(either(allowed & self.normal), unicodedata.normalize(self.form, part) if self.form else part)):
                if k % 2:
                    out.append(self._special_tokens[piece])
                elif piece:
                    piece = " " + piece if self.prefix and not piece.startswith(" ") else piece
                    out += [self.ids[rank] for rank in super().encode_ordinary(piece)]
        return out

    def encode_single_token(self, text_or_bytes):
        return self.id_of[text_or_bytes.encode() if isinstance(text_or_bytes, str) else text_or_bytes]

    def decode_bytes(self, tokens):
        return b"".join(self.spelled.get(int(token), b"") for token in tokens)                 # an id without a token: nothing, as on the hub

    def decode(self, tokens, errors="replace"):
        return self.decode_bytes(tokens).decode(errors=errors)

    def decode_single_token_bytes(self, token):
        return self.spelled[token]

    encode_to_numpy = encode_with_unstable = token_byte_values = None                          # would answer with priorities
    _encode_single_piece = _encode_only_native_bpe = _encode_bytes = None


def either(texts):
    """A regular expression for any of `texts`, the longest first; for none of them, one that never matches."""
    return "(" + ("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)") + ")"


def tokenizer_json(path):
    """A hub's tokenizer.json of byte-level BPE -> a tiktoken.Encoding. encode(text, allowed_special="all") gives the ids of the hub's library.

    What frames a text (a begin-of-text token from the post_processor, padding, truncation) is the caller's.
    """
    content = read_json(path)
    refuse = lambda why: Fail(f"{path} cannot be used: {why}; byte-level BPE, as in LLaDA, GPT-2 or Llama 3, can")
    bpe = content.get("model")
    if not isinstance(bpe, dict) or bpe.get("type", "BPE") != "BPE" or not isinstance(bpe.get("merges"), list):
        raise refuse(f"its model is {bpe.get('type', 'unknown') if isinstance(bpe, dict) else 'missing'}")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if bpe.get(option):
            raise refuse(f"its model has {option} = {bpe[option]!r}")
    normalizer, decoder = content.get("normalizer"), content.get("decoder")
    form = normalizer.get("type") if isinstance(normalizer, dict) else normalizer
    if form not in (None, "NFC", "NFD", "NFKC", "NFKD"):
        raise refuse(f"its normalizer is {form}")
    if decoder is not None and (not isinstance(decoder, dict) or decoder.get("type") != "ByteLevel"):
        raise refuse(f"its decoder is {decoder.get('type') if isinstance(decoder, dict) else decoder}")
    pattern, prefix = pre_tokenizer(content.get("pre_tokenizer"), refuse)

    vocab = bpe.get("vocab")                                                                   # 1. tokens
    if not isinstance(vocab, dict) or not all(type(id) is int and 0 <= id < 1 << 31 for id in vocab.values()) or len(set(vocab.values())) < len(vocab):
        raise refuse("its vocab is no table of tokens with an id each")
    byte_of = alphabet()
    spell = lambda token: bytes(byte_of[c] for c in token) if all(c in byte_of for c in token) else token.encode("utf-8", "replace")
    for c in byte_of.keys() - vocab.keys():
        raise refuse(f"its vocab lacks the byte {byte_of[c]:#04x} ({c!r})")

    pairs = {}                                                                                 # 2. merges
    for rank, merge in enumerate(bpe["merges"]):
        pair = tuple(merge.split(" ") if isinstance(merge, str) else merge) if isinstance(merge, (str, list)) else ()
        if len(pair) != 2 or not all(isinstance(part, str) and part for part in pair) or not {*pair, "".join(pair)} <= vocab.keys():
            raise refuse(f"its merge {merge!r} is not two tokens of the vocab that make a third")
        if not all(c in byte_of for c in "".join(pair)):
            raise refuse(f"its merge {merge!r} is not made of bytes")
        pairs[pair] = rank
    done = last_merges(pairs)
    order = [*byte_of, *sorted(done, key=done.get)]                                            # the internal rank of each token

    special, spelled = {}, {id: spell(token) for token, id in vocab.items()}                   # 3. added tokens
    added = content.get("added_tokens") or []
    for token in added if isinstance(added, list) else [None]:
        match token:
            case {"id": int(id), "content": str(text), **flags} if text and 0 <= id < 1 << 31:
                if vocab.get(text, id) != id or (id in spelled and text not in vocab):
                    raise refuse(f"its added token {text!r} has an id, {id}, that the vocab contradicts")
                if any(flags.get(f) for f in ("single_word", "lstrip", "rstrip")):
                    raise refuse(f"its added token {text!r} has single_word, lstrip or rstrip set")
                normalized = bool(flags.get("normalized"))
                text = unicodedata.normalize(form, text) if normalized and form else text
                special[text, normalized], spelled[id] = id, text.encode("utf-8", "replace")
            case _:
                raise refuse("its added_tokens are no list of tokens with an id and a content")
    if bpe.get("ignore_merges"):                                                               # a piece that is a token stays whole
        for token in vocab.keys() - set(order) - {text for text, _ in special}:
            raise refuse(f"it has ignore_merges, and a token, {token!r}, that no merges make")
    try:
        return HubEncoding(path, pattern, {spell(token): rank for rank, token in enumerate(order)}, [vocab[token] for token in order],
                           spelled, special, form, prefix)
    except ValueError as e:
        raise refuse(f"its regular expression is not understood ({e})") from None
