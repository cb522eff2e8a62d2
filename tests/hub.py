"""Folders as a model hub has them, tiny and random: a LLaDA, a tokenizer.json. Shared by tests."""
import json
import random

import torch

from retrofit import safetensors, tokenizer

CONFIG = {"d_model": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "mlp_hidden_size": 48,
          "vocab_size": 50, "embedding_size": 50, "max_sequence_length": 64, "rope_theta": 500000.0,
          "rms_norm_eps": 1e-5, "block_type": "llama", "activation_type": "silu",
          "layer_norm_type": "rms", "include_bias": False, "include_qkv_bias": False,
          "weight_tying": False, "mask_token_id": 47, "eos_token_id": 46, "pad_token_id": 46,
          "architectures": ["LLaDAModelLM"], "mlp_ratio": 4, "use_cache": False}


def write_shards(folder, where, tensors):
    """where: {tensor's name: file}"""
    folder.mkdir(exist_ok=True)
    for file in set(where.values()):
        inside = {name: tensors[name] for name in tensors if where[name] == file}
        safetensors.write(folder / file, inside)
    index = {"metadata": {}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_llada(folder, config=CONFIG, dtype=torch.float32, files=1):
    """A random checkpoint in LLaDA's layout -> its tensors"""
    torch.manual_seed(0)
    d, V, hidden = config["d_model"], config["vocab_size"], config["mlp_hidden_size"]
    kv = d // config["n_heads"] * config["n_kv_heads"]
    block = {"attn_norm": (d,), "q_proj": (d, d), "k_proj": (kv, d), "v_proj": (kv, d),
             "attn_out": (d, d), "ff_norm": (d,), "ff_proj": (hidden, d), "up_proj": (hidden, d),
             "ff_out": (d, hidden)}
    shapes = {"wte": (V, d), "ln_f": (d,), "ff_out": (V, d)}
    for i in range(config["n_layers"]):
        shapes.update({f"blocks.{i}.{name}": shape for name, shape in block.items()})
    tensors = {}
    for name, shape in shapes.items():
        w = 0.1 * torch.randn(shape) if len(shape) == 2 else 1 + 0.2 * torch.randn(shape)
        tensors[f"model.transformer.{name}.weight"] = w.to(dtype)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if files == 1:
        safetensors.write(folder / "model.safetensors", tensors)
    else:
        where = {name: f"model-{i % files}.safetensors" for i, name in enumerate(tensors)}
        write_shards(folder, where, tensors)
    return tensors


def byte_level(prefix=False, regex=True):
    return {"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True,
            "use_regex": regex}


def split(regex, behavior="Isolated", invert=False):
    first = {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": invert}
    return {"type": "Sequence", "pretokenizers": [first, byte_level(regex=False)]}


def tokenizer_json(pairs, added=(), pre=None, shuffle=None, lists=False, extra=(), normalizer=None,
                   **options):
    """The content of a tokenizer.json with these merges: pairs (a, b) of visible characters.
    shuffle: a seed for ids that are not in merge order, with gaps. lists: merges as ["a", "b"]."""
    tokens = [*tokenizer.alphabet(), *(a + b for a, b in pairs), *extra]
    tokens = list(dict.fromkeys(tokens))
    ids = list(range(len(tokens)))
    if shuffle is not None:
        ids = random.Random(shuffle).sample(range(2 * len(tokens)), len(tokens))
    vocab = dict(zip(tokens, ids))
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": True}
    added = [{"id": vocab.get(text, max(ids) + 1 + i), "content": text, **flags}
             for i, text in enumerate(added)]
    merges = [f"{a} {b}" for a, b in pairs]
    if lists:
        merges = [[a, b] for a, b in pairs]
    bpe = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
           "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "vocab": vocab,
           "merges": merges, **options}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
            "normalizer": normalizer, "pre_tokenizer": pre or byte_level(), "post_processor": None,
            "decoder": byte_level(), "model": bpe}
