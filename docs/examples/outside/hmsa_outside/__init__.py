"""An architecture and a dataset for hmsa-pipeline, from outside of it."""

from pathlib import Path

TOYTOWN = Path(__file__).with_name("toytown.yaml")
