# Memory of a device, for the bridge: the CUDA extension adds the methods.

"Whether solves on CUDA memory can run: CUDA.jl is loaded and finds a working driver."
has_device() = hasmethod(device_vector, Tuple{Type, Int, Int}) && device_functional()

device_functional() = false

"""
    device_vector(T, address, n)

The vector of length n at an address in CUDA memory, which is not copied and must outlive it.
"""
function device_vector end

"`action()` on the device of that number, with every kernel on the stream that PyTorch uses by default: neither side waits for the other."
function on_device end

"The backend of KernelAbstractions whose kernels solve ensembles in memory of a vector's kind; `nothing` where Julia's threads do."
kernels(::AbstractVector) = nothing

"An array of a device as its kernels see it, which must be kept alive."
in_kernel(array) = array

"""
    kernel_ensemble!(out, backend, f, in_place, u0, p, times, method, request)

Solve many small systems in one kernel of DiffEqGPU, each of its threads one of them with steps of its own.

# Arguments
- `out`: (elements of a state, samples, times), in the backend's memory: where the states at `times[2:end]` go.
- `backend`: of KernelAbstractions, such as `CPU()` or `CUDABackend()`.
- `f`, `in_place`: a function of one sample, `f(u, p, t)`, or `f(du, u, p, t)`, which writes; they get static arrays.
- `u0`, `p`: functions of a sample's number that give its start and its parameters: an array, a tuple of them, or `nothing`.
- `times`: where states are saved, from the start on, in either direction.
- `method`: one of OrdinaryDiffEq or of DiffEqGPU; its name says which of DiffEqGPU's is meant.
- `request`: tolerances, first and smallest step, number of steps; or a size of equal steps, between which states are interpolated.

Returns for each sample the time that it reached, the number of its steps, and how it ended, as one of `RETURN_CODES`' symbols. Where
one stopped early, its last saved state stands in the place of those that are missing.
"""
function kernel_ensemble! end
