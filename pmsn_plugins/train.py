"""Train or evaluate one of the papers' experiments: ``python -m pmsn_plugins.train PRESET --data-dir FOLDER``.

    python -m pmsn_plugins.train --list
    python -m pmsn_plugins.train shd --data-dir data/SHD
    python -m pmsn_plugins.train shd --data-dir data/SHD --neuron lif --lr 1e-3 --epochs 30
    python -m pmsn_plugins.train smnist --dry-run
    python -m pmsn_plugins.train shd --data-dir data/SHD --resume
    python -m pmsn_plugins.train --evaluate runs/shd-pmsn/best.pt --data-dir data/SHD --chunk 25
    python -m pmsn_plugins.train imagenet-sew18 --data-dir data/imagenet --neuron-option context=global
    torchrun --nproc-per-node 4 -m pmsn_plugins.train imagenet-sew18 --data-dir data/imagenet --sync-batchnorm

The settings are the papers' and their scripts' unless overridden (the docstrings of ``pmsn_plugins.training.presets``
say which is from where). A dry run trains one epoch of four small batches on synthetic data of the right shape. A run
that was killed continues, with the same options and --resume, as if nothing had happened. A folder takes one run at a
time: a second one ends and says which process is there.

The run's folder receives ``last.pt``, ``best.pt`` (best on the validation part), ``curve.csv`` and, at the end,
``result.json`` with the accuracy of the best network on the test set, which is read then and only then.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from .datasets import DataSource
from .models import count_parameters
from .training import (
    PRESETS,
    DivergedError,
    Evaluation,
    InterruptedRunError,
    Settings,
    SnapshotError,
    Trainer,
    build_network,
    contents,
    hold_folder,
    load_network,
    open_source,
    snapshot,
    with_neuron,
)
from .training.distributed import Process, main_first, start, stop
from .training.evaluation import check_chunk
from .training.loop import LAST

RESULT = "result.json"


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.list:
        _print_presets()
        return 0
    if args.preset is None and args.evaluate is None:
        parser.error("name a preset (--list shows them)")
    try:
        process = start(args.device)
        try:
            return _evaluate(args, process) if args.evaluate else _train(args, process)
        finally:
            stop()
    except InterruptedRunError as message:
        print(message, file=sys.stderr)
        return 0
    except KeyboardInterrupt:
        print("interrupted; --resume continues from the last checkpoint", file=sys.stderr)
        return 130
    except ImportError as error:
        print(f'{error} (pip install "pmsn_plugins[all]" brings all that the experiments use)', file=sys.stderr)
        return 1
    except (DivergedError, SnapshotError, ValueError, TypeError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1


def _train(args: argparse.Namespace, process: Process) -> int:
    settings = settings_from(args)
    name = f"{args.preset}-{settings.neuron}"
    output_dir = args.output_dir or Path("runs") / (f"{name}-dry-run" if args.dry_run else name)
    checkpoint = output_dir / LAST
    starting_over = args.dry_run and args.output_dir is None and not args.resume
    with hold_folder(output_dir):
        if checkpoint.exists() and not (args.resume or starting_over):
            raise ValueError(f"{checkpoint} exists: continue that run with --resume, or choose another --output-dir")
        payload = snapshot.load(checkpoint) if args.resume and checkpoint.exists() else None
        if args.resume and payload is None and process.is_main:
            print(f"nothing to resume in {output_dir}: starting from the beginning", file=sys.stderr)
        _run(args, process, settings, output_dir, payload)
    return 0


def _run(
    args: argparse.Namespace, process: Process, settings: Settings, output_dir: Path, payload: dict[str, Any] | None
) -> None:
    """Train in a folder that is held, from the beginning or from a checkpoint, and test the best network."""
    if payload is not None:
        contents.check_parts(payload, contents.RESUMABLE, output_dir / LAST)
    source = _open_source(settings, args, process, payload)
    net = build_network(settings, source, initial_weights=payload is None and not args.dry_run)
    check_chunk(net, args.chunk)
    if process.is_main and not args.quiet:
        neuron = f"{settings.neuron} ({settings.framework})"
        print(f"{args.preset}: {neuron}, {count_parameters(net):,} parameters, {process.device}")
    trainer = Trainer(
        net,
        source,
        settings,
        output_dir,
        process,
        save_every=args.save_every,
        workers=args.workers,
        sync_batchnorm=args.sync_batchnorm,
        tensorboard=args.tensorboard,
        quiet=args.quiet,
    )
    if payload is not None:
        trainer.restore(payload)
    trainer.fit()
    val_accuracy = trainer.load_best()
    tested = trainer.test(args.chunk)
    if process.is_main:
        result = {
            "preset": args.preset,
            "parameters": count_parameters(net),
            "val_accuracy": val_accuracy,
            **_report(tested),
        }
        text = json.dumps(result, indent=2) + "\n"
        snapshot.write_whole(output_dir / RESULT, lambda file: file.write(text.encode()))


def _evaluate(args: argparse.Namespace, process: Process) -> int:
    overrides = [item.name for item in dataclasses.fields(Settings) if getattr(args, item.name) is not None]
    overrides = ([args.preset] if args.preset is not None else []) + overrides
    if overrides:
        raise ValueError(f"--evaluate takes its settings from the checkpoint; leave out {', '.join(overrides)}")
    payload = contents.check_parts(snapshot.load(args.evaluate), contents.NETWORK, args.evaluate)
    settings = contents.settings_in(payload, args.evaluate)
    source = _open_source(settings, args, process, payload)
    net = build_network(settings, source, initial_weights=False)
    load_network(net, payload["net"])
    trainer = Trainer(net, source, settings, args.evaluate.parent, process, workers=args.workers, quiet=True)
    if process.is_main and not args.quiet:
        neuron = f"{settings.neuron} ({settings.framework})"
        print(f"{args.evaluate}: {neuron} on {source.name}, {count_parameters(net):,} parameters")
    tested = trainer.test(args.chunk)
    if process.is_main:
        _report(tested)
        _report_energy(trainer)
    return 0


def _open_source(
    settings: Settings, args: argparse.Namespace, process: Process, payload: dict[str, Any] | None
) -> DataSource:
    with main_first(process) if args.download else nullcontext():
        return open_source(
            settings,
            args.data_dir,
            download=args.download,
            dry_run=args.dry_run,
            permutation=payload["permutation"] if payload else None,
        )


def _report(tested: Evaluation) -> dict[str, Any]:
    """Print what a test gave, and return it."""
    print(f"test accuracy {tested.accuracy:.4f}  loss {tested.loss:.4f}  ({tested.samples} samples)")
    for name, rate in tested.firing_rates.items():
        print(f"  spikes per neuron and step in {name}: {rate:.4f}")
    return {"test_accuracy": tested.accuracy, "test_loss": tested.loss, "firing_rates": tested.firing_rates}


def _report_energy(trainer: Trainer, samples: int = 256) -> None:
    """Print the energy of one inference, as measured on the first samples of the test set."""
    try:
        from .analysis import measure_energy

        energy = measure_energy(trainer.net, trainer.test_batches(samples))
    except (ImportError, ValueError) as reason:
        print(f"energy not estimated: {reason}")
        return
    print(
        f"energy per inference {energy.energy_nj:.1f} nJ ({energy.ac:.4g} AC, {energy.mac:.4g} MAC, 45 nm, "
        f"from {energy.samples} samples)"
    )


def settings_from(args: argparse.Namespace) -> Settings:
    """The preset with the overrides of the command line; another data set, network or neuron has its own options."""
    settings = PRESETS[args.preset]
    if args.neuron is not None:
        settings = with_neuron(settings, args.neuron)
    if args.network not in (None, settings.network):
        settings = dataclasses.replace(settings, network_options={})
    if args.dataset not in (None, settings.dataset):
        settings = dataclasses.replace(settings, dataset_options={})
    changes: dict[str, Any] = {"epochs": 1, "batch_size": 8} if args.dry_run else {}
    for item in dataclasses.fields(Settings):
        value = getattr(args, item.name)
        if value is not None and item.name != "neuron":
            current = getattr(settings, item.name)
            changes[item.name] = {**current, **dict(value)} if isinstance(current, dict) else value
    return dataclasses.replace(settings, **changes)


def _print_presets() -> None:
    print(f"{'preset':24} {'data':18} {'network':14} {'neuron':8} {'parameters':>10}")
    for name, settings in PRESETS.items():
        net = build_network(settings, open_source(settings, dry_run=True), initial_weights=False)
        print(f"{name:24} {settings.dataset:18} {settings.network:14} {settings.neuron:8} {count_parameters(net):>10,}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pmsn_plugins.train",
        usage="%(prog)s PRESET [options]    (--help explains them)",
        description=__doc__,
        epilog=f"settings:\n\n{inspect.getdoc(Settings)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("preset", nargs="?", choices=list(PRESETS), metavar="PRESET", help="one of --list")
    run = parser.add_argument_group("the run")
    run.add_argument("--list", action="store_true", help="show the presets")
    run.add_argument("--data-dir", type=Path, help="folder of the data set")
    run.add_argument("--output-dir", type=Path, help="folder of the run (default: runs/PRESET-NEURON[-dry-run])")
    run.add_argument("--download", action="store_true", help="let the data set's library download what is missing")
    run.add_argument("--dry-run", action="store_true", help="synthetic data, one epoch of four batches of 8")
    run.add_argument("--resume", action="store_true", help="continue the run in the output folder")
    run.add_argument("--save-every", type=int, default=0, metavar="STEPS", help="also save inside epochs")
    run.add_argument("--evaluate", type=Path, metavar="CHECKPOINT", help="test a checkpoint instead of training")
    run.add_argument(
        "--chunk", type=int, metavar="STEPS", help="feed the test set in chunks of time steps, keeping states"
    )
    run.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    run.add_argument("--workers", type=int, default=0, help="processes that load data")
    run.add_argument("--sync-batchnorm", action="store_true", help="batch normalisation over all processes")
    run.add_argument("--tensorboard", action="store_true", help="write TensorBoard files")
    run.add_argument("--quiet", action="store_true", help="no progress bar")
    overrides = parser.add_argument_group("overrides of the preset's settings (explained below)")
    for item in dataclasses.fields(Settings):
        name = "--" + item.name.replace("_", "-")
        default = item.default
        if item.default_factory is not dataclasses.MISSING:
            overrides.add_argument(
                name.removesuffix("s"), dest=item.name, action="append", type=_option, metavar="NAME=VALUE"
            )
        elif isinstance(default, bool):
            overrides.add_argument(name, action=argparse.BooleanOptionalAction, default=None)
        elif isinstance(default, tuple):
            overrides.add_argument(name, type=_integers, metavar="N,N,...")
        else:
            overrides.add_argument(name, type=str if default is dataclasses.MISSING else type(default))
    return parser


def _option(text: str) -> tuple[str, Any]:
    """``name=value``; values are Python literals, anything else a string."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, {"true": True, "false": False}.get(value.lower(), value)


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of integers N,N,...") from None


if __name__ == "__main__":
    sys.exit(main())
