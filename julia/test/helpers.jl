# The tests' words for recorded solves: a method with what is asked of it, and what was written down, by name.

using ADTypes: AutoFiniteDiff
using LinearSolve: KrylovJL_GMRES, LUFactorization
import OrdinaryDiffEqBDF
import OrdinaryDiffEqDefault
import OrdinaryDiffEqLowOrderRK
import OrdinaryDiffEqRosenbrock
import OrdinaryDiffEqSDIRK
import OrdinaryDiffEqTsit5
import OrdinaryDiffEqVerner
import SciMLBase
using ZeroPaths: TorchController, ZeroPathTracker

const SUCCESS, DIVERGED, STEP_TOO_SMALL, MAX_STEPS, STALLED = :success, :diverged, :step_too_small, :max_steps, :stalled
const LEFT_BOUNDS, RETURNED, FOLD, ENDED = :left_bounds, :returned, :fold, :event

"A method of OrdinaryDiffEq, its request, and whether its linear systems are dense (`nothing`: by the state's size)."
struct How
    name::String
    make::Any
    request::ZeroPaths.Request
    dense::Union{Nothing, Bool}
end

how(name, make; dense = nothing, options...) = How(name, make, ZeroPaths.Request(; options...), dense)

Euler(; options...) = how("Euler", d -> OrdinaryDiffEqLowOrderRK.Euler(); options...)
Midpoint(; options...) = how("Midpoint", d -> OrdinaryDiffEqLowOrderRK.Midpoint(); options...)
RK4(; options...) = how("RK4", d -> OrdinaryDiffEqLowOrderRK.RK4(); step_size = 1.0e9, options...)
Bosh3(; controller = TorchController(), options...) = how("Bosh3", d -> OrdinaryDiffEqLowOrderRK.BS3(); controller, options...)
Dopri5(; controller = TorchController(), options...) = how("Dopri5", d -> OrdinaryDiffEqLowOrderRK.DP5(); controller, options...)
Tsit5(; controller = TorchController(), options...) = how("Tsit5", d -> OrdinaryDiffEqTsit5.Tsit5(); controller, options...)
Vern7(; controller = TorchController(), options...) = how("Vern7", d -> OrdinaryDiffEqVerner.Vern7(); controller, options...)

stiff(dense) = (; linsolve = dense ? LUFactorization() : KrylovJL_GMRES(), autodiff = AutoFiniteDiff())
is_dense(linear_solver) = linear_solver === :auto ? nothing : linear_solver === :dense

Rodas5P(; linear_solver = :auto, options...) =
    how("Rodas5P", d -> OrdinaryDiffEqRosenbrock.Rodas5P(; stiff(d)...); dense = is_dense(linear_solver), options...)
TRBDF2(; linear_solver = :auto, options...) =
    how("TRBDF2", d -> OrdinaryDiffEqSDIRK.TRBDF2(; smooth_est = false, stiff(d)...); dense = is_dense(linear_solver), options...)
FBDF(; linear_solver = :auto, options...) =
    how("FBDF", d -> OrdinaryDiffEqBDF.FBDF(; stiff(d)...); dense = is_dense(linear_solver), options...)
AutoSwitch(; linear_solver = :auto, options...) =
    how("AutoSwitch", d -> OrdinaryDiffEqDefault.DefaultODEAlgorithm(; stiff(d)...); dense = is_dense(linear_solver), options...)

"A condition that ends the solve where it changes its sign."
struct Event
    condition::Any
    direction::Int
end

Event(condition; direction = 0) = Event(condition, direction)

watch(::Nothing) = nothing
watch(event::Event) = watch([event])
watch(events::Vector{Event}) = (
    (values, u, t) -> (values .= [Float64(event.condition(u, t)) for event in events]; nothing), events[1].direction,
    length(events), nothing,
)

function integrate(
        f!, u0, ts, how::How; jvp! = nothing, parts = nothing, events = nothing, out = nothing, keep_states = false, keep = copy
    )
    dense = something(how.dense, length(u0) <= 64)
    states = []
    keeping = keep_states ? u -> push!(states, keep(u)) : nothing
    r = ZeroPaths.record(f!, u0, ts, how.make(dense), how.request; jvp!, dense, parts, watch = watch(events), out, keep = keeping)
    return (;
        r.ts, r.us, status = r.ending, r.step, r.event, states = identity.(states),
        steps = Steps(r.starts, r.sizes, r.save_steps, r.save_fractions),
        stats = (; r.nfe, r.n_jvp, r.n_rejected, n_accepted = length(r.starts)),
    )
end

struct Steps
    starts::Vector{Float64}
    sizes::Vector{Float64}
    save_steps::Vector{Int}
    save_fractions::Vector{Float64}
end

Base.length(steps::Steps) = length(steps.starts)

name(how::How) = how.name
