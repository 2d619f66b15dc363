"""Spoken digits (SHD): the PMSN paper's network with PMSN and LIF, and the TC-LIF paper's two, in one table.

    python examples/train_shd.py --data-dir data/SHD                      # 30 epochs each
    python examples/train_shd.py --data-dir data/SHD --runs PMSN "TC-LIF rec" --epochs 150

The folder is the one SpikingJelly reads SHD from (``--download`` fetches it). Each network is selected on a validation
part of the training set; the test set is read once, at the end. Interrupted runs go on where they were.
"""

import argparse
import statistics
from dataclasses import replace
from pathlib import Path

from pmsn_plugins.models import count_parameters
from pmsn_plugins.training import (
    PRESETS,
    SnapshotError,
    Trainer,
    build_network,
    hold_folder,
    open_source,
    snapshot,
    with_neuron,
)
from pmsn_plugins.training.distributed import start

RUNS = {
    "PMSN": PRESETS["shd"],
    "LIF": replace(
        with_neuron(PRESETS["shd"], "lif"), lr=1e-3, network_options={"hidden": (256, 256), "sum_inputs": 5}
    ),
    "TC-LIF ff": PRESETS["shd-tclif-ff"],
    "TC-LIF rec": PRESETS["shd-tclif-rec"],
}


def at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/shd"))
    parser.add_argument("--epochs", type=at_least_one, default=30)
    parser.add_argument(
        "--runs", nargs="+", choices=RUNS, default=list(RUNS), metavar="RUN", help=f"of: {', '.join(RUNS)}"
    )
    parser.add_argument("--download", action="store_true")
    parser.add_argument("--device")
    args = parser.parse_args()

    process = start(args.device)
    rows = []
    for name in args.runs:
        settings = replace(RUNS[name], epochs=args.epochs, batch_size=40)
        output_dir = args.output_dir / name.replace(" ", "-").lower()
        try:
            with hold_folder(output_dir):
                source = open_source(settings, args.data_dir, download=args.download)
                net = build_network(settings, source)
                trainer = Trainer(net, source, settings, output_dir, process)
                if (output_dir / "last.pt").exists():
                    trainer.restore(snapshot.load(output_dir / "last.pt"))
                print(f"{name}: {count_parameters(net):,} parameters")
                trainer.fit()
                validation = trainer.load_best()
                test = trainer.test()
        except (OSError, SnapshotError, ValueError) as error:  # files missing or damaged, or another run there
            parser.error(str(error))
        seconds = statistics.median(row["seconds"] for row in trainer.progress.curve)
        rows.append((name, count_parameters(net), validation, test.accuracy, seconds))

    print(f"\n{'':12}{'parameters':>11}{'validation':>12}{'test':>8}{'s/epoch':>9}")
    for name, parameters, validation, test, seconds in rows:
        print(f"{name:12}{parameters:>11,}{100 * validation:>11.1f}%{100 * test:>7.1f}%{seconds:>9.1f}")


if __name__ == "__main__":
    main()
