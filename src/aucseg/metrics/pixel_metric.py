"""What all pixel metrics share: checks of logits and labels, states that are sums, one band of rows at a time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from aucseg.metrics.class_bars import draw_class_bars
from aucseg.tensors.dtypes import plain_tensor
from aucseg.tensors.kernels import import_kernels
from aucseg.tensors.labels import check_ignore_index, class_ids, is_integer, refuse_default_ignore_label
from aucseg.tensors.shapes import check_logits_and_target
from aucseg.tensors.upsampling import upsampled_bands


class PixelMetric(Metric):
    """A metric over labelled pixels whose states are sums.

    `compute` returns what a loop logs, scalars alone, as `torchmetrics.MetricTracker`, Lightning's `log` and
    `log_dict` ask for; `details` returns everything, values of classes included; `plot` draws those.

    `torchmetrics.MetricCollection` shares the states of metrics whose states have the same names and, after the first
    batch, the same values: names of states tell all settings that the states depend on, see `add_sums`.

    Values that it cannot count raise `ValueError`: from `update` on the CPU; on an accelerator, where `update`
    must not wait for the device, they are counted and `compute` raises.

    Args:
        num_classes: Number of classes K, at least 2.
        ignore_index: Pixels with this label in the target don't count.
        class_names: Names of the classes for `plot`; None for their numbers.
        **kwargs: Options of `torchmetrics.Metric`.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    # What the values of the classes are called on the axis of a plot.
    score_name = ""

    num_invalid: Tensor

    def __init__(
        self, num_classes: int, ignore_index: int = 255, class_names: Sequence[str] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if not is_integer(num_classes) or num_classes < 2:
            raise ValueError(
                f"num_classes must be an integer of at least 2, got {num_classes!r}; a model with one logit a pixel "
                "has 2 classes: give num_classes=2 and its logits (B, 1, *spatial)"
            )
        check_ignore_index(ignore_index)
        refuse_default_ignore_label(ignore_index, num_classes)
        if class_names is not None and (isinstance(class_names, str) or len(class_names) != num_classes):
            raise ValueError(f"class_names must hold {num_classes} names, one a class, got {class_names!r}")
        self.num_classes = int(num_classes)
        self.ignore_index = int(ignore_index)
        self.class_names = None if class_names is None else tuple(class_names)
        self.add_state("num_invalid", torch.tensor(0), dist_reduce_fx="sum")

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # torchmetrics takes any shape, and the numbers would be wrong.
        for name, default in self._defaults.items():
            stored = state_dict.get(prefix + name)
            if isinstance(default, Tensor) and stored is not None and stored.shape != default.shape:
                error_msgs.append(
                    f"{prefix}{name} is of other settings: its shape is {tuple(stored.shape)}, that of this metric "
                    f"{tuple(default.shape)}; make the metric with the number of classes and bins of the saved one"
                )
                return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def details(self) -> dict[str, Tensor]:
        """Returns what `compute` returns and more, `per_class` (K,) at least, over all processes."""
        raise NotImplementedError

    def over_processes(self) -> AbstractContextManager[None]:
        """Within the context the states are those of all processes, where `compute` would take those of all.

        Within `forward`, and with `sync_on_compute=False`, they are those of this process.
        """
        outside = not self._is_synced and self._to_sync
        context: AbstractContextManager[None] = self.sync_context(should_sync=outside, should_unsync=outside)
        return context

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draws a bar for each class, with its error bound; or given values.

        Args:
            val: Results of `compute` or `forward`, one or a list, to draw instead, as torchmetrics' own metrics do.
            ax: Axes of matplotlib to draw into; None for a new figure.

        Returns:
            Figure (None if axes were given) and axes.

        Raises:
            ImportError: Matplotlib is missing.
        """
        if val is not None:
            return self._plot(val, ax)
        details = self.details()
        return draw_class_bars(
            details["per_class"].tolist(),
            self.class_names or tuple(map(str, range(self.num_classes))),
            getattr(self, "groups", {}),
            self.score_name,
            bounds=details["per_class_error_bound"].tolist() if "per_class_error_bound" in details else None,
            axes=ax,
        )

    def add_sums(self, name: str, *settings: str, shape: tuple[int, ...]) -> str:
        """Adds a state of int64 sums, zero at first, and returns its name, which tells the settings.

        Args:
            name: What is summed.
            *settings: Settings that the sums depend on, beside the shape and `ignore_index`.
            shape: Shape of the state.
        """
        name = "_".join([name, *settings, f"ignore_{self.ignore_index}".replace("-", "minus_")])
        # The state keeps a copy of its default for reset(): one zero stands for all, or the memory would double.
        self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")
        self._defaults[name] = torch.tensor(0).expand(shape)
        setattr(self, name, torch.zeros(shape, dtype=torch.int64))
        return name

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> "PixelMetric":
        # Moved to a device, or copied, an expanded zero would become a whole tensor.
        defaults: dict[str, Any] = self._defaults
        shapes = {name: default.shape for name, default in defaults.items()}
        for name, default in defaults.items():
            defaults[name] = default[(0,) * default.ndim]
        super()._apply(partial(_keeping_integers, fn), *args, **kwargs)
        for name, shape in shapes.items():
            defaults[name] = defaults[name].expand(shape)
        return self

    def reset(self) -> None:
        """Empties the states, so that they can be added to later even where `torch.inference_mode` is on."""
        with torch.inference_mode(False):
            super().reset()

    def results(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns results in float32 on the metric's device."""
        return {name: value.float().to(self.num_invalid.device) for name, value in values.items()}

    def out_of_range(self, labels: Tensor) -> Tensor:
        """Marks labels outside `0..num_classes - 1`."""
        return (labels < 0) | (labels >= self.num_classes)

    def check_labels(self, labels: Tensor, target: Tensor, what: str) -> None:
        """Refuses (or counts) labels out of range at pixels that the target doesn't ignore."""
        remedy = f"expected 0..{self.num_classes - 1} wherever the target is not ignore_index, {self.ignore_index}"
        self.refuse(self.out_of_range(labels) & (target != self.ignore_index), labels, what, remedy)

    def check_values(self, logits: Tensor, target: Tensor) -> None:
        """Refuses (or counts) non-finite logits and target labels out of range."""
        self.refuse(~logits.isfinite(), logits, "logit", "logits must be finite (mask a class with -1e4, not -inf)")
        self.check_labels(target, target, "target label")

    def raise_if_invalid(self) -> None:
        """Raises `ValueError` if updates on an accelerator met values that cannot be counted."""
        num_invalid = int(self.num_invalid)
        if num_invalid:
            raise ValueError(
                f"update() met {num_invalid} values that are non-finite, or labels outside 0..{self.num_classes - 1} "
                f"other than ignore_index, {self.ignore_index}: run it on the CPU to see which"
            )

    def refuse(self, invalid: Tensor, values: Tensor, what: str, remedy: str) -> None:
        """Raises `ValueError` with the first invalid value on the CPU; counts invalid values on an accelerator."""
        if values.device.type != "cpu":
            self.num_invalid += invalid.sum()
        elif invalid.any():
            place = tuple(int(i) for i in invalid.nonzero()[0])
            raise ValueError(f"{what} {values[place].item()} at {place}: {remedy}")


def _keeping_integers(convert: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """What moves states but makes no floating point of counts, as `set_dtype` would."""
    changed = convert(values.new_zeros(()))
    return convert(values) if changed.dtype == values.dtype or values.is_floating_point() else values.to(changed.device)


def check_groups(
    groups: Mapping[str, Sequence[int]] | None, num_classes: int, reserved: Sequence[str]
) -> dict[str, list[int]]:
    """Returns the groups of classes as a plain dict, or raises `ValueError` or `TypeError`.

    Args:
        groups: Class ids per group, such as `{"head": [0, 1], "middle": [2], "tail": [3]}`; None stands for no
            groups.
        num_classes: Class ids lie in `0..num_classes - 1`.
        reserved: Names that no group may have, because the metric returns them for something else.
    """
    checked: dict[str, list[int]] = {}
    group_of: dict[int, str] = {}
    if groups is not None and not isinstance(groups, Mapping):
        raise TypeError(f"groups must map names to class ids, got {groups!r}")
    for name, members in (groups or {}).items():
        if name in reserved:
            raise ValueError(f"a group cannot be called {name!r}: that key of the result means something else")
        checked[name] = class_ids(members, f"group {name!r}", num_classes)
        for class_id in checked[name]:
            if class_id in group_of:
                raise ValueError(
                    f"class id {class_id} is listed twice: in group {group_of[class_id]!r} and in {name!r}"
                )
            group_of[class_id] = name
    return checked


def group_means(per_class: Tensor, groups: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Mean of the classes of each group that are not NaN; NaN where a group has none."""
    return {name: per_class[list(members)].nanmean() for name, members in groups.items()}


def check_logits(logits: Tensor, target: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Checks types and shapes and returns `logits` as (B, K, *spatial) and `target` as (B, *spatial) int64.

    `(N, K)` logits with `(N,)` labels become one image of N pixels. One logit a pixel, (B, 1, *spatial), is taken
    where there are two classes and returned as it is.

    Raises:
        TypeError: Logits that are not floating point, or labels that are not integers.
        ValueError: Shapes that don't fit together.
    """
    check_logits_and_target(logits, target)
    logits, target = plain_tensor(logits), plain_tensor(target.long())
    if logits.ndim == 2:
        logits, target = logits.T.unsqueeze(0), target.unsqueeze(0)
    if logits.shape[1] != num_classes and (logits.shape[1], num_classes) != (1, 2):
        hint = "; one logit a pixel goes with num_classes=2" if logits.shape[1] == 1 else ""
        raise ValueError(
            f"logits have {logits.shape[1]} channels (dimension 1), but num_classes is {num_classes}{hint}"
        )
    return logits, target


def bands_at(logits: Tensor, target: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields float32 logits at the target's size and the target, a band of rows of one image at a time.

    Args:
        logits: (B, K, *spatial), at most the target's size.
        target: (B, *spatial).

    Yields:
        Logits (1, K, rows, ...) float32 and target (1, rows, ...).
    """
    for image, rows, band in upsampled_bands(logits, target.shape[1:]):
        yield band, target[image : image + 1, rows]


def triton_counts_for(logits: Tensor, target: Tensor) -> ModuleType | None:
    """`aucseg.metrics.triton_counts` if they can count these, as `check_logits` returns them, where they are."""
    if logits.device.type != "cuda":
        return None
    counts = import_kernels("aucseg.metrics.triton_counts", "pixel metrics")
    return counts if counts and counts.offered(logits, target) and counts.works_on(logits.device) else None
