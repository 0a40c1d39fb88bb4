# Events: what a condition's change of sign says of the solution, and where it changes.

"""
    Event(condition; direction = 0, terminal = true)

Something that takes place where `condition(u, t)`, a real number, changes its sign along a solution.

# Fields
- `condition`: called with the state, which it must not change, and the time, a `Float64`.
- `direction`: 1: only where it rises through zero, -1: only where it falls, 0: either; along the way that the solve takes, that
  is with time running backwards where the save times decrease.
- `terminal`: whether the solve ends there.

The condition is evaluated after each accepted step, so two changes within one step go unseen; tighter tolerances
take shorter steps. A condition that is zero at the start is no event; one that reaches zero exactly at the
end of a step is. Steps do not depend on events. Throws an `ArgumentError` for another `direction`.
"""
struct Event
    condition::Any
    direction::Int
    terminal::Bool

    function Event(condition; direction = 0, terminal::Bool = true)
        require(direction in (-1, 0, 1), "direction must be -1, 0 or 1, got $direction")
        return new(condition, direction, terminal)
    end
end

as_events(event::Event) = [event]

function as_events(events)
    require(all(event -> event isa Event, events), "events must hold Event(condition) objects")
    return Event[event for event in events]
end

value(event::Event, u, t::Float64) = Float64(event.condition(u, t))

"Whether going from `before` to `after` is what the event waits for."
function happens(event::Event, before::Float64, after::Float64)
    before < 0 && return after >= 0 && event.direction >= 0
    before > 0 && return after <= 0 && event.direction <= 0
    return false
end

"""
    sign_change(f, t0, t1, f0, f1) -> Float64

The time at which `f` changes its sign between `t0` and `t1`, to rounding of the time: the first number, going from `t0`, at which
its sign is no longer that of `f0`. `f0` is not zero, and `f1` of the other sign or zero; `t1` may lie before `t0`.

Bisection that proposes the root of a secant as long as that is not slower: the ITP method, with the secant bent
by a quarter of the bracket's relative length.

References: Oliveira, Takahashi (2020), ACM Trans. Math. Softw. 47(1).
"""
function sign_change(f, t0::Float64, t1::Float64, f0::Float64, f1::Float64)
    length0 = abs(t1 - t0)
    allowed = length0
    while true
        middle = t0 + (t1 - t0) / 2
        (middle == t0 || middle == t1) && return t1
        x = middle
        if isfinite(f1) && f1 != f0
            secant = (f1 * t0 - f0 * t1) / (f1 - f0)
            # Towards the middle, so that neither end stays where it is for ever.
            bend = abs(t1 - t0)^2 / (4 * length0)
            x = abs(middle - secant) <= bend ? middle : secant + copysign(bend, middle - secant)
            # Never further from the middle than what keeps up with bisection, give or take one step.
            room = max(allowed - abs(t1 - t0) / 2, 0.0)
            abs(x - middle) <= room || (x = middle + copysign(room, x - middle))
            (x == t0 || x == t1) && (x = middle)
        end
        allowed /= 2
        fx = f(x)
        if f0 < 0 ? fx < 0 : fx > 0
            t0, f0 = x, fx
        else
            t1, f1 = x, fx
        end
    end
end
