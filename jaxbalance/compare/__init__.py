"""What should I use on my imbalanced data? Many methods, one compiled sweep, honest statistics."""

from jaxbalance.compare._methods import METHODS as METHODS
from jaxbalance.compare._methods import Method as Method
from jaxbalance.compare._methods import Training as Training
from jaxbalance.compare._model import Predictor as Predictor
from jaxbalance.compare._regression_methods import REGRESSION_METHODS as REGRESSION_METHODS
from jaxbalance.compare._regression_methods import RegressionMethod as RegressionMethod
from jaxbalance.compare._regression_model import TargetPredictor as TargetPredictor
from jaxbalance.compare._regression_model import load_model as load_model
from jaxbalance.compare._regression_report import RegressionReport as RegressionReport
from jaxbalance.compare._regression_run import compare_regression as compare_regression
from jaxbalance.compare._report import Report as Report
from jaxbalance.compare._run import Settings as Settings
from jaxbalance.compare._run import compare as compare
from jaxbalance.compare._suite_report import SuiteReport as SuiteReport
from jaxbalance.compare._suite_run import SuiteSettings as SuiteSettings
from jaxbalance.compare._suite_run import compare_suite as compare_suite
