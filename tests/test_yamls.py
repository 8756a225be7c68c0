"""The paper's YAMLs: Foundry accepts every key, and the numbers are right."""

import copy
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Iterator, Mapping, Optional

import pytest
import torch
from composer.core import Time
from composer.utils import FSDP2Config, format_name_with_dist
from llmfoundry.data.text_data import (
    StreamingTextDataset,
    build_streams,
    build_text_dataloader,
)
from llmfoundry.optim import DecoupledLionW
from llmfoundry.tokenizers import TiktokenTokenizerWrapper
from llmfoundry.utils.builders import (
    build_algorithm,
    build_callback,
    build_scheduler,
)
from llmfoundry.utils.config_utils import (
    TRAIN_CONFIG_KEYS,
    EvalConfig,
    TrainConfig,
    make_dataclass_and_log_config,
)
from omegaconf import OmegaConf

from foundry_upcycle.checkpoints.base import flatten
from foundry_upcycle.checkpoints.exactness import check_same_function
from foundry_upcycle.checkpoints.huggingface.to_mpt import to_mpt
from foundry_upcycle.checkpoints.settings import complete
from foundry_upcycle.planning.flops import ModelShape

YAMLS = Path(__file__).parents[1] / 'yamls'

# Table 3, Tables 1 and 2 (medium pretraining; 0.4 of its FLOPs after it):
# learning rate, weight decay, warm-up tokens, tokens.
TABLE = {
    'pretrain_430m': (8e-4, 0.5, 1_000_500_000, 43_600_000_000),
    'pretrain_1b': (4e-4, 0.5, 1_000_500_000, 142_000_000_000),
    'cpt_430m': (5e-5, 0.05, 500_000_000, 17_500_000_000),
    'cpt_1b': (5e-5, 0.05, 500_000_000, 56_000_000_000),
    'upcycle_430m': (1e-4, 0.05, 500_000_000, 13_000_000_000),
    'upcycle_1b': (5e-5, 0.05, 500_000_000, 38_600_000_000),
}
SIZES = ('430m', '1b')

# What may differ between the two sides of a comparison, beside the values in
# TABLE.
SIDES_DIFFER_IN = {
    'run_name',
    'model.name',
    'model.ffn_config.ffn_type',
    'model.ffn_config.moe_num_experts',
    'model.ffn_config.moe_top_k',
    'model.ffn_config.moe_normalize_expert_weights',
    'model.ffn_config.moe_loss_weight',
    'optimizer.lr',
    'optimizer.weight_decay',
    'max_duration',
    'load_path',
    'load_weights_only',
    'callbacks.sparse_upcycling.source_path',
    'callbacks.sparse_upcycling.recipe.name',
    'callbacks.sparse_upcycling.router_init_std',
    'callbacks.sparse_upcycling.seed',
    'callbacks.router_monitor.interval',
}


def load(name: str, *overrides: str) -> dict[str, Any]:
    cfg = OmegaConf.merge(
        OmegaConf.load(YAMLS / f'{name}.yaml'),
        OmegaConf.from_dotlist(list(overrides)),
    )
    return OmegaConf.to_container(cfg, resolve=True)


def leaves(section: Mapping[str, Any], prefix: str = '') -> Iterator[str]:
    """Yields ``key.key=value`` of every leaf."""
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f'{prefix}{key}.')
        else:
            yield f'{prefix}{key}={value}'


@pytest.fixture(params=TABLE)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def cfg(name: str) -> dict[str, Any]:
    return load(name)


def test_foundry_accepts_the_keys(name: str):
    # Raises on an unknown key and on a missing mandatory one.
    _, config = make_dataclass_and_log_config(
        OmegaConf.load(YAMLS / f'{name}.yaml'),
        TrainConfig,
        TRAIN_CONFIG_KEYS,
        transforms='all',
    )
    assert config.run_name.startswith(f'{name}_')


@pytest.mark.parametrize('duration', [None, '100e9tok', '41943040tok'])
def test_a_run_is_named_by_its_duration(name: str, duration: Optional[str]):
    # Autoresume would otherwise go on with the end of another duration.
    cfg = load(name, *([f'max_duration={duration}'] if duration else []))
    assert cfg['run_name'].endswith(f"_{duration or cfg['max_duration']}")
    folder = format_name_with_dist(cfg['save_folder'], cfg['run_name'])
    assert folder == f"runs/{cfg['run_name']}/checkpoints"


@pytest.mark.parametrize('kind', ['cpt', 'upcycle'])
def test_a_run_is_named_by_the_dense_models_duration(kind: str):
    # 15e9tok follow both long and extra long pretraining, and so do others.
    names = {
        load(
            f'{kind}_430m',
            f'variables.pretrain_duration={pretrained}',
            'max_duration=15e9tok',
        )['run_name']
        for pretrained in ('100e9tok', '200e9tok')
    }
    assert len(names) == 2


def test_batch_and_durations(name: str, cfg: dict[str, Any]):
    _, _, warmup, tokens = TABLE[name]
    assert cfg['global_train_batch_size'] == 1024
    assert cfg['max_seq_len'] == cfg['model']['max_seq_len'] == 4096
    assert Time.from_timestring(cfg['max_duration']) == Time(tokens, 'tok')
    scheduler_cfg = dict(cfg['scheduler'])
    scheduler = build_scheduler(scheduler_cfg.pop('name'), scheduler_cfg)
    assert Time.from_timestring(scheduler.t_warmup) == Time(warmup, 'tok')
    assert scheduler.alpha_f == 0.0


def test_a_step_decays_as_in_the_paper(name: str, cfg: dict[str, Any]):
    lr, weight_decay, _, _ = TABLE[name]
    optimizer_cfg = dict(cfg['optimizer'])
    assert optimizer_cfg.pop('name') == 'decoupled_lionw'
    assert optimizer_cfg['lr'] == lr
    assert optimizer_cfg['weight_decay'] == pytest.approx(lr * weight_decay)
    # Without a gradient a step only decays: p <- p * (1 - lr * weight_decay).
    p = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    p.grad = torch.zeros_like(p)
    DecoupledLionW([p], **optimizer_cfg).step()
    assert 1 - p.item() == pytest.approx(lr * weight_decay)


def test_model_is_the_papers(name: str, cfg: dict[str, Any]):
    model = cfg['model']
    assert model['name'] == (
        'upcycled_mpt' if name.startswith('upcycle') else 'mpt_causal_lm'
    )
    assert model['n_heads'] == 16
    assert model['attn_config']['kv_n_heads'] == 4
    assert model['vocab_size'] == 100352
    if name.startswith('upcycle'):
        ffn = model['ffn_config']
        assert (ffn['moe_num_experts'], ffn['moe_top_k']) == (8, 2)
        assert ffn['moe_loss_weight'] == 0.01


def test_streams(name: str, cfg: dict[str, Any]):
    loader = dict(cfg['train_loader'])
    assert loader.pop('name') == 'text'
    accepted = inspect.signature(build_text_dataloader).parameters
    assert set(loader) <= set(accepted)
    accepted = inspect.signature(StreamingTextDataset).parameters
    assert set(loader['dataset']) <= set(accepted)
    streams = loader['dataset']['streams']
    proportions = [s.get('proportion') for s in streams.values()]
    if name.startswith('pretrain'):
        assert proportions == [None]
    else:
        assert proportions == [0.15, 0.35, 0.15, 0.35]
    for label, stream in zip(streams, build_streams(streams), strict=True):
        assert stream.remote.endswith(f'/{label}')
        assert stream.local.endswith(f'/{label}')


def test_parts_are_accepted(cfg: dict[str, Any]):
    # Composer drops a key that FSDP2 doesn't know with no more than a warning.
    assert set(cfg['fsdp_config']) <= FSDP2Config.settable_attrs()
    tokenizer_args = inspect.signature(TiktokenTokenizerWrapper).parameters
    kwargs = dict(cfg['tokenizer']['kwargs'])
    assert kwargs.pop('model_max_length') == 4096
    assert kwargs == {'model_name': 'gpt-4'}
    assert set(kwargs) <= set(tokenizer_args)
    for label, kwargs in cfg['algorithms'].items():
        build_algorithm(label, kwargs)
    for label, kwargs in cfg['callbacks'].items():
        build_callback(label, copy.deepcopy(kwargs), train_config=cfg)


@pytest.mark.parametrize('pretrained', [None, '200e9tok'])
@pytest.mark.parametrize('size', SIZES)
def test_the_two_sides_start_from_the_pretrained_model(
    size: str,
    pretrained: Optional[str],
):
    key = 'variables.pretrain_duration'
    changed = [f'{key}={pretrained}'] if pretrained else []
    cpt = load(f'cpt_{size}', *changed)
    upcycle = load(f'upcycle_{size}', *changed)
    changed = [f'max_duration={pretrained}'] if pretrained else []
    pretrain = load(f'pretrain_{size}', *changed)
    folder = pretrain['save_folder'].format(run_name=pretrain['run_name'])
    source = f'{folder}/latest-sharded-rank0'
    assert cpt['load_path'] == source
    assert cpt['load_weights_only']
    assert upcycle['callbacks']['sparse_upcycling']['source_path'] == source
    # The callback and load_path exclude each other.
    assert 'load_path' not in upcycle
    assert cpt['model'] == pretrain['model']


@pytest.mark.parametrize('size', SIZES)
def test_the_two_sides_differ_in_nothing_else(size: str):
    cpt, upcycle = (
        set(leaves(load(f'{kind}_{size}'))) for kind in ('cpt', 'upcycle')
    )
    differing = {leaf.split('=')[0] for leaf in cpt ^ upcycle}
    assert differing <= SIDES_DIFFER_IN


@pytest.mark.parametrize('size', SIZES)
def test_the_two_sides_cost_the_same(size: str):
    # The paper rounds its tokens: 17.5 and 13, 56 and 38.6 billion.
    flops = []
    for kind in ('cpt', 'upcycle'):
        cfg = load(f'{kind}_{size}')
        shape = ModelShape.from_config(cfg['model'])
        tokens = Time.from_timestring(cfg['max_duration']).value
        flops.append(tokens * shape.training_flops_per_token(4096))
    assert flops[0] == pytest.approx(flops[1], rel=0.02)


def test_llama3_is_what_its_config_json_says():
    # As published.
    section = to_mpt({
        'model_type': 'llama',
        'hidden_act': 'silu',
        'hidden_size': 4096,
        'intermediate_size': 14336,
        'max_position_embeddings': 8192,
        'num_attention_heads': 32,
        'num_hidden_layers': 32,
        'num_key_value_heads': 8,
        'rms_norm_eps': 1e-05,
        'rope_theta': 500000.0,
        'tie_word_embeddings': False,
        'vocab_size': 128256,
    })
    model = load('upcycle_llama3_8b')['model']
    source = SimpleNamespace(path='llama', model_config=flatten(section))
    check_same_function(source, model)
    imported, written = complete(section), complete(model)
    for key in (
            'd_model',
            'n_layers',
            'max_seq_len',
            'vocab_size',
            'no_bias',
            'attention_bias',
            'ffn_config.ffn_hidden_size',
    ):
        assert written[key] == imported[key], key


def test_llama3_is_accepted_and_of_the_size_it_says():
    cfg = load('upcycle_llama3_8b')
    _, config = make_dataclass_and_log_config(
        OmegaConf.create(cfg),
        TrainConfig,
        TRAIN_CONFIG_KEYS,
        transforms='all',
    )
    assert config.run_name == 'upcycle_llama3_8b_20e9tok'
    shape = ModelShape.from_config(cfg['model'])
    assert shape.n_total_params == pytest.approx(47.5e9, rel=1e-3)
    assert shape.n_active_params == pytest.approx(13.1e9, rel=5e-3)
    assert set(cfg['fsdp_config']) <= FSDP2Config.settable_attrs()
    for label, kwargs in cfg['callbacks'].items():
        build_callback(label, copy.deepcopy(kwargs), train_config=cfg)
    assert cfg['tokenizer']['name'] == 'models/Meta-Llama-3-8B'


def evaluated(name: str) -> dict[str, dict[str, Any]]:
    cfg = load(name)
    EvalConfig(**{
        **cfg,
        'icl_tasks': None,
        'eval_gauntlet': None,
    })
    for callback, kwargs in cfg['callbacks'].items():
        kwargs.pop('eval_gauntlet', None)  # There is none before `prepare`.
        build_callback(callback, kwargs=kwargs)
    return {entry['model_name']: entry['model'] for entry in cfg['models']}


def test_eval_upcycled_has_the_models_of_the_paper():
    models = evaluated('eval_upcycled')
    not_for_evaluation = (
        'init_device', 'loss_fn', 'ffn_config.moe_loss_weight'
    )
    for ours, trained in (
        ('dense', 'pretrain_1b'),
        ('cpt', 'cpt_1b'),
        ('upcycled', 'upcycle_1b'),
    ):
        settings = flatten(models[ours])
        expected = flatten(load(trained)['model'])
        for key in not_for_evaluation:
            settings.pop(key, None), expected.pop(key, None)
        assert settings == expected


def test_eval_smollm2_has_the_models_of_make_smollm2():
    models = evaluated('eval_smollm2')
    assert models.keys() == {'dense', 'upcycled', 'huggingface'}
    settings = complete(models['upcycled'])
    expected = complete(load('smollm2_upcycle')['model'])
    # Positions are rotary, so the length is no part of the model.
    for key in ('max_seq_len', 'init_device'):
        settings.pop(key, None), expected.pop(key, None)
    assert settings == expected


@pytest.mark.parametrize('name', ['eval_upcycled', 'eval_smollm2'])
def test_one_variable_says_where_the_tasks_are(name: str):
    cfg = load(name, 'variables.gauntlet=/data')
    assert cfg['icl_tasks'] == '/data/paper_tasks.yaml'
    assert cfg['eval_gauntlet'] == '/data/paper.yaml'
    results = cfg['callbacks']['icl_results']
    assert results['eval_gauntlet'] == '/data/paper.yaml'
