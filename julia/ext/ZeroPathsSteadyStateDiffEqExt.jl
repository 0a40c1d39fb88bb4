module ZeroPathsSteadyStateDiffEqExt

import ZeroPaths
import SteadyStateDiffEq
using ZeroPaths: CountedMap, Progress, Samplewise, SciMLBase, column_norms, columns

"dz/ds = g(z) - z."
struct Flow{M <: CountedMap}
    map::M
end

function (flow::Flow)(dz, z, p, s)
    ZeroPaths.apply!(flow.map, dz, z)
    dz .-= z
    return nothing
end

function ZeroPaths.search!(algorithm::Samplewise{<:SteadyStateDiffEq.DynamicSS}, map::CountedMap, z, progress::Progress)
    T = eltype(z)
    ZeroPaths.start!(map, z, progress) || return nothing
    steps = 0

    function rests(u, s, integrator)
        steps += 1
        r, zs = columns(map, SciMLBase.get_du(integrator)), columns(map, u)
        ZeroPaths.update!(progress, steps, zs, column_norms(r), column_norms(zs .+ r))
        return ZeroPaths.finished(progress)
    end

    problem = SciMLBase.SteadyStateProblem(SciMLBase.ODEFunction{true, SciMLBase.FullSpecialize}(Flow(map)), vec(z))
    # The steps' error keeps the state moving, by that much; it has to stay well below what is tolerated.
    tolerance = max(T(progress.rtol) / 10, 100 * eps(T))
    solution = SciMLBase.solve(
        problem, algorithm.method; abstol = zero(T), reltol = zero(T),
        odesolve_kwargs = (;
            abstol = max(T(progress.atol) / 10, tolerance * eps(T)), reltol = tolerance, maxiters = progress.maxiters,
            callback = SciMLBase.DiscreteCallback(rests, SciMLBase.terminate!; save_positions = (false, false)),
            save_everystep = false, verbose = ZeroPaths.SciMLLogging.None(),
        ),
    )
    code = solution.original.retcode
    code === SciMLBase.ReturnCode.MaxIters && return ZeroPaths.stop!(progress, :max_steps, steps)
    return ZeroPaths.stop!(progress, code === SciMLBase.ReturnCode.Unstable ? :diverged : :step_too_small, steps)
end

end
