"""What `aucseg fit` says before anything heavy is imported: its help, and what its command line lacks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aucseg.commands.option_parser import unknown_option
from aucseg.configs import find_config
from aucseg.hints import closest, nearest_names

_EXAMPLES = """  aucseg fit FOLDER --time 30m                                 plans for its images and masks, and trains
  aucseg fit cityscapes --root DIR --data.batch_size 4         the same for a card; what is set here stands
  aucseg fit --config run.yaml --out runs/a                    a configuration, and where the run is kept
  aucseg fit --config run.yaml --data.root DIR --resume auto   on data elsewhere; goes on where it was stopped
  aucseg fit --data.card my.yaml --data.root DIR --trainer.max_steps 2000     without a configuration"""

# They say how to plan; the parser does not know them.
PLAN_OPTIONS = ("--root", "--time", "--weights")
# (title, [(option with its value, help)]): what people use. '(default: X)' is compared with the parser by the tests.
GROUPS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    (
        "plan",
        (
            ("--time 30m", "time for all of it (90s, 30m, 2h); without it the number of images decides"),
            ("--root DIR", "folder of the data of a CARD"),
            ("--weights random", "no pretrained weights"),
        ),
    ),
    (
        "data",
        (
            ("--config FILE", "YAML configuration: a file, or the name of one that comes with aucseg"),
            ("--data.card CARD", "card of the data set, as 'aucseg stats FOLDER --write-card CARD' writes it"),
            ("--data.root DIR", "folder of the data"),
            ("--data.crop_size [H,W]", "size of the training crops (default: [512, 512])"),
            ("--data.batch_size N", "crops in a batch (default: 8)"),
            ("--data.eval_batch_size N", "validation images in a batch (default: 1)"),
            ("--data.num_workers N", "loader processes (default: 2)"),
            ("--data.held_out_share S", "validate on this share of the training images, without a validation split"),
            ("--data.sampler NAME", "random, sequential, rare_class or repeat_factor (default: random)"),
            ("--data.cache memory", "keep the training images in memory"),
            ("--data.on_error skip", "leave out files that cannot be read (default: raise)"),
        ),
    ),
    (
        "model and loss",
        (
            ("--model.model NAME", "smp/fpn, segnext/tiny, hf/NAME, torchvision/NAME, ... (default: smp/fpn)"),
            ("--model.model_options YAML", "such as '{encoder: resnet34, encoder_weights: imagenet}'"),
            ("--model.loss NAME", "aucseg, ce, la, focal, dice, ... (default: aucseg)"),
            ("--model.loss_options YAML", "such as '{auc_weight: 2.0}'"),
            ("--model.bank YAML", "tail memory bank, as 'aucseg stats' suggests; null for none (default: null)"),
            ("--model.evaluation YAML", "sliding window of the validation, such as '{window: [512, 512]}'"),
            ("--model.pixel_metrics true", "AUROC and average precision, too, and curves for the report"),
        ),
    ),
    (
        "optimization",
        (
            ("--trainer.max_steps N", "optimizer steps; or --trainer.max_epochs N, passes over the training images"),
            ("--model.learning_rate R", "at the end of the warm-up; without it what goes with model and batch"),
            ("--model.head_rate_factor F", "of the layers that are not pretrained, times the rate"),
            ("--model.weight_decay W", "of AdamW (default: 0.01)"),
            ("--model.warmup_steps N", "steps of linear warm-up; without it a tenth, at most 500"),
            ("--model.optimizer YAML", "such as '{class_path: SGD, init_args: {momentum: 0.9}}'; AdamW without it"),
            ("--model.schedule YAML", "such as '{class_path: StepLR, init_args: {step_size: 1000}}', without warm-up"),
            ("--model.micro_batches N", "go through the model in parts, to save memory (default: 1)"),
            ("--trainer.gradient_clip_val G", "largest gradient norm"),
        ),
    ),
    (
        "machine",
        (
            ("--trainer.accelerator NAME", "cpu, gpu, mps, ... (default: auto)"),
            ("--trainer.devices N", "how many, or which (default: auto)"),
            ("--trainer.precision P", "32-true, bf16-mixed, 16-mixed, ..."),
        ),
    ),
    (
        "run",
        (
            ("--out DIR", "folder of the run; for FOLDER it is runs/FOLDER (default: runs/default)"),
            ("--overwrite true", "replace the run that is in it (default: false)"),
            ("--resume auto", "go on with the run in --out, or start it; or a checkpoint (default: never)"),
            ("--seed_everything N", "seed (default: 0)"),
            ("--trainer.val_check_interval N", "batches between validations; 1000, or an epoch with max_epochs"),
            ("--keep_best METRIC", "such as val/tail: keep its best checkpoint beside the last, for RUN --best"),
            ("--checkpoint_every N", "steps between checkpoints (default: 500)"),
            ("--trainer.logger NAME", "WandbLogger, MLFlowLogger, ... beside TensorBoard; false for none"),
            ("--trainer.enable_progress_bar false", "nothing on the screen but what must be said"),
        ),
    ),
)

NAMES = tuple(option.split()[0] for _, options in GROUPS for option, _ in options)
_CARDS = Path(__file__).parents[1] / "datasets" / "cards"
_DATA = ("--config", "-c", "--data", "--data.card")
# All options without a dot; what belongs to a class is '--model.', '--data.', '--trainer.', '--guard.', and so on.
_PLAIN = (*(name for name in NAMES if "." not in name and name not in PLAN_OPTIONS), "-c", "--print_config",
          "--ckpt_path", "--weights_only", "--trainer", "--model", "--data", "--guard")  # fmt: skip


def help_text() -> str:
    """The help: examples, and what people use in groups."""
    lines = ["usage: aucseg fit FOLDER|CARD [--time 30m] [--out DIR] [OPTION VALUE ...]"]
    lines += ["       aucseg fit --config FILE [--out DIR] [OPTION VALUE ...]", "", "Train a model.", "", "examples:"]
    lines += _EXAMPLES.splitlines()
    for title, options in GROUPS:
        lines += ["", f"{title}:", *(f"  {option:<36}  {text}" for option, text in options)]
    lines += [
        "",
        "Options stand in a configuration without dashes, a level for each dot; those of the command line win.",
        "'aucseg fit --help.all' lists all options, '--print_config' prints the configuration that the options make.",
    ]
    return "\n".join(lines)


def told_at_once(arguments: Sequence[str]) -> str | None:
    """The text that `--help` asks for; None where the command is to run.

    Args:
        arguments: What follows `aucseg fit`, or `aucseg validate` with a configuration.

    Raises:
        ValueError: An option or configuration that there is not, or no data; the message says what is near, or missing.

    Example:
        >>> told_at_once(["--data.card", "camvid", "--batch_size", "4"])
        Traceback (most recent call last):
        ...
        ValueError: there is no option --batch_size; did you mean --data.batch_size?
    """
    names = [argument.partition("=")[0] for argument in arguments]
    if "--help" in names or "-h" in names:
        return help_text()
    # Options with a dot may be those of a class of the user's: the parser, which is slow to build, knows them.
    # Those of a plan are read by a parser that takes no abbreviations.
    exact = {name for name in names if "." in name or name in PLAN_OPTIONS}
    unknown = unknown_option([argument for argument in arguments if argument.partition("=")[0] not in exact], _PLAIN)
    if unknown is not None:
        raise ValueError(f"there is no option {unknown}; {_nearest(unknown)}")
    for option, value in zip(arguments, (*arguments[1:], ""), strict=False):
        name, equals, text = option.partition("=")
        if name in ("--config", "-c") and (text if equals else value):
            find_config(text if equals else value)
    words, _ = split_words(arguments)
    has_data = any(name in _DATA for name in names)
    if len(words) > 1 or (words and has_data):
        raise ValueError(
            f"{words[-1]!r} is not an option: options begin with '--', and a configuration is given with --config"
        )
    if words:
        check_source(words[0])
    only_shows = any(name in ("--help.all", "--print_config") or name.endswith(".help") for name in names)
    if not words and not only_shows and not has_data:
        raise ValueError("there are no data: give a folder of images and masks, a card, or --config FILE")
    return None


def split_words(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divides arguments into words, of which a folder or card is one, and options with their values.

    Example:
        >>> split_words(["--time", "20m", "tiles", "--model.loss=ce", "--data.fill", "-1"])
        (['tiles'], ['--time', '20m', '--model.loss=ce', '--data.fill', '-1'])
    """
    words: list[str] = []
    options: list[str] = []
    is_value = False
    for argument in arguments:
        is_option = argument.startswith("-") and not argument[1:2].isdigit()
        (options if is_option or is_value else words).append(argument)
        is_value = is_option and "=" not in argument
    return words, options


def check_source(source: str) -> None:
    """Raises `ValueError` where there is nothing to plan for: no such folder or card.

    Example:
        >>> check_source("camvd")
        Traceback (most recent call last):
        ...
        ValueError: there is no folder or card 'camvd'; did you mean camvid?
    """
    cards = sorted(path.stem for path in _CARDS.glob("*.yaml"))
    if source not in cards and not Path(source).exists():
        is_yaml = Path(source).suffix in (".yaml", ".yml")
        raise ValueError(
            f"there is no folder or card {source!r}; "
            + ("a configuration is given with --config" if is_yaml else closest(source, cards))
        )


def _nearest(option: str) -> str:
    """The nearest of the options that people use, also where the name of their group is left out."""
    whole = {name.rpartition(".")[2].lstrip("-"): name for name in NAMES}
    name = option.lstrip("-")
    near = [name] if name in whole else nearest_names(name, whole)
    if near:
        return f"did you mean {', '.join(whole[name] for name in near)}?"
    return "'aucseg fit --help' lists those that people use, '--help.all' all"
