"""Installation of occinv. pyproject.toml has the settings of ruff, import-linter, mypy and pytest.

The lower bounds of JAX and the libraries around it are the versions that the tests run with on
Python 3.11; older versions have not been tried. The other bounds are the first releases with wheels
for NumPy 2, which JAX requires.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

VERSION = (Path(__file__).parent / "occinv" / "version.py").read_text()
GCS = ["gcsfs>=2025.3"]  # workdirs and data sets in a bucket: gs://

setup(
    name="occinv",
    version=re.search(r'"([\d.]+)"', VERSION)[1],
    description="Occlusion-invariant and siamese pretraining of vision transformers in JAX.",
    author="The occinv authors",
    license="Apache-2.0",
    python_requires=">=3.11",
    # occinv/configs is a link to configs/. A wheel and a source archive have the files themselves.
    packages=find_packages(include=["occinv", "occinv.*"]),
    package_data={
        "occinv": ["py.typed"],
        "occinv.report": ["*.html", "*.css"],
        "occinv.data": ["*.txt"],
    },
    entry_points={"console_scripts": ["occinv = occinv.cli:main"]},
    install_requires=[
        # JAX and libraries for it.
        "jax>=0.10.2",
        "flax>=0.12.8",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "clu>=0.0.12",
        # Data and configs. tensorflow-datasets needs importlib_resources to read a prepared data
        # set without TensorFlow, but does not declare it.
        "grain>=0.2.18",
        "array_record>=0.8",
        "tensorflow-datasets>=4.9.10",
        "importlib_resources>=6.0",
        "pyarrow>=16.1",
        "etils[epath]>=1.15",
        # TFRecord without TensorFlow: range reads of files and buckets, and the checksum.
        "tensorstore>=0.1.80",
        "google-crc32c>=1.6",
        "ml-collections>=1.1",
        "pydantic>=2.12",
        "annotated-types>=0.7",
        "pillow>=11.0",
        "simplejpeg>=1.9",
        "cykooz-resizer>=4.0; platform_system != 'Linux' or platform_machine != 'aarch64'",
        # The embedded data sets, and k-NN and linear probes.
        "scikit-image>=0.25",
        "scikit-learn>=1.6",
        # Exchange, logs and the report.
        "safetensors>=0.5",
        "tensorboardX>=2.6.2",
        "matplotlib>=3.11",
        "jinja2>=3.1",
        "rich>=13.0",
        "numpy>=2.0",
        "scipy>=1.14",
    ],
    extras_require={
        "bench": ["torch>=2.13"],  # the baseline of benchmarks/train_step.py
        "gpu": ["jax[cuda13]>=0.10.2"],
        "tpu": ["jax[tpu]>=0.10.2", *GCS],
        "gcs": GCS,
        "wandb": ["wandb>=0.31"],  # train.wandb
        "docs": [
            "sphinx>=8.2",
            "myst-nb>=1.3",
            "furo>=2025.7",
            "sphinx-copybutton>=0.5",
        ],
        "dev": [
            *GCS,  # tests/train/test_bucket.py, against an emulator
            "pytest>=9.0",
            "pytest-xdist>=3.8",
            "hypothesis>=6.100",
            "ruff>=0.17",
            "mypy>=2.0",
            "import-linter>=2.5",
            "setuptools>=77",  # tests/test_wheel.py builds the wheel
        ],
    },
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
