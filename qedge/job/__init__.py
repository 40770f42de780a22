"""What a user asks for, as typed values."""

from qedge.job.algorithm import Algorithm
from qedge.job.cohort import Cohort
from qedge.job.data import BUILT_IN, Data, Partition
from qedge.job.model import Model
from qedge.job.personalisation import Personalisation
from qedge.job.privacy import Clipping, Privacy
from qedge.job.query import Query
from qedge.job.rollback import Rollback
from qedge.job.secure_aggregation import SecureAggregation
from qedge.job.training_job import TrainingJob

__all__ = [
    "BUILT_IN",
    "Algorithm",
    "Clipping",
    "Cohort",
    "Data",
    "Model",
    "Partition",
    "Personalisation",
    "Privacy",
    "Query",
    "Rollback",
    "SecureAggregation",
    "TrainingJob",
]
