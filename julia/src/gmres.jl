# GMRES for one system of linear equations, given its products.

euclidean(x) = sqrt(Float64(sum(abs2, x)))
inner(x, y) = Float64(mapreduce(*, +, x, y))

"""
    gmres(product, rhs; steps, rtol) -> x, left

Solve A x = rhs, with `product(x)` a new vector A x, from zero and without restarts, by at most `steps` products; stops
where the residual's norm is at most `rtol` times that of `rhs`. `left` is that ratio as the recursion knows it, `Inf`
if something was not finite.

References: Saad, Schultz (1986), SIAM J. Sci. Stat. Comput. 7(3).
"""
function gmres(product, rhs::A; steps::Int, rtol::Float64) where {T, A <: AbstractVector{T}}
    x = zero(rhs)
    goal = euclidean(rhs)
    iszero(goal) && return x, 0.0
    isfinite(goal) || return x, Inf
    basis = A[rhs ./ T(goal)]
    columns = Vector{Float64}[]      # of the triangular factor of the Hessenberg matrix
    rotations = Tuple{Float64, Float64}[]
    reduced = [goal]                 # the right-hand side of the least-squares problem, rotated along
    for _ in 1:min(steps, length(rhs))
        column, new = orthogonalized(product(basis[end]), basis)
        all(isfinite, column) || return x, Inf
        # The solution lies in the space spanned so far.
        happy = column[end] <= 1.0e-14 * euclidean(column)
        for (i, (c, s)) in enumerate(rotations)
            column[i], column[i + 1] = c * column[i] + s * column[i + 1], c * column[i + 1] - s * column[i]
        end
        len = hypot(column[end - 1], column[end])
        iszero(len) && break
        c, s = column[end - 1] / len, column[end] / len
        push!(rotations, (c, s))
        push!(columns, [column[1:(end - 2)]; len])
        push!(reduced, -s * reduced[end])
        reduced[end - 1] *= c
        (abs(reduced[end]) <= rtol * goal || happy) && break
        push!(basis, new)
    end
    weights = zeros(length(columns))
    for i in reverse(eachindex(columns))
        known = sum(Float64[columns[j][i] * weights[j] for j in (i + 1):length(columns)])
        weights[i] = (reduced[i] - known) / columns[i][i]
    end
    for (weight, vector) in zip(weights, basis)
        x .+= T(weight) .* vector
    end
    return x, abs(reduced[end]) / goal
end

"""
The vector's products with an orthonormal basis, then the norm of what is left of it; and that at length one.
Gram-Schmidt twice over, so that the basis stays orthonormal to rounding.
"""
function orthogonalized(vector::A, basis::Vector{A}) where {T, A <: AbstractVector{T}}
    column = zeros(length(basis) + 1)
    for _ in 1:2
        products = Float64[inner(b, vector) for b in basis]
        for (p, b) in zip(products, basis)
            vector .-= T(p) .* b
        end
        column[1:(end - 1)] .+= products
    end
    column[end] = euclidean(vector)
    return column, vector ./ T(column[end])
end
