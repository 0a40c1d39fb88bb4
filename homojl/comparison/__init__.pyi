from homojl.comparison.experiment import Experiment as Experiment
from homojl.comparison.experiment import experiment_names as experiment_names
from homojl.comparison.experiment import read_experiment as read_experiment
from homojl.comparison.plan import Plan as Plan
from homojl.comparison.plan import make_plan as make_plan
from homojl.comparison.record import Comparison as Comparison
from homojl.comparison.record import collect as collect
from homojl.comparison.runner import run_all as run_all
