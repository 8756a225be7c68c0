from pathlib import Path

import pytest
from study.study_files import CPT_STEP, GONE, UPCYCLED_STEP, StudyFiles

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.planning.duration import Duration
from foundry_upcycle.study.base_yaml import BaseYaml, require_same_model
from foundry_upcycle.study.config import Phase

UNLIKE_FOUNDRY = 'it is missing, or of another type than Foundry has there'
CALLBACK = 'the callback sparse_upcycling goes with upcycled_mpt, and with not'
RECIPE = 'callbacks.sparse_upcycling.recipe'


@pytest.fixture
def files(tmp_path: Path) -> StudyFiles:
    return StudyFiles(tmp_path)


def read(files: StudyFiles, name: str, *, overrides=None, lr=()) -> BaseYaml:
    files.write()
    phase = Phase(files.folder / f'{name}.yaml', overrides or {}, lr)
    return BaseYaml.read(f'models.m.arms.{name}', phase, {})


def test_by_hand(files: StudyFiles, tmp_path: Path):
    cpt, upcycled = read(files, 'cpt'), read(files, 'upcycled')
    assert cpt.path == tmp_path / 'cpt.yaml'
    assert (cpt.seq_len, cpt.tokens_per_step) == (4, 12)
    assert cpt.duration == Duration(1000, 'ba')
    assert cpt.shape.n_active_params == 1832
    assert upcycled.shape.n_active_params == 2728
    assert cpt.flops_per_step == CPT_STEP == 141_120
    assert upcycled.flops_per_step == UPCYCLED_STEP == 205_632
    assert not cpt.is_upcycling and upcycled.is_upcycling


def test_overrides_are_merged(files: StudyFiles):
    overrides = {'max_seq_len': 8, 'model': {'ffn_config': {'moe_top_k': 1}}}
    base = read(files, 'upcycled', overrides=overrides)
    # One expert of 384 less in each of two blocks; the others stay.
    assert base.shape.n_active_params == 2728 - 2 * 384
    assert base.shape.n_experts == 8
    assert base.tokens_per_step == 3 * 8
    assert base.config.model.max_seq_len == 8  # It refers to the other.


def test_durations_keep_their_unit(files: StudyFiles):
    assert read(files, 'cpt').max_duration(7) == '7ba'
    files.set('cpt', 'max_duration', '1e3tok')
    files.set('cpt', 'scheduler.t_warmup', '10tok')
    assert read(files, 'cpt').max_duration(7) == '84tok'


@pytest.mark.parametrize('warmup', ['10ba', '0.5dur', GONE])
def test_a_run_is_longer_than_its_warmup(files: StudyFiles, warmup):
    base = read(files.set('cpt', 'scheduler.t_warmup', warmup), 'cpt')
    base.require_warmup_shorter('durations.short', '11ba', 11)
    if warmup != '10ba':
        base.require_warmup_shorter('durations.short', '1ba', 1)
        return
    with pytest.raises(
            ConfigError,
            match="durations.short='10ba': it is 10 steps, 120 tokens, no more "
            'than the warm-up of 10ba. Fix: raise it, or lower '
            'scheduler.t_warmup of .*/cpt.yaml',
    ):
        base.require_warmup_shorter('durations.short', '10ba', 10)


@pytest.mark.parametrize(
    'warmup,problem',
    [
        (
            '100tok',
            'max_duration is in ba: .*Fix: write it in ba, here or in ov'
        ),
        ('1ep', 'max_duration is in ba'),
        ('soon', 'it is not a duration'),
    ],
)
def test_a_warmup_of_another_kind(files: StudyFiles, warmup: str, problem: str):
    base = read(files.set('cpt', 'scheduler.t_warmup', warmup), 'cpt')
    with pytest.raises(
            ConfigError,
            match=f"/cpt.yaml: scheduler.t_warmup='{warmup}': {problem}",
    ):
        base.require_warmup_shorter('durations.short', '11ba', 11)


@pytest.mark.parametrize(
    'name,key,value,problem',
    [
        ('cpt', 'max_seq_len', GONE, f'max_seq_len=None: {UNLIKE_FOUNDRY}'),
        ('cpt', 'max_seq_len', '4', f"max_seq_len='4': {UNLIKE_FOUNDRY}"),
        ('cpt', 'max_seq_len', '${nowhere}', 'max_seq_len=None: it can.t be res'
         "olved .*'nowhere' not found.*Fix: write its value, here or in overri"),
        ('cpt', 'global_train_batch_size', GONE, 'batch_size=None: it is missin'),
        ('cpt', 'global_train_batch_size', True, 'batch_size=True: it is missin'),
        ('cpt', 'max_duration', GONE, 'max_duration=None: it is missing'),
        ('cpt', 'max_duration', 1000, 'max_duration=1000: it is not a duration'),
        ('cpt', 'max_duration', '1ep', "max_duration='1ep': a study counts token"
         's or steps. Fix: write it in tok or ba[.]$'),
        ('cpt', 'model', GONE, f'model=None: {UNLIKE_FOUNDRY}'),
        ('cpt', 'model', 'mpt', f"model='mpt': {UNLIKE_FOUNDRY}"),
        ('cpt', 'model.norm_type', 'batch', "model.norm_type='batch': its param"),
        ('cpt', 'model.d_model', '${nowhere}', "model=None: it can't be resolved "
         ".*'nowhere' not found.*Fix: write its value, here or in overrides"),
        ('cpt', 'model.name', 'hf_causal_lm', "model.name='hf_causal_lm': its para"
         'meters are not counted here. Fix: count those of mpt_causal_lm or up'),
        ('cpt', 'model.use_train_metrics', False, 'model.use_train_metrics=False: '
         'a study reads the training loss. Fix: remove it, or set it to true'),
        ('cpt', 'model.use_train_metrics', None, 'use_train_metrics=None: a study'),
        ('cpt', 'model.d_model', '8x', "model.d_model='8x': it is not a size"),
        ('cpt', 'train_loader.dataset.max_seq_len', 2, 'dataset.max_seq_len=2: the '
         'model trains on sequences of this length, and FLOPs .* max_seq_len: 4'),
        ('cpt', 'scheduler.t_max', '20ba', "scheduler.t_max='20ba': runs of a study"
         ' have lengths of their own. Fix: write it in dur, such as 1dur, or'),
        ('cpt', 'save_num_checkpoints_to_keep', 0, 'checkpoints_to_keep=0: runs go '
         'on from their last checkpoint'),
        ('cpt', 'save_overwrite', True, 'save_overwrite=True: runs go on from'),
        ('cpt', 'save_weights_only', True, 'save_weights_only=True: runs go on'),
        ('cpt', 'only_hf_checkpoint', True, 'only_hf_checkpoint=True: runs go on'),
        ('cpt', 'optimizer', GONE, f'optimizer.lr=None: {UNLIKE_FOUNDRY}'),
        ('cpt', 'optimizer.lr', GONE, 'optimizer.lr=None: it is missing'),
        ('cpt', 'optimizer.lr', '5e-5', "optimizer.lr='5e-5': it is missing, or"),
        ('cpt', 'model.name', 'upcycled_mpt', f"name='upcycled_mpt': {CALLBACK}"),
        ('upcycled', 'callbacks', GONE, "model.name='upcycled_mpt': the callback"
         ' .*Fix: add the callback, or remove it, or change the model'),
        ('upcycled', 'model.name', 'mpt_causal_lm', f"causal_lm': {CALLBACK}"),
        ('upcycled', f'{RECIPE}.name', GONE, f'{RECIPE}.name=None: it is missing'),
        ('upcycled', RECIPE, 'copy', f'{RECIPE}.name=None: {UNLIKE_FOUNDRY}'),
    ],
)  # yapf: disable
def test_what_can_not_be_used(files: StudyFiles, name, key, value, problem):
    with pytest.raises(ConfigError, match=f'/{name}.yaml: .*{problem}'):
        read(files.set(name, key, value), name)


@pytest.mark.parametrize(
    'recipe,problem',
    [
        ({'name': 'noise'}, "recipe.name='noise': there is no such recipe. Fix"),
        ({'name': 'copy', 'std': 1}, 'recipe.std=1: the recipe copy has no such'),
    ],
)  # yapf: disable
def test_an_unknown_recipe(files: StudyFiles, recipe, problem):
    with pytest.raises(ConfigError, match=problem):
        read(files.set('upcycled', RECIPE, recipe), 'upcycled')


def test_train_metrics_may_be_asked_for(files: StudyFiles):
    files.set('cpt', 'model.use_train_metrics', True)
    assert read(files, 'cpt').config.model.use_train_metrics


def test_its_own_variables(files: StudyFiles):
    overrides = {'variables': {'another': 1}}
    base = read(files, 'cpt', overrides=overrides)
    assert base.variables == {'tokenizer', 'lr'}
    files.set('cpt', 'variables', GONE).set('cpt', 'optimizer.lr', 1e-3)
    assert read(files, 'cpt').variables == frozenset()


@pytest.mark.parametrize('value', [True, '${nowhere}'])
def test_variables_that_are_replaced_and_were_none(files: StudyFiles, value):
    phase = files.set('cpt', 'variables', value).set('cpt', 'optimizer.lr', 1.)
    phase.write()
    with pytest.raises(ConfigError, match='/cpt.yaml: variables='):
        BaseYaml.read('arm', Phase(files.folder / 'cpt.yaml', {}), {'lr': 1e-3})


def test_a_recipe_has_a_default(files: StudyFiles):
    assert read(files.set('upcycled', RECIPE, GONE), 'upcycled').is_upcycling


def test_a_sweep_scales_a_known_weight_decay(files: StudyFiles):
    files.set('cpt', 'optimizer.weight_decay', GONE)
    assert read(files, 'cpt').phase.learning_rates == ()
    with pytest.raises(
            ConfigError,
            match=f'/cpt.yaml: optimizer.weight_decay=None: {UNLIKE_FOUNDRY}',
    ):
        read(files, 'cpt', lr=(1e-4, ))
    files.set('cpt', 'optimizer.weight_decay', 0)
    files.set('cpt', 'optimizer.lr', 0.0)
    with pytest.raises(
            ConfigError,
            match='/cpt.yaml: optimizer.lr=0.0: weight decay is scaled from it '
            'to models.m.arms.cpt.lr. Fix: set it above 0',
    ):
        read(files, 'cpt', lr=(1e-4, ))


@pytest.mark.parametrize(
    'overrides,problem',
    [
        ({'model': 5}, 'cpt.yaml: model=5: it is missing, or of another type'),
        ({'optimizer': 'lion'}, "cpt.yaml: optimizer='lion': it is missing"),
        ({'variables': 5}, 'cpt.yaml: variables=5: it is missing, or of another'),
        ({'fsdp_config': 'x'}, "cpt.yaml: fsdp_config='x': it is missing, or of"),
        ({'optimizer': {'lr': float('inf')}}, 'optimizer.lr=inf: it is missing'),
        ({'max_seq_len': 2**31}, 'max_seq_len=2147483648: .* or too many. Fix'),
        ({'max_duration': '1e400ba'}, "max_duration='1e400ba': no run is as lon"),
        ({'callbacks': {'sparse_upcycling': {}}}, "'mpt_causal_lm': the callba"),
    ],
)  # yapf: disable
def test_overrides_of_another_structure(files: StudyFiles, overrides, problem):
    with pytest.raises(ConfigError, match=problem):
        read(files, 'cpt', overrides=overrides)


@pytest.mark.parametrize('content', [b'model: [', b'- model', b'\xff\xfe\x80'])
def test_what_is_no_train_yaml(files: StudyFiles, content: bytes):
    path = files.write().with_name('cpt.yaml')
    path.write_bytes(content)
    with pytest.raises(
            ConfigError,
            match=f"(?s)arms.cpt.yaml='{path}': it can't be read .*Fix: name a "
            'train YAML of LLM Foundry',
    ):
        BaseYaml.read('models.m.arms.cpt', Phase(path, {}), {})


@pytest.mark.parametrize(
    'key,value,name,found,expected',
    [
        ('max_seq_len', 8, 'max_seq_len', 8, 4),
        ('model.d_model', 16, 'model: d_model', 16, 8),
        ('model.n_layers', 3, 'model: n_layers', 3, 2),
        ('model.vocab_size', 65, 'model: vocab_size', 65, 64),
        ('model.tie_word_embeddings', False, 'model: tie_word_emb', False, True),
        # 4 positions of 8.
        ('model.learned_pos_emb', True, 'model: n_position_params', 32, 0),
        # One head for keys and values: 2 * 8 * 8 + 2 * 8 * 4.
        ('model.attn_config', {'attn_type': 'multiquery_attention'},
         'model: n_attn_params', 192, 256),
        # 3 * 8 * 17, 3 * 8 * 16.
        ('model.ffn_config.ffn_hidden_size', 17, 'model: n_expert', 408, 384),
    ],
)  # yapf: disable
@pytest.mark.parametrize('arm', ['cpt', 'upcycled'])
def test_another_model(files, arm, key, value, name, found, expected):
    base, same = read(files, 'dense'), read(files, arm)
    require_same_model(base, same)
    other = read(files.set(arm, key, value), arm)
    with pytest.raises(
            ConfigError,
            match=f'/{arm}.yaml: {name}.*={found}: in .*/dense.yaml, whose model '
            f'it goes on with, it is {expected}. Fix: make them the same',
    ):
        require_same_model(base, other)


def test_another_norm(files: StudyFiles):
    # A norm with a bias has 16 parameters instead of 8.
    files.set_all('model.no_bias', False).set('cpt', 'model.no_bias', True)
    files.set_all('model.norm_type', 'layernorm')
    with pytest.raises(ConfigError, match='model: n_norm_params=8: .*it is 16'):
        require_same_model(read(files, 'dense'), read(files, 'cpt'))


@pytest.mark.parametrize(
    'key,value',
    [
        ('train_loader.dataset.max_seq_len', '${max_seq_len}'),
        ('scheduler.t_max', '1dur'),
        ('save_num_checkpoints_to_keep', 1),
        ('save_num_checkpoints_to_keep', -1),
        ('save_overwrite', False),
    ],
)
def test_what_can_be_used(files: StudyFiles, key: str, value: object):
    read(files.set('cpt', key, value), 'cpt')


def test_a_sweep_needs_the_name_of_the_optimizer(files: StudyFiles):
    files.set('cpt', 'optimizer.name', GONE)
    read(files, 'cpt')
    with pytest.raises(ConfigError,
                       match='cpt.yaml: optimizer.name=None: it is'):
        read(files, 'cpt', lr=(1e-4, ))
