"""Training steps: pure functions of a state and a batch, and ways to compile and repeat them."""

from jaxbalance.training._calibration import iterative_calibration as iterative_calibration
from jaxbalance.training._class_step import ExtraArgs as ExtraArgs
from jaxbalance.training._class_step import OracleFactory as OracleFactory
from jaxbalance.training._class_step import make_class_step as make_class_step
from jaxbalance.training._class_step import make_stateful_class_step as make_stateful_class_step
from jaxbalance.training._compile import jit_step as jit_step
from jaxbalance.training._compile import place_state as place_state
from jaxbalance.training._compile import pmap_step as pmap_step
from jaxbalance.training._compile import sharded_step as sharded_step
from jaxbalance.training._detach import detach_classes as detach_classes
from jaxbalance.training._phases import Phase as Phase
from jaxbalance.training._phases import run_phases as run_phases
from jaxbalance.training._run import run_steps as run_steps
from jaxbalance.training._state import ClassStepRecord as ClassStepRecord
from jaxbalance.training._state import StatefulLoss as StatefulLoss
from jaxbalance.training._state import Step as Step
from jaxbalance.training._state import StepRecord as StepRecord
from jaxbalance.training._state import TrainState as TrainState
from jaxbalance.training._state import example_loss as example_loss
from jaxbalance.training._state import init_state as init_state
from jaxbalance.training._step import make_stateful_step as make_stateful_step
from jaxbalance.training._step import make_step as make_step
