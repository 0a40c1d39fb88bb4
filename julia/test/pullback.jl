# Vector-Jacobian products of functions in Julia, by every package that is here.

using ForwardDiff: ForwardDiff
using ReverseDiff: ReverseDiff

const PULLBACKS = Any[:ForwardDiff, :ReverseDiff]
if !isnothing(Base.identify_package("Mooncake"))
    @eval using Mooncake: Mooncake
    push!(PULLBACKS, :Mooncake)
end

# With a loop, a broadcast and a branch.
function looped!(du, u, p, t)
    a, b = p
    for i in eachindex(u)
        du[i] = a[1] * u[i]^2 + t * b[i]
        u[i] > 0 && (du[i] += sin(u[i]))
    end
    return nothing
end

mapped!(out, z, p) = (out .= tanh.(p .* z); nothing)

@testset "$package" for package in PULLBACKS
    u, a, b, v = [0.3, -0.7, 1.1], [1.5], [0.2, 0.4, -0.1], [1.0, -2.0, 0.5]
    gradient, da, db = zero(u), zero(a), zero(b)
    ZeroPaths.pullback!(Val(package), gradient, (da, db), looped!, u, (a, b), 0.5, v)
    @test gradient ≈ v .* (2 .* a[1] .* u .+ (u .> 0) .* cos.(u))
    @test da ≈ [sum(v .* u .^ 2)] && db ≈ 0.5 .* v
    # Again, elsewhere: what was prepared depends on no value.
    u2 = -u
    ZeroPaths.pullback!(Val(package), gradient, (da, db), looped!, u2, (a, b), 0.25, v)
    @test gradient ≈ v .* (2 .* a[1] .* u2 .+ (u2 .> 0) .* cos.(u2))
    z, p, dp = [0.3 0.1; -0.2 0.9], [0.5 2.0; 1.0 -1.0], zeros(2, 2)
    gradient, w = zero(z), [1.0 2.0; 3.0 4.0]
    ZeroPaths.pullback!(Val(package), gradient, (dp,), mapped!, z, p, nothing, w)
    @test gradient ≈ w .* p ./ cosh.(p .* z) .^ 2 && dp ≈ w .* z ./ cosh.(p .* z) .^ 2
    ZeroPaths.pullback!(Val(package), gradient, (), (out, z, p) -> (out .= z .^ 2; nothing), z, nothing, nothing, w)
    @test gradient ≈ 2 .* w .* z
end
