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
