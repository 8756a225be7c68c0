"""What a study measures of answers: its section ``quality``, checked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from benchmarks.inference.engine.lm_eval import Tasks, task_files
from benchmarks.inference.errors import HarnessError
from benchmarks.inference.study.section import Section

__all__ = ['Greedy', 'Named', 'Quality', 'read_quality']


@dataclass(frozen=True)
class Named:
    """A model of a size, as it is served without a variant.

    Args:
        model: ``dense``, ``moe`` or a name of the size's ``others``.
        top_k: Of a mixture; None: the highest of the study.
    """

    model: str
    top_k: Optional[int] = None


@dataclass(frozen=True)
class Greedy:
    """Answers whose tokens are compared with the reference's.

    Args:
        prompts: The beginnings of so many documents.
        input_tokens: Of each prompt.
        output_tokens: Of each answer.
    """

    prompts: int = 32
    input_tokens: int = 32
    output_tokens: int = 32


@dataclass(frozen=True)
class Quality:
    """What is measured of the answers of each server.

    Args:
        texts: Held-out text as token ids, see engine/texts.py.
        greedy: Answers that are compared.
        reference: What answers, tokens and losses are compared with.
        baseline: From where a gain is counted: the gain of the reference over
            it is 1.
        tasks: None: none.
    """

    texts: Path
    greedy: Greedy
    reference: Named
    baseline: Named
    tasks: Optional[Tasks]


def read_quality(section: Section, is_real: bool) -> Optional[Quality]:
    """The section ``quality`` of a size; None where there is none.

    Args:
        section: With what the size changes in it.
        is_real: Whether weights are.

    Raises:
        HarnessError: It lacks a key, or has one that is unknown or can't be
            used.
    """
    if not section.content:
        return None
    if not is_real:
        raise HarnessError(
            section.prefix,
            section.content,
            'dummy weights have no quality.',
            'remove it, or set load_format: real.',
        )
    quality = Quality(
        texts=Path(section.take('texts', str)),
        greedy=_greedy(section.inside('greedy')),
        reference=_named(section.inside('reference'), 'moe'),
        baseline=_named(section.inside('baseline'), 'dense'),
        tasks=_tasks(section.inside('tasks')),
    )
    section.refuse_others()
    return quality


def _greedy(section: Section) -> Greedy:
    greedy = Greedy(
        prompts=section.number('prompts', int, 1, Greedy.prompts),
        input_tokens=section.number(
            'input_tokens', int, 1, Greedy.input_tokens
        ),
        output_tokens=section.number(
            'output_tokens',
            int,
            1,
            Greedy.output_tokens,
        ),
    )
    section.refuse_others()
    return greedy


def _named(section: Section, default: str) -> Named:
    named = Named(
        model=section.take('model', str, default),
        top_k=section.number('top_k', int, 1, None),
    )
    section.refuse_others()
    return named


def _tasks(section: Section) -> Optional[Tasks]:
    if not section.content:
        return None
    tasks = Tasks(
        names=section.distinct('names', str),
        data=Path(section.take('data', str)),
        records=section.number('records', int, 1, None),
        python=Path(section.take('python', str, '.venv-lm-eval/bin/python'), ),
    )
    section.refuse_others()
    for name in tasks.names:
        if name not in task_files():
            raise HarnessError(
                section.key('names'),
                name,
                'there is no such task.',
                f"name some of {', '.join(task_files())}.",
            )
    for name, records in tasks.files.items():
        if not records.is_file():
            raise HarnessError(
                section.key('data'),
                str(tasks.data),
                f'it has no {records.relative_to(tasks.data)}, the records of '
                f'{name}.',
                'name the folder that has it, such as what `foundry-upcycle '
                'gauntlet prepare` wrote.',
            )
    return tasks
