from pathlib import Path

import pytest
from omegaconf import OmegaConf

from foundry_upcycle.errors import ConfigError
from foundry_upcycle.planning.budget import (
    TrainingBudget,
    read_training_budget,
    read_training_shape,
)
from foundry_upcycle.planning.flops import ModelShape

YAMLS = Path(__file__).parents[2] / 'yamls'

# 64 * 8 embeddings, 2 blocks of attention 4 * 8 * 8, GLU 3 * 8 * 16 and 2
# norms of 8, a last norm of 8; tied, so all are active.
TOTAL = 512 + 2 * (256 + 384 + 16) + 8
SMALL = '''
variables:
  elsewhere: ${oc.env:A_VARIABLE_OF_THE_CLUSTER}
max_seq_len: 4
model:
  name: mpt_causal_lm
  d_model: ${width}
  n_heads: 2
  n_layers: 2
  max_seq_len: ${max_seq_len}
  vocab_size: 64
  no_bias: true
  norm_type: rmsnorm
  learned_pos_emb: false
  tokenizer_path: ${variables.elsewhere}
  ffn_config:
    ffn_type: mptglu
    ffn_hidden_size: 16
width: 8
max_duration: 50tok
global_train_batch_size: 3
save_folder: ${variables.elsewhere}/runs
'''


def read(tmp_path: Path, text: str = SMALL) -> TrainingBudget:
    path = tmp_path / 'train.yaml'
    path.write_text(text)
    return read_training_budget(str(path))


def test_a_model_that_is_no_mpt(tmp_path):
    with pytest.raises(
            ConfigError,
            match="train.yaml: model.name='hf_causal_lm': .*not counted here",
    ):
        read(tmp_path, SMALL.replace('mpt_causal_lm', 'hf_causal_lm'))


def test_by_hand(tmp_path):
    # A token: 2 * 1832 and, of attention, 4 * layers 2 * width 8 * 4 tokens.
    forward = 2 * TOTAL + 256
    budget = read(tmp_path)
    assert budget == TrainingBudget(
        n_total_params=1832,
        n_active_params=1832,
        forward_flops_per_token=forward,
        training_flops_per_token=3 * forward,
        tokens_per_step=12,
        n_steps=5,  # 4.17: the last step is whole.
    )
    assert budget.n_tokens == 60
    assert budget.n_flops == 60 * 3 * forward
    assert budget.float32_bytes == 4 * 1832


DISTILLED = f'''
{SMALL}
algorithms:
  upcycle_distill:
    teacher: moe.pt
'''


def test_a_teacher_costs_its_forward_pass(tmp_path):
    path = tmp_path / 'train.yaml'
    path.write_text(DISTILLED)
    asked = []

    def shape_of(checkpoint: str) -> ModelShape:
        asked.append(checkpoint)
        return ModelShape.from_config(OmegaConf.create(SMALL)['model'])

    budget = read_training_budget(str(path), shape_of)
    forward = 2 * TOTAL + 256
    assert budget.forward_flops_per_token == forward
    assert budget.training_flops_per_token == 4 * forward
    assert asked == ['moe.pt']
    with pytest.raises(ConfigError, match="upcycle_distill.teacher='moe.pt'"):
        read(tmp_path, DISTILLED)


def test_the_papers_upcycling():
    # 13e9 / (1024 * 4096) = 3099.4 steps; parameters and FLOPs as in
    # test_flops.py.
    budget = read_training_budget(str(YAMLS / 'upcycle_430m.yaml'))
    assert budget == TrainingBudget(
        n_total_params=1_647_539_200,
        n_active_params=506_688_512,
        forward_flops_per_token=1_382_475_776,
        training_flops_per_token=4_147_427_328,
        tokens_per_step=4_194_304,
        n_steps=3100,
    )
    assert budget.float32_bytes / 2**30 == pytest.approx(6.1375, abs=1e-4)


def test_some_layers_of_experts(tmp_path):
    ffn = 'ffn_type: upcycled_dmoe\n    moe_layers: [1]'
    budget = read(tmp_path, SMALL.replace('ffn_type: mptglu', ffn))
    # Of 8 experts, 2 active, one was there; routers have 8 * 8.
    assert budget.n_total_params == TOTAL + 7 * 384 + 64
    assert budget.n_active_params == TOTAL + 384 + 64


@pytest.mark.parametrize(
    'path',
    [
        path
        for kind in ('pretrain', 'cpt', 'upcycle', 'quickstart', 'smollm2')
        for path in sorted(YAMLS.glob(f'{kind}_*.yaml'))
    ],
    ids=lambda path: path.stem,
)
def test_every_training_yaml_can_be_read(path: Path):
    # Of the teacher in quickstart_heal.yaml.
    mixture, _ = read_training_shape(str(YAMLS / 'quickstart_upcycle.yaml'))
    budget = read_training_budget(str(path), lambda checkpoint: mixture)
    assert (budget.n_steps or 0) > 0


def test_an_evaluation_has_no_model_to_train():
    with pytest.raises(ConfigError, match='model=None: it is not a section'):
        read_training_budget(str(YAMLS / 'eval_upcycled.yaml'))


@pytest.mark.parametrize(
    'duration,n_steps',
    [
        ('7ba', 7),
        ('48tok', 4),
        ('49tok', 5),
        ('1.2e3tok', 100),
        ('1ep', None),
        ('2', None),  # Composer takes a bare number for epochs.
    ],
)
def test_durations(tmp_path, duration, n_steps):
    text = SMALL.replace('50tok', duration)
    assert read(tmp_path, text).n_steps == n_steps


def test_epochs_have_no_tokens(tmp_path):
    budget = read(tmp_path, SMALL.replace('50tok', '1ep'))
    assert budget.n_tokens is None and budget.n_flops is None


@pytest.mark.parametrize(
    'old,new,message',
    [
        ('max_duration: 50tok', '', 'max_duration=None: .*Fix: .*number and a'),
        ('50tok', 'true', 'max_duration=True: it is not a duration'),
        ('50tok', 'inftok', "max_duration='inftok': it is not a duration"),
        ('50tok', '50sp', "max_duration='50sp': .*of tokens, batches or epoc"),
        ('50tok', '1.5ba', "max_duration='1.5ba': it is not a whole .*13e9tok"),
        ('50tok', '0ba', "max_duration='0ba': it is not a whole number, from 1"),
        ('max_seq_len: 4\n', '', 'max_seq_len=None: .*the tokens of a sequence'),
        ('max_seq_len: 4', 'max_seq_len: 4.5', 'max_seq_len=4.5: it is not a whole'),
        ('global_train_batch_size: 3', '', 'train_batch_size=None: .*sequences'),
        ('batch_size: 3', 'batch_size: 0', 'train_batch_size=0: it is not a whole'),
        ('batch_size: 3', 'batch_size: yes', 'train_batch_size=True: it is no'),
        ('model:', 'models:', 'model=None: it is not a section.*one MPT model'),
        ('norm_type: rms', 'norm_type: batch', "train.yaml: model.norm_type='b"),
        ('d_model: ${width}', 'd_model: ${depth}', 'model.d_model=.*depth'),
    ],
)  # yapf: disable
def test_what_can_not_be_told(tmp_path, old, new, message):
    assert old in SMALL
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, SMALL.replace(old, new))


@pytest.mark.parametrize(
    'text,message',
    [
        (
            'model: [',
            "train.yaml': it can't be read as YAML .*Fix: name a training YAML"
        ),
        ('- model', "train.yaml': it is not a mapping of settings"),
    ],
)
def test_what_is_no_yaml_of_a_run(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        read(tmp_path, text)


def test_bytes_are_no_yaml(tmp_path):
    path = tmp_path / 'checkpoint.pt'
    path.write_bytes(b'\xff\xfe\x80\x00')
    with pytest.raises(ConfigError,
                       match="checkpoint.pt': it can't be read as YAML"):
        read_training_budget(str(path))


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError,
                       match="absent.yaml': there is no such file"):
        read_training_budget(str(tmp_path / 'absent.yaml'))
