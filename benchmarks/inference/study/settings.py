"""What a study is: the settings that its YAML gives."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Mapping, Optional, Union

from benchmarks.inference.study.quality import Quality

__all__ = [
    'Engine',
    'Rates',
    'Routing',
    'Shape',
    'Size',
    'Study',
    'Workload',
]


@dataclass(frozen=True)
class Shape:
    """A dense decoder, as Mistral has it: SwiGLU, RMSNorm, untied embeddings.

    Args:
        d_model: Width.
        ffn_hidden_size: Hidden width of the GLU, and of each expert.
        n_layers: Blocks.
        n_heads: Heads of queries.
        kv_n_heads: Heads of keys and values.
        vocab_size: Rows of the embedding.
    """

    d_model: int
    ffn_hidden_size: int
    n_layers: int
    n_heads: int
    kv_n_heads: int
    vocab_size: int


@dataclass(frozen=True)
class Workload:
    """What one point is asked.

    Args:
        input_tokens: Tokens of each prompt, exactly.
        output_tokens: Tokens of each answer, exactly.
        requests: So many at the least.
        warmup_requests: Sent before, and not measured.
        seconds: Requests arrive for so long at the least, so that faster
            arrivals are more requests; 0: all rates have ``requests``.
        prompts: Lines ``{"prompt": [token ids]}``, from which prompts are
            drawn; None: their tokens are random.
        greedy: Whether each token is the likeliest, instead of drawn at
            temperature 1.
    """

    input_tokens: int
    output_tokens: int
    requests: int
    warmup_requests: int
    seconds: float = 0.0
    prompts: Optional[Path] = None
    greedy: bool = False


@dataclass(frozen=True)
class Rates:
    """Arrival rates: ``start``, ``start + step``, ... up to ``stop``.

    Args:
        step: Requests/s between two rates.
        start: The lowest, requests/s.
        stop: None is higher.
        unbounded: Whether there is also a point whose requests all come at
            once.
        fine: How many rates of the grid are measured on each side of the
            knee.
    """

    step: float
    start: float
    stop: float
    unbounded: bool = True
    fine: int = 3

    @property
    def grid(self) -> tuple[float, ...]:
        """All rates, ascending; rounded, as 0.1 + 0.2 isn't 0.3."""
        n = math.floor((self.stop - self.start) / self.step + 1e-9) + 1
        return tuple(round(self.start + k * self.step, 9) for k in range(n))


@dataclass(frozen=True)
class Engine:
    """How vLLM is started; None: as it chooses.

    Args:
        dtype: Of weights and activations.
        max_model_len: Tokens of the longest sequence.
        enforce_eager: Whether nothing is compiled.
        tensor_parallel_size: Devices.
        kv_cache_gib: Memory for keys and values, GiB.
        max_num_seqs: Requests in a batch, at the most.
        max_num_batched_tokens: Tokens in a batch, at the most.
    """

    dtype: str
    max_model_len: int
    enforce_eager: bool
    tensor_parallel_size: int = 1
    kv_cache_gib: Optional[float] = None
    max_num_seqs: Optional[int] = None
    max_num_batched_tokens: Optional[int] = None


@dataclass(frozen=True)
class Routing:
    """How tokens find their experts where weights are dummies.

    Args:
        kind: ``uniform``, ``zipf`` or ``recorded``.
        exponent: Of zipf: expert e gets a share of (e + 1)^-exponent.
        file: Of recorded: JSON ``{"shares": [[a share an expert] a layer]}``.
    """

    kind: str
    exponent: Optional[float] = None
    file: Optional[Path] = None


@dataclass(frozen=True)
class Size:
    """A dense model and its mixtures of experts.

    Args:
        name: Its name in tables.
        dense: A shape, or the folder of real weights.
        moe: Numbers of experts in the dense model's shape, or the folder of
            real weights.
        workload: The study's, with what this size changes.
        rates: Likewise.
        engine: Likewise.
        others: Name -> folder of more real weights, dense or mixtures, that
            are served as the study's engine is.
        quality: What is measured of answers; None: nothing.
    """

    name: str
    dense: Union[Shape, Path]
    moe: Union[tuple[int, ...], Path]
    workload: Workload
    rates: Rates
    engine: Engine
    others: Mapping[str, Path] = field(default_factory=dict, hash=False)
    quality: Optional[Quality] = None


@dataclass(frozen=True)
class Study:
    """A comparison of dense models and mixtures of experts as they are served.

    Args:
        name: Its name in the report.
        folder: Where its points and its report go.
        seed: Of prompts, arrivals and simulated routing.
        runs: How often each rate is measured, each time with other prompts.
        load_format: ``dummy`` or ``real`` weights.
        routing: Of dummy weights; None: the model's routers decide.
        top_k: Experts a token, of the mixtures.
        variants: Names of overlays of the engine, see variants.py.
        sizes: The models.
    """

    name: str
    folder: Path
    seed: int
    runs: int
    load_format: str
    routing: Optional[Routing]
    top_k: tuple[int, ...]
    variants: tuple[str, ...]
    sizes: tuple[Size, ...]
