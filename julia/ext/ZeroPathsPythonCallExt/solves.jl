# The three solves.

"""
A function and its Jacobian-vector product or nothing, as ZeroPaths calls them; a function in Julia has ForwardDiff's product where one is
asked for, whose package homojl has loaded.
"""
function borrow_functions(loans::Loans, f::Py, jvp::Py, timed::Bool)
    without = pyis(jvp, pybuiltins.None)
    if is_native(f)
        native = borrow_native(loans, f, timed)
        return native, without ? nothing : ZeroPaths.forward_jvp(native)
    end
    return borrow_function(loans, f), without ? nothing : borrow_function(loans, jvp)
end

"Conditions in Python, whose values `job.watch` leaves in memory, as `ZeroPaths.record` watches them; or nothing."
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
    method, request = made(PythonCall.pyjlvalue(job.method)::Chosen, dense), PythonCall.pyjlvalue(job.request)::ZeroPaths.Request
    parts = parts_of(job)
    f!, jvp! = borrow_functions(loans, job.field, job.jvp, true)
    watch = borrow_watch(loans, job.watch)
    start, block = borrow(loans, job.u0), borrow(loans, job.out)
    return integrate_on(f!, jvp!, start, block, times, method, request, dense, parts, watch, job.keep)::Py
end

"The ranges that `job.parts` names from 0 on, or nothing."
parts_of(job::Py) = pyis(job.parts, pybuiltins.None) ? nothing :
    [(start + 1):stop for (start, stop) in pyconvert(Vector{Tuple{Int, Int}}, job.parts)]

# Apart, so that it is compiled for the types of the vectors; those of the functions are left open, as ZeroPaths leaves them.
function integrate_on(
        @nospecialize(f!), @nospecialize(jvp!), start::V, block::V, times, method, request, dense::Bool, parts,
        @nospecialize(watch), keep_address::Py
    ) where {V}
    n = length(start)
    out = V[view_block(block, i, n) for i in 1:(length(times) - 1)]
    keep = pyis(keep_address, pybuiltins.None) ? nothing :
        u -> copyto!(vector_at(start, call_for_address(keep_address), n), u)
    norm = ZeroPaths.error_norm(parts, n)
    record = ZeroPaths.record(f!, jvp!, start, ZeroPaths.checked_times(times), method, request, dense, norm, watch, out, keep)::ZeroPaths.Record{V}
    # A solve that stopped early ends in a state that belongs to no save time.
    n_saved = length(record.save_steps)
    length(record.us) > n_saved + 1 && copyto!(out[n_saved + 1], record.us[end])
    event = isnothing(record.event) ? pybuiltins.None : Py(record.event - 1)
    return pytuple(
        (
            packed(record.ts), packed(record.starts), packed(record.sizes), packed(record.save_fractions),
            packed(Int64[s - 1 for s in record.save_steps]), uppercase(String(record.ending)), record.step, record.nfe,
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

"The i-th part of n elements of a block."
view_block(block::V, i::Int, n::Int) where {V} = vector_at(block, Int(UInt(pointer(block, (i - 1) * n + 1))), n)::V

"""
    fixed_point(job::Py) -> Py

As [`integrate`](@ref), for `JuliaBackend.find_fixed_point`: `map`, `jvp`, `z0`, `out`, where the equilibria go, `method`, the
number of `samples`, `rtol`, `atol` and `max_steps`.
"""
fixed_point(job::Py) = with_loans(fixed_point, job)

function fixed_point(job::Py, loans::Loans)
    algorithm = samplewise(made(PythonCall.pyjlvalue(job.method), true), pyconvert(Int, job.samples))
    tolerances = (; reltol = value_of(job.rtol), abstol = value_of(job.atol), maxiters = value_of(job.max_steps))
    f!, jvp! = borrow_functions(loans, job.map, job.jvp, false)
    best, report, calls = ZeroPaths.equilibrium(f!, borrow(loans, job.z0), algorithm; jvp!, tolerances...)
    copyto!(borrow(loans, job.out), best)
    endings = pytuple(map(ending -> uppercase(String(ending)), report.endings))
    return pytuple((pytuple(report.residuals), pytuple(report.iterations), endings, calls, report.n_jvp))
end

samplewise(method, samples::Int) = ZeroPaths.Samplewise(method, samples)
samplewise(method::ZeroPaths.SamplewisePicard, samples::Int) = ZeroPaths.SamplewisePicard(samples, method.damping)
samplewise(method::ZeroPaths.SamplewiseAnderson, samples::Int) =
    ZeroPaths.SamplewiseAnderson(samples, method.memory, method.mixing, method.regularization)

"""
    trace_path(job::Py) -> Py

As [`integrate`](@ref), for `JuliaBackend.trace_path`: `map`, the residual, `jvp`, `z0`, `tracker`, `kind`, and `keep`, which is asked
for the address of a new state for each point of the path.
"""
trace_path(job::Py) = with_loans(trace_path, job)

function trace_path(job::Py, loans::Loans)
    tracker, kind = PythonCall.pyjlvalue(job.tracker)::ZeroPaths.ZeroPathTracker, Symbol(replace(pyconvert(String, job.kind), '-' => '_'))
    r!, jvp! = borrow_functions(loans, job.map, job.jvp, false)
    start = borrow(loans, job.z0)
    path = ZeroPaths.follow(r!, start, tracker, kind, jvp!)
    for z in path.states
        copyto!(vector_at(start, call_for_address(job.keep), length(start)), z)
    end
    return pytuple(
        (
            pytuple(path.s), pytuple(path.lambdas), pytuple(path.residuals), path.folds, uppercase(String(path.ending)),
            path.nfe, path.n_jvp, path.n_rejected, path.step,
        )
    )
end
