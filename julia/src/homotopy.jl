# The homotopy on flat vectors and its bordered linear systems,
#
#     [ H_z      H_lambda  ]        [ right-hand side ]
#     [ border, a row      ]  dw  = [ one number      ]

const KRYLOV_RTOL = 1.0e-4 # of one linear system; Newton's corrections themselves bring the residual to the tolerance

"""
    RootHomotopy(r!, jvp!, z0, kind)

The homotopy from a known point to a root of r: `:fixed_point`: H = lambda r(z) + (1 - lambda)(z - z0); `:newton`:
H = r(z) - (1 - lambda) r(z0). Called as `(out, z, p, lambda)`; a [`ZeroPathTracker`](@ref) looks inside.
"""
struct RootHomotopy{F, J, Z} <: Function
    r!::F
    jvp!::J
    z0::Z
    kind::Symbol
end

function (homotopy::RootHomotopy)(out, z, p, lambda)
    homotopy.r!(out, z)
    if homotopy.kind === :fixed_point
        out .= lambda .* out .+ (1 - lambda) .* (z .- homotopy.z0)
    else
        at_start = similar(out)
        homotopy.r!(at_start, homotopy.z0)
        out .-= (1 - lambda) .* at_start
    end
    return nothing
end

"""
    homotopy(prob::NonlinearProblem; kind = :fixed_point) -> HomotopyProblem

The problem of following a zero path from `prob.u0` to a root of `prob`: `kind = :fixed_point`: H = λ f(u) + (1 - λ)(u - u0), whose
path stays bounded where u - f(u) is; `:newton`: H = f(u) - (1 - λ) f(u0).
"""
function homotopy(prob::NonlinearProblem; kind::Symbol = :fixed_point)
    require(kind in (:fixed_point, :newton), "kind must be :fixed_point or :newton, got :$kind")
    jvp! = isnothing(prob.f.jvp) ? nothing : (out, v, z) -> prob.f.jvp(out, v, z, prob.p)
    start = RootHomotopy((out, z) -> residual!(prob, out, z), jvp!, copy(prob.u0), kind)
    return HomotopyProblem{true}(start, prob.u0, prob.p)
end

"""
H on flat vectors w = (z, lambda) of type `A`, and its derivative; counts evaluations. The functions see the same buffers
each time. Of the `kind` `:general`, r is H itself, `r!(out, z, lambda)`.
"""
mutable struct Homotopy{T, Z <: AbstractArray{T}, A <: AbstractVector{T}}
    r!::Any
    jvp!::Any
    kind::Symbol
    u0::A
    z::Z
    direction::Z
    out::Z
    r0::A
    nfe::Int
    n_jvp::Int
end

function Homotopy(r!, jvp!, z0::AbstractArray{T}, kind::Symbol) where {T}
    u0 = copy(vec(z0))
    buffers = ntuple(_ -> similar(z0), 3)
    homotopy = Homotopy{T, typeof(buffers[1]), typeof(u0)}(r!, jvp!, kind, u0, buffers..., u0, 0, 0)
    kind === :newton && (homotopy.r0 = residual(homotopy, u0, zero(T)))
    return homotopy
end

"A point w = (z, lambda) with what is known there: r(z), H and norm(H)."
struct Point{T, A <: AbstractVector{T}}
    w::A
    lambda::T
    r::A
    h::A
    size::Float64
end

function Point(homotopy::Homotopy{T, Z, A}, w::A) where {T, Z, A}
    lambda = lambda_of(w)
    r = residual(homotopy, flat_state(w), lambda)
    rest = T(1 - Float64(lambda))
    h = homotopy.kind === :general ? r : homotopy.kind === :newton ? r .- rest .* homotopy.r0 :
        lambda .* r .+ rest .* (flat_state(w) .- homotopy.u0)
    return Point{T, A}(w, lambda, r, h, root_mean_square_64(h))
end

flat_state(w) = view(w, 1:(length(w) - 1))
lambda_part(w) = view(w, length(w):length(w))
lambda_of(w) = only(Array(lambda_part(w)))
root_mean_square_64(x) = euclidean(x) / sqrt(length(x))

function residual(homotopy::Homotopy, u, lambda)
    vec(homotopy.z) .= u
    evaluate!(homotopy, lambda)
    return copy(vec(homotopy.out))
end

function evaluate!(homotopy::Homotopy, lambda)
    homotopy.nfe += 1
    homotopy.kind === :general ? homotopy.r!(homotopy.out, homotopy.z, lambda) : homotopy.r!(homotopy.out, homotopy.z)
    return nothing
end

function by_lambda(homotopy::Homotopy{T}, p::Point) where {T}
    homotopy.kind === :newton && return homotopy.r0
    homotopy.kind === :fixed_point && return p.r .- (flat_state(p.w) .- homotopy.u0)
    step = sqrt(eps(T))
    return (residual(homotopy, flat_state(p.w), p.lambda + step) .- p.h) ./ step
end

"The product of H_z at a point with v, both flat; the result is overwritten by the next call."
function by_state(homotopy::Homotopy{T}, p::Point, v) where {T}
    homotopy.n_jvp += 1
    out = vec(homotopy.out)
    vec(homotopy.z) .= flat_state(p.w)
    vec(homotopy.direction) .= v
    if isnothing(homotopy.jvp!)
        largest = maximum(abs, homotopy.direction)
        step = sqrt(eps(T)) * (1 + maximum(abs, homotopy.z)) / (iszero(largest) ? one(T) : largest)
        homotopy.z .+= step .* homotopy.direction
        evaluate!(homotopy, p.lambda)
        out .= (out .- p.r) ./ step
    elseif homotopy.kind === :general
        homotopy.jvp!(homotopy.out, homotopy.direction, homotopy.z, p.lambda)
    else
        homotopy.jvp!(homotopy.out, homotopy.direction, homotopy.z)
    end
    homotopy.kind === :fixed_point && (out .= p.lambda .* out .+ T(1 - Float64(p.lambda)) .* v)
    return out
end

"Whether p lies on another path for certain: a fixed-point homotopy has no zero but z0 at lambda = 0."
jumped(homotopy::Homotopy, p::Point) = homotopy.kind === :fixed_point && p.lambda <= 0

"The solution of the bordered system at a point, `nothing` if there is none; and its determinant's sign."
function solve_densely(homotopy::Homotopy{T}, p::Point, border, rhs) where {T}
    n = length(homotopy.u0)
    matrix = Matrix{T}(undef, n + 1, n + 1)
    unit = similar(homotopy.u0)
    for j in 1:n
        fill!(unit, zero(T))
        view(unit, j:j) .= one(T)
        matrix[1:n, j] = Array(by_state(homotopy, p, unit))
    end
    matrix[1:n, n + 1] = Array(by_lambda(homotopy, p))
    matrix[n + 1, :] = Array(border)
    # LAPACK refuses what is not finite.
    all(isfinite, matrix) || return nothing, 0.0
    factors = LinearAlgebra.lu!(matrix; check = false)
    LinearAlgebra.issuccess(factors) || return nothing, 0.0
    x = factors \ Array(rhs)
    swaps = count(i -> factors.ipiv[i] != i, eachindex(factors.ipiv))
    sign_of_determinant = prod(i -> Float64(sign(factors.factors[i, i])), 1:(n + 1)) * (iseven(swaps) ? 1.0 : -1.0)
    return (all(isfinite, x) ? copyto!(similar(rhs), x) : nothing), sign_of_determinant
end

"The same by GMRES, which does not know the determinant: its sign comes as 0."
function solve_by_krylov(homotopy::Homotopy{T}, p::Point, border, rhs, steps::Int) where {T}
    column = by_lambda(homotopy, p)
    function product(v)
        out = similar(v)
        flat_state(out) .= by_state(homotopy, p, flat_state(v)) .+ lambda_of(v) .* column
        lambda_part(out) .= T(mapreduce(*, +, border, v))
        return out
    end
    x, left = gmres(product, rhs, steps, KRYLOV_RTOL)
    return (left < 0.1 ? x : nothing), 0.0
end

"""
    gmres(product, rhs, steps, rtol) -> x, left

Solve A x = rhs, with `product(x)` a new vector A x, from zero and without restarts, by at most `steps` products, until the
residual's norm is `left` <= `rtol` times that of `rhs`; `Inf` if something was not finite. Krylov.jl's, once it is loaded.
"""
gmres(product, rhs, steps::Int, rtol::Float64) = throw(ArgumentError("linear_solver = :krylov needs Krylov.jl: say `using Krylov`"))
