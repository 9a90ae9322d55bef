"""Options of the AUC loss, checked once, and the checks of its inputs."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, ParamSpec

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import forward_ad

from aucseg.losses.auc.pixels import PassOptions
from aucseg.losses.auc.smooth import SmoothSurrogate, logistic_surrogate
from aucseg.losses.auc.surrogates import Coefficients, separable_form

SURROGATES = ("square", "hinge", "squared_hinge", "exponential", "logistic")
SCORES = ("sigmoid", "softmax", "identity")
DEFAULT_IGNORE_INDEX = 255
STRATEGIES = ("ovo", "ova")
# Not uint64, half of which int64 does not have.
_LABEL_DTYPES = (
    torch.bool, torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32, torch.int64
)  # fmt: skip

# Beyond this the square of a margin leaves float32 where gradients are computed.
MAX_MARGIN = 1e6

_P = ParamSpec("_P")

Surrogate = str | SmoothSurrogate | Callable[[Tensor], Tensor]


def check_option_names(owner: str, given: Iterable[str], *takers: Callable[..., object]) -> None:
    """Raise a TypeError that names an option which none of ``takers`` has, and the nearest one that they have.

    Args:
        owner: Whose options they are, for the message.
        given: Names of options.
        *takers: Functions with these options as named parameters.
    """
    known = [
        parameter.name
        for taker in takers
        for parameter in inspect.signature(taker).parameters.values()
        if parameter.kind is not parameter.VAR_KEYWORD and parameter.name != "self"
    ]
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise TypeError(f"{owner} has no option {name!r}{hint} It takes {', '.join(known)}")


def names_nearest_option(init: Callable[_P, None]) -> Callable[_P, None]:
    """Make a misspelt option of an ``__init__`` a TypeError that names the nearest one."""

    @functools.wraps(init)
    def checked(*args: _P.args, **options: _P.kwargs) -> None:
        check_option_names(type(args[0]).__name__, options, init)
        init(*args, **options)

    return checked


def one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise a ValueError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


@dataclass(frozen=True)
class AUCOptions:
    """The options of `aucseg.losses.PairwiseAUCLoss`, and the way of computation that they lead to.

    Attributes:
        form: The separable form, ``""`` if the loss is computed by sorting.
        degree: Its degree.
        coefficients: Its coefficients.
    """

    surrogate: Surrogate = "square"
    margin: float = 1.0
    scores: str = "sigmoid"
    strategy: str = "ovo"
    pair_weight: Tensor | None = field(default=None, compare=False)
    ignore_index: int = DEFAULT_IGNORE_INDEX
    process_group: dist.ProcessGroup | None = None
    max_fpr: float | None = None
    check_finite: bool = False
    validate_args: bool = True
    form: str = field(init=False)
    degree: int = field(init=False, default=0)
    coefficients: Coefficients = field(init=False)

    def __post_init__(self) -> None:
        one_of("scores", self.scores, SCORES)
        one_of("strategy", self.strategy, STRATEGIES)
        if not 0 < self.margin <= MAX_MARGIN:
            raise ValueError(f"margin must be a number above 0, at most {MAX_MARGIN:g}, got {self.margin}")
        if not isinstance(self.ignore_index, int):
            raise TypeError(f"ignore_index must be an int, got {self.ignore_index!r}")
        if not -(2**63) <= self.ignore_index < 2**63:
            raise ValueError(f"ignore_index must fit into 64 bits, got {self.ignore_index}")
        if self.pair_weight is not None:
            _check_pair_weight(self.pair_weight, self.strategy)
        self._choose_form()
        if self.max_fpr is not None:
            if not 0 < self.max_fpr <= 1:
                raise ValueError(f"max_fpr must lie in (0, 1], got {self.max_fpr}")
            if self.form:
                raise ValueError(
                    "max_fpr (partial AUC) is offered for surrogate='hinge' and 'squared_hinge', "
                    f"not for {self.surrogate!r}"
                )
        if not self.form and self.pair_weight is not None and self.pair_weight.requires_grad:
            raise ValueError(
                f"pair_weight requires a gradient, which surrogate={self.surrogate!r} with these options does not "
                "have, as it is computed by sorting: pass its detach()"
            )
        if not self.form and self.process_group is not None:
            raise ValueError(
                f"surrogate={self.surrogate!r} with margin={self.margin}, scores={self.scores!r} and "
                f"max_fpr={self.max_fpr} is computed by sorting all scores, which do not travel between processes: "
                "pass process_group=None, or use a margin of at least 1 with 'sigmoid' or 'softmax' scores, or another "
                "surrogate"
            )

    def _choose_form(self) -> None:
        bounded = self.scores != "identity"
        smooth = self.surrogate
        form, degree, coefficients = "", 0, None
        if isinstance(smooth, str):
            one_of("surrogate", smooth, SURROGATES)
            # Scores in [0, 1] differ by at most 1: with a margin of at least 1 a hinge is never at rest.
            if smooth in ("hinge", "squared_hinge"):
                if bounded and self.margin >= 1 and self.max_fpr is None:
                    form = "linear" if smooth == "hinge" else "square"
            elif smooth == "logistic" and bounded:
                smooth = logistic_surrogate(self.margin)
            else:
                form = smooth
        elif not isinstance(smooth, SmoothSurrogate):
            smooth = SmoothSurrogate(smooth)
        if isinstance(smooth, SmoothSurrogate) or smooth == "logistic":
            if not bounded:
                raise ValueError(
                    "logistic and user-defined surrogates are expanded over scores in [0, 1]; scores='identity' is not "
                    "offered for them: use 'sigmoid' or 'softmax', or surrogate='square', 'hinge', 'squared_hinge' or "
                    "'exponential'"
                )
            assert isinstance(smooth, SmoothSurrogate)
            form, degree, coefficients = "chebyshev", smooth.degree, smooth.coefficients
        if coefficients is None:
            coefficients = separable_form(form, self.margin, 0, self.scores).coefficients if form else ()
        for name, value in (("form", form), ("degree", degree), ("coefficients", coefficients)):
            object.__setattr__(self, name, value)

    def passes(self, *, cross_entropy: bool = False, label_smoothing: float = 0.0, auc: bool = True) -> tuple[Any, ...]:
        """The settings of `aucseg.losses.auc.torch_passes.pixel_sums`: the fields of `PassOptions` in order."""
        options = PassOptions(
            self.form if auc else "",
            self.margin,
            self.degree,
            self.scores,
            self.ignore_index,
            cross_entropy,
            label_smoothing,
        )
        return tuple(getattr(options, name) for name in PassOptions.__dataclass_fields__)


def _check_pair_weight(pair_weight: Tensor, strategy: str) -> None:
    if not isinstance(pair_weight, Tensor) or pair_weight.dim() != 2 or pair_weight.shape[0] != pair_weight.shape[1]:
        raise ValueError(
            "pair_weight must be a (K, K) tensor: row = class of the positives, column = class of the negatives"
        )
    if strategy != "ovo":
        raise ValueError("pair_weight weights pairs of classes and is offered for strategy='ovo' only")
    if not bool((torch.isfinite(pair_weight) & (pair_weight >= 0)).all()):
        raise ValueError("pair_weight must be finite and not negative")


def check_inputs(logits: Tensor, target: Tensor, options: AUCOptions, *, upsample: bool = False) -> None:
    """Raise a TypeError or ValueError that names what is wrong with logits or target.

    Values of labels are checked on the CPU only: on an accelerator that would wait for the device.
    """
    for name, value in (("logits", logits), ("target", target)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if not logits.is_floating_point():
        raise ValueError(f"logits must be floating point, got {logits.dtype}")
    if target.dtype not in _LABEL_DTYPES:
        raise ValueError(
            f"target must hold integer class labels, got {target.dtype}: pass target.long() if its values are whole"
        )
    shape, labels = tuple(logits.shape), tuple(target.shape)
    if logits.dim() < 2 or shape[1] < 1:
        raise ValueError(f"logits must be (N, K) or (B, K, *spatial) with K >= 1, got shape {shape}")
    if not upsample and labels != (shape[0], *shape[2:]):
        raise ValueError(f"target must have shape {(shape[0], *shape[2:])} for logits of shape {shape}, got {labels}")
    if target.dim() != logits.dim() - 1 or labels[0] != shape[0]:
        raise ValueError(f"target of shape {labels} does not fit logits of shape {shape}: expected (B, *spatial)")
    if shape[2:] != labels[1:] and len(shape) > 5:
        raise ValueError(
            f"logits of shape {shape} are smaller than the target of shape {labels}, and upsampling is offered for one "
            "to three spatial dimensions: bring one of them to the size of the other first"
        )
    if any(size > full for size, full in zip(shape[2:], labels[1:], strict=True)):
        raise ValueError(
            f"logits of shape {shape} are larger than the target of shape {labels}: resize one of them first"
        )
    if target.numel() and not logits.numel():
        raise ValueError(f"logits of shape {shape} hold no value for the target of shape {labels}")
    if logits.device != target.device:
        raise ValueError(f"logits are on {logits.device} but target is on {target.device}")
    if options.scores == "softmax" and shape[1] == 1:
        raise ValueError(
            "scores='softmax' of a single channel is constant: use 'sigmoid' or 'identity' with one logit a pixel"
        )
    if options.ignore_index == DEFAULT_IGNORE_INDEX < shape[1]:
        raise ValueError(
            f"ignore_index={options.ignore_index} (the default) is one of the {shape[1]} classes: choose another "
            "ignore label, such as -100"
        )
    if options.pair_weight is not None and options.pair_weight.shape[0] != shape[1]:
        raise ValueError(f"pair_weight is {tuple(options.pair_weight.shape)} but logits have {shape[1]} channels")
    if torch.compiler.is_compiling():
        return
    _check_derivatives(logits)
    if options.validate_args and target.device.type == "cpu" and target.numel():
        _check_labels(target, max(shape[1], 2), options.ignore_index)
    if options.check_finite:
        _check_finite(logits)


def _check_derivatives(logits: Tensor) -> None:
    """Refuse what would take derivatives that the operators of the loss do not have, which torch takes for zero."""
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


def _check_labels(target: Tensor, num_classes: int, ignore_index: int) -> None:
    if target.dtype == torch.bool:
        return
    if target.dtype in (torch.uint16, torch.uint32):  # torch has few operations for these
        target = target.to(torch.int64)
    low, high = (int(value) for value in torch.aminmax(target))
    if low >= 0 and high < num_classes:
        return
    target = target.to(torch.int64)  # numbers are compared in the dtype of the tensor, where they may wrap around
    bad = ((target < 0) | (target >= num_classes)) & (target != ignore_index)
    if bool(bad.any()):
        where = tuple(bad.nonzero()[0].tolist())
        raise ValueError(
            f"target[{', '.join(map(str, where))}] is {int(target[where])}: labels must lie in "
            f"0..{num_classes - 1} or be the ignore label {ignore_index}"
        )


def _check_finite(logits: Tensor) -> None:
    bad = ~torch.isfinite(logits)
    if bool(bad.any()):
        where = tuple(bad.nonzero()[0].tolist())
        raise ValueError(
            f"logits[{', '.join(map(str, where))}] is {float(logits[where])}: image {where[0]}, class {where[1]} "
            "(check_finite=True)"
        )
