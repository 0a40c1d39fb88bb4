const METHODS = (
    RK4(step_size = 0.1), Euler(step_size = 0.1), Midpoint(step_size = 0.1), Bosh3(), Dopri5(), Tsit5(), Vern7(), Rodas5P(), TRBDF2(),
    FBDF(),
)

@testset "between save times, $(HomoJL.name(algorithm)), $ts" for algorithm in METHODS,
        ts in ([0.0, 0.5, 0.77, 4.0], [4.0, 1.3, 0.5, 0.0])

    u0 = rotation.exact(ts[1])
    sol = integrate(rotation.f!, u0, ts, algorithm; dense = true)
    plain = integrate(rotation.f!, u0, ts, algorithm)
    @test sol.us ≈ plain.us && sol.steps.sizes ≈ plain.steps.sizes
    @test sol.stats.nfe == plain.stats.nfe || algorithm isa Vern7
    for (t, u) in zip(ts, sol.us)
        # Methods with equal steps save the ends of steps alone.
        @test sol(t) ≈ u rtol = 1.0e-12
    end
    # An interpolated state is what saving there would have given.
    algorithm isa HomoJL.AbstractErrorControlled || continue
    for t in (0.1, 0.6, 1.234, 3.9)
        times = ts[1] < ts[2] ? [0.0, t, 4.0] : [4.0, t, 0.0]
        @test sol(t) ≈ integrate(rotation.f!, u0, times, algorithm).us[2] rtol = 1.0e-10
    end
    out = similar(u0)
    @test sol(out, 1.0) === out && out == sol(1.0)
    @test_throws "reaches from 0.0 to 4.0, not to t = 4.1" sol(4.1)
    @test_throws "reaches from" sol(-0.1)
end

@testset "order of the continuous extension of $(HomoJL.name(method(0.1)))" for (method, order, counts) in (
        (h -> constant_steps(Bosh3, h), 3, (40, 80, 160)),
        (h -> constant_steps(Dopri5, h), 4, (40, 80, 160)),
        (h -> constant_steps(Tsit5, h), 4, (40, 80, 160)),
        (h -> constant_steps(Vern7, h), 7, (10, 20, 40)),
        (h -> RK4(step_size = h), 4, (40, 80, 160)),
    )
    errors = map(counts) do n
        sol = integrate(rotation.f!, rotation.u0, [0.0, 4.0], method(4 / n); dense = true)
        maximum(relative_error(sol(t), rotation.exact(t)) for t in range(0, 4; length = 777))
    end
    slopes = -diff(log2.(collect(errors)))
    @test all(>(order - 0.3), slopes)
end

@testset "kinds of arrays, $A" for A in (identity, JLArray)
    u0 = A(Float32[1 2; 3 4])
    sol = integrate((du, u, t) -> (du .= -u), u0, [0.0, 2.0], Tsit5(); dense = true)
    @test typeof(sol(1)) == typeof(u0) && size(sol(1)) == (2, 2)
    @test Array(sol(1)) ≈ exp(-1) * Float32[1 2; 3 4] rtol = 1.0e-3
end

@testset "a solve that stopped early is known as far as it came" begin
    sol = integrate(squared!, [1.0], [0.0, 2.0], Tsit5(); dense = true, throw = false)
    @test sol(0.5) ≈ [2.0] rtol = 1.0e-2
    @test_throws "not to t = 1.5" sol(1.5)
    ended = integrate(decay!, [1.0], [0.0, 5.0], Tsit5(); dense = true, events = Event((u, t) -> t - 1.0))
    @test ended(1.0) ≈ ended.us[end]
    @test ended(0.3) ≈ [exp(-0.3)] rtol = 1.0e-3
    @test_throws "to 1.0, not" ended(1.01)
    @test_throws "dense = true" integrate(decay!, [1.0], [0.0, 1.0], Tsit5())(0.5)
end
