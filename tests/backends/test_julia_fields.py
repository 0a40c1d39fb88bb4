"""Functions held in Julia: the forms they may have, their gradients, and what is said where they are wrong."""

from __future__ import annotations

import ast
import math
import pickle
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import forward_ad

import homojl as hj
from tests.backends.test_julia import run_python

pytestmark = [pytest.mark.needs("julia"), pytest.mark.slow]

TIGHT = {"rtol": 1e-9, "atol": 1e-9}


def decayed(source: str, n: int = 2) -> torch.Tensor:
    problem = hj.ODEProblem(hj.JuliaField(source), torch.ones(n, dtype=torch.float64), (0.0, 1.0))
    return hj.solve(problem, hj.Tsit5(**TIGHT), backend="julia").value


class TestForms:
    @pytest.mark.parametrize(
        "source",
        [
            "f!(du, u, p, t) = (du .= .-u)",
            "f(u, p, t) = -u",
            "struct Rate; k; end; (r::Rate)(du, u, p, t) = (du .= .-r.k .* u); Rate(1.0)",
        ],
        ids=["in place", "out of place", "callable"],
    )
    def test_a_field_writes_or_returns(self, source):
        torch.testing.assert_close(
            decayed(source), torch.full((2,), math.exp(-1), dtype=torch.float64), rtol=1e-8, atol=0
        )

    def test_a_map_that_returns(self):
        z0, x = torch.zeros(2, 1, dtype=torch.float64), torch.tensor([[0.3], [0.1]], dtype=torch.float64)
        x.requires_grad_()
        problem = hj.FixedPointProblem(hj.JuliaField("f(z, p) = tanh.(0.5 .* z .+ p)"), z0, args=(x,))
        value = hj.solve(problem, hj.Anderson(rtol=1e-10, atol=1e-12), backend="julia").value
        torch.testing.assert_close(torch.tanh(0.5 * value + x), value, rtol=1e-8, atol=1e-8)
        (gradient,) = torch.autograd.grad(value.sum(), x)
        slope = 1 - value.detach() ** 2
        torch.testing.assert_close(gradient, slope / (1 - 0.5 * slope), rtol=1e-5, atol=1e-7)

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("f(du, u, p, t) = -u", r"does not write 2 of the 2 elements.*with the dot"),
            ("f(du, u, p, t) = (du[1] = -u[1])", r"does not write 1 of the 2 elements"),
            ("f(u) = -u", r"a field of an ODE is f!\(du, u, p, t\)"),
            ("f(u, p, t) = 0.0", "must return an array of size"),
        ],
    )
    def test_one_that_neither_writes_nor_returns_is_refused(self, source, message):
        with pytest.raises((hj.ConfigError, hj.JuliaCodeError), match=message):
            decayed(source)

    def test_a_value_that_is_no_number_is_not_taken_for_one_left_out(self):
        with pytest.raises(hj.SolveError, match="no longer finite"):
            decayed("f!(du, u, p, t) = (du .= NaN)")


class TestErrors:
    def test_an_argument_error_of_the_field_is_its_own(self):
        with pytest.raises(hj.JuliaCodeError, match="ArgumentError: mine"):
            decayed('f!(du, u, p, t) = throw(ArgumentError("mine"))')

    def test_a_parse_error_points_at_its_place(self):
        with pytest.raises(hj.JuliaCodeError, match="ParseError") as caught:
            hj.JuliaField("function f!(du, u, p, t)\n    du .= (1 + \nend")
        lines = str(caught.value).splitlines()
        assert len(lines) >= 3
        assert any("du .= (1 +" in line for line in lines)

    def test_a_method_error_names_the_call_and_no_candidates(self):
        with pytest.raises(hj.JuliaCodeError, match="no method matching") as caught:
            decayed('f!(du, u, p, t) = (du .= u .+ "x")')
        assert "Closest candidates" not in str(caught.value)
        assert len(str(caught.value)) < 300

    @pytest.mark.parametrize(
        ("source", "message"),
        [
            ("f!(du, u, p, t) = (u .*= 0.5; du .= .-u; nothing)", "changes its state or its parameters"),
            ("f!(du, u, p, t) = (p .*= 0.9; du .= .-p .* u; nothing)", "changes its state or its parameters"),
            ("f(u, p, t) = permutedims(u)", r"must return an array of size \(3, 2\)"),
        ],
    )
    def test_what_a_function_may_not_do(self, source, message):
        argument = torch.ones(1, dtype=torch.float64)
        problem = hj.ODEProblem(hj.JuliaField(source), torch.ones(2, 3, dtype=torch.float64), (0.0, 1.0), (argument,))
        with pytest.raises(hj.HomoJLError, match=message):
            hj.solve(problem, hj.Tsit5(), backend="julia")

    @pytest.mark.parametrize(
        ("vjp", "message"),
        [
            ("(du, dp, v, u, p, t) -> (du .= .-p .* v; nothing)", "vjp does not write 2 of the 2 elements of dp"),
            ("(du, dp, v, u, p, t) -> (v .*= -1; du .= p .* v; dp .= u .* v; nothing)", "vjp changes the cotangent"),
        ],
    )
    def test_what_a_product_may_not_do(self, vjp, message):
        k = torch.ones(2, dtype=torch.float64, requires_grad=True)
        problem = hj.ODEProblem(
            hj.JuliaField("f(u, p, t) = .-p .* u", vjp=vjp), torch.ones_like(k).detach(), (0.0, 1.0), (k,)
        )
        value = hj.solve(problem, hj.Tsit5(), adjoint=hj.GaussAdjoint(), backend="julia").value
        with pytest.raises(hj.JuliaCodeError, match=message):
            value.sum().backward()

    @pytest.mark.parametrize("dtype", [torch.int64, torch.float16, torch.complex64, torch.bool])
    def test_arguments_that_julia_would_misread(self, dtype):
        field = hj.JuliaField("f(u, p, t) = .-p[1] .* u")
        problem = hj.ODEProblem(field, torch.ones(2), (0.0, 1.0), (torch.ones(1).to(dtype),))
        with pytest.raises(hj.ConfigError, match="must be tensors of float32 or float64"):
            hj.solve(problem, hj.Tsit5(), backend="julia")

    @pytest.mark.parametrize("state", [torch.ones(2, 3, dtype=torch.complex64), (torch.ones(2, 3), torch.ones(2, 1))])
    def test_states_of_one_real_tensor_alone(self, state):
        field = hj.JuliaField("f(z, p) = 0.5 .* z")
        with pytest.raises(hj.ConfigError, match="must be one tensor of float32 or float64"):
            hj.FixedPointProblem(field, state)

    def test_a_second_derivative_is_refused(self):
        """Where other parts of the loss have one, PyTorch would leave the field's out in silence."""
        x = torch.full((4, 1), 0.3, dtype=torch.float64, requires_grad=True)
        problem = hj.FixedPointProblem(
            hj.JuliaField("f(z, p) = 0.25 .* z .* z .+ p"), torch.zeros_like(x).detach(), (x,)
        )
        value = hj.solve(problem, hj.Anderson(rtol=1e-10, atol=1e-10), backend="julia").value
        (first,) = torch.autograd.grad((value * value).sum(), x, create_graph=True)
        with pytest.raises(hj.ConfigError, match="first derivatives only"):
            torch.autograd.grad(first.sum(), x)

    def test_infinite_recursion_is_an_error(self):
        code = """
        import torch, homojl as hj
        field = hj.JuliaField("g(x) = 1 + g(x + 1); f!(du, u, p, t) = (du .= g(u[1]))")
        for _ in range(2):
            try:
                hj.solve(hj.ODEProblem(field, torch.ones(1), (0.0, 1.0)), hj.Tsit5(), backend="julia")
            except hj.JuliaCodeError as error:
                print(error)
        print(hj.solve(hj.ODEProblem(torch.neg, torch.ones(1), (0.0, 1.0)), hj.RK4(), backend="pytorch").status.name)
        """.replace("torch.neg,", "lambda t, y: -y,")
        done = run_python(code)
        assert done.returncode == 0, done.stderr[-2000:]
        assert done.stdout.count("StackOverflowError: the function calls itself") == 2
        assert done.stdout.strip().endswith("SUCCESS")


QUADRATIC = "f!(du, u, p, t) = (du .= .-p[1] .* u .* u .+ p[2] .* t; nothing)"
OWN = """
function vjp!(du, dp, v, u, p, t)
    du .= .-2 .* p[1] .* u .* v
    dp[1] .= .-u .^ 2 .* v
    dp[2] .= sum(v) * t
end
"""


@pytest.mark.parametrize(
    "options", [{}, {"differentiation": "reverse"}, {"vjp": OWN}], ids=["forward", "reverse", "own"]
)
@pytest.mark.parametrize(
    ("algorithm", "adjoint"),
    [
        (hj.Tsit5(**TIGHT), hj.CheckpointAdjoint()),
        (hj.Tsit5(**TIGHT), hj.GaussAdjoint()),
        (hj.Rodas5P(**TIGHT), hj.BacksolveAdjoint()),
    ],
    ids=["checkpoint", "gauss", "stiff"],
)
def test_gradients_by_every_way_of_differentiating(algorithm, adjoint, options):
    field = hj.JuliaField(QUADRATIC, **options)
    y0 = torch.tensor([0.5, 1.0], dtype=torch.float64, requires_grad=True)
    a = torch.tensor([1.5, 0.7], dtype=torch.float64, requires_grad=True)
    b = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)

    def gradients(f, algorithm, adjoint, backend):
        problem = hj.ODEProblem(f, y0, (0.0, 0.4, 1.0), args=(a, b))
        ys = hj.solve(problem, algorithm, adjoint=adjoint, backend=backend).ys
        return torch.autograd.grad(ys.square().sum(), (y0, a, b))

    expected = gradients(lambda t, y, a, b: -a * y * y + b * t, hj.Tsit5(**TIGHT), hj.DirectAdjoint(), "pytorch")
    for found, exact in zip(gradients(field, algorithm, adjoint, "julia"), expected, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-6)


def test_a_stiff_method_of_pytorchs_on_a_field_in_julia():
    y0 = torch.tensor([0.5, 1.0], dtype=torch.float64)
    problem = hj.ODEProblem(hj.JuliaField("f(u, p, t) = -1000 .* (u .- cos(t))"), y0, (0.0, 1.0))
    value = hj.solve(problem, hj.KenCarp4(rtol=1e-6, atol=1e-8), backend="pytorch").value
    torch.testing.assert_close(value, torch.full_like(y0, math.cos(1.0)), rtol=1e-2, atol=0)


def test_under_vmap():
    field = hj.JuliaField("f(u, p, t) = .-p[1] .* u .* u")
    t, y = torch.zeros((), dtype=torch.float64), torch.tensor([[0.5, 1.0], [2.0, 3.0]], dtype=torch.float64)
    w = torch.tensor([[0.3], [0.7]], dtype=torch.float64)

    def gradient(y, w):
        return torch.func.grad(lambda w: field(t, y, w).sum())(w)

    torch.testing.assert_close(torch.func.vmap(field, (None, 0, 0))(t, y, w), -w * y * y)
    torch.testing.assert_close(torch.func.vmap(gradient)(y, w), -(y * y).sum(1, keepdim=True))


def test_bad_arguments_and_pickles():
    with pytest.raises(hj.ConfigError, match="unknown differentiation 'revers'; did you mean 'reverse'"):
        hj.JuliaField("f(u, p, t) = -u", differentiation="revers")
    field = pickle.loads(pickle.dumps(hj.JuliaField("f(u, p, t) = -u", differentiation="reverse")))
    assert (field.source, field.differentiation) == ("f(u, p, t) = -u", "reverse")


@pytest.mark.parametrize(
    ("own", "algorithm"),
    [(True, hj.Tsit5(**TIGHT)), (False, hj.Tsit5(**TIGHT)), (True, hj.FBDF(**TIGHT))],
    ids=["own", "reverse", "stiff"],
)
def test_the_brusselators_gradient(own, algorithm):
    bench = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "brusselator.py"))
    field = hj.JuliaField(bench["FIELD"], differentiation="reverse", vjp=bench["OWN"] if own else None)
    y0, ts = bench["start"](6), tuple(torch.linspace(0, 1, 11).tolist())

    def loss(p, algorithm):
        problem = hj.ODEProblem(field, y0, ts, args=(p,))
        ys = hj.solve(problem, algorithm, adjoint=hj.GaussAdjoint(), backend="julia").ys
        return ys[1:].square().mean()

    p = torch.tensor([3.4, 1.0, 0.01], dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(loss(p, algorithm), p)
    with torch.no_grad():
        for i, step in enumerate(torch.diag(1e-5 * p)):
            high, low = (loss(q, hj.Tsit5(**TIGHT)) for q in (p + step, p - step))
            difference = (high - low) / (2 * step[i])
            assert found[i].item() == pytest.approx(difference.item(), rel=1e-5)


@pytest.mark.parametrize("adjoint", [hj.GaussAdjoint, hj.BacksolveAdjoint], ids=lambda a: a.__name__)
def test_the_backward_pass_is_one_call(adjoint):
    field = hj.JuliaField("f!(du, u, p, t) = (du .= .-p .* u .+ reverse(u; dims = 1))")
    y0 = torch.rand(2, 3, dtype=torch.float64).t().requires_grad_()  # whose memory is in another order
    k = torch.rand(3, 2, dtype=torch.float64, requires_grad=True)
    problem = hj.ODEProblem(field, y0, (1.0, 0.6, 0.0), args=(k,))
    solution = hj.solve(problem, hj.Tsit5(**TIGHT), adjoint=adjoint(), backend="julia")
    found = torch.autograd.grad(solution.ys[1].sum() + solution.value.square().sum(), (y0, k))
    assert solution.stats.n_vjp > 0
    reference = hj.ODEProblem(lambda t, y, k: -k * y + y.flip(1), y0, (1.0, 0.6, 0.0), args=(k,))
    ys = hj.solve(reference, hj.Tsit5(**TIGHT), adjoint=hj.DirectAdjoint(), backend="pytorch").ys
    for ours, theirs in zip(found, torch.autograd.grad(ys[1].sum() + ys[-1].square().sum(), (y0, k)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_a_backward_pass_that_fails_says_so():
    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
    problem = hj.ODEProblem(hj.JuliaField("f!(du, u, p, t) = (du .= .-u)"), y0, (0.0, 1.0))
    adjoint = hj.GaussAdjoint(algorithm=hj.Tsit5(rtol=1e-10, atol=1e-10, max_steps=2))
    value = hj.solve(problem, hj.Tsit5(), adjoint=adjoint, backend="julia").value
    with pytest.raises(hj.SolveError, match="backward solve by Tsit5 failed: the largest number of steps"):
        value.sum().backward()


def test_tangents_by_the_state_alone():
    field, t, rates = hj.JuliaField("f(u, p, t) = p .* u"), torch.tensor(0.0), torch.tensor([3.0, 4.0])
    with forward_ad.dual_level():
        y = forward_ad.make_dual(torch.ones(2), torch.tensor([1.0, 0.5]))
        assert forward_ad.unpack_dual(field(t, y, rates)).tangent.tolist() == [3.0, 2.0]
        with pytest.raises(hj.ConfigError, match="tangents by its state alone"):
            field(t, y, forward_ad.make_dual(rates, torch.ones(2)))


class TestEnsembles:
    SOURCE = "f!(du, u, p, t) = (du[1] = -p[1] * u[1] + t; du[2] = p[1] * u[1] - u[2]; nothing)"

    def test_each_sample_has_steps_of_its_own(self):
        rates = torch.tensor([[0.1], [1.0], [40.0]], dtype=torch.float64)
        y0 = torch.tensor([[1.0, 0.0], [0.5, 0.2], [2.0, 1.0]], dtype=torch.float64)
        ts = (0.0, 0.3, 1.0)
        problem = hj.ODEProblem(hj.JuliaField(self.SOURCE), y0, ts, args=(hj.PerSample(rates),))
        solution = hj.solve(problem, hj.Tsit5(**TIGHT), batch="per-sample", backend="julia")

        def f(t, y, k):
            return torch.stack([-k[:, 0] * y[:, 0] + t, k[:, 0] * y[:, 0] - y[:, 1]], 1)

        reference = hj.ODEProblem(f, y0, ts, args=(hj.Shared(rates),))
        expected = hj.solve(reference, hj.Tsit5(rtol=1e-11, atol=1e-11), backend="pytorch").ys
        torch.testing.assert_close(solution.ys, expected, rtol=1e-6, atol=1e-8)
        assert solution.samples.n_accepted[2] > solution.samples.n_accepted[0]
        assert solution.stats.backend == "julia"

    def test_stiff_methods_shared_arguments_and_samples_that_fail(self):
        y0 = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
        field = hj.JuliaField("f(u, p, t) = p .* u .^ 2")
        problem = hj.ODEProblem(field, y0, (0.0, 2.0), args=(torch.ones(1, dtype=torch.float64),))
        solution = hj.solve(problem, hj.Rodas5P(), batch="per-sample", backend="julia", throw=False)
        assert not solution.status.ok
        assert [status.ok for status in solution.samples.statuses] == [False, True]
        assert "1 of 2 samples; sample 0" in solution.message
        assert solution.value[1].item() == pytest.approx(-1 / 3, rel=1e-3)

    def test_what_it_does_not_do_is_refused(self):
        y0 = torch.ones(2, 2, dtype=torch.float64, requires_grad=True)
        problem = hj.ODEProblem(hj.JuliaField("f(u, p, t) = -u"), y0, (0.0, 1.0))
        with pytest.raises(hj.ConfigError, match="values, and no gradients"):
            hj.solve(problem, hj.Tsit5(), batch="per-sample", backend="julia")
        with pytest.raises(hj.ConfigError, match="needs backend='julia'"), torch.no_grad():
            hj.solve(problem, hj.Tsit5(), batch="per-sample", backend="pytorch")
        own = hj.ODEProblem(hj.JuliaField('f(u, p, t) = t > 0.5 ? error("my own") : -u'), y0.detach(), (0.0, 1.0))
        with pytest.raises(hj.JuliaCodeError, match="my own"):
            hj.solve(own, hj.Tsit5(), batch="per-sample", backend="julia")
        massive = hj.SciML("Rodas5P", mass_matrix=torch.eye(2))
        normed = hj.Tsit5(norm=hj.ErrorNorm(function=torch.linalg.vector_norm))
        for algorithm, beyond in (
            (massive, "a mass_matrix"),
            (hj.Tsit5(observer=print), "an observer"),
            (normed, "a norm"),
        ):
            with pytest.raises(hj.ConfigError, match=f"does not go with {beyond}"):
                hj.solve(own, algorithm, batch="per-sample", backend="julia")

    @pytest.mark.parametrize(
        "algorithm", [hj.RK4(step_size=0.1), hj.SciML("Tsit5", step_size=0.1)], ids=["RK4", "Tsit5"]
    )
    def test_equal_steps_end_on_every_save_time(self, algorithm):
        y0 = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
        problem = hj.ODEProblem(hj.JuliaField("f(u, p, t) = -u .+ t"), y0, (0.0, 0.25, 1.0))
        solution = hj.solve(problem, algorithm, batch="per-sample", backend="julia")
        joint = hj.solve(problem, algorithm, backend="julia")
        torch.testing.assert_close(solution.ys, joint.ys, rtol=1e-12, atol=0)
        assert solution.samples.n_accepted.tolist() == [11, 11]

    def test_on_a_gpu_it_says_which_package_is_missing(self, monkeypatch):
        from homojl.backends.julia import backend, runtime

        asked = []
        monkeypatch.setattr(backend.JuliaBackend, "_has_cuda", lambda self: True)
        monkeypatch.setattr(torch.Tensor, "is_cuda", True)
        monkeypatch.setattr(runtime.start(), "calls", SimpleNamespace(load=lambda *names: asked.append(names)))
        problem = hj.ODEProblem(hj.JuliaField.__new__(hj.JuliaField), torch.ones(2, 2), (0.0, 1.0))
        with pytest.raises(hj.ConfigError, match="needs the Julia package DiffEqGPU; run `homojl julia add DiffEqGPU`"):
            hj.solve(problem, hj.Tsit5(), batch="per-sample", backend="julia")
        assert asked == [("DiffEqGPU", "")]

    @pytest.mark.needs("diffeqgpu")
    def test_kernels(self):
        """DiffEqGPU's kernels on this processor, where the bridge is told that they are what solves on plain memory."""
        done = run_python(KERNELS)
        assert done.returncode == 0, done.stderr[-2000:]


KERNELS = """
import torch, homojl as hj
from homojl.backends.julia import runtime

julia = runtime.start()
runtime.require(julia, "DiffEqGPU")
julia.jl.seval("ZeroPaths.kernels(::Vector) = Base.require(Main, :KernelAbstractions).CPU()")

def solved(source, y0, ts, args=(), algorithm=hj.Tsit5(rtol=1e-9, atol=1e-9), **options):
    problem = hj.ODEProblem(hj.JuliaField(source), y0, ts, args=args)
    return hj.solve(problem, algorithm, batch="per-sample", backend="julia", **options)

rates = torch.tensor([[0.1], [1.0], [40.0]], dtype=torch.float64)
ts = torch.tensor([0.0, 0.3, 1.0], dtype=torch.float64)
source = "f!(du, u, p, t) = (du[1] = -p[1][1] * u[1]; du[2] = p[2][1] * t; nothing)"
args = hj.PerSample(rates), torch.tensor([2.0], dtype=torch.float64)
for algorithm in (hj.Tsit5(rtol=1e-9, atol=1e-9), hj.Rodas5P(rtol=1e-9, atol=1e-9), hj.SciML("Vern7", step_size=1e-3)):
    solution = solved(source, torch.tensor([[1.0, 0.0]] * 3, dtype=torch.float64), ts.tolist(), args, algorithm)
    exact = torch.stack([torch.exp(-rates[:, 0] * ts[:, None]), (ts**2)[:, None].expand(3, 3)], 2)
    torch.testing.assert_close(solution.ys, exact, rtol=1e-6, atol=1e-8)
    assert solution.samples.nfe.tolist() == solution.samples.n_rejected.tolist() == [-1, -1, -1]
    assert solution.samples.n_accepted.min() > 0 and solution.samples.times.tolist() == [1.0, 1.0, 1.0]

y0 = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
solution = solved("f(u, p, t) = p .* u .^ 2", y0, (0.0, 0.5, 2.0), (torch.ones(1, dtype=torch.float64),), throw=False)
assert [status.ok for status in solution.samples.statuses] == [False, True], solution.samples
assert "1 of 2 samples; sample 0 at t = 1)" in solution.message, solution.message
assert abs(solution.value[1].item() + 1 / 3) < 1e-6
try:
    solved("f(u, p, t) = -u", y0, (0.0, 1.0), algorithm=hj.RK4())
except hj.ConfigError as error:
    assert str(error).startswith("DiffEqGPU's kernels have no RK4, but Kvaerno3"), error
else:
    raise AssertionError("RK4 was taken")
"""


@pytest.mark.needs("lux")
class TestLux:
    LAYERS = "using Lux; Chain(Dense(2 => 5, tanh), Dense(5 => 2))"

    @staticmethod
    def torchs(z, p):
        """The same layers in PyTorch; Julia's weights are (outputs, inputs), column by column."""
        w1, b1, w2, b2 = p.split([10, 5, 10, 2])
        hidden = torch.tanh(z @ w1.view(2, 5) + b1)
        return hidden @ w2.view(5, 2) + b2

    def test_layers_as_a_field(self):
        field = hj.JuliaField(self.LAYERS)
        p = field.first_parameters(dtype=torch.float64).requires_grad_()
        assert p.shape == (27,)
        assert not torch.equal(p, field.first_parameters(seed=1, dtype=torch.float64))
        y0 = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
        fields = {"julia": field, "pytorch": lambda t, y, p: self.torchs(y, p)}
        found = {}
        for backend, f in fields.items():
            problem = hj.ODEProblem(f, y0, (0.0, 0.5, 1.0), args=(p,))
            ys = hj.solve(problem, hj.Tsit5(**TIGHT), adjoint=hj.GaussAdjoint(), backend=backend).ys
            found[backend] = (ys, *torch.autograd.grad(ys.square().sum(), (y0, p)))
        for ours, theirs in zip(*found.values(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)

    def test_a_layer_as_a_map(self):
        field = hj.JuliaField("using Lux; Dense(2 => 2, tanh)")
        p = (0.3 * field.first_parameters(dtype=torch.float64)).requires_grad_()
        problem = hj.FixedPointProblem(field, torch.zeros(4, 2, dtype=torch.float64), args=(p,))
        value = hj.solve(problem, hj.Anderson(rtol=1e-10, atol=1e-12), backend="julia").value
        w, b = p.split([4, 2])
        torch.testing.assert_close(torch.tanh(value @ w.view(2, 2) + b), value, rtol=1e-8, atol=1e-9)
        (gradient,) = torch.autograd.grad(value.sum(), p)
        assert gradient.isfinite().all()

    def test_a_function_has_no_parameters(self):
        with pytest.raises(hj.ConfigError, match="only a layer of Lux has"):
            hj.JuliaField("f(u, p, t) = -u").first_parameters()


@pytest.fixture(scope="module")
def block():
    """The field of HomoODE and map of DEQ that the gallery writes in Julia."""
    script = Path(__file__).parents[2] / "docs" / "gallery" / "julia_layers.py"
    (source,) = [
        node.args[0].value
        for node in ast.walk(ast.parse(script.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "hj.JuliaField"
    ]
    return hj.JuliaField(source)


@pytest.mark.needs("lux")
class TestLayers:
    """With 64 channels, and so two of them to a group of the normalisation."""

    @pytest.mark.parametrize(
        ("name", "algorithm", "adjoint", "tolerance"),
        [
            ("deq", hj.Anderson(rtol=1e-10), hj.ImplicitAdjoint(), 1e-9),
            ("homoode", hj.Dopri5(rtol=1e-4, atol=1e-4), hj.CheckpointAdjoint(), 1e-9),
            # Two quadratures of an integrand that jumps where relu begins.
            ("homoode", hj.Dopri5(rtol=1e-6, atol=1e-6), hj.GaussAdjoint(), 2e-2),
        ],
        ids=["deq", "checkpoint", "gauss"],
    )
    def test_same_logits_and_gradients_as_pytorchs(self, block, name, algorithm, adjoint, tolerance):
        torch.manual_seed(0)
        how = {"channels": 64, "algorithm": algorithm, "adjoint": adjoint, "backend": "pytorch"}
        model = hj.create_model(name, input_shape=(1, 8, 8), n_classes=10, **how)
        model = model.double().to(memory_format=torch.contiguous_format).eval()
        image = torch.randn(2, 1, 8, 8, dtype=torch.float64)
        x, weights = model.encode(image).contiguous(), tuple(model.layer.parameters())
        assert [p.data_ptr() for p in block.bind(weights).parameters] == [w.data_ptr() for w in weights]
        z0, args = model.layer.initial_point.expand_like(x), (hj.PerSample(x), *map(hj.Shared, weights))
        ode = model.states_ode()
        problem = hj.ODEProblem(block, z0, (0.0, 1.0), args) if ode else hj.FixedPointProblem(block, z0, args)
        found = model.decode(hj.solve(problem, algorithm, adjoint=adjoint, backend="julia").value)
        expected = model(image)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9 if tolerance < 1e-6 else 1e-5)
        parameters = tuple(model.parameters())
        ours, theirs = (torch.autograd.grad(logits.square().sum(), parameters) for logits in (found, expected))
        for mine, exact in zip(ours, theirs, strict=True):
            assert (mine - exact).norm() <= tolerance * exact.norm().clamp(min=1e-3)
