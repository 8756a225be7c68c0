"""Part 1: what is computed on the device is what the CPU's tests promise.

Each check is an error beside the tolerance that it may not pass.

Shape suffixes: T tokens, D d_model.
"""

import copy
import itertools
import json
import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any, Iterable, Mapping, Sequence

import torch
from torch import nn

from benchmarks.gpu.models import (
    Run,
    dense_config,
    logits_of,
    moe_config,
    new_model,
    save_model,
)
from foundry_upcycle.models.experts import BACKENDS
from foundry_upcycle.models.ffn import build_upcycled_dmoe

__all__ = ['cases']

# The layer's, and whether autocast is on.
_DTYPES = {
    'fp32': (torch.float32, False),
    'bf16': (torch.bfloat16, False),
    'bf16 autocast': (torch.float32, True),
}
# Of the largest value of the reference. In bfloat16 a number is rounded to
# 0.4 %, and a hidden layer, its products and their sums each are.
_TOLERANCES = {'fp32': 2e-5, 'bf16': 3e-2}
# What the order of additions may change in the losses of some steps.
_LOSS_TOLERANCES = {'fp32': 1e-4, 'amp_bf16': 2e-3}

Checks = dict[str, Any]


def cases(device: str, folder: Path) -> dict[str, Any]:
    """See ``worker.Case``."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    whole = _WholeModel(device, folder)
    return {
        **{
            f'layer: {backend}, {dtype}': partial(
                _layer, backend, dtype, device
            )
            for backend in BACKENDS
            for dtype in _DTYPES
        },
        'step 0 is the dense model': whole.step_0,
        'resumed from sharded checkpoint': whole.resumed,
        'DDP and FSDP2': whole.ddp_and_fsdp,
        'Hugging Face export': whole.exported,
        'generate with KV cache': whole.generated,
        'in-context evaluation': whole.evaluated,
        'compiled and eager': whole.compiled,
    }


def _check(what: str, error: float, tolerance: float) -> dict[str, Any]:
    return {'what': what, 'error': error, 'tolerance': tolerance}


def _checks(checks: Iterable[dict[str, Any]]) -> Checks:
    """A case's record, an ``error`` of its own where one is too large."""
    checks = list(checks)
    # Not `>`: nan is an error, too.
    wrong = [c for c in checks if not c['error'] <= c['tolerance']]
    record: Checks = {'checks': checks}
    if wrong:
        record['error'] = 'beyond tolerance: ' + ', '.join(
            f"{c['what']} {c['error']:.1e}" for c in wrong
        )
    return record


def _layer(backend: str, dtype_name: str, device: str) -> Checks:
    """Forward and gradients against ``loop`` in float64 on the CPU."""
    dtype, autocast = _DTYPES[dtype_name]
    generator = torch.Generator().manual_seed(0)
    layer = build_upcycled_dmoe(
        d_model=128,
        expansion_ratio=1,
        ffn_hidden_size=192,
        ffn_act_fn={'name': 'silu'},
        moe_loss_weight=0,
        backend=backend,
    )
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.1, generator=generator)
    # What is compared is the computation: both start from rounded values.
    layer = layer.to(dtype)
    x, grad = torch.randn(2, 512, 128, generator=generator).to(dtype)
    reference = copy.deepcopy(layer).double()
    reference.experts.backend = 'loop'
    expected = _computed(reference, x.double(), grad.double(), 'cpu', False)
    found = _computed(layer.to(device), x, grad, device, autocast)
    tolerance = _TOLERANCES['fp32' if dtype_name == 'fp32' else 'bf16']
    return _checks(
        _check(what, _distance(value, expected[what]), tolerance)
        for what, value in found.items()
    )


def _computed(
    layer: nn.Module,
    x: torch.Tensor,
    grad: torch.Tensor,
    device: str,
    autocast: bool,
) -> dict[str, torch.Tensor]:
    """Output and gradients, by name."""
    x = x.detach().clone().to(device).requires_grad_()
    with torch.autocast(device, torch.bfloat16, enabled=autocast):
        out = layer(x)
    out.backward(grad.to(device, out.dtype))
    of_weights = {name: p.grad for name, p in layer.named_parameters()}
    found = {'output': out, 'd input': x.grad}
    for name, value in of_weights.items():
        found[f"d {name.removeprefix('experts.mlp.')}"] = value
    return found


def _distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, of the largest value expected."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu()
    return ((found - expected).abs().max() / expected.abs().max()).item()


class _WholeModel:
    """Cases of a small model in Composer's trainer.

    Args:
        device: ``cuda`` or ``cpu``.
        folder: For checkpoints.
    """

    def __init__(self, device: str, folder: Path):
        self.device = device
        self.folder = folder
        # Composer has no autocast on a CPU, and its meta initialisation is of
        # CUDA.
        on_gpu = device == 'cuda'
        self.precision = 'amp_bf16' if on_gpu else 'fp32'
        self.init_device = 'meta' if on_gpu else 'mixed'

    def dense(self) -> Path:
        """The dense model that all are upcycled from."""
        path = self.folder / 'dense.pt'
        if not path.exists():
            save_model(new_model(dense_config()), path)
        return path

    def moe(self) -> Path:
        """A mixture whose experts differ: of equal ones, the order is hidden."""
        path = self.folder / 'moe.pt'
        if not path.exists():
            save_model(new_model(moe_config()), path)
        return path

    def run(self, **changes: Any) -> Run:
        return Run(self.device, source=self.dense(), **changes)

    def step_0(self) -> Checks:
        """A converted model, sharded, computes what the dense one did."""
        dense = new_model(dense_config()).to(self.device)
        expected = logits_of(dense, 'fp32')
        checks = []
        for precision in dict.fromkeys(('fp32', self.precision)):
            run = self.run(
                precision=precision,
                fsdp=True,
                init_device=self.init_device,
            )
            found = logits_of(run.trainer.state.model, precision)
            run.close()
            tolerance = _LOSS_TOLERANCES['fp32']
            if precision != 'fp32':
                # Twice what the dense model's own rounding does.
                rounded = logits_of(dense, precision)
                tolerance = 2 * _distance(rounded, expected)
            checks.append(
                _check(
                    f'{self.init_device}, {precision}, logits',
                    _distance(found, expected),
                    tolerance,
                ),
            )
        return _checks(checks)

    def resumed(self) -> Checks:
        """20 steps at once are 10 and 10, across a sharded checkpoint."""
        settings = {'precision': self.precision, 'fsdp': True}
        whole = self.run(
            **settings,
            save_folder=str(self.folder / 'sharded'),
            save_interval='10ba',
        ).train(20)
        second = self.run(
            **settings,
            load_path=str(self.folder / 'sharded' / 'ep0-ba10'),
        ).train(20)
        tail = {name: values[10:] for name, values in whole.items()}
        return self._same(tail, second, self.precision)

    def ddp_and_fsdp(self) -> Checks:
        """One rank's losses do not depend on how it is wrapped."""
        return self._same(
            self.run(ddp=True).train(5),
            self.run(fsdp=True).train(5),
            'fp32',
        )

    def compiled(self) -> Checks:
        """``compile_config: {}`` changes no loss and no monitored value."""
        return self._same(
            self.run(monitored=True).train(3),
            self.run(monitored=True, compile_config={}).train(3),
            'fp32',
        )

    def _same(
        self,
        first: Mapping[str, Sequence[float]],
        second: Mapping[str, Sequence[float]],
        precision: str,
    ) -> Checks:
        """Compares what two runs logged, the largest difference of each kind.

        Differences are of the larger of 1 and the value: what is logged are
        losses, shares and ratios.
        """
        if not first or first.keys() != second.keys():
            raise RuntimeError(
                f'logged: {[*first]} in one run, {[*second]} in the other',
            )
        errors: dict[str, float] = {}
        for name, values in first.items():
            kind = name.split('/')[-1]
            for a, b in zip(values, second[name], strict=True):
                error = abs(a - b) / max(1.0, abs(a))
                errors[kind] = max(errors.get(kind, 0.0), error)
        tolerance = _LOSS_TOLERANCES[precision]
        return _checks(
            _check(f'{precision}, {kind}', error, tolerance)
            for kind, error in errors.items()
        )

    def exported(self) -> Checks:
        """What transformers computes, from ``export-hf``'s folder."""
        from transformers import AutoModelForCausalLM

        from foundry_upcycle.conversion.export_hf import export_hf

        export_hf(str(self.moe()), str(self.folder / 'hf'))
        theirs = AutoModelForCausalLM.from_pretrained(self.folder / 'hf')
        theirs = theirs.to(self.device, torch.float32)
        ours = new_model(moe_config()).to(self.device)
        return _checks([
            _check(
                f'fp32 logits, {type(theirs).__name__}',
                _distance(logits_of(theirs, 'fp32'), logits_of(ours, 'fp32')),
                _LOSS_TOLERANCES['fp32'],
            ),
        ])

    def generated(self) -> Checks:
        """Greedy tokens with and without the cache."""
        model = new_model(moe_config()).to(self.device).eval().model
        prompt = torch.arange(8, device=self.device)[None] + 5
        with_cache, without = (
            model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=32,
                min_new_tokens=32,
                do_sample=False,
                use_cache=use_cache,
            ) for use_cache in (True, False)
        )
        n_wrong = (with_cache != without).sum().item()
        return _checks([_check('tokens that differ, of 32', n_wrong, 0)])

    def evaluated(self) -> Checks:
        """``composer eval.py`` on one task, asked for each of its records."""
        from llmfoundry.command_utils import evaluate
        from omegaconf import OmegaConf

        n_records = 20
        # Foundry copies task files to where it is.
        before = os.getcwd()
        os.chdir(self.folder)
        try:
            (trainer,
            ), _ = evaluate(OmegaConf.create(self._evaluation(n_records)), )
        finally:
            os.chdir(before)
        (metric, ) = trainer.state.eval_metrics['words/0-shot'].values()
        n_missing = n_records - int(metric.total)
        return _checks([_check('records left out', n_missing, 0)])

    def _evaluation(self, n_records: int) -> dict[str, Any]:
        from foundry_upcycle.data.tokenizer import train_tokenizer

        words = [
            ''.join(letters)
            for letters in itertools.product('bcdfghklmn', 'aeiou', 'prst')
        ]
        tokenizer = self.folder / 'tokenizer'
        train_tokenizer([' '.join(words)], 300, tokenizer)
        task = self.folder / 'words.jsonl'
        with task.open('w') as file:
            for word in words[:n_records]:
                record = {'context': f'a {word} is a', 'continuation': word}
                file.write(json.dumps(record) + '\n')
        return {
            'max_seq_len':
            64,
            'seed':
            1,
            'precision':
            self.precision,
            'device_eval_batch_size':
            8,
            'models': [{
                'model_name': 'moe',
                'model': moe_config(init_device='cpu'),
                'tokenizer': {
                    'name': str(tokenizer),
                    'kwargs': {}
                },
                'load_path': str(self.moe()),
            }],
            'icl_tasks': [{
                'label': 'words',
                'dataset_uri': str(task),
                'num_fewshot': [0],
                'icl_task_type': 'language_modeling',
            }],
        }
