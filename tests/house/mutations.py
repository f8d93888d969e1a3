"""Breaks the code in one place at a time and demands that a test notices.

Run by hand, from anywhere: ``python tests/house/mutations.py [--cpp] [--only PATTERN]``. Everything
happens in a temporary copy. A mutation counts as noticed where a test fails (or the run crashes or
hangs) that passes on the code as it is. Exits with 1 if one survives, or if a table entry is stale.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path("python/saddlepoint")
FORK = multiprocessing.get_context("fork")
CRASH = "a crash, or a hang"
TIMEOUT = 600.0  # seconds; who waits longer hangs


class Mutation(NamedTuple):
    """A careless edit: in ``file``, ``old`` (there once) becomes ``new``; ``tests`` must notice."""

    file: str
    old: str
    new: str
    tests: str  # files of tests/, and options of pytest

    @property
    def path(self) -> Path:
        """The file, from the root."""
        return ("csrc" if self.file.endswith(("pp", ".cu")) else PACKAGE) / Path(self.file)

    @property
    def arguments(self) -> list[str]:
        """For pytest, run from the root."""
        words = shlex.split(self.tests)
        return [f"tests/{word}" if word.endswith(".py") else word for word in words]

    def __str__(self) -> str:
        return f"{self.file}: {' '.join(self.old.split())} → {' '.join(self.new.split()) or 'gone'}"


PYTHON = [
    # optim
    Mutation(
        "optim/plan.py",
        "0.0 if decoupled else decay",
        "decay",
        "test_optim.py -k float64_is_pytorch",
    ),
    Mutation("optim/plan.py", "[2 * g + (not d) for", "[2 * g + d for", "test_optim.py -k mask"),
    Mutation(
        "optim/plan.py",
        "1.0 - options.ema_decay",
        "options.ema_decay",
        "test_optim_pipeline.py -k ema",
    ),
    Mutation(
        "optim/plan.py",
        "else 1.0 / loss_scale",
        "else loss_scale",
        "test_optim_pipeline.py -k loss_scale",
    ),
    Mutation(
        "optim/checks.py",
        "all(0.0 <= b < 1.0 for b",
        "all(0.0 <= b <= 1.0 for b",
        "test_optim.py -k constructors_refuse",
    ),
    Mutation(
        "optim/options.py",
        'ema_decay", decay) < 1',
        'ema_decay", decay) <= 1',
        "test_optim_pipeline.py -k refused",
    ),
    Mutation(
        "optim/checks.py",
        " and steps == int(steps)",
        "",
        "test_optim.py -k load_state_dict_refuses",
    ),
    Mutation(
        "optim/plan.py",
        '"maximize": bool(group.get("maximize", False))',
        '"maximize": False',
        "test_optim.py -k maximize",
    ),
    Mutation(
        "optim/rules/sgd.py",
        '"sgd_momentum" if group["momentum"]',
        '"sgd_momentum" if group["nesterov"]',
        "test_optim.py -k momentum",
    ),
    Mutation(
        "optim/rules/rprop.py",
        'float(group["lr"]) if name == "step_size"',
        'float(group["lr"]) if name == "prev"',
        "test_optim.py -k rprop",
    ),
    Mutation(
        "optim/rules/rprop.py",
        "0.0 < minus < 1.0 < plus",
        "0.0 <= minus < 1.0 < plus",
        "test_optim.py -k constructors_refuse",
    ),
    Mutation(
        "optim/rules/adafactor.py",
        '"bfloat16": 2.0**-7',
        '"bfloat16": 2.0**-8',
        "test_torch_optim.py -k spacing_at_one",
    ),
    Mutation(
        "optim/rules/adafactor.py",
        "number(name, value) >= 1.0",
        "number(name, value) > 1.0",
        "test_optim.py -k 'constructors_refuse or (float64_is and Adafactor)'",
    ),
    Mutation(
        "optim/rules/sgd.py",
        ' or group["dampening"] != 0',
        "",
        "test_optim.py -k constructors_refuse",
    ),
    Mutation(
        "optim/arrays.py",
        "key=lambda a: -self.strides[a]",
        "key=lambda a: self.strides[a]",
        "test_optim.py -k states_are_told",
    ),
    Mutation(
        "optim/arrays.py",
        "-(-nbytes // 64) * 64",
        "nbytes // 64 * 64",
        "test_optim.py -k groups_are",
    ),
    Mutation(
        "optim/arrays.py",
        "view(np.uint32) & 0xFFFF",
        "view(np.uint32) & 0xFFF",
        "test_optim.py -k no_bfloat16",
    ),
    Mutation(
        "optim/optimizers.py",
        "max((self._plan.native.clock(i)[0]",
        "min((self._plan.native.clock(i)[0]",
        "test_optim.py test_optim_pipeline.py -k 'without_a_gradient'",
    ),
    Mutation(
        "optim/optimizers.py",
        "set_clock(i, steps, carry)",
        "set_clock(i, steps, [])",
        "test_optim.py -k late_state_dict",
    ),
    Mutation(
        "optim/optimizers.py",
        "self._ema[-1].assign(_host(p))",
        "pass",
        "test_optim_pipeline.py -k ema",
    ),
    Mutation(
        "optim/optimizers.py",
        '0 < number("loss_scale"',
        '0 <= number("loss_scale"',
        "test_optim_pipeline.py -k refused",
    ),
    Mutation(
        "optim/optimizers.py",
        'self.load_state_dict(state["saved"])',
        "pass",
        "test_optim.py -k pickle",
    ),
    Mutation(
        "optim/schedule.py",
        "(1.0 - start) * min(k, steps) / steps",
        "(1.0 - start) * k / steps",
        "test_schedule.py",
    ),
    Mutation("optim/schedule.py", "rise * total - 1.0", "rise * total", "test_schedule.py"),
    Mutation("optim/schedule.py", "if any(a >= b for", "if any(a > b for", "test_schedule.py"),
    # torch
    Mutation(
        "torch/optim/optimizer.py",
        "is not None for name in names)), []",
        "is None for name in names)), []",
        "test_torch_optim.py -k goes_both_ways",
    ),
    Mutation(
        "torch/optim/optimizer.py",
        'p.detach() if name == "ema" else',
        'p.detach() if name == "remainder" else',
        "test_torch_optim.py -k averages_begin",
    ),
    Mutation(
        "torch/optim/optimizer.py",
        "group.setdefault(name, value)",
        "group[name] = value",
        "test_torch_optim.py -k goes_both_ways",
    ),
    Mutation(
        "torch/optim/optimizer.py",
        "            self.param_groups.pop()\n",
        "            pass\n",
        "test_torch_optim.py -k makes_no_sense",
    ),
    Mutation(
        "torch/optim/optimizer.py",
        '(held.dtype == torch.float64) != (slot[2] == "float64")',
        "False",
        "test_torch_optim.py -k made_double",
    ),
    Mutation(
        "torch/optim/optimizer.py",
        "begun = set(entry) - set(_BESIDE)",
        "begun = set(entry)",
        "test_torch_optim.py -k average",
    ),
    Mutation(
        "torch/optim/optimizer.py",
        "(norm + 1e-6) / self._options.max_norm",
        "norm / self._options.max_norm",
        "test_torch_optim_processes.py",
    ),
    Mutation(
        "torch/optim/sharded.py",
        'group == "local" and',
        "False and",
        "test_torch_optim_processes.py",
    ),
    Mutation(
        "torch/optim/sharded.py",
        "if place.is_shard())",
        "if not place.is_shard())",
        "test_torch_optim_processes.py",
    ),
    Mutation(
        "torch/nn/compiled.py",
        "zip(given[_INPUTS:], new, strict=True)",
        "zip(given[_INPUTS:-1], new, strict=False)",
        "test_torch_nn.py -k Compile",
    ),
    Mutation(
        "torch/nn/convert.py",
        "places[id(m)] > 1 or hooked(m)",
        "places[id(m)] > 1",
        "test_torch_nn.py -k 'conver or hooks'",
    ),
    Mutation(
        "torch/nn/convert.py",
        'getattr(activation, "negative_slope", 0.01)',
        "0.01",
        "test_torch_nn.py -k conver",
    ),
    Mutation(
        "torch/nn/convert.py",
        ' and module.approximate != "none"',
        ' and module.approximate == "none"',
        "test_torch_nn.py -k conver",
    ),
    Mutation(
        "torch/nn/modules.py",
        "not self.training or self.track_running_stats",
        "self.track_running_stats",
        "test_torch_nn.py -k tracking_that_ends",
    ),
    Mutation(
        "torch/nn/modules.py",
        "        or module._backward_pre_hooks\n",
        "",
        "test_torch_nn.py -k has_a_hook",
    ),
    Mutation(
        "torch/nn/functional.py",
        "activation, negative_slope)\n    how",
        "activation, 0.01)\n    how",
        "test_torch_nn_tools.py -k has_the_slope",
    ),
    Mutation(
        "torch/nn/autograd.py",
        "m2 / (call.elements - 1)",
        "m2 / call.elements",
        "test_torch_nn_sync.py -k 'processes_are_one or options'",
    ),
    # norm
    Mutation(
        "norm/first.py",
        "count += groups",
        "count += 1",
        "test_batch_norm_fused.py -k ghost_batch_counts",
    ),
    Mutation(
        "norm/parts.py",
        "(elements * (total - elements) / total)",
        "(elements * total / total)",
        "test_batch_norm_fused.py -k parts",
    ),
    Mutation(
        "norm/options.py",
        "0.0 <= momentum <= 1.0",
        "0.0 < momentum <= 1.0",
        "test_batch_norm_fused.py -k momentum",
    ),
    Mutation(
        "kinds.py",
        "Vector(x.shape, x.dtype, x.device, x.order)",
        "Vector(x.shape, x.dtype, x.device)",
        "test_batch_norm_fused.py -k keep_their_order",
    ),
    # nn, objective
    Mutation(
        "nn/init.py",
        "_normal(rng, shape, 2.0 / shape[1])",
        "_normal(rng, shape, 2.0 / shape[0])",
        "test_init.py",
    ),
    Mutation(
        "nn/layers.py",
        "limit = 1.0 / math.sqrt(self.in_features)",
        "limit = 1.0 / math.sqrt(self.out_features)",
        "test_init.py test_nn.py",
    ),
    Mutation("nn/layers.py", "buffers += sum(", "buffers = sum(", "test_nn.py"),
    Mutation("nn/losses.py", "high >= outputs", "high > outputs", "test_nn.py test_objective.py"),
    Mutation("nn/objective.py", "size == 1 or n % size == 1", "size == 1", "test_objective.py"),
    Mutation(
        "nn/objective.py",
        "key = chunk.rows if objective.recomputes else chunk.begin",
        "key = chunk.rows",
        "test_objective.py",
    ),
    Mutation("nn/objective.py", "stored > memory_budget", "False", "test_objective.py"),
    Mutation(
        "nn/objective.py",
        "max(1, int(self._objective._budget",
        "max(64, int(self._objective._budget",
        "test_objective.py -k stay_within_the_budget",
    ),
    # landscape, surfaces, vector
    Mutation(
        "landscape.py",
        "dot(here.gradient, direction), curvature",
        "norm(here.gradient), curvature",
        "test_landscape.py",
    ),
    Mutation("landscape.py", "min(bent, far)", "max(bent, far)", "test_landscape.py"),
    Mutation("landscape.py", "axpy(beta, e, moved)", "axpy(beta, d, moved)", "test_landscape.py"),
    Mutation(
        "landscape.py",
        "for r in reach.tolist())",
        "for r in reach[[0, 0]].tolist())",
        "test_landscape.py",
    ),
    Mutation(
        "landscape.py",
        'if count("points", points, 3) % 2 == 0',
        'if count("points", points, 3) == 0',
        "test_landscape.py",
    ),
    Mutation(
        "signals.py",
        "is not threading.main_thread():\n",
        "is threading.main_thread():\n",
        "test_signals.py",
    ),
    Mutation(
        "surfaces.py",
        "(without_one, without_one) - 2.0 * residual",
        "(without_one, without_one) + 2.0 * residual",
        "test_surfaces.py",
    ),
    Mutation(
        "surfaces.py",
        "origin if values.min() >= 0 else",
        "origin if values.min() > 0 else",
        "test_surfaces.py",
    ),
    Mutation("surfaces.py", "diagonal[1:] += 200.0", "diagonal[1:] = 200.0", "test_surfaces.py"),
    Mutation(
        "kinds.py", "view._offset = self._offset + begin", "view._offset = begin", "test_vector.py"
    ),
    Mutation(
        "kinds.py",
        "self._buffer.copy(self._offset * self.dtype.itemsize,",
        "self._buffer.copy(0,",
        "test_vector.py",
    ),
    Mutation(
        "vector.py", "if 1e-280 < square < math.inf", "if 0.0 < square < math.inf", "test_vector.py"
    ),
    # train, runs, history, store, signals, progress
    Mutation(
        "train.py",
        "began = time.perf_counter() - seconds",
        "began = time.perf_counter()",
        "test_train.py -k seconds_are",
    ),
    Mutation(
        "train.py",
        "done + 1, 0, 0.0, 0.0",
        "done + 1, 0, 0.0, seconds",
        "test_train.py -k seconds_are",
    ),
    Mutation(
        "train.py",
        "mean, *scores, seconds)",
        "mean, *scores, time.perf_counter() - began)",
        "test_train.py -k seconds_are",
    ),
    Mutation(
        "train.py",
        "total += value * indices.shape[0]",
        "total += value * batch_size",
        "test_train.py -k equals_a_pytorch",
    ),
    Mutation(
        "train.py",
        "total / min(rows, len(starts) * batch_size)",
        "total / rows",
        "test_train.py -k equals_a_pytorch",
    ),
    Mutation(
        "train.py",
        "begun = state.epochs + (state.updates > 0)",
        "begun = state.epochs",
        "test_train.py -k cannot_go_on",
    ),
    Mutation(
        "runs.py",
        'he_normal if activation == "relu"',
        'he_normal if activation != "relu"',
        "test_runs.py -k built_network",
    ),
    Mutation("runs.py", "overwrite or not first", "overwrite", "test_runs.py -k while_it_goes_on"),
    Mutation("runs.py", "if size != held:", "if size > held:", "test_runs.py -k no_run_is_made"),
    Mutation(
        "history.py",
        "total.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)",
        "pass",
        "test_runs.py -k no_run_is_made",
    ),
    Mutation(
        "history.py",
        "np.abs(made.validation_accuracy - 0.5) > 0.5",
        "made.validation_accuracy > 1",
        "test_train.py -k histories",
    ),
    Mutation(
        "history.py", "(made.seconds >= 0) &", "(made.seconds > 0) &", "test_train.py -k histories"
    ),
    Mutation("store.py", "if found and not _alive(int(found[1]))", "if found", "test_store.py"),
    Mutation("store.py", 'kind == "old" and not place.exists()', 'kind == "old"', "test_store.py"),
    Mutation(
        "store.py",
        "return None if math.isnan(value) else str(value)",
        "return None",
        "test_train.py -k json",
    ),
    Mutation(
        "signals.py",
        "self.at_once = bool(self._came)",
        "self.at_once = False",
        "test_train.py -k second_ctrl_c",
    ),
    Mutation("signals.py", "signal.signal(held_back, handler)", "pass", "test_signals.py"),
    Mutation("signals.py", "signal.signal(signal.SIGTERM, before)", "pass", "test_signals.py"),
    Mutation("progress.py", "bar.advance(task, done)", "bar.advance(task)", "test_progress.py"),
    # data
    Mutation(
        "data/dataset.py",
        "round(share * len(x))",
        "int(share * len(x))",
        "test_data.py -k a_share_is",
    ),
    Mutation("data/dataset.py", "(labels >= classes)", "(labels > classes)", "test_data.py"),
    Mutation(
        "data/dataset.py",
        "raw.dtype == np.uint8 and raw.ndim > 2",
        "raw.dtype == np.uint8 and raw.ndim > 1",
        "test_data.py",
    ),
    Mutation("data/idx.py", '0x0C: ">i4"', '0x0C: "<i4"', "test_data.py"),
    Mutation("data/npz.py", 'order="F" if fortran else "C"', 'order="C"', "test_data.py"),
    Mutation(
        "data/streams.py",
        "if size > max_bytes:",
        "if size >= max_bytes:",
        "test_data.py -k as_large_as",
    ),
    Mutation(
        "data/tables.py",
        "start == 0 and len(first) < 4",
        "start == 0 and len(first) <= 4",
        "test_data.py",
    ),
    Mutation(
        "data/tables.py",
        "len(np.unique(counted)) < len(counted)",
        "len(np.unique(counted)) < 1",
        "test_data.py",
    ),
    Mutation(
        "data/tables.py",
        "np.abs(values) < 2**53",
        "np.abs(values) < 2**31",
        "test_data.py -k labels_are_exact",
    ),
    Mutation("data/tensors.py", 'np.asarray(array, order="C")', "array", "test_data.py"),
    # results, report, cli, studies
    Mutation(
        "store.py", "number(value) if spell else value", "value", "test_results.py -k no_word_for"
    ),
    Mutation(
        "results.py",
        "_outline(value) if f.name in self._large else plain(value)",
        "plain(value)",
        "test_results.py -k vectors_of_parameters",
    ),
    Mutation(
        "runs.py",
        "np.sort(drawn)",
        "np.arange(samples)",
        "test_runs.py -k stated_random_subset",
    ),
    Mutation(
        "report/panels.py",
        'attrgetter("point"), extreme_eigenvalues',
        "lambda found: found.point or found.standing, extreme_eigenvalues",
        "test_report.py -k something_to_draw",
    ),
    Mutation(
        "report/figures/training.py",
        "int(np.nanargmin(valid))",
        "int(np.nanargmax(valid))",
        "test_report.py -k best_epochs",
    ),
    Mutation(
        "report/theme.py",
        "high > 50 * low",
        "high > 5 * low",
        "test_report.py -k factor_of_fifty",
    ),
    Mutation(
        "report/pages.py",
        "spent = found.descent[-1, 0] + 1",
        "spent = found.descent[-1, 0]",
        "test_cli.py -k demo",
    ),
    Mutation("report/pages.py", '"On flat ground"', '"At a minimum"', "test_report.py -k headline"),
    Mutation("cli/options.py", '"terminated": 143', '"terminated": 130', "test_cli.py -k signals"),
    Mutation(
        "cli/train.py",
        "overwrite or (out is None and resume is not None)",
        "overwrite",
        "test_cli.py -k 'killed or written_over or signals'",
    ),
    Mutation(
        "cli/train.py", 'False if text == "none"', 'None if text == "none"', "test_cli.py -k csv"
    ),
    Mutation(
        "studies/batch_norm.py",
        "np.max(self.gradient_changes / self.distances)",
        "np.min(self.gradient_changes / self.distances)",
        "test_studies.py",
    ),
    Mutation("studies/batch_norm.py", "return y, 1 - y * y", "return y, 1 - y", "test_studies.py"),
    Mutation(
        "studies/batch_norm.py", "axis=0, ddof=1, dtype", "axis=0, ddof=0, dtype", "test_studies.py"
    ),
    Mutation(
        "studies/batch_norm.py",
        "scale[scale == 0] = np.inf",
        "scale[scale == 0] = 1.0",
        "test_studies.py",
    ),
]

CPP = [
    Mutation(
        "ops/reduce_isa.cpp", "(accumulate ? double(to[c + i]) : 0.0)", "0.0", "test_objective.py"
    ),
    Mutation("ops/vector_isa.cpp", "i < n; ++i, ++l)", "i + 1 < n; ++i, ++l)", "test_vector.py"),
    Mutation(
        "ops/vector_isa.cpp",
        "x + done + begin, y + done + begin",
        "x + begin, y + begin",
        "test_vector.py -k more_blocks",
    ),
    Mutation(
        "ops/strided_cpu.cpp",
        "source -= s.from[k] * s.shape[k] * width",
        "source -= s.from[k] * width",
        "test_batch_norm_fused.py",
    ),
    Mutation("core/math.hpp", "x == x ? std::fma", "x != 0.0 ? std::fma", "test_math.py"),
    Mutation("core/stream_cpu.cpp", "(rows + each - 1) / each};", "rows / each};", "test_nn.py"),
    Mutation("core/stream_cpu.cpp", "[] { threads = 1; }", "[] {}", "test_stream.py"),
    Mutation(
        "nn/linear.cpp",
        "plan_.accumulate, product(bias_at_)",
        "false, product(bias_at_)",
        "test_objective.py",
    ),
    Mutation(
        "nn/linear.cpp",
        "gradient_scale(), to);",
        "T(0), to);",
        "test_objective.py",
    ),
    Mutation(
        "nn/linear.cpp",
        "y().gradient, out_), weight_tangent(), T(1)",
        "y().gradient, out_), weight_tangent(), T(0)",
        "test_nn.py test_objective.py",
    ),
    Mutation(
        "nn/losses.cpp",
        "{p_, this->z_.tangent, this->z_.gradient_tangent,",
        "{p_, this->z_.gradient_tangent, this->z_.tangent,",
        "test_objective.py",
    ),
    Mutation(
        "nn/network.cpp",
        "rows.end(), 0.0) * (weight_ / double(plan_.rows))",
        "rows.end(), 0.0) / double(plan_.rows)",
        "test_objective.py",
    ),
    Mutation(
        "nn/network.cpp",
        "loss_->tangent(part, directions, T(weight_ /",
        "loss_->tangent(part, directions, T(1.0 /",
        "test_objective.py",
    ),
    Mutation(
        "nn/network.cpp",
        "gathered_targets_, spec_.outputs)",
        "gathered_targets_, 1)",
        "test_train.py",
    ),
    Mutation(
        "nn/batch_norm.cpp",
        "{at, at + n_, at + 2 * n_}",
        "{at, at + n_, at + n_}",
        "test_nn.py -k running",
    ),
    Mutation(
        "nn/activation.cpp",
        "map<pointwise::Scale<T>>(context, {T(0)}",
        "map<pointwise::Scale<T>>(context, {T(1)}",
        "test_objective.py -k before_the_first",
    ),
    Mutation(
        "optim/muon_cpu.cpp", "if (steps % 2 == 1)", "if (steps % 2 == 0)", "test_optim.py -k Muon"
    ),
    Mutation(
        "optim/muon_cpu.cpp",
        "std::max(1.0, double(t.rows) / t.columns)",
        "double(t.rows) / t.columns",
        "test_optim.py -k Muon",
    ),
    Mutation(
        "optim/adafactor_cpu.cpp",
        "/ std::max(1.0, rms_u / rule.d)",
        "/ (rms_u / rule.d)",
        "test_optim.py -k Adafactor",
    ),
    Mutation(
        "optim/adafactor_cpu.cpp",
        "T* const c = column_var + m * columns;",
        "T* const c = column_var;",
        "test_optim.py -k Adafactor",
    ),
    Mutation(
        "norm/runner_cpu.cpp",
        "mean[c] += d * (more / (n + more))",
        "mean[c] += d * (more / n)",
        "test_batch_norm_fused.py",
    ),
    Mutation(
        "norm/runner_cpu.cpp",
        "mean[c] = m[c] + offset / parts",
        "mean[c] = m[c] + offset / (parts - 1)",
        "test_batch_norm_fused.py",
    ),
    Mutation(
        "norm/runner_cpu.cpp",
        "if (columns.exact.none() && !any_untrusted(p.sweep, runs, sums, p.sums)) return;",
        "if (columns.exact.none()) return;",
        "test_batch_norm_range.py",
    ),
    Mutation(
        "norm/exactly_cpu.cpp",
        "return small && !constant(sweep, runs);",
        "return false;",
        "test_batch_norm_range.py",
    ),
    Mutation(
        "norm/coefficients.hpp",
        "t.own ? t.own : t.sums",
        "t.sums",
        "test_batch_norm_fused.py -k parts",
    ),
    Mutation(
        "bindings/bind_batch_norm.cpp",
        "shape.count_of(shape.groups() - 1)",
        "shape.count_of(0)",
        "test_batch_norm_fused.py -k 'refus or variants'",
    ),
    Mutation(
        "bindings/bind_batch_norm.cpp",
        "training() ? get<index>",
        "true ? get<index>",
        "test_batch_norm_fused.py -k ghosts_are",
    ),
    Mutation(
        "bindings/bind_batch_norm.cpp",
        "count > 0.0 ? 1.0 / count : -1.0",
        "-1.0",
        "test_batch_norm_fused.py -k parts",
    ),
    Mutation("norm/fused.cpp", "piecewise ? dyt : nullptr", "nullptr", "test_batch_norm_fused.py"),
    Mutation(
        "norm/fused.cpp",
        "map.in[RESU] = other.residual;",
        "map.in[RESU] = along.residual;",
        "test_batch_norm_fused.py",
    ),
    Mutation(
        "bindings/bind_ops.cpp",
        "if (x.shape != y.shape)",
        "if (x.size() != y.size())",
        "test_vector.py",
    ),
    Mutation(
        "bindings/overlap.cpp",
        "if (share_elements(*a.view, *b.view)) {",
        "if (false) {",
        "test_optim_pipeline.py",
    ),
    Mutation(
        "optim/update_isa.cpp",
        "if (options.zero && !here) clear(t, t.gradient, at, n);",
        "",
        "test_optim_pipeline.py",
    ),
    Mutation(
        "optim/rules/adam.hpp", "top = larger(top, v);", "top = v;", "test_optim.py -k amsgrad"
    ),
    Mutation(
        "optim/rules/rprop.hpp",
        "product < T(0) ? T(0) : sign * gradient",
        "sign * gradient",
        "test_optim.py -k rprop",
    ),
]


def stale() -> list[str]:
    """The mutations whose old text is not there exactly once."""
    return [str(m) for m in PYTHON + CPP if (ROOT / m.path).read_text().count(m.old) != 1]


class Copy:
    """A copy of the repository, that runs its own Python on the native modules of this one."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / ROOT.name
        ignored = shutil.ignore_patterns(
            ".git", ".*cache", ".venv*", "__pycache__", "build", "dist"
        )
        shutil.copytree(ROOT, self.root, ignore=ignored)
        self.modules = self.root / PACKAGE
        find = [sys.executable, "-c", "from saddlepoint import _core; print(_core.__file__)"]
        native = Path(subprocess.check_output(find, text=True).strip())
        for library in native.parent.glob("*.so*"):
            shutil.copy(library, self.modules)
        # What an editable install puts before the path; in this process, and in those that tests
        # start.
        off = "sys.meta_path[:] = [f for f in sys.meta_path if 'saddlepoint' not in f.__module__]"
        off = off.replace("f.__", "type(f).__")
        (self.root / "python/sitecustomize.py").write_text(f"import sys\n{off}\n")
        os.environ["PYTHONPATH"] = str(self.root / "python")
        sys.path[:1] = [str(self.root / "python")]
        runpy.run_path(str(self.root / "python/sitecustomize.py"))

    def failing(self, *asked: str) -> list[str]:
        """The tests that fail, or `CRASH`."""
        log = self.root / "tests.log"
        run = FORK.Process(target=_run_tests, args=(self.root, log, asked))
        run.start()
        run.join(TIMEOUT)
        if run.exitcode == 0:
            return []
        if run.exitcode is None:
            run.kill()
            run.join()
        elif run.exitcode in (3, 4, 5):  # pytest's own fault, wrong usage, no tests
            raise SystemExit(f"pytest {shlex.join(asked)}\n{log.read_text()}")
        found = re.findall(
            r"^(?:FAILED|ERROR) (tests/\S+?\.py.*?)(?: - .*)?$", log.read_text(), re.M
        )
        return found or [CRASH]

    def build(self) -> None:
        """The native module anew, as far as files changed."""
        build = self.root / "build/house"
        if not build.exists():
            cmakedir = subprocess.check_output([sys.executable, "-m", "pybind11", "--cmakedir"])
            definitions = {
                "Python_EXECUTABLE": sys.executable,
                "pybind11_DIR": cmakedir.decode().strip(),
                "SKBUILD_PROJECT_VERSION": version("saddlepoint"),
                "SADDLEPOINT_CUDA": "OFF",
            }
            options = [f"-D{name}={value}" for name, value in definitions.items()]
            _quietly("cmake", "-G", "Ninja", "-S", str(self.root), "-B", str(build), *options)
        _quietly("cmake", "--build", str(build))
        for library in build.rglob("_core*.so"):
            shutil.copy(library, self.modules)

    @contextmanager
    def mutated(self, mutation: Mutation) -> Iterator[None]:
        """The copy with a mutation in it."""
        native = mutation.path.parts[0] == "csrc"
        file = self.root / mutation.path
        before = file.read_text()
        kept = {path: path.read_bytes() for path in self.modules.glob("_core*.so") if native}
        self._write(file, before.replace(mutation.old, mutation.new))
        try:
            if native:
                self.build()
            yield
        finally:
            self._write(file, before)
            for path, content in kept.items():
                path.write_bytes(content)

    @staticmethod
    def _write(file: Path, text: str) -> None:
        file.write_text(text)
        # Two texts of one length within a second would share their bytecode.
        for bytecode in file.parent.glob(f"__pycache__/{file.stem}.*"):
            bytecode.unlink()


def _run_tests(root: Path, log: Path, asked: tuple[str, ...]) -> None:
    """In a fork, where all that takes long to import is there already."""
    os.chdir(root)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what shells start with & ignores it
    with log.open("w") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    options = ("-q", "--tb=no", "-m", "not cuda", "-p", "no:cacheprovider")
    sys.exit(int(pytest.main([*options, *asked])))


def _quietly(*command: str) -> None:
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode != 0:
        raise SystemExit(f"{shlex.join(command)}\n{ran.stdout}{ran.stderr}")


def main() -> int:
    """Apply the mutations that were asked for, and tell of each; 1 if one survives."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cpp", action="store_true", help="break the C++, instead of the Python")
    parser.add_argument("--only", default="", metavar="PATTERN", help="those that it is found in")
    asked = parser.parse_args()
    if gone := stale():
        print("no longer there exactly once:", *gone, sep="\n  ")
        return 1
    chosen = [m for m in (CPP if asked.cpp else PYTHON) if re.search(asked.only, str(m))]
    silent: list[Mutation] = []
    noticing: dict[str, None] = {}
    with tempfile.TemporaryDirectory(prefix="saddlepoint-house-") as folder:
        copy = Copy(Path(folder))
        for slow in ("scipy.stats", "torch"):
            import_module(slow)
        if asked.cpp:
            copy.build()
        for mutation in chosen:
            began = time.perf_counter()
            with copy.mutated(mutation):
                failing = copy.failing("-x", *mutation.arguments)
            seconds = time.perf_counter() - began
            if not failing:
                silent.append(mutation)
            elif failing != [CRASH]:
                noticing |= dict.fromkeys(failing)
            elif copy.failing(*mutation.arguments):
                raise SystemExit(f"{mutation.tests}: fails on the code as it is, too")
            verdict = f"noticed by {failing[0]}" if failing else f"SURVIVED {mutation.tests}"
            print(f"{seconds:5.0f} s  {mutation}\n         {verdict}", flush=True)
        failing = copy.failing(*noticing) if noticing else []
    print(f"{len(chosen) - len(silent)} of {len(chosen)} noticed")
    if failing:
        print("but these fail on the code as it is, too:", *failing, sep="\n  ")
    return int(bool(silent or failing))


if __name__ == "__main__":
    sys.exit(main())
