module HomoJLForwardDiffExt

import ForwardDiff
import HomoJL

"One direction's dual numbers; its type is the tag that tells them from any others that the field may meet."
struct Direction end

"A product with a field's Jacobian, with the arrays of dual numbers that the last one used."
mutable struct ForwardProduct{F}
    f!::F
    buffers::Any
end

HomoJL.forward_jvp(f!) = ForwardProduct(f!, nothing)

function (product::ForwardProduct)(Jv, v, u, t)
    T = eltype(u)
    D = ForwardDiff.Dual{Direction, T, 1}
    buffers = product.buffers
    if isnothing(buffers) || eltype(buffers[1]) !== D || size(buffers[1]) != size(u)
        buffers = (similar(u, D), similar(u, D))
        product.buffers = buffers
    end
    return forward!(Jv, product.f!, buffers[1], buffers[2], v, u, t)
end

function forward!(Jv, f!, du, x, v, u, t)
    x .= ForwardDiff.Dual{Direction}.(u, v)
    f!(du, x, t)
    Jv .= ForwardDiff.partials.(du, 1)
    return Jv
end

end
