"""What two ranks do for ``test_distributed.py``; run by Composer's launcher.

Usage: composer -n 2 worker.py FOLDER. FOLDER holds one dense model, as dense.pt
and as the Hugging Face folder llama, and moe, a sharded conversion of it. One
process start does everything: imports take longest.
"""

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import tiny
import torch
from composer.loggers import InMemoryLogger
from composer.utils import dist, file_helpers, get_device
from composer.utils.object_store import LibcloudObjectStore
from llmfoundry.callbacks import HuggingFaceCheckpointer
from llmfoundry.utils.builders import build_algorithm, build_callback
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from foundry_upcycle.checkpoints.writers.parameters import local_rows
from foundry_upcycle.errors import CheckpointError, ConfigError

SHARDED: dict[str, Any] = {'fsdp': {'state_dict_type': 'sharded'}}
CHECKPOINTED: dict[str, Any] = {
    'fsdp': {
        'state_dict_type': 'sharded',
        'activation_checkpointing': True,
    },
}
# Shards of 3 * 95 rows split the second expert between two ranks.
ODD_FFN = {'moe_num_experts': 3, 'ffn_hidden_size': 95}
SOME_LAYERS = {'moe_layers': [1]}
# Of this seed, 2 and then 1, 1 and 3.
VARYING = {'moe_top_k': {'sample': {1: 0.5, 2: 0.25, 3: 0.25}}}
SEED = 3


def fsdp_lr() -> float:
    """The learning rate with which FSDP2's steps of plain SGD are those of 0.1.

    torch 2.7's gloo sums where FSDP2 asks reduce_scatter for the average, so
    gradients come out twice as large on two ranks. Later ones average, as NCCL
    does.
    """
    average_of_ones = torch.zeros(1)
    torch.distributed.reduce_scatter_tensor(
        average_of_ones,
        torch.ones(2),
        op=torch.distributed.ReduceOp.AVG,
    )
    return 0.1 / average_of_ones.item()


def save(value: Any, path: Path) -> None:
    if dist.get_global_rank() == 0:
        torch.save(value, path)


def train(model: Any, *callbacks: Any, **kwargs: Any) -> tuple[Any, dict]:
    log = InMemoryLogger()
    trainer = tiny.make_trainer(
        model,
        batch_size=2,  # A rank; 4 in all.
        callbacks=list(callbacks),
        loggers=[log],
        **kwargs,
    )
    return trainer, log


def upcycled(
    source: Path | str,
    ffn: dict | None = None,
    *callbacks: Any,
    **kwargs: Any,
) -> Any:
    callback = build_callback('sparse_upcycling', {'source_path': str(source)})
    return train(tiny.build_moe(ffn), callback, *callbacks, **kwargs)


def register_disk_store(folder: Path) -> None:
    """Makes ``disk://NAME/...`` an object store on FOLDER/NAME."""
    os.environ['DISK_KEY'] = str(folder)
    file_helpers.BACKEND_TO_OBJECT_STORE_FACTORY['disk'] = (
        lambda name, path: LibcloudObjectStore(
            provider='local',
            container=name,
            key_environ='DISK_KEY',
        )
    )


def save_dense_sharded(folder: Path) -> Path:
    """Trains the dense model on two ranks and saves it sharded."""
    trainer, _ = train(
        tiny.build_dense(),
        duration='1ba',
        parallelism_config=SHARDED,
        save_folder=str(folder / 'dense'),
    )
    trainer.fit()
    trainer.close()
    save(tiny.full_state(trainer.state.model), folder / 'dense_sharded.state')
    return folder / 'dense' / 'ep0-ba1'


def save_odd_sharded(folder: Path) -> Path:
    """A dense model whose hidden size two ranks don't divide evenly."""
    ffn = {
        **tiny.DENSE['ffn_config'],
        'ffn_hidden_size': ODD_FFN['ffn_hidden_size'],
    }
    trainer, _ = train(
        tiny.build_dense(ffn_config=ffn),
        duration='1ba',
        lr=1e-9,
        parallelism_config=SHARDED,
        save_folder=str(folder / 'odd'),
    )
    trainer.fit()
    trainer.close()
    return folder / 'odd' / 'ep0-ba1'


def check_errors_reach_all_ranks(folder: Path) -> None:
    lonely = folder / 'lonely.pt'
    if dist.get_global_rank() == 0:
        shutil.copy(folder / 'dense.pt', lonely)
    dist.barrier()
    # Only rank 1 looks for a file that is not there.
    path = lonely if dist.get_global_rank() == 0 else folder / 'absent.pt'
    try:
        upcycled(path)
    except CheckpointError as error:
        (folder / f'error_{dist.get_global_rank()}').write_text(str(error))


def check_hybrid_sharding(folder: Path) -> None:
    whole = torch.arange(12.0).view(6, 2)
    found = []
    for shape in ((1, 2), (2, 1)):  # Replicas x shards, as HSDP has them.
        mesh = init_device_mesh('cpu', shape)
        tensor = distribute_tensor(whole, mesh, [Replicate(), Shard(0)])
        local, start = local_rows('weight', tensor)
        expected = whole[start:start + local.shape[0]]
        found.append(torch.equal(local, expected) and start)
    (folder / f'hybrid_{dist.get_global_rank()}').write_text(f'{found}')


def check_other_shardings_are_refused(folder: Path) -> None:
    mesh = init_device_mesh('cpu', (2, ))
    columns = distribute_tensor(torch.zeros(4, 4), mesh, [Shard(1)])
    try:
        local_rows('weight', columns)
    except ConfigError as error:
        (folder / f'tensor_{dist.get_global_rank()}').write_text(str(error))


def check_failed_download_stops_both(folder: Path, bucket: str) -> None:
    try:
        upcycled(f'{bucket}/absent.pt')
    except CheckpointError as error:
        (folder / f'download_{dist.get_global_rank()}').write_text(str(error))


def train_with_varying_top_k(folder: Path) -> None:
    """Without and with an interruption; sharded, with checkpointed blocks."""
    settings: dict[str, Any] = {
        'lr': fsdp_lr(),
        'seed': SEED,
        'parallelism_config': CHECKPOINTED,
    }
    resumable = {
        'run_name': 'varying',
        'save_folder': str(folder / 'varying'),
        'save_latest_filename': 'latest-sharded-rank{rank}',
        'save_interval': '1ba',
        'autoresume': True,
    }
    for name, duration, more in (
        ('varying', '4ba', {}),
        ('varying_first', '2ba', resumable),
        ('varying_resumed', '4ba', resumable),
    ):
        trainer, log = train(
            tiny.build_moe(VARYING),
            duration=duration,
            **settings,
            **more,
        )
        trainer.fit()
        trainer.close()
        save(tiny.logged(log, 'loss/train/'), folder / f'{name}.losses')
        dist.barrier()


def distill(folder: Path) -> None:
    """From a mixture, under DDP, FSDP2 and FSDP2 that is interrupted."""
    resumable = {
        'run_name': 'distilled',
        'parallelism_config': SHARDED,
        'lr': fsdp_lr(),
        'save_folder': str(folder / 'distilled'),
        'save_latest_filename': 'latest-sharded-rank{rank}',
        'save_interval': '1ba',
        'autoresume': True,
    }
    for name, duration, more in (
        ('distilled_ddp', '4ba', {}),
        ('distilled_first', '2ba', resumable),
        ('distilled_resumed', '4ba', resumable),
    ):
        teacher = {'teacher': str(folder / 'teacher.pt')}
        trainer, log = train(
            tiny.build_moe(),
            duration=duration,
            algorithms=[build_algorithm('upcycle_distill', teacher)],
            **more,
        )
        trainer.fit()
        trainer.close()
        save(tiny.logged(log, 'loss/train/'), folder / f'{name}.losses')
        save(tiny.full_state(trainer.state.model), folder / f'{name}.trained')
        dist.barrier()


def main(folder: Path) -> None:
    dist.initialize_dist(get_device('cpu'))
    sharded = save_dense_sharded(folder)
    odd = save_odd_sharded(folder)

    register_disk_store(folder.parent)
    bucket = f'disk://{folder.name}'

    # Conversions: whole weights right after the start.
    for name, source, ffn, config in (
        ('ddp_from_pt', folder / 'dense.pt', None, None),
        ('fsdp_from_pt', folder / 'dense.pt', None, SHARDED),
        ('fsdp_from_sharded', sharded, None, SHARDED),
        ('fsdp_odd', odd, ODD_FFN, SHARDED),
        ('fsdp_some_layers', sharded, SOME_LAYERS, SHARDED),
        ('ddp_from_uri', f'{bucket}/dense.pt', None, None),
        ('fsdp_from_uri', f'{bucket}/dense/ep0-ba1', None, SHARDED),
        ('fsdp_from_hf', folder / 'llama', None, SHARDED),
        ('fsdp_from_hf_uri', f'{bucket}/llama', None, SHARDED),
    ):
        trainer, _ = upcycled(source, ffn, parallelism_config=config)
        save(tiny.full_state(trainer.state.model), folder / f'{name}.state')
        trainer.close()

    # Converted beforehand.
    trainer, _ = train(
        tiny.build_moe(),
        parallelism_config=SHARDED,
        load_path=str(folder / 'moe'),
        load_weights_only=True,
    )
    save(tiny.full_state(trainer.state.model), folder / 'fsdp_from_dcp.state')
    trainer.close()

    # Training: losses under DDP, FSDP2 and FSDP2 with checkpointing.
    for name, config, lr in (
        ('ddp', None, 0.1),
        ('fsdp', SHARDED, fsdp_lr()),
        ('fsdp_checkpointed', CHECKPOINTED, fsdp_lr()),
    ):
        checkpointer = HuggingFaceCheckpointer(
            save_folder=str(folder / f'{name}_hf'),
            save_interval='1dur',
        )
        trainer, log = upcycled(
            folder / 'dense.pt',
            None,
            build_callback('router_monitor', {'interval': '1ba'}),
            checkpointer,
            parallelism_config=config,
            lr=lr,
        )
        trainer.fit()
        trainer.close()
        save(tiny.logged(log, 'router/'), folder / f'{name}.routers')
        save(tiny.logged(log, 'loss/train/'), folder / f'{name}.losses')
        save(tiny.full_state(trainer.state.model), folder / f'{name}.trained')

    # Interrupted and resumed from sharded checkpoints.
    def resumable() -> Any:
        return upcycled(
            folder / 'moving.pt',
            lr=fsdp_lr(),
            parallelism_config=SHARDED,
            run_name='run',
            save_folder=str(folder / 'run'),
            save_latest_filename='latest-sharded-rank{rank}',
            save_interval='1ba',
            autoresume=True,
        )

    if dist.get_global_rank() == 0:
        shutil.copy(folder / 'dense.pt', folder / 'moving.pt')
    dist.barrier()
    trainer, _ = resumable()
    trainer.fit(duration='2ba')
    trainer.close()
    dist.barrier()
    if dist.get_global_rank() == 0:
        os.remove(folder / 'moving.pt')
    dist.barrier()
    trainer, log = resumable()
    trainer.fit()
    trainer.close()
    save(tiny.logged(log, 'loss/train/'), folder / 'resumed.losses')
    save(tiny.full_state(trainer.state.model), folder / 'resumed.trained')

    train_with_varying_top_k(folder)
    distill(folder)

    check_errors_reach_all_ranks(folder)
    check_hybrid_sharding(folder)
    check_other_shardings_are_refused(folder)
    check_failed_download_stops_both(folder, bucket)


if __name__ == '__main__':
    main(Path(sys.argv[1]))
