# Many small systems: an ensemble of SciML's, each system with steps of its own, on as many threads as Julia has.

const ENDINGS = Dict(code => uppercase(String(ending)) for (ending, code) in ZeroPaths.RETURN_CODES)

"""
As [`integrate`](@ref), for `JuliaBackend.integrate_samples`: `field` is a function in Julia of one sample, `samples` their number, and
`rows` says of each parameter whether it has a row for each of them. `out` is (saved times, samples, elements).
"""
ensemble(job::Py) = with_loans(ensemble, job)

function ensemble(job::Py, loans::Loans)
    times, samples = numbers_at(job.ts), pyconvert(Int, job.samples)
    method, request = made(PythonCall.pyjlvalue(job.method)::Chosen, true), PythonCall.pyjlvalue(job.request)::ZeroPaths.Request
    f = borrow_native(loans, job.field, true)
    start, out = borrow(loans, job.u0), borrow(loans, job.out)
    parameters, rows = f.p isa Tuple ? f.p : isnothing(f.p) ? () : (f.p,), pyconvert(Vector{Bool}, job.rows)
    block, saved = reshape(start, :, samples), reshape(out, :, samples, length(times) - 1)

    function p(i)
        own = map((x, row) -> row ? collect(selectdim(x, ndims(x), i)) : x, parameters, Tuple(rows))
        return isempty(own) ? nothing : length(own) == 1 ? only(own) : own
    end
    NativeFunction(f.f!, p(1), f.dims, true)(similar(start, size(block, 1)), block[:, 1], eltype(start)(times[1]))
    f.running = true
    finished = solve_ensemble(f, i -> reshape(block[:, i], f.dims), p, samples, times, method, request) do sol, i
        for k in axes(saved, 3)
            saved[:, i, k] .= vec(sol.u[min(k + 1, length(sol.u))])
        end
        (sol.t[end], sol.stats.naccept, sol.stats.nreject, sol.stats.nf, get(ENDINGS, sol.retcode, "DIVERGED"))
    end
    f.running = false
    reached, accepted, rejected, evaluations, endings = (map(x -> x[k], finished) for k in 1:5)
    return pytuple((packed(reached), packed(accepted), packed(rejected), packed(evaluations), pytuple(endings)))
end

function solve_ensemble(take, f::NativeFunction, u0, p, samples::Int, times, method, request)
    field, T, threads = f.f!, eltype(u0(1)), Threads.nthreads()
    of_type(du, u, p, t) = field(du, u, p, T(t))
    of_type(u, p, t) = field(u, p, T(t))
    control = isnothing(request.controller) ? (;) : (; request.controller)
    first = isnothing(request.first_step) ? (;) : (; dt = copysign(request.first_step, times[end] - times[1]))
    one = SciMLBase.ODEProblem{f.in_place, SciMLBase.FullSpecialize}(of_type, u0(1), (times[1], times[end]), p(1))
    every = SciMLBase.EnsembleProblem(
        one; safetycopy = false, prob_func = (prob, at) -> SciMLBase.remake(prob; u0 = u0(at.sim_id), p = p(at.sim_id)),
        output_func = (sol, at) -> (take(sol, at.sim_id), false),
        # Between batches Python is asked whether the user pressed Ctrl-C.
        reduction = (all, batch, _) -> (check_signals(); (append!(all, batch), false)),
    )
    return SciMLBase.solve(
        every, method, threads > 1 ? SciMLBase.EnsembleThreads() : SciMLBase.EnsembleSerial(); trajectories = samples,
        batch_size = min(samples, 64 * threads), saveat = times, reltol = T(request.rtol), abstol = T(request.atol),
        maxiters = request.max_steps, dtmax = min(request.max_step, abs(times[end] - times[1])), internalnorm = ZeroPaths.ErrorNorm(()),
        verbose = ZeroPaths.SciMLLogging.None(), control..., first...,
    ).u
end
