"""The optimiser that a spec names, and its state as a checkpoint keeps it.

    optimizer/<parameter>/momentum                      LARS and SGD
    optimizer/<parameter>/{step,exp_avg,exp_avg_sq}     AdamW

Learning rates come from `schedule`; which parameters are decayed is `optim`'s business.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from wcl_core.config import PretrainSpec, is_transformer
from wcl_core.training.optim import LARS, param_groups

_SLOTS: dict[type[Optimizer], tuple[str, ...]] = {
    LARS: ("momentum",),
    torch.optim.SGD: ("momentum",),
    torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"),
}


def build_optimizer(config: PretrainSpec, model: nn.Module) -> Optimizer:
    """LARS [C], SGD or AdamW (Loshchilov & Hutter, ICLR 2019) [D], with a learning rate of 0 until one is set.

    AdamW's decay is decoupled from the gradient: p <- p - lr wd p.  On CUDA it runs fused, which keeps its step counter
    on the device, so that neither a step nor a checkpoint waits for the host.
    """
    options = config.optimizer
    groups = param_groups(model, options.weight_decay, options.lars_exclusion)
    if options.name == "lars":
        return LARS(
            groups,
            lr=0.0,
            momentum=options.momentum,
            weight_decay=options.weight_decay,
            trust_coefficient=options.trust_coefficient,
        )
    if options.name == "adamw":
        is_cuda = next(model.parameters()).is_cuda
        return torch.optim.AdamW(groups, lr=0.0, betas=options.betas, fused=True if is_cuda else None)
    return torch.optim.SGD(groups, lr=0.0, momentum=options.momentum)


def warning_of(config: PretrainSpec) -> str | None:
    """What speaks against the optimiser of this run, if anything does."""
    if config.optimizer.name == "lars" and is_transformer(config.backbone.name):
        name = config.backbone.name
        return f"LARS was made for residual networks; {name} is usually trained with optimizer.name = adamw"
    return None


def state_of(optimizer: Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """Every slot there is, by `<parameter>/<slot>`; none before the first step."""
    tensors = {}
    for name, parameter in model.named_parameters():
        for slot in _SLOTS[type(optimizer)]:
            if (tensor := optimizer.state[parameter].get(_torch_name(optimizer, slot))) is not None:
                tensors[f"{name}/{slot}"] = tensor
    return tensors


def load_state(
    optimizer: Optimizer, model: nn.Module, slots: dict[str, Tensor], memory_format: torch.memory_format
) -> None:
    """Continue from what `state_of` gave; kernels' slots take the kernels' memory format."""
    is_fused = any(group.get("fused") for group in optimizer.param_groups)
    for name, parameter in model.named_parameters():
        for slot in _SLOTS[type(optimizer)]:
            if (tensor := slots.get(f"{name}/{slot}")) is None:
                continue
            # A counter on a GPU is what only the fused form takes; the plain one would read it back at each step.
            placed = tensor.clone() if slot == "step" and not is_fused else tensor.to(parameter.device)
            if parameter.ndim == 4 and slot != "step":
                placed = placed.contiguous(memory_format=memory_format)
            optimizer.state[parameter][_torch_name(optimizer, slot)] = placed


def _torch_name(optimizer: Optimizer, slot: str) -> str:
    return "momentum_buffer" if isinstance(optimizer, torch.optim.SGD) else slot
