"""Accuracy on public protocols: long horizons of one transformer's sensors (ETT), many short series (M4).

    python -m benchmarks.accuracy ett --csv FILE --input-size 336
    python -m benchmarks.accuracy m4 --train FILE --test FILE --season 1

Both run on any file of the same shape. The networks are the product's own, fitted by its training loop and asked
through `Forecaster.predict`; the default model is one recipe for all files, chosen on validation data only.
"""

import sys
from argparse import ArgumentParser
from collections.abc import Sequence

from benchmarks import ett, m4
from benchmarks.report import add_common_arguments


def main(argv: Sequence[str]) -> None:
    """Run one of the protocols."""
    parser = ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    protocols = parser.add_subparsers(dest="protocol", required=True)
    for name, protocol in (("ett", ett), ("m4", m4)):
        sub = protocols.add_parser(name, help=(protocol.__doc__ or "").splitlines()[0])
        protocol.add_arguments(sub)
        add_common_arguments(sub)
    arguments = parser.parse_args(argv)
    {"ett": ett.run, "m4": m4.run}[arguments.protocol](arguments, argv)


if __name__ == "__main__":
    main(sys.argv[1:])
