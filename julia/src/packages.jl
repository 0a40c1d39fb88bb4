# Packages that an algorithm needs beyond those that HomoJL loads itself.

# Loading all of these takes many seconds, so each is loaded by the first solve that needs it. They are weak dependencies: the
# methods that use them live in ext/, and Julia loads those together with the package.
const PACKAGES = Dict(
    :CUDA => "052768ef-5323-5732-b1bb-66c8b64840ba",
    :DifferentialEquations => "0c46a032-eb83-5123-abaf-570d42b7fbaa",
    :ForwardDiff => "f6369f11-7733-5829-9624-2563aa707210",
    :LinearSolve => "7ed4a6bd-45f5-4d41-b270-4a48e9bafcae",
    :NonlinearSolve => "8913a72c-1f9b-4ce2-8d82-65094dcecaec",
    :OrdinaryDiffEqBDF => "6ad6398a-0878-4a85-9266-38940aa047c8",
    :OrdinaryDiffEqRosenbrock => "43230ef6-c299-4910-a778-202eb28ce4ce",
    :OrdinaryDiffEqSDIRK => "2d112036-d095-4a1e-ab9a-08536f3ecdbf",
    :SteadyStateDiffEq => "9672c7b4-1e72-59bd-8a11-6ac3964bc41f",
)

"""
    require_package(name::Symbol) -> Module

The package of that name, loaded from the active environment if it is not loaded yet, with HomoJL's extension for it.

Methods that come with a package loaded here are newer than the code that is running: call what uses them by
`Base.invokelatest`. Throws an `ArgumentError` that says what to do where the package is not installed.
"""
function require_package(name::Symbol)
    id = Base.PkgId(Base.UUID(PACKAGES[name]), String(name))
    haskey(Base.loaded_modules, id) && return Base.loaded_modules[id]
    require(
        !isnothing(Base.locate_package(id)),
        "this algorithm needs the package $name, which the active environment does not have; " *
            "add it with `import Pkg; Pkg.add(\"$name\")`, then say `using $name`",
    )
    return Base.require(id)
end
