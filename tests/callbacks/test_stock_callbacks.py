"""Foundry's own callbacks beside a mixture of experts, in one training."""

import tiny
from composer import Evaluator
from composer.loggers import InMemoryLogger
from llmfoundry import registry
from llmfoundry.utils.builders import build_callback
from torch.utils.data import DataLoader

# What they need, and this training lacks.
_LEFT_OUT = {
    'eval_output_logging': 'in-context tasks',
    'generate_callback': 'a tokenizer',
    'load_checkpoint': 'a checkpoint of its own',
    'loss_perp_v_len': 'MLflow',
    'mbmoe_tok_per_expert': 'MegaBlocks',
    'mono_checkpoint_saver': 'FSDP1',
    'sparse_upcycling': 'has tests of its own',
}


def test_all_that_can_run_here_run(tmp_path):
    layer = 'model.transformer.blocks.0.ffn.router.layer.weight'
    settings = {
        'early_stopper': {
            'monitor': 'LanguageCrossEntropy',
            'dataloader_label': 'eval',
        },
        'env_logging': {
            'workspace_dir': str(tmp_path),
        },
        'fdiff_metrics': {
            'diff_train_metrics': True,
        },
        'global_lr_scaling': {
            'lr_scale': 0.5,
        },
        'hf_checkpointer': {
            'save_folder': str(tmp_path / 'hf'),
            'save_interval': '2ba',
        },
        'icl_results': {
            'folder': str(tmp_path / 'icl'),
        },
        'kill_loss_spike': {
            'log_only': False,
        },
        'layer_freezing': {
            'layer_names': [layer],
        },
        'matmul_precision': {
            'precision': 'highest',
        },
        'scheduled_gc': {
            'batch_interval': 1,
        },
    }
    names = set(registry.callbacks.get_all()) - _LEFT_OUT.keys()
    assert len(names) > 20
    log = InMemoryLogger()
    model = tiny.build_moe()
    frozen = model.get_parameter(layer).clone()
    trainer = tiny.make_trainer(
        model,
        samples=tiny.make_samples(4),
        batch_size=2,
        duration='2ba',
        callbacks=[
            build_callback(name, settings.get(name, {}))
            for name in sorted(names)
        ],
        eval_dataloader=Evaluator(
            label='eval',
            dataloader=DataLoader(tiny.make_samples(2), batch_size=2),
            metric_names=['LanguageCrossEntropy'],
        ),
        eval_interval='1ba',
        loggers=[log],
        run_name='run',
    )
    trainer.fit()
    trainer.close()
    assert (model.get_parameter(layer) == frozen).all()
    for name in (
            'loss/train/lbl',
            'loss/train/total_fdiff',
            'metrics/eval/LanguageCrossEntropy',
            'router/mean/imbalance',
    ):
        assert name in log.data, name
    assert (tmp_path / 'hf').is_dir()
