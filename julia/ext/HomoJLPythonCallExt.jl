"""
Solves for homojl's Python side: HomoJL's functions on memory that PyTorch owns.

States cross the border as flat vectors: tensors are borrowed through DLPack for the time of a solve, functions in Python
are called with buffers that PyTorch owns (small states) or with views of Julia's own vectors (large ones), and results are
written into tensors that were made for them. Nothing here computes.
"""
module HomoJLPythonCallExt

import DLPack
import HomoJL
using PythonCall: PythonCall, C, Py, pybuiltins, pyconvert, pydel!, pyis, pytuple

# ---- tensors ----

"""
    borrow(action, tensor::Py)

`action(vector)` with the flat tensor's memory as a vector, on the CPU through DLPack. Both the memory and this reference to the
tensor are given back at the end, not when the garbage collector happens to run, which knows nothing of the memory behind them.
"""
function borrow(action, tensor::Py)
    try
        return pyconvert(Bool, tensor.is_cuda) ? borrow_from_device(action, tensor) : borrow_from_host(action, tensor)
    finally
        pydel!(tensor)
    end
end

function borrow_from_host(action, tensor::Py)
    to_dlpack = tensor.__dlpack__
    capsule = to_dlpack()
    manager = DLPack.DLManagedTensor(capsule)
    try
        return GC.@preserve manager action(unsafe_wrap(Array, DLPack.DLManager(manager))::Vector)
    finally
        finalize(manager)
        pydel!(capsule)
        pydel!(to_dlpack)
    end
end

function borrow_from_device(action, tensor::Py)
    vector = HomoJL.device_vector(element_type(tensor), address(tensor), pyconvert(Int, tensor.numel()))
    return HomoJL.on_device_stream(() -> action(vector))
end

borrow(action, tensors::Tuple{}) = action(())

function borrow(action, tensors::Tuple)
    return borrow(first(tensors)) do vector
        borrow(rest -> action((vector, rest...)), Base.tail(tensors))
    end
end

element_type(tensor::Py) = pyconvert(Int, tensor.element_size()) == 4 ? Float32 : Float64
address(tensor::Py) = pyconvert(Int, tensor.data_ptr())

"The vector of length n at an address in the memory of `like`'s kind."
vector_at(::Vector{T}, address::Int, n::Int) where {T} = unsafe_wrap(Array, Ptr{T}(address), n)
vector_at(::AbstractVector{T}, address::Int, n::Int) where {T} = HomoJL.device_vector(T, address, n)

# ---- functions in Python ----

# So many of Julia's vectors are viewed as tensors in one solve; a solver that uses more of them gets buffers.
const MOST_VIEWS = 64

"""
A function in Python of `K` states, and of the time if `time` is not `nothing`; see `Callback` in homojl's tensors.py.

Calling it as `f(out, t, states...)` evaluates it into `out`. Exceptions in Python pass through as `PyException`.
"""
struct PyFunction{T, V <: AbstractVector{T}, K}
    callback::Py
    buffered::Py
    time::Union{Nothing, V}
    inputs::NTuple{K, V}
    views::Union{Nothing, Dict{Ptr{T}, Py}}
end

function with_function(action, callback::Py)
    timed = !pyis(callback.time, pybuiltins.None)
    tensors = Tuple(Py(x) for x in callback.inputs)
    borrow(timed ? (callback.time, tensors...) : tensors) do vectors
        T, V = eltype(first(vectors)), typeof(first(vectors))
        time, inputs = timed ? (first(vectors), Base.tail(vectors)) : (nothing, vectors)
        views = pyconvert(Bool, callback.views_pay) ? Dict{Ptr{T}, Py}() : nothing
        try
            action(PyFunction{T, V, length(inputs)}(callback, callback.buffered, time, inputs, views))
        finally
            isnothing(views) || foreach(pydel!, values(views))
        end
    end
end

function (f::PyFunction{T, V, K})(out, t, states::Vararg{Any, K}) where {T, V, K}
    isnothing(f.time) || fill!(f.time, t)
    if !isnothing(f.views) && all(x -> x isa Vector{T}, (out, states...)) && can_view(f.views, out, states)
        pydel!(f.callback.viewed(view_of(f, out), map(x -> view_of(f, x), states)...))
        return nothing
    end
    foreach(copyto!, f.inputs, states)
    copyto!(out, vector_at(first(f.inputs), call_for_address(f.buffered), length(out)))
    return nothing
end

can_view(views, out, states) = length(views) + 1 + length(states) <= MOST_VIEWS ||
    all(x -> haskey(views, pointer(x)), (out, states...))

view_of(f::PyFunction, x::Vector) = get!(() -> DLPack.share(x, f.callback.view), f.views, pointer(x))

"The integer that a Python function without arguments returns; a tenth of the time of `pyconvert(Int, f())`."
function call_for_address(f::Py)
    result = C.PyObject_CallObject(PythonCall.getptr(f), C.PyNULL)
    result == C.PyNULL && PythonCall.Core.pythrow()
    address = C.PyLong_AsLongLong(result)
    C.Py_DecRef(result)
    return Int(address)
end

# ---- functions in Julia ----

"""
A function written in Julia, `f!(out, state, p, t)` for a field or `f!(out, state, p)` for a map, on flat vectors.

`dims` is the size that the function sees its states in: the tensor's shape, reversed. Every so many calls Python is asked
whether the user pressed Ctrl-C.
"""
mutable struct NativeFunction{F, P, N}
    f!::F
    p::P
    dims::NTuple{N, Int}
    calls::Int
end

function (f::NativeFunction)(out, state, t)
    listen(f)
    f.f!(reshape(out, f.dims), reshape(state, f.dims), f.p, t)
    return nothing
end

function (f::NativeFunction)(out, state)
    listen(f)
    f.f!(reshape(out, f.dims), reshape(state, f.dims), f.p)
    return nothing
end

const LISTEN_EVERY = 64

function listen(f::NativeFunction)
    f.calls += 1
    f.calls % LISTEN_EVERY == 0 && check_signals()
    return nothing
end

const CHECK_SIGNALS = Ref{Ptr{Cvoid}}(C_NULL)

function check_signals()
    ccall(CHECK_SIGNALS[], Cint, ()) == 0 || PythonCall.Core.pythrow()
    return nothing
end

__init__() = CHECK_SIGNALS[] = Base.Libc.Libdl.dlsym(C.CTX.lib_ptr, :PyErr_CheckSignals)

"The value of Julia source evaluated in a module of its own."
function evaluate_source(source::String)
    # Bound in Main, where nothing collects it: compiled code refers to a module without keeping it alive.
    home = Core.eval(Main, Expr(:module, true, gensym(:JuliaField), Expr(:block)))
    value = Base.include_string(home, source, "JuliaField")
    value isa Function || applicable(value) ||
        throw(ArgumentError("the source must end in a function, and ends in a $(typeof(value))"))
    return value
end

"""
    with_native(action, field::Py)

`action(f)` with a [`NativeFunction`](@ref), from a `BoundJuliaField` of homojl; its tensors are borrowed meanwhile and seen in
their shapes reversed: none as `nothing`, one as itself, several as a tuple.
"""
function with_native(action, field::Py)
    return borrow(Tuple(Py(x) for x in field.parameters)) do vectors
        arrays = map((v, dims) -> reshape(v, size_of(dims)), vectors, Tuple(field.parameter_dims))
        p = isempty(arrays) ? nothing : length(arrays) == 1 ? only(arrays) : arrays
        # What follows is compiled for the function, the size and the parameters, which are known only now.
        act_natively(action, pyconvert(Any, field.julia), p, size_of(field.dims))
    end
end

function act_natively(@nospecialize(action), f!::F, p::P, dims::NTuple{N, Int}) where {F, P, N}
    return action(NativeFunction{F, P, N}(f!, p, dims, 0))
end

size_of(dims::Py) = Tuple(pyconvert(Vector{Int}, dims))

is_native(f::Py) = PythonCall.pyhasattr(f, "julia")

"What an exception is called, and its message."
describe(exception) = string(nameof(typeof(exception))), sprint(showerror, exception)
describe(exception::LoadError) = describe(exception.error)

# ---- solves ----

algorithm_of(name::String; options...) = getfield(HomoJL, Symbol(name))(; map(option, values(options))...)

option(value) = value
option(velocity::Py) = s -> pyconvert(Float64, velocity(s))

"`action(f, jvp!)` for a function in Julia, with ForwardDiff's product where one is asked for."
function differentiable(action, f::NativeFunction, jvp::Py)
    pyis(jvp, pybuiltins.None) && return action(f, nothing)
    HomoJL.require_package(:ForwardDiff)
    return Base.invokelatest(f -> action(f, HomoJL.forward_jvp(f)), f)
end

"A field and its Jacobian-vector product or nothing, as HomoJL calls them: f!(du, u, t) and jvp!(out, v, u, t)."
function with_field(action, field::Py, jvp::Py)
    is_native(field) && return with_native(f -> differentiable(action, f, jvp), field)
    return with_function(field) do f
        f!(du, u, t) = f(du, t, u)
        pyis(jvp, pybuiltins.None) && return action(f!, nothing)
        with_function(jvp) do g
            action(f!, (out, v, u, t) -> g(out, t, u, v))
        end
    end
end

"As `with_field` for maps: f!(out, z) and jvp!(out, v, z)."
function with_map(action, map::Py, jvp::Py)
    is_native(map) && return with_native(f -> differentiable(action, f, jvp), map)
    return with_function(map) do f
        f!(out, z) = f(out, nothing, z)
        pyis(jvp, pybuiltins.None) && return action(f!, nothing)
        with_function(jvp) do g
            action(f!, (out, v, z) -> g(out, nothing, z, v))
        end
    end
end

"""
    integrate(job::Py) -> Py

Integrate for `JuliaBackend.integrate`. The job has the attributes `field`, `jvp` or `None`, `u0` and `out`, flat tensors for the
start and for all saved states, `ts`, the address and number of the save times, `algorithm`, `parts` or `None`, and `keep`: `None` or
a function that returns the address of a new state. Returns a tuple of plain Python values, numbers by the many as bytes.
"""
function integrate(job::Py)
    times = numbers_at(job.ts)
    algorithm = pyconvert(Any, job.algorithm)
    ranges = pyis(job.parts, pybuiltins.None) ? nothing :
        [(start + 1):stop for (start, stop) in pyconvert(Vector{Tuple{Int, Int}}, job.parts)]
    keep = job.keep
    keep_states = !pyis(keep, pybuiltins.None)
    return with_field(job.field, job.jvp) do f!, jvp!
        borrow((job.u0, job.out)) do (start, block)
            integrate_on(f!, jvp!, start, block, times, algorithm, ranges, keep_states, keep)
        end
    end
end

# Apart, so that it is compiled for the types of the vectors; those of the functions are left open, as HomoJL leaves them.
function integrate_on(
        @nospecialize(f!), @nospecialize(jvp!), start::V, block::V, times, algorithm, parts, keep_states, keep_address
    ) where {V}
    n = length(start)
    out = V[view_block(block, i, n) for i in 1:(length(times) - 1)]
    keep(u) = copyto!(vector_at(start, call_for_address(keep_address), n), u)
    solution = if isnothing(jvp!)
        HomoJL.integrate(f!, start, times, algorithm; parts, out, keep_states, keep, throw = false)
    else
        HomoJL.integrate(f!, start, times, algorithm; jvp!, parts, out, keep_states, keep, throw = false)
    end
    # A solve that stopped early ends in a state that belongs to no save time.
    n_saved = length(solution.steps.save_steps)
    length(solution.us) > n_saved + 1 && copyto!(out[n_saved + 1], solution.us[end])
    steps, stats = solution.steps, solution.stats
    return pytuple(
        (
            packed(solution.ts), packed(steps.starts), packed(steps.sizes), packed(steps.save_fractions),
            packed(Int64[s - 1 for s in steps.save_steps]), string(solution.status), solution.message, stats.nfe,
            stats.n_rejected,
        )
    )
end

"A copy of the numbers that a Python array of doubles holds, from its address and its length."
function numbers_at(place::Py)
    address, n = pyconvert(Tuple{Int, Int}, place)
    return copy(unsafe_wrap(Array, Ptr{Float64}(address), n))
end

"The memory of a vector of numbers as Python's bytes: a hundredth of the time of as many Python objects."
function packed(numbers::Vector)
    bytes = GC.@preserve numbers C.PyBytes_FromStringAndSize(Ptr{Cchar}(pointer(numbers)), sizeof(numbers))
    bytes == C.PyNULL && PythonCall.Core.pythrow()
    return PythonCall.pynew(bytes)
end

view_block(block::Vector{T}, i::Int, n::Int) where {T} = unsafe_wrap(Array, pointer(block, (i - 1) * n + 1), n)
view_block(block::V, i::Int, n::Int) where {V <: AbstractVector} = device_block(block, (i - 1) * n, n)::V
device_block(block::AbstractVector{T}, offset::Int, n::Int) where {T} =
    HomoJL.device_vector(T, Int(UInt(pointer(block, offset + 1))), n)

"""
    fixed_point(job::Py) -> Py

As [`integrate`](@ref), for `JuliaBackend.find_fixed_point`: `map`, `jvp`, `z0`, `out`, where the equilibria go, `algorithm` and the
number of `samples`.
"""
function fixed_point(job::Py)
    algorithm, samples = pyconvert(Any, job.algorithm), pyconvert(Int, job.samples)
    return with_map(job.map, job.jvp) do f!, jvp!
        borrow((job.z0, job.out)) do (start, value)
            solution = HomoJL.fixed_point(f!, start, algorithm; samples, jvp!, throw = false, first_sample = 0)
            copyto!(value, solution.value)
            pytuple(
                (
                    pytuple(solution.residuals), pytuple(solution.iterations), pytuple(solution.converged),
                    string(solution.status), solution.message, solution.stats.nfe, solution.stats.n_jvp,
                )
            )
        end
    end
end

"""
    trace_path(job::Py) -> Py

As [`integrate`](@ref), for `JuliaBackend.trace_path`: `map`, the residual, `jvp`, `z0`, `algorithm`, `kind`, and `keep`, which is asked
for the address of a new state for each point of the path.
"""
function trace_path(job::Py)
    algorithm, keep = pyconvert(Any, job.algorithm), job.keep
    kind = Symbol(replace(pyconvert(String, job.kind), '-' => '_'))
    return with_map(job.map, job.jvp) do r!, jvp!
        borrow(job.z0) do start
            path = HomoJL.trace_path(r!, start, algorithm; kind, jvp!, throw = false)
            for z in path.states
                copyto!(vector_at(start, call_for_address(keep), length(start)), z)
            end
            pytuple(
                (
                    pytuple(path.s), pytuple(path.lambdas), pytuple(path.residuals), path.folds,
                    string(path.status), path.message, path.stats.nfe, path.stats.n_jvp, path.stats.n_rejected,
                )
            )
        end
    end
end

# ---- one evaluation of a function in Julia, for PyTorch's autograd ----

"Evaluate `job.field`, a `BoundJuliaField`, at the flat tensor `job.state` into `job.out`; `job.t` is a number, or `None` for a map."
function evaluate(job::Py)
    with_native(job.field) do f
        borrow((job.out, job.state)) do (out, state)
            t = time_of(job, eltype(state))
            isnothing(t) ? f(out, state) : f(out, state, t)
        end
    end
    return nothing
end

"""
The vector-Jacobian product of `job.field`: `cotangent' df/dstate` into `job.out`, and `cotangent' df/dp` into each of
`job.parameters_out`, all flat tensors.
"""
function vjp(job::Py)
    HomoJL.require_package(:ForwardDiff)
    shapes = Tuple(size_of(x) for x in job.field.parameter_dims)
    with_native(job.field) do f
        borrow((job.out, job.state, job.cotangent, (Py(x) for x in job.parameters_out)...)) do vectors
            gradient, state, cotangent = map(x -> reshape(x, f.dims), vectors[1:3])
            targets = map(reshape, vectors[4:end], shapes)
            t = time_of(job, eltype(state))
            Base.invokelatest(HomoJL.forward_vjp!, gradient, targets, f.f!, state, f.p, t, cotangent)
        end
    end
    return nothing
end

time_of(job::Py, ::Type{T}) where {T} = pyis(job.t, pybuiltins.None) ? nothing : T(pyconvert(Float64, job.t))

# ---- what a first solve would otherwise wait for ----

# No workload can run here, since Python is not there while packages are compiled: the signatures are named instead.
for solve in (integrate, fixed_point, trace_path, evaluate)
    precompile(solve, (Py,))
end
for T in (Float32, Float64)
    V = Vector{T}
    for K in 1:2
        precompile(Tuple{PyFunction{T, V, K}, V, T, Vararg{V, K}})
        precompile(Tuple{PyFunction{T, V, K}, V, Nothing, Vararg{V, K}})
    end
    for A in (HomoJL.Euler, HomoJL.RK4, HomoJL.Bosh3, HomoJL.Dopri5, HomoJL.Tsit5)
        precompile(integrate_on, (Function, Nothing, V, V, Vector{Float64}, A, Nothing, Bool, Py))
    end
end

end
