"""One measurement, and the bound that conversions promise to keep."""

from dataclasses import dataclass
from typing import Optional

__all__ = ['Sample', 'bound_mib']


@dataclass
class Sample:
    """One run of one job.

    Attributes:
        size: Of the model, as on the command line.
        dtype: Of the output.
        job: As on the command line.
        round: From 0.
        output_bytes: All files of the output.
        group_bytes: The largest group of output tensors of one layer: all
            its experts.
        load: Load average of the last minute, before the job.
        process_seconds: The whole process, imports included.
        seconds: The job without imports.
        cpu_seconds: Those of all its threads.
        imports_mib: Resident memory when all is imported.
        peak_mib: Largest resident memory, mapped pages included.
        cp_seconds: Copying the output, right after; for jobs of ours.
        cp_cpu_seconds: Those of `cp`.
        is_same: Whether the experts were found to be those of ours.
    """
    size: str
    dtype: str
    job: str
    round: int
    output_bytes: int
    group_bytes: int
    load: float
    process_seconds: float
    seconds: float
    cpu_seconds: float
    imports_mib: float
    peak_mib: float
    cp_seconds: Optional[float] = None
    cp_cpu_seconds: Optional[float] = None
    is_same: Optional[bool] = None


def bound_mib(sample: Sample) -> float:
    """1.5 x the largest group of output tensors of one layer, plus 1 GiB."""
    return 1.5 * sample.group_bytes / 2**20 + 1024
