"""
Solves for homojl's Python side: HomoJL's functions on memory that PyTorch owns.

States cross the border as flat vectors: tensors are borrowed for the time of a solve, functions in Python are called with buffers that PyTorch owns (small states) or with views of Julia's own vectors (large ones), and results are
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
    references::Vector{Py}
    natives::Vector{Any}
end

"An exception of the user's own code in Julia."
struct CodeError <: Exception
    error::Any
end

"`action(job, loans)` for a job of Python's, on the stream that PyTorch uses where its tensors are on a device."
function with_loans(action, job::Py)
    loans = Loans([], [])
    try
        pyis(job.on_device, pybuiltins.True) && return HomoJL.on_device_stream(() -> action(job, loans))
        return action(job, loans)
    catch e
        # Python's exceptions, Ctrl-C among them, pass through as they are.
        any(native -> native.running, loans.natives) && !(e isa PythonCall.PyException) ? throw(CodeError(e)) : rethrow()
    finally
        foreach(pydel!, loans.references)
    end
end

"The memory of a flat tensor as a vector; the tensor is kept until the end of the call."
function borrow(loans::Loans, tensor::Py)
    push!(loans.references, tensor)
    T, n = element_type(tensor), integer_of(tensor, :numel)
    pyis(tensor.is_cuda, pybuiltins.True) && return HomoJL.device_vector(T, address(tensor), n)
    return unsafe_wrap(Array, Ptr{T}(address(tensor)), n)
end

element_type(tensor::Py) = integer_of(tensor, :element_size) == 4 ? Float32 : Float64
address(tensor::Py) = integer_of(tensor, :data_ptr)

"What a method of a tensor returns; the bound method, which would keep the tensor alive, is let go of at once."
function integer_of(tensor::Py, method::Symbol)
    bound = getproperty(tensor, method)
    value = call_for_address(bound)
    pydel!(bound)
    return value
end

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
A function written in Julia, on flat vectors: a field `f!(out, state, p, t)` or `f(state, p, t)`, or a map `f!(out, state, p)`
or `f(state, p)`.

`dims` is the size that the function sees its states in: the tensor's shape, reversed. Every twentieth of a second or so
Python is asked whether the user pressed Ctrl-C. `running` stays true where the function has thrown.
"""
mutable struct NativeFunction{F, P, N}
    f!::F
    p::P
    dims::NTuple{N, Int}
    in_place::Bool
    checked::Bool
    running::Bool
    calls::Int
    until::Int
    listened::UInt64
end

function NativeFunction(f!, p, dims, timed::Bool)
    arguments = timed ? 4 : 3
    in_place = takes(f!, arguments)
    in_place || takes(f!, arguments - 1) || throw(
        ArgumentError(
            timed ? "a field of an ODE is f!(du, u, p, t) or f(u, p, t); this function takes other numbers of arguments" :
                "a map is f!(out, z, p) or f(z, p); this function takes other numbers of arguments"
        )
    )
    return NativeFunction(f!, p, dims, in_place, false, false, 0, 1, time_ns())
end

"Whether a function has a method of that many arguments."
takes(f, n::Int) = any(m -> m.nargs - 1 == n || (m.isva && m.nargs - 2 <= n), methods(f))

(f::NativeFunction)(out, state, t) = evaluate!(f, out, state, t)
(f::NativeFunction)(out, state) = evaluate!(f, out, state)

function evaluate!(f::NativeFunction, out, state, t...)
    (f.calls += 1) >= f.until && listen(f)
    f.running = true
    f.checked || isempty(out) || check_that_it_writes(f, out, state, t...)
    call!(f, out, state, t...)
    f.running = false
    return nothing
end

function call!(f::NativeFunction, out, state, t...)
    if f.in_place
        f.f!(reshape(out, f.dims), reshape(state, f.dims), f.p, t...)
    else
        value = f.f!(reshape(state, f.dims), f.p, t...)
        value isa AbstractArray && length(value) == length(out) || throw(
            ArgumentError("the function must return an array of size $(f.dims), and returned a $(summary(value))")
        )
        copyto!(out, value)
    end
    return nothing
end

# Differentiation calls with numbers of its own, which nothing has to be checked on.
check_that_it_writes(f::NativeFunction, out, state, t...) = nothing

"Refuse a function that leaves elements of `out` as they were, such as one that returns its value instead."
function check_that_it_writes(f::NativeFunction, out::AbstractVector{T}, state, t...) where {T <: AbstractFloat}
    f.checked = true
    f.in_place || return nothing
    left = trues(length(out))
    for poison in (T(NaN), T(-123.4375))
        fill!(out, poison)
        call!(f, out, state, t...)
        left .&= Array(isequal.(out, poison))
        any(left) || return nothing
    end
    f.running = false
    throw(
        ArgumentError(
            "the function does not write $(count(left)) of the $(length(left)) elements of its first argument: assign with " *
                "`du .= ...`, with the dot, or leave that argument out, as in `f(u, p, t) = ...`, and return the value"
        )
    )
end

function listen(f::NativeFunction)
    check_signals()
    now = time_ns()
    # So many calls until the next time that it will be a twentieth of a second from now, if they take as long.
    pace = (now - f.listened) / max(1, f.calls)
    f.until, f.calls, f.listened = clamp(round(Int, 5.0e7 / max(pace, 1.0)), 1, 4096), 0, now
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
    value = try
        Base.include_string(home, source, "JuliaField")
    catch e
        throw(CodeError(e isa LoadError ? e.error : e))
    end
    value isa Function || !isempty(methods(value)) ||
        throw(ArgumentError("the source must end in a function, and ends in a $(typeof(value))"))
    return value
end

"""
    borrow_native(loans, field::Py, timed) -> NativeFunction

From a `BoundJuliaField` of homojl; its tensors are borrowed and seen in their shapes reversed: none as `nothing`, one as itself,
several as a tuple.
"""
function borrow_native(loans::Loans, field::Py, timed::Bool)
    vectors = Tuple(borrow(loans, Py(x)) for x in field.parameters)
    arrays = map((v, dims) -> reshape(v, size_of(dims)), vectors, Tuple(field.parameter_dims))
    p = isempty(arrays) ? nothing : length(arrays) == 1 ? only(arrays) : arrays
    native = NativeFunction(pyconvert(Any, field.julia), p, size_of(field.dims), timed)
    push!(loans.natives, native)
    return native
end

size_of(dims::Py) = Tuple(pyconvert(Vector{Int}, dims))

is_native(f::Py) = PythonCall.pyhasattr(f, "julia")

"What an exception is called, and its message; \"CodeError\" for one of the user's own code."
describe(exception) = string(nameof(typeof(exception))), message_of(exception)
describe(exception::CodeError) = "CodeError", message_of(exception.error)

message_of(exception) = sprint(showerror, exception)
message_of(::StackOverflowError) = "StackOverflowError: the function calls itself without end"
message_of(exception::LoadError) = message_of(exception.error)
message_of(exception::MethodError) = first(split(sprint(showerror, exception), "\n\nClosest candidates"; limit = 2))

# ---- algorithms by their names ----

"""
An algorithm of an installed package, by its name and its arguments; made for a state of a kind when it is asked for.

# Fields
- `maker`: what makes it, a type or a function.
- `arguments`, `options`: of `maker`; among their values may be others like this.
- `plain`: whether nothing is to be added to the options, as to those of a linear solver.
- `made`: what has been made, for dense linear systems and for others.
"""
struct Chosen
    maker::Any
    arguments::Vector{Any}
    options::Vector{Pair{Symbol, Any}}
    plain::Bool
    made::Dict{Bool, Any}
end

"The module of a package that the active environment has, loaded; `nothing` if it has none. `id` is its UUID, or empty."
function load(package::String, id::String)
    for (known, loaded) in Base.loaded_modules
        known.name == package && return loaded
    end
    found = isempty(id) ? Base.identify_package(package) : Base.PkgId(Base.UUID(id), package)
    isnothing(found) || isnothing(Base.locate_package(found)) ? nothing : Base.require(found)
end

"The value called `name` in a module, or in any that is loaded and exports it where the module is `nothing`; or `nothing`."
function lookup(home, name::String)
    symbol = Symbol(name)
    isnothing(home) || return isdefined(home, symbol) ? getfield(home, symbol) : nothing
    for loaded in values(Base.loaded_modules)
        loaded === Base || loaded === Core || !Base.isexported(loaded, symbol) || !isdefined(loaded, symbol) || return getfield(loaded, symbol)
    end
    return nothing
end

"What an algorithm, or a part of one, is made by: `job.arguments` are values, `job.options` pairs of a name and a value."
function chosen(maker, job::Py)
    arguments = Any[value_of(x) for x in job.arguments]
    options = Pair{Symbol, Any}[Symbol(pyconvert(String, pair[0])) => value_of(pair[1]) for pair in job.options]
    return Chosen(maker, arguments, options, pyis(job.plain, pybuiltins.True), Dict{Bool, Any}())
end

value_of(x::Py) = pyis(x, pybuiltins.None) ? nothing : pyconvert(Any, x)

"""
    made(choice, dense::Bool)

The algorithm. Where it takes a linear solver and none was chosen, it gets an LU factorisation, or GMRES; its derivatives are
HomoJL's own, and finite differences keep the package from preparing automatic differentiation of the field.
"""
function made(choice::Chosen, dense::Bool)
    return get!(choice.made, dense) do
        arguments = [made(x, dense) for x in choice.arguments]
        options = Pair{Symbol, Any}[name => made(x, dense) for (name, x) in choice.options]
        more = choice.plain ? [Pair{Symbol, Any}[]] : additions(choice.maker, options, dense)
        make(choice.maker, arguments, with_finite_differences(options), more)
    end
end

made(x, dense::Bool) = x

finite_differences() = HomoJL.ADTypes.AutoFiniteDiff()

"`autodiff = false` means finite differences, as in SciML's older versions; `true` is the default."
with_finite_differences(options) = Pair{Symbol, Any}[
    name => name === :autodiff && value isa Bool ? finite_differences() : value for (name, value) in options
]

"What may be added to an algorithm's options, the most that it takes first."
function additions(maker, options, dense::Bool)
    given = first.(options)
    # Explicit methods, which are types, take none of it.
    maker isa Type && isdisjoint(fieldnames(Base.unwrap_unionall(maker)), (:autodiff, :linsolve)) && return [Pair{Symbol, Any}[]]
    differences = Pair{Symbol, Any}[:autodiff => finite_differences()]
    products = Pair{Symbol, Any}[:jvp_autodiff => finite_differences(), :vjp_autodiff => finite_differences()]
    linear = get(Dict(id.name => m for (id, m) in Base.loaded_modules), "LinearSolve", nothing)
    sets = [[differences; products], differences, Pair{Symbol, Any}[]]
    if !isnothing(linear)
        linsolve = dense ? linear.LUFactorization() : linear.KrylovJL_GMRES()
        sets = [[[differences; Pair{Symbol, Any}(:linsolve, linsolve)]]; sets]
    end
    return [filter(pair -> !(first(pair) in given), set) for set in sets]
end

function make(maker, arguments, options, additions)
    for (i, more) in enumerate(additions)
        try
            return maker(arguments...; options..., more...)
        catch e
            e isa MethodError || rethrow()
            i < length(additions) && continue
            throw(ArgumentError("$(nameof(maker)) does not take these arguments: $(message_of(e))"))
        end
    end
    return
end

"The request of a solve, from `job.name` and `job.options`; a controller's options stand in `job.controller`, or `None`."
function request(job::Py)
    options = Pair{Symbol, Any}[Symbol(pyconvert(String, pair[0])) => value_of(pair[1]) for pair in job.options]
    if !pyis(job.controller, pybuiltins.None)
        names = (:safety, :min_factor, :max_factor, :beta1, :beta2, :beta3)
        values = NamedTuple{names}(pyconvert(NTuple{6, Float64}, job.controller))
        push!(options, :controller => HomoJL.TorchController(; values...))
    end
    return HomoJL.Request(pyconvert(String, job.name); options...)
end

"The matrix with `job.rows`."
matrix(job::Py) = permutedims(reduce(hcat, [pyconvert(Vector{Float64}, row) for row in job.rows]))

"A tracker of zero paths, from `job.options`; `job.predictor` is the name of one of OrdinaryDiffEq's tableaus."
function tracker(job::Py)
    options = Pair{Symbol, Any}[]
    for pair in job.options
        name, value = Symbol(pyconvert(String, pair[0])), value_of(pair[1])
        value = value isa Py ? (s -> pyconvert(Float64, value(s))) : name in (:by, :linear_solver) ? Symbol(value) : value
        push!(options, name => value)
    end
    predictor = Symbol(pyconvert(String, job.predictor))
    tableau = predictor === :Midpoint ? HomoJL.midpoint() : getfield(HomoJL.Tableaus, predictor)()
    return HomoJL.ZeroPathTracker(; predictor = tableau, options...)
end

# ---- solves ----

"The field and its Jacobian-vector product or nothing, as HomoJL calls them: f!(du, u, t) and jvp!(out, v, u, t)."
function borrow_field(loans::Loans, field::Py, jvp::Py)
    is_native(field) && return with_product(borrow_native(loans, field, true), jvp)
    product = pyis(jvp, pybuiltins.None) ? nothing : PyFieldProduct(borrow_function(loans, jvp))
    return PyField(borrow_function(loans, field)), product
end

"As `borrow_field` for maps: f!(out, z) and jvp!(out, v, z)."
function borrow_map(loans::Loans, map::Py, jvp::Py)
    is_native(map) && return with_product(borrow_native(loans, map, false), jvp)
    product = pyis(jvp, pybuiltins.None) ? nothing : PyMapProduct(borrow_function(loans, jvp))
    return PyMap(borrow_function(loans, map)), product
end

"A function in Julia, with ForwardDiff's product where one is asked for; homojl has loaded the package."
with_product(f::NativeFunction, jvp::Py) = f, pyis(jvp, pybuiltins.None) ? nothing : HomoJL.forward_jvp(f)

"Conditions in Python, whose values `job.watch` leaves in memory, as `HomoJL.record` watches them; or nothing."
function borrow_watch(loans::Loans, watch::Py)
    pyis(watch, pybuiltins.None) && return nothing
    time, state = borrow(loans, watch.time), borrow(loans, watch.state)
    buffered, n = watch.buffered, pyconvert(Int, watch.n)
    function values!(values, u, t)
        fill!(time, t)
        copyto!(state, u)
        copyto!(values, unsafe_wrap(Array, Ptr{Float64}(call_for_address(buffered)), n))
        return nothing
    end
    passed = value_of(watch.passed)
    return values!, pyconvert(Int, watch.direction), n, isnothing(passed) ? nothing : passed + 1
end

"""
    integrate(job::Py) -> Py

Integrate for `JuliaBackend.integrate`. The job has the attributes `field`, `jvp` or `None`, `u0` and `out`, flat tensors for the
start and for all saved states, `ts`, the address and number of the save times, `method` and `request`, `dense`, whether linear
systems are, `parts` or `None`, `watch` or `None`, and `keep`: `None` or a function that returns the address of a new state. Returns a
tuple of plain Python values, numbers by the many as bytes.
"""
integrate(job::Py) = with_loans(integrate, job)

function integrate(job::Py, loans::Loans)
    times, dense = numbers_at(job.ts), pyis(job.dense, pybuiltins.True)
    method, request = made(pyconvert(Chosen, job.method), dense), pyconvert(HomoJL.Request, job.request)
    parts = pyis(job.parts, pybuiltins.None) ? nothing :
        [(start + 1):stop for (start, stop) in pyconvert(Vector{Tuple{Int, Int}}, job.parts)]
    f!, jvp! = borrow_field(loans, job.field, job.jvp)
    watch = borrow_watch(loans, job.watch)
    start, block = borrow(loans, job.u0), borrow(loans, job.out)
    return integrate_on(f!, jvp!, start, block, times, method, request, dense, parts, watch, job.keep)::Py
end

# Apart, so that it is compiled for the types of the vectors; those of the functions are left open, as HomoJL leaves them.
function integrate_on(
        @nospecialize(f!), @nospecialize(jvp!), start::V, block::V, times, method, request, dense::Bool, parts,
        @nospecialize(watch), keep_address::Py
    ) where {V}
    n = length(start)
    out = V[view_block(block, i, n) for i in 1:(length(times) - 1)]
    keep = pyis(keep_address, pybuiltins.None) ? nothing :
        u -> copyto!(vector_at(start, call_for_address(keep_address), n), u)
    record = HomoJL.record(f!, start, times, method, request; jvp!, dense, parts, watch, out, keep)
    # A solve that stopped early ends in a state that belongs to no save time.
    n_saved = length(record.save_steps)
    length(record.us) > n_saved + 1 && copyto!(out[n_saved + 1], record.us[end])
    event = isnothing(record.event) ? pybuiltins.None : record.event - 1
    return pytuple(
        (
            packed(record.ts), packed(record.starts), packed(record.sizes), packed(record.save_fractions),
            packed(Int64[s - 1 for s in record.save_steps]), uppercase(String(record.ending)), record.message, record.nfe,
            record.n_rejected, event,
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

As [`integrate`](@ref), for `JuliaBackend.find_fixed_point`: `map`, `jvp`, `z0`, `out`, where the equilibria go, `method`, the
number of `samples`, `name`, `rtol`, `atol` and `max_steps`.
"""
fixed_point(job::Py) = with_loans(fixed_point, job)

function fixed_point(job::Py, loans::Loans)
    samples, name = pyconvert(Int, job.samples), pyconvert(String, job.name)
    tolerances = (pyconvert(Float64, job.rtol), pyconvert(Float64, job.atol), pyconvert(Int, job.max_steps))
    algorithm = samplewise(made(pyconvert(Any, job.method), true), samples)
    f!, jvp! = borrow_map(loans, job.map, job.jvp)
    return fixed_point_on(f!, jvp!, borrow(loans, job.z0), borrow(loans, job.out), algorithm, name, tolerances...)::Py
end

samplewise(method, samples::Int) = HomoJL.Samplewise(method, samples)
samplewise(method::HomoJL.SamplewisePicard, samples::Int) = HomoJL.SamplewisePicard(samples, method.damping)
samplewise(method::HomoJL.SamplewiseAnderson, samples::Int) =
    HomoJL.SamplewiseAnderson(samples, method.memory, method.mixing, method.regularization)

function fixed_point_on(
        @nospecialize(f!), @nospecialize(jvp!), start::V, value::V, algorithm, name::String, reltol, abstol, maxiters::Int
    ) where {V}
    best, report, calls = HomoJL.equilibrium(f!, start, algorithm, name; jvp!, reltol, abstol, maxiters, first_sample = 0)
    copyto!(value, best)
    return pytuple(
        (
            pytuple(report.residuals), pytuple(report.iterations), pytuple(report.converged),
            uppercase(String(report.ending)), report.message, calls, report.n_jvp,
        )
    )
end

"""
    trace_path(job::Py) -> Py

As [`integrate`](@ref), for `JuliaBackend.trace_path`: `map`, the residual, `jvp`, `z0`, `tracker`, `kind`, and `keep`, which is asked
for the address of a new state for each point of the path.
"""
trace_path(job::Py) = with_loans(trace_path, job)

function trace_path(job::Py, loans::Loans)
    tracker, kind = pyconvert(HomoJL.ZeroPathTracker, job.tracker), Symbol(replace(pyconvert(String, job.kind), '-' => '_'))
    r!, jvp! = borrow_map(loans, job.map, job.jvp)
    return trace_path_on(r!, jvp!, borrow(loans, job.z0), tracker, kind, job.keep)::Py
end

function trace_path_on(@nospecialize(r!), @nospecialize(jvp!), start::AbstractVector, tracker, kind::Symbol, keep::Py)
    path = HomoJL.follow(r!, start, tracker, kind, jvp!)
    for z in path.states
        copyto!(vector_at(start, call_for_address(keep), length(start)), z)
    end
    return pytuple(
        (
            pytuple(path.s), pytuple(path.lambdas), pytuple(path.residuals), path.folds,
            uppercase(String(path.ending)), path.message, path.nfe, path.n_jvp, path.n_rejected,
        )
    )
end

# ---- one evaluation of a function in Julia, for PyTorch's autograd ----

"Evaluate `job.field`, a `BoundJuliaField`, at the flat tensor `job.state` into `job.out`; `job.t` is a number, or `None` for a map."
evaluate(job::Py) = with_loans(evaluate, job)

function evaluate(job::Py, loans::Loans)
    out, state = borrow(loans, job.out), borrow(loans, job.state)
    t = time_of(job, eltype(state))
    f = borrow_native(loans, job.field, !isnothing(t))
    isnothing(t) ? f(out, state) : f(out, state, t)
    return nothing
end

"""
The vector-Jacobian product of `job.field`: `cotangent' df/dstate` into `job.out`, and `cotangent' df/dp` into each of
`job.parameters_out`, all flat tensors; by the package called `job.differentiation`, or by `job.vjp`.
"""
vjp(job::Py) = with_loans(vjp, job)

function vjp(job::Py, loans::Loans)
    state = borrow(loans, job.state)
    t = time_of(job, eltype(state))
    f = borrow_native(loans, job.field, !isnothing(t))
    gradient, u, cotangent = (reshape(x, f.dims) for x in (borrow(loans, job.out), state, borrow(loans, job.direction)))
    shapes = Tuple(size_of(x) for x in job.field.parameter_dims)
    targets = map((x, dims) -> reshape(borrow(loans, Py(x)), dims), Tuple(job.parameters_out), shapes)
    own = value_of(job.vjp)
    f.running = true
    if isnothing(own)
        method = Val(Symbol(pyconvert(String, job.differentiation)))
        HomoJL.pullback!(method, gradient, targets, in_place(f), u, f.p, t, cotangent)
    else
        p_gradient = isempty(targets) ? nothing : length(targets) == 1 ? only(targets) : targets
        isnothing(t) ? own(gradient, p_gradient, cotangent, u, f.p) : own(gradient, p_gradient, cotangent, u, f.p, t)
    end
    f.running = false
    return nothing
end

"The Jacobian-vector product of `job.field` at `job.state` with `job.direction`, into `job.out`; by ForwardDiff."
jvp(job::Py) = with_loans(jvp, job)

function jvp(job::Py, loans::Loans)
    out, state, direction = borrow(loans, job.out), borrow(loans, job.state), borrow(loans, job.direction)
    t = time_of(job, eltype(state))
    f = borrow_native(loans, job.field, !isnothing(t))
    product = HomoJL.forward_jvp(f)
    isnothing(t) ? product(out, direction, state) : product(out, direction, state, t)
    return nothing
end

"The function as one that writes its result."
in_place(f::NativeFunction) = f.in_place ? f.f! : OutOfPlace(f.f!)

struct OutOfPlace{F} <: Function
    f::F
end

(f::OutOfPlace)(out, arguments...) = (out .= f.f(arguments...); nothing)

time_of(job::Py, ::Type{T}) where {T} = pyis(job.t, pybuiltins.None) ? nothing : T(pyconvert(Float64, job.t))

# ---- what a first solve would otherwise wait for ----

# No workload can run here, since Python is not there while packages are compiled: signatures are named instead.
for solve in (integrate, fixed_point, trace_path, evaluate, request, tracker)
    precompile(solve, (Py,))
    precompile(PythonCall.JlWrap.pyjlany_call, (typeof(solve), Py, Py))
end
precompile(chosen, (Any, Py))
precompile(made, (Chosen, Bool))
precompile(load, (String, String))
precompile(lookup, (Module, String))
for T in (Float32, Float64)
    V = Vector{T}
    for K in 1:2
        F = PyFunction{T, V, K}
        precompile(PyFunction, (Loans, Py, V, NTuple{K, V}))
        precompile(PyFunction, (Loans, Py, Nothing, NTuple{K, V}))
        precompile(Tuple{F, V, T, Vararg{V, K}})
        precompile(Tuple{F, V, Nothing, Vararg{V, K}})
    end
    precompile(Tuple{PyField{PyFunction{T, V, 1}}, V, V, T})
    precompile(Tuple{PyMap{PyFunction{T, V, 1}}, V, V})
    for method in (HomoJL.OrdinaryDiffEqLowOrderRK.Euler(), HomoJL.OrdinaryDiffEqLowOrderRK.RK4(), HomoJL.OrdinaryDiffEqLowOrderRK.DP5(), HomoJL.OrdinaryDiffEqTsit5.Tsit5())
        precompile(integrate_on, (Any, Any, V, V, Vector{Float64}, typeof(method), HomoJL.Request, Bool, Nothing, Any, Py))
    end
end

end
