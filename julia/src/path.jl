# Path tracking: predictor, corrector, step control and the event at lambda = 1, step by step as homojl's PyTorch backend does it.
#
# A point of the path is one vector w = (z, lambda); lengths, angles and step sizes are Float64. The border of the linear systems is
# the last tangent where the path is followed by its length, and the unit vector of lambda where it is followed by lambda: that
# alone makes the one regular at folds and the other not.

# What a step should cost: the angle that the path turns by, the distance corrected relative to the step's length, and
# the factor that one correction reduces the residual by. A step where any is so large that it should have been less
# than half as long is taken again.
const STEP_ANGLE, STEP_DISTANCE, STEP_CONTRACTION = 0.3, 0.05, 0.05
# The sign of the bordered determinant changes only where the path branches: in a longer step than this, relative to 1 +
# norm(w), a change means that the step has jumped to another part of the path.
const BRANCH_STEP = 1.0e-3
const LAST_CORRECTIONS = 30 # at lambda = 1, where a root may be multiple and Newton's method slow
const VERTICAL = 0.05 # a tangent's part in lambda below which a path that could not be followed is said to turn back

"""
A path that was followed.

# Fields
- `s`: length along the path at each of its points, in the unit that `velocity` sets.
- `lambdas`: lambda there; 0 at the first, 1 at the last of a solve that succeeded.
- `states`: z there, arrays of u0's shape, element type and kind of array.
- `residuals`: root mean square of H there.
- `folds`: how often the path turned round in lambda.
- `ending`: how it ended: `:success`, `:max_steps`, `:step_too_small`, `:stalled`, `:diverged`, `:left_bounds`, `:returned` or `:fold`.
- `nfe`, `n_jvp`, `n_rejected`, `step`: evaluations, products with the Jacobian, steps tried in vain, and the last step size.
"""
struct ZeroPath{Z <: AbstractArray}
    s::Vector{Float64}
    lambdas::Vector{Float64}
    states::Vector{Z}
    residuals::Vector{Float64}
    folds::Int
    ending::Symbol
    nfe::Int
    n_jvp::Int
    n_rejected::Int
    step::Float64
end

"Follow the path of r! from z0; `kind` is `:fixed_point`, `:newton` or `:general`, as in [`Homotopy`](@ref ZeroPaths.Homotopy)."
function follow(@nospecialize(r!), z0::AbstractArray, algorithm::ZeroPathTracker, kind::Symbol, @nospecialize(jvp!))
    require_state(z0)
    tracker = Tracker(Homotopy(r!, jvp!, z0, kind), algorithm)
    return finish(tracker, follow!(tracker))
end

function SciMLBase.solve(prob::HomotopyProblem, algorithm::ZeroPathTracker)
    require(prob.λspan == (0, 1), "λspan must be (0, 1), got $(prob.λspan)")
    h, p = prob.f.f, prob.p
    path = if h isa RootHomotopy
        follow(h.r!, prob.u0, algorithm, h.kind, h.jvp!)
    else
        iip, jvp = SciMLBase.isinplace(prob), prob.f.jvp
        r! = iip ? (out, z, lambda) -> prob.f(out, z, p, lambda) : (out, z, lambda) -> copyto!(out, prob.f(z, p, lambda))
        jvp! = isnothing(jvp) ? nothing : (out, v, z, lambda) -> jvp(out, v, z, p, lambda)
        follow(r!, prob.u0, algorithm, :general, jvp!)
    end
    u, accepted = path.states[end], length(path.s) - 1
    resid = similar(u)
    SciMLBase.isinplace(prob) ? prob.f(resid, u, p, path.lambdas[end]) : copyto!(resid, prob.f(u, p, path.lambdas[end]))
    return SciMLBase.build_solution(
        prob, algorithm, u, resid; retcode = RETURN_CODES[path.ending], original = path,
        stats = SciMLBase.NLStats(path.nfe, 0, 0, 0, accepted),
    )
end

"This step cannot be taken; `ending` is what to end with if no shorter one can be either."
struct StepFailed <: Exception
    ending::Symbol
end

"One solve: where the path has come to, and what is written down of it."
mutable struct Tracker{T, H <: Homotopy{T}, A <: AbstractVector{T}}
    homotopy::H
    algorithm::ZeroPathTracker
    along_lambda::A
    points::Vector{Point{T, A}}
    lengths::Vector{Float64}
    s::Float64
    h::Float64
    folds::Int
    rejected::Int
    sign::Float64    # of the bordered determinant at the last point
end

function Tracker(homotopy::Homotopy{T, Z, A}, algorithm) where {T, Z, A}
    along_lambda = fill!(similar(homotopy.u0, length(homotopy.u0) + 1), zero(T))
    lambda_part(along_lambda) .= one(T)
    return Tracker{T, typeof(homotopy), A}(
        homotopy, algorithm, along_lambda, Point{T, A}[], Float64[], 0.0, algorithm.first_step, 0, 0, 0.0,
    )
end

function follow!(tracker::Tracker{T}) where {T}
    (; homotopy, algorithm) = tracker
    by_length = follows_length(algorithm)
    start = fill!(similar(tracker.along_lambda), zero(T))
    flat_state(start) .= homotopy.u0
    accept!(tracker, Point(homotopy, start), 0.0)
    tangent = start
    try
        tangent, tracker.sign = tangent_at(tracker, tracker.points[1], tracker.along_lambda)
    catch failure
        failure isa StepFailed || rethrow()
        return failure.ending
    end
    failed = :success
    while true
        point = tracker.points[end]
        length(tracker.points) - 1 + tracker.rejected >= algorithm.maxiters && return :max_steps
        failed !== :success && tracker.h <= smallest_step(tracker, point) && return why_stuck(tracker, failed, tangent)
        h = min(tracker.h, algorithm.max_step)
        to_go = 1 - Float64(point.lambda)
        lands = !by_length && h >= to_go * (1 - 1.0e-12)
        h = lands ? to_go : h
        new, turned, sign, len, quotient, last, fraction = point, tangent, 0.0, 0.0, 0.0, point, NaN
        try
            new, turned, sign, len, quotient = take_step(tracker, point, tangent, h, lands)
            if by_length
                fraction = crossing(point.lambda, lambda_of(tangent), new.lambda, lambda_of(turned), len)
                isnan(fraction) || (last = root_near(tracker, point, tangent, new, turned, len, fraction))
            end
        catch failure
            failure isa StepFailed || rethrow()
            failed = failure.ending
            tracker.rejected += 1
            tracker.h = h / 2
            continue
        end
        failed = :success
        if !isnan(fraction)
            accept!(tracker, last, len * fraction)
            return :success
        end
        accept!(tracker, new, len)
        lands && return at_the_end(tracker, new)
        tracker.folds += lambda_of(tangent) * lambda_of(turned) < 0
        tangent, tracker.sign = turned, sign
        tracker.h = h / max(0.5, quotient)
        by_length && root_mean_square_64(flat_state(new.w)) > algorithm.bound && return :left_bounds
        by_length && new.lambda <= 0 && return :returned
    end
    return
end

"""
One step of size `h`: the next point, its tangent, the sign of the determinant there, the length of the path up to it,
and the quotient that the step's size should be divided by, at most 2. Throws [`StepFailed`](@ref ZeroPaths.StepFailed) if
that is more, or something failed.
"""
function take_step(tracker::Tracker{T}, point::Point, tangent, h::Float64, lands::Bool) where {T}
    (; homotopy, algorithm) = tracker
    tableau, most = algorithm.predictor, algorithm.max_corrections
    field(w) = tangent_at(tracker, Point(homotopy, w), tangent)[1]
    w, ks = runge_kutta_step(field, tableau, h, point.w, tangent)
    lands && (lambda_part(w) .= one(T))
    new = guess = Point(homotopy, w)
    estimates = !isnothing(error_weights(tableau))
    quotient = estimates ? error_ratio(tracker, point.w, w, h, ks)^(1 / tableau.order) : 0.0
    if most > 0
        new, contraction = corrected(tracker, guess, border_of(tracker, tangent), most)
        quotient = max(quotient, sqrt(contraction / STEP_CONTRACTION))
    end
    turned, sign = tangent_at(tracker, new, tangent)
    chord = new.w .- point.w
    len = euclidean(chord)
    most > 0 || return new, turned, sign, len, estimates ? quotient : 1.0
    angle = angle_between(tangent, chord) + angle_between(chord, turned)
    distance = euclidean(new.w .- guess.w) / (h * euclidean(tangent))
    quotient = max(quotient, angle / STEP_ANGLE, (distance / STEP_DISTANCE)^(1 / tableau.order))
    off = sign != tracker.sign && len > BRANCH_STEP * (1 + euclidean(point.w))
    (off || jumped(homotopy, new) || !(quotient <= 2)) && throw(StepFailed(:step_too_small))
    # The chord of a circular arc that turns by this angle.
    return new, turned, sign, len * (angle > 0 ? angle / 2 / sin(angle / 2) : 1.0), quotient
end

function error_ratio(tracker::Tracker{T}, w, w_next, h::Float64, ks) where {T}
    (; predictor, predictor_reltol, predictor_abstol) = tracker.algorithm
    error = combine(fill!(similar(w), zero(T)), h, error_weights(predictor), ks)
    return root_mean_square_64(error ./ (max.(abs.(w), abs.(w_next)) .* T(predictor_reltol) .+ T(predictor_abstol)))
end

border_of(tracker::Tracker, tangent) = follows_length(tracker.algorithm) ? tangent : tracker.along_lambda

"""
The path's derivative at a point: by its length, within a right angle of the tangent `near`; or by lambda. With it, the
sign of the bordered determinant.
"""
function tangent_at(tracker::Tracker{T}, point::Point, near) where {T}
    tangent, sign = solve_bordered(tracker, point, border_of(tracker, near), zero(point.h), one(T))
    follows_length(tracker.algorithm) && (tangent ./= T(euclidean(tangent)))
    return tangent, sign
end

"""
Newton's method from a point back to H = 0 in the hyperplane orthogonal to the border: the point where the residual
meets the tolerance, and the largest factor that one correction, of those that had some way to go, reduced the residual
by.

Throws [`StepFailed`](@ref ZeroPaths.StepFailed) if the residual does not fall at every correction, or is too large after
the last.
"""
function corrected(tracker::Tracker{T}, point::Point, border, most::Int) where {T}
    contraction = 0.0
    for _ in 1:most
        point.size <= tolerance(tracker, point) && return point, contraction
        new = Point(tracker.homotopy, point.w .+ solve_bordered(tracker, point, border, .-point.h, zero(T))[1])
        new.size < point.size || throw(StepFailed(isfinite(new.size) ? :stalled : :diverged))
        # Near the tolerance rounding decides how far the residual falls, which says nothing of the step.
        point.size > 10 * tolerance(tracker, point) && (contraction = max(contraction, new.size / point.size))
        point = new
    end
    point.size <= tolerance(tracker, point) && return point, contraction
    throw(StepFailed(isfinite(point.size) ? :stalled : :diverged))
end

"The root at lambda = 1 near the crossing at that fraction of the step between two points."
function root_near(
        tracker::Tracker{T}, point::Point, tangent, new::Point, turned, h::Float64, fraction::Float64
    ) where {T}
    a, b, c, d = hermite(fraction)
    w = T(a) .* point.w .+ T(b * h) .* tangent .+ T(c) .* new.w .+ T(d * h) .* turned
    lambda_part(w) .= one(T)
    guess = Point(tracker.homotopy, w)
    root, _ = corrected(tracker, guess, tracker.along_lambda, LAST_CORRECTIONS)
    euclidean(root.w .- guess.w) <= 0.5 * h || throw(StepFailed(:stalled))
    return root
end

function solve_bordered(tracker::Tracker, point::Point, border, rhs, last)
    isfinite(point.size) || throw(StepFailed(:diverged))
    full = similar(rhs, length(rhs) + 1)
    flat_state(full) .= rhs
    lambda_part(full) .= last
    (; homotopy, algorithm) = tracker
    x, sign = solves_densely(algorithm, length(rhs)) ? solve_densely(homotopy, point, border, full) :
        solve_by_krylov(homotopy, point, border, full, algorithm.krylov_steps)
    isnothing(x) && throw(StepFailed(:step_too_small))
    return x, sign
end

function tolerance(tracker::Tracker, point::Point)
    (; abstol, reltol) = tracker.algorithm
    return abstol + reltol * root_mean_square_64(flat_state(point.w))
end

function smallest_step(tracker::Tracker{T}, point::Point) where {T}
    # By lambda the way to a fold is taken in ever smaller steps: the root of eps is where it is known to be one.
    follows_length(tracker.algorithm) || return sqrt(Float64(eps(T)))
    return 16 * Float64(eps(T)) * (1 + euclidean(point.w))
end

"Write down a point that lies that far along the path; s grows by the integral of 1/v over the length."
function accept!(tracker::Tracker, point::Point, len::Float64)
    if follows_length(tracker.algorithm) && len > 0
        slowness(s) = 1 / velocity_at(tracker.algorithm, s)
        k1 = slowness(tracker.s)
        k2 = slowness(tracker.s + len / 2 * k1)
        k3 = slowness(tracker.s + len / 2 * k2)
        len *= (k1 + 2 * k2 + 2 * k3 + slowness(tracker.s + len * k3)) / 6
    end
    tracker.s += len
    push!(tracker.points, point)
    push!(tracker.lengths, tracker.s)
    return nothing
end

function why_stuck(tracker::Tracker, failed::Symbol, tangent)
    turns_back = !follows_length(tracker.algorithm) && 1 / euclidean(tangent) < VERTICAL
    return failed !== :diverged && turns_back ? :fold : failed
end

function at_the_end(tracker::Tracker, last::Point)
    last.size <= tolerance(tracker, last) && return :success
    return isfinite(last.size) ? :stalled : :diverged
end

function finish(tracker::Tracker, ending::Symbol)
    (; homotopy, points) = tracker
    states = [reshape(copy(flat_state(p.w)), size(homotopy.z)) for p in points]
    return ZeroPath(
        tracker.lengths, [Float64(p.lambda) for p in points], states, [p.size for p in points], tracker.folds, ending,
        homotopy.nfe, homotopy.n_jvp, tracker.rejected, tracker.h,
    )
end

"The angle between two directions, in radians; from their difference, which keeps small angles."
function angle_between(a::AbstractVector{T}, b) where {T}
    gap = euclidean(a ./ T(euclidean(a)) .- b ./ T(euclidean(b)))
    return 2 * asin(min(1.0, gap / 2))
end

"Weights of value and slope at 0 and of value and slope at 1 in the cubic Hermite polynomial at x in [0, 1]."
hermite(x) = (1 + 2 * x) * (1 - x)^2, x * (1 - x)^2, x^2 * (3 - 2 * x), x^2 * (x - 1)

"The first fraction of a step of size h at which the cubic through both ends reaches lambda = 1; NaN: nowhere."
function crossing(lambda::Real, slope::Real, lambda_next::Real, slope_next::Real, h::Float64)
    function past(x::Float64)
        a, b, c, d = hermite(x)
        return a * lambda + b * h * slope + c * lambda_next + d * h * slope_next >= 1
    end
    first = findfirst(k -> k == 8 ? lambda_next >= 1 : past(k / 8), 1:8)
    isnothing(first) && return NaN
    low, high = (first - 1) / 8, first / 8
    for _ in 1:50
        middle = (low + high) / 2
        low, high = past(middle) ? (low, middle) : (middle, high)
    end
    return high
end
