"""Runs ``llmfoundry train`` from a YAML, as Foundry's own script does.

Usage: ``composer train.py YAML [key=value ...]``
"""

import os
import sys


def main(args: list[str]) -> None:
    """Hands the YAML and the overrides to Foundry.

    Args:
        args: Path of a YAML file, then ``key=value`` overrides.
    """
    if not args:
        sys.exit('usage: composer train.py YAML [key=value ...]')
    # The ``sparse_upcycling`` callback fills parameters in place, each rank the
    # rows it holds. FSDP2's DTensors can be written that way, FSDP1's flattened
    # parameters cannot.
    os.environ.setdefault('FSDP_VERSION', '2')
    from llmfoundry.command_utils import train_from_yaml

    from foundry_upcycle.gauntlet.preflight import check_tasks
    from foundry_upcycle.gauntlet.tasks import remove_links

    # Once on each node. The other ranks wait where they first meet.
    if os.environ.get('LOCAL_RANK', '0') == '0':
        check_tasks(args[0], args[1:])
        remove_links()
    train_from_yaml(args[0], args[1:])


if __name__ == '__main__':
    main(sys.argv[1:])
