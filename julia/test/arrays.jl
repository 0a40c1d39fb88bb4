using JLArrays: JLArrays, JLArray
using Random: Xoshiro

# An array that stands in for a GPU's: broadcasts and reductions work, access to single elements throws.
JLArrays.allowscalar(false)

const ALGORITHMS = (Euler(step_size = 0.1), Midpoint(step_size = 0.1), RK4(step_size = 0.1), Bosh3(), Dopri5(), Tsit5(), Vern7())

damped!(du, u, t) = (du .= tanh.(u) .* cos(t) .- u)

@testset "JLArray, $T, $(name(algorithm))" for T in (Float32, Float64), algorithm in ALGORITHMS
    u0 = randn(Xoshiro(1), T, 4, 3)
    parts = [1:5, 8:12]
    for options in ((;), (; parts))
        host = integrate(damped!, u0, [0.0, 0.55, 1.0], algorithm; keep_states = true, options...)
        device = integrate(damped!, JLArray(u0), [0.0, 0.55, 1.0], algorithm; keep_states = true, options...)
        @test device.us isa Vector{<:JLArray{T, 2}} && device.states isa Vector{<:JLArray{T, 2}}
        @test device.stats.nfe == host.stats.nfe
        @test length(device.steps) == length(host.steps)
        for (a, b) in zip(device.us, host.us)
            @test Array(a) ≈ b rtol = (T === Float32 ? 1.0e-4 : 1.0e-9)
        end
    end
end

@testset "a JLArray that diverges" begin
    explode!(du, u, t) = (du .= u .^ 2)
    sol = integrate(explode!, JLArray([1.0f0, 2.0f0]), [0.0, 3.0], Dopri5())
    @test sol.status !== SUCCESS && sol.us[end] isa JLArray{Float32}
    fixed = integrate(explode!, JLArray([1.0f0, 2.0f0]), [0.0, 3.0], Euler(step_size = 0.01))
    @test fixed.status === DIVERGED
end

@testset "shape, element type and input are kept" begin
    for T in (Float32, Float64)
        u0 = randn(Xoshiro(2), T, 2, 3, 4)
        before = copy(u0)
        times = T[]
        sol = integrate((du, u, t) -> (push!(times, t); du .= -u), u0, [0, 1], Tsit5())
        @test u0 == before
        @test sol.us isa Vector{Array{T, 3}} && size(sol.us[end]) == (2, 3, 4)
        @test sol.us[1] == u0 && sol.us[1] !== u0
        @test sol.us[end] ≈ exp(-T(1)) * u0 rtol = 1.0e-3
    end
    parent = randn(Xoshiro(3), 6, 2)
    seen = integrate((du, u, t) -> (du .= -u), view(parent, 1:2:5, :), 0:1, Tsit5())
    @test seen.us[end] ≈ exp(-1) * parent[1:2:5, :] rtol = 1.0e-3
end

@testset "the field's time is of the state's type" begin
    types = Set{DataType}()
    integrate((du, u, t) -> (push!(types, typeof(t)); du .= -u), [1.0f0], [0.0, 1.0], Tsit5())
    @test types == Set([Float32])
end
