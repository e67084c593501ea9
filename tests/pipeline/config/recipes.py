"""Two recipes, one that says everything and one that says what it must, and how tests read them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hmsa_pipeline.errors import ManifestError
from hmsa_pipeline.pipeline.config.load_recipe import load_recipe
from hmsa_pipeline.pipeline.config.recipe import Recipe

GOOD = """\
version: 1
output: out
arch: hrnet_ocr
data:
  type: shift
  root: streets
  train: train
  validation: val
  limit: 5
  mapping: null
  without_masks: [a/b.jpg]
  allow_unlabelled: true
  cache: made
  labels: autolabel marks
  share: 1
  threshold: 0.5
  weight_by_confidence: true
  boost: {classes: [road, sky], factor: 2}
  until_epoch: null
init:
  checkpoint: [weights/a.pth, weights/b.pth]
  fresh: [ocr.cls_head]
  unused: [head]
  prefix: backbone.
epochs: 3
global_batch: 8
batch_size: 2
seed: 7
precision: bf16
batch_norm: frozen
dropout: 0.1
activation_checkpointing: true
compile: true
workers: 0
augmentation:
  crop: [32, 64]
  scale: [0.5, 1.5]
  long_edge: 99
  flip: 0.25
  color_jitter: 0.5
  gaussian_blur: true
  rand_augment: {operations: 3, magnitude: 30}
sampling:
  class_uniform: 0.75
  tile: 128
loss:
  criterion: image_weighted
  auxiliary: 0
  scales: 0.5
  border_relaxation: 3
  distillation:
    stores: teachers
    dataset: street
    models: [ant, bee]
    target: distribution
    temperature: 2.5
    weight: 0.75
optimizer:
  name: adamw
  lr: 0.125
  momentum: 0.5
  weight_decay: 0
schedule:
  name: poly2
  exponent: 1.5
  step: 2
validation:
  every: 2
  scales: [1.0, 2.0]
  flip: true
checkpoints:
  every: 4
  minutes: 0.5
"""
MINIMAL = """\
version: 1
output: out
data: {type: gta5, root: streets}
epochs: 1
global_batch: 2
batch_size: 2
augmentation: {crop: [8, 8]}
optimizer: {lr: 1}
"""


def write(text: str, path: str = "r.yaml") -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text, encoding="utf-8")
    return Path(path)


def refusal(source: str | Path, **kwargs: Any) -> str:
    """The one line with which a recipe is refused."""
    with pytest.raises(ManifestError) as caught:
        load_recipe(source, **kwargs)
    assert str(caught.value).isprintable(), repr(str(caught.value))
    return str(caught.value)


def said(text: str, *settings: str) -> Recipe:
    """A recipe with ``--set`` of each of the settings."""
    return load_recipe(write(text), settings=settings)
