# How to integrate: one small immutable object per method, holding its tolerances and step control.

require(condition::Bool, message::String) = condition || throw(ArgumentError(message))

"""
    PIController(; safety = 0.9, min_factor = 0.2, max_factor = 10, beta1 = nothing, beta2 = nothing, beta3 = 0)

Proportional-integral step-size control; `nothing` takes the value that suits the method's order.

After a step of size `h` with error ratio `e` (1 is exactly the tolerance) that follows one of size `h_old` with ratio
`e_old`, the step is divided by `e^beta1 / e_old^beta2 / (h / h_old)^beta3 / safety`, a quotient kept between `1/max_factor`
and `1/min_factor`. After the first step it is `e^(1 / order) / safety`; after a rejected one the same, but at least 1.001,
and `1/min_factor` where `e` is not finite.

# Fields
- `safety`: in (0, 1]; how much of the largest admissible step is taken.
- `min_factor`, `max_factor`: bounds of the change from one step to the next.
- `beta1`, `beta2`, `beta3`: exponents, by default 0.85/order, 0.2/order and 0: the 0.17 and 0.04 of Hairer's dopri5. With
  (1 + p)/order, p/order and p the control expects the admissible step to go on growing as it has just done, by the part
  p: Python's `PredictiveController`, for p = 1 Gustafsson's predictive control.

All are dimensionless. Throws an `ArgumentError` for a value outside its range.

References: Hairer, Norsett, Wanner (1993), Solving Ordinary Differential Equations I, II.4; Hairer, Wanner (1996), II, IV.2
and IV.8; Gustafsson (1994), ACM Trans. Math. Softw. 20(4).
"""
Base.@kwdef struct PIController <: OrdinaryDiffEqCore.AbstractController
    safety::Float64 = 0.9
    min_factor::Float64 = 0.2
    max_factor::Float64 = 10.0
    beta1::Union{Nothing, Float64} = nothing
    beta2::Union{Nothing, Float64} = nothing
    beta3::Float64 = 0.0

    function PIController(safety, min_factor, max_factor, beta1, beta2, beta3)
        require(0 < safety <= 1, "safety must lie in (0, 1], got $safety")
        require(0 < min_factor < 1, "min_factor must lie in (0, 1), got $min_factor")
        require(max_factor > 1, "max_factor must be greater than 1, got $max_factor")
        return new(safety, min_factor, max_factor, beta1, beta2, beta3)
    end
end

"""
Supertype of every method that [`integrate`](@ref) takes.
"""
abstract type AbstractODEAlgorithm end

"""
    FixedStep{name}(; step_size = nothing)

Equal steps from each save time to the next, so that every save time is met exactly. `Euler`, `Midpoint` and `RK4` are
of this kind.

# Fields
- `step_size`: the largest step to take, in the unit of time, positive and finite; `nothing`: one step from each save time
  to the next.

Throws an `ArgumentError` for a value outside its range.
"""
struct FixedStep{name} <: AbstractODEAlgorithm
    step_size::Union{Nothing, Float64}

    function FixedStep{name}(; step_size = nothing) where {name}
        require(
            isnothing(step_size) || (isfinite(step_size) && step_size > 0),
            "step_size must be positive and finite, got $step_size",
        )
        return new{name}(step_size)
    end
end

"""
Supertype of the methods that choose their steps by an estimate of the error: [`HomoJL.Adaptive`](@ref) and
[`HomoJL.Implicit`](@ref).
"""
abstract type AbstractErrorControlled <: AbstractODEAlgorithm end

function require_error_control(rtol, atol, first_step, min_step, max_steps)
    require(isfinite(rtol) && rtol >= 0, "rtol must be a finite number >= 0, got $rtol")
    require(isfinite(atol) && atol >= 0, "atol must be a finite number >= 0, got $atol")
    require(rtol + atol > 0, "rtol and atol must not both be zero")
    require(
        isnothing(first_step) || (isfinite(first_step) && first_step > 0),
        "first_step must be positive and finite, got $first_step",
    )
    require(min_step >= 0, "min_step must be >= 0, got $min_step")
    require(max_steps >= 1, "max_steps must be at least 1, got $max_steps")
    return nothing
end

"""
    Adaptive{name}(; rtol = 1e-3, atol = 1e-6, first_step = nothing, min_step = 0, max_steps = 10_000,
        controller = PIController())

Embedded Runge-Kutta pairs with step-size control. `Bosh3`, `Dopri5`, `Tsit5` and `Vern7` are of this kind.

A step is accepted when the root mean square of error / (atol + rtol max(|u before|, |u after|)) over all elements of the
state, or the largest over the parts that [`integrate`](@ref) was given, is at most 1. The last step ends on the last save
time; the other save times are interpolated by the method's continuous extension, without further steps.

# Fields
- `rtol`, `atol`: relative and absolute tolerance, not negative, not both zero; `atol` in the unit of the state.
- `first_step`: size of the first step, in the unit of time; `nothing`: Hairer's estimate, one more evaluation.
- `min_step`: smallest step before the solve stops, in the unit of time; 0: what rounding of the time allows.
- `max_steps`: accepted and rejected steps together before the solve stops.
- `controller`: the step-size control, a [`PIController`](@ref).

Throws an `ArgumentError` for a value outside its range.
"""
struct Adaptive{name} <: AbstractErrorControlled
    rtol::Float64
    atol::Float64
    first_step::Union{Nothing, Float64}
    min_step::Float64
    max_steps::Int
    controller::PIController

    function Adaptive{name}(;
            rtol = 1.0e-3, atol = 1.0e-6, first_step = nothing, min_step = 0.0, max_steps = 10_000,
            controller = PIController()
        ) where {name}
        require_error_control(rtol, atol, first_step, min_step, max_steps)
        return new{name}(rtol, atol, first_step, min_step, max_steps, controller)
    end
end

"""
    Implicit{name}(; rtol = 1e-3, atol = 1e-6, first_step = nothing, min_step = 0, max_steps = 10_000,
        linear_solver = :auto)

Methods for stiff fields: every step solves linear systems with the field's Jacobian. `Rodas5P`, `TRBDF2`, `FBDF` and
`AutoSwitch` are of this kind. Each lives in a package of its own, which the first solve loads: OrdinaryDiffEqRosenbrock,
OrdinaryDiffEqSDIRK, OrdinaryDiffEqBDF, DifferentialEquations.

Steps are accepted, and save times met, as by [`HomoJL.Adaptive`](@ref); the step size is controlled by OrdinaryDiffEq's own
controller for the method. Where the Jacobian comes from, [`integrate`](@ref) says.

# Fields
- `rtol`, `atol`, `first_step`, `min_step`, `max_steps`: as in [`HomoJL.Adaptive`](@ref).
- `linear_solver`: `:dense`: the Jacobian column by column and an LU factorisation; `:krylov`: GMRES on Jacobian-vector
  products, no matrix at all; `:auto`: dense for states of up to 64 elements.

Throws an `ArgumentError` for a value outside its range.
"""
struct Implicit{name} <: AbstractErrorControlled
    rtol::Float64
    atol::Float64
    first_step::Union{Nothing, Float64}
    min_step::Float64
    max_steps::Int
    linear_solver::Symbol

    function Implicit{name}(;
            rtol = 1.0e-3, atol = 1.0e-6, first_step = nothing, min_step = 0.0, max_steps = 10_000,
            linear_solver = :auto
        ) where {name}
        require_error_control(rtol, atol, first_step, min_step, max_steps)
        kinds = (:auto, :dense, :krylov)
        require(linear_solver in kinds, "linear_solver must be one of $kinds, got $(repr(linear_solver))")
        return new{name}(rtol, atol, first_step, min_step, max_steps, linear_solver)
    end
end

"""
    Euler(; step_size = nothing)

Euler's method, order 1, one evaluation a step; a [`HomoJL.FixedStep`](@ref).
"""
const Euler = FixedStep{:Euler}

"""
    Midpoint(; step_size = nothing)

Explicit midpoint rule, order 2, two evaluations a step; a [`HomoJL.FixedStep`](@ref).
"""
const Midpoint = FixedStep{:Midpoint}

"""
    RK4(; step_size = nothing)

The classical Runge-Kutta method, order 4, four evaluations a step; a [`HomoJL.FixedStep`](@ref).
"""
const RK4 = FixedStep{:RK4}

"""
    Bosh3(; rtol, atol, ...)

Bogacki and Shampine's 3(2) pair, three evaluations a step, OrdinaryDiffEq's `BS3`; good at tolerances above 1e-3. For the
keywords see [`HomoJL.Adaptive`](@ref).

References: Bogacki, Shampine (1989), Appl. Math. Lett. 2(4).
"""
const Bosh3 = Adaptive{:Bosh3}

"""
    Dopri5(; rtol, atol, ...)

Dormand and Prince's 5(4) pair, six evaluations a step, OrdinaryDiffEq's `DP5`. For the keywords see
[`HomoJL.Adaptive`](@ref).

References: Dormand, Prince (1980), J. Comp. Appl. Math. 6(1).
"""
const Dopri5 = Adaptive{:Dopri5}

"""
    Tsit5(; rtol, atol, ...)

Tsitouras' 5(4) pair, six evaluations a step; a good default. For the keywords see [`HomoJL.Adaptive`](@ref).

References: Tsitouras (2011), Comput. Math. Appl. 62(2).
"""
const Tsit5 = Adaptive{:Tsit5}

"""
    Vern7(; rtol, atol, ...)

Verner's most efficient 7(6) pair, ten evaluations a step, and six more in a step that save times are interpolated in; for
tolerances below 1e-8. For the keywords see [`HomoJL.Adaptive`](@ref).

References: Verner (2010), Numer. Algorithms 53.
"""
const Vern7 = Adaptive{:Vern7}

"""
    Rodas5P(; rtol, atol, ..., linear_solver)

Steinebach's Rosenbrock method of order 5(4), eight stages; the first choice for small stiff systems. It needs an accurate
Jacobian: with one from finite differences, tolerances below 1e-8 cost more steps than they should. For the keywords see
[`HomoJL.Implicit`](@ref).

References: Steinebach (2023), BIT Numer. Math. 63(2).
"""
const Rodas5P = Implicit{:Rodas5P}

"""
    TRBDF2(; rtol, atol, ..., linear_solver)

Trapezoidal rule and BDF2 in one step, order 2, L-stable; for stiff systems at tolerances above 1e-3. For the keywords see
[`HomoJL.Implicit`](@ref).

References: Bank et al. (1985), IEEE Trans. Electron Devices 32(10); Hosea, Shampine (1996), Appl. Numer. Math. 20(1-2).
"""
const TRBDF2 = Implicit{:TRBDF2}

"""
    FBDF(; rtol, atol, ..., linear_solver)

Backward differentiation of order 1 to 5 with fixed leading coefficient, one nonlinear solve a step; for large stiff systems.
For the keywords see [`HomoJL.Implicit`](@ref).

References: Shampine (2002), J. Comput. Appl. Math. 142(2).
"""
const FBDF = Implicit{:FBDF}

"""
    AutoSwitch(; rtol, atol, ..., linear_solver)

DifferentialEquations' default: an explicit method, Tsitouras' or Verner's by the tolerance, for as long as the field is not stiff,
and one for stiff fields while it is, a Rosenbrock method or backward differentiation by the size of the state. For fields
of which nothing is known. The first solve of a kind compiles all of them, some ten seconds. For the keywords see
[`HomoJL.Implicit`](@ref).
"""
const AutoSwitch = Implicit{:AutoSwitch}

name(::FixedStep{n}) where {n} = String(n)
name(::Adaptive{n}) where {n} = String(n)
name(::Implicit{n}) where {n} = String(n)

"""
    method(algorithm, n)

The OrdinaryDiffEq method that does the work for a state of `n` elements. Those of the methods for stiff fields are defined
in ext/, with the packages that they need.
"""
method(::Euler, n::Int) = OrdinaryDiffEqLowOrderRK.Euler()
method(::Midpoint, n::Int) = OrdinaryDiffEqLowOrderRK.Midpoint()
method(::RK4, n::Int) = OrdinaryDiffEqLowOrderRK.RK4()
method(::Bosh3, n::Int) = OrdinaryDiffEqLowOrderRK.BS3()
method(::Dopri5, n::Int) = OrdinaryDiffEqLowOrderRK.DP5()
method(::Tsit5, n::Int) = OrdinaryDiffEqTsit5.Tsit5()
method(::Vern7, n::Int) = OrdinaryDiffEqVerner.Vern7()

"The packages that a method needs beyond those that HomoJL loads."
packages(::AbstractODEAlgorithm) = ()
packages(::Rodas5P) = (:OrdinaryDiffEqRosenbrock, :LinearSolve)
packages(::TRBDF2) = (:OrdinaryDiffEqSDIRK, :LinearSolve)
packages(::FBDF) = (:OrdinaryDiffEqBDF, :LinearSolve)
packages(::AutoSwitch) = (:DifferentialEquations, :LinearSolve)

"Whether linear systems with a state of `n` elements are solved by a dense factorisation."
is_dense(::AbstractODEAlgorithm, n::Int) = false

function is_dense(algorithm::Implicit, n::Int)
    algorithm.linear_solver === :auto && return n <= 64
    return algorithm.linear_solver === :dense
end
