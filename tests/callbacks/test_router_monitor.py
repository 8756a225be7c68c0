import math

import pytest
import tiny
import torch
from composer.loggers import InMemoryLogger
from llmfoundry.utils.builders import build_callback

from foundry_upcycle.callbacks.router_monitor import expert_distance
from foundry_upcycle.errors import ConfigError


def train(model, interval: str = '1ba', **kwargs) -> InMemoryLogger:
    log = InMemoryLogger()
    trainer = tiny.make_trainer(
        model,
        callbacks=[build_callback('router_monitor', {'interval': interval})],
        loggers=[log],
        **kwargs,
    )
    trainer.fit()
    trainer.close()
    return log


def value(log: InMemoryLogger, name: str, index: int = 0) -> float:
    return float(log.data[name][index][1])


def test_metrics_are_those_of_the_batch():
    samples = tiny.make_samples(4)
    log = train(
        tiny.build_moe(),
        samples=samples,
        duration='1ba',
        device_train_microbatch_size=2,
    )
    # The same forward by hand, over the whole batch.
    model = tiny.build_moe()
    model.train()
    batch = {k: torch.stack([s[k] for s in samples]) for k in samples[0]}
    seen = []
    for layer in model.moe_layers:
        layer.router.register_forward_hook(lambda m, a, o: seen.append(o))
    model(batch)
    T, E, K = 4 * tiny.SEQ, 8, 2
    for i, routing in enumerate(seen):
        prefix = f'router/layer_{i:02d}'
        shares = [
            routing.top_experts_TK.eq(e).sum().item() / (T * K)
            for e in range(E)
        ]
        means = routing.scores_TE.mean(0).tolist()
        for e, share in enumerate(shares):
            assert math.isclose(
                value(log, f'{prefix}/expert_{e:02d}/share'),
                share,
            )
        assert math.isclose(value(log, f'{prefix}/imbalance'), max(shares) * E)
        assert math.isclose(
            value(log, f'{prefix}/load_balancing_loss'),
            E * sum(s * m for s, m in zip(shares, means)),
            rel_tol=1e-5,
        )
        scores = routing.scores_TE.tolist()
        entropy = -sum(p * math.log(p) for row in scores for p in row) / T
        assert math.isclose(
            value(log, f'{prefix}/entropy'),
            entropy,
            rel_tol=1e-5,
        )
    of_layers = [value(log, f'router/layer_{i:02d}/entropy') for i in range(3)]
    assert math.isclose(value(log, 'router/mean/entropy'), sum(of_layers) / 3)


def test_layers_without_experts_are_left_out():
    model = tiny.build_moe({'moe_layers': [0, 2]})
    log = train(model, duration='1ba')
    layers = {name.split('/')[1] for name in log.data if 'router/' in name}
    assert layers == {'layer_00', 'layer_02', 'mean'}
    first, last, mean = (
        value(log, f'router/{layer}/entropy') for layer in sorted(layers)
    )
    assert math.isclose(mean, (first + last) / 2)


def test_logs_at_its_interval_and_forgets():
    log = train(tiny.build_moe(), interval='2ba', duration='4ba')
    batches = [t.batch.value for t, _ in log.data['router/mean/entropy']]
    # BATCH_END comes after the timestamp's step.
    assert batches == [2, 4]


@pytest.mark.parametrize(
    'interval,stop,expected',
    [
        ('1ep', '8ba', [4, 8]),
        (2, '8ba', [8]),
        ('3ba', '8ba', [3, 6, 8]),  # What is left when training ends.
        ('100ba', '8ba', [8]),
        ('1ep', '6ba', [4, 6]),
        ('10sec', '2ba', [2]),
    ],
)
def test_logs_at_the_end_of_epochs_and_runs(interval, stop, expected):
    log = train(tiny.build_moe(), interval=interval, duration=stop)
    batches = [t.batch.value for t, _ in log.data['router/mean/entropy']]
    assert batches == expected


@pytest.mark.parametrize(
    'interval',
    [0, -2, '0ba', '-1ba', '1iter', '10', 'often', 1.5, True, None, ['1ba']],
)
def test_what_is_no_interval_is_refused(interval):
    with pytest.raises(
            ConfigError,
            match='callbacks.router_monitor.interval=.*such as 10ba; the units',
    ):
        build_callback('router_monitor', {'interval': interval})


def test_experts_drift_apart_from_zero(tmp_path):
    source = tiny.save_dense(tiny.build_dense(), tmp_path / 'dense.pt')
    model = tiny.build_moe()
    upcycling = build_callback('sparse_upcycling', {'source_path': source})
    monitor = build_callback('router_monitor', {'interval': '1ba'})
    log = InMemoryLogger()
    trainer = tiny.make_trainer(
        model,
        callbacks=[upcycling, monitor],
        loggers=[log],
        lr=1.0,
    )
    assert abs(expert_distance(model.moe_layers[0])) < 1e-6
    trainer.fit()
    name = 'router/mean/expert_distance'
    assert 0 < value(log, name, 0) < value(log, name, 3)


def test_distance_of_known_experts():
    layer = tiny.build_moe({'moe_num_experts': 2}).moe_layers[0]
    with torch.no_grad():
        for weight in layer.experts.parameters():
            first, second = weight.chunk(2)
            first.fill_(1.0)
            second.fill_(-1.0)
    assert math.isclose(expert_distance(layer), 2.0)  # Opposite.


def test_one_expert_has_no_pairs():
    ffn = {'moe_num_experts': 1, 'moe_top_k': 1}
    assert expert_distance(tiny.build_moe(ffn).moe_layers[0]) == 0.0


def test_activation_checkpointing_keeps_the_shares():
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
        apply_activation_checkpointing,
    )
    plain = train(tiny.build_moe(), duration='1ba')
    model = tiny.build_moe()
    apply_activation_checkpointing(
        model,
        check_fn=model.model.activation_checkpointing_fn,
    )
    again = train(model, duration='1ba')
    for name in plain.data:
        if name.startswith('router/'):
            assert math.isclose(
                value(plain, name),
                value(again, name),
                rel_tol=1e-6,
                abs_tol=1e-6,
            ), name


def test_torch_dmoe_is_monitored_alike():
    ours = tiny.build_moe()
    ffn = {
        'ffn_type': 'torch_dmoe',
        'mlp_type': 'glu',
        'moe_jitter_eps': None,
        'moe_normalize_expert_weights': 1,
        'uniform_expert_assignment': False,
    }
    theirs = tiny.build_moe(ffn)
    theirs.load_state_dict(ours.state_dict())
    # Before the first step: torch_dmoe has no balancing loss to train with.
    logs = [train(model, duration='1ba') for model in (ours, theirs)]
    names = [name for name in logs[0].data if name.startswith('router/')]
    for name in names:
        if 'expert_distance' not in name:
            first, second = (value(log, name) for log in logs)
            assert math.isclose(first, second, rel_tol=1e-5), name


def test_a_dense_model_is_refused():
    with pytest.raises(
            ConfigError,
            match=
            'router_monitor=.ComposerMPTCausalLM.: the model has no routers',
    ):
        train(tiny.build_dense())
