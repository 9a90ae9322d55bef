"""What users give: options of the losses, logits and labels. Each is checked once, at the edge."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec

import torch
from torch import Tensor
from torch.autograd import forward_ad

from aucseg.hints import check_choice, check_number, check_options
from aucseg.losses.auc.surrogates import SURROGATES
from aucseg.tensors.dtypes import can_be_asked, has_values
from aucseg.tensors.labels import check_ignore_index, check_labels, refuse_default_ignore_label
from aucseg.tensors.shapes import check_logits_and_target

if TYPE_CHECKING:
    from aucseg.losses.auc.options import AUCOptions, LossOptions

SCORES = ("sigmoid", "softmax", "identity")
STRATEGIES = ("ovo", "ova")
# Beyond this the square of a margin leaves float32 where gradients are computed.
MAX_MARGIN = 1e6
ONCE = "the AUC loss can be differentiated once; second derivatives (create_graph=True) are not offered"

_P = ParamSpec("_P")


def names_nearest_option(init: Callable[_P, None]) -> Callable[_P, None]:
    """Makes a misspelt option of an `__init__` a TypeError that names the nearest one."""

    @functools.wraps(init)
    def checked(*args: _P.args, **options: _P.kwargs) -> None:
        check_options(type(args[0]).__name__, options, init)
        init(*args, **options)

    return checked


def check_auc_options(options: AUCOptions) -> None:
    """Raises a ValueError or TypeError that names an option of the AUC loss which is out of range."""
    if isinstance(options.surrogate, str):
        check_choice("surrogate", options.surrogate, SURROGATES)
    check_choice("scores", options.scores, SCORES)
    check_choice("strategy", options.strategy, STRATEGIES)
    check_number("margin", options.margin)
    if not 0 < options.margin <= MAX_MARGIN:
        raise ValueError(f"margin must be a number above 0, at most {MAX_MARGIN:g}, got {options.margin}")
    check_ignore_index(options.ignore_index)
    if options.max_fpr is not None:
        check_number("max_fpr", options.max_fpr)
        if not 0 < options.max_fpr <= 1:
            raise ValueError(f"max_fpr must lie in (0, 1], got {options.max_fpr}")


def check_sums_are_enough(options: AUCOptions, what: str) -> None:
    """Raises a ValueError unless the loss is a function of sums, which are all that can be put together.

    Args:
        options: The options of the loss.
        what: What is not offered otherwise, and what to do, for the message.
    """
    if options.form is None:
        raise ValueError(
            f"surrogate={options.surrogate!r} with margin={options.margin}, scores={options.scores!r} and "
            f"max_fpr={options.max_fpr} is computed by sorting all scores, {what}, or use a margin of at least 1 with "
            "'sigmoid' or 'softmax' scores, or another surrogate"
        )


def check_pair_weight(pair_weight: Tensor | None, options: AUCOptions) -> None:
    """Raises a ValueError that names what is wrong with the weights of the class pairs."""
    if pair_weight is None:
        return
    if not isinstance(pair_weight, Tensor) or pair_weight.dim() != 2 or pair_weight.shape[0] != pair_weight.shape[1]:
        raise ValueError(
            "pair_weight must be a (K, K) tensor: row = class of the positives, column = class of the negatives"
        )
    _check_real(pair_weight, "pair_weight")
    if options.strategy != "ovo":
        raise ValueError("pair_weight weights pairs of classes and is offered for strategy='ovo' only")
    if has_values(pair_weight) and not bool((torch.isfinite(pair_weight) & (pair_weight >= 0)).all()):
        raise ValueError("pair_weight must be finite and not negative")
    if options.form is None and pair_weight.requires_grad:
        raise ValueError(
            f"pair_weight requires a gradient, which surrogate={options.surrogate!r} with these options does not "
            "have, as it is computed by sorting: pass its detach()"
        )


def check_class_weight(class_weight: Tensor) -> None:
    """Raises a ValueError that names what is wrong with the class weights of the cross-entropy."""
    _check_real(class_weight, "class_weight")
    is_bad = has_values(class_weight) and not bool((torch.isfinite(class_weight) & (class_weight >= 0)).all())
    if class_weight.dim() != 1 or is_bad:
        raise ValueError("class_weight must be a (K,) tensor of finite numbers, none negative")
    if class_weight.requires_grad:
        raise ValueError("class_weight requires a gradient, which the loss does not have: pass its detach()")


def _check_real(weights: Tensor, name: str) -> None:
    if weights.is_complex():
        raise ValueError(f"{name} must be real numbers, got {weights.dtype}")


def check_inputs(logits: Tensor, target: Tensor, options: LossOptions, *, upsample: bool = False) -> None:
    """Raises a TypeError or ValueError that names what is wrong with logits or target.

    Values of labels are checked on the CPU only: on an accelerator that would wait for the device.
    """
    check_logits_and_target(logits, target, upsample=upsample)
    num_channels = logits.shape[1]
    _check_number_of_channels(num_channels, options)
    if torch.compiler.is_compiling():
        return
    _check_derivatives(logits)
    if options.auc.validate_args and can_be_asked(target) and target.numel():
        check_labels(target, max(num_channels, 2), options.auc.ignore_index)
    if options.auc.check_finite and has_values(logits):
        _check_finite(logits)


def _check_number_of_channels(num_channels: int, options: LossOptions) -> None:
    if options.auc.scores == "softmax" and num_channels == 1:
        raise ValueError(
            "scores='softmax' of a single channel is constant: use 'sigmoid' or 'identity' with one logit a pixel"
        )
    refuse_default_ignore_label(options.auc.ignore_index, num_channels)
    if options.pair_weight is not None and options.pair_weight.shape[0] != num_channels:
        raise ValueError(f"pair_weight is {tuple(options.pair_weight.shape)} but logits have {num_channels} channels")
    if options.class_weight is not None and options.class_weight.numel() != max(num_channels, 2):
        channels = "one channel, which is two classes" if num_channels == 1 else f"{num_channels} channels"
        raise ValueError(f"class_weight has {options.class_weight.numel()} entries but logits have {channels}")


def _check_derivatives(logits: Tensor) -> None:
    """Refuses forward-mode and torch.func derivatives: the operators define none, and torch takes them for zero."""
    if torch.compiler.is_compiling():  # a frame of its own where the graph breaks, as at masks of torchvision
        return
    wrapped, in_function_transform = logits, False
    while torch._C._functorch.is_functorch_wrapped_tensor(wrapped):
        in_function_transform |= torch._C._functorch.is_gradtrackingtensor(wrapped)
        wrapped = torch._C._functorch.get_unwrapped(wrapped)
    tangent = forward_ad.unpack_dual(logits).tangent  # type: ignore[no-untyped-call]
    if in_function_transform or tangent is not None:
        raise NotImplementedError(
            "the AUC loss has a backward pass alone, neither forward-mode derivatives nor the transforms of torch.func "
            "(grad, vjp, jvp, jacrev, ...): use loss.backward() or torch.autograd.grad(loss, inputs)"
        )


def _check_finite(logits: Tensor) -> None:
    bad = ~torch.isfinite(logits)
    if bool(bad.any()):
        where = tuple(bad.nonzero()[0].tolist())
        raise ValueError(
            f"logits[{', '.join(map(str, where))}] is {float(logits[where])}: image {where[0]}, class {where[1]} "
            "(check_finite=True)"
        )
