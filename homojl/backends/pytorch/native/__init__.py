"""Whole solves as one C++ function: a field's graph, the code for it, the loop over steps, and its gradient.

`graph` finds what a field computes, `code` and `operations` write C++ for it, `kernels.hpp` and `loop.hpp` hold what does
not depend on the field, `build` compiles and finds again, `solve` runs and differentiates.
"""

NOTHING, STATES, EVALUATIONS = range(3)  # what is kept of a solve beside its steps: the states, or what it evaluated
