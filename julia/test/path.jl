# Zero paths: those that homojl's PyTorch backend follows, stored by golden/make_paths.py, and what can go wrong.

using Krylov: Krylov
using JLArrays: JLArrays, JLArray
using Random: Xoshiro
using TOML: TOML

JLArrays.allowscalar(false)

arctan!(out, z) = (out .= atan.(z))
arctan_jvp!(out, v, z) = (out .= v ./ (1 .+ z .^ 2))
cubic!(out, z) = (out .= z .^ 3 .- 2 .* z .+ 2)
cubic_jvp!(out, v, z) = (out .= (3 .* z .^ 2 .- 2) .* v)
fold!(out, z) = (out .= z .^ 3 .- 3 .* z .+ 2.1)
fold_jvp!(out, v, z) = (out .= (3 .* z .^ 2 .- 3) .* v)

function himmelblau!(out, z)
    x, y = z
    a, b = x^2 + y - 11, x + y^2 - 7
    out .= (4 * x * a + 2 * b, 2 * a + 4 * y * b)
end

function himmelblau_jvp!(out, v, z)
    x, y = z
    mixed = 4 * (x + y)
    out .= ((12 * x^2 + 4 * y - 42) * v[1] + mixed * v[2], mixed * v[1] + (4 * x + 12 * y^2 - 26) * v[2])
end

const PROBLEMS_WITH_PATHS = Dict(
    "arctan" => (arctan!, arctan_jvp!), "cubic" => (cubic!, cubic_jvp!), "fold" => (fold!, fold_jvp!),
    "himmelblau" => (himmelblau!, himmelblau_jvp!),
)
const PREDICTORS = Dict(
    "Euler" => ZeroPaths.Tableaus.Euler(), "Midpoint" => ZeroPaths.midpoint(), "RK4" => ZeroPaths.Tableaus.RK4(),
    "Bosh3" => ZeroPaths.Tableaus.BogakiShampine3(), "Dopri5" => ZeroPaths.Tableaus.DormandPrince(),
    "Tsit5" => ZeroPaths.Tableaus.Tsitouras5(),
)
const STORED_PATHS = TOML.parsefile(joinpath(@__DIR__, "golden", "paths.toml"))

function stored_algorithm(stored)
    by = Dict("ArcLength" => :length, "NaturalParameter" => :lambda)[stored["algorithm"]]
    (; max_corrections, first_step) = NamedTuple(Symbol(k) => v for (k, v) in stored)
    predictor, linear_solver = PREDICTORS[stored["predictor"]], Symbol(stored["linear_solver"])
    return ZeroPathTracker(; by, predictor, max_corrections, first_step, linear_solver)
end

trace_path(r!, z0, tracker; kind = :fixed_point, jvp! = nothing) = ZeroPaths.follow(r!, z0, tracker, kind, jvp!)
ArcLength(; options...) = ZeroPathTracker(; options...)
NaturalParameter(; options...) = ZeroPathTracker(; by = :lambda, options...)

@testset "$name" for (name, stored) in STORED_PATHS
    r!, jvp! = PROBLEMS_WITH_PATHS[stored["problem"]]
    z0 = Vector{Float64}(stored["z0"])
    before = copy(z0)
    path = trace_path(r!, z0, stored_algorithm(stored); kind = Symbol(stored["kind"]), jvp!)
    @test uppercase(String(path.ending)) == stored["status"]
    @test length(path.s) == length(path.lambdas) == length(path.states) == length(path.residuals) == length(stored["s"])
    @test path.folds == stored["folds"]
    @test path.n_rejected == stored["n_rejected"]
    @test path.nfe == stored["nfe"]
    @test path.n_jvp == stored["n_jvp"]
    @test path.s ≈ stored["s"] rtol = 1.0e-6
    @test path.lambdas ≈ stored["lambdas"] rtol = 1.0e-6
    @test path.states[end] ≈ stored["last_state"] atol = 1.0e-8
    @test z0 == before
end

const TIGHT = (reltol = 1.0e-9, abstol = 1.0e-11)

@testset "by finite differences the same path" begin
    given = trace_path(himmelblau!, [-1.0, -0.5], ArcLength(); jvp! = himmelblau_jvp!)
    own = trace_path(himmelblau!, [-1.0, -0.5], ArcLength())
    @test own.s ≈ given.s rtol = 1.0e-5
    @test own.states[end] ≈ given.states[end] rtol = 1.0e-6
    @test own.nfe == given.nfe + own.n_jvp
    @test all(own.residuals .<= 1.0e-8 + 1.0e-6 * 10)
end

@testset "the velocity changes the parametrisation and not the path" begin
    reference = trace_path(fold!, [1.5], ArcLength())
    for v in (5, 10.0)
        path = trace_path(fold!, [1.5], ArcLength(velocity = v))
        @test path.lambdas == reference.lambdas && path.states == reference.states
        @test path.s .* v ≈ reference.s
    end
    path = trace_path(fold!, [1.5], ArcLength(velocity = s -> 1 + sin(s)^2))
    @test path.lambdas == reference.lambdas
    @test 1.5 .* path.s .- sin.(2 .* path.s) ./ 4 ≈ reference.s rtol = 1.0e-3
end

@testset "one Euler step of the Newton homotopy is Newton's step" begin
    algorithm = NaturalParameter(first_step = 1, predictor = PREDICTORS["Euler"], max_corrections = 0)
    z0 = [-1.0, -0.5]
    path = trace_path(himmelblau!, z0, algorithm; kind = :newton, jvp! = himmelblau_jvp!)
    jacobian = reduce(hcat, [himmelblau_jvp!(zeros(2), [1.0, 0.0], z0), himmelblau_jvp!(zeros(2), [0.0, 1.0], z0)])
    @test path.states[end] ≈ z0 - jacobian \ himmelblau!(zeros(2), z0) rtol = 1.0e-13
    @test path.ending === STALLED
end

"z - tanh(W z + x) on arrays of any kind and shape."
struct Layer{M, A}
    weight::M
    x::A
end
(layer::Layer)(out, z) = (out .= z .- tanh.(reshape(layer.weight * vec(z), size(z)) .+ layer.x))

function random_layer(A, T, sizes...)
    n = prod(sizes)
    return Layer(A(randn(Xoshiro(1), T, n, n) ./ T(sqrt(n))), A(randn(Xoshiro(2), T, sizes...)))
end

@testset "JLArray, $T, $solver" for T in (Float32, Float64), solver in (:dense, :krylov)
    sizes = solver === :dense ? (2, 3) : (6, 5, 4)
    algorithm = ArcLength(reltol = T === Float32 ? 1.0e-4 : 1.0e-7, linear_solver = solver)
    host = trace_path(random_layer(Array, T, sizes...), zeros(T, sizes), algorithm)
    device = trace_path(random_layer(JLArray, T, sizes...), JLArray(zeros(T, sizes)), algorithm)
    @test device.states isa Vector{<:JLArray{T, length(sizes)}}
    @test host.states isa Vector{Array{T, length(sizes)}} && size(host.states[end]) == sizes
    @test length(device.s) == length(host.s)
    @test device.nfe == host.nfe
    @test Array(device.states[end]) ≈ host.states[end] rtol = (T === Float32 ? 1.0e-3 : 1.0e-6)
    for (z, residual, lambda) in zip(host.states, host.residuals, host.lambdas)
        @test residual <= 1.0e-8 + algorithm.reltol * sqrt(sum(abs2, z) / length(z))
    end
end

@testset "a path that fails says how: $status" for (status, r!, z0, kind, algorithm) in (
        (RETURNED, (out, z) -> (out .= z .^ 2 .+ 1), [1.0], :newton, ArcLength()),
        (LEFT_BOUNDS, (out, z) -> (out .= exp.(.-z)), [1.0], :newton, ArcLength(; bound = 10, TIGHT...)),
        (DIVERGED, (out, z) -> (out .= NaN .* z), [1.0], :newton, ArcLength()),
        (DIVERGED, (out, z) -> (out .= ifelse.(z .< 2, NaN, z)), [3.0], :fixed_point, ArcLength()),
        (STEP_TOO_SMALL, (out, z) -> (out .= z .^ 2 .- 1), [0.0], :newton, ArcLength()),
        (MAX_STEPS, arctan!, [3.0], :newton, ArcLength(maxiters = 2)),
        (STALLED, (out, z) -> (out .= atan.(z) .- 0.5f0), [3.0f0], :newton, ArcLength(reltol = 0, abstol = 1.0e-14)),
        (FOLD, fold!, [1.5], :fixed_point, NaturalParameter()),
    )
    # The zero of z^2 - 1's derivative is hit exactly by no finite difference.
    jvp! = status === STEP_TOO_SMALL ? (out, v, z) -> (out .= 2 .* z .* v) : nothing
    path = trace_path(r!, z0, algorithm; kind, jvp!)
    @test path.ending === status && all(isfinite, path.states[end])
end

@testset "arguments out of range" begin
    for options in (
            (; reltol = -1), (; reltol = 0, abstol = 0), (; first_step = 0), (; max_step = 0), (; maxiters = 0),
            (; max_corrections = 0), (; linear_solver = :lu), (; krylov_steps = 0), (; bound = 0), (; velocity = 0),
            (; by = :time),
        )
        @test_throws ArgumentError ArcLength(; options...)
    end
    @test_throws ArgumentError trace_path(arctan!, [3], ArcLength())
    @test_throws ArgumentError trace_path(arctan!, Float64[], ArcLength())
    @test_throws ArgumentError homotopy(NonlinearProblem((du, u, p) -> arctan!(du, u), [3.0]); kind = :homotopy)
    @test_throws ArgumentError trace_path(arctan!, [3.0], ArcLength(velocity = s -> -1))
    @test_throws "no element" trace_path((out, z) -> error("no element"), [3.0], ArcLength())
end

@testset "GMRES, n = $n" for n in (1, 5, 40)
    matrix = randn(Xoshiro(n), n, n) + 3 * sqrt(n) * [i == j for i in 1:n, j in 1:n]
    rhs = randn(Xoshiro(n + 1), n)
    x, left = ZeroPaths.gmres(v -> matrix * v, rhs, 2n, 1.0e-12)
    @test matrix * x ≈ rhs rtol = 1.0e-10
    @test left <= 1.0e-11
    @test ZeroPaths.gmres(v -> NaN .* v, rhs, 5, 1.0e-12)[2] == Inf
    @test iszero(ZeroPaths.gmres(v -> matrix * v, zero(rhs), 5, 1.0e-12)[1])
end
