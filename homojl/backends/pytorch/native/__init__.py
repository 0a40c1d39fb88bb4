"""Whole solves in C++ that is written for a field: the loop over its steps, and the gradient back over them.

`entry` finds what a field holds and `graph` what it computes; `lower` writes that as C++, with `values`, `products`,
`operations` and `places`. The headers have what does not depend on the field: `kernels.hpp` functions of elements and
products of matrices, `control.hpp` the choice of steps, `loop.hpp` the loop over the steps of one state, and
`lanes.hpp` that of samples with steps of their own. `program` puts these together, `build` compiles and finds again
what was compiled, `whole` runs it and differentiates, by `joint` or `ensemble`.
"""

NOTHING, STATES, EVALUATIONS = range(3)  # what is kept of a solve beside its steps: the states, or what it evaluated
