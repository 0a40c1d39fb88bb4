@testset "$(problem.name), $T, $(name(algorithm)), $direction" for problem in PROBLEMS,
        T in (Float32, Float64),
        (algorithm, tolerance) in (
            (Bosh3(rtol = 1.0e-5, atol = 1.0e-5), 5.0e-4),
            (Dopri5(rtol = 1.0e-5, atol = 1.0e-5), 2.0e-4),
            (Tsit5(rtol = 1.0e-5, atol = 1.0e-5), 2.0e-4),
            (Vern7(rtol = 1.0e-5, atol = 1.0e-5), 2.0e-4),
            (RK4(step_size = 0.05), 1.0e-5),
            (Midpoint(step_size = 0.01), 2.0e-4),
            (Euler(step_size = 0.001), 2.0e-3),
        ),
        direction in (:forward, :backward)

    ts = direction === :forward ? [0.0, 0.3, 0.35, 1.1, 2.0] : [2.0, 1.1, 0.35, 0.3, 0.0]
    u0 = T.(problem.exact(ts[1]))
    sol = integrate(problem.f!, u0, ts, algorithm)
    @test sol.status === SUCCESS
    @test sol.ts == ts
    @test sol.us isa Vector{Vector{T}} && length(sol.us) == length(ts)
    @test sol.us[1] == u0
    for (t, u) in zip(sol.ts, sol.us)
        @test relative_error(u, problem.exact(t)) < tolerance
    end
end

# Steps of one size: tolerances that accept everything, and a controller that changes nothing.
constant_steps(A, h) = A(
    rtol = 1.0e6, atol = 1.0e6, first_step = h, controller = TorchController(min_factor = 1 - 1.0e-12, max_factor = 1 + 1.0e-12)
)

@testset "order of $(name(method(0.1)))" for (method, order, counts) in (
        (h -> Euler(step_size = h), 1, (640, 1280, 2560)),
        (h -> Midpoint(step_size = h), 2, (40, 80, 160)),
        (h -> RK4(step_size = h), 4, (40, 80, 160)),
        (h -> constant_steps(Bosh3, h), 3, (40, 80, 160)),
        (h -> constant_steps(Dopri5, h), 5, (40, 80, 160)),
        (h -> constant_steps(Tsit5, h), 5, (40, 80, 160)),
        (h -> constant_steps(Vern7, h), 7, (10, 20, 40)),
    )
    errors = map(counts) do n
        sol = integrate(rotation.f!, rotation.u0, [0.0, 4.0], method(4 / n))
        @test n <= length(sol.steps) <= n + 1
        relative_error(sol.us[end], rotation.exact(4.0))
    end
    slopes = -diff(log2.(collect(errors)))
    @test all(slope -> abs(slope - order) < 0.2, slopes)
end

@testset "forward and back again" begin
    there = integrate(rotation.f!, rotation.u0, [0.0, 5.0], Tsit5(rtol = 1.0e-10, atol = 1.0e-10))
    back = integrate(rotation.f!, there.us[end], [5.0, 0.0], Tsit5(rtol = 1.0e-10, atol = 1.0e-10))
    @test back.us[end] ≈ rotation.u0 rtol = 1.0e-8
    @test all(<(0), back.steps.sizes)
end
