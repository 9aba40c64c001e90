"""The notebook calculators: the interfaces of Influenciae's classes over `tf.data`, on the engine of the Beam job.

They read and write the job's formats. Data sets are batched `tf.data.Dataset`s; see `tf_datasets.dataset_form`. An example's
id is its position in its data set. Sign and scale are the reference's: positive = helpful; divide by n for the predicted
change of the loss when the example is removed.
"""

from beam_influence.influence_ops import device as device  # sets TensorFlow's log level before it is imported
from beam_influence.influence_ops.calculator.arnoldi import ArnoldiInfluenceCalculator as ArnoldiInfluenceCalculator
from beam_influence.influence_ops.calculator.first_order import FirstOrderInfluenceCalculator as FirstOrderInfluenceCalculator
from beam_influence.influence_ops.calculator.fitting import IHVPCalculator as IHVPCalculator
from beam_influence.influence_ops.calculator.options import CACHE as CACHE
from beam_influence.influence_ops.calculator.options import ORDER as ORDER
from beam_influence.influence_ops.calculator.second_order import SecondOrderInfluenceCalculator as SecondOrderInfluenceCalculator
from beam_influence.influence_ops.calculator.trac_in import TracIn as TracIn
