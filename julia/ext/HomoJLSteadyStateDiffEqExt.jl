module HomoJLSteadyStateDiffEqExt

import HomoJL
import SteadyStateDiffEq
using HomoJL: CountedMap, Progress, SciMLBase

"dz/ds = f(z) - z."
struct Flow{M <: CountedMap}
    map::M
end

function (flow::Flow)(dz, z, p, s)
    HomoJL.apply!(flow.map, dz, z)
    dz .-= z
    return nothing
end

function HomoJL.search!(algorithm::HomoJL.Relaxation, map::CountedMap, z, progress::Progress)
    T = eltype(z)
    HomoJL.start!(map, z, progress) || return nothing
    steps = 0

    function rests(u, s, integrator)
        steps += 1
        r = HomoJL.columns(map, SciMLBase.get_du(integrator))
        zs = HomoJL.columns(map, u)
        HomoJL.update!(progress, steps, zs, HomoJL.column_norms(r), HomoJL.column_norms(zs .+ r))
        return HomoJL.finished(progress)
    end

    problem = SciMLBase.SteadyStateProblem(SciMLBase.ODEFunction{true, SciMLBase.FullSpecialize}(Flow(map)), vec(z))
    # The steps' error keeps the state moving, by that much; it has to stay well below what is tolerated.
    tolerance = max(T(algorithm.rtol) / 10, 100 * eps(T))
    solution = SciMLBase.solve(
        problem, SteadyStateDiffEq.DynamicSS(HomoJL.OrdinaryDiffEqTsit5.Tsit5()); abstol = zero(T), reltol = zero(T),
        odesolve_kwargs = (;
            abstol = max(T(algorithm.atol) / 10, tolerance * eps(T)), reltol = tolerance, maxiters = algorithm.max_steps,
            callback = SciMLBase.DiscreteCallback(rests, SciMLBase.terminate!; save_positions = (false, false)),
            save_everystep = false, verbose = HomoJL.SciMLLogging.None(),
        ),
    )
    code = solution.original.retcode
    code === SciMLBase.ReturnCode.MaxIters && return HomoJL.stop!(progress, HomoJL.MAX_STEPS, steps)
    unstable = code === SciMLBase.ReturnCode.Unstable
    return HomoJL.stop!(progress, unstable ? HomoJL.DIVERGED : HomoJL.STEP_TOO_SMALL, steps)
end

end
