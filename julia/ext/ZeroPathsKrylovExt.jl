module ZeroPathsKrylovExt

import ZeroPaths
import Krylov
import LinearAlgebra

"A linear map that is known by its products."
struct Products{T, F}
    product::F
    n::Int
end

Base.size(a::Products) = (a.n, a.n)
Base.size(a::Products, i::Int) = a.n
Base.eltype(::Products{T}) where {T} = T
LinearAlgebra.mul!(y::AbstractVector, a::Products, x::AbstractVector) = copyto!(y, a.product(x))

function ZeroPaths.gmres(product, rhs::AbstractVector{T}, steps::Int, rtol::Float64) where {T}
    goal = ZeroPaths.euclidean(rhs)
    iszero(goal) && return zero(rhs), 0.0
    isfinite(goal) || return zero(rhs), Inf
    n = min(steps, length(rhs))
    x, stats = Krylov.gmres(
        Products{T, typeof(product)}(product, length(rhs)), rhs; memory = n, itmax = n, atol = zero(T), rtol = T(rtol),
        reorthogonalization = true, history = true,
    )
    left = Float64(stats.residuals[end]) / goal
    return x, all(isfinite, x) && isfinite(left) ? left : Inf
end

end
