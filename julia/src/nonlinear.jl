# NonlinearSolve's methods on a batch.

const MOST_UNKNOWNS = 4096  # of methods that hold a matrix

"z - g(z)."
struct Residual{M <: CountedMap}
    map::M
end

function (residual::Residual)(out, z, p)
    apply!(residual.map, out, z)
    out .= z .- out
    return nothing
end

"Its Jacobian-vector product."
struct ResidualProduct{M <: CountedMap}
    map::M
end

function (product::ResidualProduct)(out, v, z, p)
    push_forward!(product.map, out, v, z)
    out .= v .- out
    return nothing
end

"Its Jacobian: blocks, of which one product gives a column each."
struct Blocks{M <: CountedMap}
    map::M
end

function (blocks::Blocks)(matrix, z, p)
    map = blocks.map
    n = length(z) ÷ map.samples
    v, out = similar(z), similar(z)
    fill!(matrix, 0)
    for i in 1:n
        fill!(v, 0)
        fill!(view(columns(map, v), i, :), 1)
        ResidualProduct(map)(out, v, z, p)
        for s in 1:map.samples
            rows = ((s - 1) * n + 1):(s * n)
            matrix[rows, (s - 1) * n + i] .= view(out, rows)
        end
    end
    return nothing
end

"The linear solver of a method that has one; `missing`: it has none."
linear_solver(method) = hasproperty(method, :descent) ? NonlinearSolveBase.get_linear_solver(method.descent) : missing

"Whether a method works with products of the Jacobian alone."
function is_matrix_free(method)
    linsolve = linear_solver(method)
    NonlinearSolveBase.concrete_jac(method) && return false
    return !(linsolve === missing || isnothing(linsolve) || NonlinearSolveBase.needs_concrete_A(linsolve))
end

holds_matrix(method) =
    method isa NonlinearSolveBase.AbstractNonlinearSolveAlgorithm && !is_matrix_free(method) &&
    (linear_solver(method) !== missing) && !occursin("LimitedMemory", String(nameof(typeof(method))))

function search!(algorithm::Samplewise{<:SciMLBase.AbstractNonlinearAlgorithm}, map::CountedMap, z, progress::Progress)
    method = algorithm.method
    require(
        !holds_matrix(method) || length(z) <= MOST_UNKNOWNS,
        "$(nameof(typeof(method))) holds a matrix of $(length(z)) x $(length(z)), more than $MOST_UNKNOWNS each way; " *
            "use LimitedMemoryBroyden() or NewtonKrylov()",
    )
    start!(map, z, progress) || return nothing
    problem = NonlinearProblem(nonlinear_function(method, map, z), vec(z))
    T = eltype(z)
    linsolve_kwargs = is_matrix_free(method) ? (; abstol = zero(T), reltol = T(1.0e-2), maxiters = most_products(method)) : (;)
    cache = SciMLBase.init(
        problem, method; maxiters = progress.maxiters + 1, verbose = false, linsolve_kwargs,
        # Samples end one by one, by the rule of `Progress`.
        abstol = zero(T), reltol = zero(T),
        termination_condition = NonlinearSolveBase.AbsNormTerminationMode(Base.Fix1(maximum, abs)),
    )
    cache isa NonlinearSolveBase.AbstractNonlinearSolveCache && hasfield(typeof(cache), :force_stop) ||
        return solve_whole!(problem, method, map, progress)
    for iteration in 1:progress.maxiters
        SciMLBase.step!(cache)
        look_at!(progress, map, iteration, NonlinearSolveBase.get_u(cache), NonlinearSolveBase.get_fu(cache))
        finished(progress) && return nothing
        cache.force_stop && return stop!(progress, :stalled, iteration)
    end
    return stop!(progress, :max_steps, progress.maxiters)
end

function look_at!(progress::Progress, map::CountedMap, iteration::Int, u, r)
    u, r = columns(map, u), columns(map, r)
    return update!(progress, iteration, u, column_norms(r), column_norms(u .- r))
end

"A method that cannot be taken step by step, to a residual that is small enough for every sample."
function solve_whole!(problem, method, map::CountedMap, progress::Progress)
    T = eltype(problem.u0)
    scale = sqrt(T(length(problem.u0)))
    smallest = T(max(progress.atol + progress.rtol * minimum(column_norms(columns(map, problem.u0))), 100 * eps(T)) / scale)
    sol = SciMLBase.solve(problem, method; maxiters = progress.maxiters, abstol = smallest / 10, reltol = zero(T), verbose = false)
    r = similar(sol.u)
    Residual(map)(r, sol.u, nothing)
    iterations = isnothing(sol.stats) ? 1 : max(1, sol.stats.nsteps)
    look_at!(progress, map, iterations, sol.u, r)
    return stop!(progress, sol.retcode === ReturnCode.MaxIters ? :max_steps : :stalled, iterations)
end

"The restart length of a Krylov method that has one: the most products for one linear system."
function most_products(method)
    linsolve = linear_solver(method)
    restart = hasproperty(linsolve, :gmres_restart) ? linsolve.gmres_restart : 0
    return restart > 0 ? restart : 30
end

function nonlinear_function(method, map::CountedMap, z)
    F = SciMLBase.NonlinearFunction{true, SciMLBase.FullSpecialize}
    isnothing(map.jvp!) && return F(Residual(map))
    is_matrix_free(method) && return F(Residual(map); jvp = ResidualProduct(map))
    linear_solver(method) === missing && return F(Residual(map); jvp = ResidualProduct(map))
    length(z) > MOST_UNKNOWNS && return F(Residual(map))
    return F(Residual(map); jac = Blocks(map), jac_prototype = fill!(similar(z, length(z), length(z)), 0))
end
