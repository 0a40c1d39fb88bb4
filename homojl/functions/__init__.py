"""What the user gives, as solvers and adjoints use it: the one place that calls a user's function."""

from homojl.functions.base import AbstractField, AbstractMap, DerivedField, DerivedMap
from homojl.functions.evaluated import WrittenOver
from homojl.functions.products import dense_zeros
from homojl.functions.states import Form
from homojl.functions.user import MapFunction, UserFunction, VectorField

__all__ = [
    "AbstractField",
    "AbstractMap",
    "DerivedField",
    "DerivedMap",
    "Form",
    "MapFunction",
    "UserFunction",
    "VectorField",
    "WrittenOver",
    "dense_zeros",
]
