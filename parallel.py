"""One run on many processes: torchrun starts them, all hold the same weights (DDP) or a share of
them each (--fsdp), and every process reads the whole batch but works on its own rows."""
import os

import torch
import torch.distributed as dist
import torch.distributed.checkpoint.state_dict as sharded
from torch.distributed.fsdp import FSDPModule, fully_shard


def start(args):
    """-> rank, world. torchrun starts many processes, python one."""
    if "RANK" not in os.environ:
        return 0, 1
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if args.device == "cuda":
        args.device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(args.device)
        dist.init_process_group("cpu:gloo,cuda:nccl")
    else:
        dist.init_process_group("gloo")
    return rank, world


def shard(net):
    for block in net.blocks:
        fully_shard(block)
    fully_shard(net, reshard_after_forward=True)    # or it stays whole after validation


def total(x, world):
    """The sum of a CPU tensor over all processes"""
    if world > 1:
        dist.all_reduce(x)
    return x


def agreed(asked, world):
    """Was any process asked to stop? All of them have to leave at the same step."""
    return bool(total(torch.tensor(float(asked)), world))


# -----------------------------------------------------------------------------
# state dicts, put together from all processes under --fsdp

FULL = sharded.StateDictOptions(full_state_dict=True, cpu_offload=True, broadcast_from_rank0=True)
PARTIAL = sharded.StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)


def trained_weights(net):
    """What training changes, {name: tensor on the CPU}: all, or a pretrained model's adapters"""
    names = {name for name, p in net.named_parameters() if p.requires_grad}
    if isinstance(net, FSDPModule):
        state = sharded.get_model_state_dict(net, options=FULL)
    else:
        state = net.state_dict()
    return {name: w.detach().cpu().clone() for name, w in state.items() if name in names}


def optimizer_state(net, optimizer):
    if isinstance(net, FSDPModule):
        return sharded.get_optimizer_state_dict(net, optimizer, options=FULL)
    return optimizer.state_dict()


@torch.no_grad()
def set_trained(net, weights):
    if isinstance(net, FSDPModule):
        sharded.set_model_state_dict(net, weights, options=PARTIAL)
        return
    for name, p in net.named_parameters():
        if name in weights:
            p.copy_(weights[name])


def set_optimizer(net, optimizer, state):
    if isinstance(net, FSDPModule):
        sharded.set_optimizer_state_dict(net, optimizer, state, options=FULL)
    else:
        optimizer.load_state_dict(state)
