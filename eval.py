"""Runs ``llmfoundry eval`` from a YAML, as Foundry's own script does.

Usage: ``composer eval.py YAML [key=value ...]``
"""

import os
import sys


def main(args: list[str]) -> None:
    """Hands the YAML and the overrides to Foundry.

    Args:
        args: Path of a YAML file, then ``key=value`` overrides.
    """
    if not args:
        sys.exit('usage: composer eval.py YAML [key=value ...]')
    # As train.py sets it: a YAML's ``fsdp_config`` then means the same FSDP here
    # as it did in training, also for the sharded checkpoints written there.
    os.environ.setdefault('FSDP_VERSION', '2')
    from llmfoundry.command_utils import eval_from_yaml

    from foundry_upcycle.gauntlet.preflight import check_eval
    from foundry_upcycle.gauntlet.tasks import remove_links

    # Once on each node. The other ranks wait where they first meet.
    if os.environ.get('LOCAL_RANK', '0') == '0':
        check_eval(args[0], args[1:])
        remove_links()
    eval_from_yaml(args[0], args[1:])


if __name__ == '__main__':
    main(sys.argv[1:])
