# The homotopy on flat vectors and its bordered linear systems,
#
#     [ H_z      H_lambda  ]        [ right-hand side ]
#     [ border, a row      ]  dw  = [ one number      ]

const KRYLOV_RTOL = 1.0e-4 # of one linear system; Newton's corrections themselves bring the residual to the tolerance

"""
H on flat vectors w = (z, lambda) of type `A`, and its derivative; counts evaluations. The functions see the same buffers
each time.
"""
mutable struct Homotopy{T, Z <: AbstractArray{T}, A <: AbstractVector{T}}
    r!::Any
    jvp!::Any
    newton::Bool
    u0::A
    z::Z
    direction::Z
    out::Z
    r0::A
    nfe::Int
    n_jvp::Int
end

function Homotopy(r!, jvp!, z0::AbstractArray{T}, newton::Bool) where {T}
    u0 = copy(vec(z0))
    buffers = ntuple(_ -> similar(z0), 3)
    homotopy = Homotopy{T, typeof(buffers[1]), typeof(u0)}(r!, jvp!, newton, u0, buffers..., u0, 0, 0)
    newton && (homotopy.r0 = residual(homotopy, u0))
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
    r = residual(homotopy, flat_state(w))
    rest = T(1 - Float64(lambda))
    h = homotopy.newton ? r .- rest .* homotopy.r0 : lambda .* r .+ rest .* (flat_state(w) .- homotopy.u0)
    return Point{T, A}(w, lambda, r, h, root_mean_square_64(h))
end

flat_state(w) = view(w, 1:(length(w) - 1))
lambda_part(w) = view(w, length(w):length(w))
lambda_of(w) = only(Array(lambda_part(w)))
root_mean_square_64(x) = euclidean(x) / sqrt(length(x))

function residual(homotopy::Homotopy, u)
    homotopy.nfe += 1
    vec(homotopy.z) .= u
    homotopy.r!(homotopy.out, homotopy.z)
    return copy(vec(homotopy.out))
end

by_lambda(homotopy::Homotopy, p::Point) = homotopy.newton ? homotopy.r0 : p.r .- (flat_state(p.w) .- homotopy.u0)

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
        homotopy.nfe += 1
        homotopy.r!(homotopy.out, homotopy.z)
        out .= (out .- p.r) ./ step
    else
        homotopy.jvp!(homotopy.out, homotopy.direction, homotopy.z)
    end
    homotopy.newton || (out .= p.lambda .* out .+ T(1 - Float64(p.lambda)) .* v)
    return out
end

"Whether p lies on another path for certain: a fixed-point homotopy has no zero but z0 at lambda = 0."
jumped(homotopy::Homotopy, p::Point) = !homotopy.newton && p.lambda <= 0

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
        lambda_part(out) .= T(inner(border, v))
        return out
    end
    x, left = gmres(product, rhs; steps, rtol = KRYLOV_RTOL)
    return (left < 0.1 ? x : nothing), 0.0
end
