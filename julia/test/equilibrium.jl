using HomoJL: AbstractFixedPointAlgorithm
using JLArrays: JLArrays, JLArray
using LinearAlgebra: opnorm
using Random: Xoshiro

JLArrays.allowscalar(false)

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
    @test sol.status === SUCCESS && sol.message == "" && all(sol.converged)
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
    @test !all(fixed_point(repelling!, zeros(8, 3), Picard(); samples = 3, throw = false).converged)
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
        sol = fixed_point(f!, zeros(8, 4), A(rtol = 1.0e-12, atol = 0.0, max_steps = 2); samples = 4, throw = false)
        @test sol.status === MAX_STEPS && occursin("raise max_steps (now 2)", sol.message)
        @test sol.residuals ≈ residuals(f!, sol.value) rtol = 1.0e-6
        @test_throws SolveError fixed_point(f!, zeros(8, 4), A(rtol = 1.0e-12, atol = 0.0, max_steps = 2); samples = 4)
    end
    for A in (OWN..., NewtonKrylov, LimitedMemoryBroyden)
        broken!(out, z) = (out .= z ./ 2 .+ [1.0 NaN 2.0])
        sol = fixed_point(broken!, zeros(1, 3), A(); samples = 3, throw = false)
        @test sol.status === DIVERGED && sol.converged == [true, false, true]
        @test occursin("NaN or infinity in z or f(z) of sample 2, at z0", sol.message)
        from_zero = fixed_point(broken!, zeros(1, 3), A(); samples = 3, throw = false, first_sample = 0)
        @test occursin("of sample 1, at z0", from_zero.message)
    end
    none!(out, z) = (out .= z .+ 1 .+ z .^ 2)
    for A in (OWN..., NewtonKrylov)
        sol = fixed_point(none!, [0.5], A(max_steps = 1000); throw = false)
        @test sol.status in (STALLED, DIVERGED) && isfinite(only(sol.value))
    end
end

@testset "an exception in the map is kept" begin
    struct MapError <: Exception end
    for A in (OWN..., COUPLED...)
        @test_throws MapError fixed_point((out, z) -> throw(MapError()), [1.0], A())
    end
end

@testset "arguments of fixed_point" begin
    @test_throws "Float32 or Float64, got Int64" fixed_point(identity, [1, 2], Picard())
    @test_throws "z0 is empty" fixed_point(identity, Float64[], Picard())
    @test_throws "samples must divide the 3 elements" fixed_point(identity, zeros(3), Picard(); samples = 2)
    @test_throws "use LimitedMemoryBroyden()" fixed_point((out, z) -> (out .= z ./ 2 .+ 1), zeros(5000), Broyden())
    @test_throws "rtol must be" Picard(rtol = -1)
    @test_throws "must not both be zero" DFSane(rtol = 0, atol = 0)
    @test_throws "max_steps must be" TrustRegion(max_steps = 0)
    @test_throws "damping must lie" Picard(damping = 1)
    @test_throws "memory must be" LimitedMemoryBroyden(memory = 0)
    @test_throws "mixing must lie" Anderson(mixing = 0)
    @test_throws "krylov_steps must be" NewtonKrylov(krylov_steps = 0)
    @test_throws "first_step must be" PseudoTransient(first_step = 0)
end
