from homojl.training.config import ExperimentConfig as ExperimentConfig
from homojl.training.loop import train as train
from homojl.training.run import Run as Run
from homojl.training.run import load_run as load_run
