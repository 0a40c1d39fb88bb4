"""The Julia backend: what each of the three solves passes to ZeroPaths, and what comes back."""

from __future__ import annotations

from array import array
from types import SimpleNamespace as Job
from typing import Any, ClassVar

import numpy as np
import torch

from homojl.algorithms import (
    AbstractFixedPointAlgorithm,
    AbstractODEAlgorithm,
    AbstractPathAlgorithm,
    NewtonKrylov,
)
from homojl.algorithms.control import ErrorNorm
from homojl.backends.base import AbstractBackend, AdjointTask, FixedPoint, Integration, Path, Task
from homojl.backends.julia import endings, jobs, methods, runtime
from homojl.backends.julia.field import JuliaField
from homojl.backends.julia.tensors import Callback, Conditions, StateForm
from homojl.backends.pytorch.fixed_point import find_fixed_point
from homojl.backends.pytorch.record import Record
from homojl.backends.pytorch.rows import RowLayout
from homojl.backends.pytorch.samples import verdict
from homojl.errors import BackendUnavailable, ConfigError, SolveError
from homojl.functions import AbstractMap, UserFunction
from homojl.functions.base import DerivedField
from homojl.functions.layout import Layout
from homojl.solution import Samples, Status, StepSequence

Tensor = torch.Tensor


class JuliaBackend(AbstractBackend):
    """Solves in Julia on PyTorch's memory; fields in PyTorch are called back, those in Julia are not.

    Raises:
        BackendUnavailable: if there is no Julia.
    """

    name: ClassVar[str] = "julia"

    def __init__(self) -> None:
        self._julia = runtime.start()

    def supports(
        self,
        algorithm: jobs.Algorithm,
        device: torch.device,
    ) -> bool:
        if not methods.in_julia(algorithm):
            return False
        if isinstance(algorithm, AbstractODEAlgorithm) and jobs.beyond_julia(algorithm):
            return False
        return device.type == "cpu" or (device.type == "cuda" and self._has_cuda())

    def _has_cuda(self) -> bool:
        runtime.require(self._julia, "CUDA")
        with runtime.calling(self._julia):
            return bool(self._julia.package.has_device())

    def _run(self, solve: str, job: Job) -> tuple[Any, ...]:
        try:
            with runtime.calling(self._julia):
                return getattr(self._julia.calls, solve)(job)
        finally:
            for value in vars(job).values():
                if isinstance(value, Callback | Conditions):
                    value.release()
            vars(job).clear()

    @torch.no_grad()
    def integrate(self, task: Task, y0: Tensor) -> Integration:
        if task.each:
            return self._integrate_samples(task, y0)
        f, ts, algorithm, norm, event, jumps = task.f, task.ts, task.algorithm, task.norm, task.event, task.jumps
        beyond = "a complex state" if y0.is_complex() else jobs.beyond_julia(algorithm)
        if jumps or norm.function is not None:
            beyond = "a discontinuity or a norm of one's own"
        if beyond:
            raise ConfigError(f"{beyond} needs backend='pytorch'")
        if isinstance(f, DerivedField) and getattr(algorithm, "mass_matrix", None) is not None:
            raise ConfigError("a solve with a mass_matrix gives values, and no gradients")
        form = jobs.state_form(f, y0)
        field = jobs.native(f, form) or Callback(f, form, timed=True)
        watch = None if event is None else Conditions(event, form, ts[0], y0)
        out, saved = jobs.room_for_saves(form, y0, len(ts) - 1)
        save_times = array("d", ts)
        states: list[Tensor] = []
        keep = jobs.keeper(form, states) if task.keep_states else None
        job = Job(
            device=jobs.device(form),
            field=field,
            jvp=jobs.product(f, form, algorithm, timed=True),
            u0=form.flat(y0),
            out=out,
            ts=save_times.buffer_info(),
            **vars(jobs.way(algorithm, form.n)),
            parts=norm.parts,
            watch=watch,
            keep=keep,
        )
        answer = self._run("integrate", job)
        times, starts, sizes, fractions = (tuple(array("d", packed)) for packed in answer[:4])
        indices, name, step, nfe, n_rejected, which = array("q", answer[4]), *answer[5:]
        status, ys = Status[name], saved[: len(times)]
        message = endings.of_integration(
            algorithm,
            status,
            times,
            ys,
            accepted=len(starts),
            rejected=n_rejected,
            step=step,
            condition_is_nan=which == -1,
        )
        return Integration(
            ts=times,
            ys=ys,
            record=Record.of(
                StepSequence(starts, sizes, tuple(zip(indices, fractions, strict=True))), states, jumps, len(times) - 1
            ),
            status=status,
            message=message,
            nfe=nfe,
            n_rejected=n_rejected,
            event=None if which == -1 else which,
        )

    @torch.no_grad()
    def _integrate_samples(self, task: Task, y0: Tensor) -> Integration:
        """An ensemble of small systems: a `JuliaField` of one sample, solved for each row of y0 with steps of its own.

        Only values come of it. Arguments marked `PerSample` have a row for each sample, all others are shared. Julia's
        threads, whose number PYTHON_JULIACALL_THREADS sets before the start, share the samples. On CUDA they go into a
        kernel of DiffEqGPU's, which counts accepted steps alone.
        """
        f, ts, algorithm = task.f, task.ts, task.algorithm
        mass = getattr(algorithm, "mass_matrix", None) is not None
        own = algorithm.norm != ErrorNorm()
        if beyond := jobs.beyond_julia(algorithm) or "a mass_matrix" * mass or "a norm of one's own" * own:
            raise ConfigError(f"batch='per-sample' of a JuliaField does not go with {beyond}")
        if y0.is_cuda:
            if not self._has_cuda():
                raise BackendUnavailable("CUDA.jl finds no working driver; bring the tensors to the CPU")
            runtime.require(self._julia, "DiffEqGPU")
        assert isinstance(f, UserFunction), f
        assert isinstance(f.f, JuliaField), f.f
        form, count = jobs.batch_form(f, y0), len(y0)
        out, saved = jobs.room_for_saves(form, y0, len(ts) - 1)
        times = array("d", ts)
        job = Job(
            device=jobs.device(form),
            field=f.f.bind(f.args).for_state(torch.empty(y0.shape[1:], device="meta")),
            rows=tuple(mark is True for mark in f.arguments.marks),
            u0=form.flat(y0),
            out=out,
            ts=times.buffer_info(),
            samples=count,
            method=methods.chosen(methods.spelled_out(algorithm)),
            request=methods.requested(algorithm),
        )
        reached, *counts, names = self._run("ensemble", job)
        accepted, rejected, nfe = (torch.tensor(array("q", packed)) for packed in counts)
        statuses = tuple(Status[name] for name in names)
        bad = [i for i, status in enumerate(statuses) if not status.ok]
        message = ""
        if bad:
            last = array("d", reached)[bad[0]]
            message = (
                f"{algorithm.name}: {statuses[bad[0]].value} ({len(bad)} of {count} samples; sample {bad[0]} at "
                f"t = {last:.6g}); loosen rtol and atol, raise max_steps, or look at the field there"
            )
        return Integration(
            ts=ts,
            ys=saved,
            record=Record(layout=RowLayout(y0)),
            status=statuses[bad[0]] if bad else Status.SUCCESS,
            message=message,
            nfe=int(nfe.max()),
            n_rejected=int(rejected.max()),
            samples=Samples(
                statuses=statuses,
                times=torch.tensor(array("d", reached), dtype=torch.float64),
                n_accepted=accepted,
                n_rejected=rejected,
                nfe=nfe,
                events=torch.full((count,), -1),
            ),
        )

    @torch.no_grad()
    def adjoint(self, task: AdjointTask) -> tuple[Tensor | None, list[Tensor | None]] | None:
        """In Julia where the field is held there: its products are made there too, and nothing crosses in between."""
        solve, y0, f = task.solve, task.ys[0], task.solve.f
        form = jobs.state_form(f, y0)
        field = jobs.native(f, form)
        if field is None or not isinstance(f, UserFunction):
            return None
        if getattr(solve.algorithm, "mass_matrix", None) is not None:
            raise ConfigError("a solve with a mass_matrix gives values, and no gradients")
        layout = Layout([y0, y0, *field.args])
        n, parts = form.n, solve.norm.parts
        if task.rule is None:
            rest = () if task.seminorm else layout.parts[2:]
            parts = (
                *((a + i, a + j) for a in (0, n) for i, j in parts or ((0, n),)),
                *(p for p in rest if p[1] > p[0]),
            )
            n = layout.parts[-1][1]
        start, total = form.flat(torch.zeros_like(y0)), [torch.zeros_like(x) for x in field.parameters]
        times = array("d", task.ts)
        rule = array("d", np.concatenate(task.rule) if task.rule else ())
        job = Job(
            device=jobs.device(form),
            field=field,
            jvp=jobs.product(f, form, solve.algorithm, timed=True),
            **field.field.products(y0, field.args),
            ts=times.buffer_info(),
            states=tuple(map(form.flat, task.ys)),
            cotangents=tuple(None if c is None else form.flat(c) for c in task.cotangents),
            out=start,
            parameters_out=total,
            forward=jobs.way(solve.algorithm, form.n),
            backward=jobs.way(task.algorithm, n),
            rule=rule.buffer_info() if rule else None,
            parts=parts,
        )
        name, t, nfe, products = self._run("adjoint", job)
        f.stats.nfe_backward += nfe + products
        f.stats.n_vjp += products
        if not (status := Status[name]).ok:
            where = f"the backward solve by {task.algorithm.name} failed: {status.value} (at t = {t:.6g})"
            raise SolveError(f"{where}; give the adjoint an algorithm of its own, with other tolerances or more steps")
        gradients = [g.reshape(x.shape) for g, x in zip(total, field.args, strict=True)]
        shares = [[g for g, x in zip(gradients, field.args, strict=True) if x is w] for w in task.wrt]
        return form.state(start), [sum(share[1:], share[0]) if share else None for share in shares]

    @torch.no_grad()
    def find_fixed_point(self, f: AbstractMap, z0: Tensor, algorithm: AbstractFixedPointAlgorithm) -> FixedPoint:
        if isinstance(algorithm, NewtonKrylov) and (algorithm.preconditioner is not None or algorithm.differences):
            raise ConfigError("NewtonKrylov with a preconditioner or differences needs backend='pytorch'")
        return find_fixed_point(f, z0, algorithm, self._search)

    def _search(self, f: AbstractMap, z0: Tensor, algorithm: AbstractFixedPointAlgorithm) -> FixedPoint:
        """Every row to its own end; all of them are evaluated all the time.

        Raises:
            Mixes: if rows that ended before others depend on them.
        """
        form = jobs.batch_form(f, z0)
        function = jobs.native(f, form) or Callback(f, form, timed=False)
        method = methods.chosen(methods.spelled_out(algorithm, form.n))
        value = form.empty()
        job = Job(
            device=jobs.device(form),
            map=function,
            jvp=jobs.product(f, form, algorithm),
            z0=form.flat(z0),
            out=form.flat(value),
            method=method,
            samples=len(z0),
            rtol=algorithm.rtol,
            atol=algorithm.atol,
            max_steps=algorithm.max_steps,
        )
        residuals, iterations, names, nfe, n_jvp = self._run("fixed_point", job)
        statuses = np.array([Status[name] for name in names], dtype=object)
        status, message = verdict(algorithm, statuses, np.array(residuals), np.array(iterations))
        value = StateForm(z0).laid_out(value)
        parted = len(set(iterations)) > 1 and isinstance(f, UserFunction) and f.separates is None
        if parted and (isinstance(function, Callback) or z0.device.type == "cpu"):
            f.separable((value,), f(value), torch.arange(max(1, len(z0) // 2), device=z0.device))
        return FixedPoint(
            value=value,
            residuals=torch.tensor(residuals, dtype=torch.float64),
            iterations=torch.tensor(iterations, dtype=torch.int64),
            converged=torch.tensor([s is Status.SUCCESS for s in statuses], dtype=torch.bool),
            status=status,
            message=message,
            nfe=nfe,
            n_jvp=n_jvp,
        )

    @torch.no_grad()
    def trace_path(self, r: AbstractMap, z0: Tensor, algorithm: AbstractPathAlgorithm, *, kind: str) -> Path:
        form = jobs.state_form(r, z0)
        function = jobs.native(r, form) or Callback(r, form, timed=False)
        states: list[Tensor] = []
        job = Job(
            device=jobs.device(form),
            map=function,
            jvp=jobs.product(r, form, algorithm),
            z0=form.flat(z0),
            tracker=methods.tracker(algorithm),
            kind=kind,
            keep=jobs.keeper(form, states),
        )
        answer = self._run("trace_path", job)
        s, lambdas, residuals, folds, name, nfe, n_jvp, n_rejected, step = answer
        status = Status[name]
        return Path(
            s=torch.tensor(s, dtype=torch.float64),
            lambdas=torch.tensor(lambdas, dtype=torch.float64),
            states=states,
            residuals=torch.tensor(residuals, dtype=torch.float64),
            folds=folds,
            status=status,
            message=endings.of_path(
                algorithm, status, s, lambdas, residuals, states[-1], rejected=n_rejected, step=step
            ),
            nfe=nfe,
            n_jvp=n_jvp,
            n_rejected=n_rejected,
        )
