# What the methods that treat each sample by itself remember, and how they go on from it.

Memory(::Union{SamplewisePicard, Samplewise}, z) = nothing

advance!(::Nothing, algorithm::SamplewisePicard, z, gz, r) = (z .= gz .- eltype(z)(algorithm.damping) .* r)

"""
Anderson's history: differences of residuals and of images z + mixing r, (elements, samples) each, in a ring.

The small systems are solved on the host in Float64.
"""
mutable struct AndersonMemory{M <: AbstractMatrix}
    differences::Vector{M}
    images::Vector{M}
    gram::Array{Float64, 3}
    image::M
    image_before::M
    r_before::M
    scratch::M
    count::Int
end

function Memory(algorithm::SamplewiseAnderson, z)
    # One iterate fewer than are combined; a memory of 1 leaves nothing to combine.
    memory = algorithm.memory - 1
    blocks() = [similar(z) for _ in 1:memory]
    gram = zeros(memory, memory, size(z, 2))
    return AndersonMemory(blocks(), blocks(), gram, similar(z), similar(z), similar(z), similar(z), -1)
end

function advance!(memory::AndersonMemory, algorithm::SamplewiseAnderson, z, gz, r)
    (; image, image_before, r_before, differences, images, gram) = memory
    image .= gz .- eltype(z)(1 - algorithm.mixing) .* r
    copyto!(z, image)
    memory.count += 1
    if memory.count > 0 && !isempty(images)
        slot = mod1(memory.count, length(images))
        count = min(memory.count, length(images))
        differences[slot] .= r .- r_before
        images[slot] .= image .- image_before
        row = inner_products(memory, count, differences[slot])
        gram[slot, 1:count, :] = row
        gram[1:count, slot, :] = row
        weights = least_squares(gram, inner_products(memory, count, r), count, algorithm, eltype(z))
        for j in 1:count
            z .+= copyto!(similar(z, 1, size(z, 2)), eltype(z).(weights[j:j, :])) .* images[j]
        end
    end
    copyto!(r_before, r)
    copyto!(image_before, image)
    return nothing
end

"Minus the weights of the differences that reduce each sample's residual most, (count, samples)."
function least_squares(gram, right, count::Int, algorithm::SamplewiseAnderson, ::Type{T}) where {T}
    floor = max(algorithm.regularization, 10 * Float64(eps(T)))
    weights = zero(right)
    for s in axes(right, 2)
        a = gram[1:count, 1:count, s]
        scale = [1 / sqrt(max(a[i, i], floatmin(Float64))) for i in 1:count]
        a .*= scale .* scale'
        b = scale .* view(right, :, s)
        # A sample that is done goes on with the others, and may come to anything.
        all(isfinite, a) && all(isfinite, b) || continue
        weights[:, s] = -scale .* ((a + floor * I) \ b)
    end
    return weights
end

"The inner products of the first `count` differences of each sample with its column of x: (count, samples), on the host."
function inner_products(memory::AndersonMemory, count::Int, x)
    products = zeros(count, size(x, 2))
    for j in 1:count
        memory.scratch .= memory.differences[j] .* x
        products[j, :] = Array(vec(sum(memory.scratch; dims = 1)))
    end
    return products
end
