"""The bridge to Julia: no copies, errors in Python's terms, fields held in Julia, and what must not crash."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from types import SimpleNamespace

import pytest
import torch

import homojl as hj
from homojl.solution import Status
from tests.catalogue import EXACT_ODES

pytestmark = pytest.mark.needs("julia")

TIGHT = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture
def julia():
    from homojl.backends.julia import runtime

    return runtime.start()


def run_python(code: str, *, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess:
    """The code in a process of its own, where a crash harms nobody."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **environment},
    )


class TestMemory:
    """Tensors are shared, never copied."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_julia_borrows_the_memory_of_a_tensor(self, julia, dtype):
        tensor = torch.arange(6, dtype=dtype)
        pointer_and_type = julia.jl.seval(
            "function (bridge, job); bridge.with_loans(job) do job, loans; v = bridge.borrow(loans, job.tensor); "
            "(Int(pointer(v)), string(eltype(v))) end end"
        )
        address, kind = pointer_and_type(julia.bridge, SimpleNamespace(tensor=tensor, device=None))
        assert address == tensor.data_ptr()
        assert kind == {torch.float32: "Float32", torch.float64: "Float64"}[dtype]

    def test_the_memory_is_given_back_at_once(self, julia):
        tensor = torch.zeros(4)
        references = sys.getrefcount(tensor)
        sevens = julia.jl.seval(
            "(bridge, job) -> bridge.with_loans((job, loans) -> (bridge.borrow(loans, job.tensor) .= 7; nothing), job)"
        )
        job = SimpleNamespace(tensor=tensor, device=None)
        sevens(julia.bridge, job)
        del job.tensor
        assert tensor.tolist() == [7.0] * 4
        assert sys.getrefcount(tensor) == references

    def test_julias_memory_is_viewed_as_a_tensor(self, julia):
        from homojl.backends.julia.tensors import Callback, StateForm

        callback = Callback(lambda y: y, StateForm(torch.zeros(2, 3)), timed=False)
        vector = julia.jl.seval("v = collect(1.0f0:6.0f0)")
        view = callback.view(julia.jl.seval("Int(pointer(v))"), vector)
        assert view.data_ptr() == julia.jl.seval("Int(pointer(v))")
        assert view.tolist() == [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]

    @pytest.mark.parametrize("n", [6, 20_000], ids=["buffered", "viewed"])
    def test_the_field_sees_shape_and_memory_format(self, n):
        seen = []
        y0 = torch.randn(2, 3, n // 6 + 1, 2).to(memory_format=torch.channels_last)

        def field(t, y):
            seen.append((y.shape, y.stride(), y.dtype, t.shape, t.dtype))
            return -y * t

        hj.solve(hj.ODEProblem(field, y0, (0.0, 1.0)), hj.Tsit5(), backend="julia")
        assert set(seen) == {(y0.shape, y0.stride(), torch.float32, torch.Size([]), torch.float32)}

    @pytest.mark.parametrize("n", [4, 9000], ids=["buffered", "viewed"])
    def test_a_result_in_another_layout_is_laid_out(self, n):
        y0 = torch.randn(3, n, dtype=torch.float64)
        problem = hj.ODEProblem(lambda t, y: -(y.T.contiguous().T), y0, (0.0, 1.0))
        value = hj.solve(problem, hj.Tsit5(**TIGHT), backend="julia").value
        torch.testing.assert_close(value, y0 * math.exp(-1), rtol=1e-7, atol=1e-7)

    def test_a_field_that_returns_its_input_is_right(self):
        problem = hj.ODEProblem(lambda t, y: y, torch.ones(3, dtype=torch.float64), (0.0, 1.0))
        value = hj.solve(problem, hj.Tsit5(**TIGHT), backend="julia").value
        torch.testing.assert_close(value, torch.full((3,), math.e, dtype=torch.float64), rtol=1e-7, atol=1e-7)

    def test_a_field_that_changes_its_form_midway_is_refused(self):
        calls = []

        def field(t, y):
            calls.append(t)
            return y if len(calls) < 5 else y[:1]

        with pytest.raises(hj.ConfigError, match="must return what y0 is"):
            hj.solve(hj.ODEProblem(field, torch.ones(3), (0.0, 1.0)), hj.Tsit5(), backend="julia")


class TestAgreement:
    """Both backends take the same accepted steps."""

    @pytest.mark.parametrize("problem", EXACT_ODES, ids=lambda p: p.name)
    @pytest.mark.parametrize("cls", [hj.Dopri5, hj.Tsit5, hj.Bosh3], ids=lambda c: c.__name__)
    @pytest.mark.parametrize("tolerance", [1e-3, 1e-6, 1e-9])
    def test_same_steps(self, problem, cls, tolerance):
        if cls is hj.Bosh3 and tolerance < 1e-6:
            tolerance = 1e-7
        ode = hj.ODEProblem(problem.f, problem.y0, (problem.t0, (problem.t0 + problem.t1) / 2, problem.t1))
        ours, theirs = (hj.solve(ode, cls(rtol=tolerance, atol=tolerance), backend=b) for b in ("pytorch", "julia"))
        assert (ours.stats.nfe, ours.stats.n_accepted, ours.stats.n_rejected) == (
            theirs.stats.nfe,
            theirs.stats.n_accepted,
            theirs.stats.n_rejected,
        )
        assert [i for i, _ in ours.steps.saves] == [i for i, _ in theirs.steps.saves]
        torch.testing.assert_close(torch.tensor(ours.steps.sizes), torch.tensor(theirs.steps.sizes), rtol=1e-4, atol=0)
        torch.testing.assert_close(ours.ys, theirs.ys, rtol=tolerance / 10, atol=tolerance / 10)

    def test_checkpoint_takes_julias_own_steps_again_to_rounding(self):
        """The states that PyTorch reaches from Julia's step sequence are Julia's."""
        problem = EXACT_ODES[1]
        ode = hj.ODEProblem(problem.f, problem.y0, (problem.t0, 0.9, problem.t1))
        algorithm = hj.Dopri5(rtol=1e-5, atol=1e-5)
        julias = hj.solve(ode, algorithm, backend="julia", adjoint=hj.CheckpointAdjoint())
        start = problem.y0.clone().requires_grad_()
        replayed = hj.solve(
            hj.ODEProblem(problem.f, start, ode.ts), algorithm, backend="julia", adjoint=hj.DirectAdjoint()
        )
        assert replayed.ys.requires_grad
        torch.testing.assert_close(replayed.ys.detach(), julias.ys, rtol=1e-14, atol=1e-14)


class TestErrors:
    def test_an_exception_in_the_field_keeps_its_class(self):
        class Mine(Exception):
            pass

        def field(t, y):
            raise Mine("from within")

        with pytest.raises(Mine, match="from within"):
            hj.solve(hj.ODEProblem(field, torch.ones(2), (0.0, 1.0)), hj.Tsit5(), backend="julia")

    def test_the_next_solve_works(self):
        self.test_an_exception_in_the_field_keeps_its_class()
        problem = EXACT_ODES[0]
        ode = hj.ODEProblem(problem.f, problem.y0, (problem.t0, problem.t1))
        value = hj.solve(ode, hj.Tsit5(**TIGHT), backend="julia").value
        torch.testing.assert_close(value, problem.exact(problem.t1), rtol=1e-7, atol=1e-7)

    def test_julia_methods_only(self):
        with pytest.raises(hj.BackendUnavailable, match=r"no Dopri8.*backend='pytorch'"):
            hj.solve(hj.ODEProblem(torch.neg, torch.ones(2), (0.0, 1.0)), hj.Dopri8(), backend="julia")
        with pytest.raises(hj.BackendUnavailable, match=r"no Rodas5P.*needs backend='julia'"):
            hj.solve(hj.ODEProblem(torch.neg, torch.ones(2), (0.0, 1.0)), hj.Rodas5P(), backend="pytorch")

    def test_a_solve_within_a_field(self):
        """A field may itself solve in Julia."""

        def inner(y):
            problem = hj.ODEProblem(lambda t, z: -z, y.clone(), (0.0, 0.1))
            return hj.solve(problem, hj.Tsit5(**TIGHT), backend="julia").value

        problem = hj.ODEProblem(lambda t, y: -inner(y), torch.ones(2, dtype=torch.float64), (0.0, 1.0))
        value = hj.solve(problem, hj.Tsit5(**TIGHT), backend="julia").value
        expected = math.exp(-math.exp(-0.1))
        torch.testing.assert_close(value, torch.full((2,), expected, dtype=torch.float64), rtol=1e-7, atol=1e-7)


class TestStiff:
    """Methods that only Julia has, on fields in PyTorch."""

    @staticmethod
    def robertson(t, y):
        a, b, c = y.unbind()
        r1, r2, r3 = 0.04 * a, 1e4 * b * c, 3e7 * b * b
        return torch.stack([r2 - r1, r1 - r2 - r3, r3])

    @pytest.mark.parametrize("cls", [hj.Rodas5P, hj.TRBDF2, hj.FBDF, hj.AutoSwitch], ids=lambda c: c.__name__)
    @pytest.mark.parametrize("linear_solver", ["dense", "krylov"])
    def test_robertson(self, cls, linear_solver):
        y0 = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
        algorithm = cls(rtol=1e-6, atol=1e-10, linear_solver=linear_solver)
        solution = hj.solve(hj.ODEProblem(self.robertson, y0, (0.0, 40.0)), algorithm, backend="julia")
        # Hairer, Wanner (1996), IV.10, at t = 40 to ten figures.
        expected = torch.tensor([0.7158270688, 9.185534765e-6, 0.2841637457], dtype=torch.float64)
        torch.testing.assert_close(solution.value, expected, rtol=1e-4, atol=1e-9)
        assert solution.stats.n_accepted < 400

    def test_the_gradient_by_the_continuous_adjoints(self):
        rate = torch.tensor([3.0], dtype=torch.float64, requires_grad=True)
        problem = hj.ODEProblem(lambda t, y, k: -k * y, torch.ones(1, dtype=torch.float64), (0.0, 1.0), args=(rate,))
        for adjoint in (hj.GaussAdjoint(), hj.BacksolveAdjoint()):
            value = hj.solve(problem, hj.Rodas5P(**TIGHT), adjoint=adjoint, backend="julia").value
            (gradient,) = torch.autograd.grad(value.sum(), rate)
            assert gradient.item() == pytest.approx(-math.exp(-3), rel=1e-5)

    def test_checkpoints_are_refused(self):
        y0 = torch.ones(1, requires_grad=True)
        with pytest.raises(hj.ConfigError, match=r"no tableau of Rodas5P.*GaussAdjoint"):
            hj.solve(
                hj.ODEProblem(lambda t, y: -y, y0, (0.0, 1.0)),
                hj.Rodas5P(),
                adjoint=hj.CheckpointAdjoint(),
                backend="julia",
            )


class TestJuliaField:
    """Fields and maps written in Julia."""

    ROTATION = "f!(du, u, p, t) = (du[1, :] .= u[2, :]; du[2, :] .= .-u[1, :]; nothing)"

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_states_are_seen_with_dimensions_reversed(self, dtype):
        y0 = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]], dtype=dtype)
        problem = hj.ODEProblem(hj.JuliaField(self.ROTATION), y0, (0.0, math.pi / 2))
        value = hj.solve(problem, hj.Tsit5(rtol=1e-6, atol=1e-6), backend="julia").value
        expected = torch.tensor([[0.0, -1.0], [2.0, 0.0], [0.0, -3.0]], dtype=dtype)
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)

    def test_it_is_evaluated_in_pytorchs_solves_too(self):
        y0 = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        problem = hj.ODEProblem(hj.JuliaField(self.ROTATION), y0, (0.0, 1.0))
        ours, theirs = (hj.solve(problem, hj.Dopri5(**TIGHT), backend=b) for b in ("pytorch", "julia"))
        torch.testing.assert_close(ours.value, theirs.value, rtol=1e-12, atol=1e-12)
        assert ours.stats.nfe == theirs.stats.nfe

    @pytest.mark.parametrize(
        "adjoint", [hj.DirectAdjoint(), hj.CheckpointAdjoint(), hj.GaussAdjoint(), hj.BacksolveAdjoint()]
    )
    def test_gradients_by_forward_differentiation(self, adjoint):
        field = hj.JuliaField("f!(du, u, p, t) = (du .= .-p[1] .* u .* u .+ p[2] .* t; nothing)")
        y0 = torch.tensor([0.5, 1.0], dtype=torch.float64, requires_grad=True)
        a = torch.tensor([1.5, 0.7], dtype=torch.float64, requires_grad=True)
        b = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)

        def solved(f, backend, adjoint):
            problem = hj.ODEProblem(f, y0, (0.0, 0.4, 1.0), args=(a, b))
            ys = hj.solve(problem, hj.Tsit5(**TIGHT), adjoint=adjoint, backend=backend).ys
            return torch.autograd.grad(ys.square().sum(), (y0, a, b))

        expected = solved(lambda t, y, a, b: -a * y * y + b * t, "pytorch", hj.DirectAdjoint())
        for theirs, ours in zip(solved(field, "julia", adjoint), expected, strict=True):
            torch.testing.assert_close(theirs, ours, rtol=1e-6, atol=1e-7)

    def test_a_stiff_one_is_differentiated_in_julia(self):
        source = """
        function f!(du, u, p, t)
            r1, r2, r3 = 0.04 * u[1], 1e4 * u[2] * u[3], 3e7 * u[2]^2
            du[1], du[2], du[3] = r2 - r1, r1 - r2 - r3, r3
            return nothing
        end
        """
        y0 = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
        problem = hj.ODEProblem(hj.JuliaField(source), y0, (0.0, 40.0))
        value = hj.solve(problem, hj.Rodas5P(rtol=1e-8, atol=1e-10), backend="julia").value
        assert value[0].item() == pytest.approx(0.7158270688, rel=1e-6)

    def test_an_equilibrium_and_a_path(self):
        layer = hj.JuliaField("f!(out, z, p) = (out .= tanh.(0.5 .* z .+ p); nothing)")
        z0, x = torch.zeros(2, 3, dtype=torch.float64), torch.full((2, 3), 0.3, dtype=torch.float64)
        equilibrium = hj.solve(hj.FixedPointProblem(layer, z0, args=(x,)), hj.Anderson(**TIGHT), backend="julia")
        torch.testing.assert_close(torch.tanh(0.5 * equilibrium.value + x), equilibrium.value, rtol=1e-8, atol=1e-8)
        residual = hj.JuliaField("r!(out, z, p) = (out .= z .- tanh.(0.5 .* z .+ p); nothing)")
        path = hj.solve(hj.HomotopyProblem(residual, z0, "newton", (x,)), hj.ArcLength(), backend="julia")
        torch.testing.assert_close(path.value, equilibrium.value, rtol=1e-5, atol=1e-6)

    def test_a_function_of_a_package(self):
        field = hj.JuliaField("import LinearAlgebra; f!(du, u, p, t) = LinearAlgebra.mul!(du, p, u)")
        # Seen from Julia the matrix is transposed.
        matrix = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
        y0 = torch.tensor([1.0, 0.0], dtype=torch.float64)
        value = hj.solve(hj.ODEProblem(field, y0, (0.0, 1.0), args=(matrix,)), hj.Tsit5(**TIGHT), backend="julia").value
        expected = torch.linalg.matrix_exp(matrix.T) @ y0
        torch.testing.assert_close(value, expected, rtol=1e-7, atol=1e-7)

    @pytest.mark.parametrize(
        ("source", "error", "message"),
        [
            ("1 + 1", hj.ConfigError, "must end in a function"),
            ("f!(du, u, p, t) = (", hj.JuliaCodeError, "ParseError"),
            ('error("no")', hj.JuliaCodeError, "no"),
        ],
    )
    def test_bad_source(self, source, error, message):
        with pytest.raises(error, match=message):
            hj.JuliaField(source)

    def test_what_it_throws_is_named(self):
        field = hj.JuliaField('f!(du, u, p, t) = error("out of range here")')
        with pytest.raises(hj.JuliaCodeError, match="out of range here"):
            hj.solve(hj.ODEProblem(field, torch.ones(2), (0.0, 1.0)), hj.Tsit5(), backend="julia")

    def test_one_that_takes_no_dual_numbers_says_so(self):
        field = hj.JuliaField("f!(du::Vector{Float64}, u::Vector{Float64}, p, t) = (du .= .-u; nothing)")
        y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
        value = hj.solve(
            hj.ODEProblem(field, y0, (0.0, 1.0)), hj.Tsit5(), adjoint=hj.CheckpointAdjoint(), backend="julia"
        ).value
        with pytest.raises(hj.JuliaCodeError, match=r"(?i)no method matching|ForwardDiff"):
            value.sum().backward()


class TestInAProcessOfItsOwn:
    """What could crash or hang."""

    SOLVE = """
    import torch, homojl as hj
    y0 = torch.ones(3, dtype=torch.float64)
    problem = hj.ODEProblem(lambda t, y: -y, y0, (0.0, 1.0))
    value = hj.solve(problem, hj.Tsit5(rtol=1e-9, atol=1e-9), backend="julia").value
    assert abs(value[0].item() - 0.36787944117) < 1e-7
    print("solved")
    """

    @pytest.mark.parametrize("first", ["import torch", "import juliacall", "import homojl"])
    def test_every_order_of_imports(self, first):
        done = run_python(first + "\n" + textwrap.dedent(self.SOLVE))
        assert done.stdout.strip().endswith("solved"), done.stderr
        assert done.returncode == 0
        assert "torch was imported before" not in done.stderr

    @pytest.mark.parametrize(
        "field",
        ["lambda t, y: (time.sleep(0.001), -y)[1]", "hj.JuliaField('f!(du, u, p, t) = (du .= .-u; nothing)')"],
        ids=["in Python", "in Julia"],
    )
    def test_ctrl_c_ends_a_solve_and_the_next_one_works(self, field):
        code = f"""
        import time, torch, homojl as hj
        field = {field}
        y0 = torch.ones(3)
        hj.solve(hj.ODEProblem(field, y0, (0.0, 1.0)), hj.Euler(step_size=0.5), backend="julia")
        print("go", flush=True)
        try:
            hj.solve(hj.ODEProblem(field, y0, (0.0, 1e9)), hj.Euler(step_size=1.0), backend="julia")
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        hj.solve(hj.ODEProblem(field, y0, (0.0, 1.0)), hj.Euler(step_size=0.5), backend="julia")
        print("solved", flush=True)
        """
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout.readline() == "go\n", process.stderr.read()
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
        assert out == "interrupted\nsolved\n", err
        assert process.returncode == 0

    @pytest.mark.parametrize("first_use", ["main", "worker"])
    def test_a_backward_pass_from_a_worker_thread(self, first_use):
        code = f"""
        import threading, torch, homojl as hj
        w = torch.tensor([0.7, 0.2], dtype=torch.float64, requires_grad=True)
        def solve(junk=True):
            # Fields that allocate, so that a garbage collection would be due.
            f = lambda t, y, w: -w * y + 0 * torch.zeros(4, 2, dtype=torch.float64).sum(0)
            problem = hj.ODEProblem(f, torch.ones(2, dtype=torch.float64), (0.0, 1.0), args=(w,))
            return hj.solve(problem, hj.Tsit5(rtol=1e-8, atol=1e-8), adjoint=hj.BacksolveAdjoint(), backend="julia")
        if {first_use == "main"}:
            solve()
        errors = []
        def work():
            try:
                for _ in range(200):
                    w.grad = None
                    solve().value.sum().backward()
            except BaseException as error:
                errors.append(error)
        for _ in range(3):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()  # this thread waits outside Julia, as in PyTorch's engine
            from homojl.backends.julia import runtime
            solve()
        assert not errors, errors
        expected = -torch.exp(-w.detach())
        assert torch.allclose(w.grad, expected, atol=1e-5), w.grad
        print("done")
        """
        done = run_python(code)
        assert done.stdout.strip().endswith("done"), done.stderr[-2000:]
        assert done.returncode == 0

    @pytest.mark.parametrize("first_use", ["main", "worker"])
    def test_garbage_is_collected_during_a_solve_in_a_worker_thread(self, first_use):
        """The derivative is how often Julia has collected since the solve began."""
        code = f"""
        import threading, torch, homojl as hj
        SOURCE = (
            "const before = Ref(-1); function f(u, p, t); x = fill(t, 50_000); n = Base.gc_num().pause; "
            "before[] < 0 && (before[] = n); 0 .* u .+ (n - before[]) .+ 0 * x[1]; end"
        )
        values = []
        def solve():
            problem = hj.ODEProblem(hj.JuliaField(SOURCE), torch.zeros(1), (0.0, 1.0))
            values.append(hj.solve(problem, hj.Euler(step_size=5e-4), backend="julia").value.item())
        if {first_use == "main"}:
            solve()
        thread = threading.Thread(target=solve)
        thread.start()
        thread.join()
        solve()
        print("collected", all(v > 0 for v in values), values)
        """
        done = run_python(code)
        assert "collected True" in done.stdout, done.stdout + done.stderr[-2000:]
        assert done.returncode == 0

    def test_ten_thousand_solves_do_not_grow(self):
        code = """
        import gc, torch, homojl as hj
        def resident():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * 4096
        y0 = torch.randn(16, 2)
        large = torch.randn(10_000)
        def some(n):
            for i in range(n):
                field, start = (lambda t, y: -y), (large if i % 10 == 0 else y0)
                problem = hj.ODEProblem(field, start, (0.0, 0.5, 1.0))
                hj.solve(problem, hj.Tsit5(), adjoint=hj.CheckpointAdjoint(), backend="julia")
        some(2000)
        gc.collect()
        before = resident()
        some(10_000)
        gc.collect()
        growth = resident() - before
        print(growth)
        assert growth < 64 * 2**20, growth
        """
        done = run_python(code, OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stderr[-2000:]

    def test_the_first_solve_needs_no_other_package(self):
        """An explicit solve loads nothing of the heavy solvers."""
        code = (
            self.SOLVE
            + """
    from homojl.backends.julia import runtime
    loaded = str(runtime.start().jl.seval("join([id.name for id in keys(Base.loaded_modules)], ' ')")).split()
    assert "ZeroPaths" in loaded
    assert not {"NonlinearSolve", "OrdinaryDiffEqRosenbrock", "SteadyStateDiffEq"} & set(loaded), loaded
    """
        )
        done = run_python(code)
        assert done.returncode == 0, done.stderr[-2000:]


def test_status_of_a_solve_that_runs_out_of_steps():
    problem = hj.ODEProblem(lambda t, y: torch.sin(50 * t) * y, torch.ones(1), (0.0, 50.0, 100.0))
    solution = hj.solve(problem, hj.Tsit5(max_steps=20), backend="julia", throw=False)
    assert solution.status is Status.MAX_STEPS
    assert len(solution.states) == len(solution.ts) == 2
    assert 0 < solution.ts[-1] < 100
