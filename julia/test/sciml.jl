# What SciML's users expect of a solver.

using NonlinearSolve: NonlinearSolve
using RecipesBase: RecipesBase

# Plots has methods of this; here every key is as good.
RecipesBase.is_key_supported(::Symbol) = true

cosine!(du, u, p) = (du .= p .* cos.(u) .- u)
fixed_point_of_cosine = 0.7390851332151607

@testset "$(typeof(prob).name.name), $(nameof(typeof(algorithm)))" for prob in (
            NonlinearProblem(cosine!, [1.0 0.5], 1.0), NonlinearProblem((u, p) -> p .* cos.(u) .- u, [1.0 0.5], 1.0),
            SteadyStateProblem((du, u, p, t) -> cosine!(du, u, p), [1.0 0.5], 1.0),
        ),
        algorithm in (SamplewisePicard(samples = 2), SamplewiseAnderson(samples = 2), Samplewise(NonlinearSolve.NewtonRaphson(); samples = 2))

    sol = solve(prob, algorithm; reltol = 1.0e-9, abstol = 1.0e-10)
    @test sol isa SciMLBase.NonlinearSolution && successful_retcode(sol) && sol.retcode === ReturnCode.Success
    @test sol.u ≈ fill(fixed_point_of_cosine, 1, 2) rtol = 1.0e-7
    @test maximum(abs, sol.resid) < 1.0e-7
    @test sol.stats.nf > 0 && length(sol.original.iterations) == 2
end

@testset "remake, init, step! and solve!" begin
    prob = NonlinearProblem(cosine!, [1.0], 1.0)
    other = solve(remake(prob; p = 0.5), SamplewiseAnderson(); reltol = 1.0e-10, abstol = 1.0e-12)
    @test other.u[1] ≈ 0.5 * cos(other.u[1]) rtol = 1.0e-8
    cache = init(prob, SamplewisePicard(); reltol = 1.0e-8)
    step!(cache)
    @test cache.iteration == 1
    @test solve!(cache).u ≈ solve(prob, SamplewisePicard(); reltol = 1.0e-8).u
    @test solve(prob, SamplewisePicard(); reltol = 1.0e-12, abstol = 0, maxiters = 3).retcode === ReturnCode.MaxIters
end

@testset "homotopies" begin
    prob = NonlinearProblem((du, u, p) -> (du .= atan.(u)), [3.0])
    sol = solve(homotopy(prob), ZeroPathTracker())
    @test sol.retcode === ReturnCode.Success && abs(sol.u[1]) < 1.0e-8 && sol.stats.nsteps == length(sol.original.s) - 1
    # The same homotopy as any H(u, p, λ): two folds on the way.
    cubic(u) = u .^ 3 .- 3 .* u .+ 2.1
    general = HomotopyProblem((u, p, λ) -> λ .* cubic(u) .+ (1 - λ) .* (u .- 1.5), [1.5])
    known = homotopy(NonlinearProblem((du, u, p) -> (du .= cubic(u)), [1.5]))
    a, b = (solve(h, ZeroPathTracker(reltol = 1.0e-8)) for h in (general, known))
    @test a.original.folds == b.original.folds == 2
    @test a.u ≈ b.u rtol = 1.0e-6
    @test maximum(abs, a.resid) < 1.0e-6
    blocked = solve(known, ZeroPathTracker(by = :lambda))
    @test blocked.retcode === ReturnCode.ConvergenceFailure && blocked.original.ending === :fold
    # NonlinearSolve's own trackers take the same problems.
    theirs = solve(general, NonlinearSolve.ArcLengthContinuation())
    @test theirs.u ≈ a.u rtol = 1.0e-4
    recipe = RecipesBase.apply_recipe(Dict{Symbol, Any}(), b.original)
    @test recipe[1].args[1] == b.original.lambdas && size(recipe[1].args[2]) == (length(b.original.s), 1)
end

@testset "nothing exported is another package's" begin
    ours = setdiff(names(ZeroPaths), [:ZeroPaths])
    for package in (OrdinaryDiffEqTsit5, OrdinaryDiffEqLowOrderRK, OrdinaryDiffEqRosenbrock, NonlinearSolve, SciMLBase), name in ours
        isdefined(package, name) && Base.isexported(package, name) && @test getfield(package, name) === getfield(ZeroPaths, name)
    end
end
