"""Every option of every command, read off the command line itself, has a row here that says what shows its effect."""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import typer
import yaml
from hmsa_pipeline.cli import app
from typer.core import TyperGroup

from .bench import Bench, Result, run
from .conftest import plain_cpu

TESTS = Path(__file__).parents[1]


@dataclass(frozen=True)
class Changes:
    """Words that, put behind ``base`` (the command's own if None), change what is said, written or returned."""

    words: str
    base: str | None = None


@dataclass(frozen=True)
class Refused:
    """A command line on which the option would change nothing, and is refused."""

    words: str


@dataclass(frozen=True)
class Held:
    """A test elsewhere, ``file::function``, that gives the option and sees what it does."""

    test: str


Row = Changes | Refused | Held

# What a row's words are put behind. {m} is a manifest whose paths are plain, {away} one whose paths hold variables.
BASES = {
    "dump": "--manifest {m} --dry-run",
    "predict": "--manifest {m} --dry-run",
    "ensemble": "--manifest {m} --dry-run",
    "evaluate": "--manifest {m}",
    "autolabel": "--manifest {m} --datasets garden --write new --allow-empty",
    "calibrate": "--manifest {m} --datasets city --write new.yaml --pixels 2000",
    "search": "--manifest {m} --datasets city --folds 2 --bootstrap 100",
    "render": "--manifest {m} --datasets city --write new --limit 1",
    "report": "--manifest {m} --datasets city --write new --limit 1 --no-members",
    "submit": "--manifest {m} --datasets city --format cityscapes --output new.zip",
    "status": "--manifest {m}",
    "verify": "--manifest {m}",
    "import-logits": "--manifest {ext} --model dog --dataset garden --output new {logits}",
    "train": "--dataset gta5 --data-root {data} --init random --arch hrnet_tiny_ocr_mscale --crop-size 32x64 "
    "--global-batch 2 --batch-size 2 --workers 0 --output new --dry-run",
    "manifest show": "--manifest {m}",
    "manifest check": "--manifest {m}",
    "cluster slurm": "--manifest {m} --gpus-per-node 2",
    "cluster ssh": "--manifest {m} --host far --gpus-per-host 2",
    "cluster kubernetes": "--manifest {m} --image hmsa:1 --claim data --mount / --gpus-per-node 2",
    "datasets list": "gta5",
    "datasets check": "gta5 --data-root {data} --workers 1 --output new",
    "datasets draw": "gta5 --train 1 --val 1 --size 32x64",
}

AWAY = {"--data-root": "--manifest {away} --assets {root}", "--assets": "--manifest {away} --data-root {data}"}


def common(command: str, *options: str) -> dict[tuple[str, str], Row]:
    """Rows that are alike for commands that read a manifest."""
    rows: dict[str, Row] = {
        "--manifest": Changes("--manifest {other}"),
        "--output": Changes("--output elsewhere"),
        "--models": Changes("--models ant"),
        "--datasets": Changes("--datasets garden"),
        "--json": Changes("--json new.json"),
        "--data-root": Changes("--data-root {data}", AWAY["--data-root"]),
        "--assets": Changes("--assets {root}", AWAY["--assets"]),
        "--limit": Changes("--limit 1"),
    }
    return {(command, option): rows[option] for option in options}


JOBS = {kind: BASES[f"cluster {kind}"].partition(" {m} ")[2] for kind in ("slurm", "ssh", "kubernetes")}
NAMED = ("--manifest", "--output", "--models", "--datasets", "--json")
FOLDERS = ("--data-root", "--assets")


def refused(command: str, *more: str) -> dict[tuple[str, str], Row]:
    """Rows of options that are refused where no path of the manifest holds their variable."""
    return {(command, flag): Refused(f"{command} {BASES[command]} {' '.join(more)} {flag} .") for flag in FOLDERS}


ROWS: dict[tuple[str, str], Row] = {
    **common("dump", *NAMED, "--limit"),
    ("dump", "--data-root"): Changes("--data-root {data}", f"{AWAY['--data-root']} --dry-run"),
    ("dump", "--assets"): Changes("--assets {root}", f"{AWAY['--assets']} --dry-run"),
    ("dump", "--limit"): Changes("--limit 1", "--manifest {m} --dry-run --output elsewhere"),
    ("dump", "--device"): Changes("--device cuda:99"),
    ("dump", "--precision"): Changes("--precision bf16"),
    ("dump", "--workers"): Held("cli/test_workers.py::test_a_crew_that_cannot_be_is_refused"),
    ("dump", "--scheduler"): Held("cli/test_cluster.py::test_a_running_cluster_makes_what_one_process_makes"),
    ("dump", "--image-timeout"): Held(
        "cli/test_workers.py::test_a_worker_that_hangs_is_stopped_and_its_image_listed"
    ),
    ("dump", "--patience"): Held("cli/test_cluster.py::test_a_scheduler_without_workers_for_us_is_said_so"),
    ("dump", "--wait"): Held("cli/test_waiting.py::test_dump_waits_for_the_run_that_holds_its_output"),
    ("dump", "--overwrite"): Changes("--overwrite"),
    ("dump", "--trust"): Held("cli/test_members_of_files.py::test_code_is_loaded_with_trust_alone"),
    ("dump", "--dry-run"): Changes("--dry-run", "--manifest {m}"),
    **common("predict", *NAMED, "--limit"),
    ("predict", "--data-root"): Changes("--data-root {data}", f"{AWAY['--data-root']} --dry-run"),
    ("predict", "--assets"): Changes("--assets {root}", f"{AWAY['--assets']} --dry-run"),
    ("predict", "--keep"): Changes("--keep ant"),
    ("predict", "--limit"): Changes("--limit 1", "--manifest {m} --dry-run --output elsewhere"),
    ("predict", "--device"): Changes("--device cuda:99"),
    ("predict", "--precision"): Changes("--precision bf16"),
    ("predict", "--label"): Changes("--label max-softmax"),
    ("predict", "--confidence"): Changes("--confidence entropy"),
    ("predict", "--workers"): Held("cli/test_predict.py::test_processes_of_their_own_make_the_same"),
    ("predict", "--scheduler"): Changes("--scheduler nowhere.json"),
    ("predict", "--image-timeout"): Refused("predict --manifest {m} --workers 0 --image-timeout 5"),
    ("predict", "--patience"): Refused("predict --manifest {m} --patience 5"),
    ("predict", "--wait"): Held("cli/test_waiting.py::test_predict_waits_for_the_run_that_holds_its_output"),
    ("predict", "--overwrite"): Changes("--overwrite"),
    ("predict", "--trust"): Held("cli/test_members_of_files.py::test_code_is_loaded_with_trust_alone"),
    ("predict", "--dry-run"): Changes("--dry-run", "--manifest {m}"),
    **common("ensemble", *NAMED, "--limit"),
    **refused("ensemble"),
    ("ensemble", "--limit"): Changes("--limit 1"),
    ("ensemble", "--label"): Changes("--label max-softmax"),
    ("ensemble", "--confidence"): Changes("--confidence entropy"),
    ("ensemble", "--allow-missing"): Held(
        "cli/test_ensemble.py::test_allow_missing_fuses_what_is_there_and_later_redoes_it"
    ),
    ("ensemble", "--workers"): Held("cli/test_workers.py::test_two_workers_make_what_one_process_makes"),
    ("ensemble", "--scheduler"): Held("cli/test_cluster.py::test_a_running_cluster_makes_what_one_process_makes"),
    ("ensemble", "--image-timeout"): Refused("ensemble --manifest {m} --workers 0 --image-timeout 5"),
    ("ensemble", "--patience"): Refused("ensemble --manifest {m} --patience 5"),
    ("ensemble", "--wait"): Held("cli/test_waiting.py::test_ensemble_waits_for_the_run_that_holds_its_output"),
    ("ensemble", "--overwrite"): Changes("--overwrite"),
    ("ensemble", "--dry-run"): Changes("--dry-run", "--manifest {m}"),
    **common("evaluate", *NAMED, "--limit"),
    **common("evaluate", "--data-root"),
    ("evaluate", "--assets"): Refused("evaluate --manifest {m} --assets ."),
    ("evaluate", "--models"): Changes("--models ant", "--manifest {m} --per-model"),
    ("evaluate", "--predictions"): Changes("--predictions {root}"),
    ("evaluate", "--per-model"): Changes("--per-model"),
    ("evaluate", "--leave-one-out"): Changes("--leave-one-out"),
    ("evaluate", "--processes"): Held("cli/test_evaluate.py::test_processes_count_the_same"),
    ("evaluate", "--average"): Changes("--average labelled"),
    ("evaluate", "--csv"): Changes("--csv new.csv"),
    ("evaluate", "--ground-truth"): Held("cli/test_bravo.py::test_the_manifests_own_predictions_are_taken"),
    ("evaluate", "--samples"): Held("cli/test_bravo.py::test_the_manifests_own_predictions_are_taken"),
    ("evaluate", "--submission"): Held("cli/test_bravo.py::test_the_figures_are_the_toolkits"),
    ("evaluate", "--figures"): Changes("--figures all"),
    ("evaluate", "--confusion"): Changes("--confusion new"),
    ("evaluate", "--bootstrap"): Changes("--bootstrap 40"),
    ("evaluate", "--seed"): Held("cli/test_intervals.py::test_every_figure_has_an_interval_around_it"),
    ("evaluate", "--compare"): Held("cli/test_intervals.py::test_two_subjects_are_compared_on_the_same_images"),
    ("evaluate", "--confidences"): Changes("--confidences margin"),
    ("evaluate", "--components"): Held(
        "cli/test_detection.py::test_components_are_those_of_the_slow_version_for_each_track"
    ),
    ("evaluate", "--ood-datasets"): Held(
        "cli/test_detection.py::test_whole_images_are_told_apart_by_aggregates_of_their_uncertainty"
    ),
    ("evaluate", "--aggregate"): Held(
        "cli/test_detection.py::test_whole_images_are_told_apart_by_aggregates_of_their_uncertainty"
    ),
    ("evaluate", "--allow-unlabelled"): Held(
        "cli/test_unlabelled.py::test_images_without_masks_are_scored_around_where_that_is_said"
    ),
    **common("autolabel", "--manifest", "--output", "--models", "--json", "--limit"),
    **refused("autolabel"),
    ("autolabel", "--datasets"): Changes("--datasets city", "--manifest {m} --write new --allow-empty"),
    ("autolabel", "--write"): Changes("--write other"),
    ("autolabel", "--threshold"): Changes("--threshold 0.01"),
    ("autolabel", "--precision"): Changes("--precision 0.01 --fit city"),
    ("autolabel", "--keep"): Changes("--keep 0.5"),
    ("autolabel", "--fit"): Changes("--fit city"),
    ("autolabel", "--agree"): Changes("--agree 2", f"{BASES['autolabel']} --keep 1"),
    ("autolabel", "--erode"): Changes("--erode 1"),
    ("autolabel", "--format"): Changes("--format cityscapes"),
    ("autolabel", "--respect-coarse"): Changes(
        "--respect-coarse keep", "--manifest {m} --datasets city --write new --allow-empty"
    ),
    ("autolabel", "--allow-empty"): Held("cli/test_autolabel_refusals.py::test_a_threshold_that_keeps_nothing"),
    ("autolabel", "--label"): Changes("--label max-softmax"),
    ("autolabel", "--confidence"): Changes("--confidence entropy"),
    ("autolabel", "--workers"): Held("cli/test_autolabel.py::test_two_workers_make_what_one_process_makes"),
    ("autolabel", "--scheduler"): Changes("--scheduler nowhere.json"),
    ("autolabel", "--image-timeout"): Refused("autolabel --manifest {m} --write new --workers 0 --image-timeout 5"),
    ("autolabel", "--patience"): Refused("autolabel --manifest {m} --write new --patience 5"),
    ("autolabel", "--wait"): Held("cli/test_waiting.py::test_autolabel_waits_for_the_run_that_holds_its_output"),
    ("autolabel", "--overwrite"): Held(
        "cli/test_autolabel.py::test_labels_of_other_settings_are_made_again_if_asked"
    ),
    ("autolabel", "--dry-run"): Changes("--dry-run"),
    **common("search", "--manifest", "--output", "--models", "--datasets", "--json", "--limit"),
    **refused("search"),
    ("search", "--by"): Changes("--by ece"),
    ("search", "--labels"): Changes("--labels max-softmax"),
    ("search", "--confidences"): Changes("--confidences entropy"),
    ("search", "--weights"): Changes("--weights"),
    ("search", "--most"): Changes("--most 1"),
    ("search", "--greedy"): Changes("--greedy"),
    ("search", "--folds"): Changes("--folds 3"),
    ("search", "--bootstrap"): Changes("--bootstrap 101"),
    ("search", "--seed"): Changes("--seed 1"),
    ("search", "--cost"): Changes("--cost seconds"),
    ("search", "--average"): Changes("--average labelled"),
    ("search", "--allow-unlabelled"): Held(
        "cli/test_search.py::test_images_without_masks_are_left_out_where_that_is_said"
    ),
    ("search", "--ground-truth"): Held(
        "cli/test_search_bravo.py::test_every_combination_has_the_figures_of_evaluate"
    ),
    ("search", "--samples"): Held("cli/test_search_bravo.py::test_every_combination_has_the_figures_of_evaluate"),
    ("search", "--processes"): Held("cli/test_search.py::test_processes_and_seeds"),
    ("search", "--csv"): Changes("--csv new.csv"),
    ("search", "--plot"): Changes("--plot new.svg"),
    ("search", "--write"): Changes("--write new.yaml"),
    ("search", "--overwrite"): Held("cli/test_search.py::test_a_file_is_replaced_only_if_that_is_asked_for"),
    **common("calibrate", "--manifest", "--output", "--models", "--datasets", "--json", "--limit"),
    **refused("calibrate"),
    ("calibrate", "--write"): Changes("--write other.yaml"),
    ("calibrate", "--weights"): Changes("--weights"),
    ("calibrate", "--pixels"): Changes("--pixels 1500"),
    ("calibrate", "--seed"): Changes("--seed 1"),
    ("calibrate", "--average"): Changes("--average labelled"),
    ("calibrate", "--method"): Changes("--method class-conditional"),
    ("calibrate", "--per-dataset"): Changes("--per-dataset"),
    ("calibrate", "--sets"): Changes("--sets 0.8"),
    ("calibrate", "--max-logits"): Changes("--max-logits", "--manifest {m} --datasets city --write new.yaml"),
    ("calibrate", "--common-threshold"): Held("cli/test_prediction_sets.py::test_one_threshold_for_all_classes"),
    **{
        ("export", flag): Refused(f"export --manifest {{m}} --models ant --write new.onnx {flag} .")
        for flag in FOLDERS
    },
    **{
        ("export", flag): Held(f"cli/test_export.py::{test}")
        for flag, test in {
            "--manifest": "test_the_figures_are_those_of_the_file",
            "--models": "test_the_figures_are_those_of_the_file",
            "--write": "test_the_figures_are_those_of_the_file",
            "--format": "test_wrong_input_is_refused_before_the_network_is_built",
            "--result": "test_the_figures_are_those_of_the_file",
            "--overwrite": "test_a_graph_that_gives_something_else_is_not_kept",
            "--json": "test_the_figures_are_those_of_the_file",
        }.items()
    },
    **common("render", "--manifest", "--output", "--datasets", "--json"),
    **refused("render"),
    ("render", "--write"): Changes("--write other"),
    ("render", "--kinds"): Changes("--kinds colour"),
    ("render", "--opacity"): Changes("--opacity 0.9"),
    ("render", "--width"): Changes("--width 40"),
    ("render", "--limit"): Changes("--limit 2"),
    ("render", "--models"): Held("cli/test_render_scales.py::test_only_the_chosen_members_run"),
    ("render", "--device"): Held("cli/test_render_scales.py::test_a_device_that_is_not_there_is_refused"),
    **common("report", "--manifest", "--output", "--datasets"),
    ("report", "--json"): Held("cli/test_report.py::test_without_members"),
    **refused("report"),
    ("report", "--write"): Changes("--write other"),
    ("report", "--models"): Held("cli/test_report.py::test_one_member_has_nobody_to_contradict"),
    ("report", "--no-members"): Held("cli/test_report.py::test_without_members"),
    ("report", "--width"): Held("cli/test_report.py::test_large_pictures_are_reduced"),
    ("report", "--limit"): Changes("--limit 2"),
    ("report", "--processes"): Held("cli/test_report.py::test_several_processes_make_the_same"),
    ("report", "--ground-truth"): Held("cli/test_bravo.py::test_the_report_of_bravo_takes_the_ground_truth"),
    ("report", "--confidences"): Held(
        "cli/test_report.py::test_uncertainty_by_the_chosen_functions_lies_over_the_photographs"
    ),
    ("report", "--components"): Held(
        "cli/test_detection.py::test_the_report_shows_the_components_that_evaluate_counts"
    ),
    ("report", "--average"): Changes("--average labelled"),
    **common("submit", "--manifest", "--json"),
    **refused("submit"),
    ("submit", "--output"): Changes("--output other.zip"),
    ("submit", "--format"): Changes("--format wilddash"),
    ("submit", "--datasets"): Changes("--datasets city", "--manifest {m} --format cityscapes --output new.zip"),
    ("submit", "--method"): Held(
        "cli/test_submit.py::test_scores_lie_where_the_toolkit_reads_them_and_rank_pixels_as_evaluate_does"
    ),
    ("submit", "--samples"): Held("cli/test_bravo.py::test_the_manifests_own_predictions_are_taken"),
    ("submit", "--predictions"): Changes("--predictions {root}"),
    ("submit", "--check"): Changes("--check {photo}", "--manifest {m} --datasets city --format cityscapes"),
    **common("status", *NAMED),
    ("status", "--watch"): Held("cli/test_status_watch.py::test_a_complete_run_is_said_once"),
    ("status", "SECONDS"): Held("cli/test_status_watch.py::test_seconds_pass_from_one_look_to_the_next"),
    **refused("status"),
    **common("verify", *NAMED),
    **refused("verify"),
    ("verify", "--repair"): Held("cli/test_status_verify.py::test_damage_is_listed_moved_aside_and_made_again"),
    ("import-logits", "FOLDER"): Changes("{data}", "--manifest {ext} --model dog --dataset garden --output new"),
    ("import-logits", "--model"): Changes("--model ant"),
    ("import-logits", "--dataset"): Changes("--dataset city"),
    ("import-logits", "--kind"): Held("cli/test_import_logits.py::test_probabilities_are_believed_as_they_are"),
    **common("import-logits", "--manifest", "--output", "--limit", "--json"),
    **refused("import-logits"),
    ("import-logits", "--channels"): Changes("--channels 18,0-17"),
    ("import-logits", "--overwrite"): Held(
        "cli/test_import_logits.py::test_another_source_is_refused_unless_the_store_is_overwritten"
    ),
    ("train", "--dataset"): Changes("--dataset idd"),
    ("train", "--manifest"): Held("cli/test_train_wrong_input.py::test_a_recipe_is_named_once"),
    ("train", "--output"): Changes("--output elsewhere"),
    ("train", "--data-root"): Changes("--data-root {root}"),
    ("train", "--root"): Changes("--root {data}/GTA5", "--dataset gta5 --init random --output new --dry-run"),
    ("train", "--assets"): Changes("--assets {root}", "--dataset gta5 --data-root {data} --output new --dry-run"),
    ("train", "--cache"): Held("cli/test_train_wrong_input.py::test_a_cache_that_is_a_file"),
    ("train", "--limit"): Changes("--limit 1"),
    ("train", "--device"): Changes("--device cuda:99"),
    ("train", "--gpus"): Changes("--gpus 2 --device cpu"),
    ("train", "--resume"): Held("cli/test_train_wrong_input.py::test_a_run_that_was_begun_with_another_recipe"),
    ("train", "--overwrite"): Held("cli/test_train.py::test_overwrite_begins_afresh"),
    ("train", "--init"): Changes("--init {m}"),
    ("train", "--arch"): Changes("--arch hrnet_ocr_mscale"),
    ("train", "--epochs"): Changes("--epochs 3"),
    ("train", "--global-batch"): Changes("--global-batch 4"),
    ("train", "--batch-size"): Changes("--batch-size 1"),
    ("train", "--lr"): Held("cli/test_train_wrong_input.py::test_a_learning_rate_that_is_far_too_high"),
    ("train", "--optimizer"): Held("cli/test_train.py::test_other_choices_of_a_recipe_train_as_well"),
    ("train", "--crop-size"): Changes("--crop-size 64x64"),
    ("train", "--loss"): Held("cli/test_train.py::test_other_choices_of_a_recipe_train_as_well"),
    ("train", "--seed"): Held("cli/test_train.py::test_the_same_seed_gives_the_same_network_and_another_one_another"),
    ("train", "--precision"): Changes("--precision bf16"),
    ("train", "--batch-norm"): Held("cli/test_train.py::test_other_choices_of_a_recipe_train_as_well"),
    ("train", "--activation-checkpointing"): Held("cli/test_train.py::test_checkpointed_activations_change_nothing"),
    ("train", "--compile"): Held("cli/test_train.py::test_a_compiled_network_learns_the_same"),
    ("train", "--workers"): Held("cli/test_train.py::test_worker_processes_change_nothing"),
    ("train", "--set"): Changes("--set epochs=3"),
    ("train", "--allow-unlabelled"): Held(
        "cli/test_unlabelled.py::test_training_leaves_images_without_masks_out_where_that_is_said"
    ),
    ("train", "--dry-run"): Held("cli/test_train.py::test_a_dry_run_says_what_would_be_done_and_writes_nothing"),
    ("train", "--json"): Changes("--json new.json"),
    ("demo", "--output"): Held("cli/test_demo.py::test_a_folder_that_cannot_be_made_is_refused_in_one_line"),
    ("demo", "--seed"): Held("cli/test_demo.py::test_another_seed_is_another_demo"),
    ("demo", "--quick"): Held("cli/test_demo.py::test_another_seed_is_another_demo"),
    ("demo", "--train"): Held("cli/test_demo.py::test_members_are_trained_first_and_one_that_fails_is_named"),
    **common("manifest show", *NAMED, *FOLDERS),
    **common("manifest check", *NAMED, *FOLDERS),
    ("manifest check", "--trust"): Held("cli/test_members_of_files.py::test_code_is_loaded_with_trust_alone"),
    ("manifest check", "--output"): Changes("--output {m}/below"),
    **{
        (f"cluster {kind}", option): row
        for kind in ("slurm", "ssh", "kubernetes")
        for option, row in {
            **{name: row for (_, name), row in common("", *NAMED).items()},
            "--data-root": Changes("--data-root {data}", f"{AWAY['--data-root']} {JOBS[kind]}"),
            "--assets": Changes("--assets {root}", f"{AWAY['--assets']} {JOBS[kind]}"),
            "--device": Changes("--device cpu"),
            "--cpus-per-worker": Changes("--cpus-per-worker 3"),
            "--run": Changes("--run predict"),
        }.items()
    },
    **{
        (f"cluster {kind}", option): row
        for kind in ("slurm", "ssh")
        for option, row in {
            "--setup": Changes("--setup true"),
            "--interface": Changes("--interface ib0"),
            "--folder": Changes("--folder {root}"),
            "--certificates": Changes("--certificates nowhere"),
        }.items()
    },
    ("cluster slurm", "--nodes"): Changes("--nodes 2"),
    ("cluster slurm", "--gpus-per-node"): Changes("--gpus-per-node 4"),
    ("cluster slurm", "--gpu-type"): Changes("--gpu-type a100"),
    ("cluster slurm", "--workers-per-node"): Changes(
        "--workers-per-node 3", "--manifest {m} --device cpu --workers-per-node 2"
    ),
    ("cluster slurm", "--memory"): Changes("--memory 64G"),
    ("cluster slurm", "--time"): Changes("--time 2:00:00"),
    ("cluster slurm", "--grace"): Changes("--grace 120"),
    ("cluster slurm", "--max-requeues"): Changes("--max-requeues 3"),
    ("cluster slurm", "--partition"): Changes("--partition gpu"),
    ("cluster slurm", "--account"): Changes("--account lab"),
    ("cluster slurm", "--qos"): Changes("--qos high"),
    ("cluster slurm", "--constraint"): Changes("--constraint a100|h100"),
    ("cluster slurm", "--sbatch"): Changes("--sbatch --exclusive"),
    ("cluster slurm", "--job-name"): Changes("--job-name mine"),
    ("cluster slurm", "--submit"): Held("cli/test_cluster_command.py::test_a_job_is_submitted_and_its_number_said"),
    ("cluster ssh", "--host"): Changes("--host near"),
    ("cluster ssh", "--gpus-per-host"): Changes("--gpus-per-host 3"),
    ("cluster ssh", "--workers-per-host"): Changes(
        "--workers-per-host 3", "--manifest {m} --host far --device cpu --workers-per-host 2"
    ),
    ("cluster kubernetes", "--image"): Changes("--image hmsa:2"),
    ("cluster kubernetes", "--claim"): Changes("--claim other"),
    ("cluster kubernetes", "--mount"): Changes("--mount {root}"),
    ("cluster kubernetes", "--nodes"): Changes("--nodes 2"),
    ("cluster kubernetes", "--gpus-per-node"): Changes("--gpus-per-node 3"),
    ("cluster kubernetes", "--workers-per-node"): Changes(
        "--workers-per-node 3",
        "--manifest {m} --image hmsa:1 --claim data --mount / --device cpu --workers-per-node 2",
    ),
    ("cluster kubernetes", "--memory"): Changes("--memory 32Gi"),
    ("cluster kubernetes", "--name"): Changes("--name mine"),
    ("cluster kubernetes", "--namespace"): Changes("--namespace lab"),
    ("cluster kubernetes", "--retries"): Changes("--retries 1"),
    ("cluster certificates", "DIR"): Changes("keys", ""),
    ("datasets list", "NAME"): Changes("gta5", ""),
    ("datasets list", "--json"): Changes("--json new.json"),
    ("datasets check", "NAME"): Changes("gta5", "--data-root {data} --output new"),
    ("datasets check", "--data-root"): Changes("--data-root {root}"),
    ("datasets check", "--root"): Changes("--root {data}/GTA5", "gta5 --output new"),
    ("datasets check", "--split"): Held("cli/test_datasets.py::test_a_split_and_a_limit"),
    ("datasets check", "--limit"): Held("cli/test_datasets.py::test_a_split_and_a_limit"),
    ("datasets check", "--output"): Changes("--output {m}/below"),
    ("datasets check", "--workers"): Held("cli/test_every_option.py::test_a_check_starts_as_many_processes_as_said"),
    ("datasets check", "--json"): Changes("--json new.json"),
    ("datasets draw", "NAME"): Changes("idd"),
    ("datasets draw", "--output"): Changes("--output elsewhere"),
    ("datasets draw", "--train"): Held("cli/test_datasets.py::test_drawing_is_told_in_figures_and_repeatable"),
    ("datasets draw", "--val"): Changes("--val 2"),
    ("datasets draw", "--seed"): Changes("--seed 1"),
    ("datasets draw", "--size"): Changes("--size 64x64"),
    ("datasets draw", "--style"): Changes("--style fog"),
    ("datasets draw", "--json"): Held("cli/test_datasets.py::test_drawing_is_told_in_figures_and_repeatable"),
}


@dataclass(frozen=True)
class Outcome:
    """All that a command leaves: its exit code, what it says, and the files that it makes."""

    code: int
    said: tuple[str, str]
    files: dict[str, bytes]


class Desk:
    """Runs commands over one finished project, each in an empty folder of its own, and remembers what came out."""

    def __init__(self, bench: Bench, places: dict[str, str], folder: Path) -> None:
        self.bench, self.folder = bench, folder
        self._places, self._known = places, dict[str, Outcome]()

    def result(self, words: str) -> tuple[Result, dict[str, bytes]]:
        self.folder.mkdir(parents=True, exist_ok=True)
        here = Path.cwd()
        work = self.folder / str(len(list(self.folder.iterdir())))
        work.mkdir()
        os.chdir(work)
        try:
            result = run(*words.format(**self._places).split())
        finally:
            os.chdir(here)
        made = {path.relative_to(work).as_posix(): path for path in work.rglob("*") if path.is_file()}
        return result, {name: path.read_bytes() for name, path in made.items()}

    def _timeless(self, content: bytes) -> bytes:
        """Without where the command ran, how long, when, and how full the disk was: no option changes those."""
        content = re.sub(rf"{re.escape(str(self.folder))}/\d+".encode(), b"HERE", content)
        content = re.sub(rb"\d{4}-\d\d-\d\dT[\d:.+]+|[\d.]+ [KMGT]?B (are )?free|\d+(\.\d+)? s\b", b"NOW", content)
        return re.sub(rb'"(seconds|hands|decode|forward|write|wait)\w*": [\d.e-]+', b"NOW", content)

    def outcome(self, words: str) -> Outcome:
        if words not in self._known:
            result, made = self.result(words)
            assert "Traceback" not in result.err, result
            written = {name: self._timeless(content) for name, content in made.items()}
            said = [self._timeless(text.encode()).decode() for text in (result.out, result.err)]
            self._known[words] = Outcome(result.code, (said[0], said[1]), written)
        return self._known[words]


@pytest.fixture(scope="module")
def desk(fresh: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """Two members over a drawn Cityscapes of three images and a folder of two, dumped and fused."""
    bench = fresh.copy(tmp_path_factory.mktemp("options") / "bench")
    data = bench.root / "photos"
    with plain_cpu(), mock.patch.dict(os.environ):
        for name in ("HMSA_ASSETS", "HMSA_DATA_ROOT"):
            os.environ.pop(name, None)
        small = ("--train", "2", "--val", "3", "--size", "64x128", "--output", str(data))
        assert run("datasets", "draw", "cityscapes", "gta5", *small).code == 0
        bench.tree["models"] = bench.tree["models"][:2]
        city = {"name": "city", "type": "cityscapes", "root": "photos/Cityscapes-nvidia", "split": "val"}
        bench.tree["datasets"] = [city, bench.tree["datasets"][1]]
        for command in ("dump", "ensemble"):
            assert bench.save().run(command).code == 0
        manifests = {
            "other": bench.tree | {"models": bench.tree["models"][1:], "datasets": bench.tree["datasets"][1:]},
            "ext": bench.tree | {"models": [*bench.tree["models"], {"name": "dog", "arch": "external"}]},
            "away": bench.tree
            | {
                "models": [m | {"checkpoint": "${HMSA_ASSETS}/" + m["checkpoint"]} for m in bench.tree["models"]],
                "datasets": [
                    d | {"root": d["root"].replace("photos", "${HMSA_DATA_ROOT}")} for d in bench.tree["datasets"]
                ],
            },
        }
        for name, tree in manifests.items():
            text = yaml.safe_dump(tree | {"output": str(bench.output)})
            (bench.root / f"{name}.yaml").write_text(text)
        logits = bench.root / "logits"
        for seed, stem in enumerate(("flower", "deep/tree")):
            file = logits / f"{stem}_logits.npz"
            file.parent.mkdir(parents=True, exist_ok=True)
            np.savez(file, np.random.default_rng(seed).normal(size=(19, 40, 64)).astype(np.float16))
        places = {name: str(bench.root / f"{name}.yaml") for name in manifests}
        places |= {"m": str(bench.manifest), "root": str(bench.root), "data": str(data), "logits": str(logits)}
        places["photo"] = str(data / "garden/flower.png")
        yield Desk(bench, places, tmp_path_factory.mktemp("desk"))


def options(group: TyperGroup, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Each command with each of its options and arguments, by the first of its names."""
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from options(command, f"{prefix}{name} ")
        else:
            for parameter in command.params:
                named = parameter.param_type_name == "option"
                yield prefix + name, parameter.opts[0] if named else str(parameter.metavar)


def test_every_option_has_a_row_and_every_row_an_option() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    there = set(options(group))
    assert len(there) > 200
    assert ROWS.keys() - there == set(), "rows of options that are gone"
    assert there - ROWS.keys() == set(), "options without a row: say what shows that they do something"


def rows(kind: type[Row]) -> list[object]:
    return [pytest.param(*key, row, id=" ".join(key)) for key, row in ROWS.items() if isinstance(row, kind)]


@pytest.mark.parametrize(("command", "option", "row"), rows(Changes))
def test_an_option_changes_something(desk: Desk, command: str, option: str, row: Changes) -> None:
    base = f"{command} {BASES[command] if row.base is None else row.base}"
    assert option.isupper() or option in row.words.split()
    without, with_it = desk.outcome(base), desk.outcome(f"{base} {row.words}")
    assert without != with_it
    # Parsing alone shows nothing: the option has to be known to both.
    assert "see --help" not in with_it.said[1]


@pytest.mark.parametrize("command", BASES)
def test_the_same_command_again_changes_nothing(desk: Desk, command: str) -> None:
    """Only then does a difference come from the option."""
    base = f"{command} {BASES[command]}"
    assert desk.outcome(base) == desk.outcome(f"{base} ")


@pytest.mark.parametrize(("command", "option", "row"), rows(Refused))
def test_an_option_that_would_change_nothing_is_refused(desk: Desk, command: str, option: str, row: Refused) -> None:
    assert option in row.words.split()
    result, made = desk.result(row.words)
    assert result.refusal().startswith(f"{option}: changes nothing")
    assert made == {}


@pytest.mark.parametrize(("command", "option", "row"), rows(Held))
def test_what_is_held_elsewhere_is_there_and_gives_the_option(command: str, option: str, row: Held) -> None:
    file, name = row.test.split("::")
    text = (TESTS / file).read_text()
    (found,) = [n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef) and n.name == name]
    first = min([found.lineno, *(decorator.lineno for decorator in found.decorator_list)])
    words = "\n".join(text.splitlines()[first - 1 : found.end_lineno])
    assert re.search(rf"{re.escape(option)}(?![\w-])", words), f"{row.test} does not give {option}"


def test_a_check_starts_as_many_processes_as_said(desk: Desk) -> None:
    """`datasets check --workers`: what it finds may not depend on them, so they are counted where they start."""
    asked: list[int | None] = []

    def spy(look: Callable[[Any], Any], pairs: Iterable[Any], workers: int | None) -> Iterator[Any]:
        asked.append(workers)
        return map(look, pairs)

    with mock.patch("hmsa_pipeline.pipeline.dataset_tools.check.map_files", spy):
        assert desk.result("datasets check gta5 --data-root {data} --output new --workers 3")[0].code in (0, 1)
    assert set(asked) == {3}
