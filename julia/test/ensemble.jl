# Ensembles in DiffEqGPU's kernels, which run on the CPU here as well.

const HAS_KERNELS = !isnothing(Base.identify_package("DiffEqGPU"))
if HAS_KERNELS
    @eval using DiffEqGPU: DiffEqGPU, GPURodas5P
    @eval using KernelAbstractions: CPU
    @eval using StaticArrays: SVector
else
    @warn "DiffEqGPU is not installed; the tests of ensembles in kernels are left out"
    @test_skip HAS_KERNELS
end

"States (elements, samples, times), and for each sample the time that it reached, its steps and its ending."
function in_kernels(f, u0, p, times, method; in_place = false, T = Float64, options...)
    out = zeros(T, length(u0[1]), length(u0), length(times) - 1)
    request = ZeroPaths.Request(; rtol = 1.0e-8, atol = 1.0e-8, options...)
    # DiffEqGPU warns that these are no kernels of a GPU.
    finished = Base.CoreLogging.with_logger(Base.CoreLogging.NullLogger()) do
        ZeroPaths.kernel_ensemble!(out, CPU(), f, in_place, i -> T.(u0[i]), p, times, method, request)
    end
    return out, finished...
end

HAS_KERNELS && @testset "in kernels" begin
    rates, times = [0.1, 1.0, 40.0], [0.5, 0.8, 1.5]
    expected = [exp(-k * (t - times[1])) for t in times[2:end] for k in rates]
    forced(u, p, t) = -p .* (u .- cos(t)) .- sin(t)

    @testset "$(nameof(typeof(method)))" for method in
        (OrdinaryDiffEqTsit5.Tsit5(), OrdinaryDiffEqVerner.Vern7(), OrdinaryDiffEqRosenbrock.Rodas4(), GPURodas5P())
        p = i -> [rates[i]]
        out, reached, steps, endings = in_kernels((u, p, t) -> -p .* u, fill([1.0], 3), p, times, method)
        @test vec(out) ≈ expected rtol = 1.0e-6
        @test reached == fill(1.5, 3) && all(==(SUCCESS), endings)
        @test steps[3] > steps[2] > steps[1] > 0
        written = first(in_kernels((du, u, p, t) -> (du[1] = -p[1] * u[1]; nothing), fill([1.0], 3), p, times, method; in_place = true))
        @test written ≈ out rtol = 1.0e-12
        out = first(in_kernels(forced, fill([cos(0.5)], 3), p, times, method))
        @test vec(out) ≈ repeat(cos.(times[2:end]); inner = 3) rtol = 1.0e-6
    end

    @testset "states and parameters of several forms, backwards in time" begin
        rotation(u, p, t) = p[1] .* SVector(u[2], -u[1]) .+ sum(p[2])
        p = i -> ([Float64(i)], [1.0 2.0; -1.0 -2.0])
        out, reached = in_kernels(rotation, [[0.0, 1.0], [0.0, 1.0]], p, [1.0, 0.0], OrdinaryDiffEqTsit5.Tsit5())
        @test vec(out) ≈ [-sin(1.0), cos(1.0), -sin(2.0), cos(2.0)] rtol = 1.0e-6
        @test reached == [0.0, 0.0]
        # A first step beyond the end is one to the end.
        out, reached = in_kernels((u, p, t) -> one.(u), [[0.0]], _ -> nothing, [0.0, 0.5], OrdinaryDiffEqTsit5.Tsit5(); first_step = 3.0)
        @test out[1] ≈ 0.5 && reached == [0.5]
        single = (; T = Float32, rtol = 1.0e-5)
        out = first(in_kernels((u, p, t) -> -u, [[1.0 2.0; 3.0 4.0]], _ -> nothing, [0.0, 1.0], OrdinaryDiffEqTsit5.Tsit5(); single...))
        @test eltype(out) === Float32
        @test vec(out) ≈ exp(-1.0f0) .* [1, 3, 2, 4] rtol = 1.0e-4
    end

    @testset "equal steps" begin
        at(h) = in_kernels(forced, [[1.0]], _ -> [1.0], [0.0, 0.35, 1.0], OrdinaryDiffEqTsit5.Tsit5(); step_size = h, max_steps = 5)
        out, reached, steps, endings = at(0.125)
        @test abs(out[end] - cos(1.0)) < 1.0e-7 && abs(out[1] - cos(0.35)) < 1.0e-6
        @test steps == [8] && reached == [1.0] && endings == [SUCCESS]
        @test abs(out[end] - cos(1.0)) > 20 * abs(at(0.0625)[1][end] - cos(1.0))
    end

    @testset "one sample that fails harms no other" begin
        squared(u, p, t) = p .* u .^ 2
        start, times = [[1.0], [-1.0]], [0.0, 0.5, 2.0]
        for method in (OrdinaryDiffEqTsit5.Tsit5(), OrdinaryDiffEqRosenbrock.Rodas4())
            out, reached, _, endings = in_kernels(squared, start, _ -> [1.0], times, method)
            @test endings == [STEP_TOO_SMALL, SUCCESS] && reached[1] ≈ 1.0 && reached[2] == 2.0
            @test vec(out) ≈ [2.0, -1 / 1.5, 2.0, -1 / 3] rtol = 1.0e-6
        end
        lost(u, p, t) = t > p[1] ? u .* NaN : -u
        out, reached, _, endings = in_kernels(lost, start, i -> [[0.7], [3.0]][i], times, OrdinaryDiffEqTsit5.Tsit5())
        @test endings == [DIVERGED, SUCCESS] && 0.5 < reached[1] < 1.0
        @test vec(out) ≈ [exp(-0.5), -exp(-0.5), exp(-0.5), -exp(-2)] rtol = 1.0e-6
    end

    @testset "what it cannot do is refused" begin
        method, decay = OrdinaryDiffEqTsit5.Tsit5(), (u, p, t) -> -u
        refused(message, f, method; options...) = @test_throws message in_kernels(f, [[1.0]], _ -> nothing, [0.0, 1.0], method; options...)
        refused("kernels have no RK4, but Kvaerno3", decay, OrdinaryDiffEqLowOrderRK.RK4())
        refused("take no largest step", decay, method; max_step = 0.1)
        held = [1.0]
        refused("holds no arrays", (u, p, t) -> -u .* held, method)
        @test_throws "less than 4 KB" in_kernels(decay, [ones(1000)], _ -> nothing, [0.0, 1.0], method)
        _, reached, steps, endings = in_kernels(decay, [[1.0]], _ -> nothing, [0.0, 1.0], method; max_steps = 5)
        @test endings == [MAX_STEPS] && steps == [5] && 0 < reached[1] < 1
    end
end
