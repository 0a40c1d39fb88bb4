function failed(f!, u0, ts, algorithm; options...)
    sol = integrate(f!, u0, ts, algorithm; options...)
    @test sol.status !== SUCCESS
    # The stored states are finite and end where the solve stopped.
    @test length(sol.ts) == length(sol.us)
    @test !SciMLBase.successful_retcode(ZeroPaths.RETURN_CODES[sol.status])
    return sol
end

squared!(du, u, t) = (du .= u .^ 2)
decay!(du, u, t) = (du .= -u)

@testset "a pole, $ts" for (u0, ts) in (([1.0], [0.0, 0.5, 2.0]), ([-1.0], [0.0, -0.5, -2.0]))
    sol = failed(squared!, u0, ts, Dopri5())
    @test sol.status in (STEP_TOO_SMALL, DIVERGED)
    @test sol.ts[1:2] == ts[1:2]
    @test abs(sol.ts[end]) ≈ 1 rtol = 1.0e-3
    @test length(sol.us) == 3 && all(isfinite, sol.us[end])
end

@testset "smallest step, $ts" for ts in ([0.0, 10.0], [10.0, 0.0])
    stiff!(du, u, t) = (du[1] = u[2]; du[2] = 50 * (1 - u[1]^2) * u[2] - u[1])
    sol = failed(stiff!, [2.0, 1.0], ts, Tsit5(rtol = 1.0e-8, atol = 1.0e-8, min_step = 0.02))
    @test sol.status === STEP_TOO_SMALL
    @test 0 < sol.step <= 0.02
    refused = failed(decay!, [1.0], ts, Tsit5(first_step = 1.0e-3, min_step = 1.0e-2))
    @test refused.status === STEP_TOO_SMALL && refused.stats.n_accepted == 0
end

@testset "largest number of steps" begin
    sol = failed(rotation.f!, [1.0, 0.0], [0.0, 1.0, 1000.0], Dopri5(max_steps = 20))
    @test sol.status === MAX_STEPS
    @test sol.stats.n_accepted + sol.stats.n_rejected == 20
    @test sol.ts[end] ≈ sol.steps.starts[end] + sol.steps.sizes[end]
    @test relative_error(sol.us[end], [cos(sol.ts[end]), -sin(sol.ts[end])]) < 0.01
    enough = integrate(decay!, [1.0], [0.0, 1.0], Dopri5())
    exactly = Dopri5(max_steps = enough.stats.n_accepted + enough.stats.n_rejected)
    @test integrate(decay!, [1.0], [0.0, 1.0], exactly).status === SUCCESS
end

@testset "not finite" begin
    @test failed(decay!, [1.0, NaN], [0.0, 1.0], Tsit5()).status === DIVERGED
    @test failed(decay!, [1.0, Inf32], [0.0, 1.0], Vern7()).status === DIVERGED
    from_half!(du, u, t) = (du .= t > 0.5 ? NaN : 1.0)
    sol = failed(from_half!, [0.0], [0.0, 1.0], Dopri5())
    @test sol.status === DIVERGED && sol.ts[end] ≈ 0.5 && sol.us[end] ≈ [0.5]
    @test failed(from_half!, [0.0], [0.0, 1.0], Dopri5(first_step = 0.9)).status === DIVERGED
    # Hidden from the error norm, but not from the status.
    hidden!(du, u, t) = (du[1] = -u[1]; du[2] = NaN)
    @test failed(hidden!, [1.0, 0.0], [0.0, 1.0], Dopri5(); parts = [1:1]).status === DIVERGED
    fixed = failed(from_half!, [0.0], [0.0, 0.4, 0.8, 1.0], Euler(step_size = 0.1))
    @test fixed.status === DIVERGED
    @test fixed.us[2] == [0.4] && !isfinite(only(fixed.us[3]))
end

@testset "a trial step out of the field's domain is retried" begin
    rooted!(du, u, t) = (du .= ifelse.(u .< 0, NaN, -sqrt.(abs.(u))))
    sol = integrate(rooted!, [1.0], [0.0, 1.9], Tsit5(first_step = 1.9, rtol = 1.0e-8, atol = 1.0e-8))
    @test sol.stats.n_rejected > 0
    @test sol.us[end] ≈ [(1 - 1.9 / 2)^2] rtol = 1.0e-5
end

struct FieldError <: Exception end

@testset "an exception in the field is kept" begin
    for algorithm in (Tsit5(), RK4(step_size = 0.1))
        broken!(du, u, t) = t > 0.5 ? throw(FieldError()) : (du .= -u)
        @test_throws FieldError integrate(broken!, [1.0], [0.0, 1.0], algorithm)
    end
end

@testset "arguments" begin
    @test_throws "Float32 or Float64, got Int64" integrate(decay!, [1, 2], [0.0, 1.0], Tsit5())
    @test_throws "u0 is empty" integrate(decay!, Float64[], [0.0, 1.0], Tsit5())
    @test_throws "at least one more" integrate(decay!, [1.0], [0.0], Tsit5())
    @test_throws "not finite" integrate(decay!, [1.0], [0.0, Inf], Tsit5())
    @test_throws "strictly" integrate(decay!, [1.0], [0.0, 1.0, 1.0], Tsit5())
    @test_throws "strictly" integrate(decay!, [1.0], [0.0, 1.0, 0.5], Tsit5())
    @test_throws "2 dimensions" integrate(decay!, [1.0], [0.0 1.0], Tsit5())
    @test_throws "within the 1 elements" integrate(decay!, [1.0], [0.0, 1.0], Tsit5(); parts = [1:2])
    @test_throws "none of them empty" integrate(decay!, [1.0], [0.0, 1.0], Tsit5(); parts = [1:0])
    @test_throws "none of them empty" integrate(decay!, [1.0], [0.0, 1.0], Tsit5(); parts = UnitRange{Int}[])
    @test_throws "reltol must be" Tsit5(rtol = -1)
    @test_throws "abstol must be" Tsit5(atol = NaN)
    @test_throws "must not both be zero" Tsit5(rtol = 0, atol = 0)
    @test_throws "first_step must be" Dopri5(first_step = 0)
    @test_throws "min_step must be" Dopri5(min_step = -1)
    @test_throws "maxiters must be" Dopri5(max_steps = 0)
    @test_throws "step_size must be" RK4(step_size = -0.1)
    @test_throws "safety must lie" TorchController(safety = 1.5)
    @test_throws "min_factor must lie" TorchController(min_factor = 1)
    @test_throws "max_factor must be" TorchController(max_factor = 1)
    @test_throws MethodError Tsit5(tolerance = 1.0e-3)
end
