@testset "into arrays of the caller, $(name(algorithm))" for algorithm in (
        Dopri5(), Vern7(), RK4(step_size = 0.1), Rodas5P(), TRBDF2(), FBDF(),
    )
    ts = [0.0, 0.33, 1.0, 2.5]
    u0 = copy(rotation.u0)
    out = [fill(NaN, 2) for _ in 1:3]
    expected = integrate(rotation.f!, u0, ts, algorithm)
    sol = integrate(rotation.f!, u0, ts, algorithm; out)
    @test sol.us == expected.us
    @test sol.us[1] === u0 && u0 == rotation.u0
    @test all(sol.us[i + 1] === out[i] for i in 1:3)
    @test expected.us[1] !== u0
end

@testset "nothing is allocated for a save" begin
    u0 = ones(10_000)
    measured(ts, out) = @allocated integrate(decay!, u0, ts, Tsit5(); out)
    # The first call compiles.
    bytes = map((10, 10, 1000)) do n
        ts, out = collect(range(0, 1; length = n + 1)), [similar(u0) for _ in 1:n]
        GC.gc()
        measured(ts, out)
    end
    # A copy for each save would be 79 MB.
    @test bytes[3] - bytes[2] < 1_000_000
end

@testset "out of a solve that ends early" begin
    out = [fill(NaN, 1) for _ in 1:3]
    ended = integrate(decay!, [1.0], [0.0, 1.0, 2.0, 3.0], Tsit5(); out, events = Event((u, t) -> t - 1.5))
    @test length(ended.us) == 3 && ended.us[2] === out[1] && ended.us[3] === out[2] && isnan(out[3][1])
    out = [fill(NaN, 1) for _ in 1:2]
    stuck = integrate(squared!, [1.0], [0.0, 0.5, 2.0], Tsit5(); out)
    @test stuck.us[2] === out[1] && length(stuck.us) == 3 && stuck.us[3] !== out[2]
    @test isfinite(stuck.us[3][1])
end

@testset "what is kept of the states" begin
    plain = integrate(rotation.f!, rotation.u0, [0.0, 3.0], Tsit5(); keep_states = true)
    sums = integrate(rotation.f!, rotation.u0, [0.0, 3.0], Tsit5(); keep_states = true, keep = sum)
    @test sums.states == sum.(plain.states)
    @test plain.states isa Vector{Vector{Float64}}
    @test isempty(integrate(rotation.f!, rotation.u0, [0.0, 3.0], Tsit5(); keep = sum).states)
end
