using ZeroPaths: Samplewise, SamplewiseAnderson, SamplewisePicard
using NonlinearSolve: NonlinearSolve
using SteadyStateDiffEq: DynamicSS
using JLArrays: JLArrays, JLArray
using LinearAlgebra: opnorm
using Random: Xoshiro

JLArrays.allowscalar(false)

# homojl's names for methods, with the options of their solves.
struct Named
    name::String
    make::Any
    options::NamedTuple
end

gmres(steps) = KrylovJL_GMRES(; gmres_restart = steps)
newton(; linsolve, options...) = NonlinearSolve.NewtonRaphson(; linsolve, concrete_jac = false, options...)
line_search() = NonlinearSolve.LineSearch.BackTracking()

const MAKERS = Dict(
    :Picard => n -> SamplewisePicard(samples = n),
    :Anderson => n -> SamplewiseAnderson(samples = n),
    :Broyden => n -> Samplewise(NonlinearSolve.Broyden(; alpha = 1); samples = n),
    :LimitedMemoryBroyden => n -> Samplewise(NonlinearSolve.LimitedMemoryBroyden(; alpha = 1, threshold = 30, max_resets = 100); samples = n),
    :NewtonKrylov => n -> Samplewise(newton(; linsolve = gmres(30), linesearch = line_search(), AD...); samples = n),
    :TrustRegion => n -> Samplewise(NonlinearSolve.TrustRegion(; concrete_jac = true, autodiff = AutoFiniteDiff()); samples = n),
    :DFSane => n -> Samplewise(NonlinearSolve.DFSane(); samples = n),
    :PseudoTransient => n -> Samplewise(
        NonlinearSolve.PseudoTransient(; linsolve = gmres(30), alpha_initial = 1.0, concrete_jac = false, AD...); samples = n
    ),
    :Relaxation => n -> Samplewise(DynamicSS(OrdinaryDiffEqTsit5.Tsit5()); samples = n),
)
const AD = (; autodiff = AutoFiniteDiff(), jvp_autodiff = AutoFiniteDiff(), vjp_autodiff = AutoFiniteDiff())

for name in keys(MAKERS)
    @eval $name(; options...) = Named($(String(name)), MAKERS[$(QuoteNode(name))], (; options...))
end

function fixed_point(f!, z0, how::Named; samples = 1, jvp! = nothing)
    (; rtol, atol, max_steps) = (; rtol = 1.0e-4, atol = 1.0e-6, max_steps = how.name == "Relaxation" ? 1000 : 100, how.options...)
    value, report, nfe = ZeroPaths.equilibrium(
        f!, z0, how.make(samples); jvp!, reltol = rtol, abstol = atol, maxiters = max_steps
    )
    return (;
        value, report.residuals, report.iterations, report.converged, status = report.ending, report.endings,
        stats = (; nfe, report.n_jvp),
    )
end

"z -> tanh(W z + x), a contraction, with conditions of very different difficulty in the columns of x."
struct TanhMap{T}
    w::Matrix{T}
    x::Matrix{T}
    samples::Vector{Int}  # how many were asked for, call by call
end

function TanhMap{T}(width::Int, count::Int) where {T}
    w = randn(Xoshiro(1), width, width)
    x = randn(Xoshiro(2), width, count) .* exp10.(range(-2, 1, count))'
    return TanhMap{T}(0.9 * w / opnorm(w), x, Int[])
end

function (f::TanhMap)(out, z)
    push!(f.samples, size(z, 2))
    out .= tanh.(f.w * z .+ f.x)
    return nothing
end

jvp(f::TanhMap) = (out, v, z) -> (out .= (1 .- tanh.(f.w * z .+ f.x) .^ 2) .* (f.w * v); nothing)

function residuals(f!, z)
    fz = similar(z)
    f!(fz, z)
    return norm.(eachcol(fz - z)) ./ norm.(eachcol(fz))
end

const OWN = (Picard, Anderson)
const COUPLED = (Broyden, LimitedMemoryBroyden, NewtonKrylov, TrustRegion, DFSane, PseudoTransient, Relaxation)

@testset "$(nameof(A)), $T, rtol = $rtol, $(isnothing(product) ? "differences" : "products")" for
    A in (OWN..., COUPLED...), T in (Float32, Float64), rtol in (1.0e-2, 1.0e-4), product in (nothing, jvp)

    # Differences of Float32 numbers are too coarse for a trust region.
    A === TrustRegion && T === Float32 && isnothing(product) && continue
    f! = TanhMap{T}(8, 12)
    z0 = zeros(T, 8, 12)
    sol = fixed_point(f!, z0, A(; rtol, atol = 0.0); samples = 12, jvp! = isnothing(product) ? nothing : product(f!))
    @test sol.status === SUCCESS && all(sol.converged)
    @test sol.value isa Matrix{T} && iszero(z0)
    @test all(sol.residuals .<= rtol)
    @test sol.residuals ≈ residuals(f!, sol.value) rtol = 0.05 atol = 10 * eps(T)
    @test sol.stats.nfe == length(f!.samples) - 1
    @test isnothing(product) || (sol.stats.n_jvp > 0) == (A in (NewtonKrylov, TrustRegion, PseudoTransient))
end

@testset "one number, $(nameof(A))" for A in (OWN..., COUPLED...)
    cosine!(out, z) = (out .= cos.(z))
    @test fixed_point(cosine!, [1.0], A(rtol = 1.0e-9)).value ≈ [0.7390851332151607] rtol = 1.0e-6
end

@testset "maps that do not contract, $(nameof(A))" for A in (NewtonKrylov, TrustRegion, PseudoTransient, Broyden, DFSane)
    f! = TanhMap{Float64}(8, 3)
    repelling!(out, z) = (f!(out, z); out .-= 4 .* z)
    product!(out, v, z) = (jvp(f!)(out, v, z); out .-= 4 .* v)
    @test !all(fixed_point(repelling!, zeros(8, 3), Picard(); samples = 3).converged)
    sol = fixed_point(repelling!, zeros(8, 3), A(rtol = 1.0e-6, atol = 0.0); samples = 3, jvp! = product!)
    @test all(residuals(repelling!, sol.value) .<= 2.0e-6)
end

@testset "a sample does not depend on the others, $(nameof(A))" for A in OWN
    f! = TanhMap{Float64}(8, 12)
    together = fixed_point(f!, zeros(8, 12), A(rtol = 1.0e-6, atol = 0.0); samples = 12)
    @test length(unique(together.iterations)) > 2
    for i in 1:12
        alone = fixed_point((out, z) -> (out .= tanh.(f!.w * z .+ f!.x[:, i])), zeros(8), A(rtol = 1.0e-6, atol = 0.0))
        @test alone.iterations == [together.iterations[i]]
        @test alone.value ≈ together.value[:, i] rtol = 1.0e-9
    end
end

@testset "JLArray, $T, $(nameof(A))" for T in (Float32, Float64), A in (OWN..., LimitedMemoryBroyden, NewtonKrylov, DFSane)
    f! = TanhMap{T}(6, 5)
    w, x = JLArray(f!.w), JLArray(f!.x)
    # A product of JLArrays falls back to single elements; this one broadcasts.
    times(w, z) = dropdims(sum(reshape(w, size(w)..., 1) .* reshape(z, 1, size(z)...); dims = 2); dims = 2)
    device!(out, z) = (out .= tanh.(times(w, z) .+ x))
    product!(out, v, z) = (out .= (1 .- tanh.(times(w, z) .+ x) .^ 2) .* times(w, v))
    algorithm = A(rtol = 1.0e-4, atol = 0.0)
    sol = fixed_point(device!, JLArray(zeros(T, 6, 5)), algorithm; samples = 5, jvp! = product!)
    host = fixed_point(f!, zeros(T, 6, 5), algorithm; samples = 5, jvp! = jvp(f!))
    @test sol.value isa JLArray{T, 2}
    @test Array(sol.value) ≈ host.value rtol = 1.0e-3
    A in OWN && @test sol.iterations == host.iterations
end

@testset "shapes" begin
    x = randn(Xoshiro(3), 2, 3, 4)
    for A in OWN
        sol = fixed_point((out, z) -> (out .= z ./ 2 .+ x), zeros(2, 3, 4), A(rtol = 1.0e-10, atol = 0.0); samples = 4)
        @test sol.value ≈ 2 .* x && size(sol.value) == (2, 3, 4)
        @test length(sol.iterations) == 4
    end
end

@testset "how solves end" begin
    f! = TanhMap{Float64}(8, 4)
    for A in (OWN..., COUPLED...)
        sol = fixed_point(f!, zeros(8, 4), A(rtol = 1.0e-12, atol = 0.0, max_steps = 2); samples = 4)
        @test sol.status === MAX_STEPS && all(==(MAX_STEPS), sol.endings)
        @test sol.residuals ≈ residuals(f!, sol.value) rtol = 1.0e-6
    end
    for A in (OWN..., NewtonKrylov, LimitedMemoryBroyden)
        broken!(out, z) = (out .= z ./ 2 .+ [1.0 NaN 2.0])
        sol = fixed_point(broken!, zeros(1, 3), A(); samples = 3)
        @test sol.status === DIVERGED && sol.converged == [true, false, true]
        @test sol.endings == [SUCCESS, DIVERGED, SUCCESS] && sol.iterations[2] == 0
    end
    none!(out, z) = (out .= z .+ 1 .+ z .^ 2)
    for A in (OWN..., NewtonKrylov)
        sol = fixed_point(none!, [0.5], A(max_steps = 1000))
        @test sol.status in (STALLED, DIVERGED) && isfinite(only(sol.value))
    end
end

@testset "an exception in the map is kept" begin
    struct MapError <: Exception end
    for A in (OWN..., COUPLED...)
        @test_throws MapError fixed_point((out, z) -> throw(MapError()), [1.0], A())
    end
end

@testset "arguments of equilibria" begin
    @test_throws "Float32 or Float64, got Int64" fixed_point(identity, [1, 2], Picard())
    @test_throws "u0 is empty" fixed_point(identity, Float64[], Picard())
    @test_throws "samples must divide the 3 elements" fixed_point(identity, zeros(3), Picard(); samples = 2)
    @test_throws "use LimitedMemoryBroyden()" fixed_point((out, z) -> (out .= z ./ 2 .+ 1), zeros(5000), TrustRegion())
    @test_throws "reltol must be" fixed_point(identity, [1.0], Picard(rtol = -1))
    @test_throws "must not both be zero" fixed_point(identity, [1.0], DFSane(rtol = 0, atol = 0))
    @test_throws "maxiters must be" fixed_point(identity, [1.0], TrustRegion(max_steps = 0))
    @test_throws "damping must lie" SamplewisePicard(damping = 1)
    @test_throws "memory must be" SamplewiseAnderson(memory = 0)
    @test_throws "mixing must lie" SamplewiseAnderson(mixing = 0)
    @test_throws "say `using NonlinearSolve`" fixed_point((out, z) -> (out .= z), [1.0], Named("x", n -> Samplewise(1), (;)))
end
