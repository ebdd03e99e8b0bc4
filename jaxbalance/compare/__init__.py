"""What should I use on my imbalanced data? Many methods, one compiled sweep, honest statistics."""

from jaxbalance.compare._methods import METHODS as METHODS
from jaxbalance.compare._methods import Method as Method
from jaxbalance.compare._methods import Training as Training
from jaxbalance.compare._model import Predictor as Predictor
from jaxbalance.compare._model import load_model as load_model
from jaxbalance.compare._report import Report as Report
from jaxbalance.compare._run import Settings as Settings
from jaxbalance.compare._run import compare as compare
