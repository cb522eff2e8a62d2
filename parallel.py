"""One run on many processes: torchrun starts them, all hold the same weights (DDP) or a share of
them each (--fsdp), and every process reads the whole batch but works on its own rows."""
import os

import torch
import torch.distributed as dist
import torch.distributed.checkpoint.state_dict as sharded
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


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
# whole tensors, put together from the shares of all processes under --fsdp

def whole(weights):
    """{name: tensor}, a share of each -> on the first process {name: the whole tensor, on the CPU},
    on the others {}"""
    full, first = {}, not dist.is_initialized() or dist.get_rank() == 0
    for name, w in weights.items():
        w = w.detach()
        if isinstance(w, DTensor):
            w = w.full_tensor()
        if first:
            full[name] = w.to("cpu", copy=True)
    return full


@torch.no_grad()
def fill(weights, full):
    """The other way: write the whole tensors `full` into the weights of these names."""
    for name, w in weights.items():                 # in one order on all processes
        if name not in full:
            continue
        values = full[name]
        if isinstance(w, DTensor):
            values = distribute_tensor(values.to(w.device), w.device_mesh, w.placements)
        w.copy_(values)


WHOLE = sharded.StateDictOptions(full_state_dict=True, cpu_offload=True, broadcast_from_rank0=True)


def optimizer_state(net, optimizer):
    if isinstance(net, FSDPModule):
        return sharded.get_optimizer_state_dict(net, optimizer, options=WHOLE)
    return optimizer.state_dict()


def set_optimizer(net, optimizer, state):
    if isinstance(net, FSDPModule):
        sharded.set_optimizer_state_dict(net, optimizer, state, options=WHOLE)
    else:
        optimizer.load_state_dict(state)
