"""Cases of part 1 that need a whole model."""

import itertools
import json
import os
from pathlib import Path
from typing import Any, Mapping, Sequence

import torch

from benchmarks.gpu.checks import check, distance, record_of
from benchmarks.gpu.models import (
    Run,
    dense_config,
    logits_of,
    moe_config,
    new_model,
    save_model,
)

__all__ = ['WholeModel']

# What the order of additions may change in the losses of some steps.
_TOLERANCES = {'fp32': 1e-4, 'amp_bf16': 2e-3}


class WholeModel:
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

    def step_0(self) -> dict[str, Any]:
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
            tolerance = _TOLERANCES['fp32']
            if precision != 'fp32':
                # Twice what the dense model's own rounding does.
                rounded = logits_of(dense, precision)
                tolerance = 2 * distance(rounded, expected)
            checks.append(
                check(
                    f'{self.init_device}, {precision}, logits',
                    distance(found, expected),
                    tolerance,
                ),
            )
        return record_of(checks)

    def resumed(self) -> dict[str, Any]:
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

    def ddp_and_fsdp(self) -> dict[str, Any]:
        """One rank's losses do not depend on how it is wrapped."""
        return self._same(
            self.run(ddp=True).train(5),
            self.run(fsdp=True).train(5),
            'fp32',
        )

    def compiled(self) -> dict[str, Any]:
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
    ) -> dict[str, Any]:
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
        tolerance = _TOLERANCES[precision]
        return record_of(
            check(f'{precision}, {kind}', error, tolerance)
            for kind, error in errors.items()
        )

    def exported(self) -> dict[str, Any]:
        """What transformers computes, from ``export-hf``'s folder."""
        from transformers import AutoModelForCausalLM

        from foundry_upcycle.conversion.export_hf import export_hf

        export_hf(str(self.moe()), str(self.folder / 'hf'))
        theirs = AutoModelForCausalLM.from_pretrained(self.folder / 'hf')
        theirs = theirs.to(self.device, torch.float32)
        ours = new_model(moe_config()).to(self.device)
        return record_of([
            check(
                f'fp32 logits, {type(theirs).__name__}',
                distance(logits_of(theirs, 'fp32'), logits_of(ours, 'fp32')),
                _TOLERANCES['fp32'],
            ),
        ])

    def generated(self) -> dict[str, Any]:
        """Each greedy token's logits with and without the cache."""
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
                return_dict_in_generate=True,
                output_logits=True,
            ).logits for use_cache in (True, False)
        )
        error = distance(torch.stack(with_cache), torch.stack(without))
        tolerance = _TOLERANCES['fp32']
        return record_of([check('fp32 logits, 32 tokens', error, tolerance)])

    def evaluated(self) -> dict[str, Any]:
        """``composer eval.py`` on one task, asked for each of its records."""
        from llmfoundry.command_utils import evaluate
        from omegaconf import OmegaConf

        n_records = 20
        # Foundry copies task files to where it is.
        before = os.getcwd()
        os.chdir(self.folder)
        try:
            config = OmegaConf.create(self._evaluation(n_records))
            trainers, _ = evaluate(config)
        finally:
            os.chdir(before)
        metrics = trainers[0].state.eval_metrics['words/0-shot']
        (metric, ) = metrics.values()
        n_missing = n_records - int(metric.total)
        return record_of([check('records left out', n_missing, 0)])

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
