"""Training steps: pure functions of a state and a batch, and ways to compile and repeat them."""

from jaxbalance.training._run import run_steps as run_steps
from jaxbalance.training._step import StatefulLoss as StatefulLoss
from jaxbalance.training._step import Step as Step
from jaxbalance.training._step import StepRecord as StepRecord
from jaxbalance.training._step import TrainState as TrainState
from jaxbalance.training._step import example_loss as example_loss
from jaxbalance.training._step import init_state as init_state
from jaxbalance.training._step import jit_step as jit_step
from jaxbalance.training._step import make_stateful_step as make_stateful_step
from jaxbalance.training._step import make_step as make_step
