"""foundry_upcycle: sparse upcycling as a plugin of LLM Foundry."""

from pathlib import Path

from setuptools import find_packages, setup

# LLM Foundry reads the group `llmfoundry_<registry>` of every installed
# distribution, lazily: nothing below is imported until a YAML names it.
_ENTRY_POINTS = {
    'llmfoundry_models': [
        'upcycled_mpt = '
        'foundry_upcycle.models.upcycled_mpt:ComposerUpcycledMPT',
    ],
    'llmfoundry_ffns': [
        'upcycled_dmoe = foundry_upcycle.models.ffn:build_upcycled_dmoe',
    ],
    'llmfoundry_module_init_fns': [
        'upcycled_dmoe = foundry_upcycle.models.experts:init_experts',
    ],
    'llmfoundry_algorithms': [
        'upcycle_distill = '
        'foundry_upcycle.algorithms.upcycle_distill:UpcycleDistill',
    ],
    'llmfoundry_callbacks': [
        'sparse_upcycling = '
        'foundry_upcycle.callbacks.sparse_upcycling:SparseUpcycling',
        'router_monitor = '
        'foundry_upcycle.callbacks.router_monitor:RouterMonitor',
        'icl_results = '
        'foundry_upcycle.callbacks.icl_results:ICLResults',
        'trim_icl_padding = '
        'foundry_upcycle.callbacks.trim_icl_padding:TrimICLPadding',
        'matmul_precision = '
        'foundry_upcycle.callbacks.matmul_precision:MatmulPrecision',
        'cpu_training = '
        'foundry_upcycle.callbacks.cpu_training:CPUTraining',
    ],
}

setup(
    name='foundry_upcycle',
    version='0.1.0',
    description=__doc__,
    long_description=Path(__file__).with_name('README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=[
        *find_packages(include=['foundry_upcycle*']),
        # The gauntlets, which stand beside the package in a checkout.
        'foundry_upcycle.eval_gauntlet',
    ],
    package_dir={'foundry_upcycle.eval_gauntlet': 'eval_gauntlet'},
    package_data={
        'foundry_upcycle': ['py.typed'],
        'foundry_upcycle.eval_gauntlet': ['*.yaml', '*.txt'],
        'foundry_upcycle.study': ['*.yaml'],
    },
    python_requires='>=3.11',
    install_requires=[
        'llm-foundry>=0.22,<0.23',
        # Foundry 0.22 imports pkg_resources and can use tiktoken, and
        # requires neither.
        'setuptools<81',
        'tiktoken>=0.4',
        'matplotlib>=3.8',
        'markdown-it-py>=3',
        'scipy>=1.11',
        # Foundry's MLflow (2.x) imports what 2.1 no longer has, for its UI and
        # its databases.
        'sqlalchemy<2.1',
        'safetensors>=0.4',
        'typer>=0.19',
        'tqdm>=4.60',
    ],
    extras_require={
        'megablocks': ['llm-foundry[megablocks]>=0.22,<0.23'],
        'gguf': ['gguf>=0.10'],
        'dev': [
            'pytest>=8,<9',
            'pytest-xdist>=3.5',
            'hypothesis>=6.100',
            'yapf==0.43.0',
            'isort>=5.13,<7',
            'ruff>=0.9',
            'yamllint>=1.35',
            'pyright==1.1.256',
            'pre-commit>=3.4,<5',
            # Composer's local object store, which a test downloads from.
            'fasteners',
            # GGUF files, which tests write and read.
            'gguf>=0.10',
        ],
    },
    entry_points={
        **_ENTRY_POINTS,
        'console_scripts': ['foundry-upcycle = foundry_upcycle.cli.app:app'],
    },
)
