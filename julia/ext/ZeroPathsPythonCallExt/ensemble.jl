# Many small systems: an ensemble of SciML's, each system with steps of its own, on as many threads as Julia has or in kernels.

const ENDINGS = Dict(code => uppercase(String(ending)) for (ending, code) in ZeroPaths.RETURN_CODES)

"""
As [`integrate`](@ref), for `JuliaBackend.integrate_samples`: `field` is a function in Julia of one sample, `samples` their number, and
`rows` says of each parameter whether it has a row for each of them. `out` is (saved times, samples, elements). A device's kernels
count no rejected steps and no evaluations, which are -1.
"""
ensemble(job::Py) = with_loans(ensemble, job)

function ensemble(job::Py, loans::Loans)
    times, samples = numbers_at(job.ts), pyconvert(Int, job.samples)
    method, request = made(PythonCall.pyjlvalue(job.method)::Chosen, true), PythonCall.pyjlvalue(job.request)::ZeroPaths.Request
    f = borrow_native(loans, job.field, true)
    start, out = borrow(loans, job.u0), borrow(loans, job.out)
    backend = ZeroPaths.kernels(start)
    here(x) = isnothing(backend) ? x : Array(x)
    parameters, rows = map(here, f.p isa Tuple ? f.p : isnothing(f.p) ? () : (f.p,)), pyconvert(Vector{Bool}, job.rows)
    block, saved = here(reshape(start, :, samples)), reshape(out, :, samples, length(times) - 1)

    function p(i)
        own = map((x, row) -> row ? collect(selectdim(x, ndims(x), i)) : x, parameters, Tuple(rows))
        return isempty(own) ? nothing : length(own) == 1 ? only(own) : own
    end
    u0(i) = reshape(block[:, i], f.dims)
    NativeFunction(f.f!, p(1), f.dims, true)(similar(block, size(block, 1)), block[:, 1], eltype(start)(times[1]))
    f.running = isnothing(backend)
    finished = if isnothing(backend)
        solve_ensemble(f, u0, p, samples, times, method, request) do sol, i
            for k in axes(saved, 3)
                saved[:, i, k] .= vec(sol.u[min(k + 1, length(sol.u))])
            end
            (sol.t[end], sol.stats.naccept, sol.stats.nreject, sol.stats.nf, get(ENDINGS, sol.retcode, "DIVERGED"))
        end
    else
        reached, steps, endings = ZeroPaths.kernel_ensemble!(saved, backend, f.f!, f.in_place, u0, p, times, method, request)
        [(t, n, -1, -1, uppercase(String(ending))) for (t, n, ending) in zip(reached, steps, endings)]
    end
    f.running = false
    reached, accepted, rejected, evaluations, endings = (map(x -> x[k], finished) for k in 1:5)
    return pytuple((packed(reached), packed(accepted), packed(rejected), packed(evaluations), pytuple(endings)))
end

function solve_ensemble(take, f::NativeFunction, u0, p, samples::Int, times, method, request)
    field, T, threads = f.f!, eltype(u0(1)), Threads.nthreads()
    of_type(du, u, p, t) = field(du, u, p, T(t))
    of_type(u, p, t) = field(u, p, T(t))
    span = times[end] - times[1]
    control = if ZeroPaths.has_equal_steps(method, request)
        gaps = map((a, b) -> range(a, b; length = ZeroPaths.n_steps(b - a, request) + 1), times[1:(end - 1)], times[2:end])
        (; adaptive = false, dt = span, tstops = reduce(vcat, gaps), maxiters = typemax(Int))
    else
        first = isnothing(request.first_step) ? (;) : (; dt = copysign(request.first_step, span))
        isnothing(request.controller) ? first : (; request.controller, first...)
    end
    one = SciMLBase.ODEProblem{f.in_place, SciMLBase.FullSpecialize}(of_type, u0(1), (times[1], times[end]), p(1))
    # As in a single solve, steps end on the save times of a method that has nothing better between them.
    coarse = length(times) > 2 && ZeroPaths.coarse_between_steps(SciMLBase.init(one, method; dt = span))
    stops = coarse && !haskey(control, :tstops) ? (; tstops = times) : (;)
    every = SciMLBase.EnsembleProblem(
        one; safetycopy = false, prob_func = (prob, at) -> SciMLBase.remake(prob; u0 = u0(at.sim_id), p = p(at.sim_id)),
        output_func = (sol, at) -> (take(sol, at.sim_id), false),
        # Between batches Python is asked whether the user pressed Ctrl-C.
        reduction = (all, batch, _) -> (check_signals(); (append!(all, batch), false)),
    )
    return SciMLBase.solve(
        every, method, threads > 1 ? SciMLBase.EnsembleThreads() : SciMLBase.EnsembleSerial(); trajectories = samples,
        batch_size = min(samples, 64 * threads), saveat = times, reltol = T(request.rtol), abstol = T(request.atol),
        maxiters = request.max_steps, dtmax = min(request.max_step, abs(span)), internalnorm = ZeroPaths.ErrorNorm(()),
        verbose = ZeroPaths.SciMLLogging.None(), control..., stops...,
    ).u
end
