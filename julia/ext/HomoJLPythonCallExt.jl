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

# ---- what is borrowed ----

"""
What one call has borrowed from Python: memory of tensors, references to objects, views of Julia's vectors.

All of it is given back at the end of the call, not when the garbage collector happens to run, which knows nothing of the memory
behind a reference.
"""
struct Loans
    managers::Vector{DLPack.DLManagedTensor}
    references::Vector{Py}
end

function give_back(loans::Loans)
    foreach(finalize, loans.managers)
    foreach(pydel!, loans.references)
    return nothing
end

"`action(job, loans)` for a job of Python's, on the stream that PyTorch uses where its tensors are on a device."
function with_loans(action, job::Py)
    loans = Loans([], [])
    try
        pyis(job.on_device, pybuiltins.True) && return HomoJL.on_device_stream(() -> action(job, loans))
        return action(job, loans)
    finally
        give_back(loans)
    end
end

"The memory of a flat tensor as a vector, on the CPU through DLPack."
function borrow(loans::Loans, tensor::Py)
    push!(loans.references, tensor)
    if pyis(tensor.is_cuda, pybuiltins.True)
        return HomoJL.device_vector(element_type(tensor), address(tensor), pyconvert(Int, tensor.numel()))
    end
    to_dlpack = tensor.__dlpack__
    capsule = to_dlpack()
    manager = DLPack.DLManagedTensor(capsule)
    push!(loans.managers, manager)
    pydel!(capsule)
    pydel!(to_dlpack)
    return unsafe_wrap(Array, DLPack.DLManager(manager))::Vector
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
    loans::Loans
end

function borrow_function(loans::Loans, callback::Py)
    time = pyis(callback.time, pybuiltins.None) ? nothing : borrow(loans, callback.time)
    inputs = Tuple(borrow(loans, Py(x)) for x in callback.inputs)
    return PyFunction(loans, callback, time, inputs)
end

function PyFunction(loans::Loans, callback::Py, time, inputs::NTuple{K, V}) where {K, T, V <: AbstractVector{T}}
    views = pyis(callback.views_pay, pybuiltins.True) ? Dict{Ptr{T}, Py}() : nothing
    return PyFunction{T, V, K}(callback, callback.buffered, time, inputs, views, loans)
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

function view_of(f::PyFunction, x::Vector)
    return get!(f.views, pointer(x)) do
        view = DLPack.share(x, f.callback.view)
        push!(f.loans.references, view)
        view
    end
end

"The integer that a Python function without arguments returns; a tenth of the time of `pyconvert(Int, f())`."
function call_for_address(f::Py)
    result = C.PyObject_CallObject(PythonCall.getptr(f), C.PyNULL)
    result == C.PyNULL && PythonCall.Core.pythrow()
    address = C.PyLong_AsLongLong(result)
    C.Py_DecRef(result)
    return Int(address)
end

# Python's functions as HomoJL calls its fields, its maps and their Jacobian-vector products.
struct PyField{F <: PyFunction}
    f::F
end
struct PyFieldProduct{F <: PyFunction}
    f::F
end
struct PyMap{F <: PyFunction}
    f::F
end
struct PyMapProduct{F <: PyFunction}
    f::F
end
(field::PyField)(du, u, t) = field.f(du, t, u)
(product::PyFieldProduct)(out, v, u, t) = product.f(out, t, u, v)
(map::PyMap)(out, z) = map.f(out, nothing, z)
(product::PyMapProduct)(out, v, z) = product.f(out, nothing, z, v)

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
    borrow_native(loans, field::Py) -> NativeFunction

From a `BoundJuliaField` of homojl; its tensors are borrowed and seen in their shapes reversed: none as `nothing`, one as itself,
several as a tuple.
"""
function borrow_native(loans::Loans, field::Py)
    vectors = Tuple(borrow(loans, Py(x)) for x in field.parameters)
    arrays = map((v, dims) -> reshape(v, size_of(dims)), vectors, Tuple(field.parameter_dims))
    p = isempty(arrays) ? nothing : length(arrays) == 1 ? only(arrays) : arrays
    return NativeFunction(pyconvert(Any, field.julia), p, size_of(field.dims), 0)
end

size_of(dims::Py) = Tuple(pyconvert(Vector{Int}, dims))

is_native(f::Py) = PythonCall.pyhasattr(f, "julia")

"What an exception is called, and its message."
describe(exception) = string(nameof(typeof(exception))), sprint(showerror, exception)
describe(exception::LoadError) = describe(exception.error)

# ---- solves ----

"The algorithm, or the controller, called `job.name`; `job.options` are pairs of a name and a value."
function algorithm_of(job::Py)
    options = Pair{Symbol, Any}[]
    for pair in job.options
        push!(options, Symbol(pyconvert(String, pair[0])) => option(pyconvert(Any, pair[1])))
    end
    return construct(Symbol(pyconvert(String, job.name)), options)
end

# Sorted, so that the types of the options are those that were compiled for.
construct(name::Symbol, options::Vector{Pair{Symbol, Any}}) = getfield(HomoJL, name)(; sort!(options; by = first)...)

option(value) = value
option(velocity::Py) = s -> pyconvert(Float64, velocity(s))

"The field and its Jacobian-vector product or nothing, as HomoJL calls them: f!(du, u, t) and jvp!(out, v, u, t)."
function borrow_field(loans::Loans, field::Py, jvp::Py)
    is_native(field) && return with_product(borrow_native(loans, field), jvp)
    product = pyis(jvp, pybuiltins.None) ? nothing : PyFieldProduct(borrow_function(loans, jvp))
    return PyField(borrow_function(loans, field)), product
end

"As `borrow_field` for maps: f!(out, z) and jvp!(out, v, z)."
function borrow_map(loans::Loans, map::Py, jvp::Py)
    is_native(map) && return with_product(borrow_native(loans, map), jvp)
    product = pyis(jvp, pybuiltins.None) ? nothing : PyMapProduct(borrow_function(loans, jvp))
    return PyMap(borrow_function(loans, map)), product
end

"A function in Julia, with ForwardDiff's product where one is asked for."
function with_product(f::NativeFunction, jvp::Py)
    pyis(jvp, pybuiltins.None) && return f, nothing
    HomoJL.require_package(:ForwardDiff)
    return f, Base.invokelatest(HomoJL.forward_jvp, f)
end

"""
    integrate(job::Py) -> Py

Integrate for `JuliaBackend.integrate`. The job has the attributes `field`, `jvp` or `None`, `u0` and `out`, flat tensors for the
start and for all saved states, `ts`, the address and number of the save times, `algorithm`, `parts` or `None`, and `keep`: `None` or
a function that returns the address of a new state. Returns a tuple of plain Python values, numbers by the many as bytes.
"""
integrate(job::Py) = with_loans(integrate, job)

function integrate(job::Py, loans::Loans)
    times = numbers_at(job.ts)
    algorithm = pyconvert(Any, job.algorithm)
    ranges = pyis(job.parts, pybuiltins.None) ? nothing :
        [(start + 1):stop for (start, stop) in pyconvert(Vector{Tuple{Int, Int}}, job.parts)]
    f!, jvp! = borrow_field(loans, job.field, job.jvp)
    start, block = borrow(loans, job.u0), borrow(loans, job.out)
    # The functions, and a package that the algorithm needs, may be newer than this call.
    return Base.invokelatest(integrate_on, f!, jvp!, start, block, times, algorithm, ranges, job.keep)::Py
end

# Apart, so that it is compiled for the types of the vectors; those of the functions are left open, as HomoJL leaves them.
function integrate_on(
        @nospecialize(f!), @nospecialize(jvp!), start::V, block::V, times, algorithm, parts, keep_address::Py
    ) where {V}
    n, keep_states = length(start), !pyis(keep_address, pybuiltins.None)
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
    address, n = pyconvert(Int, place[0]), pyconvert(Int, place[1])
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
fixed_point(job::Py) = with_loans(fixed_point, job)

function fixed_point(job::Py, loans::Loans)
    algorithm, samples = pyconvert(Any, job.algorithm), pyconvert(Int, job.samples)
    f!, jvp! = borrow_map(loans, job.map, job.jvp)
    start, value = borrow(loans, job.z0), borrow(loans, job.out)
    return Base.invokelatest(fixed_point_on, f!, jvp!, start, value, algorithm, samples)::Py
end

function fixed_point_on(@nospecialize(f!), @nospecialize(jvp!), start::V, value::V, algorithm, samples::Int) where {V}
    solution = HomoJL.fixed_point(f!, start, algorithm; samples, jvp!, throw = false, first_sample = 0)
    copyto!(value, solution.value)
    return pytuple(
        (
            pytuple(solution.residuals), pytuple(solution.iterations), pytuple(solution.converged),
            string(solution.status), solution.message, solution.stats.nfe, solution.stats.n_jvp,
        )
    )
end

"""
    trace_path(job::Py) -> Py

As [`integrate`](@ref), for `JuliaBackend.trace_path`: `map`, the residual, `jvp`, `z0`, `algorithm`, `kind`, and `keep`, which is asked
for the address of a new state for each point of the path.
"""
trace_path(job::Py) = with_loans(trace_path, job)

function trace_path(job::Py, loans::Loans)
    algorithm, kind = pyconvert(Any, job.algorithm), Symbol(replace(pyconvert(String, job.kind), '-' => '_'))
    r!, jvp! = borrow_map(loans, job.map, job.jvp)
    return Base.invokelatest(trace_path_on, r!, jvp!, borrow(loans, job.z0), algorithm, kind, job.keep)::Py
end

function trace_path_on(@nospecialize(r!), @nospecialize(jvp!), start::AbstractVector, algorithm, kind::Symbol, keep::Py)
    path = HomoJL.trace_path(r!, start, algorithm; kind, jvp!, throw = false)
    for z in path.states
        copyto!(vector_at(start, call_for_address(keep), length(start)), z)
    end
    return pytuple(
        (
            pytuple(path.s), pytuple(path.lambdas), pytuple(path.residuals), path.folds,
            string(path.status), path.message, path.stats.nfe, path.stats.n_jvp, path.stats.n_rejected,
        )
    )
end

# ---- one evaluation of a function in Julia, for PyTorch's autograd ----

"Evaluate `job.field`, a `BoundJuliaField`, at the flat tensor `job.state` into `job.out`; `job.t` is a number, or `None` for a map."
evaluate(job::Py) = with_loans(evaluate, job)

function evaluate(job::Py, loans::Loans)
    f, out, state = borrow_native(loans, job.field), borrow(loans, job.out), borrow(loans, job.state)
    t = time_of(job, eltype(state))
    isnothing(t) ? Base.invokelatest(f, out, state) : Base.invokelatest(f, out, state, t)
    return nothing
end

"""
The vector-Jacobian product of `job.field`: `cotangent' df/dstate` into `job.out`, and `cotangent' df/dp` into each of
`job.parameters_out`, all flat tensors.
"""
vjp(job::Py) = with_loans(vjp, job)

function vjp(job::Py, loans::Loans)
    HomoJL.require_package(:ForwardDiff)
    f = borrow_native(loans, job.field)
    gradient, state, cotangent = (reshape(borrow(loans, x), f.dims) for x in (job.out, job.state, job.cotangent))
    shapes = Tuple(size_of(x) for x in job.field.parameter_dims)
    targets = map((x, dims) -> reshape(borrow(loans, Py(x)), dims), Tuple(job.parameters_out), shapes)
    t = time_of(job, eltype(state))
    Base.invokelatest(HomoJL.forward_vjp!, gradient, targets, f.f!, state, f.p, t, cotangent)
    return nothing
end

time_of(job::Py, ::Type{T}) where {T} = pyis(job.t, pybuiltins.None) ? nothing : T(pyconvert(Float64, job.t))

# ---- what a first solve would otherwise wait for ----

# No workload can run here, since Python is not there while packages are compiled: signatures are named instead.
for solve in (algorithm_of, integrate, fixed_point, trace_path, evaluate)
    precompile(solve, (Py,))
    precompile(PythonCall.JlWrap.pyjlany_call, (typeof(solve), Py, Py))
end
for T in (Float32, Float64)
    V = Vector{T}
    precompile(unsafe_wrap, (Type{Array}, DLPack.DLManager{T, 1}))
    for K in 1:2
        F = PyFunction{T, V, K}
        precompile(PyFunction, (Loans, Py, V, NTuple{K, V}))
        precompile(PyFunction, (Loans, Py, Nothing, NTuple{K, V}))
        precompile(Tuple{F, V, T, Vararg{V, K}})
        precompile(Tuple{F, V, Nothing, Vararg{V, K}})
    end
    precompile(Tuple{PyField{PyFunction{T, V, 1}}, V, V, T})
    precompile(Tuple{PyMap{PyFunction{T, V, 1}}, V, V})
    for A in (HomoJL.Euler, HomoJL.RK4, HomoJL.Bosh3, HomoJL.Dopri5, HomoJL.Tsit5)
        precompile(integrate_on, (Any, Nothing, V, V, Vector{Float64}, A, Nothing, Py))
    end
end
let controller = Pair{Symbol, Any}[key => 0.5 for key in (:safety, :min_factor, :beta1, :beta2, :beta3)]
    control = construct(:PIController, [controller; :max_factor => 2.0])
    for name in (:Bosh3, :Dopri5, :Tsit5), first_step in (nothing, 0.1)
        tolerances = Pair{Symbol, Any}[:rtol => 1.0e-3, :atol => 1.0e-6, :min_step => 0.0, :max_steps => 100]
        construct(name, [tolerances; :first_step => first_step; :controller => control])
    end
end

end
