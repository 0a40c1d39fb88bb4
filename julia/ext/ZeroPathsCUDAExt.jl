"""
CUDA memory that PyTorch owns, as arrays of CUDA.jl.

Device pointers are wrapped as they are; both sides use the legacy default stream, so kernels run in the order in which they were
launched and nobody waits.
"""
module ZeroPathsCUDAExt

import CUDA
import ZeroPaths

ZeroPaths.device_functional() = CUDA.functional()

function ZeroPaths.device_vector(::Type{T}, address::Int, n::Int) where {T}
    return unsafe_wrap(CUDA.CuArray, CUDA.CuPtr{T}(UInt(address)), n; own = false)
end

ZeroPaths.on_device(action, device::Int) = CUDA.device!(() -> CUDA.stream!(action, CUDA.legacy_stream()), device)

ZeroPaths.kernels(::CUDA.CuVector) = CUDA.CUDABackend()
ZeroPaths.in_kernel(array::CUDA.CuArray) = CUDA.cudaconvert(array)

end
