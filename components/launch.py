"""torchrun with the exit codes of the `splatclip` command.

    python -m components.launch --nproc-per-node=K train-adapter --params ...

torchrun itself ends with 1 whatever its processes ended with. Here a failure's own code comes through (42, 75 ...), and
143 after SIGTERM once the processes have saved a checkpoint. Options before the command are torchrun's.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from components import STAGES


def split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Torchrun's options, and the command with its own."""
    commands = {stage.command for stage in STAGES.values()}
    place = next((i for i, word in enumerate(argv) if word in commands), len(argv))
    return list(argv[:place]), list(argv[place:])


def main(argv: Sequence[str]) -> int:
    """Run the command in the processes asked for; returns the exit code."""
    options, command = split(argv)
    if not command:
        print(f"usage: {__doc__}", file=sys.stderr)
        return 2
    return torchrun(options, "components", command)


def torchrun(options: Sequence[str], module: str, arguments: Sequence[str]) -> int:
    """Run a module in the processes that the options ask for; returns the exit code."""
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, run

    try:
        run(get_args_parser().parse_args([*options, "-m", module, *arguments]))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        first = min(error.failures.values(), key=lambda failure: failure.timestamp)
        return first.exitcode if first.exitcode > 0 else 128 - first.exitcode
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
